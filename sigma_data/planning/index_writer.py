"""Manifest -> the arrays of an index: one pass in chunks, so that memory does not grow with the corpus.

All but the texts are columns that go over as they are; each sample's texts become the pieces of
`sequence.outline`, and each piece a number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from sigma_data.corpus.corpus import MANIFEST, Corpus
from sigma_data.errors import CorpusError, SequenceError
from sigma_data.instruction import Text
from sigma_data.sample import Family, Turn
from sigma_data.sequence.layout import Piece, outline, segment_length, targets_of

if TYPE_CHECKING:
    import pyarrow as pa

Progress = Callable[[int, int], None]
"""Told how many samples are done, and how many there are."""

Outline = Callable[[Sequence[Turn], Collection[int]], Iterable[Piece]]
"""A sample's content in order, from its turns and the numbers of its images; raises SequenceError."""


class TextCounter(Protocol):
    """What an index asks of a model's tokenizer; `digest` says which it is."""

    @property
    def digest(self) -> str: ...

    def count_many(self, texts: Iterable[str]) -> list[int]:
        """How many ids each text has."""


_CHUNK = 4096
_ROW = ("id", "family", "split", "shard", "json_offset", "json_size")
_IMAGE = ("number", "width", "height", "offset", "size")
_TURN = ("instruction", "target", "response")
_COLUMNS = (*_ROW, *(f"images.list.element.{name}" for name in _IMAGE), "turns")
_DTYPES: Mapping[str, str] = {
    "families": "u1", "splits": "u1", "shard": "i4", "json_offset": "i8", "json_size": "i8",
    "image_first": "i8", "image_number": "i2", "image_width": "i4", "image_height": "i4", "image_offset": "i8",
    "image_size": "i8", "piece_first": "i8", "piece_kind": "u1", "piece_image": "i2", "piece_length": "i4",
    "words_only": "?",
}  # fmt: skip
"""All arrays but `ids`, which is as wide as the longest id; `sigma_data.planning.index` says what they hold."""


def write_arrays(
    corpus: Corpus, tokenizer: TextCounter, folder: Path, progress: Progress, *, outline: Outline = outline
) -> dict[str, Any]:
    """Write the arrays of a `sigma_data.planning.index.CorpusIndex` into a folder; returns what of it is no array.

    Raises CorpusError where the manifest is not the committed one, or holds what no build writes.
    """
    path = corpus.path / MANIFEST
    shards, splits = sorted(corpus.shards), sorted(corpus.sums["splits"])
    shard_bytes = [int(corpus.shards[name]["bytes"]) for name in shards]
    faults: dict[int, str] = {}
    row, total = 0, int(corpus.sums["written"])
    with ExitStack() as stack:
        dtypes = {"ids": f"S{_longest_id(corpus)}", **_DTYPES}
        arrays = {name: stack.enter_context(_Array(folder / f"{name}.npy", dtype)) for name, dtype in dtypes.items()}
        progress(0, total)
        arrays["image_first"].append([0])
        arrays["piece_first"].append([0])
        for batch in corpus.manifest_batches(_COLUMNS, _CHUNK):
            counts, images = _flattened(batch, "images")
            turn_counts, turns = _flattened(batch, "turns")
            asked = (Turn(*turn) for turn in zip(*(turns[name].to_pylist() for name in _TURN), strict=True))
            numbers = iter(images["number"].to_pylist())
            samples = (
                (list(islice(asked, turn_count)), list(islice(numbers, image_count)))
                for turn_count, image_count in zip(turn_counts.tolist(), counts.tolist(), strict=True)
            )
            pieces = _pieces(samples, tokenizer, outline)
            faults |= {row + place: reason for place, reason in pieces.faults.items()}
            made: dict[str, npt.ArrayLike] = {
                "ids": [text.encode() for text in batch["id"].to_pylist()],
                "families": _numbered(batch, "family", list(Family), path),
                "splits": _numbered(batch, "split", splits, path),
                "shard": _numbered(batch, "shard", shards, path),
                "json_offset": batch["json_offset"].to_numpy(), "json_size": batch["json_size"].to_numpy(),
                "image_first": arrays["image_number"].length + np.cumsum(counts),
                "piece_first": arrays["piece_kind"].length + np.cumsum(pieces.counts),
                **{f"image_{name}": images[name].to_numpy() for name in _IMAGE},
                "piece_kind": pieces.kinds, "piece_image": pieces.images, "piece_length": pieces.lengths,
                "words_only": pieces.words_only,
            }  # fmt: skip
            columns = {name: np.asarray(value, arrays[name].dtype) for name, value in made.items()}
            _refuse_odd_places(columns, counts, shard_bytes, path)
            for name, column in columns.items():
                arrays[name].append(column)
            row += len(counts)
            progress(row, total)
    return {"shards": shards, "shard_bytes": shard_bytes, "splits": splits, "faults": faults}


