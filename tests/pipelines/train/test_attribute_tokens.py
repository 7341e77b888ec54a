"""The fifteen attribute tokens' rows: trained alone where the table is frozen, started from words, told apart."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.sequences import FIRST_ATTRIBUTE, attribute_id, case, one_thread, pack, tiny_config, tiny_model  # noqa: F401
from support.training_runs import build_corpus, run, same, saved, settings_of
from torch import Tensor

from pipelines.train.attribute_tokens import RowSimilarity, choose_trainable, start_rows
from pipelines.train.config import FreezeSettings, LoraSettings, OptimizerSettings, TrainConfig
from pipelines.train.estimate.dry_run import dry_run
from pipelines.train.export import export_run
from pipelines.train.freeze import apply_freeze
from pipelines.train.lora import add_lora, save_adapter
from pipelines.train.optimizer import make_optimizer
from pipelines.train.token_rows import ROWS, TABLE, add_token_rows, merge_token_rows
from sigma_data.errors import ConfigError
from sigma_data.instruction import ATTRIBUTES
from sigma_data.loading.batch import PackedBatch
from sigma_data.sample import Turn
from sigma_model.checkpoint_io import Checkpoint, export_model, init_model, load_model
from sigma_model.config import preset, preset_directory
from sigma_model.loading import describe_model
from sigma_model.model import SigmaModel

IDS = [attribute_id(name) for name in ATTRIBUTES]
OURS = {"und": True, "except_attribute_tokens": True}


def batch(first: str = "style", second: str = "subject") -> PackedBatch:
    """What is said of two references with two attribute tokens, and a question."""
    composed = case(f"<{first}> a <image_1> <{second}> b <image_2>", pictures=3)
    return pack([composed, case(Turn("what is <image_1>", response="a red cat"), pictures=1)])


def outputs(model: SigmaModel, inputs: PackedBatch) -> Tensor:
    with torch.no_grad():
        return model(inputs, model.clean_latents(inputs, inputs.known_latents)).velocity


def equal_rows() -> SigmaModel:
    """A model whose reserved rows are all the same, as BAGEL's nearly are."""
    model = tiny_model()
    with torch.no_grad():
        model.backbone.embed.weight[IDS] = model.backbone.embed.weight[IDS[0]].clone()
    return model


def learn(model: SigmaModel, steps: int = 3, **optimizer: Any) -> None:
    made = make_optimizer(model, OptimizerSettings(lr=0.01, **optimizer))
    inputs = batch()
    for _ in range(steps):
        out = model(inputs, model.clean_latents(inputs, inputs.known_latents))
        out.mse.mean().backward()
        made.step()
        made.zero_grad()


@pytest.mark.parametrize("train_rows", [False, True])
def test_tokens_of_equal_rows_are_told_apart_only_once_their_rows_are_trained(train_rows: bool) -> None:
    model = equal_rows()
    apply_freeze(model, FreezeSettings(und=True, except_attribute_tokens=train_rows))
    if train_rows:
        add_token_rows(model, IDS)
    one, other = batch("style", "subject"), batch("subject", "style")
    assert torch.equal(outputs(model, one), outputs(model, other))
    learn(model)
    assert torch.equal(outputs(model, one), outputs(model, other)) == (not train_rows)


def test_only_the_rows_learn_of_what_is_frozen_and_only_those_of_tokens_that_were_seen() -> None:
    model, before = equal_rows(), equal_rows().state_dict()
    apply_freeze(model, FreezeSettings(**OURS))
    add_token_rows(model, IDS)
    learn(model, weight_decay=0.5)
    after = model.state_dict()
    changed = {name for name, tensor in before.items() if not torch.equal(after[name], tensor)}
    assert changed
    assert all(
        ".gen." in name or name.startswith(("latent", "time", "lm_head", "backbone.norm_gen")) for name in changed
    )
    moved = (after[ROWS] != before[TABLE][IDS]).any(1)
    assert [ATTRIBUTES[place] for place in moved.nonzero().flatten().tolist()] == ["style", "subject"], (
        "and none decays"
    )


def test_own_rows_have_the_gradient_that_the_whole_table_has_there() -> None:
    whole, alone = tiny_model(attribute_projection=True), tiny_model(attribute_projection=True)
    apply_freeze(alone, FreezeSettings(**OURS))
    add_token_rows(alone, IDS)
    inputs = batch()
    for model in (whole, alone):
        out = model(inputs, model.clean_latents(inputs, inputs.known_latents))
        (out.mse.mean() + out.ce.mean()).backward()
    gradient = whole.backbone.embed.weight.grad
    assert gradient is not None
    torch.testing.assert_close(alone.get_parameter(ROWS).grad, gradient[IDS], rtol=1e-5, atol=1e-8)
    assert alone.get_parameter(TABLE).grad is None


def test_merged_rows_give_the_same_model_in_released_names() -> None:
    model = equal_rows()
    apply_freeze(model, FreezeSettings(**OURS))
    add_token_rows(model, IDS)
    learn(model)
    want = outputs(model, batch())
    merge_token_rows(model)
    assert torch.equal(outputs(model, batch()), want)
    assert model.state_dict().keys() == tiny_model().state_dict().keys()


