"""A corpus prepared for training: what planning and reading need of every sample, as memory-mapped arrays.

Made once from the manifest and a tokenizer, and kept in the corpus (in a cache folder, where the corpus
is remote or read-only): so a plan knows all lengths before a picture is read, and a worker finds a
sample's bytes without a manifest in its memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from sigma_data.chance import Words, names
from sigma_data.corpus import COMMIT, INDEXES, MANIFEST, Corpus, file_digest, open_corpus
from sigma_data.errors import CorpusError, SequenceError, SourceError
from sigma_data.files import Place, with_temporary, write_atomic
from sigma_data.instruction import Text
from sigma_data.sample import Family, Image, Sample, Source, Turn
from sigma_data.sequence import Kind, Piece, outline
from sigma_data.text import TextEncoder

_VERSION = 1
_META = "index.json"
_FAMILIES = list(Family)
_CHUNK = 20_000
_COLUMNS = (
    "id", "family", "split", "shard", "json_offset", "json_size", "turns",
    *(f"images.list.element.{name}" for name in ("number", "width", "height", "size", "offset")),
)  # fmt: skip
_DTYPES: Mapping[str, str] = {
    "ids": "S", "families": "u1", "splits": "u1", "shard": "i4", "json_offset": "i8", "json_size": "i8",
    "image_first": "i8", "image_number": "i2", "image_width": "i4", "image_height": "i4", "image_offset": "i8",
    "image_size": "i8", "piece_first": "i8", "piece_kind": "u1", "piece_image": "i2", "piece_length": "i4",
    "words_only": "?",
}  # fmt: skip

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class CorpusIndex:
    """The arrays of a corpus with n samples, I pictures and P pieces; open it with `open_index`.

    Pickles as its folder, so that workers map the same pages. Pieces are those of `sequence.outline`.
    """

    folder: Path
    uri: str
    """Where the shards lie: a local folder, or an fsspec URI."""

    @cached_property
    def meta(self) -> Mapping[str, Any]:
        """What is not an array: shard names, splits, faults, digests."""
        meta: Mapping[str, Any] = json.loads((self.folder / _META).read_text("utf-8"))
        return meta

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> tuple[Path, str]:
        return self.folder, self.uri

    def __setstate__(self, state: tuple[Path, str]) -> None:
        object.__setattr__(self, "folder", state[0])
        object.__setattr__(self, "uri", state[1])

    @property
    def digest(self) -> str:
        """SHA-256 of the manifest."""
        digest: str = self.meta["manifest"]
        return digest

    @property
    def shards(self) -> Sequence[str]:
        """Names of the shards inside the corpus."""
        shards: Sequence[str] = self.meta["shards"]
        return shards

    @property
    def shard_bytes(self) -> Sequence[int]:
        """Their committed sizes."""
        sizes: Sequence[int] = self.meta["shard_bytes"]
        return sizes

    @property
    def faults(self) -> Mapping[int, str]:
        """Row -> why the sample cannot be laid out."""
        return {int(row): reason for row, reason in self.meta["faults"].items()}

    def _array(self, name: str) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return array

    @cached_property
    def ids(self) -> npt.NDArray[np.bytes_]:
        """[n] sample ids."""
        return self._array("ids")

    @cached_property
    def names(self) -> Words:
        """[n] a word for each id, from which all its random choices come."""
        return names(np.asarray(self.ids))

    def name(self, row: int) -> Words:
        """[1] the word of one sample; a loader worker needs no others."""
        return names(np.asarray(self.ids[row : row + 1]))

    @cached_property
    def families(self) -> npt.NDArray[np.uint8]:
        """[n] numbers in the order of `Family`."""
        return self._array("families")

    @cached_property
    def splits(self) -> npt.NDArray[np.uint8]:
        """[n] numbers in `meta["splits"]`."""
        return self._array("splits")

    @cached_property
    def shard(self) -> npt.NDArray[np.int32]:
        """[n] numbers in `shards`."""
        return self._array("shard")

    @cached_property
    def json_offset(self) -> npt.NDArray[np.int64]:
        """[n] where the record starts in its shard."""
        return self._array("json_offset")

    @cached_property
    def json_size(self) -> npt.NDArray[np.int64]:
        """[n] bytes of the record."""
        return self._array("json_size")

    @cached_property
    def image_first(self) -> npt.NDArray[np.int64]:
        """[n + 1] a sample's pictures are those from its entry to the next."""
        return self._array("image_first")

    @cached_property
    def image_number(self) -> npt.NDArray[np.int16]:
        """[I] the picture's number in its sample; references first, then targets."""
        return self._array("image_number")

    @cached_property
    def image_width(self) -> npt.NDArray[np.int32]:
        """[I] pixels, upright."""
        return self._array("image_width")

    @cached_property
    def image_height(self) -> npt.NDArray[np.int32]:
        """[I] pixels, upright."""
        return self._array("image_height")

    @cached_property
    def image_offset(self) -> npt.NDArray[np.int64]:
        """[I] where the picture starts in its shard."""
        return self._array("image_offset")

    @cached_property
    def image_size(self) -> npt.NDArray[np.int64]:
        """[I] bytes of the picture."""
        return self._array("image_size")

    @cached_property
    def piece_first(self) -> npt.NDArray[np.int64]:
        """[n + 1] a sample's pieces are those from its entry to the next; one at fault has none."""
        return self._array("piece_first")

    @cached_property
    def piece_kind(self) -> npt.NDArray[np.uint8]:
        """[P] `Kind` of each piece."""
        return self._array("piece_kind")

    @cached_property
    def piece_image(self) -> npt.NDArray[np.int16]:
        """[P] number of the picture; 0 for text."""
        return self._array("piece_image")

    @cached_property
    def piece_length(self) -> npt.NDArray[np.int32]:
        """[P] tokens of a text with its delimiters; 0 for a picture, whose tokens depend on the model."""
        return self._array("piece_length")

    @cached_property
    def words_only(self) -> npt.NDArray[np.bool_]:
        """[n] whether the sample has no picture to produce."""
        return self._array("words_only")


