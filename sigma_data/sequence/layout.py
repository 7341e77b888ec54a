"""Turns and image sizes -> segments: what is in the model's sequence, how long, at which position, in which group.

Pure arithmetic on token ids and image sizes: the planner counts a corpus without reading an image, and training and
inference lay out a conversation by the same function. Rules: DESIGN.md, and the papers SIGMA (arXiv 2602.07564,
section 3) and BAGEL (arXiv 2505.14683).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from sigma_data.errors import SequenceError
from sigma_data.images.resize_rule import ResizeRule
from sigma_data.instruction import Attribute, Part, Placeholder, Text, parse
from sigma_data.sample import Turn

Size = tuple[int, int]
"""(width, height) in pixels."""


DELIMITERS = 2
"""Tokens around a segment: one before it, one behind it."""


class Kind(IntEnum):
    """What a segment is. TARGET and ANSWER carry the loss."""

    TEXT = 0
    LATENT = 1
    """A clean image as VAE latents."""
    PATCH = 2
    """A clean image as ViT patches."""
    TARGET = 3
    """An image to be produced: noised VAE latents."""
    ANSWER = 4
    """A text to be produced."""

    @property
    def image(self) -> bool:
        """Whether it shows an image."""
        return self in (Kind.LATENT, Kind.PATCH, Kind.TARGET)

    @property
    def latent(self) -> bool:
        """Whether its inner tokens are VAE latents, which the generation expert computes."""
        return self in (Kind.LATENT, Kind.TARGET)

    @property
    def loss(self) -> bool:
        """Whether the model must produce it."""
        return self in (Kind.TARGET, Kind.ANSWER)


@dataclass(frozen=True)
class Segment:
    """A stretch of the sequence between two delimiters.

    `length` counts tokens, the two delimiters included. `position` is the RoPE position of the first
    token: text counts on from there, an image's tokens all share it. `ids` are a text's token ids
    without delimiters; `bound` says which of them are attribute tokens and of which group: (index in
    `ids`, group). An image has its number in the sample, which is also its group, its size in
    pixels, and its grid in tokens (rows, columns); `attributes` are the ids of the attribute tokens
    of its own turn that speak of it.
    """

    kind: Kind
    length: int
    position: int
    turn: int = 0
    ids: tuple[int, ...] = ()
    bound: tuple[tuple[int, int], ...] = ()
    image: int = 0
    size: Size = (0, 0)
    grid: tuple[int, int] = (0, 0)
    attributes: tuple[int, ...] = ()

    @property
    def inner(self) -> int:
        """Tokens between the delimiters."""
        return self.length - DELIMITERS

    @property
    def group(self) -> int:
        """The group of a reference image's tokens; 0 for text and for a target."""
        return self.image if self.kind in (Kind.LATENT, Kind.PATCH) else 0

    @property
    def end(self) -> int:
        """The position of what follows: a text advances by its length, a clean image by one."""
        if self.kind.image:
            return self.position + (self.kind is not Kind.TARGET)
        return self.position + self.length


class PartTokenizer(Protocol):
    """What a layout needs of a tokenizer (`sigma_data.sequence.tokenizer.Tokenizer`)."""

    def encode_parts(self, parts: Sequence[Part]) -> EncodedText:
        """Ids of text and attribute tokens; each attribute token is one id."""
        ...


class EncodedText(Protocol):
    """Token ids, and where the attribute tokens are: (index in `ids`, running number)."""

    @property
    def ids(self) -> tuple[int, ...]: ...

    @property
    def attributes(self) -> tuple[tuple[int, int], ...]: ...


@dataclass(frozen=True)
class Geometry:
    """How large images become and how many tokens that is.

    `vae` and `vit` are the resize rules; their strides are the pixels a token covers. `vit` is None
    where understanding is off: there are no patches then, neither in training nor in inference. `vqa` is
    the rule of samples that are answered in words alone; its pixels are shared by their images. The
    grids are the sides of the model's position tables, `max_tokens` bounds a sample's sequence.
    """

    vae: ResizeRule
    vit: ResizeRule | None
    vqa: ResizeRule | None
    latent_grid: int
    patch_grid: int
    max_tokens: int

    def kinds(self, *, text_only: bool) -> tuple[Kind, ...]:
        """The segments that show a reference; `text_only`: every answer of the sample is text."""
        if self.vit is None:
            return (Kind.LATENT,)
        return (Kind.PATCH,) if text_only else (Kind.LATENT, Kind.PATCH)

    def rule(self, kind: Kind, *, text_only: bool) -> tuple[ResizeRule, int]:
        """The resize rule of a kind of image segment, and the side of its position table."""
        if kind.latent:
            return self.vae, self.latent_grid
        rule = self.vqa if text_only else self.vit
        assert rule is not None
        return rule, self.patch_grid

    def fit(self, kind: Kind, size: Size, *, asked: int = 0) -> tuple[Size, tuple[int, int]]:
        """(size in pixels, grid of tokens) of an image as a segment of this kind.

        `asked` is how many images a sample shows if every answer is text, else 0. Raises SequenceError.
        """
        rule, side = self.rule(kind, text_only=asked > 0)
        width, height = rule.size(*size, images=asked if kind is Kind.PATCH and asked else 1)
        rows, columns = image_grid(rule, width, height)
        if max(rows, columns) > side:
            raise SequenceError(
                f"an image of {size[0]} x {size[1]} becomes {columns} x {rows} {'latent' if kind.latent else 'ViT'} "
                f"patches, and the model has positions for {side} a side: make it less elongated, or crop it"
            )
        return (width, height), (rows, columns)


