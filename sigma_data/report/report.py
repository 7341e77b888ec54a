"""The report of a corpus: a standalone HTML file with numbers, charts, contact sheets and rejected rows.

Thumbnails are data: URIs and charts are SVG; the content security policy forbids scripts and the network. The same
frames give the same bytes.
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any

import jinja2
import polars as pl

from sigma_data.corpus.checks import RULES
from sigma_data.corpus.refused_files import RefusedFile, refused_files
from sigma_data.corpus.table_rows import FrameRows, TableRows, warnings_of
from sigma_data.images.decode import thumbnail
from sigma_data.images.reader_differences import DEEP, LARGE, TRANSPARENT, TURNED
from sigma_data.instruction import ATTRIBUTES
from sigma_data.report.charts import Chart, bars, file_size, number, percent
from sigma_data.report.distributions import references, sizes, tokens, values
from sigma_data.report.origin import filters, injections, made, sources, tokens_by_family
from sigma_data.sample import FAMILY_RULES, Family
from sigma_data.token_style import TARGET_COLOUR, TOKEN_COLOURS, PartKind, instruction_parts, printable

Read = Callable[[str, int, int], bytes]

SAMPLES_A_FAMILY = 12
EXAMPLES_A_CODE = 8
_IMAGES_A_CARD = 6
_IMAGES_A_FAMILY = 40
_LONGEST_TEXT = 420
_LONGEST_ANSWER = 280
_SPLITS = ("train", "val", "test")

_IMAGE = pl.Struct({
    "number": pl.Int16, "role": pl.String, "width": pl.Int32, "height": pl.Int32, "size": pl.Int64, "offset": pl.Int64,
    "reencoded": pl.String,
})  # fmt: skip
_TURN = pl.Struct({"instruction": pl.String, "target": pl.Int16, "response": pl.String})
_MANIFEST: dict[str, pl.DataType] = {
    "id": pl.String(), "family": pl.String(), "split": pl.String(), "shard": pl.String(), "size": pl.Int64(),
    "images": pl.List(_IMAGE), "turns": pl.List(_TURN), "attributes": pl.List(pl.String), "references": pl.Int16(),
    "tokens": pl.Int32(), "component": pl.String(), "source": pl.String(), "location": pl.String(), "row": pl.Int64(),
    "license": pl.String(), "warnings": pl.List(pl.String), "injection": pl.String(), "made": pl.String(),
}  # fmt: skip
_CARD_COLUMNS = (
    "id", "split", "shard", "tokens", "source", "location", "row", "images", "turns", "made", "injection",
)  # fmt: skip
_QUARANTINE: dict[str, pl.DataType] = {
    "source": pl.String(), "location": pl.String(), "row": pl.Int64(), "code": pl.String(), "message": pl.String(),
    "instruction": pl.String(), "thumbnail": pl.Binary(), "filtered": pl.Boolean(),
}  # fmt: skip

_PLANNED = {
    "duplicate": "The same images and the same words as an earlier sample",
    "near_duplicate": "Nearly the same images and the same words as an earlier sample",
    "over_quota": "More samples than the build was asked to keep",  # of corpora from before filters were counted
}
"""Codes given by the planner, not by a rule of `checks`."""

_REENCODED = {
    "max_side": "Longer than the limit of the build: scaled down",
    "mode": "A colour mode that not every reader supports: stored as RGB",
    DEEP: "More than 8 bits a value: stored as the 8 bits that are shown; value_range in the manifest has the scale",
    TRANSPARENT: "Transparent: stored as shown, on white",
    TURNED: "Rotated or mirrored: stored upright",
    LARGE: "A PNG with more text or a larger profile than Pillow opens by default: stored without them",
}
"""Why an image was re-encoded, by the manifest's code."""


@dataclass(frozen=True)
class Thumbnail:
    """A thumbnail as a data: URI (empty if the image cannot be decoded)."""

    number: int
    uri: str
    aspect: float
    words: str


