"""Sample -> segments: what stands in the model's sequence, how long it is, where, and under which group.

Pure arithmetic on text ids and picture sizes, so the planner can count a corpus without reading a
picture, and training and inference lay out a sample by the same function. Rules: DESIGN.md, and the
papers SIGMA (arXiv 2602.07564, section 3) and BAGEL (arXiv 2505.14683).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Protocol

from sigma_data.errors import SequenceError
from sigma_data.instruction import Attribute, Part, Placeholder, Text, parse
from sigma_data.resize import ResizeRule
from sigma_data.sample import Sample, Turn

Size = tuple[int, int]
"""(width, height) in pixels."""


class Kind(IntEnum):
    """What a segment is. TARGET and ANSWER carry the loss."""

    TEXT = 0
    LATENT = 1
    """A clean picture as VAE latents."""
    PATCH = 2
    """A clean picture as ViT patches."""
    TARGET = 3
    """A picture to be produced: noised VAE latents."""
    ANSWER = 4
    """A text to be produced."""

    @property
    def picture(self) -> bool:
        """Whether it shows a picture."""
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
    token: text counts on from there, a picture's tokens all share it. `ids` are a text's token ids
    without delimiters; `bound` says which of them are attribute tokens and of which group: (index in
    `ids`, group). A picture has its number in the sample, which is also its group, its size in
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
    def group(self) -> int:
        """The group of a reference picture's tokens; 0 for text and for a target."""
        return self.image if self.kind in (Kind.LATENT, Kind.PATCH) else 0

    @property
    def end(self) -> int:
        """The position of what follows: a text advances by its length, a clean picture by one."""
        if self.kind.picture:
            return self.position + (self.kind is not Kind.TARGET)
        return self.position + self.length


class Encoder(Protocol):
    """What the layout needs of a tokenizer (`sigma_data.text.TextEncoder`)."""

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
    """How large pictures become and how many tokens that is.

    `vae` and `vit` are the resize rules; their strides are the pixels a token covers. `vit` is None
    where understanding is off: there are no patches then, neither in training nor in inference. `vqa` is
    the rule of samples that are answered in words alone; its pixels are shared by their pictures. The
    grids are the sides of the model's position tables, `max_tokens` bounds a sample's sequence.
    """

    vae: ResizeRule
    vit: ResizeRule | None
    vqa: ResizeRule | None
    latent_grid: int
    patch_grid: int
    max_tokens: int

    def latents(self, size: Size) -> tuple[Size, tuple[int, int]]:
        """(size in pixels, grid of tokens) of a picture as VAE latents. Raises SequenceError."""
        return self._fit(self.vae, size, self.latent_grid, "latent")

    def patches(self, size: Size, *, asked: int = 0) -> tuple[Size, tuple[int, int]]:
        """(size in pixels, grid of tokens) of a picture as ViT patches. Raises SequenceError.

        `asked` is how many pictures a question in words shows; 0 where a picture is to be made.
        """
        rule = self.vqa if asked else self.vit
        assert rule is not None
        return self._fit(rule, size, self.patch_grid, "ViT", images=max(1, asked))

    @staticmethod
    def _fit(rule: ResizeRule, size: Size, side: int, what: str, *, images: int = 1) -> tuple[Size, tuple[int, int]]:
        width, height = rule.size(*size, images=images)
        columns, rows = width // rule.stride, height // rule.stride
        if max(rows, columns) > side:
            raise SequenceError(
                f"a picture of {size[0]} x {size[1]} becomes {columns} x {rows} {what} patches, and the model has "
                f"positions for {side} a side: make it less elongated, or crop it"
            )
        return (width, height), (rows, columns)


def layout(
    sample: Sample,
    sizes: Mapping[int, Size],
    encoder: Encoder,
    geometry: Geometry,
    *,
    dropped: Collection[int] = (),
) -> tuple[Segment, ...]:
    """Lay out a sample, turn by turn.

    In a turn stand, in order: pictures that no placeholder names (in the first turn the references,
    later the clean copy of the answer before it), the instruction with each picture at its first
    placeholder, the answer. A picture is there once; a later mention of it adds no tokens, but still
    binds attribute tokens. A reference is two segments, latents then patches; where all is answered in
    words, patches alone, as BAGEL is trained.

    `sizes` are the upright pictures' sizes by number. `dropped` are indices into the complete layout
    of segments to leave out (condition dropout, contexts for guidance): a left-out picture still
    advances the position by one, a left-out text by nothing. Raises SequenceError for a placeholder
    without a picture, a picture too elongated, a sequence too long, and for dropping an answer.
    """
    maker = _Layout(sample, sizes, encoder, geometry, frozenset(dropped))
    for index in range(len(sample.turns)):
        maker.turn(index)
    if dropped and not 0 <= min(dropped) <= max(dropped) < maker.count:
        raise SequenceError(f"segments {sorted(dropped)} are to be dropped, and there are {maker.count}")
    segments = _with_attributes(maker.segments)
    total = sum(segment.length for segment in segments)
    if total > geometry.max_tokens:
        raise SequenceError(
            f"the sequence is {total:,} tokens long, and {geometry.max_tokens:,} are the most: "
            "use fewer or smaller pictures, or a shorter text"
        )
    return segments


