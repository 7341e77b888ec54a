"""Ranks that were started with other settings, files or versions say so before the first step, and none trains."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from support import ranks
from support.training_runs import run, settings_of

from pipelines.train import trainer
from pipelines.train.config import TrainConfig
from pipelines.train.distributed import rank_agreement
from pipelines.train.distributed.rank_agreement import differences, facts_of
from sigma_data.errors import SigmaError


def test_what_differs_is_named_with_its_ranks_and_machines() -> None:
    agreed = {"steps": "5", "the code of sigma": "abc"}
    assert differences([["a", agreed], ["b", dict(agreed)]]) == ""
    told = differences([["a", agreed], ["a", agreed], ["b", agreed | {"steps": "6"}], ["b", agreed | {"steps": "6"}]])
    assert told == (
        "the ranks would not train one model: steps is 6 on ranks 2 to 3 (b) and 5 on rank 0 (a): start the same "
        "command, with the same versions and files, on every machine"
    )
    assert "lora.rank is 4 on rank 1 (b) and not there on rank 0 (a)" in differences(
        [["a", agreed], ["b", agreed | {"lora.rank": "4"}]]
    )
    many = {str(number): "x" for number in range(20)}
    assert "and 15 more" in differences([["a", {}], ["b", many]])


def facts(tmp_path: Path, **changes: Any) -> Mapping[str, str]:
    return facts_of(TrainConfig.model_validate(settings_of(changes.pop("out", tmp_path), tmp_path, **changes)))


def test_all_that_changes_numbers_is_compared_and_what_a_machine_may_have_for_itself_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = facts(tmp_path)
    own = {"loader": {"workers": 7, "cache": tmp_path}, "log": {"every": 9}, "out": tmp_path / "mounted"}
    assert facts(tmp_path, **own, data={"corpora": [{"path": "elsewhere"}]}) == expected
    for changes in ({"optimizer": {"lr": 1.0}}, {"accumulate": 2}, {"lora": {}}, {"model": {"seed": 1}}, {"ema": None}):
        assert facts(tmp_path, **changes) != expected
    assert {"the version of torch", "the version of Python", "the code of sigma"} <= expected.keys()
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    assert facts(tmp_path)["the variable NVIDIA_TF32_OVERRIDE"] == "1"
    monkeypatch.setattr(rank_agreement, "version", lambda name: "0")
    assert facts(tmp_path)["the version of torch"] == "0"


def refused(settings: dict[str, Any], changes: list[dict[str, Any]]) -> list[str]:
    """What a rank is told where rank 1 was started with changes, one after another."""
    trainer._VISIBLE_AFTER = 1.0
    told = []
    for change in changes:
        try:
            run(settings | (change if os.environ["RANK"] == "1" else {}))
            told.append("trained")
        except SigmaError as error:
            told.append(str(error))
    return told


@pytest.mark.slow
def test_two_ranks_that_were_given_different_things_stop_before_the_first_step(
    tmp_path: Path, training_corpus: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(training_corpus, other)
    settings = settings_of(tmp_path / "run", training_corpus, steps=1)
    changes: list[dict[str, Any]] = [
        {"optimizer": settings["optimizer"] | {"lr": 1e-6}},
        {"data": {"corpora": [{"path": str(tmp_path / "missing")}], "budget": 400}},
        {"out": tmp_path / "elsewhere"},
        {"data": {"corpora": [{"path": str(other)}], "budget": 400}},  # the same corpus at another place
    ]
    # Each has a store of its own: in one, a group may read the addresses of the group before it.
    told = [ranks.run(refused, 2, settings, [change], timeout_s=120) for change in changes]
    first, second = [rank[0] for rank, _ in told], [rank[0] for _, rank in told]
    assert first[0] == second[0]
    assert "optimizer.lr is 1e-06 on rank 1 (" in first[0] and "and 0.001 on rank 0 (" in first[0]
    assert "missing: no such folder" in second[1] and first[1].startswith("rank 1 (") and "no such folder" in first[1]
    assert "elsewhere: is not the folder that rank 0 writes to" in second[2]
    assert (first[3], second[3]) == ("trained", "trained")
    assert not (tmp_path / "elsewhere").exists()