@dataclass(frozen=True)
class Card:
    """A sample on a contact sheet."""

    id: str
    facts: str
    place: str
    references: tuple[Thumbnail, ...]
    targets: tuple[Thumbnail, ...]
    hidden: int
    turns: tuple[tuple[list[tuple[PartKind, str]], str], ...]

    @property
    def wide(self) -> bool:
        """Whether the card needs two columns."""
        return len(self.references) + len(self.targets) > 4


def render_report(
    *,
    title: str,
    summary: Mapping[str, Any],
    manifest: pl.DataFrame | TableRows,
    quarantine: pl.DataFrame | TableRows,
    read: Read,
) -> str:
    """The page as HTML text.

    `summary` has `read`, `written`, `quarantined`, `duplicates`, `splits`, `bytes`, `images`, and `made` and `filtered`
    if any are;
    `read(shard, offset, size)` returns bytes of a shard, and is called only for the images of the
    contact sheets. Whatever `read` raises is passed on.
    """
    summary = {"made": 0, "filtered": 0, **summary}
    manifest, quarantine = _rows(manifest, _MANIFEST), _rows(quarantine, _QUARANTINE)
    splits = _splits(summary, manifest)
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"number": number, "bytes": file_size, "percent": percent, "parts": _parts}
    template = environment.from_string(
        files("sigma_data.report").joinpath("report.html.j2").read_text(encoding="utf-8")
    )
    return template.render(
        title=printable(title),
        summary=summary,
        adds_up=summary["read"] + summary["made"]
        == summary["written"] + summary["filtered"] + summary["quarantined"] + summary["duplicates"],
        splits=splits,
        split_counts=[(name, summary["splits"].get(name, 0)) for name in splits],
        families=_families(manifest, splits),
        goal=sum(rule.goal or 0 for rule in FAMILY_RULES.values()),
        charts=[*sizes(manifest), tokens(manifest), references(manifest)],
        attributes=_attributes(manifest),
        components=_components(manifest),
        token_families=tokens_by_family(manifest),
        injections=injections(manifest),
        made=made(manifest),
        sources=sources(manifest, quarantine),
        filters=filters(quarantine),
        refused=[printable(str(file)) for file in _refused(quarantine)],
        rejects=_rejects(quarantine),
        removed=Counter(dict(quarantine.counts("code").iter_rows())),
        warnings=_warnings(manifest),
        reencoded=_reencoded(manifest),
        sheets=_sheets(manifest, read),
        colours=TOKEN_COLOURS,
        target_colour=TARGET_COLOUR,
    )


def _parts(text: str | None, references: int | None = None) -> list[tuple[PartKind, str]]:
    """An instruction as a card has room for."""
    return instruction_parts(text, references, _LONGEST_TEXT)


def _rows(table: pl.DataFrame | TableRows, schema: Mapping[str, pl.DataType]) -> TableRows:
    """The rows of a table; a frame may lack columns."""
    return table if isinstance(table, TableRows) else FrameRows(table, schema)


def _splits(summary: Mapping[str, Any], manifest: TableRows) -> list[str]:
    names = set(summary["splits"]) | {name for name, _ in manifest.counts("split").iter_rows()} - {None}
    return [name for name in _SPLITS if name in names] + sorted(names - set(_SPLITS))


def _families(manifest: TableRows, splits: Sequence[str]) -> list[dict[str, Any]]:
    counts = {(family, split): count for family, split, count in manifest.counts("family", "split").iter_rows()}
    rows = []
    for family, rule in FAMILY_RULES.items():
        by_split = [counts.get((family.value, split), 0) for split in splits]
        rows.append({
            "name": family.value, "summary": rule.summary, "goal": rule.goal, "splits": by_split, "total": sum(by_split)
        })  # fmt: skip
    return rows


