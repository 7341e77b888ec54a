"""Losses as sums and counts, so that averages are over tokens of all ranks and steps, never averages of averages.

Everything stays on the device until someone reads it: a step must not wait for a figure.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sigma_data.instruction import ATTRIBUTES
from sigma_data.loading.batch import PackedBatch
from sigma_data.sample import Family
from sigma_model.model import Output

BINS = 10
"""Equal bins of the noise level in 0 to 1."""

_FAMILIES = list(Family)
_ROWS = (
    ["image", "text"]
    + [f"image/{family}" for family in _FAMILIES]
    + [f"text/{family}" for family in _FAMILIES]
    + [f"image/level_{bin_ / BINS:.1f}" for bin_ in range(BINS)]
    + [f"image/token_{attribute}" for attribute in ATTRIBUTES]
)
_BY_FAMILY = {"image": 2, "text": 2 + len(_FAMILIES)}
_BY_LEVEL = 2 + 2 * len(_FAMILIES)
_BY_ATTRIBUTE = _BY_LEVEL + BINS


def loss_names(families: Collection[Family]) -> list[str]:
    """The names of all averages that there may be where samples are of these families."""
    absent = {f"{kind}/{family}" for kind in ("image", "text") for family in _FAMILIES if family not in families}
    return [name for name in _ROWS if name not in absent]


@dataclass(frozen=True)
class LossWeights:
    """What a token's loss counts: `image` [M_t], `text` [C]; and their sums, for the average."""

    image: Tensor
    text: Tensor

    @classmethod
    def of(cls, batch: PackedBatch, *, reweight_text: bool) -> LossWeights:
        """One a target token; one an answer token, or its answer's length^-1/2."""
        image = torch.ones(len(batch.target_slots), device=batch.positions.device)
        text = batch.answer_weights if reweight_text else torch.ones_like(batch.answer_weights)
        return cls(image, text)

    @property
    def sums(self) -> Tensor:
        """[2] images and texts."""
        return torch.stack((self.image.sum(), self.text.sum())).double()


class LossTable:
    """Sums and counts [rows, 2] of losses: of all, by family, by noise level, by attribute token."""

    def __init__(self, device: torch.device | str) -> None:
        self.table = torch.zeros(len(_ROWS), 2, dtype=torch.float64, device=device)

    @torch.no_grad()
    def add(
        self, batch: PackedBatch, out: Output, families: Sequence[Family], attribute_ids: Mapping[str, int]
    ) -> None:
        """Count a forward pass in; `families` [samples of the batch]."""
        device = self.table.device
        of_sample = torch.tensor([_FAMILIES.index(family) for family in families], dtype=torch.long, device=device)
        slots = {"image": batch.n_und + batch.target_slots, "text": batch.answer_slots}
        losses = {"image": out.mse.mean(-1), "text": out.ce}
        for row, (name, loss) in enumerate(losses.items()):
            pairs = torch.stack((loss.double(), torch.ones_like(loss, dtype=torch.float64)), -1)
            sample = batch.tags.sample[slots[name]].long()
            self.table[row] += pairs.sum(0)
            self.table.index_add_(0, _BY_FAMILY[name] + of_sample[sample], pairs)
            if name == "image":
                bins = (self._token_levels(batch, out) * BINS).long().clamp(max=BINS - 1)
                self.table.index_add_(0, _BY_LEVEL + bins, pairs)
                by_sample = torch.zeros(len(families), 2, dtype=torch.float64, device=device).index_add(
                    0, sample, pairs
                )
                self.table[_BY_ATTRIBUTE:] += self._speaks_of(batch, len(families), attribute_ids).T @ by_sample

    @torch.no_grad()
    def add_sums(
        self,
        kind: str,
        pairs: Tensor,
        families: Sequence[Family],
        *,
        levels: Tensor | None = None,
        attributes: Sequence[Collection[str]] = (),
    ) -> None:
        """Count sums and counts [n, 2] of n samples in, whose loss is `image` or `text`.

        `levels` [n] are noise levels, 1 is noise; `attributes` the attribute tokens of each.
        """
        pairs = pairs.to(self.table)
        self.table[["image", "text"].index(kind)] += pairs.sum(0)
        of = torch.tensor([_FAMILIES.index(family) for family in families], dtype=torch.long, device=pairs.device)
        self.table.index_add_(0, _BY_FAMILY[kind] + of, pairs)
        if levels is not None:
            bins = (levels.to(pairs.device) * BINS).long().clamp(0, BINS - 1)
            self.table.index_add_(0, _BY_LEVEL + bins, pairs)
        for pair, names in zip(pairs, attributes, strict=False):
            for name in names:
                self.table[_BY_ATTRIBUTE + ATTRIBUTES.index(name)] += pair

    @staticmethod
    def _token_levels(batch: PackedBatch, out: Output) -> Tensor:
        """[M_t] noise level of each target token."""
        levels = torch.zeros(len(batch.latent_grids), device=out.level.device)
        levels[batch.target_images] = out.level.float()
        return levels[batch.latent_image[batch.target_slots]]

    @staticmethod
    def _speaks_of(batch: PackedBatch, samples: int, attribute_ids: Mapping[str, int]) -> Tensor:
        """[samples, attributes] 1 where a sample's text has an attribute token."""
        ids = torch.tensor([attribute_ids[name] for name in ATTRIBUTES], device=batch.text_ids.device)
        # No selection by a mask, whose size the device would have to tell first.
        which = (batch.text_ids[:, None] == ids) & batch.tags.attribute[batch.text_slots][:, None]
        sample = batch.tags.sample[batch.text_slots].long()
        table = torch.zeros(samples, len(ATTRIBUTES), dtype=torch.float64, device=ids.device)
        return table.index_add_(0, sample, which.double()).clamp_(max=1)

    def averages(self) -> dict[str, float]:
        """Name -> average of what was counted; waits for the device. All-reduce `table` before."""
        return {name: total / count for name, (total, count) in zip(_ROWS, self.table.tolist(), strict=True) if count}

    def clear(self) -> None:
        """Start anew."""
        self.table.zero_()
