"""Samples made from others of the corpus: one thing taken out of a composed image, the change of a pair applied again.

Pure rules over records and what the scan found of their images; no image is read. A made sample has images of its
parents alone and lies in their split.
"""

from __future__ import annotations

import json
import zlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol, Self

from pydantic import Field, model_validator

from pipelines.build_dataset.image_words import NO_WORDS, ImageWords
from sigma_data.images.fingerprint import hash_fraction, near, similar_colours
from sigma_data.images.image_info import ImageInfo
from sigma_data.injection.dense import dense_instruction, parts_of
from sigma_data.injection.frames import draw_frame
from sigma_data.injection.operations import Operation, checked_thing, operation_of, thing_of
from sigma_data.injection.request import Reference
from sigma_data.instruction import parse
from sigma_data.sample import Family, Image, Sample, Source, Turn, sample_id
from sigma_data.settings_base import StrictModel
from sigma_data.storage.path_settings import LocalPath

_LEAST_SIDE = 64
"""A smaller image of a thing is no target."""
_HELD, _STRETCH = 8192, 256
"""Parents that are held for several rings, and those that a ring reads at a time beyond these."""
_PAIRS = frozenset((Family.EDITING, Family.STYLIZATION))


class Made(StrictModel):
    """Samples made from others of the corpus. Off by default; a family's quota counts them as it counts others."""

    dense: bool = False
    """Edits of an image of one person, with tokens for the person, the clothes and the place that `words` name."""
    words: LocalPath | None = None
    """JSON lines `{"sha256": ..., "caption": ..., "thing": ...}` on reference images, e.g. from a captioning model:
    the caption of an image, for `dense`, and what it shows, for `selective` where the instruction does not name it."""
    selective: bool = False
    """Composed images in reverse: the thing of one reference is to be taken out of the target."""
    relation: bool = False
    """Pairs of the same edit, if it holds for any image, as example and question."""
    relations_an_edit: int = Field(200, ge=1)
    """Most relation samples of the same edit in a split."""
    relations_a_pair: int = Field(2, ge=2)
    """Most relation samples that a pair is part of, as example or question."""

    @property
    def any(self) -> bool:
        """Whether any sample is to be made."""
        return self.selective or self.relation or self.dense

    @model_validator(mode="after")
    def _worded(self) -> Self:
        if self.dense and self.words is None:
            raise ValueError("made.dense takes its words from captions: name their file with made.words")
        return self

    def feeds(self, family: Family, references: int) -> bool:
        """Whether samples of the family with so many references can be parents."""
        reversed_ = self.selective and family is Family.COMPOSITIONAL and references >= 2
        return reversed_ or ((self.relation or self.dense) and family in _PAIRS and references == 1)


@dataclass(frozen=True)
class Parent:
    """A written sample that others may be made from, its images without bytes; `infos` as the scan found them.

    `component` is the plan's number of it, `number` the sample's own.
    """

    sample: Sample
    split: str
    component: int
    infos: Mapping[int, ImageInfo]
    number: int

    def image(self, number: int) -> ImageInfo:
        """What is known of an image."""
        return self.infos[number]


@dataclass(frozen=True)
class MadeSample:
    """A sample made from `parents`: `origins` has (index of the parent, image number there) of each image number."""

    sample: Sample
    parents: tuple[Parent, ...]
    origins: Mapping[int, tuple[int, int]]


class Parents(Protocol):
    """All parents, which are read each time they are gone through: a corpus has more than fit into memory."""

    def __iter__(self) -> Iterator[Parent]: ...

    def take(self, places: Sequence[int]) -> dict[int, Parent]:
        """The parents at some places of the order in which they come."""


def usable(sample: Sample) -> bool:
    """Whether a sample may be a parent: one turn that makes an image, not made itself, no maps among its images."""
    return (
        len(sample.turns) == 1
        and len(sample.targets) == 1
        and '"made"' not in (sample.provenance or "")
        and all(image.kind is None for image in sample.images)
    )


