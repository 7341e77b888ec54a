"""The sections of benchmarks/train.py run at tiny sizes, and what they assert of the arms' results holds."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from support.places import ROOT

from pipelines.train.config import ParallelSettings
from pipelines.train.distributed.process_group import start_process_group, stop_process_group
from sigma_model.config import preset

FOLDER = str(ROOT / "benchmarks")


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The module, which imports its neighbours by plain names."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    import train

    for name in {"train", "train_gpu", "model", "gpu", "packs", "gathered"} - before:
        monkeypatch.delitem(sys.modules, name)
    return train


@pytest.mark.slow
def test_both_layouts_take_the_same_steps(train: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    config = preset("tiny")
    train.layout(config, train.training_batch(config, samples=2, side=4), rounds=1)
    assert "losses of three steps agree" in capsys.readouterr().out


@pytest.mark.slow
def test_a_layout_that_computes_something_else_is_noticed(train: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    config = preset("tiny")
    monkeypatch.setattr(train, "_ours", lambda model, batch: train._usual(batch)(model, batch) * 1.1)
    with pytest.raises(AssertionError, match="close"):
        train.layout(config, train.training_batch(config, samples=2, side=4), rounds=1)


def test_both_ways_to_save_are_timed_and_a_slow_one_misses_its_target(
    train: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train, "STALL_TARGET", 0.0)
    assert not train.checkpoint(megabytes=(1,), rounds=2)
    monkeypatch.setattr(train, "STALL_TARGET", float("inf"))
    assert train.checkpoint(megabytes=(1,), rounds=2)


@pytest.mark.slow
def test_the_gpu_section_measures_whole_steps_wherever_it_is_told_to(train: ModuleType) -> None:
    gpu, config = train.train_gpu, preset("tiny")
    batch = train.training_batch(config, samples=1, side=4)
    group = start_process_group(ParallelSettings(), device="cpu", mixed=True)
    try:
        settings = ParallelSettings(checkpointing="full")
        found = gpu.measure(config, batch, group, settings, dtype=torch.float32, rounds=1)
    finally:
        stop_process_group()
    assert found.seconds > 0
    assert found.hardware_flops > found.model_flops > 0


def test_layers_fill_the_memory_that_there_is(train: ModuleType) -> None:
    full = preset("bagel-7b-mot")
    counts = [train.train_gpu.fitting_layers(full, gib * 2**30) for gib in (16, 40, 79, 1000)]
    assert counts == sorted(counts)
    assert counts[0] == 1
    assert counts[2] > counts[1] > 1
    assert counts[3] == full.language.num_hidden_layers
    assert train.train_gpu.shallow(full, layers=3).language.hidden_size == full.language.hidden_size
