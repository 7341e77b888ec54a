"""The sections of benchmarks/model.py run at tiny sizes, and what they assert of the arms' results holds."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest
import torch
from support.places import ROOT

FOLDER = str(ROOT / "benchmarks")
SEGMENTS = [((4, 4), (3, 3))] * 2, (4, 4)


@pytest.fixture
def benches(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType, ModuleType]:
    """The modules `model`, `gpu` and `packs`, which import one another by plain names."""
    monkeypatch.syspath_prepend(FOLDER)
    before = set(sys.modules)
    import gpu
    import model
    import packs

    for name in {"model", "gpu", "packs", "gathered"} - before:
        monkeypatch.delitem(sys.modules, name)
    return model, gpu, packs


def tiny(model: ModuleType):
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 320}
    return model.LANGUAGE.model_copy(update={**sizes, "num_attention_heads": 4, "num_key_value_heads": 2})


def test_both_ways_to_run_experts_give_the_same_outputs_and_gradients(benches) -> None:
    model, _, packs = benches
    batch = packs.pack([packs.sample(*SEGMENTS, words=9)] * 2)
    assert model.experts(tiny(model), batch, rounds=1) > 0


def test_both_samplers_give_the_same_velocities(benches) -> None:
    model, _, packs = benches
    assert model.sampling(tiny(model), packs.sample(*SEGMENTS, words=9), rounds=1) > 0


def test_the_block_mask_from_runs_is_torchs(benches, capsys: pytest.CaptureFixture[str]) -> None:
    model, _, packs = benches
    batch = packs.pack([packs.sample([((8, 8), (6, 6))] * 3, (8, 8), words=30)] * 3)
    ours = model.block_mask(batch.runs, batch.tags, group_mask=True)
    torchs = model.by_torch(batch)
    assert torchs.kv_num_blocks.shape[-1] > 2
    assert torch.equal(ours.to_dense(), torchs.to_dense())
    model.masks([("small", batch)], rounds=1)
    assert "create_block_mask" in capsys.readouterr().out


def test_a_mask_that_is_too_slow_misses_its_target(benches, monkeypatch: pytest.MonkeyPatch) -> None:
    model, _, packs = benches
    batch = packs.pack([packs.sample(*SEGMENTS, words=9)])
    monkeypatch.setattr(model, "MASK_MS", 0.0)
    assert not model.masks([("small", batch)], rounds=1, dense=False)


def test_the_gpu_section_runs_wherever_it_is_told_to(benches, capsys: pytest.CaptureFixture[str]) -> None:
    model, gpu, packs = benches
    batch = packs.pack([packs.sample(*SEGMENTS, words=9)] * 2)
    config = tiny(model)
    assert gpu.agreement(config, batch, device="cpu", dtype=torch.float32)
    dense = model.visible(*_both(batch.tags), group_mask=True)
    assert gpu.visible_pairs(batch.tags, rows=7) == int(dense.sum())
    gpu.layer_speed(config, batch, device="cpu", dtype=torch.float32, rounds=1, ceiling_side=64)
    whole = model.preset("tiny").model_copy(update={"language": config})
    request = packs.sample(*SEGMENTS, words=9)
    gpu.sampler_without_waits(whole, request, device="cpu", dtype=torch.float32, steps=2)
    said = capsys.readouterr().out
    assert "layer, sdpa" in said
    assert "2 guided steps" in said


def _both(tags):
    return type(tags)(*(tag[:, None] for tag in tags)), type(tags)(*(tag[None] for tag in tags))
