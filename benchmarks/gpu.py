"""What a GPU adds: flex attention against sdpa at full width, and a sampler that never waits for the device.

One layer as wide as bagel-7b-mot's on a pack of 30K tokens, bfloat16. Work is counted over visible pairs of
tokens: 4 * Dh * H * pairs operations forward, 2.5 times that backward (flash attention's count), and set
against what a large matrix product reaches on the same device. Every function takes the device and the sizes,
so that tests run it on the CPU, where flex attention has no backward pass and is left out of the timing.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from packs import Delimiters, branches, pack, sample
from torch import Tensor

from sigma_data.loading.batch import PackedBatch, TokenTags
from sigma_data.sequence.layout import Segment
from sigma_model.attention import Attention, Backend, attention_for
from sigma_model.attention_mask import visible
from sigma_model.config import LanguageConfig, ModelConfig, preset
from sigma_model.embed import rotary
from sigma_model.experts import Layer
from sigma_model.model import SigmaModel, widths
from sigma_model.sampling.sampler import Sampler, times

TOLERANCE = 0.03
"""Relative error, in the Frobenius norm, allowed between two bfloat16 attentions."""


def main() -> bool:
    """All of it on this machine's GPU; True where there is none or all is well."""
    if not torch.cuda.is_available():
        print("gpu: no CUDA device here, nothing measured\n")
        return True
    config = preset("bagel-7b-mot")
    reference = ((48, 64), (28, 37))  # 1024 x 768 pixels
    large = pack([sample([reference] * 6, (64, 64), words=60)])
    small = pack([sample([((16, 16), (18, 18))] * 2, (16, 16), words=40)] * 2)
    good = agreement(config.language, small)
    layer_speed(config.language, large)
    language = config.language.model_copy(update={"num_hidden_layers": 4})
    request = sample([((64, 64), (37, 37))] * 2, (64, 64), words=60)
    sampler_without_waits(config.model_copy(update={"language": language}), request)
    return good


def agreement(
    config: LanguageConfig, batch: PackedBatch, *, device: str = "cuda", dtype: torch.dtype = torch.bfloat16
) -> bool:
    """Whether flex attention and sdpa give the same outputs and, on a GPU, gradients; prints the error."""
    batch = batch.to(device)
    backward = device != "cpu"
    results = []
    for backend in (Backend.FLEX, Backend.SDPA):
        *parts, weight = attention_inputs(config, batch.tokens, device, dtype)
        q, k, v = (x.requires_grad_(backward) for x in parts)
        with torch.set_grad_enabled(backward):
            out = attention_for(batch, group_mask=True, backend=backend)(q, k, v)
        if backward:
            out.backward(weight)
        results.append([out.detach(), *(x.grad for x in (q, k, v) if x.grad is not None)])
    errors = [
        float((flex.float() - sdpa.float()).norm() / sdpa.float().norm()) for flex, sdpa in zip(*results, strict=True)
    ]
    good = max(errors) <= TOLERANCE
    print(
        f"gpu: flex and sdpa on {batch.tokens:,} tokens differ by {max(errors):.2g} of their norm "
        f"(at most {TOLERANCE}): {'ok' if good else 'FAIL'}"
    )
    return good


def layer_speed(
    config: LanguageConfig,
    batch: PackedBatch,
    *,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    rounds: int = 10,
    ceiling_side: int = 8192,
) -> None:
    """Print time and TFLOP/s of attention alone and of a whole layer, forward and backward."""
    batch = batch.to(device)
    pairs = visible_pairs(batch.tags)
    attention_work = 3.5 * 4 * config.head_dim * config.num_attention_heads * pairs
    layer = Layer(config).to(device, dtype)
    # A token meets one of the two experts: 2 operations a weight forward, 4 backward; norms and biases are nothing.
    layer_work = attention_work + 6 * batch.tokens * sum(p.numel() for p in layer.und.parameters())
    ceiling = matmul_ceiling(ceiling_side, device, dtype, rounds)
    print(
        f"gpu: {batch.tokens:,} tokens, {pairs / batch.tokens**2:.0%} of pairs visible, width {config.hidden_size}, "
        f"{config.num_attention_heads} heads, {dtype}; a matrix product of {ceiling_side} reaches {ceiling:.1f} TFLOP/s"
    )
    print(f"  {'forward + backward':<24}{'ms':>9}{'TFLOP/s':>10}{'of the product':>16}{'peak GB':>9}")
    for backend in (Backend.FLEX, Backend.SDPA) if device != "cpu" else (Backend.SDPA,):
        for name, work, prepare in (
            (f"attention, {backend}", attention_work, _attention_arm),
            (f"layer, {backend}", layer_work, _layer_arm),
        ):
            try:
                arm = prepare(config, layer, batch, attention_for(batch, group_mask=True, backend=backend))
                seconds, peak = clock(arm, device, rounds)
            except torch.OutOfMemoryError:
                print(f"  {name:<24}{'skipped: the memory does not suffice':>44}")
                continue
            finally:
                layer.zero_grad(set_to_none=True)
            speed = work / seconds / 1e12
            print(f"  {name:<24}{seconds * 1e3:>9.2f}{speed:>10.1f}{speed / ceiling:>15.0%}{peak / 1e9:>10.1f}")
    print()