def _attributes(manifest: TableRows) -> list[dict[str, Any]]:
    table = {name: counts for name, *counts in manifest.list_counts("attributes").iter_rows()}
    return [
        {"name": name, "times": table.get(name, (0, 0))[0], "samples": table.get(name, (0, 0))[1]}
        for name in ATTRIBUTES
    ]


def _components(manifest: TableRows) -> dict[str, Any]:
    sizes = list(values(manifest, "component").values())
    steps = ((1, 1), (2, 2), (3, 4), (5, 8), (9, 16), (17, None))
    entries = [
        (
            str(low) if low == high else f"{low}–{high}" if high else f"{low}+",
            sum(1 for size in sizes if size >= low and (high is None or size <= high)),
            f"{low} samples" if low == high else f"{low} to {high} samples" if high else f"{low} samples and more",
        )
        for low, high in steps
    ]
    return {
        "count": len(sizes),
        "largest": max(sizes, default=0),
        "shared": sum(1 for size in sizes if size > 1),
        "chart": Chart("Samples a component", "", bars(entries, "components")),
    }


def _refused(quarantine: TableRows) -> list[RefusedFile]:
    columns = ["source", "location", "row", "code", "message", "filtered"]
    parts = [frame.filter(pl.col("row").is_null()) for frame in quarantine.batches(columns)]
    return refused_files(pl.concat(parts)) if parts else []


def _rejects(quarantine: TableRows) -> list[dict[str, Any]]:
    counts: Counter[str] = Counter()
    firsts: dict[str, pl.DataFrame] = {}
    seen: dict[str, list[pl.DataFrame]] = {}
    place = ("source", "location", "row")
    for frame in quarantine.batches([*place, "code", "message", "instruction", "thumbnail", "filtered"]):
        rejected = frame.filter(~pl.col("filtered").fill_null(False), pl.col("code").is_not_null())
        for (code,), rows in rejected.group_by("code", maintain_order=True):
            name = str(code)
            counts[name] += len(rows)
            first = rows.sort(*place, maintain_order=True).head(1)
            firsts[name] = pl.concat([firsts.get(name, first), first]).sort(*place, maintain_order=True).head(1)
            seen.setdefault(name, []).append(rows.filter(pl.col("thumbnail").is_not_null()))
    result = []
    for code, count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])):
        first_row = firsts[code].row(0, named=True)
        result.append({
            "code": code,
            "count": count,
            "summary": _summary(code),
            "message": printable(first_row["message"] or ""),
            "place": _place(first_row),
            "examples": [
                {"uri": _uri(row["thumbnail"]), "words": printable(row["instruction"] or ""), "place": _place(row)}
                for row in _spread(pl.concat(seen[code]).sort(*place), EXAMPLES_A_CODE)
            ],
        })  # fmt: skip
    return result


def _warnings(manifest: TableRows) -> list[dict[str, Any]]:
    return [
        {"code": printable(code), "count": count, "summary": _summary(code)}
        for code, count in warnings_of(manifest).items()
    ]


def _reencoded(manifest: TableRows) -> list[dict[str, Any]]:
    """Why images were not stored as they came, the most frequent reason first."""
    counts = values(manifest, "images.reencoded")
    return [
        {"code": printable(code), "count": count, "summary": _REENCODED.get(code, "")}
        for code, count in sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    ]


def _summary(code: str) -> str:
    return RULES[code].summary if code in RULES else _PLANNED.get(code, "")


def _place(row: Mapping[str, Any]) -> str:
    where = " · ".join(str(row[key]) for key in ("source", "location") if row[key])
    return printable(where if row["row"] is None else f"{where} · row {row['row']}")


