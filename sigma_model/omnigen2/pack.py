"""Samples side by side without padding: which token is which, where it stands, and whose it is.

Nothing but attention mixes tokens, and that looks inside one sample only; so a pack gives every sample what it would
get alone, and computes no token that is not there.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sigma_data.errors import ConfigError
from sigma_model.omnigen2.config import MAX_REFERENCES, TransformerConfig
from sigma_model.vae import from_tokens, to_tokens

Bound = tuple[tuple[int, int], ...]
"""Attribute tokens of a text: (place among its states, reference that it speaks of, counting from 1; 0: of none)."""

Grid = tuple[int, int]
"""Rows and columns of an image's tokens."""

AXES = ("text and image", "row", "column")


@dataclass(frozen=True)
class DiffusionSample:
    """What the transformer sees of one sample.

    `text` [T, F]: states of the language model, valid ones only. `latent` [z, h, w]: the target, noised to `time` (0
    noise, 1 data). `references`: clean latents [z, h, w] in their order, each of its own size. `bound`: attribute
    tokens that must not see the latents of other references than their own.
    """

    text: Tensor
    latent: Tensor
    time: Tensor | float
    references: tuple[Tensor, ...] = ()
    bound: Bound = ()


@dataclass(frozen=True)
class Layout:
    """Sizes of one sample: text tokens, the grids of its references, the grid of its target."""

    text: int
    references: tuple[Grid, ...]
    target: Grid
    bound: Bound = ()

    @property
    def tokens(self) -> int:
        """Length of its sequence."""
        return self.text + sum(rows * columns for rows, columns in (*self.references, self.target))


@dataclass(frozen=True)
class Pack:
    """Samples laid out. Orders of tokens: texts, one sample's behind another's; references; targets; and `joint`.

    Shapes: S samples, T text tokens, R reference tokens in I references, N target tokens, M = T + R + N.
    """

    layouts: tuple[Layout, ...]
    text_positions: Tensor
    """[T, 3]"""
    reference_positions: Tensor
    """[R, 3]"""
    target_positions: Tensor
    """[N, 3]"""
    reference_indices: Tensor
    """[R] which reference of its sample a token belongs to, counting from 0."""
    text_owner: Tensor
    """[T] sample of each token; the same for the others."""
    reference_owner: Tensor
    target_owner: Tensor
    joint: Tensor
    """[M] for each token of the sequences text | references | target, its place in texts, references, targets."""
    joint_targets: Tensor
    """[N] where the targets' tokens stand in the sequences."""

    @property
    def text_lengths(self) -> list[int]:
        """Of each sample."""
        return [layout.text for layout in self.layouts]

    @property
    def reference_lengths(self) -> list[int]:
        """Of each reference, sample by sample."""
        return [rows * columns for layout in self.layouts for rows, columns in layout.references]

    @property
    def target_lengths(self) -> list[int]:
        """Of each sample."""
        return [layout.target[0] * layout.target[1] for layout in self.layouts]

    @property
    def lengths(self) -> list[int]:
        """Of each sample's whole sequence."""
        return [layout.tokens for layout in self.layouts]

    def joint_of(self, texts: Tensor, references: Tensor, targets: Tensor) -> Tensor:
        """[T, ...], [R, ...], [N, ...] -> [M, ...] in the order of the sequences."""
        return torch.cat((texts, references, targets)).index_select(0, self.joint)


def layout_of(sample: DiffusionSample, config: TransformerConfig) -> Layout:
    """The sizes of a sample. Raises ConfigError for what the transformer cannot take, in words of the input."""
    if sample.text.ndim != 2 or sample.text.shape[1] != config.text_feat_dim or not len(sample.text):
        raise ConfigError(
            f"text states {list(sample.text.shape)}: must be [tokens, {config.text_feat_dim}], at least one token"
        )
    if len(sample.references) > MAX_REFERENCES:
        raise ConfigError(
            f"{len(sample.references)} reference images: OmniGen2 takes at most {MAX_REFERENCES}; leave some out"
        )
    named = [(f"reference {number}", latent) for number, latent in enumerate(sample.references, 1)]
    grids = [_grid(latent, name, config) for name, latent in (*named, ("the target", sample.latent))]
    return Layout(len(sample.text), tuple(grids[:-1]), grids[-1], sample.bound)


def group_mask(layout: Layout, device: torch.device | str = "cpu") -> Tensor | None:
    """[n, n] which token sees which in a sample's sequence, None: all see all.

    An attribute token sees no latents of a reference that it does not speak of; everything else is as without it
    (SIGMA's paper, section 3, by the image's index).
    """
    if not layout.bound or not layout.references:
        return None
    owner = torch.zeros(layout.tokens, dtype=torch.long, device=device)
    start = layout.text
    for number, (rows, columns) in enumerate(layout.references, 1):
        owner[start : start + rows * columns] = number
        start += rows * columns
    seen = torch.ones(layout.tokens, layout.tokens, dtype=torch.bool, device=device)
    for place, reference in layout.bound:
        seen[place] = (owner == 0) | (owner == reference)
    return seen


