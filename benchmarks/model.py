"""Experts, masks and sampling side by side with the usual way: python benchmarks/model.py [SECTION ...] [--rounds N].

  experts    forward and backward: slices sorted by expert, against gathering and scattering at every step
  masks      the block mask built from runs, against torch's create_block_mask under the same rule
  sampling   a static cache and one forward pass for all branches of guidance, against three passes
             that merge their caches anew in every layer
  gpu        flex attention against sdpa, and a sampler that never waits (benchmarks/gpu.py); needs CUDA
Arms take turns, round after round. Ratios are medians over rounds of ratios of this process's CPU time, for others may
use the machine too. Results are compared before
anything is timed. The exit code is 1 where a target is missed.
"""

from __future__ import annotations

import argparse
import sys
import tracemalloc
from collections.abc import Callable, Sequence
from pathlib import Path

import gpu
import torch
from gathered import Gathered, MergingSampler, SequenceOrder
from packs import Clocks, Delimiters, branches, interleave, pack, sample, speedup
from targets import check
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from sigma_data.loading.batch import PackedBatch, TokenTags
from sigma_data.sequence.layout import Segment
from sigma_model.attention import SdpaAttention
from sigma_model.attention_mask import block_mask, visible
from sigma_model.backbone import Backbone, same_for_all
from sigma_model.config import LanguageConfig, ModelConfig, preset
from sigma_model.model import SigmaModel, widths
from sigma_model.sampling.sampler import Sampler
from sigma_model.sampling.settings import Guidance

EXPERTS_TARGET, SAMPLING_TARGET = 1.25, 1.5
MASK_MS, MASK_MB = 10.0, 2.0
DENSE_BYTES = 11
"""What create_block_mask takes at its peak for a pair of tokens, about."""

LANGUAGE = LanguageConfig(
    vocab_size=512,
    hidden_size=512,
    intermediate_size=1408,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
)


def experts(config: LanguageConfig, batch: PackedBatch, *, rounds: int) -> float:
    """Time both ways forward and backward; returns how many times faster ours is.

    The loss is on the targets' latents, as in training for generation. Ours leaves out of the last layer
    what no loss depends on; a third arm does not, to show what the order of the tokens brings alone.
    """
    torch.manual_seed(0)
    backbone = Backbone(config)
    order = SequenceOrder(batch, group_mask=True)
    gathered = Gathered(backbone, order.und, order.gen)
    attend = same_for_all(SdpaAttention(batch.spans, batch.tags, group_mask=True))
    x = torch.randn(batch.tokens, config.hidden_size)
    weight = torch.randn(len(batch.target_slots), config.hidden_size)
    x_in_order, targets_in_order = x[order.order], order.gen[batch.target_slots]

    def ours(*, every_row: bool = False) -> Tensor:
        backbone.zero_grad(set_to_none=True)
        und, gen = x[: batch.n_und].requires_grad_(), x[batch.n_und :].requires_grad_()
        rows = None if every_row else (batch.answer_slots, batch.target_slots)
        _, gen = backbone(und, gen, batch.positions, attend, rows=rows)
        out: Tensor = gen[batch.target_slots] if every_row else gen
        (out * weight).sum().backward()
        return out.detach()

    def usual() -> Tensor:
        backbone.zero_grad(set_to_none=True)
        out = gathered(x_in_order.detach().requires_grad_(), order.positions, same_for_all(order.attend))
        out = out[targets_in_order]
        (out * weight).sum().backward()
        return out.detach()

    arms = {
        "ours": ours,
        "ours, every row of every layer": lambda: ours(every_row=True),
        "gather and scatter": usual,
    }
    results = []
    for arm in arms.values():
        out = arm()
        gradients = {n: p.grad for n, p in backbone.named_parameters() if p.grad is not None and p.grad.any()}
        results.append({"out": out, **gradients})
    for other in results[1:]:
        torch.testing.assert_close(results[0], other, rtol=1e-3, atol=2e-3)
    print(
        f"experts: {batch.tokens:,} tokens ({batch.n_und:,} understanding, {batch.n_gen:,} generation, of them "
        f"{len(batch.target_slots):,} targets), {_shape(config)}, float32, forward + backward; results agree"
    )
    return _report("experts: forward and backward", interleave(arms, rounds), EXPERTS_TARGET)


