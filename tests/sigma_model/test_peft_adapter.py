"""Adapters in peft's files: what we write and what peft writes, merged by us as peft merges it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from support import omnigen2
from support.sequences import generator, tiny_model

from pipelines.train.config import LoraSettings
from pipelines.train.lora import add_lora, merge_lora, save_adapter
from pipelines.train.token_rows import add_token_rows, merge_token_rows
from sigma_data.errors import ConfigError
from sigma_model.api import load
from sigma_model.model import SigmaModel
from sigma_model.omnigen2 import lora as omnigen2_lora
from sigma_model.omnigen2.lora import check_adapter
from sigma_model.peft_adapter import ADAPTER_CONFIG, ADAPTER_FILE, merge_peft

TARGETS = LoraSettings(rank=3, alpha=6.0, targets=(r"gen\.(q|mlp\.down)$", "^llm2vae$"), train=("norm_gen",))


def drawn(model: torch.nn.Module) -> None:
    """Numbers for what is trainable: a new adapter does nothing."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn(parameter.shape, generator=generator("peft", name)) * 0.05)


def ours(directory: Path, *, released: bool = False, rows: bool = False) -> SigmaModel:
    """An adapter as `sigma export --adapter` writes it; returns its base with it merged."""
    model = tiny_model()
    if rows:
        for parameter in model.parameters():
            parameter.requires_grad_(False)
        add_lora_only = LoraSettings(rank=2, targets=(r"gen\.q$",))
        for parameter in model.backbone.layers.parameters():
            parameter.requires_grad_(True)
        add_lora(model, add_lora_only, seed=1)
        add_token_rows(model, [3, 5, 8])
    else:
        add_lora(model, TARGETS, seed=1)
    drawn(model)
    save_adapter(model, directory, base="tiny", released=released)
    merge_lora(model)
    merge_token_rows(model)
    return model


def equal(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    first, second = one.state_dict(), other.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("released", [False, True])
@pytest.mark.parametrize("rows", [False, True])
def test_what_we_write_is_read_and_merged_to_the_bit(tmp_path: Path, released: bool, rows: bool) -> None:
    wanted = ours(tmp_path, released=released, rows=rows)
    found = tiny_model()
    assert not equal(found, wanted)
    merge_peft(found, tmp_path)
    assert equal(found, wanted)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [{}, {"use_rslora": True}, {"rank_pattern": {"layers.0.gen.q": 5}, "alpha_pattern": {"layers.0.gen.q": 1}}],
)
def test_what_peft_writes_is_merged_as_peft_merges_it(tmp_path: Path, more: dict[str, Any]) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=4, lora_alpha=9, target_modules=["gen.q", "und.v", "gen.mlp.up"], modules_to_save=["norm_gen"], **more
    )
    adapted = get_peft_model(tiny_model(), config)
    drawn(adapted)
    adapted.save_pretrained(str(tmp_path))
    found = tiny_model()
    merge_peft(found, tmp_path)
    wanted = adapted.merge_and_unload().state_dict()
    changed = 0
    for name, tensor in found.state_dict().items():
        torch.testing.assert_close(tensor, wanted[name], rtol=0, atol=1e-6)
        changed += not torch.equal(tensor, tiny_model().state_dict()[name])
    assert changed == 3 * 2 + 1, "each layer of each kind, and the norm"


def as_diffusers_has_it() -> Any:
    """Peft asks a model's `config` as the dictionary that diffusers keeps there."""
    made: Any = omnigen2.model()
    made.config = {}
    return made