class _Array:
    """An .npy file that grows at its end; use as a context manager."""

    def __init__(self, path: Path, dtype: str) -> None:
        self.dtype = np.dtype(dtype)
        self.length = 0
        self._file = path.open("wb")

    def __enter__(self) -> Self:
        self._write_header()
        return self

    def append(self, values: npt.ArrayLike) -> None:
        array = np.asarray(values, self.dtype)
        self._file.write(array.tobytes())
        self.length += len(array)

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with self._file:
            if kind is None:
                self._file.seek(0)
                self._write_header()

    def _write_header(self) -> None:
        # numpy pads the header so that a length of any size can be written over the first.
        described = np.lib.format.dtype_to_descr(self.dtype)
        header = {"descr": described, "fortran_order": False, "shape": (self.length,)}
        np.lib.format.write_array_header_1_0(self._file, header)


def _longest_id(corpus: Corpus) -> int:
    """Bytes of the longest id."""
    import pyarrow.compute as pc

    batches = corpus.manifest_batches(["id"], _CHUNK)
    return max((pc.max(pc.binary_length(batch["id"])).as_py() for batch in batches if len(batch)), default=1)


def _numbered(batch: pa.RecordBatch, column: str, names: Sequence[str], path: Path) -> npt.NDArray[Any]:
    """Where in `names` each value of a column stands."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found = pc.index_in(batch[column], value_set=pa.array([str(name) for name in names], pa.string()))
    if found.null_count:
        raise CorpusError(f"{path}: names a {column} that the commit does not; run sigma validate")
    numbers: npt.NDArray[Any] = found.to_numpy()
    return numbers


def _flattened(batch: pa.RecordBatch, column: str) -> tuple[npt.NDArray[np.int32], dict[str, pa.Array]]:
    """Of a column of lists: how many entries each row has, and the fields of all entries, one behind another."""
    import pyarrow.compute as pc

    entries = batch[column].flatten()
    fields = dict(zip([field.name for field in entries.type], entries.flatten(), strict=True))
    counts: npt.NDArray[np.int32] = pc.list_value_length(batch[column]).to_numpy()
    return counts, fields


def _outlined(turns: Sequence[Turn], images: Sequence[int], outline: Outline) -> Sequence[Piece] | str:
    """The outline of a sample's turns and numbers of images, or why there is none."""
    if len(set(images)) != len(images):
        return "two images have one number"
    if any((turn.target is None) == (turn.response is None) for turn in turns):
        return "a turn must have either an image or a text as its answer"
    try:
        return list(outline(turns, images))
    except SequenceError as error:
        return str(error)


@dataclass(frozen=True)
class _Pieces:
    """Of some samples: how many pieces each has, whether it is answered in words alone, faults by place.

    Of all pieces, one behind another: kind, image, and tokens.
    """

    counts: list[int]
    words_only: list[bool]
    faults: dict[int, str]
    kinds: list[int]
    images: list[int]
    lengths: npt.NDArray[np.int64]


def _pieces(
    samples: Iterable[tuple[Sequence[Turn], Sequence[int]]], tokenizer: TextCounter, outline: Outline
) -> _Pieces:
    """Outlines as columns, of (turns, numbers of images). A text that occurs several times is counted once.

    The turns have no bindings, which change no length.
    """
    lengths: list[int] = []  # first without texts: delimiters and attribute tokens
    texts: dict[str, int] = {}
    of_piece: list[int] = []  # for each stretch of text, its piece,
    of_text: list[int] = []  # and its number in `texts`
    found = _Pieces([], [], {}, [], [], np.zeros(0, np.int64))
    for place, (turns, images) in enumerate(samples):
        outlined = _outlined(turns, images, outline)
        if isinstance(outlined, str):
            found.faults[place] = outlined
            outlined = ()
        found.counts.append(len(outlined))
        found.words_only.append(not targets_of(turns))
        for piece in outlined:
            length = 0 if piece.kind.image else segment_length(0)
            for part in piece.parts:
                # Neighbouring texts do not occur in an outline, so each is counted by itself, as the layout does.
                if isinstance(part, Text):
                    of_piece.append(len(lengths))
                    of_text.append(texts.setdefault(part.text, len(texts)))
                else:
                    length += 1
            found.kinds.append(piece.kind)
            found.images.append(piece.image)
            lengths.append(length)
    total = np.array(lengths, np.int64)
    np.add.at(total, np.array(of_piece, np.int64), np.array(tokenizer.count_many(texts), np.int64)[of_text])
    return replace(found, lengths=total)


def _refuse_odd_places(
    columns: Mapping[str, npt.NDArray[Any]], counts: npt.NDArray[np.int32], shard_bytes: Sequence[int], path: Path
) -> None:
    """Raise CorpusError for offsets that lead out of their shards, and for images without a size."""
    room = np.array(shard_bytes, np.int64)[columns["shard"]]
    for offset, size, end in (
        (columns["json_offset"], columns["json_size"], room),
        (columns["image_offset"], columns["image_size"], np.repeat(room, counts)),
    ):
        # Subtracted, not added: the sum of two forged numbers can wrap around.
        if ((offset < 0) | (size < 0) | (size > end) | (offset > end - size)).any():
            raise CorpusError(f"{path}: has offsets or sizes that its shards do not have; run sigma validate")
    if any((columns[f"image_{name}"] < 1).any() for name in ("number", "width", "height")):
        raise CorpusError(f"{path}: has images without a size or a number; run sigma validate")
