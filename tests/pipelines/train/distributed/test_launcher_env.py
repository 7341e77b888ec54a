"""Who starts the ranks: a launcher whose variables are complete, or we; what is left over is set aside and said."""

from __future__ import annotations

import os

import pytest

from pipelines.train.distributed.launcher_env import LauncherRank, launcher_rank, resolve_launcher, without_launcher_env
from sigma_data.errors import ConfigError

WHOLE = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}
SCHEDULERS = {"SLURM_PROCID": "0", "SLURM_NTASKS": "2", "SLURM_LOCALID": "0", "OMPI_COMM_WORLD_RANK": "0",
              "OMPI_COMM_WORLD_SIZE": "2", "PMI_RANK": "1"}  # fmt: skip


@pytest.fixture
def variables(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in (*WHOLE, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_complete_set_is_a_launcher() -> None:
    assert launcher_rank(WHOLE) == LauncherRank(1, 2, 1)
    assert launcher_rank({name: value for name, value in WHOLE.items() if name != "LOCAL_RANK"}) == LauncherRank(
        1, 2, 0
    )


@pytest.mark.parametrize(
    "left",
    [
        {}, {"RANK": "0"}, {"WORLD_SIZE": "2"}, {"RANK": "abc"}, {"LOCAL_RANK": "7"}, {"RANK": "0", "WORLD_SIZE": "1"},
        {"RANK": "0", "WORLD_SIZE": ""}, {"MASTER_ADDR": "node1", "MASTER_PORT": "29500"}, SCHEDULERS,
        {"RANK": "0", "MASTER_ADDR": "node1", "MASTER_PORT": "29500"}, {"RANK": "0", "WORLD_SIZE": "many"},
    ],
)  # fmt: skip
def test_what_is_left_over_is_no_launcher_and_is_said(
    left: dict[str, str], variables: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    assert launcher_rank(left) is None
    for name, value in left.items():
        variables.setenv(name, value)
    assert resolve_launcher(chosen=False, nproc=1) is None
    counted = [name for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK") if name in left]
    found = caplog.text
    assert found.count("\n") == bool(counted) and all(f"{name}={left[name]}" in found for name in counted)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"RANK": "abc"}, "RANK=abc"),
        ({"RANK": "2"}, "RANK=2 WORLD_SIZE=2"),
        ({"RANK": "-1"}, "RANK=-1"),
        ({"WORLD_SIZE": "0"}, "WORLD_SIZE=0"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK=x"),
        ({"MASTER_PORT": "0"}, "MASTER_PORT=0"),
        ({"MASTER_PORT": "http"}, "MASTER_PORT=http"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR missing"),
        ({"MASTER_ADDR": "", "MASTER_PORT": ""}, "MASTER_ADDR and MASTER_PORT missing"),
    ],
)
def test_a_launcher_that_contradicts_itself_is_refused_in_a_line(changes: dict[str, str], named: str) -> None:
    with pytest.raises(ConfigError, match=named) as error:
        launcher_rank(WHOLE | changes)
    assert "\n" not in str(error.value) and "unset" in str(error.value)


@pytest.mark.parametrize("left", [WHOLE, WHOLE | {"RANK": "0", "WORLD_SIZE": "1"}, {"RANK": "abc"}])
def test_nproc_counts_more_than_variables_and_says_so(
    left: dict[str, str], variables: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    for name, value in left.items():
        variables.setenv(name, value)
    assert resolve_launcher(chosen=True, nproc=2) is None
    (found,) = caplog.messages
    assert found.startswith("train: --nproc 2 counts: RANK=")
    with without_launcher_env():
        assert not set(WHOLE) & set(os.environ)
    assert {name: os.environ.get(name) for name in left} == left


def test_torchrun_and_nproc_at_once_are_refused(variables: pytest.MonkeyPatch) -> None:
    for name, value in (WHOLE | {"TORCHELASTIC_RUN_ID": "none"}).items():
        variables.setenv(name, value)
    with pytest.raises(ConfigError, match="leave out --nproc"):
        resolve_launcher(chosen=True, nproc=2)
    assert resolve_launcher(chosen=False, nproc=2) == LauncherRank(1, 2, 1)
