"""Lengths of a corpus's samples in OmniGen2's layout, as a plan needs them; sizes of images as training shows them.

A sample's length counts all that is computed for it: text, its images' tokens in the language model, reference latents,
the target. Lengths are those of complete samples: what is dropped makes a pack shorter, never longer.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from sigma_data.planning.index import CorpusIndex
from sigma_data.planning.keyed_random import Words, mixed, units
from sigma_data.planning.plan import SampleRandomness
from sigma_data.planning.segment_table import SegmentTable
from sigma_data.sequence.layout import DELIMITERS, Geometry, Kind
from sigma_model.omnigen2.answers import MAX_TOKENS as ANSWER_TOKENS
from sigma_model.omnigen2.config import MAX_REFERENCES, TransformerConfig
from sigma_model.omnigen2.images import TRAINING_TARGET_RULE, SizeRule, training_reference_rule
from sigma_model.omnigen2.prompts import Route

Size = tuple[int, int]

_DROP = 3
"""What a number is drawn for; 1 and 2 are BAGEL's dropout and the noise."""


@dataclass(frozen=True)
class MllmSizes:
    """How Qwen2.5-VL's image processor brings an image to a size: sides in multiples of `factor` pixels."""

    factor: int
    min_pixels: int
    max_pixels: int

    @classmethod
    def of(cls, processor: object) -> MllmSizes:
        """Those of transformers' image processor."""
        size = getattr(processor, "size", {})
        patch, merge = (int(getattr(processor, name)) for name in ("patch_size", "merge_size"))
        return cls(patch * merge, int(size["shortest_edge"]), int(size["longest_edge"]))

    def tokens(self, width: npt.NDArray[np.int64], height: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Tokens of images of these sizes; 0 where one is too elongated (more than 200 : 1)."""
        factor, w, h = self.factor, width.astype(np.float64), height.astype(np.float64)
        across, down = (np.round(side / factor) * factor for side in (w, h))
        area = across * down
        shrink = np.sqrt(w * h / self.max_pixels)
        grow = np.sqrt(self.min_pixels / (w * h))
        large, small = area > self.max_pixels, area < self.min_pixels
        sides = [
            np.where(
                large,
                np.maximum(factor, np.floor(side / shrink / factor) * factor),
                np.where(small, np.ceil(side * grow / factor) * factor, rounded),
            )
            for side, rounded in ((w, across), (h, down))
        ]
        found = (sides[0] / factor * (sides[1] / factor)).astype(np.int64)
        return np.where(np.maximum(w, h) > 200 * np.minimum(w, h), 0, found)


@dataclass(frozen=True)
class Omnigen2Shapes:
    """The layout of samples for a transformer; a plan's geometry. Its fields decide every length."""

    route: Route
    text_tokens: int
    """Of a prompt, images not counted; longer ones are cut."""
    stride: int
    """Pixels of a token's side."""
    max_side: int
    max_pixels: int
    axes: tuple[int, int, int]
    """Positions on each rotary axis."""
    mllm: MllmSizes

    @classmethod
    def of(
        cls,
        config: TransformerConfig,
        *,
        downsample: int,
        mllm: MllmSizes,
        route: Route,
        text_tokens: int,
        max_pixels: int,
    ) -> Omnigen2Shapes:
        """The shapes of a model with these settings; images stay within the positions that it has."""
        stride = config.patch_size * downsample
        side = min(TRAINING_TARGET_RULE.max_side, min(config.axes_lens[1:]) * stride)
        return cls(route, text_tokens, stride, side, max_pixels, config.axes_lens, mllm)

    @property
    def max_tokens(self) -> int:
        """No limit of its own: positions are checked sample by sample."""
        return 2**31 - 1

    def target_size(self, size: Size) -> Size:
        """(width, height) in pixels that a target is brought to."""
        return SizeRule(self.max_pixels, self.max_side, self.stride).size(*size)

    def reference_size(self, size: Size, references: int) -> Size:
        """The same of one of so many references: more of them are smaller."""
        return SizeRule(self.reference_pixels(references), self.max_side, self.stride).size(*size)

    def reference_pixels(self, references: int) -> int:
        """The most pixels of each of so many references."""
        return self.max_pixels * training_reference_rule(references).max_pixels // TRAINING_TARGET_RULE.max_pixels

    def table(self, index: CorpusIndex) -> SegmentTable:
        """Kinds and lengths of all segments; a sample whose images or positions do not fit has no tokens."""
        return _Table(self, index).made()

    def why_unfit(self, index: CorpusIndex, row: int) -> str:
        """Why a sample has no tokens."""
        if row in index.faults:
            return index.faults[row]
        if bool(index.words_only[row]):
            return f"questions and answers take more than {ANSWER_TOKENS:,} tokens, or an image is too elongated"
        return (
            f"its text and images go past the positions that the model has ({', '.join(map(str, self.axes))}), or an "
            "image is too elongated: shorten the text, or crop images"
        )


class _Table:
    """The work of `Omnigen2Shapes.table` on a whole corpus at once."""

    def __init__(self, shapes: Omnigen2Shapes, index: CorpusIndex) -> None:
        self._shapes, self._index = shapes, index
        self._rows = len(index)
        counts = np.diff(index.piece_first)
        self._sample = np.repeat(np.arange(self._rows), counts)
        self._kind = np.asarray(index.piece_kind)
        self._asked = np.asarray(index.words_only)[self._sample]
        images = np.bincount(self._sample[self._kind == Kind.LATENT], minlength=self._rows)
        self._references = images

    def made(self) -> SegmentTable:
        shapes, kind, sample, asked = self._shapes, self._kind, self._sample, self._asked
        reference = kind == Kind.LATENT
        picture = reference | (kind == Kind.TARGET)
        shown = self._references[sample] * shapes.route.shows_images
        words = np.asarray(self._index.piece_length, np.int64) - DELIMITERS
        # A prompt is cut where it is too long. Each image has one place in it, which counts among the image's tokens.
        words = np.where(picture | asked, words, np.minimum(words, shapes.text_tokens) - shown)
        patches, latents, longest = self._image_tokens(reference, picture)
        seen = reference & (asked | shapes.route.shows_images)
        coded = (reference & ~asked & shapes.route.has_latents) | (kind == Kind.TARGET)
        copies = np.where(picture, seen.astype(np.int64) + coded, 1)
        of = np.repeat(np.arange(len(kind)), copies)
        nth = np.arange(len(of)) - np.repeat(np.cumsum(copies) - copies, copies)
        as_patch = seen[of] & (nth == 0)
        kinds = np.where(as_patch, Kind.PATCH, kind[of]).astype(np.uint8)
        lengths = np.where(as_patch, patches[of] - asked[of], np.where(picture[of], latents[of], words[of]))
        first = np.concatenate([[0], np.cumsum(np.bincount(sample[of], minlength=self._rows))])
        total = np.bincount(sample[of], lengths, self._rows).astype(np.int64)
        bad = self._past_positions(words, patches, longest)
        bad |= np.bincount(sample[seen], patches[seen] == 0, self._rows) > 0
        bad |= np.asarray(self._index.words_only) & (total > ANSWER_TOKENS)
        return SegmentTable(first, kinds, lengths.astype(np.int32), np.where(bad, 0, total))

    def _sides(self, picture: npt.NDArray[np.bool_]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """[P] width and height of each piece's image; 1 for text."""
        index = self._index
        counts = np.diff(index.image_first)
        keys = np.repeat(np.arange(self._rows), counts) << 16 | np.asarray(index.image_number)
        order = np.argsort(keys)
        wanted = self._sample[picture] << 16 | np.asarray(index.piece_image)[picture]
        found = order[np.searchsorted(keys, wanted, sorter=order)]
        sides = []
        for column in (index.image_width, index.image_height):
            side = np.ones(len(picture), np.int64)
            side[picture] = np.asarray(column)[found]
            sides.append(side)
        return sides[0], sides[1]

    def _image_tokens(
        self, reference: npt.NDArray[np.bool_], picture: npt.NDArray[np.bool_]
    ) -> tuple[npt.NDArray[np.int64], ...]:
        """[P] tokens of images in the language model, as latents, and the longer side of the latter in tokens."""
        shapes = self._shapes
        width, height = self._sides(picture)
        patches = np.where(reference, shapes.mllm.tokens(width, height), 0)
        most = np.array([shapes.reference_pixels(count) for count in range(MAX_REFERENCES + 1)])
        count = np.minimum(self._references[self._sample], MAX_REFERENCES)
        rule = SizeRule(shapes.max_pixels, shapes.max_side, shapes.stride)
        columns, rows = rule.grids(width, height, np.where(reference, most[count], shapes.max_pixels))
        coded = picture & ~self._asked
        return patches, np.where(coded, rows * columns, 0), np.where(coded, np.maximum(rows, columns), 0)

    def _past_positions(
        self, words: npt.NDArray[np.int64], patches: npt.NDArray[np.int64], longest: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.bool_]:
        """[n] whether text and images stand past the positions there are: text l at (l, l, l), then image by image."""
        shapes, sample, kind = self._shapes, self._sample, self._kind
        text = np.where((kind == Kind.TEXT) & ~self._asked, words, 0)
        if shapes.route.keeps_image_states:
            text = text + np.where(~self._asked, patches, 0)
        text_of = np.bincount(sample, text, self._rows).astype(np.int64)
        before = np.where((kind == Kind.LATENT) & shapes.route.has_latents, longest, 0)
        last = text_of + np.bincount(sample, before, self._rows).astype(np.int64)
        beyond: npt.NDArray[np.bool_] = (last >= shapes.axes[0]) | (text_of > min(shapes.axes))
        return beyond & ~np.asarray(self._index.words_only)


@dataclass(frozen=True)
class Omnigen2Randomness(SampleRandomness):
    """What is dropped of a sample: the prompt, and where that is dropped, all references; never these alone.

    `dropout.text` and `dropout.latent` are the two rates, `openings` that of captions' openings. Plans count complete
    samples, so nothing is dropped there.
    """

    openings: float = 0.0

    def drops(
        self,
        name: Words,
        round: npt.NDArray[np.int32] | int,
        segment: npt.NDArray[np.int64],
        kind: npt.NDArray[np.uint8],
        words_only: npt.NDArray[np.bool_] | bool,
    ) -> npt.NDArray[np.bool_]:
        """Nothing: a dropped prompt still is a text, and a plan need not know."""
        return np.zeros(len(kind), np.bool_)

    def dropped(self, index: CorpusIndex, row: int, round: int, geometry: Geometry | None = None) -> tuple[int, ...]:
        """Nothing, as in `drops`."""
        return ()

    def conditions(self, index: CorpusIndex, row: int, round: int) -> tuple[bool, bool]:
        """Whether the prompt of a sample is dropped, and whether its references are."""
        prompt = self._chance(index, row, round, 0) < self.dropout.text
        return prompt, prompt and self._chance(index, row, round, 1) < self.dropout.latent

    def drops_opening(self, index: CorpusIndex, row: int, round: int) -> bool:
        """Whether the caption of a sample without references loses its opening, if it has one."""
        return self._chance(index, row, round, 2) < self.openings

    def _chance(self, index: CorpusIndex, row: int, round: int, part: int) -> float:
        """A number in [0, 1) of its own for each decision."""
        return float(units(mixed(self.seed, _DROP, round, index.name(row), np.array([part])))[0])