def sampler_without_waits(
    config: ModelConfig,
    segments: list[Segment],
    *,
    device: str = "cuda",
    dtype: torch.dtype = torch.bfloat16,
    steps: int = 10,
) -> Tensor:
    """Run the sampler's loop where a wait for the device is an error; prints time and peak memory."""
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    with torch.device(device):
        model = SigmaModel(config).requires_grad_(False)
    torch.set_default_dtype(default)
    sampler = Sampler(model, [branches(segments, widths(config))], Delimiters())
    x = torch.randn(sampler.counts[0], config.latent.features, device=device)
    sampler.velocity(x, 1.0)  # the first step compiles, chooses kernels and takes memory
    levels = times(steps + 1, 3.0)
    on_gpu = device != "cpu"
    if on_gpu:
        torch.cuda.reset_peak_memory_stats()
        torch.cuda.synchronize()
        torch.cuda.set_sync_debug_mode("error")
    start = time.perf_counter()
    try:
        x = sampler.integrate(x, levels)
    finally:
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")
    queued = time.perf_counter() - start
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    peak = torch.cuda.max_memory_allocated() / 1e9 if on_gpu else 0.0
    print(
        f"gpu: sampler, {len(x):,} latent tokens, {config.language.num_hidden_layers} layers: {steps} guided steps in "
        f"{seconds:.2f} s, queued in {queued:.2f} s without a wait; peak {peak:.1f} GB\n"
    )
    assert bool(x.isfinite().all())
    return x


def attention_inputs(
    config: LanguageConfig, tokens: int, device: str, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, keys, values that take gradients, and a gradient of the output; the same each time."""
    random = torch.Generator(device).manual_seed(0)
    heads = (config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads)
    q, k, v = (
        torch.randn(tokens, n, config.head_dim, generator=random, device=device).to(dtype).requires_grad_()
        for n in heads
    )
    return q, k, v, torch.randn(q.shape, generator=random, device=device).to(dtype)


def visible_pairs(tags: TokenTags, rows: int = 1024) -> int:
    """How many pairs of tokens see one another, counted some rows at a time."""
    columns = TokenTags(*(tag[None] for tag in tags))
    parts = zip(*(tag.split(rows) for tag in tags), strict=True)
    return sum(int(visible(TokenTags(*(t[:, None] for t in part)), columns, group_mask=True).sum()) for part in parts)


def matmul_ceiling(side: int, device: str, dtype: torch.dtype, rounds: int) -> float:
    """TFLOP/s of a square matrix product."""
    a, b = torch.randn(2, side, side, device=device).to(dtype)
    return 2 * side**3 / clock(lambda: a @ b, device, rounds)[0] / 1e12


def clock(arm: Callable[[], Any], device: str, rounds: int) -> tuple[float, int]:
    """(median seconds of a run after three that warm up, bytes of memory at the peak)."""
    wait: Callable[[], Any] = torch.cuda.synchronize if device != "cpu" else lambda: None
    for _ in range(3):
        arm()
    if device != "cpu":
        torch.cuda.reset_peak_memory_stats()
    seconds = []
    for _ in range(rounds):
        wait()
        start = time.perf_counter()
        arm()
        wait()
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds), torch.cuda.max_memory_allocated() if device != "cpu" else 0


def _attention_arm(config: LanguageConfig, layer: Layer, batch: PackedBatch, attend: Attention) -> Callable[[], None]:
    weights = next(layer.parameters())
    *parts, weight = attention_inputs(config, batch.tokens, weights.device.type, weights.dtype)

    def run() -> None:
        torch.autograd.grad(attend(*parts), parts, weight)

    return run


def _layer_arm(config: LanguageConfig, layer: Layer, batch: PackedBatch, attend: Attention) -> Callable[[], None]:
    weights = next(layer.parameters())
    angles = rotary(batch.positions, config.head_dim, config.rope_theta)
    cosine, sine = (angle.to(weights.dtype) for angle in angles)
    x = torch.randn(batch.tokens, config.hidden_size, device=weights.device).to(weights.dtype).requires_grad_()
    split = batch.n_und

    def run() -> None:
        und, gen = layer(x[:split], x[split:], (cosine[:split], sine[:split]), (cosine[split:], sine[split:]), attend)
        torch.autograd.backward([und, gen], [torch.ones_like(und), torch.ones_like(gen)])

    return run


if __name__ == "__main__":
    raise SystemExit(int(not main()))
