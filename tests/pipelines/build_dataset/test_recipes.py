"""Recipes: the example over all layouts in one build, and the configurations that sigma brings along."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest
from support import corpora
from support.all_layouts import make_all_layouts
from support.places import CONFIGS, ROOT

from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.dry_run import dry_run
from pipelines.build_dataset.run import build
from pipelines.common.settings import load_settings
from pipelines.download.catalog import find_entry
from pipelines.validate.run import validate_corpus
from sigma_data.corpus.corpus import Corpus, open_corpus
from sigma_data.sample import FAMILY_RULES, Family
from sigma_data.sources.base import field_maps

RECIPE = ROOT / "examples" / "all_layouts.yaml"
RECIPES = ("corpus-sigma-700k", "corpus-sgt")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_all_layouts(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIGMA_CACHE", str(tmp_path / "cache"))


def settings(data: Path) -> BuildConfig:
    return load_settings(BuildConfig, RECIPE, [f"data={data}"])


@pytest.fixture(scope="module")
def corpus(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return build(settings(data), tmp_path_factory.mktemp("out") / "corpus", workers=0).corpus


@pytest.mark.slow
def test_one_build_over_all_layouts_has_every_family_and_sums_that_add_up(corpus: Corpus) -> None:
    sums = corpus.sums
    assert corpora.adds_up(sums)
    assert set(sums["families"]) == {family.value for family in Family}
    assert sums["filtered"] and sums["quarantined"] and sums["duplicates"]
    assert {"low_score"} <= set(sums["filters"])
    assert {"bad_line", "empty_instruction", "missing_picture", "turns_mismatch"} <= set(sums["codes"])
    names = {source.partition(":")[0] for source in settings(Path("x")).sources}
    assert names <= set(corpus.manifest["source"])
    assert not validate_corpus(corpus.path, deep=True, workers=0).problems


def test_samples_that_share_an_image_lie_in_one_split_whatever_their_source(corpus: Corpus) -> None:
    images = corpus.manifest.select(
        "split", "source", sha=pl.col("images").list.eval(pl.element().struct.field("sha256"))
    )
    shared = images.explode("sha").group_by("sha").agg(pl.col("split").unique(), pl.col("source").unique())
    assert shared["split"].list.len().max() == 1
    assert shared["source"].list.len().max() == 2


def test_the_dry_run_names_what_the_build_finds(data: Path, corpus: Corpus) -> None:
    told = dry_run(settings(data), workers=0)
    assert not [source.problem for source in told.sources if source.problem]
    assert sum(source.total() for source in told.sources) == corpus.sums["read"]
    found = told.families()
    for family, count in corpus.sums["families"].items():
        assert found.get(family, (0, 0))[0] + found[""][0] >= count


@pytest.mark.slow
def test_bytes_are_those_of_any_number_of_workers_and_of_a_killed_build(
    data: Path, corpus: Corpus, tmp_path: Path
) -> None:
    expected = corpora.files_below(corpus.path)
    for workers in (1, 3):
        out = tmp_path / f"workers-{workers}"
        build(settings(data), out, workers=workers)
        assert corpora.files_below(out) == expected
    out = tmp_path / "killed"
    command = [sys.executable, "-m", "cli", "build-dataset", "--config", str(RECIPE), f"data={data}", "--out", str(out),
               "--workers", "1"]  # fmt: skip
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for rounds in range(1, 4):
        process = subprocess.Popen(command, env=environment, start_new_session=True, stdout=subprocess.DEVNULL,
                                   stderr=subprocess.DEVNULL)  # fmt: skip
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            if len(list(out.glob(".sigma/scan/*.parquet"))) > 15 * rounds:
                os.killpg(process.pid, signal.SIGKILL)
                break
            time.sleep(0.02)
        process.wait()
    subprocess.run(command, env=environment, check=True, capture_output=True)
    assert corpora.files_below(out) == expected
    assert open_corpus(out).sums == corpus.sums


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_loads_has_relative_paths_and_known_layouts(name: str) -> None:
    config = load_settings(BuildConfig, CONFIGS / f"{name}.yaml", [])
    layouts = {source.partition(":")[0] for source in config.sources}
    assert layouts <= set(field_maps()) | {"release"}
    assert not [source for source in config.specs if source.partition(":")[2].startswith("/")]
    for source in config.specs:
        layout, _, where = source.partition(":")
        if layout != "release":
            assert Path(where.partition("?")[0]) == find_entry(layout).folder, "where `sigma download` puts it"
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    for family, shares in config.shares.items():
        sources = {
            source.partition("name=")[2].partition("&")[0] or source.partition(":")[0] for source in config.sources
        }
        assert set(shares) <= sources, family


def test_the_recipe_of_sigma_has_the_paper_s_quotas() -> None:
    config = load_settings(BuildConfig, CONFIGS / "corpus-sigma-700k.yaml", [])
    assert config.quotas == {family: rule.goal for family, rule in FAMILY_RULES.items() if rule.goal}
    assert sum(config.quotas.values()) == 700_600


def test_the_recipe_of_sgt_is_two_of_segmentation_to_one_of_understanding() -> None:
    config = load_settings(BuildConfig, CONFIGS / "corpus-sgt.yaml", [])
    assert config.quotas[Family.SEGMENTATION] == 2 * config.quotas[Family.UNDERSTANDING]
