"""Lengths of all segments of a corpus under a model's geometry, as arrays: `sequence.layout` without images.

It must agree with the layout token for token; a test holds every sample against it.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sigma_data.errors import SequenceError
from sigma_data.planning.index import CorpusIndex
from sigma_data.sequence.layout import Geometry, Kind, image_grid, segment_length

Integers = npt.NDArray[np.int64]

_CHUNK = 50_000


@dataclass(frozen=True)
class SegmentTable:
    """The complete layouts of n samples with S segments.

    `first` [n + 1]: a sample's segments are those from its entry to the next. `kind` [S], `length` [S]
    in tokens, delimiters included. `total` [n] tokens; 0 for a sample that cannot be laid out.
    """

    first: Integers
    kind: npt.NDArray[np.uint8]
    length: npt.NDArray[np.int32]
    total: Integers


class SampleShapes(Protocol):
    """How another kind of model than BAGEL's lays out samples, as far as a plan must know.

    Its representation as text must tell it from every other one: a saved position in the data is compared by it.
    """

    @property
    def max_tokens(self) -> int:
        """The most tokens of a sample."""

    def table(self, index: CorpusIndex) -> SegmentTable:
        """Kinds and lengths of the segments of all samples; total 0 for those that cannot be laid out."""

    def why_unfit(self, index: CorpusIndex, row: int) -> str:
        """Why a sample of total 0 cannot be laid out."""


def segment_table(index: CorpusIndex, geometry: Geometry | SampleShapes) -> SegmentTable:
    """The table of a corpus, made chunk by chunk."""
    if not isinstance(geometry, Geometry):
        return geometry.table(index)
    starts = range(0, len(index), _CHUNK)
    chunks = [_chunk(index, geometry, start, min(start + _CHUNK, len(index))) for start in starts]
    kind, length, counts, elongated = (
        np.concatenate([np.zeros(0, dtype), *(chunk[place] for chunk in chunks)])
        for place, dtype in enumerate((np.uint8, np.int32, np.int64, np.bool_))
    )
    first = np.concatenate([[0], np.cumsum(counts)])
    return SegmentTable(first, kind, length, np.where(elongated, 0, sums(length, first)))


def why_unfit(index: CorpusIndex, row: int, total: int, geometry: Geometry | SampleShapes, budget: int) -> str:
    """Why a sample of `total` tokens, as in the table, is in no pack."""
    if row in index.faults:
        return index.faults[row]
    if total:
        return f"it is {total:,} tokens long, and {min(budget, geometry.max_tokens):,} are the most"
    if not isinstance(geometry, Geometry):
        return geometry.why_unfit(index, row)
    images = slice(index.image_first[row], index.image_first[row + 1])
    sides = zip(index.image_width[images].tolist(), index.image_height[images].tolist(), strict=True)
    sizes = dict(zip(index.image_number[images].tolist(), sides, strict=True))
    text_only = bool(index.words_only[row])
    pieces = slice(index.piece_first[row], index.piece_first[row + 1])
    try:
        for piece, image in zip(index.piece_kind[pieces].tolist(), index.piece_image[pieces].tolist(), strict=True):
            for kind in geometry.kinds(text_only=text_only) if piece == Kind.LATENT else (Kind(piece),):
                if kind.image:
                    geometry.fit(kind, sizes[image], asked=len(sizes) if text_only else 0)
    except SequenceError as error:
        return str(error)
    return "there is nothing to lay out"


def sums(values: npt.NDArray[np.int32], first: Integers) -> Integers:
    """[n] the sums of `values` from each entry of `first` [n + 1] to the next."""
    running = np.concatenate([[0], np.cumsum(values, dtype=np.int64)])
    totals: Integers = running[first[1:]] - running[first[:-1]]
    return totals


def _chunk(
    index: CorpusIndex, geometry: Geometry, start: int, stop: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int32], Integers, npt.NDArray[np.bool_]]:
    """Of the samples from `start` to `stop`: kinds and lengths of segments; their number, and whether too elongated."""
    pieces = slice(index.piece_first[start], index.piece_first[stop])
    kind, image = index.piece_kind[pieces], index.piece_image[pieces]
    sample = np.repeat(np.arange(stop - start), np.diff(index.piece_first[start : stop + 1]))
    image_counts = np.diff(index.image_first[start : stop + 1])
    text_only = index.words_only[start:stop]
    both, alone = geometry.kinds(text_only=False), geometry.kinds(text_only=True)

    reference = kind == Kind.LATENT
    copies = np.where(reference, np.where(text_only[sample], len(alone), len(both)), 1)
    of_piece = np.repeat(np.arange(len(kind)), copies)
    nth = np.arange(len(of_piece)) - np.repeat(np.cumsum(copies) - copies, copies)
    shown = np.where(text_only[sample[of_piece]], alone[0], np.where(nth == 0, both[0], both[-1]))
    kinds = np.where(reference[of_piece], shown, kind[of_piece]).astype(np.uint8)
    lengths = index.piece_length[pieces][of_piece].astype(np.int32)
    elongated = np.zeros(stop - start, bool)

    images = slice(index.image_first[start], index.image_first[stop])
    keys = np.repeat(np.arange(stop - start), image_counts) << 16 | index.image_number[images]
    order = np.argsort(keys)
    question = text_only[sample[of_piece]]
    for image_kind, asked in itertools.product((Kind.LATENT, Kind.TARGET, Kind.PATCH), (False, True)):
        these = (kinds == image_kind) & (question == asked)
        if not these.any():
            continue
        rule, side = geometry.rule(image_kind, text_only=asked)
        owner = sample[of_piece[these]]
        found = order[np.searchsorted(keys, owner << 16 | image[of_piece[these]], sorter=order)]
        width, height = index.image_width[images][found], index.image_height[images][found]
        shared = image_counts[owner] if image_kind is Kind.PATCH and asked else 1
        rows, columns = image_grid(rule, *rule.sizes(width, height, shared))
        lengths[these] = segment_length(rows * columns)
        elongated[owner[np.maximum(rows, columns) > side]] = True
    return kinds, lengths, np.bincount(sample[of_piece], minlength=stop - start), elongated
