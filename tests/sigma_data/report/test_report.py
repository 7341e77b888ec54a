"""Promises of the report: complete in itself, inert, the same every time, and true to the frames."""

from __future__ import annotations

import re
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import polars as pl
import pytest
from support.image_files import plain

from sigma_data.corpus.checks import RULES
from sigma_data.instruction import ATTRIBUTES
from sigma_data.report.charts import file_size, histogram, number, percent
from sigma_data.report.report import EXAMPLES_A_CODE, SAMPLES_A_FAMILY, render_report
from sigma_data.sample import FAMILY_RULES, Family
from sigma_data.token_style import TOKEN_COLOURS

IMAGE = pl.Struct({
    "number": pl.Int16, "role": pl.String, "member": pl.String, "format": pl.String, "mode": pl.String,
    "width": pl.Int32, "height": pl.Int32, "size": pl.Int64, "offset": pl.Int64, "sha256": pl.String,
    "signature": pl.Binary, "reencoded": pl.String,
})  # fmt: skip
TURN = pl.Struct({"instruction": pl.String, "target": pl.Int16, "response": pl.String})
MANIFEST: dict[str, Any] = {
    "id": pl.String, "family": pl.String, "family_inferred": pl.Boolean, "split": pl.String, "shard": pl.String,
    "index": pl.Int32, "offset": pl.Int64, "size": pl.Int64, "json_offset": pl.Int64, "json_size": pl.Int64,
    "images": pl.List(IMAGE), "instruction": pl.String, "turns": pl.List(TURN), "attributes": pl.List(pl.String),
    "references": pl.Int16, "tokens": pl.Int32, "component": pl.String, "source": pl.String, "location": pl.String,
    "row": pl.Int64, "license": pl.String, "warnings": pl.List(pl.String), "injection": pl.String, "made": pl.String,
}  # fmt: skip
QUARANTINE: dict[str, Any] = {
    "source": pl.String, "location": pl.String, "row": pl.Int64, "id": pl.String, "family": pl.String,
    "code": pl.String, "codes": pl.List(pl.String), "message": pl.String, "instruction": pl.String,
    "thumbnail": pl.Binary, "filtered": pl.Boolean,
}  # fmt: skip

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)> <style>x {{ 7 * 7 }} & <image_1>"


BLOB = plain(kind="jpeg")


def sample(
    at: int, *, family: str = "editing", text: str = "Make <image_1> <lighting>dark.", **changes: Any
) -> dict[str, Any]:
    roles = changes.pop("roles", ("reference", "target"))
    images = [
        {"number": place, "role": role, "width": 64, "height": 48, "size": len(BLOB), "offset": 0}
        for place, role in enumerate(roles, start=1)
    ]
    response = changes.pop("response", None)
    return {
        "id": f"id{at:06}", "family": family, "split": "train", "shard": f"train/{family}-00000.tar", "size": 1000,
        "images": images, "instruction": text, "attributes": ["lighting"], "references": roles.count("reference"),
        "turns": [{"instruction": text, "target": None if response else len(roles), "response": response}],
        "tokens": 1000 + at, "component": f"c{at}", "source": "demo", "location": "demo.jsonl", "row": at,
        "license": "cc0-1.0", "warnings": [],
    } | changes  # fmt: skip


def reject(at: int, code: str = "truncated", **changes: Any) -> dict[str, Any]:
    return {
        "source": "demo", "location": "demo.jsonl", "row": at, "code": code, "codes": [code],
        "message": f"message {at}", "instruction": f"instruction {at}", "thumbnail": BLOB,
    } | changes  # fmt: skip


def report(
    rows: list[dict[str, Any]],
    rejects: list[dict[str, Any]] | None = None,
    *,
    title: str = "demo",
    read: Callable[[str, int, int], bytes] = lambda shard, offset, size: BLOB[offset : offset + size],
    **changes: Any,
) -> str:
    rejects = rejects or []
    duplicates = sum(1 for row in rejects if "duplicate" in row["code"])
    splits = {name: sum(1 for row in rows if row["split"] == name) for name in ("train", "val", "test")}
    summary = {
        "read": len(rows) + len(rejects), "written": len(rows), "quarantined": len(rejects) - duplicates,
        "duplicates": duplicates, "splits": splits, "bytes": 1000 * len(rows), "quarantined_by_code": {},
        "images": sum(len(row["images"]) for row in rows),
    } | changes  # fmt: skip
    return render_report(
        title=title,
        summary=summary,
        manifest=pl.DataFrame(rows, schema=MANIFEST),
        quarantine=pl.DataFrame(rejects, schema=QUARANTINE),
        read=read,
    )


