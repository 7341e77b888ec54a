"""A pack as OmniGen2 takes it: images to be made, and answers to be learnt, of samples of any sizes side by side."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from sigma_data.loading.batch import Batch, ImageKey
from sigma_model.omnigen2.conditioning import MllmInputs


@dataclass(frozen=True)
class Shown:
    """Images as the language model takes them: patches [P, C] and grids [I, 3]."""

    patches: Tensor | None = None
    grids: Tensor | None = None


@dataclass(frozen=True)
class ImageSample:
    """An image to be made. `references` and `target`: uint8 [3, h, w], with what identifies them in `keys`.

    `ids`: the prompt in its template, images' places as often as they have tokens. `noise` [z, h / f, w / f]; `u` is
    the normal draw that the time is made of. `bound`: places in `ids` of attribute tokens, each with the reference
    (counting from 1, 0: none) that it speaks of.
    """

    name: str
    ids: tuple[int, ...]
    shown: Shown
    references: tuple[Tensor, ...]
    target: Tensor
    keys: tuple[ImageKey, ...]
    noise: Tensor
    u: float
    bound: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class AnswerSample:
    """A conversation whose answers are learnt: `labels` are its ids where they are, else `IGNORED`."""

    name: str
    ids: tuple[int, ...]
    labels: tuple[int, ...]
    shown: Shown


@dataclass(frozen=True)
class Omnigen2Batch(Batch):
    """A pack of I images to be made and A conversations. `image_rows`, `answer_rows`: their places in `names`."""

    names: tuple[str, ...]
    image_rows: tuple[int, ...]
    answer_rows: tuple[int, ...]
    images: tuple[Tensor, ...]
    """All references and targets, uint8 [3, h, w]."""
    known_latents: tuple[Tensor, ...]
    image_keys: tuple[ImageKey, ...]
    references: tuple[tuple[int, ...], ...]
    """I times the places of a sample's references in `images`."""
    targets: tuple[int, ...]
    """I places in `images`."""
    noise: tuple[Tensor, ...]
    u: Tensor
    """[I]"""
    prompt_ids: tuple[Tensor, ...]
    prompt_patches: tuple[Tensor, ...]
    prompt_grids: tuple[Tensor, ...]
    answer_ids: tuple[Tensor, ...]
    answer_labels: tuple[Tensor, ...]
    answer_patches: tuple[Tensor, ...]
    answer_grids: tuple[Tensor, ...]
    bound: tuple[tuple[tuple[int, int], ...], ...] = field(default=())
    """I times the attribute tokens of a prompt, as in `ImageSample`."""

    @property
    def answer_tokens(self) -> int:
        """Tokens that are learnt."""
        return sum(int((labels[1:] >= 0).sum()) for labels in self.answer_labels)


def collate(samples: Sequence[ImageSample | AnswerSample]) -> Omnigen2Batch:
    """Samples as one batch; those that make images keep their order, and so do conversations."""
    images: list[Tensor] = []
    keys: list[ImageKey] = []
    references: list[tuple[int, ...]] = []
    made = [(row, one) for row, one in enumerate(samples) if isinstance(one, ImageSample)]
    told = [(row, one) for row, one in enumerate(samples) if isinstance(one, AnswerSample)]
    targets: list[int] = []
    for _, sample in made:
        first = len(images)
        images += [*sample.references, sample.target]
        keys += sample.keys
        references.append(tuple(range(first, first + len(sample.references))))
        targets.append(len(images) - 1)
    return Omnigen2Batch(
        names=tuple(one.name for one in samples),
        image_rows=tuple(row for row, _ in made),
        answer_rows=tuple(row for row, _ in told),
        images=tuple(images),
        known_latents=(),
        image_keys=tuple(keys),
        references=tuple(references),
        targets=tuple(targets),
        noise=tuple(one.noise for _, one in made),
        u=torch.tensor([one.u for _, one in made], dtype=torch.float32),
        prompt_ids=tuple(torch.tensor(one.ids) for _, one in made),
        prompt_patches=_there(one.shown.patches for _, one in made),
        prompt_grids=_there(one.shown.grids for _, one in made),
        answer_ids=tuple(torch.tensor(one.ids) for _, one in told),
        answer_labels=tuple(torch.tensor(one.labels) for _, one in told),
        answer_patches=_there(one.shown.patches for _, one in told),
        answer_grids=_there(one.shown.grids for _, one in told),
        bound=tuple(one.bound for _, one in made),
    )


def mllm_inputs(
    ids: Sequence[Tensor], patches: Sequence[Tensor], grids: Sequence[Tensor], *, image_token: int, filler: int
) -> MllmInputs:
    """Rows of ids as the language model takes them, padded on the right."""
    padded = torch.nn.utils.rnn.pad_sequence(list(ids), batch_first=True, padding_value=filler)
    lengths = torch.tensor([len(row) for row in ids], device=padded.device)
    mask = (torch.arange(padded.shape[1], device=padded.device) < lengths[:, None]).long()
    kinds = ((padded == image_token) & mask.bool()).long()
    pixels = torch.cat(list(patches)) if patches else None
    return MllmInputs(padded, mask, kinds, pixels, torch.cat(list(grids)) if grids else None)


def _there(values: object) -> tuple[Tensor, ...]:
    return tuple(one for one in values if one is not None)  # type: ignore[attr-defined]