Count = TypeVar("Count", int, npt.NDArray[np.integer[Any]])


def image_grid(rule: ResizeRule, width: Count, height: Count) -> tuple[Count, Count]:
    """(rows, columns) of the tokens of images that `rule` has brought to a size in pixels."""
    return height // rule.stride, width // rule.stride


def segment_length(inner: Count) -> Count:
    """Tokens of a segment with its delimiters, from those of its text or of its image (rows * columns)."""
    return inner + DELIMITERS


def layout(
    turns: Sequence[Turn],
    sizes: Mapping[int, Size],
    tokenizer: PartTokenizer,
    geometry: Geometry,
    *,
    dropped: Collection[int] = (),
) -> tuple[Segment, ...]:
    """Lay out a conversation, turn by turn.

    A turn consists of, in order: images that no placeholder names (in the first turn the references, later the clean
    copy of the previous answer), the instruction with each image at its first placeholder, the answer. An image is
    there once; a later mention of it adds no tokens, but still binds attribute tokens. A reference is two segments,
    latents then patches; if every answer is text, patches alone, as BAGEL is trained. A last turn without any answer
    is one to be answered.

    `sizes` are the sizes of the upright images by number. `dropped` are indices into the complete layout of segments
    to leave out (condition dropout): a left-out image still advances the position by one, a left-out text by nothing.
    Raises SequenceError for a placeholder without an image, an image too elongated, a sequence too long, and for
    dropping an answer.
    """
    maker = _Layout(turns, sizes, tokenizer, geometry, frozenset(dropped))
    for piece in outline(turns, sizes):
        maker.add(piece)
    if dropped and not 0 <= min(dropped) <= max(dropped) < maker.count:
        raise SequenceError(f"segments {sorted(dropped)} are to be dropped, and there are {maker.count}")
    segments = _with_attributes(maker.segments)
    total = sum(segment.length for segment in segments)
    if total > geometry.max_tokens:
        raise SequenceError(
            f"the sequence is {total:,} tokens long, and {geometry.max_tokens:,} are the most: "
            "use fewer or smaller images, or a shorter text"
        )
    return segments