class Page(HTMLParser):
    """Tags, attributes and text of a page; complains where tags do not match."""

    VOID = frozenset({"meta", "img", "br", "link", "line", "rect"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        # Thin spaces are part of what is promised; ordinary white space is not.
        return re.sub(r"[ \n]+", " ", " ".join(self.words))

    def having(self, name: str) -> list[dict[str, str | None]]:
        return [attributes for _, attributes in self.tags if name in (attributes.get("class") or "").split()]


def test_an_empty_corpus_has_a_report() -> None:
    for page in (
        Page(report([])),
        Page(render_report(
            title="empty", manifest=pl.DataFrame(), quarantine=pl.DataFrame(), read=lambda *_: b"",
            summary={"read": 0, "written": 0, "quarantined": 0, "duplicates": 0, "splits": {}, "bytes": 0, "images": 0},
        )),
    ):  # fmt: skip
        assert "The corpus has no samples." in page.text
        assert "Nothing was rejected." in page.text
        assert "does not add up" not in page.text


def test_the_file_loads_nothing_and_runs_nothing() -> None:
    page = Page(report([sample(1)], [reject(2)]))
    assert not {"script", "link", "iframe", "object", "embed", "base", "form"} & {tag for tag, _ in page.tags}
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        assert (attributes.get("src") or "data:image/jpeg;base64,").startswith("data:image/jpeg;base64,")
        assert (attributes.get("href") or "#").startswith("#")
    html = report([sample(1)], [reject(2)])
    assert "default-src 'none'" in html and "url(" not in html and "@import" not in html


def test_hostile_text_is_inert_wherever_it_comes_from() -> None:
    texts = dict.fromkeys(("id", "split", "component", "source", "location", "license"), HOSTILE)
    rows = [sample(1, text=HOSTILE, response=HOSTILE, warnings=[HOSTILE], **texts)]
    rejects = [
        reject(1, code=HOSTILE, source=HOSTILE, location=HOSTILE, message=HOSTILE, instruction=HOSTILE, id=HOSTILE)
    ]
    page = Page(report(rows, rejects, title=HOSTILE, splits={HOSTILE: 1}))
    assert not [tag for tag, attributes in page.tags if tag == "script" or "onerror" in attributes]
    assert "{{ 7 * 7 }}" in page.text
    assert "<script>alert(1)</script>" in page.text


def test_the_same_frames_give_the_same_bytes() -> None:
    rows = [sample(at, family=family) for at, family in enumerate([*Family] * 4)]
    rejects = [reject(at, code) for at, code in enumerate(["truncated", "bomb", "duplicate"] * 4)]
    assert report(rows, rejects) == report(rows, rejects)


def test_the_sum_is_shown_and_a_wrong_one_is_called_out() -> None:
    rows, rejects = [sample(1), sample(2)], [reject(3), reject(4, "duplicate")]
    right, wrong = Page(report(rows, rejects)), Page(report(rows, rejects, written=9))
    assert "4 read = 2 written + 1 quarantined + 1 duplicates" in right.text
    assert "does not add up" not in right.text
    assert "does not add up" in wrong.text


def test_every_family_stands_beside_its_goal() -> None:
    page = Page(report([sample(at) for at in range(7)]))
    assert "700\u202f600" in page.text
    for family, rule in FAMILY_RULES.items():
        assert family.value in page.text and rule.summary in page.text
        if rule.goal:
            assert f"of {number(rule.goal)}" in page.text
    assert len(page.having("goal")) == len(FAMILY_RULES) + 1


def test_all_fifteen_tokens_are_listed_in_their_order_and_colours() -> None:
    html = report([sample(1, attributes=["style", "style", "id"])])
    usage = html[html.index('class="usage"') : html.index("<h3>By family")]
    assert tuple(re.findall(r'token t-(\w+)"', usage)) == ATTRIBUTES
    assert "2×" in usage
    for name, colour in TOKEN_COLOURS.items():
        assert f".t-{name}{{--t:{colour}}}" in html


def test_rejects_tell_the_rule_an_example_and_a_few_pictures() -> None:
    page = Page(report([], [reject(at) for at in range(30)] + [reject(30, "near_duplicate", thumbnail=None)]))
    assert RULES["truncated"].summary in page.text
    assert "message 0 demo · demo.jsonl · row 0" in page.text
    assert "near_duplicate" in page.text
    assert sum(tag == "img" for tag, _ in page.tags) == EXAMPLES_A_CODE


def test_warnings_are_counted_by_code() -> None:
    code = "unnamed_reference"
    page = Page(report([sample(1, warnings=[code, "odd: x"]), sample(2, warnings=[code])]))
    assert RULES[code].summary in page.text
    assert f"2 {code}" in page.text and "1 odd" in page.text


def test_contact_sheets_show_a_dozen_a_family_from_everywhere() -> None:
    rows = [sample(at, family="layout") for at in range(1200)] + [sample(5000, family="relation")]
    html = report(rows)
    page = Page(html)
    assert len(page.having("card")) == SAMPLES_A_FAMILY + 1
    ids = [int(found) for found in re.findall(r"id00(\d{4}) ·", html)]
    assert any(at < 100 for at in ids) and any(1100 <= at < 1200 for at in ids)


def test_a_card_shows_references_target_chips_and_answer() -> None:
    page = Page(report([
        sample(1, roles=("reference",) * 9 + ("target",)),
        sample(2, family="understanding", roles=("reference",), text="<image>\nWhat?", response="A blue square."),
    ]))  # fmt: skip
    assert "+4" in page.text and "A blue square." in page.text
    assert len(page.having("thumb")) == 6 + 1
    assert len([tag for tag in page.having("thumb") if "target" in (tag["class"] or "")]) == 1
    assert page.having("t-lighting") and page.having("place")


def test_a_picture_that_cannot_be_decoded_leaves_a_grey_box() -> None:
    page = Page(report([sample(1)], read=lambda *_: b"nonsense"))
    assert page.text.count("cannot be decoded") == 2
    assert not [tag for tag, _ in page.tags if tag == "img"]


def test_only_the_contact_sheets_read_shards() -> None:
    calls: list[str] = []

    def read(shard: str, offset: int, size: int) -> bytes:
        calls.append(shard)
        return BLOB[offset : offset + size]

    html = report([sample(at) for at in range(2000)], read=read)
    assert len(calls) == 2 * SAMPLES_A_FAMILY
    assert len(html) < 200_000


@pytest.mark.parametrize(
    ("value", "text"), [(0, "0"), (999, "999"), (1000, "1\u202f000"), (1234567, "1\u202f234\u202f567")]
)
def test_numbers_have_thin_thousands_separators(value: int, text: str) -> None:
    assert number(value) == text


def test_shares_and_sizes_round_honestly() -> None:
    assert percent(0, 0) == "0\u202f%"
    assert percent(1, 100_000) == "<\u202f0.1\u202f%"
    assert percent(442, 1000) == "44.2\u202f%"
    assert percent(5, 5) == "100\u202f%"
    assert [file_size(n) for n in (0, 999, 1500, 2_500_000_000)] == [
        "0\u202fB", "999\u202fB", "1.5\u202fkB", "2.5\u202fGB",
    ]  # fmt: skip


@pytest.mark.parametrize("values", [[5], [640] * 9, list(range(3000)), [1, 1_000_000], [100] * 999 + [10**6]])
def test_a_histogram_loses_no_value(values: list[int]) -> None:
    chart = histogram("sides", values, (16, 64, 256, 1024), "pixels")
    counted = sum(int(bar.tip.rpartition(": ")[2].split(" ")[0].replace("\u202f", "")) for bar in chart.bars)
    assert counted == len(values)
    assert all(bar.x >= 0 and bar.x + bar.width <= 480 and bar.y >= 0 and bar.height >= 0 for bar in chart.bars)


def test_filters_are_told_apart_from_rejects_with_their_reason_and_sources() -> None:
    rejects = [
        reject(0),
        reject(1, "license_refused", filtered=True, message="the license x is denied"),
        reject(2, "license_refused", filtered=True, source="other"),
        reject(3, "their_own", filtered=True),
    ]
    page = Page(report([sample(0)], rejects, filtered=3, quarantined=1))
    assert "5 read = 1 written + 3 filtered + 1 quarantined + 0 duplicates" in page.text
    told = page.text[page.text.index("Filters Good rows") : page.text.index("Components Samples")]
    assert "2 license_refused A license that the build does not take. the license x is denied demo 1, other 1" in told
    assert "1 their_own message 3 demo 1" in told
    assert "license_refused" not in page.text[page.text.index("Rejects Every row") :]
    assert "does not add up" not in page.text


def test_tokens_are_counted_by_family_and_so_is_what_injection_did() -> None:
    rows = [
        sample(0, family="editing", attributes=["subject", "subject"], injection="rules: injected"),
        sample(1, family="stylization", attributes=["style"], injection="rules: injected"),
        sample(2, family="stylization", attributes=[], injection="none: plain"),
    ]
    page = Page(report(rows))
    told = page.text[page.text.index("By family") : page.text.index("Sources and licenses")]
    assert "Token stylization editing style 1 0 subject 0 1" in told
    assert "Outcome stylization editing all rules: injected 1 1 2 none: plain 1 0 1" in told
    assert "tokens rules: injected" in page.text
    assert "How they came there" not in Page(report([sample(0)])).text


def test_made_samples_are_told_with_their_origin() -> None:
    rows = [
        sample(0),
        sample(1, family="selective", made="reversal: 0 1"),
        sample(2, family="selective", made="reversal"),
    ]
    page = Page(report(rows, made=2, duplicates=2))
    assert "3 read + 2 made = 3 written" in page.text
    assert "does not add up" not in page.text
    assert "reversal selective demo 2 2" in page.text
    assert "made by reversal: 0 1" in page.text
