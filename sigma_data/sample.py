"""`Sample`, the training example that the whole toolkit shares: images, turns, family and source.

A sample is a short conversation over numbered images. Every turn has an interleaved instruction and an answer that the
model must produce: an image (`target`, an image number) or a text (`response`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

from sigma_data.images.value_range import ValueRange


class Family(StrEnum):
    """What a sample teaches; the order is the order of every table and report."""

    COMPOSITIONAL = "compositional"
    SELECTIVE = "selective"
    STYLIZATION = "stylization"
    RELATION = "relation"
    EDITING = "editing"
    LAYOUT = "layout"
    SEGMENTATION = "segmentation"
    UNDERSTANDING = "understanding"


@dataclass(frozen=True)
class FamilyRule:
    """Requirements of a family.

    `goal` is the number of samples SIGMA (arXiv 2602.07564) trains on, None if the paper has no such family;
    `min_references` images must precede the first answer.
    """

    goal: int | None
    min_references: int
    summary: str


FAMILY_RULES: dict[Family, FamilyRule] = {
    Family.COMPOSITIONAL: FamilyRule(100_000, 1, "things from several images in one new image"),
    Family.SELECTIVE: FamilyRule(226_000, 1, "one thing taken out of an image"),
    Family.STYLIZATION: FamilyRule(153_000, 1, "an image redrawn in the style of another"),
    Family.RELATION: FamilyRule(41_600, 3, "the change from A to A' applied to B"),
    Family.EDITING: FamilyRule(70_000, 1, "an image changed as instructed"),
    Family.LAYOUT: FamilyRule(110_000, 1, "an image that follows a canny or depth map"),
    Family.SEGMENTATION: FamilyRule(None, 1, "the instance colour map of an image"),
    Family.UNDERSTANDING: FamilyRule(None, 0, "questions about images, answered in words"),
}


class ImageKind(StrEnum):
    """What an image is where it is no ordinary picture."""

    CANNY = "canny"
    DEPTH = "depth"
    MASK = "mask"
    """A map of labels (instance colours): resized without blending neighbours."""
    STYLE = "style"


@dataclass(frozen=True)
class Source:
    """Where a sample came from: source name, location inside the source, row, license."""

    name: str
    location: str
    row: int
    license: str = "unknown"


@dataclass(frozen=True)
class Image:
    """One encoded image; `number` counts from 1 inside its sample.

    `data` is what the source holds, so it may be None or not an image: `sigma_data.images.decode.probe` tells.
    `missing` says why there is no data, if the source knows. `value_range` is how a deep image becomes 8 bits, known
    once it was decoded, and kept if only the 8 bits are stored. `kind` and `label` (a few words for what the image
    shows, such as the subject's name) are what the source says of it; injecting attribute tokens uses both.
    """

    number: int
    data: bytes | None
    missing: str | None = None
    value_range: ValueRange | None = None
    kind: ImageKind | None = None
    label: str | None = None


@dataclass(frozen=True)
class Turn:
    """An instruction and what it must produce: the image numbered `target`, or `response`.

    `alternatives` are other phrasings of the instruction. `bindings` maps the index of an attribute token in the
    instruction (0, 1, ...) to the image it refers to, if the source says so; it overrides the rule of
    `sigma_data.instruction.Instruction.groups`. `caption` is the plain wording that attribute tokens and placeholders
    were injected into, None where the instruction stands as the source has it.
    """

    instruction: str
    target: int | None = None
    response: str | None = None
    alternatives: tuple[str, ...] = ()
    bindings: tuple[tuple[int, int], ...] = ()
    caption: str | None = None


@dataclass(frozen=True)
class Sample:
    """A conversation over numbered images.

    `truth` is JSON text with the exact ground truth, if known; `split` is set if the source has splits to be kept.
    `provenance` is JSON text, an object that says how sigma made the sample or changed it: `injection` (who placed the
    attribute tokens), `condition` (how a canny or depth map was computed), `made` (the rule that made the sample from
    others, and their ids), `resolved` (the rule that found each picture).
    """

    id: str
    family: Family
    images: tuple[Image, ...]
    turns: tuple[Turn, ...]
    source: Source
    family_inferred: bool = False
    truth: str | None = None
    split: str | None = None
    provenance: str | None = None

    @property
    def targets(self) -> tuple[int, ...]:
        """Numbers of the images to be produced, in turn order."""
        return tuple(turn.target for turn in self.turns if turn.target is not None)

    @property
    def references(self) -> tuple[int, ...]:
        """Numbers of the images that are given, never produced."""
        targets = set(self.targets)
        return tuple(image.number for image in self.images if image.number not in targets)

    @property
    def masks(self) -> frozenset[int]:
        """Numbers of the images that are maps of labels, whose colours must not be blended when they are resized.

        Those of kind mask, and every image that a sample of the family segmentation produces.
        """
        marked = {image.number for image in self.images if image.kind is ImageKind.MASK}
        return frozenset(marked | set(self.targets if self.family is Family.SEGMENTATION else ()))

    def context(self, turn: int) -> tuple[int, ...]:
        """Numbers of the images in the context of the turn with this index, references first."""
        return self.references + tuple(earlier.target for earlier in self.turns[:turn] if earlier.target is not None)

    def _repr_html_(self) -> str:
        """What a notebook shows: the instruction with coloured tokens, the images small."""
        from sigma_data.sample_html import sample_html

        source, targets = self.source, set(self.targets)
        return sample_html(
            f"{self.id}  {self.family}",
            f"{source.name}, {source.location}, row {source.row}, license {source.license}",
            [(turn.instruction, turn.target, turn.response) for turn in self.turns],
            [(image.number, image.number in targets, image.data) for image in self.images],
        )


@dataclass(frozen=True)
class Rejection:
    """A row (or, with row None, a whole file) that a source did not turn into a sample.

    `filtered` tells a good row that a filter of the source leaves out from a broken one; `family` and `license` are
    given where the source knows them.
    """

    source: str
    location: str
    row: int | None
    code: str
    message: str
    filtered: bool = False
    family: Family | None = None
    license: str | None = None


def sample_id(source: str, location: str, row: int) -> str:
    """The stable id of a row: 20 hex digits (80 bits) of SHA-256 over source name, location and row."""
    name = f"{source}\x1f{location}\x1f{row}"
    return hashlib.sha256(name.encode()).hexdigest()[:20]