def made_samples(parents: Parents, settings: Made, *, seed: int, words: ImageWords = NO_WORDS) -> Iterator[MadeSample]:
    """All samples that the settings ask for, in a fixed order."""
    if settings.selective:
        for parent in parents:
            if parent.sample.family is Family.COMPOSITIONAL:
                yield from _reversed(parent, words)
    if settings.dense:
        yield from (one for parent in parents if (one := _dense(parent, words)) is not None)
    if settings.relation:
        yield from _relations(parents, settings, seed)


def _dense(parent: Parent, words: ImageWords) -> MadeSample | None:
    """The edit of one image, asked with the parts that a caption of the image names."""
    sample = parent.sample
    if sample.family not in _PAIRS or len(sample.references) != 1:
        return None
    (reference,), (target,) = sample.references, sample.targets
    caption = words.captions.get(parent.image(reference).sha256)
    parts = parts_of(caption) if caption is not None else None
    turn = sample.turns[0]
    plain = turn.caption or parse(turn.instruction).plain
    if parts is None or parse(plain, references=1).placeholders:
        return None
    name, source = _named("dense", [sample], 0)
    turns = (Turn(dense_instruction(parts, plain, name), target=2, caption=plain),)
    return _made("dense", [parent], name, source, sample.family, turns, {1: (0, reference), 2: (0, target)})


def _reversed(parent: Parent, words: ImageWords) -> Iterator[MadeSample]:
    """For each reference whose thing the instruction or others name: target -> reference."""
    sample, target = parent.sample, parent.sample.targets[0]
    turn, references = sample.turns[0], sample.references
    things = {number: thing_of(turn.instruction, number, len(references)) for number in references}
    if turn.caption is not None:  # words that the injection has replaced
        things = {number: thing or thing_of(turn.caption, number, len(references)) for number, thing in things.items()}
    for number in references:
        said = words.things.get(parent.image(number).sha256)
        if things[number] is None and said is not None:
            things[number] = checked_thing(said, turn.caption or turn.instruction)
    counted = Counter((thing or "").lower() for thing in things.values())
    for number, thing in things.items():
        if thing is None or counted[thing.lower()] > 1:
            continue
        whole, part = parent.image(target), parent.image(number)
        if min(part.width, part.height) < _LEAST_SIDE or _alike(whole, part):
            continue
        name, source = _named("selective", [sample], number)
        frame = draw_frame("selective", [Reference(1)], name)
        turns = (Turn(frame.around(thing), target=2),)
        yield _made("selective", [parent], name, source, Family.SELECTIVE, turns, {1: (0, target), 2: (0, number)})


def _operation(parent: Parent) -> Operation | None:
    """What a pair does, if that holds for any image."""
    turn = parent.sample.turns[0]
    texts = [turn.caption or "", *(parse(text).plain for text in (turn.instruction, *turn.alternatives))]
    return operation_of(texts)


def _relations(parents: Parents, settings: Made, seed: int) -> Iterator[MadeSample]:
    """Quadruples (A, A', B, B') of pairs of the same edit in one split, neighbours in a ring drawn by a hash."""
    groups: dict[tuple[str, str], list[tuple[float, str, int]]] = defaultdict(list)
    for place, parent in enumerate(parents):
        if parent.sample.family in _PAIRS and (operation := _operation(parent)) is not None:
            name = parent.sample.id
            groups[parent.split, operation.key].append((hash_fraction("relation", seed, name), name, place))
    orders = []
    for _, pairs in sorted(groups.items(), key=lambda entry: entry[0]):
        orders.append([place for _, _, place in sorted(pairs)])
    del groups
    # As many as most rings look at are read for several rings at a time, the others as a ring comes to them.
    usual = settings.relations_an_edit + 1
    wave: list[list[int]] = []
    for order in [*orders, []]:
        if not order or sum(min(len(one), usual) for one in wave) + min(len(order), usual) > _HELD:
            held = parents.take(sorted({place for one in wave for place in one[:usual]}))
            for one in wave:
                yield from _ring(_Pairs(parents, one, held), settings)
            wave = []
        wave.append(order)


