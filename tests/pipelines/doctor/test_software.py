"""Python, packages, torch against the driver, GPUs: what is said of each, and that it says what to do."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from pipelines.doctor.finding import Status
from pipelines.doctor.software import (
    TESTED,
    Gpu,
    TorchBuild,
    check_flash_attn,
    check_gpus,
    check_packages,
    check_python,
    check_torch,
    look_packages,
    minimums,
    numbers,
)

GIB = 2**30
ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(
    ("version", "platform", "status"),
    [
        ((3, 11, 0), "linux", Status.OK),
        ((3, 14, 1), "darwin", Status.OK),
        ((3, 10, 9), "linux", Status.FAIL),
        ((3, 12, 0), "win32", Status.FAIL),
    ],
)
def test_python(version: tuple[int, int, int], platform: str, status: Status) -> None:
    assert check_python(version, platform).status is status


@pytest.mark.parametrize(
    ("version", "expected"),
    [("2.13.0+cu130", (2, 13, 0)), ("5", (5,)), ("1.0rc2", (1, 0)), ("2026.6", (2026, 6)), ("unknown", ())],
)
def test_numbers_of_a_version(version: str, expected: tuple[int, ...]) -> None:
    assert numbers(version) == expected


def test_minimums_leave_out_what_an_extra_asks_for() -> None:
    assert minimums(["Torch>=2.9", "numpy>=2.0", 'bitsandbytes>=0.48; extra == "quant"', "x"]) == {
        "torch": "2.9",
        "numpy": "2.0",
    }


def test_packages_as_tested_are_one_line() -> None:
    (found,) = check_packages(dict(TESTED), {"torch": "2.9"})
    assert found.status is Status.OK


def test_packages_that_are_absent_or_too_old_fail_and_another_major_version_warns() -> None:
    installed = {**TESTED, "polars": None, "torch": "2.8.1+cpu", "pillow": "99.0"}
    faults, other = check_packages(installed, {"torch": "2.9", "polars": "1.30"})
    assert faults.status is Status.FAIL
    assert "polars not installed" in faults.found
    assert "torch 2.8.1+cpu (at least 2.9)" in faults.found
    assert "pip install" in faults.advice
    assert other.status is Status.WARN
    assert f"pillow 99.0 (tested: {TESTED['pillow']})" in other.found


def test_every_package_that_is_asked_for_is_a_dependency() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert TESTED.keys() <= minimums(project["dependencies"]).keys(), "an extra's package may be absent"


def test_this_environment_has_the_packages() -> None:
    assert all(one.status is not Status.FAIL for one in look_packages())


def test_the_tested_versions_are_those_of_the_constraints() -> None:
    pinned = dict(re.findall(r"^([a-z0-9-]+)==(\S+)", (ROOT / "constraints.txt").read_text("utf-8"), re.MULTILINE))
    assert {name: pinned[name] for name in TESTED} == TESTED


@pytest.mark.parametrize(
    ("cuda", "usable", "driver", "status", "said"),
    [
        ("13.0", True, "580.1", Status.OK, "driver 580.1"),
        (None, False, None, Status.OK, "no GPU here"),
        ("13.0", False, None, Status.OK, "no GPU here"),
        (None, False, "580.1", Status.FAIL, "there is an NVIDIA GPU"),
        ("13.0", False, "470.2", Status.FAIL, "driver 470.2 does not serve it"),
    ],
)
def test_torch_against_the_driver(
    *, cuda: str | None, usable: bool, driver: str | None, status: Status, said: str
) -> None:
    found = check_torch(TorchBuild("2.13.0", cuda, None, usable, "driver too old"), driver)
    assert found.status is status
    assert said in found.found


def test_gpus() -> None:
    good = Gpu("NVIDIA H100", 80 * GIB, 79 * GIB, (9, 0))
    assert [one.status for one in check_gpus([good, good])] == [Status.OK, Status.OK]
    old = Gpu("Tesla T4", 16 * GIB, 16 * GIB, (7, 5))
    alien = Gpu("NVIDIA X", 80 * GIB, 80 * GIB, (15, 0), built_for=False)
    taken = Gpu("NVIDIA H100", 80 * GIB, 20 * GIB, (9, 0))
    statuses = [one.status for one in check_gpus([good, old, alien, taken])]
    assert statuses == [Status.OK, Status.WARN, Status.FAIL, Status.WARN, Status.WARN], "the last: of several kinds"
    assert check_gpus([]) == []


def test_flash_attn_is_optional_and_a_broken_one_is_no_failure() -> None:
    assert check_flash_attn(None, "", gpus=True).status is Status.OK
    assert check_flash_attn("2.8", "", gpus=True).status is Status.OK
    assert check_flash_attn("2.8", "undefined symbol", gpus=True).status is Status.WARN
