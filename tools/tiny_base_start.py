"""The start of the tiny base's training: random, but image tokens already attend to their own place in the references.

From a plain random start, copying by place takes some 28,000 samples of the world to form, because queries and keys
must first find each other through the position table, whose informative directions are weak. Here a few heads match
positions from the first step; everything else starts as usual, writes nothing at first, and all of it is trained.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sigma_data.errors import ConfigError
from sigma_model.embed import TimeEmbedder, sincos_table
from sigma_model.model import SigmaModel

_RMS = 1.3
"""Root mean square of what enters the first layer: latents 1, positions 1/2, the flag of a noised token 1/4."""
_RIDGE = 0.1
"""Added to the squared singular values of the positions (13, 13, 9.5, 9.5, 5, 5, 1.6, 1.6, 0.24, ... on a grid of 8)
when codes are read off them: the weak ones would ask for weights of 100, which round-off alone would drown."""
_FLAG = 1.5
_FLAG_NORM = 6.3


@dataclass(frozen=True)
class Start:
    """Which heads start with what.

    `side`: places a side of the image, whose codes are told apart. `matching`: key-value heads, in all layers, whose
    queries and keys are codes of the place. `copying`: layers in which these heads carry clean latents into the
    velocity. `reading`: layers in which the other heads of image tokens start with the text just before the image.
    `gain`: of the q and k norms on the codes' dimensions.
    """

    side: int = 8
    matching: tuple[int, ...] = (0, 1)
    copying: tuple[int, ...] = (1, 2)
    reading: tuple[int, ...] = (0, 1)
    gain: float = 1.8
    flag: float = 3.2
    noise: float = 0.4


@dataclass(frozen=True)
class _Space:
    """Orthonormal directions of the hidden state: `latents` and `copied` [D, F], `flag` [D].

    `rest` [D, D] projects onto what neither they nor the positions use. `code` [2 * side, D] gives the code of a place
    from its entry in the position table less `middle` [D], the mean entry.
    """

    latents: Tensor
    copied: Tensor
    flag: Tensor
    rest: Tensor
    code: Tensor
    middle: Tensor


@torch.no_grad()
def prepare(model: SigmaModel, start: Start | None = None, *, seed: int = 1) -> None:
    """Change a freshly initialised model in place. Raises ConfigError where its sizes have no room for this start."""
    start = start or Start()
    language, features = model.config.language, model.config.latent.features
    width, dim, heads = language.hidden_size, language.head_dim, language.num_attention_heads
    if features > dim or 2 * start.side > dim - 2 or width < 2 * features + 2 * start.side:
        raise ConfigError(
            f"heads of {dim} in a width of {width} have no room for {features} features and a place's code"
        )
    generator = torch.Generator().manual_seed(seed)
    space = _space(model, start, generator)
    scale = math.sqrt(width / features)
    model.latent_in.weight.copy_(space.latents * scale)
    # With mostly noise the velocity is what is noised less the clean latents, and those are copied.
    model.latent_out.weight.copy_((space.latents - space.copied).T * (_RMS / scale))
    _flag_noised(model.time_embedder, space)
    group = heads // language.num_key_value_heads
    queries = [head for head in range(heads) if head // group in start.matching]
    for number, layer in enumerate(model.backbone.layers):
        und, gen = layer.get_submodule("und"), layer.get_submodule("gen")
        for expert in (und, gen):
            expert.get_parameter("o.weight").zero_()
            expert.get_parameter("mlp.down.weight").zero_()
        _match(gen, queries, start.matching, space, start, generator)
        if number in start.reading:
            _read_text(und, gen, language.num_key_value_heads - 1, group, space, generator)
        if number in start.copying:
            value, out = gen.get_parameter("v.weight"), gen.get_parameter("o.weight")
            for head in start.matching:
                value[head * dim : head * dim + features] = space.latents.T * (_RMS / scale)
            for head in queries:
                share = scale / len(queries) / len(start.copying)
                out[:, head * dim : head * dim + features] = space.copied * share


def _space(model: SigmaModel, start: Start, generator: torch.Generator) -> _Space:
    side, grid = start.side, model.config.latent.grid
    width, features = model.config.language.hidden_size, model.config.latent.features
    places = sincos_table(grid, width).view(grid, grid, width)[:side, :side].reshape(-1, width)
    middle = places.mean(0)
    _, _, right = torch.linalg.svd(places - middle, full_matrices=False)
    informative = right[: 2 * side - 2]  # the rank of the centred codes
    filling = torch.randn(width, width - 2 * side + 1, generator=generator)
    basis, _ = torch.linalg.qr(torch.cat([informative.T, middle[:, None], filling], dim=1))
    first = 2 * side - 1
    used = basis[:, : first + 2 * features + 1]
    which = torch.zeros(side, side, 2 * side)
    for line in range(side):
        which[:, line, line] += 1
        which[line, :, side + line] += 1
    wanted = which.view(side * side, -1) - which.view(side * side, -1).mean(0)
    seen = (places - middle) @ informative.T
    solution = torch.linalg.solve(seen.T @ seen + _RIDGE * torch.eye(len(informative)), seen.T @ wanted)
    code = solution.T @ informative
    return _Space(
        latents=basis[:, first : first + features],
        copied=basis[:, first + features : first + 2 * features],
        flag=basis[:, first + 2 * features],
        rest=torch.eye(width) - used @ used.T,
        code=code / ((places - middle) @ code.T).norm(dim=1).mean(),
        middle=middle,
    )


def _flag_noised(embedder: TimeEmbedder, space: _Space) -> None:
    """Keep the noise level out of what others use; its first unit, silu(8 sin t - 2), tells noised from clean."""
    embedder.fc2.weight.copy_(0.5 * space.rest @ embedder.fc2.weight)
    embedder.fc1.weight[0] = 0.0
    embedder.fc1.weight[0, TimeEmbedder.features // 2] = 8.0  # the sine of t itself
    embedder.fc1.bias[0] = -2.0
    embedder.fc2.weight[:, 0] = _FLAG * space.flag


def _match(
    gen: torch.nn.Module, queries: Sequence[int], keys: Sequence[int], space: _Space, start: Start,
    generator: torch.Generator,
) -> None:  # fmt: skip
    """Queries and keys are the code of the place, in the dimensions that RoPE turns least; noised keys are avoided."""
    width, dim = space.rest.shape[0], len(gen.get_parameter("q_norm.weight"))
    half, side = dim // 2, start.side
    dims = torch.cat([torch.arange(half - side, half), torch.arange(dim - side, dim)])
    tag = half - side - 1
    code = space.code * (math.sqrt(dim) * _RMS)
    for name, heads in (("q", queries), ("k", keys)):
        for head in heads:
            rows = slice(head * dim, (head + 1) * dim)
            weight, bias = gen.get_parameter(f"{name}.weight")[rows], gen.get_parameter(f"{name}.bias")[rows]
            weight.copy_(torch.randn(dim, width, generator=generator) * (start.noise / math.sqrt(width)))
            weight[dims] = code
            bias[dims] = -(code @ space.middle) / _RMS
            weight[tag] = 0.0 if name == "q" else space.flag * (-start.flag * _RMS * _RMS / _FLAG_NORM)
            bias[tag] = start.flag if name == "q" else 0.0
        gain = gen.get_parameter(f"{name}_norm.weight")
        gain[dims] = start.gain
        gain[tag] = start.gain


def _read_text(
    und: torch.nn.Module, gen: torch.nn.Module, head: int, group: int, space: _Space, generator: torch.Generator
) -> None:
    """Image tokens attend to text, most to that just before: a constant in the four pairs that RoPE turns fastest."""
    dim = len(gen.get_parameter("q_norm.weight"))
    own = slice(head * dim, (head + 1) * dim)
    for query in range(head * group, (head + 1) * group):
        rows = slice(query * dim, (query + 1) * dim)
        gen.get_parameter("q.weight")[rows] *= 0.5
        gen.get_parameter("q.bias")[rows][:4] = 2.0
    und.get_parameter("k.weight")[own] *= 0.5
    und.get_parameter("k.bias")[own][:4] = 2.0
    columns = slice(head * group * dim, (head + 1) * group * dim)
    out = gen.get_parameter("o.weight")
    drawn = torch.randn(len(out), group * dim, generator=generator) * (0.7 / math.sqrt(group * dim))
    out[:, columns] = space.rest @ drawn
