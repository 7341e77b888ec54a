"""Building, training and evaluating from Python; what is registered from outside."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from pipelines.build_dataset import build_dataset
from pipelines.build_dataset.config import BuildConfig
from pipelines.common.settings import merge_settings
from pipelines.evaluate import evaluate
from pipelines.evaluate.metrics import registry
from pipelines.evaluate.metrics.fidelity import Psnr
from pipelines.train import train
from sigma_data.errors import ConfigError
from sigma_data.sources import base, names, register
from sigma_data.sources.world import READER


def test_a_part_is_merged_and_the_rest_replaced() -> None:
    first = merge_settings(BuildConfig, {"sources": ["world:9"]}, {"quotas": {"editing": 3}, "seed": 4})
    again = merge_settings(BuildConfig, first, {"quotas": {"layout": 2}, "sources": ["world:5"]})
    assert again.model_dump() == first.model_dump() | {"quotas": {"editing": 3, "layout": 2}, "sources": ("world:5",)}
    assert merge_settings(BuildConfig, first, {}) == first


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"sead": 1}, "sead: there is no such setting: did you mean seed"), ({"seed": "x"}, "seed: ")],
)
def test_a_wrong_setting_is_named(settings: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        build_dataset("world:9", tmp_path / "corpus", **settings)
    assert not (tmp_path / "corpus").exists()


def test_training_names_the_setting_that_is_wrong(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="steps"):
        train({"out": str(tmp_path), "steps": "many", "data": {"corpora": [{"path": str(tmp_path)}]}})
    with pytest.raises(ConfigError, match="optimizer.lr"):
        train({"out": str(tmp_path), "steps": 1, "data": {"corpora": [{"path": "a"}]}}, optimizer={"lr": -1})
    with pytest.raises(ConfigError, match="nothing.yaml"):
        train(tmp_path / "nothing.yaml")


def test_a_layout_of_ones_own_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(base, "_REGISTERED", {})
    register("mine", READER)
    assert "mine" in names() and isinstance(base.open_source("mine:3"), READER)
    for name, message in (("world", "there is a layout of that name"), ("My-Own", "lower-case letters")):
        with pytest.raises(ConfigError, match=message):
            register(name, READER)


def test_a_metric_of_ones_own_has_a_name_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_MAKERS", dict(registry._MAKERS))
    with pytest.raises(ConfigError, match="PSNR: there is a metric of that name"):
        registry.register(Psnr)

    class Mine(Psnr):
        name = "mine"

        def __init__(self) -> None:
            super().__init__("cpu")

    registry.register(Mine)
    made, skipped = registry.make_metrics(["mine"], {}, "cpu", 2)
    assert registry.names()[-1] == "mine" and [metric.name for metric in made] == ["mine"] and not skipped


def test_evaluating_names_the_setting_that_is_wrong(tmp_path: Path) -> None:
    for settings, message in (
        ({"stepz": 4}, "did you mean steps"),
        ({"stage": "draw"}, "stage"),
        ({"limit": 0}, "limit"),
    ):
        with pytest.raises(ConfigError, match=message):
            evaluate("world:nothing", tmp_path / "out", model=Path("tiny"), **settings)
    assert not (tmp_path / "out").exists()