def test_rows_of_a_table_that_learns_as_a_whole_are_no_exception() -> None:
    model = tiny_model()
    apply_freeze(model, FreezeSettings(except_attribute_tokens=True))
    with pytest.raises(ConfigError, match="the embeddings are not frozen"):
        add_token_rows(model, IDS)


def test_nothing_but_the_rows_may_learn() -> None:
    model = tiny_model()
    apply_freeze(model, FreezeSettings(patterns=(".",), except_attribute_tokens=True))
    add_token_rows(model, IDS)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [ROWS]


@pytest.mark.slow
def test_peft_puts_the_rows_into_the_base_and_the_adapter_holds_no_more_of_the_table(tmp_path: Path) -> None:
    from peft import PeftModel

    model = equal_rows()
    apply_freeze(model, FreezeSettings(**OURS))
    add_lora(model, LoraSettings(rank=3), seed=5)
    add_token_rows(model, IDS)
    learn(model)
    save_adapter(model, tmp_path, base="tiny")
    adapted = PeftModel.from_pretrained(equal_rows(), str(tmp_path))
    torch.testing.assert_close(outputs(adapted.get_base_model(), batch()), outputs(model, batch()), rtol=0, atol=1e-5)
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(outputs(merged, batch()), outputs(model, batch()), rtol=0, atol=1e-5)
    stored = load_file(tmp_path / "adapter_model.safetensors")
    assert [tuple(tensor.shape) for name, tensor in stored.items() if "embed" in name] == [(15, 32)]


# Whole runs -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_corpus(tmp_path_factory.mktemp("tokens"))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny preset's directory with weights in it, attribute tokens' rows all but equal."""
    folder = tmp_path_factory.mktemp("weights") / "model"
    shutil.copytree(preset_directory("tiny"), folder)
    ids = list(describe_model("tiny").tokenizer.attribute_ids.values())
    model = init_model(preset("tiny"), seed=3)
    with torch.no_grad():
        model.backbone.embed.weight[ids] = 1 + torch.randn(15, model.backbone.embed.embedding_dim) * 1e-4
        model.latent_out.weight.normal_(std=0.1)
    export_model(model, folder)
    return folder


def config_of(out: Path, corpus: Path, weights: Path, **changes: Any) -> dict[str, Any]:
    path = {"path": str(weights), **changes.pop("model", {})}
    return settings_of(out, corpus, model=path, freeze={**OURS, **changes.pop("freeze", {})}, **changes)


@pytest.mark.slow
@pytest.mark.parametrize("lora", [None, {"rank": 2}])
def test_a_run_keeps_the_rows_in_checkpoint_average_and_export_and_resumes_to_the_bit(
    tmp_path: Path, corpus: Path, weights: Path, lora: dict[str, Any] | None
) -> None:
    whole = config_of(tmp_path / "whole", corpus, weights, lora=lora, model={"token_init": "words"})
    parts = config_of(tmp_path / "parts", corpus, weights, lora=lora, model={"token_init": "words"})
    run(whole)
    run({**parts, "steps": 6, "schedule": {"kind": "cosine"}, "optimizer": {**parts["optimizer"], "max_bad_steps": 3}})
    assert same(saved(tmp_path / "whole"), saved(tmp_path / "parts"))
    state = saved(tmp_path / "whole")
    assert state[f"model/{ROWS}"].shape == state[f"ema/{ROWS}"].shape == (15, preset("tiny").language.hidden_size)
    assert f"model/{TABLE}" not in state
    ids = list(describe_model(str(weights)).tokenizer.attribute_ids.values())
    start = load_model(weights, dtype=torch.float32).state_dict()[TABLE]
    for ema, section in ((True, "ema"), (False, "model")):
        out = tmp_path / section
        export_run(tmp_path / "whole", out, ema=ema)
        table = load_model(out, dtype=torch.float32).state_dict()[TABLE]
        assert torch.equal(table[ids], state[f"{section}/{ROWS}"])
        others = [number for number in range(len(table)) if number not in ids]
        assert torch.equal(table[others], start[others])