def _grid(latent: Tensor, name: str, config: TransformerConfig) -> Grid:
    patch = config.patch_size
    if latent.ndim != 3 or latent.shape[0] != config.in_channels or not latent.numel():
        raise ConfigError(f"{name}: its latent must be [{config.in_channels}, height, width], is {list(latent.shape)}")
    height, width = latent.shape[1:]
    if height % patch or width % patch:
        raise ConfigError(
            f"{name}: its latent is {width} x {height}; both sides must be multiples of {patch}: resize the image to "
            f"multiples of {8 * patch} pixels"
        )
    return height // patch, width // patch


def lay_out(layouts: Sequence[Layout], config: TransformerConfig, *, device: torch.device | str = "cpu") -> Pack:
    """Positions and orders of samples of these sizes.

    Text token l stands at (l, l, l). With s starting behind the text, an image's token stands at (s, row, column),
    and s grows by an image's longer side. Raises ConfigError where a position is beyond the table of its axis.
    """
    if not layouts:
        raise ConfigError("no samples: a pack needs at least one")
    texts, references, targets, indices = [], [], [], []
    for layout in layouts:
        texts.append(torch.arange(layout.text)[:, None].expand(-1, 3))
        start = layout.text
        for index, grid in enumerate(layout.references):
            references.append(_grid_positions(start, grid))
            indices.append(torch.full((grid[0] * grid[1],), index))
            start += max(grid)
        targets.append(_grid_positions(start, layout.target))
        _check_positions(layout, start, config)
    none = torch.zeros(0, dtype=torch.long)
    lengths = (
        [layout.text for layout in layouts],
        [sum(rows * columns for rows, columns in layout.references) for layout in layouts],
        [layout.target[0] * layout.target[1] for layout in layouts],
    )
    samples = torch.arange(len(layouts))
    text_owner, reference_owner, target_owner = (samples.repeat_interleave(torch.tensor(n)) for n in lengths)
    # A stable sort by sample keeps text before references before target, and the references in their order.
    joint = torch.cat((text_owner, reference_owner, target_owner)).argsort(stable=True)
    first_target = len(text_owner) + len(reference_owner)
    return Pack(
        layouts=tuple(layouts),
        text_positions=torch.cat(texts).to(device),
        reference_positions=torch.cat(references or [none.view(0, 3)]).to(device),
        target_positions=torch.cat(targets).to(device),
        reference_indices=torch.cat(indices or [none]).to(device),
        text_owner=text_owner.to(device),
        reference_owner=reference_owner.to(device),
        target_owner=target_owner.to(device),
        joint=joint.to(device),
        joint_targets=(joint >= first_target).nonzero()[:, 0].to(device),
    )


def _grid_positions(start: int, grid: Grid) -> Tensor:
    """[rows * columns, 3]: (start, row, column)."""
    rows, columns = torch.meshgrid(torch.arange(grid[0]), torch.arange(grid[1]), indexing="ij")
    return torch.stack((torch.full_like(rows, start), rows, columns), dim=-1).view(-1, 3)


def _check_positions(layout: Layout, last: int, config: TransformerConfig) -> None:
    grids = (*layout.references, layout.target)
    furthest = (
        max(layout.text - 1, last),
        max(layout.text - 1, *(rows - 1 for rows, _ in grids)),
        max(layout.text - 1, *(columns - 1 for _, columns in grids)),
    )
    for axis, (name, position, length) in enumerate(zip(AXES, furthest, config.axes_lens, strict=True)):
        if position >= length:
            raise ConfigError(
                f"position {position} on axis {axis} ({name}): axes_lens ends at {length}: use a shorter text, smaller "
                "images or fewer of them"
            )


def image_tokens(latents: Sequence[Tensor], config: TransformerConfig, like: Tensor) -> Tensor:
    """Latents [z, h, w] -> their tokens [sum, features], on the device of `like`."""
    if not latents:
        return torch.zeros(0, config.features, device=like.device, dtype=like.dtype)
    return torch.cat([to_tokens(latent.to(like.device), config.patch_size) for latent in latents])


def latents_of(tokens: Tensor, layouts: Sequence[Layout], config: TransformerConfig) -> list[Tensor]:
    """Targets' tokens [N, features] -> a latent [z, h, w] for each sample."""
    counts = [layout.target[0] * layout.target[1] for layout in layouts]
    parts = tokens.split(counts)
    return [from_tokens(part, *layout.target, config.patch_size) for part, layout in zip(parts, layouts, strict=True)]
