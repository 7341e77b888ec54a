"""Sample -> segments: what stands in the model's sequence, how long it is, where, and under which group.

Pure arithmetic on text ids and picture sizes, so the planner can count a corpus without reading a
picture, and training and inference lay out a sample by the same function. Rules: DESIGN.md, and the
papers SIGMA (arXiv 2602.07564, section 3) and BAGEL (arXiv 2505.14683).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import NamedTuple, Protocol

from sigma_data.errors import SequenceError
from sigma_data.images.resize_rule import ResizeRule
from sigma_data.instruction import Attribute, Part, Placeholder, Text, parse
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
    """What the layout needs of a tokenizer (`sigma_data.sequence.tokenizer.Tokenizer`)."""

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

    def kinds(self, *, words_only: bool) -> tuple[Kind, ...]:
        """The segments that show a reference, in a sample that is answered in words alone or not."""
        if self.vit is None:
            return (Kind.LATENT,)
        return (Kind.PATCH,) if words_only else (Kind.LATENT, Kind.PATCH)

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
    for piece in outline(sample):
        maker.add(piece)
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


def text_first(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """The layout of the released batch inference: all text, then all references, then the answer.

    Training interleaves; this order is for comparison with the release.
    """
    return _moved_up(sorted(segments, key=lambda segment: (segment.kind.loss, segment.kind.picture)))


def _moved_up(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    position = 0
    moved = []
    for segment in segments:
        moved.append(replace(segment, position=position))
        position = moved[-1].end
    return tuple(moved)


class Piece(NamedTuple):
    """A step of an outline: a text (TEXT, ANSWER), or the picture `image` (LATENT: a reference; TARGET).

    `groups` has the group of each attribute token among `parts`.
    """

    kind: Kind
    turn: int
    parts: Sequence[Text | Attribute] = ()
    groups: tuple[int, ...] = ()
    image: int = 0


def outline(sample: Sample) -> Iterator[Piece]:
    """What a sequence shows, in order, before sizes and token ids are known: the one rule of `layout`.

    Raises SequenceError for a placeholder or a binding without a picture.
    """
    references = sample.references
    instructions = [parse(turn.instruction, references=len(references)) for turn in sample.turns]
    allowed = list(references)
    shown: list[int] = []
    for index, (turn, instruction) in enumerate(zip(sample.turns, instructions, strict=True)):
        placeholders = instruction.placeholders
        _refuse_absent(placeholders, turn, allowed)
        if index == 0:
            named = {number for other in instructions for number in other.placeholders}
            unnamed = [number for number in references if number not in named]
        else:
            answer = sample.turns[index - 1].target
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


def _refuse_absent(placeholders: Sequence[int], turn: Turn, allowed: Sequence[int]) -> None:
    for number in (*placeholders, *(bound for _, bound in turn.bindings)):
        if number not in allowed:
            there = {0: "are no pictures", 1: "is one picture"}.get(len(allowed), f"are {len(allowed)} pictures")
            raise SequenceError(
                f"the text names picture {number}, and there {there} to look at: give the picture, or correct "
                "the number"
            )


class _Layout:
    """The state of one layout: the position and index of the next segment."""

    def __init__(
        self, sample: Sample, sizes: Mapping[int, Size], encoder: Encoder, geometry: Geometry, dropped: frozenset[int]
    ) -> None:
        self._sizes = sizes
        self._encoder = encoder
        self._geometry = geometry
        self._dropped = dropped
        self._kinds = geometry.kinds(words_only=not sample.targets)
        self._asked = 0 if sample.targets else len(sample.references)
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
                self._picture(kind, piece)
        elif piece.kind is Kind.TARGET:
            self._picture(piece.kind, piece)
        else:
            encoded = self._encoder.encode_parts(piece.parts)
            bound = tuple((place, piece.groups[running]) for place, running in encoded.attributes)
            self._add(Segment(piece.kind, len(encoded.ids) + 2, self._position, piece.turn, encoded.ids, bound))

    def _picture(self, kind: Kind, piece: Piece) -> None:
        try:
            size = self._sizes[piece.image]
        except KeyError:
            raise SequenceError(f"the size of picture {piece.image} is not known") from None
        size, grid = self._geometry.latents(size) if kind.latent else self._geometry.patches(size, asked=self._asked)
        length = grid[0] * grid[1] + 2
        self._add(Segment(kind, length, self._position, piece.turn, image=piece.image, size=size, grid=grid))

    def _add(self, segment: Segment) -> None:
        drop = self._index in self._dropped
        self._index += 1
        if not drop:
            self.segments.append(segment)
            self._position = segment.end
        elif segment.kind.loss:
            raise SequenceError("a segment that the model must produce cannot be dropped")
        elif segment.kind.picture:
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
    """A stretch of text without white space at its ends, where a picture or nothing stands."""
    parts = list(stretch)
    if parts and isinstance(parts[0], Text):
        parts[0] = Text(parts[0].text.lstrip())
    if parts and isinstance(parts[-1], Text):
        parts[-1] = Text(parts[-1].text.rstrip())
    return [part for part in parts if not (isinstance(part, Text) and not part.text)]
