"""A corpus prepared for training: what planning and reading need of every sample, as memory-mapped arrays.

Made once from the manifest and a tokenizer, and kept in the corpus (in a cache folder, where the corpus
is remote or read-only): so a plan knows all lengths before an image is read, and a worker finds a
sample's bytes without a manifest in its memory.
"""

from __future__ import annotations

import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sigma_data.corpus.corpus import INDEXES, MANIFEST, Corpus, open_corpus
from sigma_data.corpus.places import copy_folder
from sigma_data.errors import CorpusError, SourceError, reason_of
from sigma_data.planning.index_writer import Outline, Progress, TextCounter, write_arrays
from sigma_data.planning.keyed_random import Words, name_of, names
from sigma_data.sequence.layout import outline as segments_outline
from sigma_data.storage.data_folder import data_folder
from sigma_data.storage.paths import path_or_uri

_VERSION = 1
_META = "index.json"


@dataclass(frozen=True)
class CorpusIndex:
    """The arrays of a corpus with n samples, I images and P pieces; open it with `open_index`.

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

    @cached_property
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
        return np.array([name_of(bytes(self.ids[row]))], np.uint64)

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
        """[n + 1] a sample's images are those from its entry to the next."""
        return self._array("image_first")

    @cached_property
    def image_number(self) -> npt.NDArray[np.int16]:
        """[I] the image's number in its sample; references first, then targets."""
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
        """[I] where the image starts in its shard."""
        return self._array("image_offset")

    @cached_property
    def image_size(self) -> npt.NDArray[np.int64]:
        """[I] bytes of the image."""
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
        """[P] number of the image; 0 for text."""
        return self._array("piece_image")

    @cached_property
    def piece_length(self) -> npt.NDArray[np.int32]:
        """[P] tokens of a text with its delimiters; 0 for an image, whose tokens depend on the model."""
        return self._array("piece_length")

    @cached_property
    def words_only(self) -> npt.NDArray[np.bool_]:
        """[n] whether the sample has no image to produce."""
        return self._array("words_only")


def open_index(
    uri: str,
    tokenizer: TextCounter,
    *,
    cache: Path | None = None,
    progress: Progress = lambda done, total: None,
    outline: Outline = segments_outline,
) -> CorpusIndex:
    """The index of a corpus for a tokenizer: the one kept with it, or a new one.

    The `digest` of the tokenizer must tell it from one with another `outline`.
    `cache` is where the index of a remote or read-only corpus is kept, with a copy of its manifest;
    by default `$SIGMA_CACHE`, or `~/.cache/sigma`. Raises CorpusError where there is no sound corpus.
    """
    uri = path_or_uri(uri)
    kept = copy_folder(uri, cache)
    local = data_folder(uri).local
    corpus = _fetched(uri, kept) if local is None else open_corpus(local)
    digest = corpus.commit["files"][MANIFEST]["sha256"]
    key = hashlib.sha256(f"{_VERSION} {digest} {tokenizer.digest}".encode()).hexdigest()[:16]
    places = [folder / INDEXES / key for folder in ([kept] if local is None else [corpus.path, kept])]
    for place in places:
        if _is_whole(place):
            if _names_shards_of(place, corpus):
                return CorpusIndex(place, uri)
            shutil.rmtree(place, ignore_errors=True)
    place = next((place for place in places if os.access(_existing(place), os.W_OK)), places[-1])
    _build(corpus, digest, tokenizer, place, progress, outline)
    return CorpusIndex(place, uri)


def _names_shards_of(place: Path, corpus: Corpus) -> bool:
    """Whether an index speaks of the committed shards: it lies in a folder that anybody may have sent."""
    meta = CorpusIndex(place, "").meta
    sizes = [int(corpus.shards[name]["bytes"]) for name in sorted(corpus.shards)]
    return bool(meta.get("shards") == sorted(corpus.shards) and meta.get("shard_bytes") == sizes)


def _fetched(uri: str, copy: Path) -> Corpus:
    """A remote corpus with a local copy of its manifest. Raises CorpusError."""
    try:
        corpus = open_corpus(uri, copy=copy)
        next(corpus.manifest_batches(["id"], 1), None)
    except (OSError, SourceError, CorpusError) as error:
        raise CorpusError(f"{uri}: cannot be read as a corpus ({reason_of(error)})") from None
    return corpus


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above that is there."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def _is_whole(place: Path) -> bool:
    """Whether an index lies there, and every file of it is as long as when it was written."""
    try:
        files = json.loads((place / _META).read_text("utf-8"))["files"]
        return all((place / name).stat().st_size == size for name, size in files.items())
    except (OSError, ValueError, KeyError):
        return False


def _build(
    corpus: Corpus, digest: str, tokenizer: TextCounter, place: Path, progress: Progress, outline: Outline
) -> None:
    """Write the index into a folder beside `place`, then rename it; whoever comes first wins."""
    scratch = place.with_name(f".{place.name}.{secrets.token_hex(4)}")
    try:
        scratch.mkdir(parents=True)
        meta = write_arrays(corpus, tokenizer, scratch, progress, outline=outline)
        files = {path.name: path.stat().st_size for path in sorted(scratch.iterdir())}
        meta |= {"version": _VERSION, "manifest": digest, "tokenizer": tokenizer.digest, "files": files}
        (scratch / _META).write_text(json.dumps(meta, ensure_ascii=False), "utf-8")
        _put(scratch, place)
    except OSError as error:
        if not _is_whole(place):
            raise CorpusError(f"{place.parent}: the index cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    # What killed builds have left. One that is still running will fail, and find that the index is there.
    for litter in place.parent.glob(f".{place.name}.*"):
        shutil.rmtree(litter, ignore_errors=True)


def _put(scratch: Path, place: Path) -> None:
    """Rename a folder into its place, unless a whole index is there already."""
    try:
        scratch.rename(place)
    except OSError:
        if _is_whole(place):
            return
        shutil.rmtree(place)  # half a copy, say, of an index that was once whole
        scratch.rename(place)