@pytest.mark.slow
def test_stopped_and_gone_on_a_run_s_rows_are_not_started_anew(tmp_path: Path, corpus: Path, weights: Path) -> None:
    settings = config_of(
        tmp_path / "run", corpus, weights, model={"token_init": "words"}, steps=6, checkpoint={"every": 3, "keep": 5}
    )
    run(settings)
    last = saved(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000006")
    run(settings)
    assert same(saved(tmp_path / "run"), last)


@pytest.mark.slow
def test_started_from_words_rows_are_the_means_of_their_words_whatever_learns(
    tmp_path: Path, corpus: Path, weights: Path
) -> None:
    encoder = describe_model(str(weights)).tokenizer
    table = load_model(weights, dtype=torch.float32).state_dict()[TABLE]
    want = torch.stack([table[list(encoder.encode(name))].mean(0) for name in ATTRIBUTES])
    shape = preset("tiny")
    assert torch.equal(start_rows(weights, shape, encoder, init="words", seed=0), want)
    assert torch.equal(
        start_rows(weights, shape, encoder, init="keep", seed=0), table[list(encoder.attribute_ids.values())]
    )
    still = {"steps": 1, "optimizer": {"lr": 1e-30}, "schedule": {"kind": "constant"}}
    alone = config_of(tmp_path / "alone", corpus, weights, model={"token_init": "words"}, **still)
    run(alone)
    assert torch.equal(saved(tmp_path / "alone")[f"model/{ROWS}"], want)
    full = settings_of(tmp_path / "full", corpus, model={"path": str(weights), "token_init": "words"}, **still)
    run(full)
    found = saved(tmp_path / "full")[f"model/{TABLE}"]
    table[list(encoder.attribute_ids.values())] = want
    assert torch.equal(found, table)


@pytest.mark.slow
def test_rows_that_start_anew_and_are_never_kept_are_refused(corpus: Path, weights: Path, tmp_path: Path) -> None:
    settings = settings_of(tmp_path, corpus, model={"path": str(weights), "token_init": "words"}, freeze={"und": True})
    for act in (lambda: dry_run(TrainConfig.model_validate(settings)), lambda: run(settings)):
        with pytest.raises(ConfigError, match="model.token_init words: .* set freeze.except_attribute_tokens=true"):
            act()


# Likeness -------------------------------------------------------------------------------------------


def test_likeness_is_of_all_pairs_and_names_the_nearest() -> None:
    rows = torch.eye(15)
    rows[3] = rows[1] + 0.1 * rows[2]
    found = RowSimilarity.of(rows, trainable=False)
    assert found.nearest == (ATTRIBUTES[1], ATTRIBUTES[3])
    assert found.most == pytest.approx(1 / 1.01**0.5)
    assert found.least == 0
    assert found.mean == pytest.approx((1 + 0.1) / 1.01**0.5 / 105)
    assert "nearly equal" in found.warning
    assert RowSimilarity.of(rows, trainable=True).warning == ""
    assert RowSimilarity.of(torch.eye(15), trainable=False).warning == ""


@pytest.mark.parametrize(
    "rows", [torch.zeros(15, 4), torch.ones(15, 4) * 1e-20, torch.ones(15, 4) * torch.arange(1, 16)[:, None]]
)
def test_rows_of_zeros_and_rows_that_differ_in_length_alone_are_alike(rows: Tensor) -> None:
    assert RowSimilarity.of(rows, trainable=False).least == pytest.approx(1)


@pytest.mark.parametrize(("freeze", "warned"), [({"und": True}, True), (OURS, False), ({}, False)])
def test_a_dry_run_tells_how_alike_the_rows_are_and_warns_where_they_are_not_trained(
    tmp_path: Path, corpus: Path, weights: Path, freeze: dict[str, bool], warned: bool
) -> None:
    settings = settings_of(tmp_path, corpus, model={"path": str(weights)}, freeze=freeze)
    found = dry_run(TrainConfig.model_validate(settings))
    assert found.tokens is not None
    assert found.tokens.least > 0.99
    assert ("cannot tell such tokens apart" in found.show()) == warned
    assert "cosines of the 15 rows" in found.show()
    assert json.loads(json.dumps(found.as_dict()))["tokens"]["most"] == found.tokens.most


@pytest.mark.slow
def test_a_run_warns_at_its_start_of_tokens_that_cannot_be_told_apart(
    tmp_path: Path, corpus: Path, weights: Path, caplog: pytest.LogCaptureFixture
) -> None:
    from pipelines.train.trainer import train

    caplog.set_level("INFO")
    settings = settings_of(tmp_path, corpus, model={"path": str(weights)}, freeze={"und": True}, steps=1)
    train(TrainConfig.model_validate(settings))
    assert "Set freeze.except_attribute_tokens=true" in caplog.text


def test_random_weights_have_no_rows_to_tell_of(tmp_path: Path, corpus: Path) -> None:
    assert dry_run(TrainConfig.model_validate(settings_of(tmp_path, corpus, model={"path": "tiny"}))).tokens is None


def test_only_the_bytes_of_the_rows_are_read(weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Any] = []
    plain = Checkpoint.read

    def spy(self: Checkpoint, name: str, **given: Any) -> Tensor:
        read.append((name, given["rows"][1] - given["rows"][0]))
        return plain(self, name, **given)

    monkeypatch.setattr(Checkpoint, "read", spy)
    start_rows(weights, preset("tiny"), describe_model(str(weights)).tokenizer, init="keep", seed=0)
    assert read == [("language_model.model.embed_tokens.weight", 1)] * 15


def test_settings_choose_what_learns_in_one_place(tmp_path: Path) -> None:
    model = tiny_model()
    settings = settings_of(tmp_path, tmp_path, freeze=OURS, lora={"rank": 2})
    choose_trainable(model, TrainConfig.model_validate(settings), IDS)
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    assert ROWS in trainable
    assert all(".lora_" in name or name == ROWS for name in trainable)
