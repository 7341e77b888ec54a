"""Injection in a build: between scan and plan, by rules or by a model; the same bytes whatever happened on the way."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from support import corpora, image_files
from support.captioned import captioned_source
from support.model_server import Reply, caption_of, completion, model_server

from pipelines.build_dataset.config import BuildConfig
from pipelines.inject.config import InjectionSettings
from pipelines.inject.endpoint import EndpointError
from sigma_data import open_corpus
from sigma_data.corpus.checks import RULES
from sigma_data.errors import ConfigError
from sigma_data.injection import VERSION
from sigma_data.sample import Family, Sample

ROWS = [
    ("editing", "Add a scarf to the boy", 1),
    ("editing", "Extract the cup from the image", 1),
    ("compositional", "Put the dog of the second picture on the chair of the first picture", 2),
    ("compositional", "A dream of two things", 2),
    ("relation", "Turn it into a sketch", 3),
    ("editing", 'Write "<style>" on it', 1),
    ("stylization", "Zoom out", 1),
]


@pytest.fixture(autouse=True)
def _environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGMA_CACHE", str(tmp_path / "cache"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def samples(out: Path) -> dict[int, Sample]:
    """The samples of a corpus by their row."""
    return {sample.source.row: sample for sample in open_corpus(out)}


def note(sample: Sample) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(sample.provenance or "{}")["injection"]
    return found


def by(who: str, base_url: str = "", **endpoint: Any) -> dict[str, Any]:
    settings: dict[str, Any] = {"by": who}
    if who == "model":
        settings |= {"model": {"name": "tester"}, "endpoint": {"base_url": base_url, **endpoint}}
    return {"injection": settings}


def placing(request: dict[str, Any], number: int) -> Reply:
    """A model that appends every placeholder."""
    asked = json.loads(request["messages"][1]["content"])
    places = " ".join(f"<image_{one['image']}>" for one in asked["references"])
    return completion(json.dumps({"phrases": [], "instruction": f"{caption_of(request)} {places}"}))


@pytest.mark.slow
def test_rules_inject_what_they_can_and_the_plain_wording_stays_beside(tmp_path: Path) -> None:
    result = corpora.build(tmp_path / "out", captioned_source(tmp_path, ROWS), **by("rules"))
    found = samples(tmp_path / "out")
    assert found[0].turns[0].instruction == "Add a scarf to the <id>boy <image_1>"
    assert found[0].turns[0].caption == "Add a scarf to the boy"
    assert note(found[0]) == {"by": "rules", "version": VERSION, "outcome": "injected"}
    assert (found[1].family, found[1].turns[0].instruction) == (
        Family.SELECTIVE, "Extract <select>the cup from the image <image_1>",
    )  # fmt: skip
    assert "<subject>dog" in found[2].turns[0].instruction
    assert found[4].turns[0].instruction.endswith("Turn it into a sketch")
    assert found[6].turns[0].instruction == "Zoom out <image_1>"
    assert corpora.adds_up(result.corpus.sums)
    assert result.corpus.sums["codes"] == {"token_in_text": 1, "unbound_reference": 1}
    manifest = open_corpus(tmp_path / "out").manifest
    assert set(manifest["injection"]) == {"rules: injected"}
    assert manifest.filter(row=0)["attributes"].to_list() == [["id"]]


def test_without_injection_a_build_is_as_before(tmp_path: Path) -> None:
    source = captioned_source(tmp_path, ROWS[:3])
    corpora.build(tmp_path / "out", source)
    assert all("injection" not in (sample.provenance or "") for sample in open_corpus(tmp_path / "out"))
    assert "injection" not in pq.read_schema(tmp_path / "out" / "manifest.parquet").names
    assert BuildConfig(sources=("a",)).digest() == BuildConfig(
        sources=("a",), injection=InjectionSettings.model_validate({"endpoint": {"concurrency": 9}})
    ).digest()  # fmt: skip


@pytest.mark.slow
def test_sources_that_ship_their_tokens_stay_as_they_are(tmp_path: Path) -> None:
    source = captioned_source(tmp_path, [("editing", "Make the boy red", 1)], injected=True)
    corpora.build(tmp_path / "out", source, "world:12?size=64", **by("rules"))
    for sample in open_corpus(tmp_path / "out"):
        assert "injection" not in (sample.provenance or "")
        assert sample.turns[0].caption is None


@pytest.mark.slow
def test_a_share_stays_plain_and_is_drawn_by_the_id_alone(tmp_path: Path) -> None:
    rows = [("editing", f"Add a scarf to the boy number {number}", 1) for number in range(40)]
    source = captioned_source(tmp_path, rows)
    settings = {"injection": {"by": "rules", "plain_share": 0.5}}
    corpora.build(tmp_path / "a", source, **settings)
    corpora.build(tmp_path / "b", source, workers=2, **settings)
    assert files(tmp_path / "a") == files(tmp_path / "b")
    plain = [one for one in samples(tmp_path / "a").values() if note(one)["outcome"] == "plain"]
    assert 10 <= len(plain) <= 30
    assert all("<" not in one.turns[0].instruction for one in plain)


def test_samples_of_the_same_words_and_images_are_duplicates_whatever_their_frames(tmp_path: Path) -> None:
    source = captioned_source(tmp_path, [("relation", "Turn it into a sketch", 3)] * 2)
    images = tmp_path / "images"
    for place in range(4):
        (images / f"001_{place}.png").write_bytes((images / f"000_{place}.png").read_bytes())
    result = corpora.build(tmp_path / "out", source, **by("rules"))
    assert (result.corpus.sums["written"], result.corpus.sums["duplicates"]) == (1, 1)


@pytest.mark.slow
def test_a_model_injects_and_a_second_build_asks_nothing_and_writes_the_same_bytes(tmp_path: Path) -> None:
    source = captioned_source(tmp_path, ROWS)
    with model_server(placing) as server:
        first = corpora.build(tmp_path / "a", source, **by("model", server.base_url))
        assert first.asked is not None
        count = len(server.requests)
        assert count == first.asked.answered["first try"] == 5  # neither the frame nor the quoted token
        corpora.build(tmp_path / "b", source, workers=2, **by("model", server.base_url, concurrency=7))
        assert len(server.requests) == count
    again = corpora.build(tmp_path / "c", source, **by("model", "http://127.0.0.1:9/v1"))
    assert again.asked is not None
    assert dict(again.asked.answered) == {"cached": 5}
    assert files(tmp_path / "a") == files(tmp_path / "b") == files(tmp_path / "c")
    found = samples(tmp_path / "a")
    assert found[3].turns[0].instruction == "A dream of two things <image_1> <image_2>"
    assert note(found[3]) == {
        "by": "model", "model": "tester", "outcome": "injected", "prompt_version": 1, "version": VERSION,
    }  # fmt: skip
    assert b"127.0.0.1" not in b"".join(files(tmp_path / "a").values())


@pytest.mark.slow
def test_what_the_model_cannot_do_falls_back_on_the_rules(tmp_path: Path) -> None:
    source = captioned_source(tmp_path, ROWS)
    with model_server(lambda request, number: completion("no")) as server:
        corpora.build(tmp_path / "out", source, **by("model", server.base_url))
    found = samples(tmp_path / "out")
    assert found[0].turns[0].instruction == "Add a scarf to the <id>boy <image_1>"
    assert note(found[0]) == {"by": "rules", "version": VERSION, "outcome": "injected", "fallback": "not_json"}


@pytest.mark.slow
def test_a_refused_key_stops_the_build_and_running_again_goes_on(tmp_path: Path) -> None:
    source = captioned_source(tmp_path, ROWS)
    with model_server(lambda request, number: Reply(status=401)) as server, pytest.raises(EndpointError, match="401"):
        corpora.build(tmp_path / "out", source, **by("model", server.base_url))
    with model_server(placing) as server:
        corpora.build(tmp_path / "out", source, **by("model", server.base_url))
    with model_server(placing) as server:
        corpora.build(tmp_path / "other", source, **by("model", server.base_url))
    assert files(tmp_path / "out") == files(tmp_path / "other")


def test_another_injector_is_another_corpus(tmp_path: Path) -> None:
    source = captioned_source(tmp_path, ROWS[:1])
    corpora.build(tmp_path / "out", source, **by("rules"))
    with pytest.raises(ConfigError, match="injection"):
        corpora.build(tmp_path / "out", source)


@pytest.mark.slow
def test_a_build_that_is_killed_while_it_asks_and_injects_ends_in_the_same_bytes(tmp_path: Path) -> None:
    rows = [("compositional", f"A dream of {number} things", 2) for number in range(40)]
    source = captioned_source(tmp_path, rows)

    def slow(request: dict[str, Any], number: int) -> Reply:
        reply = placing(request, number)
        reply.pause = 0.05
        return reply

    with model_server(slow) as server:
        words = ["injection.by=model", "injection.model.name=tester", f"injection.endpoint.base_url={server.base_url}"]
        command = [sys.executable, "-m", "cli", "build-dataset", source, *words, "--out", str(tmp_path / "out"),
                   "--workers", "1", "--json"]  # fmt: skip
        for seen in (5, 15):
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                       start_new_session=True)  # fmt: skip
            while len(server.requests) < seen:
                assert process.poll() is None
                time.sleep(0.01)
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        corpora.build(tmp_path / "out", source, **by("model", server.base_url))
        assert len(server.requests) <= 40 + 2 * 8  # what came before a kill was kept
        corpora.build(tmp_path / "whole", source, **by("model", server.base_url))
    assert files(tmp_path / "out") == files(tmp_path / "whole")


@pytest.mark.slow
def test_only_rules_of_texts_are_asked_again_and_all_of_those(tmp_path: Path) -> None:
    """A rule that looks at images would find none: what the scan found stands."""
    from pipelines.build_dataset.injection import _TEXT_RULES

    assert RULES.keys() >= _TEXT_RULES
    source = captioned_source(tmp_path, [("layout", "a red car", 1), ("editing", "Add a scarf to the boy", 1)])
    for place in (0, 1):  # one image twice the size of the other, and long: a warning of the scan
        (tmp_path / "images" / f"001_{place}.png").write_bytes(
            image_files.image_bytes("png", place, width=400, height=20)
        )
    corpora.build(tmp_path / "plain", source, checks={"extreme_aspect": "warning", "too_small": "warning"})
    corpora.build(tmp_path / "out", source, checks={"extreme_aspect": "warning", "too_small": "warning"}, **by("rules"))
    assert "depth" not in samples(tmp_path / "out")[0].turns[0].instruction
    assert "<layout>" in samples(tmp_path / "out")[0].turns[0].instruction
    warned = [open_corpus(tmp_path / name).manifest.sort("row")["warnings"].to_list() for name in ("plain", "out")]
    assert warned[0] == warned[1]
    assert "extreme_aspect" in warned[0][1]
