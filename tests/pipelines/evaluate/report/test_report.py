"""Promises of the evaluation report: nothing left out, nothing claimed, one inert file that opens anywhere."""

from __future__ import annotations

import base64
import hashlib
import io
import itertools
import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.evaluations import CLIP_I, RMSE, plain_image, run

from pipelines.evaluate.aggregate import MetricInfo, RunScores, aggregate
from pipelines.evaluate.item import Item, Result, Score
from pipelines.evaluate.report import report
from pipelines.evaluate.report.page import IMAGE_BYTES, render_page
from pipelines.evaluate.report.published import NOTE, ROWS, published
from pipelines.evaluate.report.report import MARKDOWN, REPORT, RESULTS, write_report
from pipelines.evaluate.report.tables import tables
from pipelines.evaluate.report.thumbnails import LONGEST_SIDE, thumbnails
from sigma_data.errors import BuildError, ConfigError

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)> \"'& {{ 7*7 }} | `x` <!--"


def hostile_run(name: str = HOSTILE) -> RunScores:
    """A run in which every word that comes from outside is an attack."""
    metric = MetricInfo(f"M {HOSTILE}", HOSTILE, "up", HOSTILE)
    item = Item(HOSTILE, HOSTILE, f"<style>x {HOSTILE} <image_1>", (plain_image(), b"no image"), answer_text=HOSTILE)
    broken = Item("broken", HOSTILE, "Do.", ())
    return RunScores(
        name=name, benchmark=HOSTILE, settings={HOSTILE: {HOSTILE: HOSTILE}, "none": None}, metrics=[metric],
        skipped={f"S {HOSTILE}": HOSTILE}, results=[Result(item, text=HOSTILE), Result(broken, failure=HOSTILE)],
        scores=[], summary={HOSTILE: 0.5}, main={HOSTILE: metric.name},
    )  # fmt: skip


def two_runs() -> list[RunScores]:
    first = run({f"i{n}": {"CLIP-I": 50.0 + n, "RMSE": 1.0} for n in range(30)}, metrics=(CLIP_I, RMSE), name="before")
    second = run(
        {f"i{n}": {"CLIP-I": 55.0 + n, "RMSE": 0.5} for n in range(29)},
        metrics=(CLIP_I, RMSE), name="after", failed={"i29": "the image is <too> large"},
        skipped={"DINO": "no weights: set --dino"}, settings={"seed": 43},
    )  # fmt: skip
    return [first, second]