def open_index(
    uri: str, encoder: TextEncoder, *, cache: Path | None = None, progress: Progress = lambda done, total: None
) -> CorpusIndex:
    """The index of a corpus for a tokenizer: the one kept with it, or a new one.

    `cache` is where the index of a remote or read-only corpus is kept, with a copy of its manifest;
    by default `$SIGMA_CACHE`, or `~/.cache/sigma`. Raises CorpusError where there is no sound corpus.
    """
    corpus, writable = _opened(uri, cache)
    digest = corpus.commit["files"][MANIFEST]["sha256"]
    key = hashlib.sha256(f"{_VERSION} {digest} {encoder.digest}".encode()).hexdigest()[:16]
    place = (corpus.path if writable else _cache_of(uri, cache)) / INDEXES / key
    index = CorpusIndex(place, uri)
    if not (place / _META).is_file():
        _build(corpus, digest, encoder, place, progress)
    return index


def _opened(uri: str, cache: Path | None) -> tuple[Corpus, bool]:
    """The corpus (of a remote one, commit and manifest in a local copy), and whether one may write into it."""
    place = Place(uri)
    if place.local is not None:
        corpus = open_corpus(place.local)
        return corpus, os.access(corpus.path, os.W_OK)
    copy = _cache_of(uri, cache)
    copy.mkdir(parents=True, exist_ok=True)
    try:
        with place.open(COMMIT) as file:
            write_atomic(copy / COMMIT, file.read())
        corpus = open_corpus(copy)
        entry = corpus.commit["files"][MANIFEST]
        manifest = copy / MANIFEST
        if not manifest.is_file() or file_digest(manifest) != (entry["bytes"], entry["sha256"]):
            with place.open(MANIFEST) as file:
                with_temporary(manifest, lambda temporary: _copy(file, temporary))
    except (OSError, SourceError) as error:
        raise CorpusError(f"{uri}: cannot be read as a corpus ({error})") from None
    return corpus, False


