"""Data sets that `datasets` streams, from disk alone: a local folder, and its cache where there is no network."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.foreign_layouts import hf_image, records, told, write_lines, write_parquet
from support.image_files import image_bytes
from support.places import ROOT

from sigma_data.errors import ConfigError, SourceError
from sigma_data.sample import Sample
from sigma_data.sources import open_source


def rows(start: int, stop: int) -> list[dict[str, Any]]:
    return [
        {"task": "env", "src_img": hf_image(image_bytes(seed=number)), "edited_img": hf_image(image_bytes(seed=100 + number)),
         "edited_prompt_list": [f"edit {number}"], "o_score": 9.0 if number % 3 else 5.0}
        for number in range(start, stop)
    ]  # fmt: skip


def data_set(folder: Path) -> Path:
    write_parquet(folder / "data" / "train-00000-of-00002.parquet", rows(1, 5))
    write_parquet(folder / "data" / "train-00001-of-00002.parquet", rows(5, 8))
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def test_a_data_set_gives_what_its_files_give(tmp_path: Path) -> None:
    folder = data_set(tmp_path / "set")
    streamed, read = records(f"hf:{folder}?map=omniedit"), records(f"omniedit:{folder}")
    assert [told(record) for record in streamed] == [told(record) for record in read]
    assert len({record.id for record in streamed if isinstance(record, Sample)}) == 5
    for one, other in zip(streamed, read, strict=True):
        if isinstance(one, Sample):
            assert isinstance(other, Sample)
            assert [image.data for image in one.images] == [image.data for image in other.images]
            assert one.turns == other.turns


def test_a_shard_is_a_fragment_and_the_survey_reads_no_image(tmp_path: Path) -> None:
    reader = open_source(f"hf:{data_set(tmp_path / 'set')}?map=omniedit")
    assert len(reader.fragments()) == 2
    assert [one.code for one in reader.survey()] == [None, None, "low_score", None, None, "low_score", None]


def test_a_hub_id_without_a_map_asks_for_one() -> None:
    with pytest.raises(ConfigError, match=r"\?map="):
        open_source("hf:somebody/something")
    with pytest.raises(ConfigError, match="no root"):
        open_source("hf:TIGER-Lab/OmniEdit-Filtered-1.2M?root=x")


def test_a_data_set_out_of_reach_says_how_to_get_it() -> None:
    with pytest.raises(SourceError, match="sigma download TIGER-Lab/OmniEdit-Filtered-1.2M --dataset") as error:
        open_source("hf:TIGER-Lab/OmniEdit-Filtered-1.2M").fragments()
    assert "\n" not in str(error.value)


def test_rows_of_another_layout_are_told(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="input_image"):
        open_source(f"hf:{data_set(tmp_path / 'set')}?map=hq_edit").fragments()


def test_images_that_are_not_in_the_rows_must_be_downloaded(tmp_path: Path) -> None:
    names = ("cond1", "cond2", "source", "target", "text")
    write_lines(tmp_path / "set" / "train.jsonl", [{name: name for name in names}])
    with pytest.raises(SourceError, match="download"):
        open_source(f"hf:{tmp_path / 'set'}?map=relation252k").fragments()


PROGRAM = """
import shutil, sys
from pathlib import Path
import datasets
from sigma_data.sources import open_source

folder, cache = map(Path, sys.argv[1:])
datasets.load_dataset(str(folder), split="train", cache_dir=str(cache))  # as an earlier download left it
shutil.copytree(cache / folder.name, cache / f"tiger-lab___{folder.name}")
for arrow in cache.glob(f"tiger-lab___{folder.name}/*/*/*/*.arrow"):
    arrow.rename(arrow.with_name(f"{folder.name.lower()}-train.arrow"))
reader = open_source(f"hf:tiger-lab/{folder.name}?map=omniedit")
print(sum(1 for fragment in reader.fragments() for _ in reader.read(fragment)))
"""


@pytest.mark.slow
def test_without_a_network_the_cache_of_datasets_is_read(tmp_path: Path) -> None:
    folder = data_set(tmp_path / "small_set")
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(tmp_path),
        "HF_DATASETS_CACHE": str(tmp_path / "c"),
    }
    command = [sys.executable, "-c", PROGRAM, str(folder), str(tmp_path / "c")]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120)
    assert done.stdout.strip().endswith("7"), done.stderr[-2000:]


@pytest.mark.slow
def test_a_build_in_other_processes_ends_without_a_word_of_what_they_leave_behind(tmp_path: Path) -> None:
    folder = data_set(tmp_path / "small_set")
    command = [
        sys.executable,
        "-m",
        "cli",
        "build-dataset",
        f"hf:{folder}?map=omniedit",
        "--out",
        str(tmp_path / "out"),
    ]
    environment = os.environ | {"HF_HOME": str(tmp_path), "HF_DATASETS_CACHE": str(tmp_path / "c")}
    done = subprocess.run(
        [*command, "--workers", "2"], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert "resource_tracker" not in done.stderr
