"""The dry run: what sources would yield, from metadata alone."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support import corpora, image_files
from support.commands import sigma

from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.dry_run import DryRun, dry_run
from pipelines.download.fetch import unfinished_mark
from pipelines.inject.ask import estimate
from pipelines.inject.cache import Cache
from sigma_data.errors import BuildError, ConfigError, SourceError
from sigma_data.injection import Reference, Request
from sigma_data.sample import Family


@pytest.fixture(scope="module")
def omniedit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nine rows: six samples, two that the score filters, one without words."""
    folder = tmp_path_factory.mktemp("omniedit")
    rows = [
        {
            "omni_edit_id": str(number),
            "task": "style" if number % 3 == 0 else "swap",
            "src_img": {"bytes": image_files.image_bytes("png", number), "path": None},
            "edited_img": {"bytes": image_files.image_bytes("png", 50 + number), "path": None},
            "edited_prompt_list": ["" if number == 8 else f"Turn it into thing {number}"],
            "o_score": 5.0 if number == 6 else None if number == 7 else 9.0,
        }
        for number in range(9)
    ]
    (folder / "data").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "train-00000-of-00001.parquet")
    return folder


def survey(*sources: str, **settings: object) -> DryRun:
    return dry_run(BuildConfig.model_validate({"sources": sources, **settings}), workers=0)


def test_a_dry_run_counts_what_a_build_finds_by_family_license_and_filter(omniedit: Path, tmp_path: Path) -> None:
    told = survey(f"omniedit:{omniedit}", quotas={"editing": 3})
    corpus = corpora.build(tmp_path / "out", f"omniedit:{omniedit}", quotas={"editing": 3}).corpus
    source = told.sources[0]
    assert source.total() == corpus.sums["read"] == 9
    assert told.families() == {"stylization": (2, 2), "editing": (4, 3)}
    assert corpus.sums["families"] == {"editing": 3, "stylization": 2}
    assert source.counts["stylization", "mit", "low_score", True] == corpus.sums["filters"]["low_score"] == 1
    assert source.counts["editing", "mit", "no_score", True] == corpus.sums["filters"]["no_score"] == 1
    assert source.total(filtered=False, samples=False) == corpus.sums["quarantined"] == 1
    assert "editing 4" in told.text()
    assert "3 (100.0 %)" in told.text()


def test_the_build_s_licenses_filter_in_a_dry_run_too(omniedit: Path) -> None:
    told = survey(f"omniedit:{omniedit}", "world:12", licenses={"deny": ["mit"]})
    assert told.sources[0].total(samples=True) == 0
    assert sum(n for (_, _, code, _), n in told.sources[0].counts.items() if code == "license_refused") == 6
    assert told.sources[1].total(samples=True) == 12


def test_captions_without_a_reference_count_where_a_condition_is_computed(tmp_path: Path) -> None:
    rows = [
        {"image": image_files.image_bytes("png", n), "captions": json.dumps({"a": f"a place, {n}"})} for n in range(3)
    ]
    (tmp_path / "t2i").mkdir()
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t2i" / "chunk_0.parquet")
    source = f"bagel_t2i:{tmp_path}"
    assert survey(source).sources[0].counts["layout", "unknown", "no_reference", True] == 3
    assert survey(source, conditions={"shares": {"canny": 1}}).families() == {"layout": (3, 3)}


def test_what_a_model_would_be_asked_and_cost_at_most(omniedit: Path, tmp_path: Path) -> None:
    endpoint = {"price_prompt": 2.0, "price_reply": 8.0, "cache": str(tmp_path / "replies.sqlite")}
    settings = {"by": "model", "model": {"name": "tester"}, "endpoint": endpoint}
    told = survey(f"omniedit:{omniedit}", "world:12", injection=settings)
    asked = told.asked()
    assert asked is not None
    requests = [Request(Family.EDITING, f"Turn it into thing {n}", (Reference(1),), key=str(n)) for n in range(6)]
    with Cache(tmp_path / "replies.sqlite") as cache:
        right = estimate(requests, BuildConfig.model_validate({"injection": settings}).injection, cache)
    assert asked["captions"] == right.captions == 6
    assert asked["prompt_tokens"] == pytest.approx(right.prompt_tokens, rel=0.05)
    assert asked["reply_tokens"] == pytest.approx(right.reply_tokens, rel=0.05)
    assert asked["cost"] == pytest.approx(right.cost, rel=0.05)
    assert "model: at most 6 captions" in told.text()
    half = survey(f"omniedit:{omniedit}", injection={**settings, "plain_share": 0.5}).asked()
    assert half is not None
    assert half["captions"] == 3
    assert survey(f"omniedit:{omniedit}").asked() is None


def test_sources_without_metadata_are_counted_by_rows(tmp_path: Path) -> None:
    release = corpora.make_release(tmp_path / "release", 12)
    told = survey(f"release:{release}?license=mit")
    assert told.families() == {"": (12, 12)}
    assert "not known before reading" in told.text()
    assert told.sources[0].counts["", "mit", "", False] == 12