def _copy(file: IO[bytes], path: Path) -> None:
    with path.open("wb") as copy:
        shutil.copyfileobj(file, copy, 2**20)


def _cache_of(uri: str, cache: Path | None) -> Path:
    root = cache or Path(os.environ.get("SIGMA_CACHE") or "~/.cache/sigma").expanduser()
    full = uri if Place(uri).remote else str(Path(uri).resolve())
    return root / "corpora" / hashlib.sha256(full.encode()).hexdigest()[:16]


def _build(corpus: Corpus, digest: str, encoder: TextEncoder, place: Path, progress: Progress) -> None:
    """Write the index into a folder beside `place`, then rename it; whoever comes first wins."""
    scratch = place.with_name(f".{place.name}.{os.getpid()}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        scratch.mkdir(parents=True)
        meta = _write_arrays(corpus, encoder, scratch, progress)
        meta |= {"version": _VERSION, "manifest": digest, "tokenizer": encoder.digest}
        (scratch / _META).write_text(json.dumps(meta, ensure_ascii=False), "utf-8")
        try:
            scratch.rename(place)
        except OSError:
            if not (place / _META).is_file():
                raise
    except OSError as error:
        raise CorpusError(f"{place.parent}: the index cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _write_arrays(corpus: Corpus, encoder: TextEncoder, folder: Path, progress: Progress) -> dict[str, Any]:
    """All arrays, chunk by chunk, so that memory does not grow with the corpus; returns the metadata."""
    shards = sorted(corpus.shards)
    numbers = {name: number for number, name in enumerate(shards)}
    sizes = [int(corpus.shards[name]["bytes"]) for name in shards]
    splits = sorted(corpus.commit["sums"]["splits"])
    total = int(corpus.sums["written"])
    arrays: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in _DTYPES}
    faults: dict[int, str] = {}
    images = pieces = row = 0
    for name in ("image_first", "piece_first"):
        arrays[name].append(np.zeros(1, np.int64))
    for chunk in _chunks(corpus):
        if not {*chunk["shard"]} <= numbers.keys() or not {*chunk["split"]} <= {*splits}:
            raise CorpusError(f"{corpus.path / MANIFEST}: names shards or splits that the commit does not")
        outlines = [_outlined(record, turns) for record, turns in zip(chunk["images"], chunk["turns"], strict=True)]
        faults |= {row + place: found for place, found in enumerate(outlines) if isinstance(found, str)}
        found = _pieces([[] if isinstance(one, str) else one for one in outlines], encoder)
        counts = [len(record) for record in chunk["images"]]
        flat = [image for record in chunk["images"] for image in record]
        values: dict[str, Any] = {
            "ids": np.array([text.encode() for text in chunk["id"]]),
            "families": [_FAMILIES.index(Family(name)) for name in chunk["family"]],
            "splits": [splits.index(name) for name in chunk["split"]],
            "shard": [numbers[name] for name in chunk["shard"]],
            "json_offset": chunk["json_offset"], "json_size": chunk["json_size"],
            "image_first": images + np.cumsum(counts), "piece_first": pieces + np.cumsum(found.counts),
            "image_number": [image["number"] for image in flat], "image_width": [image["width"] for image in flat],
            "image_height": [image["height"] for image in flat], "image_offset": [image["offset"] for image in flat],
            "image_size": [image["size"] for image in flat],
            "piece_kind": found.kinds, "piece_image": found.images, "piece_length": found.lengths,
            "words_only": [all(turn["target"] is None for turn in turns) for turns in chunk["turns"]],
        }  # fmt: skip
        made = {
            name: np.asarray(value) if name == "ids" else np.asarray(value, _DTYPES[name])
            for name, value in values.items()
        }
        _refuse_outside(made, np.repeat(made["shard"], counts), sizes, corpus.path / MANIFEST)
        for name, array in made.items():
            arrays[name].append(array)
        images, pieces, row = images + len(flat), pieces + len(found.kinds), row + len(counts)
        progress(row, total)
    for name in _DTYPES:
        parts = arrays.pop(name)
        np.save(folder / f"{name}.npy", np.concatenate(parts) if parts else np.zeros(0, _DTYPES[name]))
    return {"shards": shards, "shard_bytes": sizes, "splits": splits, "faults": faults}


def _chunks(corpus: Corpus) -> Iterator[dict[str, list[Any]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = corpus.path / MANIFEST
    entry = corpus.commit["files"][MANIFEST]
    try:
        # Before a reader sees it: damage would make it fail in many ways, or not at all.
        if file_digest(path) != (entry["bytes"], entry["sha256"]):
            raise CorpusError(f"{path}: is not the file that was committed; run sigma validate")
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(_CHUNK, columns=list(_COLUMNS), use_threads=False):
                yield batch.to_pydict()
    except (OSError, pa.ArrowException) as error:
        raise CorpusError(f"{path}: cannot be read ({str(error).splitlines()[0][:200]}); run sigma validate") from None


def _outlined(images: Sequence[Mapping[str, Any]], turns: Sequence[Mapping[str, Any]]) -> list[Piece] | str:
    """The outline of a row, or why there is none. Bindings are not in a manifest and change no length."""
    sample = Sample(
        id="",
        family=Family.EDITING,
        images=tuple(Image(number, None) for number in sorted(image["number"] for image in images)),
        turns=tuple(Turn(turn["instruction"], turn["target"], turn["response"]) for turn in turns),
        source=Source("", "", 0),
    )
    known = {image.number for image in sample.images}
    if missing := [number for number in sample.targets if number not in known]:
        return f"picture {missing[0]} is to be made, and it is not there"
    try:
        return list(outline(sample))
    except SequenceError as error:
        return str(error)


@dataclass(frozen=True)
class _Pieces:
    counts: list[int]
    kinds: list[int]
    images: list[int]
    lengths: list[int]


def _pieces(outlines: Sequence[Sequence[Piece]], encoder: TextEncoder) -> _Pieces:
    """Outlines as columns. Texts that occur several times are encoded once."""
    texts: dict[str, int] = {}
    for pieces in outlines:
        for piece in pieces:
            for part in piece.parts:
                if isinstance(part, Text):
                    texts[part.text] = 0
    texts = dict(zip(texts, encoder.count_many(texts), strict=True))
    found = _Pieces([], [], [], [])
    for pieces in outlines:
        found.counts.append(len(pieces))
        for piece in pieces:
            found.kinds.append(int(piece.kind))
            found.images.append(piece.image)
            # Neighbouring texts do not occur in an outline, so each is encoded by itself, as the layout does.
            tokens = sum(texts[part.text] if isinstance(part, Text) else 1 for part in piece.parts)
            found.lengths.append(tokens + 2 if piece.kind in (Kind.TEXT, Kind.ANSWER) else 0)
    return found


def _refuse_outside(
    made: Mapping[str, npt.NDArray[Any]], shard_of_image: npt.NDArray[np.int32], sizes: Sequence[int], path: Path
) -> None:
    """Offsets that lead out of their shards, and pictures without a size."""
    room = np.array(sizes, np.int64)
    for offset, size, shard in (
        (made["json_offset"], made["json_size"], made["shard"]),
        (made["image_offset"], made["image_size"], shard_of_image),
    ):
        if ((offset < 0) | (size < 0) | (offset + size > room[shard])).any():
            raise CorpusError(f"{path}: has offsets or sizes that its shards do not have; run sigma validate")
    if (made["image_width"] < 1).any() or (made["image_height"] < 1).any() or (made["image_number"] < 1).any():
        raise CorpusError(f"{path}: has pictures without a size or a number; run sigma validate")
