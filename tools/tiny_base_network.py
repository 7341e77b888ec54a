"""`SigmaModel.forward` for many small samples on a CPU, and Muon for matrices of a few shapes: the same sums, sooner.

Products are in bfloat16 where the CPU multiplies it (one with AMX does so 7 times as fast as in float32, one without
such instructions 25 times slower), the rest in float32 inside compiled functions. The weights are the model's own, so
what is trained here is the product's model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma_model.embed import rotary
from sigma_model.model import SigmaModel
from sigma_model.torch_compat import multiplies_bfloat16
from tools.tiny_base_data import Group

_EPSILON = 1e-6
_FORBIDDEN = -1e4
MOMENTUM = 0.95


def product_dtype() -> torch.dtype:
    """Of products: bfloat16 where the CPU multiplies it, which training does not notice, else float32."""
    return torch.bfloat16 if multiplies_bfloat16(torch.device("cpu")) else torch.float32


def _project(
    x: Tensor, norm: Tensor, weight: Tensor, bias: Tensor, q_norm: Tensor, k_norm: Tensor, cosine: Tensor, sine: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """[n, D] -> queries [n, H, Dh], keys and values [n, K, Dh], bfloat16; `weight` [(H + 2 K) Dh, D]."""
    dim = len(q_norm)
    heads = weight.shape[1] // dim
    kept = (weight.shape[0] // dim - heads) // 2
    normed = F.rms_norm(x, (x.shape[-1],), norm, _EPSILON).to(weight.dtype)
    q, k, v = F.linear(normed, weight, bias).view(len(x), -1, dim).split((heads, kept, kept), 1)

    def turned(part: Tensor, gain: Tensor) -> Tensor:
        part = F.rms_norm(part.float(), (dim,), gain, _EPSILON)
        first, second = part.chunk(2, -1)
        return (part * cosine + torch.cat((-second, first), -1) * sine).to(weight.dtype)

    return turned(q, q_norm), turned(k, k_norm), v


def _attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """[B, Nq, H, Dh], [B, N, K, Dh], [B, N, K, Dh], [B, Nq, N] -> [B, Nq, H, Dh]."""
    batch, count, heads, dim = q.shape
    kept = k.shape[2]
    group = heads // kept
    rows = (q * dim**-0.5).view(batch, count, kept, group, dim).permute(0, 2, 3, 1, 4)
    scores = rows.reshape(batch, kept, group * count, dim) @ k.permute(0, 2, 3, 1)
    weights = (scores.view(batch, kept, group, count, -1) + bias[:, None, None]).float().softmax(-1).to(q.dtype)
    out = weights.view(batch, kept, group * count, -1) @ v.permute(0, 2, 1, 3)
    made: Tensor = out.view(batch, kept, group, count, dim).permute(0, 3, 1, 2, 4).reshape(batch, count, heads, dim)
    return made


def _finish(x: Tensor, attended: Tensor, out: Tensor, norm: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    x = x + F.linear(attended, out).float()
    normed = F.rms_norm(x, (x.shape[-1],), norm, _EPSILON).to(out.dtype)
    gate, up = F.linear(normed, gate_up).chunk(2, -1)
    return x + F.linear((F.silu(gate.float()) * up.float()).to(out.dtype), down).float()


class Network:
    """The forward pass over a model's weights.

    `dtype` is that of products, None for what suits this CPU; `compiled` False is slower to run only.
    """

    def __init__(self, model: SigmaModel, *, dtype: torch.dtype | None = None, compiled: bool = True) -> None:
        self.model, self._dtype = model, dtype or product_dtype()
        parts: list[Callable[..., Any]] = [_project, _attend, _finish]
        made = [torch.compile(part, dynamic=True) for part in parts] if compiled else parts
        self._project, self._attend, self._finish = made

    def errors(self, groups: Sequence[Group]) -> list[Tensor]:
        """The squared error [B, M, F] of the velocity at every target, a group."""
        model, config = self.model, self.model.config.language
        width, dim = config.hidden_size, config.head_dim
        und = model.backbone.embed_tokens(torch.cat([group.ids.flatten() for group in groups]))
        gen = torch.cat([self._embedded(group) for group in groups])
        texts = [group.ids.shape[1] for group in groups]
        tokens = [group.latents.shape[2] for group in groups]
        turns = [
            rotary(torch.cat([part.flatten() for part in parts]), dim, config.rope_theta)
            for parts in zip(
                *((g.positions[:, :text], g.positions[:, text:]) for g, text in zip(groups, texts, strict=True)),
                strict=True,
            )
        ]
        biases = [
            torch.zeros(group.hidden.shape, dtype=self._dtype).masked_fill_(group.hidden, _FORBIDDEN)
            for group in groups
        ]
        last = len(model.backbone.layers) - 1
        for number, layer in enumerate(model.backbone.layers):
            experts = layer.get_submodule("und"), layer.get_submodule("gen")
            projected = [
                self._projected(expert, x, turn) for expert, x, turn in zip(experts, (und, gen), turns, strict=True)
            ]
            of_und, of_gen = [], []
            und_at = gen_at = 0
            for group, text, count, bias in zip(groups, texts, tokens, biases, strict=True):
                batch, images = len(group.ids), (group.references + 1) * count
                und_to, gen_to = und_at + batch * text, gen_at + batch * images
                q, k, v = (
                    torch.cat(
                        (a[und_at:und_to].view(batch, text, -1, dim), b[gen_at:gen_to].view(batch, images, -1, dim)), 1
                    )
                    for a, b in zip(*projected, strict=True)
                )
                und_at, gen_at = und_to, gen_to
                if number == last:
                    of_gen.append(self._attend(q[:, -count:], k, v, bias[:, -count:]).reshape(batch * count, -1))
                else:
                    out = self._attend(q, k, v, bias)
                    of_und.append(out[:, :text].reshape(batch * text, -1))
                    of_gen.append(out[:, text:].reshape(batch * images, -1))
            if number == last:
                gen = self._targets(gen, groups)
            else:
                und = self._finished(experts[0], und, torch.cat(of_und))
            gen = self._finished(experts[1], gen, torch.cat(of_gen))
        velocity = model.latent_out(F.rms_norm(gen, (width,), model.backbone.norm_gen.weight, _EPSILON))
        made = velocity.split([group.noise.shape[0] * group.noise.shape[1] for group in groups])
        return [
            (part.view_as(group.noise) - (group.noise - group.latents[:, -1])) ** 2
            for part, group in zip(made, groups, strict=True)
        ]

    def _embedded(self, group: Group) -> Tensor:
        model = self.model
        level = group.level[:, None, None]
        noised = (1 - level) * group.latents[:, -1] + level * group.noise
        latents = torch.cat((group.latents[:, :-1], noised[:, None]), 1)
        side, grid = math.isqrt(latents.shape[2]), model.config.latent.grid
        line = torch.arange(side)
        hidden = model.embed_latents(latents, (line[:, None] * grid + line).flatten())
        clean, times = model.time_embedder(torch.zeros(1)), model.time_embedder(group.level)
        return torch.cat((hidden[:, :-1] + clean, (hidden[:, -1] + times[:, None])[:, None]), 1).flatten(0, 2)

    def _projected(self, expert: nn.Module, x: Tensor, turn: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        weight, bias = (
            torch.cat([expert.get_parameter(f"{name}.{kind}") for name in ("q", "k", "v")]).to(self._dtype)
            for kind in ("weight", "bias")
        )
        norms = (expert.get_parameter(f"{name}.weight") for name in ("q_norm", "k_norm"))
        made: tuple[Tensor, Tensor, Tensor] = self._project(
            x, expert.get_parameter("input_norm.weight"), weight, bias, *norms, *turn
        )
        return made

    def _finished(self, expert: nn.Module, x: Tensor, attended: Tensor) -> Tensor:
        gate_up = torch.cat([expert.get_parameter(f"mlp.{name}.weight") for name in ("gate", "up")])
        made: Tensor = self._finish(
            x, attended, expert.get_parameter("o.weight").to(self._dtype), expert.get_parameter("post_norm.weight"),
            gate_up.to(self._dtype), expert.get_parameter("mlp.down.weight").to(self._dtype),
        )  # fmt: skip
        return made

    @staticmethod
    def _targets(gen: Tensor, groups: Sequence[Group]) -> Tensor:
        sizes = [group.latents.shape[:3].numel() for group in groups]
        parts = [
            part.view(*group.latents.shape[:3], -1)[:, -1].flatten(0, 1)
            for part, group in zip(gen.split(sizes), groups, strict=True)
        ]
        return torch.cat(parts)


class Muon:
    """Muon over the layers' matrices, all of a shape at once, and AdamW for the rest.

    As `torch.optim.Muon` with `match_rms_adamw`. `rates`: of matrices in the layers, of other matrices, of vectors, of
    embeddings. The text head, which no loss here reaches, is left out.
    """

    def __init__(self, model: nn.Module, rates: tuple[float, float, float, float]) -> None:
        named = [(name, one) for name, one in model.named_parameters() if name != "lm_head.weight"]
        inner = [one for name, one in named if one.ndim == 2 and name.startswith("backbone.layers.")]
        embeddings = [one for name, one in named if name == "backbone.embed.weight"]
        vectors = [one for _, one in named if one.ndim == 1]
        known = {id(one) for one in (*inner, *embeddings, *vectors)}
        others = [one for _, one in named if id(one) not in known]
        self.parameters = [one for _, one in named]
        self._rates = rates
        self._shapes: dict[torch.Size, list[nn.Parameter]] = {}
        for one in inner:
            self._shapes.setdefault(one.shape, []).append(one)
        self._momenta = {shape: torch.zeros(len(ones), *shape) for shape, ones in self._shapes.items()}
        groups: list[dict[str, Any]] = [{"params": ones} for ones in (others, vectors, embeddings)]
        self._adamw = torch.optim.AdamW(groups, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.0, fused=True)

    @torch.no_grad()
    def step(self, scale: float) -> Tensor:
        """One clipped step at `scale` times the rates, and no gradients after it; returns their norm."""
        norm = nn.utils.clip_grad_norm_(self.parameters, 1.0, foreach=True)
        for shape, ones in self._shapes.items():
            gradient = torch.stack([torch.zeros_like(one) if one.grad is None else one.grad for one in ones])
            momentum = self._momenta[shape].lerp_(gradient, 1 - MOMENTUM)
            update = _orthogonal(gradient.lerp(momentum, MOMENTUM)) * (-0.2 * math.sqrt(max(shape)))
            parts: list[Tensor] = [*(update * (self._rates[0] * scale)).unbind()]
            torch._foreach_add_([*ones], parts)
        for group, rate in zip(self._adamw.param_groups, self._rates[1:], strict=True):
            group["lr"] = rate * scale
        self._adamw.step()
        for one in self.parameters:
            one.grad = None
        return norm

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {"momenta": self._momenta, "adamw": self._adamw.state_dict()}

    def load(self, state: dict[str, Any]) -> None:
        """Go on from what `state` gave."""
        self._momenta = state["momenta"]
        self._adamw.load_state_dict(state["adamw"])


def _orthogonal(matrices: Tensor) -> Tensor:
    """Newton-Schulz iterations of Muon (Jordan 2024) on [n, rows, columns], in bfloat16 where the CPU multiplies it."""
    x = matrices.to(product_dtype())
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT.contiguous()
    x = x / x.float().norm(dim=(-2, -1), keepdim=True).clamp(min=1e-7).to(x.dtype)
    for _ in range(5):
        square = x @ x.mT
        x = 3.4445 * x + (-4.7750 * square + 2.0315 * (square @ square)) @ x
    found: Tensor = x.mT if tall else x
    return found.float()
