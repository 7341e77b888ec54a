"""The one record of the toolkit: `Sample`, with its images, turns, family and source.

A sample is a short conversation over numbered images. Every turn has an interleaved instruction and
an answer that the model must produce: a picture (`target`, an image number) or a text (`response`).
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
    """What a family promises.

    `goal` is the number of samples SIGMA (arXiv 2602.07564) trains on, None where the paper has no
    such family; `min_references` pictures must stand before the first answer.
    """

    goal: int | None
    min_references: int
    summary: str


FAMILY_RULES: dict[Family, FamilyRule] = {
    Family.COMPOSITIONAL: FamilyRule(100_000, 1, "things from several pictures in one new picture"),
    Family.SELECTIVE: FamilyRule(226_000, 1, "one thing taken out of a picture"),
    Family.STYLIZATION: FamilyRule(153_000, 1, "a picture redrawn in the style of another"),
    Family.RELATION: FamilyRule(41_600, 3, "the change from A to A' applied to B"),
    Family.EDITING: FamilyRule(70_000, 1, "a picture changed as told"),
    Family.LAYOUT: FamilyRule(110_000, 1, "a picture that follows a canny or depth map"),
    Family.SEGMENTATION: FamilyRule(None, 1, "the instance colour map of a picture"),
    Family.UNDERSTANDING: FamilyRule(None, 0, "questions about pictures, answered in words"),
}


@dataclass(frozen=True)
class Source:
    """Where a sample came from: source name, location inside the source, row, license."""

    name: str
    location: str
    row: int
    license: str = "unknown"


@dataclass(frozen=True)
class Image:
    """One encoded picture; `number` counts from 1 inside its sample.

    `data` is what the source holds, so it may be None or not a picture at all: saying so is the
    job of `sigma_data.images.decode.probe`. `missing` says why there is no data, where the source knows. `value_range`
    is what a deep image is shown by, known once it was decoded; it stays where only the 8 bits that are shown
    are stored.
    """

    number: int
    data: bytes | None
    missing: str | None = None
    value_range: ValueRange | None = None


@dataclass(frozen=True)
class Turn:
    """An instruction and what it must produce: the picture numbered `target`, or `response`.

    `alternatives` are other phrasings of the same instruction. `bindings` maps the index of an
    attribute token in the instruction (0, 1, ...) to the image it speaks of, where the source says
    so; it overrides the rule of `sigma_data.instruction.Instruction.groups`.
    """

    instruction: str
    target: int | None = None
    response: str | None = None
    alternatives: tuple[str, ...] = ()
    bindings: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class Sample:
    """A conversation over numbered images.

    `truth` is JSON text with exactly known answers; `split` is set where the source has splits
    that should stay.
    """

    id: str
    family: Family
    images: tuple[Image, ...]
    turns: tuple[Turn, ...]
    source: Source
    family_inferred: bool = False
    truth: str | None = None
    split: str | None = None

    @property
    def targets(self) -> tuple[int, ...]:
        """Numbers of the pictures to be produced, in turn order."""
        return tuple(turn.target for turn in self.turns if turn.target is not None)

    @property
    def references(self) -> tuple[int, ...]:
        """Numbers of the pictures that are given, never produced."""
        targets = set(self.targets)
        return tuple(image.number for image in self.images if image.number not in targets)

    def context(self, turn: int) -> tuple[int, ...]:
        """Numbers of the pictures that the turn with this index may look at, references first."""
        return self.references + tuple(earlier.target for earlier in self.turns[:turn] if earlier.target is not None)


@dataclass(frozen=True)
class Rejection:
    """A row (or, with row None, a whole file) that a source could not turn into a sample."""

    source: str
    location: str
    row: int | None
    code: str
    message: str


def sample_id(source: str, location: str, row: int) -> str:
    """The stable id of a row: 20 hex digits of SHA-256 over source name, location and row.

    Eighty bits: ten million samples collide with a probability of 4e-11.
    """
    name = f"{source}\x1f{location}\x1f{row}"
    return hashlib.sha256(name.encode()).hexdigest()[:20]
