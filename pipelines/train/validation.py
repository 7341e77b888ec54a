"""Validation: losses on packs that are never trained on, always with the same noise, and images generated for them."""

from __future__ import annotations

import io
import logging
from collections.abc import Sequence
from contextlib import suppress

import torch
from PIL import Image as Pillow

from pipelines.train.backbone import Backbone
from pipelines.train.config import TrainConfig
from pipelines.train.distributed.process_group import ProcessGroup, all_reduce_sum
from pipelines.train.latent_cache import LatentCache
from pipelines.train.losses import LossTable
from sigma_data.errors import ConfigError, SigmaError
from sigma_data.images.decode import ImageFault, load
from sigma_data.loading.pack_dataset import PackReader
from sigma_data.planning.plan import Dropout, PackEntry, Plan, Planner, PlanSettings
from sigma_data.sample import Sample
from sigma_model.sampling.generate import Request

logger = logging.getLogger(__name__)

_LOOK_AT = 1000
"""Samples among which those for images are chosen."""


def validation_settings(config: TrainConfig) -> PlanSettings:
    """The plan of the held-out packs: another split, nothing dropped, the order of the corpus."""
    corpora = tuple(
        corpus.model_copy(update={"split": config.validation.split, "repeat": 1.0}) for corpus in config.data.corpora
    )
    changes = {
        "corpora": corpora, "mixture": None, "shuffle": False, "dropout": Dropout(text=0, latent=0, patch=0),
        "seed": config.validation.seed,
    }  # fmt: skip
    return config.data.model_copy(update=changes)


def validation_planner(config: TrainConfig, planner: Planner) -> tuple[Planner | None, str]:
    """The planner of the held-out packs, of the corpora that have the split; and why it is less than all, or None."""
    split = config.validation.split
    if not config.validation.every:
        return None, "validation.every is 0"
    every = list(zip(config.data.corpora, planner.indexes, strict=True))
    having = [(corpus, index) for corpus, index in every if split in index.meta["splits"]]
    lacking = [corpus.title for corpus, index in every if split not in index.meta["splits"]]
    note = f"no split {split!r} in {', '.join(lacking)}" if lacking else ""
    if seen := [corpus.title for corpus in config.data.corpora if corpus.split == split]:
        note = f"split {split!r} of {', '.join(seen)} is trained on, so its losses say nothing"
    if not having:
        return None, note
    corpora, indexes = zip(*having, strict=True)
    only = config.model_copy(update={"data": config.data.model_copy(update={"corpora": corpora})})
    try:
        chosen = validation_settings(only)
        held = Planner(
            chosen,
            indexes,
            planner.geometry,
            tokenizer=indexes[0].meta["tokenizer"],
            recipe=type(planner.recipe)(chosen.seed, chosen.dropout),
        )
    except ConfigError as error:  # nothing that fits: a run does not depend on it
        return None, str(error)
    return held, note


class ValidationSet:
    """The held-out packs of a run, spread over its ranks."""

    def __init__(self, config: TrainConfig, group: ProcessGroup, planner: Planner, dataset: PackReader) -> None:
        self._config, self._group, self._dataset = config, group, dataset
        self._plan: Plan = planner.plan(0)
        self.packs = min(config.validation.packs, len(self._plan))
        # Spread over the plan, so that a few packs show every family.
        self._chosen = [number * len(self._plan) // self.packs for number in range(self.packs)]
        self._latents: LatentCache | None = None

    @torch.no_grad()
    def losses(self, backbone: Backbone) -> dict[str, float]:
        """Average losses over the packs, by name as in `LossTable`; all ranks must call this together."""
        group, room = self._group, self._config.loader.latent_cache
        if room and self._latents is None:
            self._latents = LatentCache(backbone.vae, room)
        table = LossTable(group.device)
        for first in range(0, self.packs, group.size):
            mine = first + group.rank
            # A rank without a pack of its own runs the last one again, uncounted: all must do the same collectives.
            loaded = self._dataset[self._plan.ticket(self._chosen[min(mine, self.packs - 1)])]
            known = loaded.batch if self._latents is None else self._latents.encoded(loaded.batch)
            found = backbone.losses(known.to(group.device))
            if mine < self.packs:
                found.note(table, loaded.families)
        table.table = all_reduce_sum(table.table, group)
        return table.averages()

    def images(self, backbone: Backbone, count: int) -> dict[str, bytes]:
        """Sample id -> PNG of references, answer and what the model makes, side by side, for the first samples.

        Every rank makes all of them, and all must call this together, after `losses`: a sharded model can be used
        part by part once it has run as a whole. None where the model makes nothing that can be shown, which is said.
        """
        drawable = self._drawable(backbone, count)
        if not drawable:
            return {}
        try:
            made = backbone.images([request for request, _ in drawable], self._config.validation)
        except SigmaError as error:  # non-finite numbers; training has its own measure against those
            if self._group.rank == 0:
                logger.warning("train: no sample images: %s", error)
            return {}
        return {
            request.name: _side_by_side([*(load(data) for data in request.images), load(answer), image])
            for (request, answer), image in zip(drawable, made, strict=True)
        }

    def _drawable(self, backbone: Backbone, count: int) -> list[tuple[Request, bytes]]:
        """Requests, with their answers, of samples of one turn that an image answers, each family in turn."""
        found: list[tuple[Request, bytes]] = []
        for entry in self._first_of_each_family():
            if len(found) == count:
                break
            sample = self._dataset.readers[entry.corpus].sample(entry.row)
            if len(sample.turns) == 1 and sample.targets == (len(sample.images),):
                with suppress(SigmaError, ImageFault):  # a bad image or prompt: others will do
                    found.append(self._request(backbone, sample, entry))
        return found

    def _request(self, backbone: Backbone, sample: Sample, entry: PackEntry) -> tuple[Request, bytes]:
        """What to ask for, and the answer. Raises SigmaError or ImageFault where it cannot be used."""
        numbers = {image.number for image in sample.images}
        data = self._dataset.readers[entry.corpus].images(entry.row, numbers)
        answer = data[sample.targets[0]]
        request = Request(
            sample.turns[0].instruction,
            [data[number] for number in sorted(sample.references)],
            size=load(answer).size,
            seed=self._config.validation.seed,
            name=sample.id,
            bindings=sample.turns[0].bindings,
            masks=frozenset(
                place for place, number in enumerate(sorted(sample.references), 1) if number in sample.masks
            ),
        )
        backbone.check(request)
        return request, answer

    def _first_of_each_family(self) -> list[PackEntry]:
        """The plan's samples: the first of every family, then the second of every family, and so on."""
        seen: dict[int, int] = {}
        ranked = []
        for pack in range(len(self._plan)):
            for entry in self._plan.ticket(pack).entries:
                family = int(self._dataset.indexes[entry.corpus].families[entry.row])
                seen[family] = seen.get(family, 0) + 1
                ranked.append((seen[family], family, entry))
            if len(ranked) > _LOOK_AT:
                break
        return [entry for _, _, entry in sorted(ranked, key=lambda one: one[:2])]


def _side_by_side(images: Sequence[Pillow.Image], height: int = 256) -> bytes:
    """A PNG of images in a row, all brought to one height."""
    scaled = [image.resize((max(1, image.width * height // image.height), height)) for image in images]
    gap = height // 32
    row = Pillow.new("RGB", (sum(image.width + gap for image in scaled) - gap, height), "white")
    left = 0
    for image in scaled:
        row.paste(image, (left, 0))
        left += image.width + gap
    buffer = io.BytesIO()
    row.save(buffer, "PNG")
    return buffer.getvalue()
