"""A corpus's manifest as a reader needs it: light columns in memory, filters over them, the rest read by range.

Of 700,000 samples that is a few hundred megabytes, and a filter takes milliseconds. Nothing is read by a name that
comes from outside: rows are numbers, shards are those of the checked manifest.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations
from typing import Any

import numpy as np
import polars as pl
import pyarrow.parquet as pq

from sigma_data.corpus.corpus import MANIFEST, Corpus, is_shard_name
from sigma_data.corpus.manifest import manifest_schema
from sigma_data.corpus.record import RecordError, decode, with_current_keys
from sigma_data.errors import CorpusError, ShardError, reason_of
from sigma_data.images.fingerprint import near
from sigma_data.instruction import ATTRIBUTES
from sigma_data.sample import Sample
from sigma_data.storage.paths import literal

BATCH = 65_536
_IMAGE = ("number", "role", "offset", "size")
_COLUMNS = (
    "id", "family", "split", "shard", "json_offset", "json_size", "instruction", "attributes", "references", "tokens",
    "component", "source", "license", "warnings", "made", "injection",
    *(f"images.list.element.{name}" for name in _IMAGE),
)  # fmt: skip
_CHOICES = ("family", "split", "source", "license")
_PAIRS_SHOWN, _ROWS_COMPARED = 20, 60
"""Of a component: what is shown, and among how many of its samples it is looked for."""


@dataclass(frozen=True)
class Filters:
    """What is shown; empty is everything. `check` is the code of a warning, `words` stand in the instruction."""

    family: str = ""
    split: str = ""
    token: str = ""
    source: str = ""
    license: str = ""
    check: str = ""
    words: str = ""
    component: str = ""

    @classmethod
    def of(cls, query: Mapping[str, str]) -> Filters:
        """Of an address; what is no filter is left out."""
        return cls(**{name: query[name] for name in cls.__dataclass_fields__ if query.get(name)})


@dataclass(frozen=True)
class Pair:
    """Two samples of a component that share an image; `exact`, or nearly. Rows, and numbers of the images."""

    first: int
    second: int
    images: tuple[int, int]
    exact: bool


class Catalog:
    """The samples of a corpus. Raises CorpusError for a manifest that is damaged, or leads outside the corpus."""

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        parts = [_light(pl.DataFrame(pl.from_arrow(batch))) for batch in corpus.manifest_batches(_COLUMNS, BATCH)]
        empty = _light(pl.DataFrame(pl.from_arrow(manifest_schema().empty_table())))
        self.rows = pl.concat(parts) if parts else empty
        for shard in self.rows["shard"].unique().cast(pl.String):
            if not is_shard_name(shard):
                raise CorpusError(f"{corpus.path / MANIFEST}: names the shard {shard!r}")
        self.choices: dict[str, list[tuple[str, int]]] = {name: self._counts(name) for name in _CHOICES}
        self.choices["token"] = [
            (name, int((self.rows["tokens_used"] & (1 << bit) != 0).sum())) for bit, name in enumerate(ATTRIBUTES)
        ]
        self.choices["check"] = self._checks()
        self._shared = self._components()
        self.pairs = lru_cache(64)(self._pairs)

    def __len__(self) -> int:
        return len(self.rows)

    def find(self, filters: Filters) -> np.ndarray[Any, np.dtype[np.int64]]:
        """The rows of the manifest that pass, in its order."""
        wanted = [pl.col(name) == getattr(filters, name) for name in _CHOICES if getattr(filters, name)]
        if filters.token:
            bit = 1 << ATTRIBUTES.index(filters.token) if filters.token in ATTRIBUTES else 0
            wanted.append(pl.col("tokens_used") & bit != 0)
        if filters.check:
            wanted.append(pl.col("checks").cast(pl.String).str.contains(f",{filters.check},", literal=True))
        if filters.words:
            wanted.append(
                pl.col("instruction").str.to_lowercase().str.contains(filters.words.lower(), literal=True)
                | pl.col("id").str.starts_with(filters.words)
            )
        if filters.component:
            wanted.append(pl.col("component") == (int(filters.component) if filters.component.isdecimal() else 0))
        mask = self.rows.select(pl.all_horizontal(wanted))[:, 0] if wanted else None
        return np.arange(len(self)) if mask is None else mask.arg_true().to_numpy().astype(np.int64)

    def row(self, number: int) -> dict[str, Any]:
        """A row's light columns. Raises LookupError."""
        if not 0 <= number < len(self):
            raise LookupError(number)
        return self.rows.row(number, named=True)

    def image(self, number: int, image: int) -> bytes:
        """The bytes of a sample's image. Raises LookupError where there is none, CorpusError where it is damaged."""
        row = self.row(number)
        place = next((one for one in row["images"] if one["number"] == image), None)
        if place is None:
            raise LookupError(image)
        return self._read(row["shard"], place["offset"], place["size"])

    def sample(self, number: int) -> tuple[Sample, dict[int, tuple[int, int]]]:
        """A sample without its images' bytes, and their sizes by number. Raises LookupError, CorpusError."""
        row = self.row(number)
        data = self._read(row["shard"], row["json_offset"], row["json_size"])
        try:
            sample = decode(data, None)
            images = json.loads(with_current_keys(data))["images"]
        except RecordError as error:
            raise CorpusError(f"{row['shard']}: sample {row['id']} cannot be read ({error})") from None
        return sample, {image["number"]: (image["width"], image["height"]) for image in images}

    @property
    def shared(self) -> int:
        """How many components have more than one sample."""
        return len(self._shared)

    def _pairs(self, first: int, count: int) -> list[tuple[str, list[int], list[Pair]]]:
        """Components with several samples, from `first` on: the component, its rows, pairs that share an image."""
        chosen = self._shared[first : first + count]
        images = self._fingerprints(sorted({row for _, rows in chosen for row in rows[:_ROWS_COMPARED]}))
        found = []
        for component, rows in chosen:
            pairs: list[Pair] = []
            for one, two in combinations(rows[:_ROWS_COMPARED], 2):
                if len(pairs) >= _PAIRS_SHOWN:
                    break
                if (pair := _shared_image(one, two, images)) is not None:
                    pairs.append(pair)
            found.append((str(component), rows, pairs))
        return found

    def _fingerprints(self, rows: Sequence[int]) -> dict[int, list[tuple[int, str, bytes]]]:
        """Of these rows each image's number, hash and signature; only the parts of the manifest that hold them."""
        found: dict[int, list[tuple[int, str, bytes]]] = {}
        columns = [f"images.list.element.{name}" for name in ("number", "sha256", "signature")]
        with pq.ParquetFile(literal(self.corpus.path / MANIFEST), pre_buffer=False) as file:
            start = 0
            for group in range(file.num_row_groups):
                stop = start + file.metadata.row_group(group).num_rows
                inside = [row for row in rows if start <= row < stop]
                if inside:
                    images = file.read_row_group(group, columns)["images"]
                    for row in inside:
                        entries = images[row - start].as_py()
                        found[row] = [(one["number"], one["sha256"], one["signature"]) for one in entries]
                start = stop
        return found

    def _components(self) -> list[tuple[int, list[int]]]:
        """Components with several samples, those with the fewest first: pairs come before crowds."""
        several = (
            self.rows.select("component")
            .with_row_index("row")
            .filter(pl.col("component").is_duplicated())
            .group_by("component", maintain_order=True)
            .agg(pl.col("row"))
            .sort(pl.col("row").list.len(), maintain_order=True)
        )
        return list(several.iter_rows())

    def _counts(self, column: str) -> list[tuple[str, int]]:
        counts = self.rows[column].value_counts(sort=True)
        return [(str(name), count) for name, count in counts.iter_rows()]

    def _checks(self) -> list[tuple[str, int]]:
        counts: dict[str, int] = {}
        for codes, count in self.rows["checks"].value_counts(sort=True).iter_rows():
            for code in set(str(codes).strip(",").split(",")) - {""}:
                counts[code] = counts.get(code, 0) + count
        return sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))

    def _read(self, shard: str, offset: int, size: int) -> bytes:
        try:
            return self.corpus.read(shard, offset, size)
        except (OSError, ShardError) as error:
            raise CorpusError(f"{shard} cannot be read ({reason_of(error)}); run sigma validate") from None


