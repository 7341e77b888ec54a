"""Which samples of a corpus: its manifest is read as a stream, and of a chosen row some numbers are held."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from sigma_data.corpus.corpus import MANIFEST, Corpus, refuse_odd_rows, with_value_ranges
from sigma_data.corpus.manifest import OPTIONAL, manifest_schema
from sigma_data.errors import ConfigError
from sigma_data.sample import Family

_ROWS = 2048
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Selection:
    """Which samples of a corpus: of these families and splits, for which `where` (SQL) holds."""

    families: tuple[str, ...] = ()
    splits: tuple[str, ...] = ()
    where: str | None = None
    limit: int | None = None

    def of(self, corpus: Corpus) -> Chosen:
        """The chosen rows of the manifest, every value of which is read. Raises ConfigError, CorpusError."""
        for name, wanted, known in (
            ("family", self.families, sorted(family.value for family in Family)),
            ("split", self.splits, sorted(corpus.sums["splits"])),
        ):
            if wrong := [value for value in wanted if value not in known]:
                raise ConfigError(f"there is no {name} {wrong[0]!r} (there are: {', '.join(known)})")
        rule = None if self.where is None else _Rule(self.where)
        places, held, told = [np.empty(0, dtype=np.int64)], [_held(_empty())], []
        for first, frame in _frames(corpus, manifest_schema().names):
            refuse_odd_rows(frame, corpus.path / MANIFEST)
            frame = frame.with_row_index("at", first)
            for name, wanted in (("family", self.families), ("split", self.splits)):
                frame = frame.filter(pl.col(name).is_in(wanted)) if wanted else frame
            places.append(frame["at"].to_numpy().astype(np.int64))
            held.append(_held(frame))
            if rule is not None:
                told.append(frame.select(rule.columns))
        rows, columns = np.concatenate(places), pl.concat(held)
        if rule is not None:
            kept = rule.kept(pl.concat([_empty().select(rule.columns), *told]))
            rows, columns = rows[kept], columns[kept]
        rows, columns = rows[: self.limit], columns.head(len(rows) if self.limit is None else self.limit)
        if not len(rows):
            raise ConfigError(f"{corpus.place}: no sample is left after the selection")
        return Chosen(corpus, rows, columns)


@dataclass(frozen=True)
class Chosen:
    """Rows of a manifest, by their places in it.

    `columns` has a row each: split, family and shard (categorical), size, count of `images`, a key of the `component`,
    and for each optional column of the manifest whether it has a value there.
    """

    corpus: Corpus
    rows: Integers
    columns: pl.DataFrame

    def frames(self, names: Sequence[str]) -> Iterator[tuple[slice, pl.DataFrame]]:
        """The chosen rows with these columns of the manifest, some at a time, and which of `rows` they are."""
        for first, frame in _frames(self.corpus, names):
            low, high = np.searchsorted(self.rows, [first, first + len(frame)]).tolist()
            if high > low:
                yield slice(low, high), frame[self.rows[low:high] - first]


class _Rule:
    """An SQL expression over columns of the manifest; an expression only, no query."""

    def __init__(self, where: str) -> None:
        self._where = where
        names = manifest_schema().names
        try:
            self._rule = pl.sql_expr(where)
            used = names if self._rule.meta.has_multiple_outputs() else self._rule.meta.root_names()
        except (pl.exceptions.PolarsError, ValueError, TypeError) as error:
            raise self._refusal(error) from None
        self.columns = [name for name in names if name in used] or names[:1]
        """Those that must be held for it: an average, for instance, is of all rows."""

    def kept(self, frame: pl.DataFrame) -> Integers:
        """Places of the rows for which it holds."""
        try:
            places = frame.with_columns(pl.int_range(pl.len()).alias(_PLACE)).filter(self._rule)[_PLACE]
        except (pl.exceptions.PolarsError, ValueError, TypeError) as error:
            raise self._refusal(error) from None
        return places.to_numpy()

    def _refusal(self, error: Exception) -> ConfigError:
        reason = " ".join(str(error).split())[:200]
        return ConfigError(f"--where {self._where!r}: {reason} (columns: {', '.join(manifest_schema().names)})")


_PLACE = "place of a row"


def _frames(corpus: Corpus, names: Sequence[str]) -> Iterator[tuple[int, pl.DataFrame]]:
    """The manifest, some rows at a time, and the place of the first of them."""
    first = 0
    for batch in corpus.manifest_batches(names, _ROWS):
        frame = pl.DataFrame(pl.from_arrow(batch))
        yield first, with_value_ranges(frame) if "images" in names else frame
        first += len(frame)


def _held(frame: pl.DataFrame) -> pl.DataFrame:
    return frame.select(
        pl.col("split", "family", "shard").cast(pl.Categorical),
        "size",
        images=pl.col("images").list.len().cast(pl.UInt16),
        component=pl.col("component").hash(),
        **{name: pl.col(name).is_not_null() for name in _OPTIONAL},
    )


def _empty() -> pl.DataFrame:
    return pl.DataFrame(pl.from_arrow(manifest_schema().empty_table()))


_OPTIONAL = [name for name in OPTIONAL if name in manifest_schema().names]
