"""A data set of the hub as a source: streamed through `datasets`, read by the map of the same hub id.

Without a network (`HF_HUB_OFFLINE=1`) `datasets` reads what it has in its cache. A local folder that it can open is a
data set, too.
"""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, cast

from sigma_data.errors import ConfigError, SourceError
from sigma_data.sources.base import Fragment, ReaderOptions, field_maps
from sigma_data.sources.field_map.load import load_map, load_shipped
from sigma_data.sources.field_map.names import missing, wrong_keys
from sigma_data.sources.field_map.reader import MapOptions, MapReader
from sigma_data.sources.field_map.rows import NumberedRow, RowFormat
from sigma_data.sources.field_map.schema import FieldMap, RowLayout
from sigma_data.sources.field_map.values import RowFault
from sigma_data.storage.data_folder import LocalFolder

if TYPE_CHECKING:
    from datasets import IterableDataset


class HubOptions(MapOptions):
    """Options of data sets of the hub."""

    map: str | None = None
    """Name or path of the field map; by default the shipped one that names this hub id."""
    config: str | None = None
    """Configuration of the data set, if it has several."""
    split: str = "train"
    """Split that is read."""
    revision: str | None = None
    """Commit, tag or branch; by default the newest."""


class HubReader(MapReader):
    """Reads the rows of a data set; a fragment is a shard, which is a file as a rule."""

    options_type: ClassVar[type[ReaderOptions]] = HubOptions

    def __init__(self, scheme: str, path: str, options: ReaderOptions) -> None:
        if cast(HubOptions, options).root is not None:
            raise ConfigError(f"source hf:{path}: a data set has no root")
        super().__init__(scheme, path, options)
        self._folder = LocalFolder(".")  # images lie in the rows
        self._opened: HubRows | None = None

    def _load(self, scheme: str, path: str) -> tuple[FieldMap, str, str]:
        named = cast(HubOptions, self.options).map
        name = re.sub(r"\W+", "_", path.strip("/").rpartition("/")[2]).lower()
        if named is not None:
            return load_shipped(named) if named in field_maps() else load_map(named), name, path
        known = {hub.lower(): one for one in field_maps() for hub in load_shipped(one).hub}
        if path.lower() not in known:
            raise ConfigError(f"source hf:{path}: no map has this hub id; name one, as in hf:{path}?map=omniedit")
        return load_shipped(known[path.lower()]), known[path.lower()], path

    def folder(self) -> Path | None:
        return None

    def fingerprint(self, fragment: Fragment) -> str:
        return fragment.stamp

    def fragments(self) -> list[Fragment]:
        rows = self._rows(self.map.layouts[0])
        keys = rows.keys("")
        layout = self._chosen(keys)
        if fault := wrong_keys(layout, self.path, keys):
            raise SourceError(fault)
        if layout.images.origin != "bytes" or layout.format == "webdataset":
            raise SourceError(
                f"{self.path}: the images of {self.map.corpus} are not in its rows; download the files and read them "
                f"with {self.name}:DIR (see sigma sources {self.name})"
            )
        return self._stamped(rows.fragments("", ""))

    def _rows(self, layout: RowLayout) -> RowFormat:
        if self._opened is None:
            options = cast(HubOptions, self.options)
            self._opened = HubRows(self.path, options.config, options.split, options.revision)
        return self._opened

    def _layout(self, location: str) -> RowLayout | None:
        return self._chosen(self._rows(self.map.layouts[0]).keys(location))

    def _chosen(self, keys: Collection[str]) -> RowLayout:
        """The first layout whose fields the rows have."""
        return next((one for one in self.map.layouts if not missing(one, keys)), self.map.layouts[0])


class HubRows(RowFormat):
    """The rows of one split of a data set."""

    def __init__(self, path: str, config: str | None, split: str, revision: str | None) -> None:
        super().__init__(LocalFolder("."))
        self._path, self._config, self._split, self._revision = path, config, split, revision
        self._stream: IterableDataset | None = None
        self._stamp = ""
        self._keys: list[str] | None = None

    def fragments(self, location: str, stamp: str) -> list[Fragment]:
        shards = int(self._open().num_shards)
        place = f"{self._config or 'default'}/{self._split}"
        return [
            Fragment(f"{place}-{index:05}-of-{shards:05}", f"shard {index} of {shards}", self._stamp)
            for index in range(shards)
        ]

    def read(self, fragment: Fragment, fields: Collection[str] | None = None) -> Iterator[NumberedRow]:
        span = re.fullmatch(r"shard (\d+) of (\d+)", fragment.part)
        stream = self._open()
        if span is None or int(span[2]) != stream.num_shards:
            yield None, RowFault("unreadable_file", "the data set changed since its shards were listed")
            return
        stream = stream.shard(num_shards=int(span[2]), index=int(span[1]))
        names = self.keys("")
        unread: dict[str, Any] = {}
        if fields is not None:
            asked = [name for name in names if name in fields]
            unread = dict.fromkeys((name for name in names if name not in fields), b"")
            if asked:
                stream = stream.select_columns(asked)
        number = 0
        try:
            for row in stream:
                yield number, unread | row
                number += 1
        except Exception as error:
            raise SourceError(f"hf:{self._path}: {_short(error)}") from None

    def keys(self, location: str) -> list[str]:
        stream = self._open()
        if self._keys is None:
            self._keys = list(stream.features if stream.features is not None else next(iter(stream), {}))
        return self._keys

    def _open(self) -> IterableDataset:
        """The stream of the split, images undecoded. Raises SourceError."""
        if self._stream is None:
            import datasets
            from datasets.utils import tqdm

            logging.getLogger("datasets").setLevel(logging.ERROR)
            tqdm.set_lock(threading.RLock())  # its own is one of all processes, which a worker that ends leaves behind
            try:
                builder = datasets.load_dataset_builder(self._path, self._config, revision=self._revision)
                self._stamp = f"{self._revision or ''}:{builder.hash}"
                stream = datasets.load_dataset(
                    self._path, self._config, split=self._split, revision=self._revision, streaming=True
                )
                self._stream = stream.decode(False)
            except Exception as error:  # datasets raises whatever the network, the data set and its files make it raise
                raise SourceError(
                    f"hf:{self._path}: {_short(error)}; fetch its files with `sigma download {self._path} "
                    "--dataset` and read the folder"
                ) from None
        return self._stream


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__
