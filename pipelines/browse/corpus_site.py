"""The pages of a corpus: samples, one of them, what was left out, what shares images, the build's report."""

from __future__ import annotations

import base64
import json
import threading
from collections.abc import Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any

import polars as pl

from pipelines.browse.catalog import Catalog, Filters
from pipelines.browse.site import PAGE, Answer, NotFoundError, image_answer, number, own_file, page_of, render
from sigma_data.corpus.corpus import REPORT, Corpus
from sigma_data.instruction import parse
from sigma_data.sample import Sample
from sigma_data.text_format import counted
from sigma_data.token_style import instruction_parts, printable

_LONGEST_ON_CARD = 420
"""Characters of an instruction on a card."""
_IMAGES_A_CARD = 5
_COMPONENTS = 10
_LINKS = [("Samples", "/"), ("Quarantine", "/quarantine"), ("Shared images", "/pairs"), ("Report", "/report")]


class CorpusSite:
    """A corpus. Raises CorpusError for a damaged one."""

    def __init__(self, corpus: Corpus) -> None:
        self._corpus, self._catalog = corpus, Catalog(corpus)
        self._name = printable(corpus.path.resolve().name)
        self._found = lru_cache(32)(self._catalog.find)
        self._decoding = threading.Semaphore(2)

    def answer(self, path: Sequence[str], query: Mapping[str, str]) -> Answer:
        """See `Site`."""
        match path:
            case []:
                return self._samples(query)
            case ["sample", row]:
                return self._sample(number(row))
            case ["image", row, image]:
                return self._image(number(row), number(image), small="small" in query)
            case ["quarantine"]:
                return self._quarantine_page(query)
            case ["pairs"]:
                return self._pairs(query)
            case ["report"]:
                return Answer(own_file(self._corpus.path, REPORT), own_policy=True)
            case _:
                raise NotFoundError

    def _samples(self, query: Mapping[str, str]) -> Answer:
        filters = Filters.of(query)
        rows = self._found(filters)
        at = page_of(len(rows), query, "/")
        cards = [self._card(int(row)) for row in rows[at.first : at.first + PAGE]]
        sums = self._corpus.sums
        title = f"{self._name}: {counted(sums['written'], 'sample')}, {sums['quarantined']:,} in quarantine"
        return self._page(
            "samples.html.j2", title=title, filters=filters, choices=self._catalog.choices, at=at, cards=cards
        )

    def _card(self, number_: int) -> dict[str, Any]:
        row = self._catalog.row(number_)
        images = [
            {"number": one["number"], "role": one["role"], "target": one["role"] == "target"} for one in row["images"]
        ]
        targets = [image for image in images if image["target"]][:2]
        shown = [image for image in images if not image["target"]][: _IMAGES_A_CARD - len(targets)] + targets
        checks = row["checks"].strip(",")
        facts = f"{row['family']} · {row['split']} · {row['tokens']:,} tokens · {row['source']} · {row['license']}"
        return {
            "row": number_, "id": row["id"], "images": shown,
            "parts": instruction_parts(row["instruction"], row["references"], _LONGEST_ON_CARD),
            "facts": printable(facts + (f" · warning: {checks}" if checks else "")),
        }  # fmt: skip

    def _sample(self, number_: int) -> Answer:
        row = self._row(number_)
        sample, sizes = self._catalog.sample(number_)
        targets = set(sample.targets)
        images = [
            {
                "number": one.number, "target": one.number in targets,
                "role": one.kind or ("target" if one.number in targets else "reference"),
                "width": sizes[one.number][0], "height": sizes[one.number][1],
            }
            for one in sample.images
        ]  # fmt: skip
        facts = [
            ("id", sample.id), ("split", row["split"]), ("shard", row["shard"]), ("source", sample.source.name),
            ("location", sample.source.location), ("row there", sample.source.row), ("license", sample.source.license),
            ("tokens", f"{row['tokens']:,}"), ("warnings", row["checks"].strip(",") or "none"),
            ("made by", row["made"] or "nobody: as in the source"),
            ("attribute tokens by", row["injection"] or "the source"),
        ]  # fmt: skip
        notes = [("Ground truth", _pretty(sample.truth)), ("Provenance", _pretty(sample.provenance))]
        return self._page(
            "sample.html.j2",
            title=f"Sample {sample.id}",
            sample=sample,
            row=number_,
            images=images,
            turns=_turns(sample),
            facts=[(name, printable(str(value))) for name, value in facts],
            notes=[note for note in notes if note[1]],
            component=row["component"],
            related=len(self._found(Filters(component=str(row["component"])))),
        )

    def _image(self, row: int, image: int, *, small: bool) -> Answer:
        try:
            data = self._catalog.image(row, image)
        except LookupError:
            raise NotFoundError from None
        with self._decoding:  # thumbnails of a page come all at once, and each may take a large image to decode
            return image_answer(data, small=small)

    @cached_property
    def _quarantine(self) -> pl.DataFrame:
        return self._corpus.quarantine

    def _quarantine_page(self, query: Mapping[str, str]) -> Answer:
        table = self._quarantine
        code, source = query.get("code", ""), query.get("source", "")
        found = table
        for name, value in (("code", code), ("source", source)):
            if value:
                found = found.filter(pl.col(name) == value)
        at = page_of(len(found), query, "/quarantine")
        rows = [
            {
                "uri": _uri(row["thumbnail"]), "code": printable(row["code"] or ""), "filtered": row["filtered"],
                "message": printable(row["message"] or ""), "words": printable((row["instruction"] or "")[:600]),
                "place": printable(f"{row['source']} · {row['location']} · row {row['row']}"),
            }
            for row in found.slice(at.first, PAGE).iter_rows(named=True)
        ]  # fmt: skip
        choices = {name: [*table[name].drop_nulls().value_counts(sort=True).iter_rows()] for name in ("code", "source")}
        title = f"{self._name}: {counted(len(table), 'record')} not written"
        return self._page(
            "quarantine.html.j2", title=title, at=at, rows=rows, choices=choices, code=code, source=source
        )

    def _pairs(self, query: Mapping[str, str]) -> Answer:
        total = self._catalog.shared
        at = page_of(total, query, "/pairs", _COMPONENTS)
        groups = [
            {
                "component": component, "rows": rows,
                "pairs": [
                    {"sides": list(zip((one.first, one.second), one.images, strict=True)), "exact": one.exact}
                    for one in pairs
                ],
            }
            for component, rows, pairs in self._catalog.pairs(at.first, _COMPONENTS)
        ]  # fmt: skip
        title = f"{self._name}: {counted(total, 'component')} of several samples"
        return self._page("pairs.html.j2", title=title, at=at, groups=groups)

    def _row(self, number_: int) -> dict[str, Any]:
        try:
            return self._catalog.row(number_)
        except LookupError:
            raise NotFoundError from None

    def _page(self, template: str, **values: Any) -> Answer:
        return render(template, links=_LINKS, **values)


def _turns(sample: Sample) -> list[dict[str, Any]]:
    count = len(sample.references)
    found = []
    for index, turn in enumerate(sample.turns):
        read = parse(turn.instruction, references=count)
        named = set(read.placeholders)
        before = tuple(one for one in sample.context(index) if one not in named)
        groups = read.groups(before=before, bindings=dict(turn.bindings))
        found.append({
            "parts": instruction_parts(turn.instruction, count, 20_000),
            "alternatives": [instruction_parts(text, count, 20_000) for text in turn.alternatives],
            "groups": list(zip(read.attributes, groups, strict=True)),
            "target": turn.target,
            "response": None if turn.response is None else printable(turn.response),
        })  # fmt: skip
    return found


def _pretty(text: str | None) -> str:
    if not text:
        return ""
    try:
        return printable(json.dumps(json.loads(text), indent=1, ensure_ascii=False))
    except (ValueError, RecursionError):
        return printable(text)


def _uri(data: bytes | None) -> str:
    return "data:image/jpeg;base64," + base64.b64encode(data).decode() if data else ""
