"""`sigma inspect`: a corpus as a table, or one sample in words and as an image."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl
from PIL import Image

from sigma_data.corpus.corpus import Corpus, open_corpus
from sigma_data.errors import ConfigError
from sigma_data.images.decode import PILLOW_MAX_PIXELS, ImageFault, probe
from sigma_data.images.image_info import ImageInfo
from sigma_data.sample import FAMILY_RULES, Family, Sample
from sigma_data.storage.files import disk_error, with_temporary
from sigma_data.text_format import counted

_ROW_DIGITS = 7
"""A longer run of digits is the start of an id."""


@dataclass(frozen=True)
class CorpusView:
    """What `sigma inspect CORPUS` shows."""

    corpus: Corpus
    families: list[dict[str, Any]]
    drawing: Path | None = None

    def as_dict(self) -> dict[str, Any]:
        """For --json."""
        return {
            "corpus": self.corpus.place,
            **self.corpus.sums,
            "by_family": self.families,
            "picture": str(self.drawing) if self.drawing else None,
        }

    def show(self) -> None:
        """Print the table."""
        from rich.console import Console
        from rich.table import Table

        sums = self.corpus.sums
        table = Table(box=None, pad_edge=False, header_style="bold")
        table.add_column("family")
        for name in (*sums["splits"], "images", "references", "side px", "tokens", "MB"):
            table.add_column(name, justify="right")
        for row in self.families:
            table.add_row(
                row["family"],
                *(f"{row['splits'].get(split, 0):,}" for split in sums["splits"]),
                f"{row['images']:,}",
                f"{row['references_min']}-{row['references_max']}",
                f"{row['side_min']}-{row['side_max']}",
                f"{row['tokens_median']:,.0f}",
                f"{row['bytes'] / 1e6:,.1f}",
            )
        made = f" + {sums['made']:,} made" if sums["made"] else ""
        console = Console()
        console.print(table)
        console.print(
            f"\n{counted(sums['written'], 'sample')} in {counted(len(self.corpus.shards), 'shard')}, "
            f"{counted(sums['components'], 'component')}; "
            f"{sums['read']:,} read{made} = {sums['written']:,} written + {sums['filtered']:,} filtered + "
            f"{sums['quarantined']:,} quarantined + {sums['duplicates']:,} duplicates",
            highlight=False,
        )
        if self.drawing:
            console.print(f"drawn into {self.drawing}", highlight=False)


@dataclass(frozen=True)
class SampleView:
    """What `sigma inspect CORPUS ID` shows."""

    sample: Sample
    infos: Mapping[int, ImageInfo]
    row: Mapping[str, Any]
    drawing: Path | None

    def as_dict(self) -> dict[str, Any]:
        """For --json: the manifest's row without the signatures."""
        images = [{name: value for name, value in image.items() if name != "signature"} for image in self.row["images"]]
        return {**self.row, "images": images, "picture": str(self.drawing) if self.drawing else None}

    def show(self) -> None:
        """Print the sample in words."""
        from rich.console import Console

        from sigma_data.report.describe import describe

        console = Console()
        console.print(describe(self.sample, self.infos))
        where = (
            f"{self.row['split']} · {self.row['shard']} · byte {self.row['offset']:,} · {self.row['tokens']:,} tokens"
        )
        console.print(where, style="dim", highlight=False)
        if self.drawing:
            console.print(f"drawn into {self.drawing}", highlight=False)


def inspect_corpus(path: str | Path, drawing: Path | None = None) -> CorpusView:
    """Counts and sizes by family; if asked, the first sample of each is drawn. Raises CorpusError, ConfigError."""
    corpus = open_corpus(path)
    rows = corpus.manifest
    families = []
    for family in Family:
        part = rows.filter(pl.col("family") == family.value)
        if part.is_empty():
            continue
        images = part.select(pl.col("images").list.explode(keep_nulls=False, empty_as_null=False)).unnest("images")
        sides = images.select(pl.max_horizontal("width", "height").alias("side"))["side"]
        families.append({
            "family": family.value,
            "goal": FAMILY_RULES[family].goal,
            "splits": dict(part.group_by("split", maintain_order=True).len().iter_rows()),
            "images": len(images),
            "references_min": part["references"].min(),
            "references_max": part["references"].max(),
            "side_min": sides.min() or 0,
            "side_max": sides.max() or 0,
            "tokens_median": part["tokens"].median(),
            "bytes": part["size"].sum(),
        })  # fmt: skip
    if drawing is not None:
        from sigma_data.report.sheet import draw_sheet

        first = [rows.filter(pl.col("family") == row["family"]).row(0, named=True) for row in families]
        _save(lambda: draw_sheet([corpus.sample(row) for row in first]), drawing)
    return CorpusView(corpus, families, drawing)


def inspect_sample(path: str | Path, name: str, drawing: Path | None = None) -> SampleView:
    """One sample by its id, the start of it, or its row number in the manifest; drawn if asked.

    Raises ConfigError where no sample or more than one is meant, CorpusError where it is damaged.
    """
    corpus = open_corpus(path)
    row = _find(corpus.manifest, name)
    sample = corpus.sample(row)
    if drawing is not None:
        from sigma_data.report.draw import draw

        _save(lambda: draw(sample), drawing)
    infos: dict[int, ImageInfo] = {}
    for given in sample.images:
        with contextlib.suppress(ImageFault):  # it is shown as it is, even where it cannot be decoded
            infos[given.number] = probe(given.data, max_pixels=PILLOW_MAX_PIXELS)
    return SampleView(sample, infos, row, drawing)


def _save(drawn: Callable[[], Image.Image], place: Path) -> None:
    """Write a drawing as PNG. Raises ConfigError."""
    if place.suffix.lower() != ".png":
        raise ConfigError(f"{place}: the drawing is a PNG; choose a name that ends in .png")
    image = drawn()
    try:
        with_temporary(place, lambda temporary: image.save(temporary, "PNG", optimize=True))
    except OSError as error:
        raise disk_error(error, place) from None


def _find(manifest: pl.DataFrame, name: str) -> dict[str, Any]:
    """The row meant by a row number (up to 7 digits) or by the start of an id."""
    if name.isdecimal() and len(name) <= _ROW_DIGITS:
        if int(name) < len(manifest):
            return manifest.row(int(name), named=True)
        raise ConfigError(f"there is no row {name}, the manifest has {len(manifest):,}")
    found = manifest.filter(pl.col("id").str.starts_with(name))
    if found.is_empty():
        raise ConfigError(f"no sample has an id that starts with {name!r}")
    if len(found) > 1:
        raise ConfigError(
            f"{len(found):,} samples have an id that starts with {name!r}: {', '.join(found['id'].head(5))}"
        )
    return found.row(0, named=True)
