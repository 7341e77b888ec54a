"""Training past the released position grid: one rule, equal inside the old grid to the bit, kept by an export."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import training_runs
from support.corpora import build

from pipelines.train.config import TrainConfig
from pipelines.train.estimate.dry_run import dry_run
from pipelines.train.export import export_run
from sigma_data.errors import ConfigError
from sigma_model.checkpoint_io import Checkpoint, export_model, init_model, load_model
from sigma_model.config import ModelConfig, preset
from sigma_model.embed import sincos_table
from sigma_model.loading import describe_model, load_for_inference
from sigma_model.position_extension import extended_table

GRID = preset("tiny").latent.grid


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_larger_table_is_the_stored_one_inside_and_the_formula_outside(dtype: torch.dtype) -> None:
    stored = sincos_table(5, 16).to(dtype)
    table = extended_table(stored, 8, where="x").view(8, 8, 16)
    assert torch.equal(table[:5, :5].to(dtype), stored.view(5, 5, 16))
    formula = sincos_table(8, 16).view(8, 8, 16)
    assert torch.equal(table[5:], formula[5:]) and torch.equal(table[:, 5:], formula[:, 5:])
    assert torch.equal(extended_table(sincos_table(5, 16), 8, where="x"), sincos_table(8, 16))


def test_what_is_not_the_fixed_table_is_not_extended() -> None:
    learnt = sincos_table(5, 16)
    learnt[3, 3] += 0.1
    with pytest.raises(ConfigError, match="not the fixed one of the release.*past its 5 x 5"):
        extended_table(learnt, 8, where="x")


def test_images_grow_with_the_grid_and_a_smaller_one_is_refused() -> None:
    old = preset("bagel-7b-mot")
    new = old.with_grid(128)
    assert (new.latent.grid, new.vae_rule.max_size) == (128, 2048)
    assert new.vae_rule.size(2048, 2048) == (2048, 2048)
    assert old.vae_rule.size(2048, 2048) == (1024, 1024)
    assert new.vae_rule.size(800, 600) == old.vae_rule.size(800, 600)
    assert (new.vision, new.vit_rule) == (old.vision, old.vit_rule)
    assert old.with_grid(64) == old
    with pytest.raises(ConfigError, match="max_latent_size 32 is below the model's own 64"):
        old.with_grid(32)


@pytest.mark.slow
def test_a_run_past_the_grid_learns_from_larger_images_and_its_export_makes_them(tmp_path: Path) -> None:
    side = preset("tiny").vae_rule.max_size
    corpus = tmp_path / "corpus"
    build(corpus, f"world:12?size={2 * side}", splits={"train": 100})
    base = tmp_path / "base"
    training_runs.run(training_runs.settings_of(tmp_path / "first", corpus, steps=1, data={"budget": 3000}))
    export_run(tmp_path / "first", base)

    out = tmp_path / "run"
    model = {"path": str(base), "max_latent_size": 2 * GRID}
    settings = training_runs.settings_of(out, corpus, steps=1, model=model, data={"budget": 6000})
    plain = training_runs.settings_of(tmp_path / "no", corpus, model={"path": str(base)}, data={"budget": 6000})
    larger, usual = (dry_run(TrainConfig.model_validate(one)) for one in (settings, plain))
    assert larger.estimate.tokens_per_step * larger.epoch.packs > 2 * usual.estimate.tokens_per_step * usual.epoch.packs
    training_runs.run(settings)

    model_dir = export_run(out, tmp_path / "model")
    config = ModelConfig.from_directory(model_dir)
    assert (config.latent.grid, config.vae_rule.max_size) == (2 * GRID, 2 * side)
    table = load_model(model_dir, dtype=torch.float32).latent_positions.view(2 * GRID, 2 * GRID, -1)
    before = load_model(base, dtype=torch.float32).latent_positions.view(GRID, GRID, -1)
    assert torch.equal(table[:GRID, :GRID], before)
    assert Checkpoint(model_dir).tensors["latent_pos_embed.pos_embed"].shape[0] == 4 * GRID**2
    assert load_for_inference(str(model_dir)).geometry.vae.max_size == 2 * side
    with pytest.raises(ConfigError, match="the data is not what the checkpoint was trained on"):
        training_runs.run({**settings, "steps": 2, "model": {"path": str(base)}})


def test_weights_whose_table_was_learnt_are_refused_before_training(tmp_path: Path) -> None:
    model = init_model(preset("tiny"), seed=0)
    model.latent_positions[7] += 1
    export_model(model, tmp_path)
    shape = describe_model("tiny", max_latent_size=2 * GRID).config
    with pytest.raises(ConfigError, match="not the fixed one"):
        load_model(tmp_path, config=shape)
