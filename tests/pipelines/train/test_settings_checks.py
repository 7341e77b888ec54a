"""Settings held against each other, the machine and the data: refused or warned of before any work is done."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from support import training_runs
from support.places import ROOT

from pipelines.common.settings import load_settings
from pipelines.train.config import TrainConfig
from pipelines.train.estimate.dry_run import dry_run
from pipelines.train.estimate.flops import parameters_of
from pipelines.train.settings_checks import (
    EpochContent,
    check_machine,
    check_projection,
    check_settings,
    check_trainable,
    model_warnings,
    warnings,
)
from sigma_data.errors import ConfigError
from sigma_data.sample import Family
from sigma_data.sequence.layout import Kind
from sigma_model.config import preset

IMAGES = {Family.EDITING: {Kind.TEXT: 9, Kind.LATENT: 9, Kind.TARGET: 9}}
WORDS = {Family.UNDERSTANDING: {Kind.TEXT: 9, Kind.PATCH: 9, Kind.ANSWER: 9}}


def config(**changes: Any) -> TrainConfig:
    return TrainConfig.model_validate({"out": "run", "steps": 100, "data": {"corpora": "corpus"}, **changes})


def learning_of(settings: TrainConfig) -> frozenset[str]:
    return parameters_of(preset("tiny"), settings.freeze, settings.lora).trainable


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"loss": {"image": 0, "text": 0}}, "loss.image and loss.text are both 0"),
        ({"schedule": {"min_lr": 1e-3}}, "schedule.min_lr 0.001 is above optimizer.lr 2e-05"),
        ({"schedule": {"kind": "linear", "min_lr": 1}}, "schedule.kind=linear lets it fall"),
        ({"optimizer": {"kind": "muon"}, "freeze": {"llm": True}}, "optimizer.kind=muon .* freeze.llm leaves none"),
        ({"model": {"from_run": "a", "path": "b"}}, "model.from_run and model.path both say where to start"),
        ({"model": {"from_run": "a", "base": "b"}}, "model.from_run and model.base both say where to start"),
        ({"model": {"from_weights": "raw"}}, "model.from_weights=raw belongs to model.from_run"),
        ({"model": {"from_run": "run@3"}}, "out and model.from_run both name"),
        ({"model": {"path": "run"}}, "out and model.path both name run"),
        ({"out": "corpus"}, "out and data.corpora both name corpus"),
        ({"out": "runs/../corpus/"}, "out and data.corpora both name corpus"),
        ({"model": {"path": "a", "base": "run/."}}, "out and model.base both name run"),
    ],
)
def test_settings_that_contradict_one_another_are_refused_by_both_names(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        check_settings(config(**changes))


def test_a_run_does_not_lie_inside_a_corpus_or_a_link_to_one(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    (tmp_path / "link").symlink_to(corpus)
    with pytest.raises(ConfigError, match="out and data.corpora both name"):
        check_settings(config(out=tmp_path / "link", data={"corpora": str(corpus)}))
    inside = config(out=tmp_path / "link" / "run", data={"corpora": str(corpus)})
    check_settings(inside)  # a folder beside others, as far as one can see
    (corpus / "corpus.json").write_text("{}")
    with pytest.raises(ConfigError, match="out lies in .*corpus, which data.corpora names"):
        check_settings(inside)


def test_settings_that_agree_pass() -> None:
    check_settings(config())
    check_settings(config(schedule={"kind": "constant", "min_lr": 1}))  # has no end
    check_settings(config(optimizer={"kind": "muon"}, loss={"text": 0}))
    for path in (ROOT / "configs").glob("[!c]*.yaml"):  # all but those of corpora
        settings = load_settings(TrainConfig, path, [])
        check_settings(settings)
        without = settings.model.model_copy(update={"quantize": None})  # its library need not be installed here
        check_machine(settings.model_copy(update={"model": without}), on_gpu=True, flash=False)
        assert warnings(settings, EpochContent({}, 10**6, 10**5), steps=50_000, ranks=8) == []


@pytest.mark.parametrize(
    ("changes", "on_gpu", "flash", "told"),
    [
        ({"model": {"attention": "flash"}}, False, False, "model.attention=flash needs a GPU"),
        ({"model": {"attention": "flash"}}, True, False, "model.attention=flash needs the flash-attn package"),
        ({"model": {"attention": "flash", "dtype": "float32"}}, True, True, "model.dtype is float32"),
        ({"model": {"attention": "flex"}}, False, False, "model.attention=flex has no backward pass on a CPU"),
        ({"parallel": {"compile": True}}, False, False, "parallel.compile needs a GPU"),
        ({"parallel": {"offload": True}}, False, False, "parallel.offload needs a GPU"),
        ({"log": {"wandb": "project"}}, True, True, "log.wandb: the wandb package is not installed"),
    ],
)
def test_what_a_machine_cannot_do_is_refused_with_the_reason(
    changes: dict[str, Any], on_gpu: bool, flash: bool, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=told):
        check_machine(config(**changes), on_gpu=on_gpu, flash=flash)
    without = {**changes, "model": {"attention": "sdpa"}, "parallel": {}, "log": {}}
    check_machine(config(**without), on_gpu=False, flash=False)


@pytest.mark.parametrize(
    ("changes", "tokens", "told"),
    [
        ({"loss": {"image": 0}}, IMAGES, "loss.image=0 leaves the text loss, and no sample .* in words"),
        ({"loss": {"text": 0}}, WORDS, "loss.text=0 leaves the image loss, and no sample .* with an image"),
        ({"lora": {}}, WORDS, "loss.text reaches no trainable parameter .* lora.targets"),
        ({"lora": {}, "loss": {"image": 0}}, IMAGES | WORDS, "loss.text reaches no trainable"),
        ({"freeze": {"und": True, "patterns": ["lm_head"]}}, WORDS, "loss.text reaches no trainable parameter"),
    ],
)
def test_a_run_in_which_nothing_can_learn_is_refused(
    changes: dict[str, Any], tokens: dict[Family, dict[Kind, int]], told: str
) -> None:
    settings = config(**changes)
    with pytest.raises(ConfigError, match=told):
        check_trainable(settings, learning_of(settings), tokens)


@pytest.mark.parametrize("changes", [{}, {"lora": {}}, {"freeze": {"und": True}}, {"loss": {"text": 0}}])
def test_a_run_in_which_something_learns_is_none_of_them(changes: dict[str, Any]) -> None:
    settings = config(**changes)
    check_trainable(settings, learning_of(settings), IMAGES)
    check_trainable(settings, learning_of(settings), IMAGES | WORDS)
    if not changes:
        check_trainable(settings, learning_of(settings), WORDS)


def test_a_new_projection_must_learn() -> None:
    shape = preset("tiny").model_copy(update={"attribute_projection": True})
    for changes in ({"lora": {}}, {"freeze": {"patterns": ["attribute_projection"]}}):
        settings = config(model={"attribute_projection": True}, **changes)
        trainable = parameters_of(shape, settings.freeze, settings.lora).trainable
        with pytest.raises(ConfigError, match="attribute_projection starts at zero and must be trained"):
            check_projection(settings, trainable, released=False)
        check_projection(settings, trainable, released=True)
    settings = config(model={"attribute_projection": True}, lora={"train": ["attribute_projection"]})
    check_projection(settings, parameters_of(shape, settings.freeze, settings.lora).trainable, released=False)


@pytest.mark.parametrize(
    ("changes", "steps", "told"),
    [
        ({"schedule": {"warmup": 1000}}, 3, "schedule.warmup 1,000 is not over within 3 steps"),
        ({"schedule": {"warmup": 3}}, 3, "never reaches optimizer.lr"),
        ({"optimizer": {"lr": 1e-12}, "schedule": {"min_lr": 0}}, 100, "optimizer.lr 1e-12 is so small"),
        ({"optimizer": {"spike": 0.5}}, 100, "optimizer.spike 0.5 is below optimizer.clip 1"),
        ({}, 100, "ema.decay 0.9999 over 100 steps: 99 % of the average is still what it started from"),
        ({"validation": {"every": 500}}, 20, "validation.every 500: only once"),
        ({"checkpoint": {"every": 500}}, 1, "checkpoint.every 500: only at the end, for there is 1 step"),
        ({"log": {"every": 50}}, 20, "log.every 50: only the last step, for there are 20 steps"),
        ({"model": {"vision": False}}, 100, "model.vision=false: understanding samples are answered in words without"),
        ({"ema": {"decay": 0.99999999}}, 100, "ema.decay 0.99999999 over"),
        ({"loss": {"image": 0}}, 100, "loss.image=0: editing samples that need it teach nothing"),
        ({"data": {"corpora": "c", "dropout": {"text": 1}}}, 100, "data.dropout.text=1: no instructions are ever"),
        ({"loader": {"latent_cache": 1000}}, 5, "loader.latent_cache: the run is over within an epoch"),
        ({"accumulate": 50}, 100, "a step takes 50 packs, and an epoch has 10"),
        ({}, 100, "3 samples of 43 fit into no pack and are left out"),
    ],
)
def test_what_hardly_learns_is_warned_of(changes: dict[str, Any], steps: int, told: str) -> None:
    epoch = EpochContent(IMAGES | WORDS, samples=40, packs=10, left_out=3)
    assert told in "\n".join(warnings(config(**changes), epoch, steps=steps, ranks=1))


@pytest.mark.parametrize(
    ("changes", "trained", "told"),
    [
        ({"lora": {"rank": 1000}}, True, "lora.rank 1,000 is not below the smaller side of backbone.layers.0.gen."),
        ({"lora": {}}, False, "lora: 2,217,248 of 2,217,248 parameters stay random, for model.path tiny has no"),
        ({"freeze": {"und": True}}, False, "freeze: "),
        ({"freeze": {"vit": True}, "model": {"vision": False}}, True, "freeze.vit: the run has no vision encoder"),
        ({}, False, ""),
        ({"lora": {"rank": 8}}, True, ""),
    ],
)
def test_what_the_model_is_hardly_meant_for_is_warned_of(changes: dict[str, Any], trained: bool, told: str) -> None:
    settings = config(**changes)
    found = model_warnings(settings, parameters_of(preset("tiny"), settings.freeze, settings.lora), trained=trained)
    assert (told in "\n".join(found)) if told else not found


@pytest.mark.parametrize(
    "name", ["optimizer.weight_decay", "optimizer.spike", "schedule.min_lr", "loss.image", "loss.text", "lora.alpha"]
)
def test_no_number_of_a_run_may_be_infinite(tmp_path: Path, name: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("{out: run, steps: 1, data: {corpora: c}}")
    with pytest.raises(ConfigError, match=f"{name}=inf: needs a finite number"):
        load_settings(TrainConfig, file, [f"{name}=inf"])


def test_a_word_that_contradicts_the_file_is_named(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("{out: run, steps: 1, data: {corpora: c}}")
    with pytest.raises(ConfigError, match="^epochs=2: steps and epochs are both set: leave one out"):
        load_settings(TrainConfig, file, ["epochs=2"])
    with pytest.raises(ConfigError, match="^steps=null: steps and epochs are neither set"):
        load_settings(TrainConfig, file, ["steps=null"])
    file.write_text("{out: run, steps: 1, accumulate: 99, model: {master: bfloat16}, data: {corpora: c}}")
    with pytest.raises(ConfigError, match="run.yaml: accumulate: gradients of 99 packs"):
        load_settings(TrainConfig, file, ["out=other"])


def test_a_dry_run_refuses_and_warns_as_the_run_does(training_corpus: Path, tmp_path: Path) -> None:
    changes = {"schedule": {"warmup": 1000}, "model": {"attention": "flash"}}
    settings = TrainConfig.model_validate(training_runs.settings_of(tmp_path / "run", training_corpus, **changes))
    told = dry_run(settings)
    assert any("schedule.warmup" in line for line in told.warnings)
    assert any(line.startswith("on this machine: model.attention=flash needs a GPU") for line in told.warnings)
    assert "warning: schedule.warmup" in told.show()
    for changes, words in (
        ({"loss": {"image": 0, "text": 0}}, "both 0"),
        ({"loss": {"image": 0}, "lora": {}}, "reaches no trainable"),
    ):
        settings = TrainConfig.model_validate(training_runs.settings_of(tmp_path / "run", training_corpus, **changes))
        with pytest.raises(ConfigError, match=words):
            dry_run(settings)
        with pytest.raises(ConfigError, match=words):
            training_runs.run(training_runs.settings_of(tmp_path / "run", training_corpus, **changes))
    assert not (tmp_path / "run" / "config.yaml").exists()