def _with_attributes(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Tell every image which attribute tokens of its turn, of those that are there, speak of it."""
    spoken: dict[tuple[int, int], list[int]] = {}
    for segment in segments:
        for place, group in segment.bound:
            spoken.setdefault((segment.turn, group), []).append(segment.ids[place])
    return tuple(
        replace(segment, attributes=tuple(spoken[segment.turn, segment.group]))
        if segment.group and (segment.turn, segment.group) in spoken
        else segment
        for segment in segments
    )


class Piece(NamedTuple):
    """A step of an outline: a text (TEXT, ANSWER), or the image `image` (LATENT: a reference; TARGET).

    `groups` has the group of each attribute token among `parts`.
    """

    kind: Kind
    turn: int
    parts: Sequence[Text | Attribute] = ()
    groups: tuple[int, ...] = ()
    image: int = 0


def outline(turns: Sequence[Turn], images: Collection[int]) -> Iterator[Piece]:
    """The content of a sequence in order, before sizes and token ids are known: the rule of `layout`.

    `images` are the numbers of all images. Raises SequenceError for a target, a placeholder or a binding that names
    none of them.
    """
    references = references_of(turns, images)
    if missing := sorted(set(targets_of(turns)).difference(images)):
        raise SequenceError(f"image {missing[0]} is to be produced, but there is no such image")
    instructions = [parse(turn.instruction, references=len(references)) for turn in turns]
    allowed = list(references)
    shown: list[int] = []
    for index, (turn, instruction) in enumerate(zip(turns, instructions, strict=True)):
        placeholders = instruction.placeholders
        _refuse_absent(placeholders, turn, allowed)
        if index == 0:
            named = {number for other in instructions for number in other.placeholders}
            unnamed = [number for number in references if number not in named]
        else:
            answer = turns[index - 1].target
            unnamed = [answer] if answer is not None and answer not in placeholders else []
        groups = instruction.groups(before=(*shown, *unnamed), bindings=dict(turn.bindings))
        for number in unnamed:
            yield Piece(Kind.LATENT, index, image=number)
        shown += unnamed
        seen = 0
        for stretch, number in _split(instruction.parts):
            count = sum(isinstance(part, Attribute) for part in stretch)
            if parts := _trimmed(stretch):
                bound = tuple(group or 0 for group in groups[seen : seen + count])
                yield Piece(Kind.TEXT, index, parts, bound)
            seen += count
            if number and number not in shown:
                shown.append(number)
                yield Piece(Kind.LATENT, index, image=number)
        if turn.response is not None:
            yield Piece(Kind.ANSWER, index, _trimmed([Text(turn.response)]))
        if turn.target is not None:
            yield Piece(Kind.TARGET, index, image=turn.target)
            allowed.append(turn.target)


def targets_of(turns: Sequence[Turn]) -> list[int]:
    """Numbers of the images to be produced, in turn order."""
    return [turn.target for turn in turns if turn.target is not None]


def references_of(turns: Sequence[Turn], images: Collection[int]) -> list[int]:
    """Numbers of the images that are given, never produced, in order."""
    return sorted(set(images).difference(targets_of(turns)))


def _refuse_absent(placeholders: Sequence[int], turn: Turn, allowed: Sequence[int]) -> None:
    for number in (*placeholders, *(bound for _, bound in turn.bindings)):
        if number not in allowed:
            there = {0: "are no images", 1: "is one image"}.get(len(allowed), f"are {len(allowed)} images")
            raise SequenceError(
                f"the text names image {number}, and there {there} to look at: give the image, or correct the number"
            )


class _Layout:
    """The state of one layout: the position and index of the next segment."""

    def __init__(
        self,
        turns: Sequence[Turn],
        sizes: Mapping[int, Size],
        tokenizer: PartTokenizer,
        geometry: Geometry,
        dropped: frozenset[int],
    ) -> None:
        self._sizes = sizes
        self._tokenizer = tokenizer
        self._geometry = geometry
        self._dropped = dropped
        text_only = not targets_of(turns)
        self._kinds = geometry.kinds(text_only=text_only)
        self._asked = len(sizes) if text_only else 0
        self._position = 0
        self._index = 0
        self.segments: list[Segment] = []

    @property
    def count(self) -> int:
        """Segments so far, the dropped ones included."""
        return self._index

    def add(self, piece: Piece) -> None:
        """Add the segments of a piece."""
        if piece.kind is Kind.LATENT:
            for kind in self._kinds:
                self._image(kind, piece)
        elif piece.kind is Kind.TARGET:
            self._image(piece.kind, piece)
        else:
            encoded = self._tokenizer.encode_parts(piece.parts)
            bound = tuple((place, piece.groups[running]) for place, running in encoded.attributes)
            length = segment_length(len(encoded.ids))
            self._add(Segment(piece.kind, length, self._position, piece.turn, encoded.ids, bound))

    def _image(self, kind: Kind, piece: Piece) -> None:
        size, grid = self._geometry.fit(kind, self._sizes[piece.image], asked=self._asked)
        length = segment_length(grid[0] * grid[1])
        self._add(Segment(kind, length, self._position, piece.turn, image=piece.image, size=size, grid=grid))

    def _add(self, segment: Segment) -> None:
        drop = self._index in self._dropped
        self._index += 1
        if not drop:
            self.segments.append(segment)
            self._position = segment.end
        elif segment.kind.loss:
            raise SequenceError("a segment that the model must produce cannot be dropped")
        elif segment.kind.image:
            self._position += 1


def _split(parts: Sequence[Part]) -> list[tuple[list[Text | Attribute], int]]:
    """Text and attribute tokens before each placeholder, with its number; behind the last with 0."""
    found: list[tuple[list[Text | Attribute], int]] = [([], 0)]
    for part in parts:
        if isinstance(part, Placeholder):
            found[-1] = (found[-1][0], part.number)
            found.append(([], 0))
        else:
            found[-1][0].append(part)
    return found


def _trimmed(stretch: Sequence[Text | Attribute]) -> list[Text | Attribute]:
    """A stretch of text without white space at its ends, where an image or nothing stands."""
    parts = list(stretch)
    if parts and isinstance(parts[0], Text):
        parts[0] = Text(parts[0].text.lstrip())
    if parts and isinstance(parts[-1], Text):
        parts[-1] = Text(parts[-1].text.rstrip())
    return [part for part in parts if not (isinstance(part, Text) and not part.text)]
