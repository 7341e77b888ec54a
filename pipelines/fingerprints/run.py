"""Fingerprints of all images at a place: a corpus, a folder of images, parquet files or tars, or a source.

A benchmark's layout does not matter here: every image is taken, references and answers, from whatever column it is in.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from pipelines.common.progress import ProgressBar
from sigma_data.corpus.corpus import COMMIT, open_corpus
from sigma_data.errors import ConfigError, SourceError, reason_of
from sigma_data.images.decode import ImageFault, probe
from sigma_data.images.fingerprint_file import Fingerprint, write_fingerprints
from sigma_data.images.formats import sniff
from sigma_data.sample import Sample
from sigma_data.sources import names, open_source
from sigma_data.sources.parquet import Refused, group_rows, open_parquet, stream_rows
from sigma_data.storage.data_folder import data_folder
from sigma_data.storage.files import disk_error
from sigma_data.storage.paths import home, is_uri

_IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_TARS = (".tar", ".tar.gz", ".tgz")
_MOST_BYTES = 256 * 2**20
"""Largest member of a tar that is read."""

Named = tuple[str, bytes | None]  # name of an image, its bytes


@dataclass(frozen=True)
class Collected:
    """What was written: `images` were seen, `different` are in the file, `unreadable` could not be decoded."""

    images: int
    different: int
    unreadable: int
    first_unreadable: str = ""


def write_benchmark_fingerprints(paths: Sequence[str], out: Path, *, split: str | None = None) -> Collected:
    """Write the fingerprints of all images at these places; of corpora with `split` only those of that split.

    Raises ConfigError for a place that holds no image, SourceError or CorpusError for one that cannot be read.
    """
    prints: list[Fingerprint] = []
    broken: list[str] = []
    for path in paths:
        before = len(prints)
        source = _is_source(path)
        if not source and data_folder(path).exists(COMMIT):
            prints += _of_corpus(path, split)
        elif split is not None:
            raise ConfigError(f"{path}: is not a corpus and has no splits: leave --split out")
        else:
            with ProgressBar("read", None, "images") as progress:
                for name, data in _of_source(path) if source else _images(path):
                    try:
                        info = probe(data)
                    except ImageFault as fault:
                        broken.append(f"{name}: {fault.message}")
                    else:
                        prints.append(Fingerprint(info.sha256, info.signature, name))
                    progress.add()
        if len(prints) == before:
            raise ConfigError(
                f"{path}: has no image that can be read: give a corpus, a folder of images, parquet files or tars, "
                "or a source, e.g. release:DIR"
            )
    try:
        different = write_fingerprints(out, prints)
    except OSError as error:
        raise disk_error(error, out) from None
    return Collected(len(prints), different, len(broken), broken[0] if broken else "")


def _of_corpus(path: str, split: str | None) -> list[Fingerprint]:
    """Those of a corpus, from its manifest."""
    corpus = open_corpus(home(path))
    name = path.rstrip("/").rpartition("/")[2]
    if split is not None and split not in corpus.sums["splits"]:
        raise ConfigError(f"{path}: has no split {split!r}, only {', '.join(corpus.sums['splits'])}")
    return [
        Fingerprint(image["sha256"], image["signature"], f"{name}:{row['id']}:{image['member']}")
        for row in corpus.manifest.select("id", "split", "images").iter_rows(named=True)
        if split in (None, row["split"])
        for image in row["images"]
    ]


def _is_source(path: str) -> bool:
    """Whether this is the string of a source: hf:/a/folder is one, hf://datasets/a/b a place in a store."""
    return path.partition(":")[0] in names() and not is_uri(path) and not Path(path).exists()


def _images(path: str) -> Iterator[Named]:
    folder = data_folder(path)
    if folder.local is not None and not folder.local.exists():
        raise ConfigError(f"{path}: no such file or folder")
    base = path.rstrip("/").rsplit("/", 1)[-1]
    for location, stamp in folder.files(""):
        name = f"{base}/{location}" if location != base else base
        lower = location.lower()
        if lower.endswith((*_IMAGES, ".parquet", *_TARS)):
            with folder.open(location) as file:
                if lower.endswith(".parquet"):
                    yield from _of_parquet(file, name, stamp)
                elif lower.endswith(_TARS):
                    yield from _of_tar(file, name)
                else:
                    yield name, file.read(_MOST_BYTES)


def _of_source(spec: str) -> Iterator[Named]:
    reader = open_source(spec)
    for fragment in reader.fragments():
        for record in reader.read(fragment):
            if isinstance(record, Sample):
                where = f"{record.source.name}:{record.source.location}:{record.source.row}"
                yield from ((f"{where}:{image.number}", image.data) for image in record.images if image.data)


def _of_parquet(file: IO[bytes], name: str, stamp: str) -> Iterator[Named]:
    """Every value of any column that begins as an image does."""
    size = int(stamp.partition(":")[0]) if stamp.partition(":")[0].isdecimal() else 2**62
    try:
        table = open_parquet(file, size)
        row = 0
        for group in range(len(group_rows(table))):
            for batch, index in stream_rows(table, group, table.schema_arrow.names):
                for column in batch.schema.names:
                    value = batch[column][index].as_py()
                    yield from ((f"{name}:{row}:{column}", data) for data in _bytes_in(value))
                row += 1
    except Refused as error:
        raise SourceError(f"{name}: {error}") from None
    except (OSError, ValueError, NotImplementedError) as error:  # broken pages
        raise SourceError(f"{name}: cannot be read ({reason_of(error)})") from None


def _bytes_in(value: Any) -> Iterator[bytes]:
    if isinstance(value, bytes) and value:
        try:
            sniff(value)
        except ImageFault:
            return
        yield value
    elif isinstance(value, dict):
        for one in value.values():
            yield from _bytes_in(one)
    elif isinstance(value, list):
        for one in value:
            yield from _bytes_in(one)


def _of_tar(file: IO[bytes], name: str) -> Iterator[Named]:
    try:
        with tarfile.open(fileobj=file, mode="r|*") as tar:
            for member in tar:
                if member.isfile() and member.name.lower().endswith(_IMAGES) and member.size <= _MOST_BYTES:
                    content = tar.extractfile(member)
                    yield f"{name}:{member.name}", content.read() if content is not None else None
    except (tarfile.TarError, EOFError, ValueError) as error:
        raise SourceError(f"{name}: is not a readable tar ({error})") from None