def _light(frame: pl.DataFrame) -> pl.DataFrame:
    """A batch of the manifest with small types: categories, a bit for each attribute token, a hash for a component."""
    bits = [pl.col("attributes").list.contains(name).cast(pl.Int32) * (1 << bit) for bit, name in enumerate(ATTRIBUTES)]
    codes = pl.col("warnings").list.eval(pl.element().str.extract("^([^:]*)")).list.unique().list.join(",")
    return frame.select(
        "id", "instruction", "json_offset", "json_size", "references", "tokens", "images", "made", "injection",
        pl.col(*_CHOICES, "shard").cast(pl.Categorical),
        pl.sum_horizontal(bits).alias("tokens_used"),
        pl.when(pl.col("warnings").list.len() > 0)
        .then(pl.lit(",") + codes + pl.lit(","))
        .otherwise(pl.lit(""))
        .cast(pl.Categorical)
        .alias("checks"),
        pl.col("component").hash(),
    )  # fmt: skip


def _shared_image(one: int, two: int, images: Mapping[int, list[tuple[int, str, bytes]]]) -> Pair | None:
    """The first image that two samples share, exactly if any."""
    for exact in (True, False):
        for number, digest, signature in images[one]:
            for other, its_digest, its_signature in images[two]:
                if digest == its_digest if exact else near(signature, its_signature):
                    return Pair(one, two, (number, other), exact)
    return None
