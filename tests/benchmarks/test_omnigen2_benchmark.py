"""The benchmark of packed steps runs at a tiny size, on samples that differ in all that padding suffers from."""

from __future__ import annotations

import pytest
from support import omnigen2

CONFIG = omnigen2.CONFIG.model_copy(update={"axes_lens": (256, 256, 256)})


def test_packed_and_padded_steps_are_measured_on_the_same_samples(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    bench = omnigen2.script("omnigen2")
    monkeypatch.setattr(bench, "GRIDS", ((1, 2), (3, 2), (4, 4)))
    samples = bench.mixed_samples(CONFIG, 8, seed=2)
    assert len({len(one.references) for one in samples}) > 1
    assert len({one.latent.shape for one in samples}) > 1
    assert bench.training(omnigen2.model(config=CONFIG), [samples[:4], samples[4:]]) > 0
    assert capsys.readouterr().out.count("target tokens a second") == 2