@pytest.mark.slow
def test_an_omnigen2_adapter_goes_to_peft_and_comes_from_it(tmp_path: Path) -> None:
    from peft import LoraConfig, PeftModel, get_peft_model

    model = omnigen2.model()
    omnigen2_lora.add_adapter(model, rank=3, alpha=5.0, seed=2)
    drawn(model)
    omnigen2_lora.save_adapter(model, tmp_path / "ours", base="models/OmniGen2")
    omnigen2_lora.merge_adapter(model)
    wanted = model.state_dict()
    found = PeftModel.from_pretrained(as_diffusers_has_it(), str(tmp_path / "ours")).merge_and_unload().state_dict()
    for name, tensor in wanted.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6)

    adapted = get_peft_model(as_diffusers_has_it(), LoraConfig(r=2, lora_alpha=7, target_modules=["to_q", "to_out.0"]))
    drawn(adapted)
    adapted.save_pretrained(str(tmp_path / "theirs"))
    read = omnigen2.model()
    omnigen2_lora.load_adapter(read, tmp_path / "theirs")
    omnigen2_lora.merge_adapter(read)
    theirs = adapted.merge_and_unload().state_dict()
    for name, tensor in read.state_dict().items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-6)


def change(directory: Path, **values: Any) -> None:
    path = directory / ADAPTER_CONFIG
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


Q = "base_model.model.backbone.layers.0.gen.q"


@pytest.mark.parametrize(
    ("settings", "tensors", "said"),
    [
        ({"peft_type": "LOHA"}, {}, "peft_type is 'LOHA': only plain LoRA is read"),
        ({"use_dora": True}, {}, "use_dora is True"),
        ({"bias": "all"}, {}, "bias is 'all'"),
        ({"r": "many"}, {}, "is not the configuration of an adapter by peft"),
        ({}, {"base_model.model.no.such.lora_A.weight": torch.zeros(1, 1)}, "is no adapter of this model: 1 tensor"),
        ({}, {f"{Q}.lora_magnitude_vector.weight": torch.zeros(3)}, "is no adapter of this model"),
        ({}, {f"{Q}.lora_A.weight": torch.zeros(3, 7)}, r"the adapter of backbone.layers.0.gen.q.weight is \[3, 7\]"),
        ({}, {f"{Q}.lora_B.weight": None}, "holds one side alone"),
        ({}, {"base_model.model.backbone.norm_gen.weight": torch.zeros(3)}, r"is \[3\], and backbone.norm_gen"),
    ],
)
def test_what_would_compute_something_else_is_refused_and_changes_nothing(
    tmp_path: Path, settings: dict[str, Any], tensors: dict[str, torch.Tensor | None], said: str
) -> None:
    ours(tmp_path)
    change(tmp_path, **settings)
    stored = {**load_file(tmp_path / ADAPTER_FILE), **tensors}
    save_file({name: one for name, one in stored.items() if one is not None}, tmp_path / ADAPTER_FILE)
    found = tiny_model()
    with pytest.raises(ConfigError, match=said) as error:
        merge_peft(found, tmp_path)
    assert "\n" not in str(error.value) and equal(found, tiny_model())


def test_pickled_adapters_and_missing_files_are_refused(tmp_path: Path) -> None:
    ours(tmp_path)
    (tmp_path / ADAPTER_FILE).rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ConfigError, match="is not there: save the adapter as safetensors"):
        merge_peft(tiny_model(), tmp_path)
    (tmp_path / ADAPTER_CONFIG).write_text("[")
    with pytest.raises(ConfigError, match="is not the configuration of an adapter"):
        merge_peft(tiny_model(), tmp_path)


@pytest.mark.parametrize(
    ("name", "said"),
    [("none", "none: no such folder"), ("file", "file: is a file and no folder"), ("folder", "folder: is no adapter")],
)
def test_a_place_that_is_no_adapter_is_named_once_before_weights_are_read(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    (tmp_path / "folder").mkdir()
    monkeypatch.setattr("sigma_model.loading.describe_model", None)
    with pytest.raises(ConfigError) as error:
        load("tiny-base", adapter=tmp_path / name)
    assert str(error.value).startswith(f"{tmp_path}/{said}: name the folder that holds adapter_config.json")
    assert str(error.value).count(str(tmp_path)) == 1
    if name == "file":  # of OmniGen2 a file of weights is an adapter
        return
    with pytest.raises(ConfigError, match=f"{said}: name the folder that holds pytorch_lora_weights.safetensors or"):
        check_adapter(tmp_path / name, omnigen2=True)