def test_an_absent_source_is_one_line_with_what_to_download_and_the_others_are_listed(
    omniedit: Path, tmp_path: Path
) -> None:
    none = tmp_path / "none"
    lists = "gpt_image_edit_json"
    there, gone = f"omniedit:{omniedit}", f"omniedit:{none}?name=second"
    told = survey(there, gone, f"release:{none}", f"x2i2:{none}", f"pico_banana:{none}", f"{lists}:{tmp_path}/a b")
    lines = told.text().splitlines()
    fetched = f"`sigma download omniedit --out {none}` fetches it: 1,202,797 rows, about 3 TB"
    assert [line for line in lines if line.startswith("absent: ")] == [
        f"absent: {gone} is not there; {fetched}",
        f"absent: release:{none} is not there; `sigma download sigma-dataset --out {none}` fetches SIGMA's release",
        f"absent: x2i2:{none} is not there; `sigma download x2i2 --out {none}` fetches it",
        f"absent: pico_banana:{none} is not there; `sigma sources pico_banana` says how to lay it out, and it can be had "
        "at apple/pico-banana-400k on GitHub: 257,000 pairs and 72,000 dialogues",
        f"absent: {lists}:{tmp_path}/a b is not there; `sigma download {lists} --out '{tmp_path}/a b'` and "
        f"`sigma download gpt_image_edit --out '{tmp_path}/a b'` fetch it: 1,553,575 rows, about 5 TB",
    ]
    assert any(line.startswith("omniedit") for line in lines)
    with pytest.raises(SourceError, match=r"`sigma download omniedit .* or take out of `sources` what you do not want"):
        corpora.build(tmp_path / "out", there, gone)
    assert not (tmp_path / "out").exists()


def test_a_source_whose_download_was_stopped_is_not_taken_for_all_of_it(omniedit: Path, tmp_path: Path) -> None:
    folder = tmp_path / "omniedit"
    folder.symlink_to(omniedit)
    mark = unfinished_mark(folder, "omniedit")
    mark.touch()
    try:
        told = survey(f"omniedit:{folder}").text()
        assert told.startswith(f"absent: omniedit:{folder}: not all of it is there, for its download was stopped")
        with pytest.raises(
            SourceError, match=r"run `sigma download` again as before, or remove .*/\.omniedit\.unfinished"
        ):
            corpora.build(tmp_path / "out", f"omniedit:{folder}")
    finally:
        mark.unlink()
    assert corpora.build(tmp_path / "out", f"omniedit:{folder}").corpus.sums["written"] == 6


def test_lists_without_their_images_say_where_the_images_must_lie(tmp_path: Path) -> None:
    row = {"image": ["add/input/0.png", "add/output/0.png"], "conversations": [{"from": "human", "value": "Add a cat"}]}
    (tmp_path / "g/training_json").mkdir(parents=True)
    (tmp_path / "g/training_json/omniedit_gpt.json").write_text(json.dumps([row]))
    with pytest.raises(
        BuildError,
        match=r"no image 'add/input/0.png', and no archive omniedit/\*.tar.gz; `sigma sources gpt_image_edit_json` says",
    ):
        corpora.build(tmp_path / "out", f"gpt_image_edit_json:{tmp_path}/g")
    for number, name in enumerate(row["image"]):
        path = tmp_path / "g/omniedit" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(image_files.image_bytes("png", number))
    built = corpora.build(tmp_path / "out", f"gpt_image_edit_json:{tmp_path}/g").corpus
    assert built.sums["written"] == 1, "the same command again, once they are there"


def test_a_path_that_begins_at_data_twice_is_told(
    omniedit: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/omniedit").symlink_to(omniedit)
    monkeypatch.chdir(tmp_path)
    said = r"^omniedit:data/data/omniedit is not there, and data/omniedit is: .*; data=\. takes data/omniedit$"
    assert re.search(said, survey("omniedit:data/omniedit", data="data").sources[0].problem or "")
    with pytest.raises(SourceError, match=said):
        corpora.build(tmp_path / "out", "omniedit:data/omniedit", data="data")
    assert survey("omniedit:data/omniedit", data=".").sources[0].problem is None


def test_disk_and_hours_follow_from_the_bytes_that_lie_there_and_the_rate(omniedit: Path) -> None:
    config = BuildConfig(sources=(f"omniedit:{omniedit}",))
    told = DryRun(dry_run(config, workers=0).sources, config, workers=2, rate=1e-6)
    size = sum(path.stat().st_size for path in omniedit.rglob("*.parquet"))
    assert told.bytes() == (size, round(size * 6 / 9))
    assert told.hours() == pytest.approx(size / 2 / 3600)


def test_without_sources_there_is_nothing_to_survey() -> None:
    with pytest.raises(ConfigError, match="name at least one source"):
        survey()


@pytest.mark.slow
def test_the_command_writes_nothing_and_speaks_json(omniedit: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = sigma("build-dataset", f"omniedit:{omniedit}", "--dry-run", "--json", "--out", str(out), "--rate", "5")
    told = json.loads(done.stdout)
    assert told["families"] == {
        "stylization": {"samples": 2, "written": 2, "quota": None},
        "editing": {"samples": 4, "written": 4, "quota": None},
    }
    assert told["megabytes_per_second"] == 5
    assert not out.exists()