class Page(HTMLParser):
    """The elements of a page with their attributes, and the text of its scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.scripts: dict[str, str] = {}
        self.text = ""
        self._script: str | None = None
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attrs}
        self.elements.append((tag, found))
        if tag == "script":
            self._script = found.get("id", "main")
            self.scripts[self._script] = ""

    def handle_endtag(self, tag: str) -> None:
        if tag == "script":
            self._script = None

    def handle_data(self, data: str) -> None:
        if self._script is not None:
            self.scripts[self._script] += data
        else:
            self.text += data

    def all(self, tag: str) -> list[dict[str, str]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def data(self) -> Any:
        return json.loads(self.scripts["data"])

    @property
    def images(self) -> list[bytes]:
        blocks = [self.scripts[name] for name in self.scripts if name.startswith("images-")]
        return [base64.b64decode(line) for block in blocks for line in block.split("\n")]


def page(runs: list[RunScores], image_bytes: int = IMAGE_BYTES) -> Page:
    rows = [aggregate(one) for one in runs]
    comparisons = [report.compare(runs[0], one) for one in runs[1:]]
    return Page(render_page(runs, rows, tables(runs, rows), comparisons, image_bytes=image_bytes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("report")
    write_report(two_runs(), place / "new")
    return place / "new"


def test_results_hold_every_score_every_failure_and_what_is_needed_to_read_them(folder: Path) -> None:
    stored = json.loads((folder / RESULTS).read_text(), parse_constant=lambda name: pytest.fail(name))
    before, after = stored["runs"]
    assert before["scores"]["i7"] == {"CLIP-I": 57.0, "RMSE": 1.0}
    assert len(before["scores"]) == len(after["scores"]) == 30
    assert after["failures"] == [
        {"item": "i29", "family": "compositional", "metric": "", "reason": "the image is <too> large"}
    ]
    assert after["skipped"] == {"DINO": "no weights: set --dino"}
    assert before["settings"] == {"seed": 42, "guidance": {"text": 4.0}}
    assert before["metrics"][0] == {
        "name": "CLIP-I", "version": "1", "better": "up", "definition": CLIP_I.definition,
    }  # fmt: skip
    family = after["families"][0]
    assert (family["items"], family["failed"], family["main"]) == (30, 1, "CLIP-I")
    assert family["metrics"]["CLIP-I"] | {"low": 0, "high": 0} == {
        "mean": 69.0, "low": 0, "high": 0, "scored": 29, "failed": 1,
    }  # fmt: skip
    first = stored["comparisons"][0]["differences"][0]
    assert (first["metric"], first["mean"], first["pairs"], first["unpaired"]) == ("CLIP-I", 5.0, 29, 1)
    assert stored["published"]["note"] == NOTE and stored["published"]["rows"]


def test_the_markdown_has_ours_with_intervals_and_published_rows_marked(folder: Path) -> None:
    text = (folder / MARKDOWN).read_text()
    assert re.search(
        r"\| \*\*after\*\* \| 30 \(1 failed\) \| 69\.00 \\\[\d\d\.\d\d, \d\d\.\d\d\\\] \(1 failed\) \|", text
    )
    assert "| *SIGMA, published (SIGMA-Benchmark, arXiv 2602.07564)* |  | 78.94 |" in text
    assert NOTE in text
    assert "| CLIP-I ↑ | RMSE ↓ | DINO |" in text
    assert "skipped" in text and "DINO: no weights: set --dino" in text
    assert "- i29 (compositional): the image is &lt;too> large" in text
    assert "**CLIP-I**, version 1: 100 cos" in text
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert all(line.count("|") - line.count("\\|") in (6, 7) for line in rows)


def test_published_rows_are_the_papers_numbers_and_belong_to_their_benchmark() -> None:
    named = {(row.test_set, row.method): row.values for row in published("sigma", "compositional")}
    assert named["SIGMA-Benchmark", "SIGMA"] == {"CLIP": 30.29, "CLIP-I": 78.94, "DINO": 64.08, "DreamSim": 62.45}
    assert named["XVerseBench", "BAGEL"] == {"CLIP": 24.32, "CLIP-I": 66.32, "DINO": 56.13, "DreamSim": 53.31}
    assert [row.values for row in published("sigma", "layout")] == [{"F1": 0.10}, {"F1": 0.44}]
    assert published("world", "compositional") == ()
    assert all(row.source.startswith("arXiv ") for row in ROWS)


def test_a_report_of_another_benchmark_has_no_published_rows_and_no_note(tmp_path: Path) -> None:
    write_report([run({"a": {"CLIP-I": 60.0}}, benchmark="world")], tmp_path)
    for name in (MARKDOWN, REPORT):
        text = (tmp_path / name).read_text()
        assert "published" not in text.lower() and "78.94" not in text


def test_runs_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    one = run({"a": {"CLIP-I": 60.0}})
    for runs, words in (
        ([], "no run"), ([one, one], "called ours"),
        ([one, run({"a": {}}, name="x", benchmark="world")], "one benchmark"),
    ):  # fmt: skip
        with pytest.raises(ConfigError, match=words):
            write_report(runs, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_report_without_results_or_scores_says_so(tmp_path: Path) -> None:
    write_report([run({}), run({}, name="second", skipped={"CLIP-I": "no weights"})], tmp_path)
    assert "Nothing was scored" in (tmp_path / REPORT).read_text()


def test_the_same_runs_give_the_same_bytes(folder: Path, tmp_path: Path) -> None:
    write_report(two_runs(), tmp_path)
    for name in (RESULTS, MARKDOWN, REPORT):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {RESULTS, MARKDOWN, REPORT}


def test_what_stops_halfway_leaves_the_old_report_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_report([run({"a": {"CLIP-I": 60.0}})], tmp_path)
    old = (tmp_path / REPORT).read_bytes()
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(BuildError, match="disk is full"):
        write_report([run({"b": {"CLIP-I": 10.0}})], tmp_path)
    assert (tmp_path / REPORT).read_bytes() == old
    assert len(list(tmp_path.iterdir())) == 3


def test_hostile_words_are_words_and_nothing_else() -> None:
    one = page([hostile_run(), hostile_run("second")])
    assert set(one.scripts) == {"data", "images-0", "main"}
    assert not one.all("img")
    assert all(not name.startswith("on") for _, attributes in one.elements for name in attributes)
    assert one.text.count(HOSTILE) > 10
    assert one.data["items"][0][0] == one.data["items"][0][5] == HOSTILE


def test_hostile_words_stay_in_their_cell_of_the_markdown(tmp_path: Path) -> None:
    write_report([hostile_run()], tmp_path)
    text = (tmp_path / MARKDOWN).read_text()
    assert not re.search(r"<(?=[a-z/!])", text)
    widths = {re.sub(r"\\\|", "", line).count("|") for line in text.splitlines() if line.startswith("|")}
    assert widths == {4}  # a name, items and the aggregate


def test_only_the_pages_own_script_may_run_and_nothing_is_loaded(folder: Path) -> None:
    one = Page((folder / REPORT).read_text())
    policy = next(meta["content"] for meta in one.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    digest = base64.b64encode(hashlib.sha256(one.scripts["main"].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'")
    runs_by_itself = [script for script in one.all("script") if "type" not in script]
    assert len(runs_by_itself) == 1
    places = [value for _, attributes in one.elements for name, value in attributes.items() if name in ("src", "href")]
    assert places and all(place.startswith("#") for place in places)
    assert "innerHTML" not in one.scripts["main"] and "url(" not in (folder / REPORT).read_text()


def test_the_page_reads_well_without_eyes(folder: Path) -> None:
    one = Page((folder / REPORT).read_text())
    ids = [attributes["id"] for _, attributes in one.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert all(link["href"][1:] in ids for link in one.all("a"))
    assert one.all("html")[0]["lang"] == "en"
    assert all("scope" in heading for heading in one.all("th"))
    assert all(table["aria-labelledby"] in ids for table in one.all("table") if "class" not in table)
    assert len(one.all("select")) == len(one.all("label")) == 4
    levels = [int(tag[1]) for tag, _ in one.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_every_item_of_every_run_is_in_the_page_with_its_parts() -> None:
    one = page(two_runs()).data
    assert one["runs"] == ["before", "after"]
    assert [item[0] for item in one["items"]] == [f"i{n}" for n in range(30)]
    item = one["items"][3]
    assert item[2] == ["Put the ", ["subject"], "thing i3 of ", 1, " on ", 2, "."]
    assert len(item[3]) == 2 and item[4] >= 0
    assert item[6][0][3] == {"0": 53.0, "1": 1.0} and item[6][1][3] == {"0": 58.0, "1": 0.5}
    assert one["items"][29][6][1][:3] == [-1, None, "the image is <too> large"]


def test_the_reason_of_a_score_reaches_the_page_whether_or_not_there_is_a_value() -> None:
    one = run({"a": {}, "b": {}}, reasons={("a", "CLIP-I"): "too small"})
    one.scores.append(Score("b", "CLIP-I", 0.0, "the answer gives no letter"))
    assert [item[6][0][3:] for item in page([one]).data["items"]] == [
        [{}, {"0": "too small"}], [{"0": 0.0}, {"0": "the answer gives no letter"}],
    ]  # fmt: skip


def test_equal_images_are_kept_once_and_all_are_small() -> None:
    big = plain_image(size=(900, 300))
    items = [Item(f"i{n}", "editing", "Do <image_1>.", (big,), big) for n in range(5)]
    one = page([RunScores("a", "world", {}, [], {}, [Result(item, image=big) for item in items], [])])
    assert len(one.images) == 1
    with Image.open(io.BytesIO(one.images[0])) as image:
        assert (image.format, image.size) == ("JPEG", (LONGEST_SIDE, 85))
    assert one.data["sizes"] == [[LONGEST_SIDE, 85]]


def noise(count: int, side: int = 300) -> list[bytes]:
    random = np.random.default_rng(0)
    made = []
    for _ in range(count):
        buffer = io.BytesIO()
        Image.fromarray(random.integers(0, 256, (side, side, 3), dtype=np.uint8), "RGB").save(buffer, "JPEG")
        made.append(buffer.getvalue())
    return made


@pytest.mark.parametrize("budget", [0, 9_000, 60_000, 400_000])
def test_thumbnails_never_weigh_more_than_their_budget_and_use_what_they_may(budget: int) -> None:
    made = thumbnails(noise(8), budget)
    total = sum(len(thumb.data or b"") for thumb in made)
    assert total <= budget
    assert all(thumb.missing for thumb in made if thumb.data is None)
    assert total >= 0.5 * min(budget, 100_000)
    if budget == 400_000:
        assert {(thumb.width, thumb.height) for thumb in made} == {(LONGEST_SIDE, LONGEST_SIDE)}


def test_an_image_that_cannot_be_decoded_or_has_no_room_says_so() -> None:
    assert [thumb.missing for thumb in thumbnails([b"no image", plain_image()], 10**6)] == ["cannot be decoded", ""]
    assert page(two_runs(), image_bytes=0).data["sizes"][0] == "left out to keep the page small"


def test_a_skipped_metric_has_a_column_only_where_a_paper_has_it() -> None:
    families = {"a": "compositional", "b": "editing"}
    one = run(
        {"a": {"CLIP-I": 1.0}, "b": {"CLIP-I": 1.0}}, families=families, skipped={"DINO": "no weights", "AES": "none"}
    )
    made = {table.family: [column.name for column in table.columns] for table in tables([one], [aggregate(one)])}
    assert made["compositional"] == ["CLIP-I", "DINO", "AES"]
    assert made["editing"] == ["CLIP-I"]


def test_aggregates_stand_first_beside_published_ones() -> None:
    one = run({"a": {"CLIP-I": 1.0}}, benchmark="geneval", summary={"overall": 0.5})
    first = tables([one], [aggregate(one)])[0]
    assert [(line.name, line.entries[0].estimate.mean) for line in first.lines] == [
        ("ours", 0.5), ("BAGEL", 0.82), ("BAGEL, rewritten prompts", 0.88),
    ]  # fmt: skip


def test_what_a_comparison_leaves_out_or_takes_in_is_told_in_every_output(tmp_path: Path) -> None:
    large = replace(CLIP_I, definition="Backbone large.")
    values = {f"i{n}": {"CLIP-I": 1.0, "RMSE": 1.0} for n in range(4)}
    first = run(values, metrics=(CLIP_I, RMSE), name="before", summary={"FID": 3.0}, notes={"FID": "over 3 of 4"})
    second = run(values, metrics=(large, RMSE), name="after")
    other, reworded = second.results[0], second.results[1]
    second = replace(second, results=[
        replace(other, item=replace(other.item, answer_text="B")),
        replace(reworded, item=replace(reworded.item, instruction="Do it")), *second.results[2:],
    ])  # fmt: skip
    write_report([first, second], tmp_path)
    stored = json.loads((tmp_path / RESULTS).read_text())
    assert stored["runs"][0]["notes"] == {"FID": "over 3 of 4"}
    assert stored["comparisons"][0]["notes"] == ["1 item with another instruction in after, otherwise the same"]
    assert list(stored["comparisons"][0]["left_out"]) == ["CLIP-I", "1 item"]
    text = (tmp_path / MARKDOWN).read_text()
    assert "| RMSE | 0.000 \\[0.000, 0.000\\] | 3 (1 unpaired) | open |" in text
    assert "| 3.000 over 3 of 4 |" in text
    assert f"- **CLIP-I**, version 1, in before: {CLIP_I.definition}" in text
    assert "- **CLIP-I**, version 1, in after: Backbone large." in text
    assert "- **RMSE**, version 2: Root" in text, "runs are named only where they differ"
    shown = Page((tmp_path / REPORT).read_text()).text
    for words in (
        "Not compared: CLIP-I, their definitions differ: ", "Not compared: 1 item, the same id, but other references",
        "Compared: 1 item with another instruction in after",
    ):  # fmt: skip
        assert words in shown and words in text
    assert "over 3 of 4" in shown and "version 1, higher is better, in after" in shown
    assert "version 2, lower is better, in" not in shown


def test_settings_that_differ_between_runs_are_marked(folder: Path) -> None:
    text = (folder / REPORT).read_text()
    row = r'<tr{}><th scope="row">{}</th><td><code>{}</code></td><td><code>{}</code></td></tr>'
    assert row.format(' class="differs"', "seed", "42", "43") in text
    assert row.format(' class="differs"', "guidance.text", "4.0", "–") in text