class _Pairs(Sequence[Parent]):
    """The parents of a ring, of which those that are not in `held` are read in stretches."""

    def __init__(self, parents: Parents, order: Sequence[int], held: Mapping[int, Parent]) -> None:
        self._parents, self._order, self._held = parents, order, held
        self._stretches: dict[int, dict[int, Parent]] = {}

    def __len__(self) -> int:
        return len(self._order)

    def __getitem__(self, place: Any) -> Any:
        number = self._order[place]
        if number in self._held:
            return self._held[number]
        start = place - place % _STRETCH
        if start not in self._stretches:
            if len(self._stretches) == 3:  # a ring looks at two places at a time, near each other or at its ends
                del self._stretches[next(iter(self._stretches))]
            self._stretches[start] = self._parents.take(sorted(self._order[start : start + _STRETCH]))
        return self._stretches[start][number]


def _ring(pairs: Sequence[Parent], settings: Made) -> Iterator[MadeSample]:
    uses: Counter[int] = Counter()
    count = 0
    for step in range(1, min(settings.relations_a_pair // 2, len(pairs) - 1) + 1):
        for place in range(len(pairs)):
            other = (place + step) % len(pairs)
            if count == settings.relations_an_edit:
                return
            if max(uses[place], uses[other]) >= settings.relations_a_pair:
                continue
            asked = pairs[other]
            operation = _operation(asked)
            assert operation is not None
            if (made := _quadruple(pairs[place], asked, operation)) is None:
                continue
            uses[place] += 1
            uses[other] += 1
            count += 1
            yield made


def _quadruple(example: Parent, asked: Parent, operation: Operation) -> MadeSample | None:
    """The pair `asked` with another pair as its example; None where an image would show the answer."""
    numbers = [(one.sample.references[0], one.sample.targets[0]) for one in (example, asked)]
    (before, after), (start, end) = numbers
    first = [example.image(before), example.image(after)]
    second = [asked.image(start), asked.image(end)]
    if any(_alike(one, other) for one in first for other in second):
        return None
    name, source = _named("relation", [example.sample, asked.sample], 0)
    frame = draw_frame("relation", [Reference(number) for number in (1, 2, 3)], name)
    instruction = frame.around(operation.text)
    if operation.token != "style":
        instruction = instruction.replace("<style>", f"<{operation.token}>" if operation.token else "")
    turns = (Turn(instruction, target=4, caption=operation.text),)
    origins = {1: (0, before), 2: (0, after), 3: (1, start), 4: (1, end)}
    return _made("relation", [example, asked], name, source, Family.RELATION, turns, origins)


def _alike(first: ImageInfo, second: ImageInfo) -> bool:
    """Whether two images are the same, nearly the same, or of one size and the same colours all over."""
    if first.sha256 == second.sha256 or near(first.signature, second.signature):
        return True
    same_size = (first.width, first.height) == (second.width, second.height)
    return same_size and similar_colours(first.signature, second.signature)


def _named(rule: str, samples: Sequence[Sample], number: int) -> tuple[str, Source]:
    """Id and source of a made sample: they follow from the parents' ids alone."""
    location = f"made/{rule}/{'+'.join(one.id for one in samples)}"
    licenses = " AND ".join(sorted({one.source.license for one in samples}))
    return sample_id("made", location, number), Source(samples[0].source.name, location, number, licenses)


def _made(
    rule: str,
    parents: Sequence[Parent],
    name: str,
    source: Source,
    family: Family,
    turns: tuple[Turn, ...],
    origins: Mapping[int, tuple[int, int]],
) -> MadeSample:
    images: list[Image] = []
    for number, (place, there) in sorted(origins.items()):
        image = next(one for one in parents[place].sample.images if one.number == there)
        images.append(replace(image, number=number))
    note: dict[str, Any] = {"made": {"rule": rule, "from": [one.sample.id for one in parents]}}
    provenance = json.dumps(note, sort_keys=True, separators=(",", ":"))
    sample = Sample(name, family, tuple(images), turns, source, provenance=provenance)
    return MadeSample(sample, tuple(parents), origins)


def info_of(image: Mapping[str, Any]) -> ImageInfo:
    """An image as the scan's row describes it; `coarse` tells different bytes apart, as nothing else is known."""
    return ImageInfo(
        format=image["format"],
        mode=image["mode"],
        width=image["width"],
        height=image["height"],
        size=image["size"],
        sha256=image["sha256"],
        signature=image["signature"],
        coarse=zlib.crc32(image["sha256"].encode()),
        orientation=1,
    )
