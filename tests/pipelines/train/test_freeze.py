"""What is frozen stays so, either name of a parameter serves, and a pattern that does nothing is no silent one."""

from __future__ import annotations

import json

import pytest
from support.places import ROOT
from support.sequences import one_thread, tiny_model  # noqa: F401

from pipelines.train.config import FreezeSettings
from pipelines.train.freeze import apply_freeze
from sigma_data.errors import ConfigError
from sigma_model.checkpoint_io import load_model, released_name
from sigma_model.model import SigmaModel

GOLDEN = ROOT / "tests" / "golden"


def frozen(model: SigmaModel) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.requires_grad}


def test_patterns_are_searched_in_our_names_and_in_the_released_ones() -> None:
    model = tiny_model()
    ours = {name for name, _ in model.named_parameters()}
    apply_freeze(model, FreezeSettings(patterns=(r"layers\.0\.gen\.", r"^vae2llm\.")))
    assert frozen(model) == {n for n in ours if n.startswith(("backbone.layers.0.gen.", "latent_in."))}
    apply_freeze(model, FreezeSettings(patterns=(r"_moe_gen\b",)))
    assert frozen(model) == {n for n in ours if ".gen." in n or n == "backbone.norm_gen.weight"}


def test_patterns_add_to_the_parts_that_are_frozen_and_the_next_choice_replaces_both() -> None:
    model = tiny_model()
    apply_freeze(model, FreezeSettings(und=True, patterns=("time_embedder",)))
    assert model.freeze_und
    assert {"backbone.embed.weight", "vision.norm.bias", "time_embedder.fc1.bias"} <= frozen(model)
    assert "backbone.layers.1.gen.q.weight" not in frozen(model)
    apply_freeze(model, FreezeSettings())
    assert frozen(model) == set() and not model.freeze_und


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"patterns": ("time_embedder", r"layers\.9\.")}, r"'layers\\\\.9\\\\.' matches nothing"),
        ({"patterns": ("(",)}, r"'\(' is not a regular expression"),
        ({"patterns": (".",)}, "leaves no trainable parameter"),
    ],
)
def test_a_pattern_that_cannot_be_meant_is_an_error_that_names_it(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        apply_freeze(tiny_model(), FreezeSettings(**settings))


def test_a_frozen_understanding_expert_gives_the_reference_s_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    from reference import training_batch
    from torch import float32

    facts = json.loads((GOLDEN / "train.json").read_text())
    model, batch = load_model(GOLDEN, dtype=float32), training_batch(GOLDEN)
    apply_freeze(model, FreezeSettings(und=True))
    latents = model.clean_latents(batch, batch.known_latents)
    out = model(batch, latents, timestep_shift=facts["timestep_shift"])
    (out.ce.mean() + out.mse.mean()).backward()
    found = {released_name(n): float(p.grad.norm()) for n, p in model.named_parameters() if p.grad is not None}
    expected = facts["grad_norms_freeze_und"]
    assert {name for name, norm in found.items() if norm > 1e-4} == {n for n, v in expected.items() if v and v > 1e-4}
    for name, norm in found.items():
        assert norm == pytest.approx(expected[name], rel=1e-3, abs=1e-4), name