def _spread(frame: pl.DataFrame, count: int) -> Iterable[dict[str, Any]]:
    """`count` rows at even distances, so that every source and file is represented."""
    take = min(count, frame.height)
    return frame[[(2 * place + 1) * frame.height // (2 * take) for place in range(take)]].iter_rows(named=True)


def _sheets(manifest: TableRows, read: Read) -> list[dict[str, Any]]:
    images: Counter[tuple[str, int]] = Counter()
    for frame in manifest.batches(["family", "images"]):
        sizes = frame.select("family", pl.col("images").list.len().fill_null(0).alias("images"))
        images.update({(family, n): count for family, n, count in sizes.group_by("family", "images").len().iter_rows()})
    sheets: list[dict[str, Any]] = []
    chosen: dict[int, tuple[int, int]] = {}  # row -> sheet, card
    for family in Family:
        numbers = {n: count for (name, n), count in images.items() if name == family.value}
        if not (total := sum(numbers.values())):
            continue
        # Size and time of the page depend on its images: fewer cards of samples with many.
        mean = sum(min(max(n, 1), _IMAGES_A_CARD) * count for n, count in numbers.items()) / total
        cards_at_most = min(SAMPLES_A_FAMILY, max(6, int(_IMAGES_A_FAMILY / (mean or 1.0))))
        for card, row in enumerate(_spread_rows(manifest, family, cards_at_most)):
            chosen[row] = len(sheets), card
        summary = FAMILY_RULES[family].summary
        sheets.append({"name": family.value, "summary": summary, "total": total, "cards": {}})
    start = 0
    for frame in manifest.frames(_CARD_COLUMNS):
        for row in [row for row in chosen if start <= row < start + len(frame)]:
            sheet, card = chosen[row]
            sheets[sheet]["cards"][card] = _card(frame.row(row - start, named=True), read)
        start += len(frame)
    return [sheet | {"cards": [sheet["cards"][card] for card in sorted(sheet["cards"])]} for sheet in sheets]


def _spread_rows(manifest: TableRows, family: Family, count: int) -> list[int]:
    """The rows of `count` samples of a family at even distances in the order of the sources."""
    parts = []
    start = 0
    for frame in manifest.batches(["family", "source", "location", "row", "id"]):
        rows = frame.with_row_index("at", offset=start).filter(pl.col("family") == family.value)
        parts.append(rows.drop("family"))
        start += len(frame)
    order = pl.concat(parts).sort("source", "location", "row", "id")
    return [row["at"] for row in _spread(order, count)]


def _card(row: Mapping[str, Any], read: Read) -> Card:
    images = row["images"] or ()
    targets = [image for image in images if image["role"] == "target"]
    references = [image for image in images if image["role"] != "target"]
    shown_targets = targets[: _IMAGES_A_CARD // 2]
    shown = references[: _IMAGES_A_CARD - len(shown_targets)]
    # Many images are shown smaller, so they need fewer pixels.
    side = 160 if len(shown) + len(shown_targets) <= 4 else 120

    def thumb(image: Mapping[str, Any]) -> Thumbnail:
        small = thumbnail(read(row["shard"], image["offset"], image["size"]), side, quality=75)
        width, height = image["width"] or 1, image["height"] or 1
        words = f"image {image['number']}, {image['role']}, {width} × {height}"
        return Thumbnail(image["number"], _uri(small), round(min(3.0, max(0.4, width / height)), 3), words)

    return Card(
        id=printable(row["id"] or ""),
        facts=f"{row['split']} · {number(row['tokens'] or 0)} tokens{_origin(row)}",
        place=_place(row),
        references=tuple(thumb(image) for image in shown),
        targets=tuple(thumb(image) for image in shown_targets),
        hidden=len(images) - len(shown) - len(shown_targets),
        turns=tuple(
            (_parts(turn["instruction"], len(references)), _cut(printable(turn["response"] or "")))
            for turn in (row["turns"] or ())[:4]
        ),
    )


def _origin(row: Mapping[str, Any]) -> str:
    """What sigma did to a sample, or made it of."""
    notes = [f"made by {row['made']}" if row["made"] else "", f"tokens {row['injection']}" if row["injection"] else ""]
    return "".join(f" · {printable(note)}" for note in notes if note)


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST_ANSWER else text[:_LONGEST_ANSWER].rstrip() + "…"


def _uri(data: bytes | None) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode() if data else ""
