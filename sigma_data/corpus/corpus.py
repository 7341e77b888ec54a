"""A corpus on disk: its file names, what corpus.json holds, and `open_corpus`.

`corpus.json` is written last and names every other file with its size and digest: a folder without
it is not a corpus, whatever else it holds.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, StringConstraints, ValidationError

from sigma_data.corpus.archives import folder_hint
from sigma_data.corpus.check_limits import Limits, Severity
from sigma_data.corpus.manifest import count_warnings, manifest_schema, quarantine_schema, read_batches
from sigma_data.corpus.places import copy_folder, fetch
from sigma_data.corpus.record import SCHEMA_VERSION, RecordError, decode
from sigma_data.corpus.refused_files import RefusedFile, refused_files
from sigma_data.corpus.shard import ShardFault, read_range
from sigma_data.errors import ConfigError, CorpusError, ShardError, SourceError, reason_of
from sigma_data.images.fingerprint import SIGNATURE_BYTES
from sigma_data.sample import Family, Sample
from sigma_data.settings_base import StrictRecord
from sigma_data.storage.data_folder import RemoteFolder
from sigma_data.storage.paths import is_uri

if TYPE_CHECKING:
    import polars as pl
    import pyarrow as pa

    from sigma_data.corpus.to_datasets import AnyDataset

COMMIT = "corpus.json"
MANIFEST = "manifest.parquet"
QUARANTINE = "quarantine.parquet"
CARD = "README.md"
REPORT = "report.html"
WORK = ".sigma"
"""Where an unfinished build keeps its state, inside the corpus; gone after the commit."""
INDEXES = ".index"
"""Where `sigma_data.planning.index` keeps what training needs; no part of what the commit covers."""

_SHARD = re.compile(r"(?P<split>[A-Za-z_][A-Za-z0-9_]*)/(?P<family>[a-z]+)-[0-9]{5,}\.tar")
_MOST = 2**50
"""No file of a corpus is larger than this; offsets and sizes beyond it are a forgery."""

_Count = Annotated[int, Field(ge=0, le=_MOST)]
_Split = Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]
_ShardName = Annotated[str, StringConstraints(pattern=rf"^{_SHARD.pattern}$")]


class _File(StrictRecord, extra="ignore"):
    bytes: _Count
    sha256: str


class _Shard(_File):
    samples: _Count


class _Sums(StrictRecord, extra="ignore"):
    read: _Count
    written: _Count
    quarantined: _Count
    duplicates: _Count
    made: _Count = 0
    filtered: _Count = 0
    codes: dict[str, _Count]
    filters: dict[str, _Count] = {}
    splits: dict[_Split, _Count]
    families: dict[Family, _Count]
    images: _Count
    bytes: _Count
    components: _Count


class _Config(StrictRecord, extra="ignore"):
    title: str
    splits: dict[_Split, Annotated[float, Field(ge=0, allow_inf_nan=False)]]
    limits: Limits
    checks: dict[str, Severity]


class _Commit(StrictRecord, extra="ignore"):
    """What must hold of `corpus.json` before anything is done with it: the file may be hostile."""

    config: _Config
    config_digest: str
    inputs: str
    sums: _Sums
    shards: dict[_ShardName, _Shard]
    files: dict[Literal["manifest.parquet", "quarantine.parquet", "README.md", "report.html"], _File]
    digest: str


@dataclass(frozen=True)
class Corpus:
    """A committed corpus. Open it with `open_corpus`.

    `path` is its folder; of a remote one, at `uri`, a folder of this machine with copies of what was read as a whole.
    """

    path: Path
    commit: Mapping[str, Any]
    uri: str | None = None

    @property
    def place(self) -> str:
        """Its path or URI."""
        return self.uri or str(self.path)

    @property
    def shards(self) -> Mapping[str, Mapping[str, Any]]:
        """Path of each shard inside the corpus -> its count, size in bytes and sha256."""
        shards: Mapping[str, Mapping[str, Any]] = self.commit["shards"]
        return shards

    @property
    def sums(self) -> Mapping[str, Any]:
        """Read (+ made) = written + filtered + quarantined + duplicates, and what else the build counted."""
        return {"made": 0, "filtered": 0, "filters": {}, **self.commit["sums"]}

    @cached_property
    def manifest(self) -> pl.DataFrame:
        """The manifest, a row a sample in shard order.

        Raises CorpusError where it cannot be read, is not the committed one, holds values that no
        build writes, or names shards outside the corpus.
        """
        manifest = self._table(MANIFEST, manifest_schema())
        refuse_odd_rows(manifest, self.path / MANIFEST)
        return manifest

    @cached_property
    def quarantine(self) -> pl.DataFrame:
        """The records that were not written."""
        return self._table(QUARANTINE, quarantine_schema())

    @cached_property
    def rejected(self) -> int:
        """How many records were not written. The quarantine is read, but not held."""
        return sum(len(batch) for batch in self._batches(QUARANTINE, quarantine_schema(), None, rows=4096))

    @cached_property
    def refused(self) -> list[RefusedFile]:
        """The files of sources that were refused whole. Reads nothing else of the quarantine."""
        columns = ["source", "location", "row", "code", "message", "filtered"]
        return refused_files(self._table(QUARANTINE, quarantine_schema(), columns))

    @cached_property
    def warnings(self) -> Mapping[str, int]:
        """Code -> samples with that warning, the most frequent first. Reads nothing else of the manifest."""
        return count_warnings(self._table(MANIFEST, manifest_schema(), ["warnings"]))

    def __len__(self) -> int:
        """The number of samples."""
        return len(self.manifest)

    def __getitem__(self, key: int | str) -> Sample:
        """The sample in this row of the manifest, or with this id, every byte of it checked.

        Raises IndexError or KeyError if there is none, CorpusError if it cannot be read.
        """
        if isinstance(key, str):
            rows = self.manifest.filter(self.manifest["id"] == key)
            if not len(rows):
                raise KeyError(f"{self.path}: has no sample {key!r}")
            return self.sample(rows.row(0, named=True))
        if not -len(self) <= key < len(self):
            raise IndexError(f"{self.path}: has no sample {key}: it has {len(self):,}")
        return self.sample(self.manifest.row(key % len(self), named=True))

    def __iter__(self) -> Iterator[Sample]:
        for row in self.manifest.iter_rows(named=True):
            yield self.sample(row)

    def to_datasets(self, *, split: str | None = None, streaming: bool = False) -> AnyDataset:
        """A split as an HF `Dataset`, all of them as a `DatasetDict`; with `streaming` as their iterable forms.

        A row is a sample: `images` are decoded by `datasets` when a row is looked at (`<image_N>` of an instruction
        is the one whose `numbers` is N), `turns` hold the instructions with their attribute tokens and each turn's
        `target` number or `response`. Images come as they are stored; `sigma_data.images.decode.load` gives the
        image that training shows, which differs for transparent ones. A `Dataset` is copied into the cache of
        `datasets`; an `IterableDataset` reads the shards where they lie, has a part a shard for workers and nodes
        (`split_dataset_by_node`), and can be resumed (`state_dict`). Raises ConfigError if there is no such split.
        """
        from sigma_data.corpus.to_datasets import to_datasets

        self._refuse_remote("to_datasets")
        return to_datasets(self.path, self.commit, split=split, streaming=streaming)

    def to_webdataset(self, *, split: str = "train", **options: Any) -> Any:
        """A split as a `webdataset.WebDataset` of `Sample`s, read in the order of the shards.

        `options` are WebDataset's own (`shardshuffle`, `nodesplitter`, ...); shuffling and batching follow as its
        stages do. Digests are not checked: `sigma validate --deep` does. Raises ConfigError if there is no such split.
        """
        from sigma_data.corpus.to_webdataset import to_webdataset

        self._refuse_remote("to_webdataset")
        return to_webdataset(self.path, self.commit, split=split, **options)

    def read(self, shard: str, offset: int, size: int) -> bytes:
        """Bytes of a shard by range, as the manifest gives them."""
        if self.uri is None:
            with (self.path / shard).open("rb") as file:
                return read_range(file, offset, size)
        data = RemoteFolder(self.uri).read(shard, offset, size)
        if len(data) < size:
            raise ShardFault("cut", f"the shard ends {size - len(data):,} bytes too early", offset)
        return data

    def sample(self, row: Mapping[str, Any]) -> Sample:
        """The sample of a row of the manifest, every byte of it checked. Raises CorpusError."""
        where = f"{self.place}/{row['shard']}: sample {row['id']}"
        try:
            record = self.read(row["shard"], row["json_offset"], row["json_size"])
            images = {i["member"]: self.read(row["shard"], i["offset"], i["size"]) for i in row["images"]}
            digests = {image["member"]: image["sha256"] for image in row["images"]}
            if any(hashlib.sha256(data).hexdigest() != digests[name] for name, data in images.items()):
                raise CorpusError(f"{where} is damaged; run sigma validate --deep")
            return decode(record, images)
        except (OSError, RecordError, ShardError) as error:
            raise CorpusError(f"{where} cannot be read ({reason_of(error)}); run sigma validate") from None

    def manifest_batches(self, columns: Sequence[str], rows: int) -> Iterator[pa.RecordBatch]:
        """Some columns of the manifest in chunks of `rows` (see `read_batches`), for corpora larger than memory.

        Raises CorpusError as `manifest` does; offsets and names of shards are not checked (`refuse_odd_rows`).
        """
        return read_batches(self._file(MANIFEST), manifest_schema(), columns, rows=rows)

    def _table(self, name: str, schema: pa.Schema, columns: list[str] | None = None) -> pl.DataFrame:
        import polars as pl
        import pyarrow as pa

        batches = list(self._batches(name, schema, columns))
        expected = pa.schema([schema.field(column) for column in columns or schema.names])
        table = pl.DataFrame(pl.from_arrow(pa.Table.from_batches(batches, batches[0].schema if batches else expected)))
        return with_value_ranges(table) if "images" in table.columns else table

    def _batches(
        self, name: str, schema: pa.Schema, columns: list[str] | None, *, rows: int = 65_536
    ) -> Iterator[pa.RecordBatch]:
        return read_batches(self._file(name), schema, columns, rows=rows, nulls=name == QUARANTINE)

    def _file(self, name: str) -> Path:
        """The path of a table, its digest checked: damage would make readers fail in many ways, or not at all."""
        path, entry = self.path / name, self.commit["files"][name]
        try:
            if self.uri is not None and not (path.is_file() and file_digest(path) == (entry["bytes"], entry["sha256"])):
                fetch(RemoteFolder(self.uri), name, self.path)
            if file_digest(path) != (entry["bytes"], entry["sha256"]):
                raise CorpusError(f"{self.place}/{name}: is not the file that was committed; run sigma validate")
        except (OSError, SourceError) as error:
            told = getattr(error, "strerror", None) or error
            raise CorpusError(f"{self.place}/{name}: cannot be read ({told}); run sigma validate") from None
        return path

    def _refuse_remote(self, what: str) -> None:
        if self.uri is not None:
            raise ConfigError(f"{self.uri}: {what} reads a corpus of this machine: copy it here first")


def with_value_ranges(manifest: pl.DataFrame) -> pl.DataFrame:
    """The manifest; that of an older corpus gets a null `value_range` for each image."""
    import polars as pl

    image = manifest.select(pl.col("images").explode().struct.unnest()).columns
    if "value_range" in image:
        return manifest
    kind = pl.Struct({"rule": pl.String, "low": pl.Float64, "high": pl.Float64})
    unknown = pl.lit(None, dtype=kind).alias("value_range")
    return manifest.with_columns(pl.col("images").list.eval(pl.element().struct.with_fields(unknown)))


def refuse_odd_rows(manifest: pl.DataFrame, path: Path) -> None:
    """Raise CorpusError for values that would lead a reader outside the corpus, or make it fail far from the cause."""
    import polars as pl

    for split, family, shard in manifest.select("split", "family", "shard").unique().iter_rows():
        name = _SHARD.fullmatch(shard)
        if name is None or (name["split"], name["family"]) != (split, family) or family not in set(Family):
            raise CorpusError(f"{path}: names the shard {shard!r} for {split!r} and {family!r}")
    images = manifest.select(pl.col("images").explode()).drop_nulls().unnest("images")
    places = [manifest[name] for name in ("index", "offset", "size", "json_offset", "json_size")]
    places += [images[name] for name in ("number", "offset", "size", "width", "height")]
    if not all(place.cast(pl.Int64).is_between(0, _MOST).all() for place in places):
        raise CorpusError(f"{path}: has offsets or sizes that no file can have")
    if not (images["signature"].bin.size() == SIGNATURE_BYTES).all():
        raise CorpusError(f"{path}: has a malformed signature")


def open_corpus(path: str | Path, *, copy: Path | None = None) -> Corpus:
    """Open a committed corpus.

    A place behind fsspec (s3://...) is read by byte ranges; its tables are copied to this machine when they are asked
    for, into `copy` or the cache. Raises CorpusError if the folder is not a corpus, its build did not finish, or
    another version of the toolkit wrote it; SourceError where a remote place cannot be read.
    """
    if is_uri(str(path)):
        return _open_remote(str(path).rstrip("/"), copy)
    path = Path(path)
    commit_file = path / COMMIT
    if not path.is_dir():
        raise CorpusError(f"{path}: not a corpus{folder_hint(path)}" if path.exists() else f"{path}: no such folder")
    if not commit_file.is_file():
        if (path / WORK).is_dir():
            raise CorpusError(f"{path}: the build of this corpus has not finished; run the same command again")
        raise CorpusError(f"{path}: not a corpus (it has no {COMMIT}){folder_hint(path)}")
    try:
        text = commit_file.read_text("utf-8")
        commit = json.loads(text)
        version = commit["schema_version"]
        if version == SCHEMA_VERSION:
            _Commit.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(place) for place in first["loc"])
        raise CorpusError(f"{commit_file}: is not a valid corpus.json ({where}: {first['msg']})") from None
    except (ValueError, KeyError, TypeError, RecursionError, OSError) as error:
        raise CorpusError(f"{commit_file}: cannot be read ({type(error).__name__}: {reason_of(error)})") from None
    if version != SCHEMA_VERSION:
        raise CorpusError(f"{path}: has schema version {version!r}, this is sigma for version {SCHEMA_VERSION}")
    if lacking := sorted({MANIFEST, QUARANTINE, CARD, REPORT} - set(commit["files"])):
        raise CorpusError(f"{commit_file}: does not name {', '.join(lacking)}")
    return Corpus(path, commit)


def _open_remote(uri: str, copy: Path | None) -> Corpus:
    folder = RemoteFolder(uri)
    copy = copy or copy_folder(uri)
    if not folder.exists(COMMIT):
        what = "the build of this corpus has not finished" if folder.exists(f"{WORK}/config.json") else "not a corpus"
        raise CorpusError(f"{uri}: {what} (it has no {COMMIT})")
    try:
        fetch(folder, COMMIT, copy)
    except OSError as error:
        raise CorpusError(f"{copy}: cannot be written ({error.strerror or error}): set SIGMA_CACHE") from None
    try:
        return replace(open_corpus(copy), uri=uri)
    except CorpusError as error:
        raise CorpusError(str(error).replace(str(copy), uri)) from None


def is_shard_name(name: str) -> bool:
    """Whether a path inside a corpus is that of a shard, SPLIT/FAMILY-00000.tar."""
    found = _SHARD.fullmatch(name)
    return found is not None and found["family"] in set(Family)


def file_digest(path: Path) -> tuple[int, str]:
    """(size in bytes, sha256) of a file."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return file.tell(), digest.hexdigest()
