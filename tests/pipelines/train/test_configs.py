"""The configurations a user starts from load as they are, and say what the papers say."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import yaml
from support.places import ROOT, TESTS

from pipelines.common.settings import load_settings
from pipelines.train.config import TrainConfig
from pipelines.train.estimate.flops import parameters_of
from pipelines.train.omnigen2.build import lora_targets
from pipelines.train.omnigen2.settings_checks import check_run
from pipelines.train.start_description import training_config
from pipelines.train.token_rows import ROWS, TABLE
from sigma_data.sample import Family
from sigma_model.checkpoint_io import released_name
from sigma_model.config import PRESETS, preset
from sigma_model.omnigen2.lora import TARGETS

CONFIGS = ROOT / "configs"
NAMES = (
    "quickstart",
    "quickstart-sgt",
    "sigma-bagel-7b",
    "sigma-bagel-7b-frozen",
    "sigma-lora",
    "sigma-qlora",
    "sgt-bagel",
)
OMNIGEN2 = ("sgt-omnigen2", "omnigen2-lora")


def config(name: str) -> TrainConfig:
    return load_settings(TrainConfig, CONFIGS / f"{name}.yaml", [])


def test_every_configuration_is_one_that_is_tested_here() -> None:
    training = [path.stem for path in CONFIGS.glob("*.yaml") if not path.stem.startswith("corpus-")]
    assert sorted(training) == sorted((*NAMES, *OMNIGEN2))


@pytest.mark.parametrize("name", NAMES)
def test_a_configuration_loads_and_freezes_something_that_is_there(name: str) -> None:
    settings = config(name)
    model = preset("tiny" if settings.model.path == "tiny" else "bagel-7b-mot")
    parameters = parameters_of(model, settings.freeze, settings.lora)
    assert any(".gen." in trainable for trainable in parameters.trainable)
    assert settings.data.budget <= model.language.max_position_embeddings


@pytest.mark.parametrize("name", [*NAMES, *OMNIGEN2])
def test_paths_are_relative_and_every_setting_says_why(name: str) -> None:
    settings = config(name)
    paths = [settings.out, Path(settings.model.path), *(Path(corpus.path) for corpus in settings.data.corpora)]
    assert not any(path.is_absolute() for path in paths)
    text = (CONFIGS / f"{name}.yaml").read_text()
    assert text.startswith("# ")
    settled = [line for line in text.splitlines() if re.match(r" *(- )?[a-z_]+: *[^ #]", line)]
    assert [line for line in settled if " # " not in line] == []


@pytest.mark.parametrize("name", [*NAMES, *OMNIGEN2])
def test_a_path_is_a_presets_name_or_made_by_a_command_above_or_marked_to_be_edited(name: str) -> None:
    settings, text = config(name), (CONFIGS / f"{name}.yaml").read_text()
    made = re.findall(r"^#.*\bsigma .*--out ([\w/-]+)", text, re.MULTILINE)
    for path in (settings.model.path, *(corpus.path for corpus in settings.data.corpora)):
        [line] = [line for line in text.splitlines() if f"path: {path} " in line]
        ours = path in PRESETS or any(Path(path).is_relative_to(out) for out in made)
        assert ours or "# edit" in line, line


@pytest.mark.parametrize("name", ["sigma-bagel-7b", "sigma-bagel-7b-frozen"])
def test_the_recipe_is_that_of_the_published_script(name: str) -> None:
    settings = config(name)
    optimizer, schedule = settings.optimizer, settings.schedule
    assert (optimizer.lr, optimizer.betas, optimizer.eps, optimizer.clip) == (2e-5, (0.9, 0.95), 1e-15, 1.0)
    assert (schedule.kind, schedule.warmup, schedule.min_lr) == ("cosine", 0, 1e-7)
    assert (settings.steps, settings.data.budget, settings.accumulate) == (30_000, 30_000, 1)
    assert settings.ema is not None
    assert settings.ema.decay == 0.9999
    dropout = settings.data.dropout
    assert (dropout.text, dropout.latent, dropout.patch) == (0.1, 0.3, 0.3)
    assert (settings.loss.image, settings.loss.text, settings.loss.timestep_shift) == (1.0, 0.0, 1.0)
    assert not settings.model.vision, "no ViT part"
    assert (optimizer.kind, optimizer.weight_decay) == ("adamw", 0.0)
    assert settings.model.master == "float32"
    assert settings.model.group_mask
    assert not settings.model.attribute_projection
    assert settings.lora is None


def test_the_recipe_trains_every_parameter_of_the_language_model() -> None:
    settings = config("sigma-bagel-7b")
    model = training_config(preset("bagel-7b-mot"), settings)
    parameters = parameters_of(model, settings.freeze, None)
    assert parameters.trainable == frozenset(parameters.shapes)
    released = json.loads((TESTS / "golden" / "bagel_7b_mot_keys.json").read_text())["keys"]
    fixed = {"latent_pos_embed.pos_embed", "vit_pos_embed.pos_embed"}
    vision = {name for name in released if name.startswith(("vit_model.", "connector."))}
    assert {released_name(name) for name in parameters.trainable} == set(released) - vision - fixed


@pytest.mark.parametrize("name", ["sigma-bagel-7b-frozen", "sigma-lora", "sigma-qlora"])
def test_a_recipe_that_freezes_the_embeddings_trains_the_attribute_tokens_rows(name: str) -> None:
    settings = config(name)
    parameters = parameters_of(preset("bagel-7b-mot"), settings.freeze, settings.lora)
    assert TABLE not in parameters.trainable
    assert ROWS in parameters.trainable
    assert parameters.shapes[ROWS] == (15, 3584)


def test_the_frozen_recipe_trains_the_generation_branch_and_the_attribute_tokens_alone() -> None:
    settings = config("sigma-bagel-7b-frozen")
    trainable = parameters_of(preset("bagel-7b-mot"), settings.freeze, None).trainable
    own = ("latent_in", "latent_out", "time_embedder", ROWS)
    assert all(".gen." in name or name == "backbone.norm_gen.weight" or name.startswith(own) for name in trainable)


def test_lora_is_for_one_gpu_and_trains_the_generation_experts_additions_and_the_attribute_tokens() -> None:
    settings = config("sigma-lora")
    assert settings.lora is not None
    trainable = parameters_of(preset("bagel-7b-mot"), settings.freeze, settings.lora).trainable
    assert trainable
    assert all((".gen." in name and ".lora_" in name) or name == ROWS for name in trainable)
    assert settings.parallel.shard is None
    assert settings.parallel.checkpointing == "full"
    assert settings.data.budget < 30_000


def test_qlora_is_lora_over_weights_of_few_bits() -> None:
    plain, few = config("sigma-lora"), config("sigma-qlora")
    assert few.model.quantize == "nf4"
    assert (few.lora, few.freeze, few.optimizer, few.schedule) == (
        plain.lora, plain.freeze, plain.optimizer, plain.schedule,
    )  # fmt: skip
    assert few.data.budget < plain.data.budget


def test_sgt_mixes_segmentation_and_understanding_two_to_one_and_learns_text() -> None:
    settings = config("sgt-bagel")
    assert settings.data.mixture is not None
    shares = settings.data.mixture.shares
    assert shares[Family.SEGMENTATION] == 2 * shares[Family.UNDERSTANDING]
    assert set(shares) == {Family.SEGMENTATION, Family.UNDERSTANDING}
    assert settings.loss.image > 0 and settings.loss.text > 0
    trainable = parameters_of(preset("bagel-7b-mot"), settings.freeze, None)
    assert trainable.trainable == frozenset(trainable.shapes), "the whole model, vision encoder included"
    assert (settings.optimizer.lr, settings.schedule.warmup, settings.steps) == (5e-6, 300, 2500)
    assert set(vars(settings.data.dropout).values()) == {0.0}, "nothing is dropped"
    corpus = yaml.safe_load((CONFIGS / "corpus-sgt.yaml").read_text())
    assert [source["source"] for source in corpus["sources"]] == ["sam_sgt", "llava_onevision"]
    assert corpus["quotas"]["segmentation"] == 2 * corpus["quotas"]["understanding"]


def test_sgt_says_what_of_its_settings_is_not_known() -> None:
    text = (CONFIGS / "sgt-bagel.yaml").read_text()
    assert "not published" in text
    for name in ("betas", "eps", "text", "decay", "budget", "timestep_shift"):
        assert re.search(rf"^ *{name}: .*(not known|so guidance)", text, re.MULTILINE), name


def test_the_quickstart_of_sgt_is_sgt_at_tiny_size() -> None:
    small, large = config("quickstart-sgt"), config("sgt-bagel")
    assert small.data.mixture == large.data.mixture
    assert small.model.vision and small.freeze == large.freeze
    assert small.model.dtype == small.model.master == "float32"
    assert small.loss.text > 0 and small.loss.reweight_text == large.loss.reweight_text


def test_the_quickstart_needs_neither_gpu_nor_weights() -> None:
    settings = config("quickstart")
    assert settings.model.path == "tiny-base"
    assert settings.model.dtype == settings.model.master == "float32"
    assert not settings.parallel.compile
    assert not settings.freeze.und


def test_sgt_on_omnigen2_is_what_its_code_says() -> None:
    settings = config("sgt-omnigen2")
    check_run(settings)
    chosen = settings.omnigen2
    assert (chosen.route, chosen.train_mllm, chosen.time_shift, chosen.static_shift) == ("mllm", True, "v1", False)
    assert settings.data.mixture is not None
    shares = settings.data.mixture.shares
    assert shares[Family.SEGMENTATION] == 2 * shares[Family.UNDERSTANDING]
    assert (settings.optimizer.lr, settings.schedule.warmup, settings.schedule.kind) == (5e-6, 300, "constant")
    assert (settings.steps, settings.ema, settings.data.dropout.text) == (2500, None, 0.0)


def test_lora_on_omnigen2_is_that_of_its_release() -> None:
    settings = config("omnigen2-lora")
    check_run(settings)
    assert settings.lora is not None
    assert (settings.lora.rank, settings.lora.alpha, lora_targets(settings.lora)) == (8, 8.0, TARGETS)
    optimizer, dropout = settings.optimizer, settings.data.dropout
    assert (optimizer.betas, optimizer.eps, optimizer.weight_decay, optimizer.clip) == ((0.9, 0.95), 1e-8, 0.01, 1.0)
    assert (dropout.text, dropout.latent, settings.schedule.warmup, settings.ema) == (0.0001, 0.5, 500, None)
    assert (settings.omnigen2.max_pixels, settings.omnigen2.text_tokens) == (1_048_576, 888)