def sampling(
    language: LanguageConfig, segments: Sequence[Segment], *, rounds: int, base: ModelConfig | None = None
) -> float:
    """Time a step of either sampler; returns how many times faster ours is."""
    torch.manual_seed(0)
    model = SigmaModel((base or preset("tiny")).model_copy(update={"language": language})).requires_grad_(False)
    contexts = branches(segments, widths(model.config))
    guidance = Guidance()
    ours = Sampler(model, [contexts], Delimiters(), guidance=guidance)
    usual = MergingSampler(model, contexts, Delimiters(), guidance=guidance)
    x = torch.randn(ours.counts[0], model.config.latent.features)
    for level in (1.0, 0.5):
        torch.testing.assert_close(ours.velocity(x, level), usual.velocity(x, level), rtol=1e-3, atol=1e-3)
    lengths = ", ".join(str(sum(s.length for s in context.prefix)) for context in contexts)
    print(
        f"sampling: {ours.counts[0]} latent tokens, contexts of {lengths} tokens, {_shape(language)}, float32, "
        "one guided step; velocities agree"
    )
    arms = {
        "static cache, one pass": lambda: ours.velocity(x, 0.7),
        "merged caches, three passes": lambda: usual.velocity(x, 0.7),
    }
    return _report("a guided sampling step", interleave(arms, rounds), SAMPLING_TARGET)


def masks(packs: Sequence[tuple[str, PackedBatch]], *, rounds: int, dense: bool = True) -> bool:
    """Time and weigh the block masks of packs; returns whether all are within the targets."""
    print("masks: building everything that attention needs, blocks of 128")
    heads = f"{'tokens':>8}{'runs':>7}{'wall ms':>9}{'CPU ms':>8}{'peak MB':>9}{'MB':>7}{'visible blocks':>16}"
    print(f"  {'pack':<36}{heads}")
    slowest = largest = 0.0
    for number, (name, batch) in enumerate(packs):

        def build(batch: PackedBatch = batch) -> BlockMask:
            return block_mask(batch.runs, batch.tags, group_mask=True)

        mask = build()
        clocks = interleave({"ours": build}, rounds)["ours"]
        tracemalloc.start()
        build()
        peak = tracemalloc.get_traced_memory()[1] / 1e6
        tracemalloc.stop()
        size = mask_bytes(mask) / 1e6
        print(
            f"  {name:<36}{batch.tokens:>8,}{len(batch.runs):>7,}{clocks.wall_ms:>9.1f}{clocks.cpu_ms:>8.1f}"
            f"{peak:>9.2f}{size:>7.2f}{100 - mask.sparsity():>14.0f} %"
        )
        slowest, largest = max(slowest, clocks.cpu_ms), max(largest, size)
        if dense and (number == 0 or batch.tokens < 10_000):  # at 30K once: it takes a minute
            _dense_row(batch)
    kept = [
        check("building a pack's block mask, CPU time", "", slowest, most=MASK_MS, unit="ms"),
        check("a pack's block mask", "", largest, most=MASK_MB, unit="MB"),
    ]
    print()
    return all(kept)


def _dense_row(batch: PackedBatch) -> None:
    """The same mask by torch, where memory allows, and whether it says the same of every block."""
    need, free = DENSE_BYTES * batch.tokens**2, _free_bytes()
    if need > 0.6 * free:
        print(f"  {'  create_block_mask':<36}skipped: takes about {need / 1e9:.0f} GB, {free / 1e9:.0f} GB are free")
        return
    found: list[BlockMask] = []
    _restart_peak()
    before = _resident("VmRSS")
    clocks = interleave({"torch": lambda: found.append(by_torch(batch))}, 1)["torch"]
    peak = (_resident("VmHWM") - before) / 1e6
    size = mask_bytes(found[0]) / 1e6
    print(
        f"  {'  create_block_mask (not compiled)':<36}{'':>15}{clocks.wall_ms:>9,.0f}{clocks.cpu_ms:>8,.0f}"
        f"{peak:>9,.0f}{size:>7.2f}{100 - found[0].sparsity():>14.0f} %"
    )
    assert torch.equal(found[0].to_dense(), block_mask(batch.runs, batch.tags, group_mask=True).to_dense())