def _with_attributes(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Tell every picture which attribute tokens of its turn, of those that are there, speak of it."""
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


def without_text(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """The layout for guidance towards the text: no instruction, everything else moved up.

    What the model has answered in words before stays: it is its own, not what it was told.
    """
    return _moved_up([replace(segment, attributes=()) for segment in segments if segment.kind is not Kind.TEXT])


def without_references(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """The layout for guidance towards the references: no clean picture, everything else moved up.

    Attribute tokens keep their groups, which name no picture any more. Unlike a picture dropped in
    training, one left out here leaves no gap in the positions: so the released models are sampled.
    """
    return _moved_up([segment for segment in segments if segment.kind not in (Kind.LATENT, Kind.PATCH)])


def _moved_up(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    position = 0
    moved = []
    for segment in segments:
        moved.append(replace(segment, position=position))
        position = moved[-1].end
    return tuple(moved)


class _Layout:
    """The state of one layout: what was shown, and the position and index of the next segment."""

    def __init__(
        self, sample: Sample, sizes: Mapping[int, Size], encoder: Encoder, geometry: Geometry, dropped: frozenset[int]
    ) -> None:
        self._sample = sample
        self._sizes = sizes
        self._encoder = encoder
        self._geometry = geometry
        self._dropped = dropped
        self._shown: list[int] = []
        self._position = 0
        self._index = 0
        self.segments: list[Segment] = []

    @property
    def count(self) -> int:
        """Segments so far, the dropped ones included."""
        return self._index

    def turn(self, index: int) -> None:
        turn = self._sample.turns[index]
        allowed = self._sample.context(index)
        instruction = parse(turn.instruction, pictures=len(self._sample.references))
        for number in (*instruction.placeholders, *(bound for _, bound in turn.bindings)):
            if number not in allowed:
                there = {0: "are no pictures", 1: "is one picture"}.get(len(allowed), f"are {len(allowed)} pictures")
                raise SequenceError(
                    f"the text names picture {number}, and there {there} to look at: give the picture, or correct "
                    "the number"
                )
        unnamed = [number for number in self._before(index, turn) if number not in self._shown]
        groups = instruction.groups(before=(*self._shown, *unnamed), bindings=dict(turn.bindings))
        stretches = self._stretches(instruction.parts, groups)
        for number in unnamed:
            self._reference(number, index)
        for ids, bound, number in stretches:
            if ids:
                self._add(Kind.TEXT, len(ids) + 2, index, ids=ids, bound=bound)
            if number and number not in self._shown:
                self._reference(number, index)
        if turn.response is not None:
            ids = self._encoder.encode_parts([Text(turn.response.strip())]).ids
            self._add(Kind.ANSWER, len(ids) + 2, index, ids=ids)
        if turn.target is not None:
            size, grid = self._geometry.latents(self._size(turn.target))
            self._add(Kind.TARGET, grid[0] * grid[1] + 2, index, image=turn.target, size=size, grid=grid)

    def _before(self, index: int, turn: Turn) -> list[int]:
        """Pictures that stand before a turn's text."""
        named = set(parse(turn.instruction, pictures=len(self._sample.references)).placeholders)
        if index == 0:
            references = len(self._sample.references)
            for later in self._sample.turns[1:]:
                named |= set(parse(later.instruction, pictures=references).placeholders)
            return [number for number in self._sample.references if number not in named]
        answer = self._sample.turns[index - 1].target
        return [answer] if answer is not None and answer not in named else []

    def _stretches(
        self, parts: Sequence[Part], groups: Sequence[int | None]
    ) -> list[tuple[tuple[int, ...], tuple[tuple[int, int], ...], int]]:
        """The text before each placeholder, and behind the last: (ids, bound, number or 0)."""
        found = []
        seen = 0
        for stretch, number in _split(parts):
            encoded = self._encoder.encode_parts(_trimmed(stretch))
            bound = tuple((place, groups[seen + running] or 0) for place, running in encoded.attributes)
            seen += sum(isinstance(part, Attribute) for part in stretch)
            found.append((encoded.ids, bound, number))
        return found

    def _reference(self, number: int, turn: int) -> None:
        self._shown.append(number)
        see = self._geometry.vit is not None
        asked = len(self._sample.references) if see and not self._sample.targets else 0
        if not asked:
            size, grid = self._geometry.latents(self._size(number))
            length = grid[0] * grid[1] + 2
            self._add(Kind.LATENT, length, turn, image=number, size=size, grid=grid)
        if see:
            size, grid = self._geometry.patches(self._size(number), asked=asked)
            length = grid[0] * grid[1] + 2
            self._add(Kind.PATCH, length, turn, image=number, size=size, grid=grid)

    def _size(self, number: int) -> Size:
        try:
            return self._sizes[number]
        except KeyError:
            raise SequenceError(f"the size of picture {number} is not known") from None

    def _add(
        self,
        kind: Kind,
        length: int,
        turn: int,
        *,
        ids: tuple[int, ...] = (),
        bound: tuple[tuple[int, int], ...] = (),
        image: int = 0,
        size: Size = (0, 0),
        grid: tuple[int, int] = (0, 0),
    ) -> None:
        segment = Segment(kind, length, self._position, turn, ids, bound, image, size, grid)
        drop = self._index in self._dropped
        self._index += 1
        if not drop:
            self.segments.append(segment)
            self._position = segment.end
        elif kind.loss:
            raise SequenceError("a segment that the model must produce cannot be dropped")
        elif kind.picture:
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


def _trimmed(stretch: Sequence[Text | Attribute]) -> list[Part]:
    """A stretch of text without white space at its ends, where a picture or nothing stands."""
    parts: list[Part] = list(stretch)
    if parts and isinstance(parts[0], Text):
        parts[0] = Text(parts[0].text.lstrip())
    if parts and isinstance(parts[-1], Text):
        parts[-1] = Text(parts[-1].text.rstrip())
    return [part for part in parts if not (isinstance(part, Text) and not part.text)]