def by_torch(batch: PackedBatch) -> BlockMask:
    """Torch's own block mask under the same rule."""

    def rule(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        row, column = (TokenTags(*(tag[i] for tag in batch.tags)) for i in (q, k))
        return visible(row, column, group_mask=True)

    return create_block_mask(rule, None, None, batch.tokens, batch.tokens, device="cpu")


def mask_bytes(mask: BlockMask) -> int:
    """Bytes of all tensors of a mask."""
    values = mask.as_tuple()
    return sum(value.numel() * value.element_size() for value in values if isinstance(value, Tensor))


def mask_packs() -> list[tuple[str, PackedBatch]]:
    """About 30K tokens each: few large pictures, and many small ones; and 8K, where torch's way always fits."""
    # 1024 x 768 references: 64 x 48 latents of 16 pixels, 37 x 28 patches of 14; 256 and 112 pixels likewise.
    large = sample([((48, 64), (28, 37))] * 6, (64, 64), words=60)
    middle = sample([((16, 16), (18, 18))] * 6, (16, 16), words=60)
    small = sample([((7, 7), (8, 8))] * 6, (7, 7), words=20)
    return [
        ("1 sample, 6 references of 1024 x 768", pack([large])),
        ("8 samples, 6 references of 256 px", pack([middle] * 8)),
        ("32 samples, 6 references of 112 px", pack([small] * 32)),
        ("2 samples, 6 references of 256 px", pack([middle] * 2)),
    ]


def training_pack() -> PackedBatch:
    """2,000 tokens: 3 samples of two references with latents and patches, texts, and a target."""
    return pack([sample([((12, 12), (7, 7))] * 2, (12, 12), words=words) for words in (30, 40, 50)])


def _shape(config: LanguageConfig) -> str:
    return (
        f"width {config.hidden_size}, MLP {config.intermediate_size}, {config.num_attention_heads} heads, "
        f"{config.num_key_value_heads} key/value heads, {config.num_hidden_layers} layers"
    )


def _report(what: str, clocks: dict[str, Clocks], target: float) -> float:
    """Print the arms and how many times faster the first is than each other; the last is the rival."""
    print(
        f"  {'':<32}{'wall ms':>9}{'CPU ms':>9}{'ours faster':>14}   medians of {len(next(iter(clocks.values())).cpu)}"
    )
    ratio = 1.0
    ours = next(iter(clocks.values()))
    for name, clock in clocks.items():
        ratio = speedup(ours, clock)
        print(f"  {name:<32}{clock.wall_ms:>9.1f}{clock.cpu_ms:>9.1f}{ratio:>13.2f}x")
    check(what, list(clocks)[-1], ratio, least=target, unit="times as fast")
    print()
    return ratio


def _free_bytes() -> int:
    """Memory that can be had without swapping; 0 where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return 0
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


def _restart_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def _resident(key: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def main() -> int:
    """Run the sections; 1 where a target is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = ("experts", "masks", "sampling", "gpu")
    parser.add_argument("sections", nargs="*", choices=[[], *sections], default=[], help="default: all")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rounds: int = options.rounds
    print(f"torch {torch.__version__}, {options.threads} thread(s)\n")
    request = sample([((16, 16), (9, 9))] * 2, (16, 16), words=40)
    checks: dict[str, Callable[[], bool]] = {
        "experts": lambda: experts(LANGUAGE, training_pack(), rounds=rounds) >= EXPERTS_TARGET,
        "masks": lambda: masks(mask_packs(), rounds=max(rounds, 20)),
        "sampling": lambda: sampling(LANGUAGE, request, rounds=2 * rounds) >= SAMPLING_TARGET,
        "gpu": gpu.main,
    }
    passed = [checks[name]() for name in options.sections or sections]
    return int(not all(passed))


if __name__ == "__main__":
    sys.exit(main())
