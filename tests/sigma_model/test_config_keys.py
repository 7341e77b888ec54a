"""Every key that transformers or BAGEL writes into the two JSON files is honoured, refused by name, or harmless."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PretrainedConfig, Qwen2Config, SiglipVisionConfig
from transformers.activations import ACT2CLS, ACT2FN

from sigma_data.errors import ConfigError
from sigma_model.config import ModelConfig, preset, preset_directory
from sigma_model.config_keys import (
    LANGUAGE_HARMLESS,
    LANGUAGE_RULES,
    LANGUAGE_SIZES,
    VISION_HARMLESS,
    VISION_RULES,
    VISION_SIZES,
    language_values,
)

ROPE = {"rope_parameters", "rope_scaling"}
RELEASED = {
    "architectures": ["Qwen2ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 151643, "eos_token_id": 151645,
    "initializer_range": 0.02, "max_window_layers": 28, "model_type": "qwen2", "sliding_window": 131072,
    "torch_dtype": "bfloat16", "transformers_version": "4.43.1", "use_cache": True, "use_sliding_window": False,
    "is_causal": True, "_attn_implementation": "flash_attention_2", "freeze_und": False,
}  # fmt: skip
"""What Qwen2.5's config.json says beside the sizes, and BAGEL's Qwen2Config adds."""


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return Path(shutil.copytree(preset_directory("tiny"), tmp_path / "tiny"))


def change(directory: Path, file: str, values: dict[str, Any], *, without: str | None = None) -> Path:
    path = directory / file
    content = {key: value for key, value in json.loads(path.read_text()).items() if key != without}
    path.write_text(json.dumps({**content, **values}))
    return directory


@pytest.mark.parametrize(
    ("config", "classified"),
    [
        (Qwen2Config, LANGUAGE_SIZES | LANGUAGE_RULES.keys() | LANGUAGE_HARMLESS | ROPE),
        (SiglipVisionConfig, VISION_SIZES | VISION_RULES.keys() | VISION_HARMLESS),
    ],
)
def test_every_key_that_the_installed_transformers_writes_is_classified(
    config: type[PretrainedConfig], classified: set[str]
) -> None:
    made = config()
    written = set(made.to_dict()) | set(json.loads(made.to_json_string(use_diff=False))) | set(vars(made))
    assert not written - classified - {"_post_init_done"}


@pytest.mark.parametrize(
    ("sizes", "rules", "harmless"),
    [(LANGUAGE_SIZES, LANGUAGE_RULES, LANGUAGE_HARMLESS), (VISION_SIZES, VISION_RULES, VISION_HARMLESS)],
)
def test_no_key_is_classified_twice(sizes: frozenset[str], rules: dict[str, Any], harmless: frozenset[str]) -> None:
    assert not sizes & harmless
    assert not sizes & rules.keys()
    assert not harmless & rules.keys()


def test_what_transformers_5_saves_is_read_with_its_numbers(tiny: Path) -> None:
    language, vision = preset("tiny").language, preset("tiny").vision
    assert vision is not None
    sizes = language.model_dump(exclude={"rope_theta"})
    Qwen2Config(**sizes, rope_theta=12345.0).save_pretrained(tiny / "llm")
    vit = vision.model_dump(exclude={"grid"}) | {"num_hidden_layers": vision.num_hidden_layers + 1, "image_size": 140}
    SiglipVisionConfig(**vit).save_pretrained(tiny / "vit")
    shutil.copy(tiny / "llm" / "config.json", tiny / "llm_config.json")
    shutil.copy(tiny / "vit" / "config.json", tiny / "vit_config.json")
    read = ModelConfig.from_directory(tiny)
    assert read.language == language.model_copy(update={"rope_theta": 12345.0}), "inside rope_parameters"
    assert read.vision == vision


def test_what_the_release_and_bagel_write_is_read(tiny: Path) -> None:
    change(tiny, "llm_config.json", RELEASED)
    change(tiny, "vit_config.json", {"model_type": "siglip_vision_model", "rope": False, "attention_dropout": 0.0})
    assert ModelConfig.from_directory(tiny) == preset("tiny")


REFUSED: list[tuple[str, dict[str, Any], str]] = [
    ("llm_config.json", {"hidden_act": "gelu"}, "hidden_act is 'gelu': the MLPs compute with silu"),
    ("llm_config.json", {"hidden_act": None}, "hidden_act is None"),
    ("llm_config.json", {"qk_norm": False}, "qk_norm is False"),
    ("llm_config.json", {"layer_module": "Qwen2DecoderLayer"}, "layer_module is 'Qwen2DecoderLayer'"),
    ("llm_config.json", {"layer_module": "Qwen2MoEDecoderLayer"}, "layer_module"),
    ("llm_config.json", {"head_dim": 64}, "head_dim is 64"),
    ("llm_config.json", {"attention_bias": False}, "attention_bias is False"),
    ("llm_config.json", {"attention_dropout": 0.1}, "attention_dropout is 0.1"),
    ("llm_config.json", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2}, "sliding window"),
    ("llm_config.json", {"layer_types": ["full_attention"] * 3 + ["sliding_attention"]}, "layer_types"),
    ("llm_config.json", {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.factor"),
    ("llm_config.json", {"rope_scaling": {"rope_type": "dynamic"}}, "rope_scaling is of type 'dynamic'"),
    ("llm_config.json", {"rope_scaling": {"type": "default", "mrope_section": [8, 4, 4]}}, "mrope_section"),
    ("llm_config.json", {"rope_scaling": "linear"}, "must be a JSON object"),
    ("llm_config.json", {"rope_parameters": {"rope_type": "llama3"}}, "type 'llama3'"),
    ("llm_config.json", {"rope_parameters": {"rope_theta": 1e4, "rope_type": "default"}}, "leave one of them"),
    ("llm_config.json", {"rope_parameters": {"partial_rotary_factor": 0.5}}, "partial_rotary_factor"),
    ("llm_config.json", {"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ("llm_config.json", {"rope_theta": -1.0}, "rope_theta"),
    ("llm_config.json", {"rms_norm_eps": float("nan")}, "rms_norm_eps"),
    ("llm_config.json", {"rms_norm_eps": 0}, "rms_norm_eps"),
    ("llm_config.json", {"is_causal": False}, "is_causal is False"),
    ("llm_config.json", {"model_type": "llama"}, "must be a qwen2"),
    ("llm_config.json", {"quantization_config": {"quant_method": "gptq"}}, "quantization_config"),
    ("llm_config.json", {"pruned_heads": {"1": [0]}}, "pruned_heads"),
    ("llm_config.json", {"attention_multiplier": 0.5}, "attention_multiplier (0.5) is no key that is known here"),
    ("llm_config.json", {"hidden_activation": "gelu"}, "hidden_activation"),
    ("vit_config.json", {"rope": True}, "rope is True: positions are a learned table"),
    ("vit_config.json", {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
    ("vit_config.json", {"hidden_act": "quick_gelu"}, "hidden_act"),
    ("vit_config.json", {"num_channels": 1}, "num_channels is 1"),
    ("vit_config.json", {"attention_dropout": 0.5}, "attention_dropout"),
    ("vit_config.json", {"model_type": "clip_vision_model"}, "siglip_vision_model"),
    ("vit_config.json", {"vit_select_layer": -1}, "vit_select_layer"),
    ("vit_config.json", {"qkv_bias": False}, "qkv_bias"),
    ("vit_config.json", {"layer_norm_eps": 0.0}, "layer_norm_eps"),
]


@pytest.mark.parametrize(("file", "values", "words"), REFUSED)
def test_a_key_that_would_change_the_numbers_is_refused_by_name_and_file(
    tiny: Path, file: str, values: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        ModelConfig.from_directory(change(tiny, file, values))
    message = str(caught.value)
    assert words in message
    assert str(tiny) in message
    assert "\n" not in message


SAME: list[tuple[str, dict[str, Any]]] = [
    ("llm_config.json", {"hidden_act": "swish"}),
    ("llm_config.json", {"rope_parameters": {"rope_theta": 1e6, "rope_type": "default"}}),
    ("llm_config.json", {"rope_parameters": {"full_attention": {"rope_theta": 1e6, "rope_type": "default"}}}),
    ("llm_config.json", {"rope_scaling": None}),
    ("llm_config.json", {"rope_scaling": {"type": "default"}}),
    ("llm_config.json", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 28}),
    ("llm_config.json", {"use_sliding_window": True, "sliding_window": None, "max_window_layers": 0}),
    ("llm_config.json", {"use_sliding_window": True, "sliding_window": 131072, "max_window_layers": 0}),
    ("llm_config.json", {"layer_types": ["full_attention"] * 4}),
    ("llm_config.json", {"head_dim": 32}),
    ("llm_config.json", {"temperature": 0.7, "num_beams": 4, "dtype": "float16"}),
    ("vit_config.json", {"hidden_act": "gelu_new"}),
    ("vit_config.json", {"vision_use_head": False}),
]


@pytest.mark.parametrize(("file", "values"), SAME)
def test_a_key_that_changes_nothing_is_no_obstacle(tiny: Path, file: str, values: dict[str, Any]) -> None:
    assert ModelConfig.from_directory(change(tiny, file, values)) == preset("tiny")


def test_a_base_of_positions_that_is_not_stated_is_the_one_transformers_takes(tiny: Path) -> None:
    change(tiny, "llm_config.json", {}, without="rope_theta")
    sizes = preset("tiny").language.model_dump(exclude={"rope_theta"})
    assert ModelConfig.from_directory(tiny).language.rope_theta == Qwen2Config(**sizes).rope_parameters["rope_theta"]


def test_key_value_heads_that_are_null_are_as_many_as_the_heads() -> None:
    values = language_values({"num_attention_heads": 8, "num_key_value_heads": None}, "here")
    assert values["num_key_value_heads"] == 8


@pytest.mark.parametrize("name", sorted(ACT2CLS))
def test_an_activation_is_taken_only_if_it_computes_what_the_model_computes(name: str, tiny: Path) -> None:
    x = torch.linspace(-8, 8, 4001)
    with torch.no_grad():
        theirs = ACT2FN[name](x.clone())
    for file, ours in (
        ("llm_config.json", torch.nn.functional.silu(x)),
        ("vit_config.json", torch.nn.functional.gelu(x, approximate="tanh")),
    ):
        same = bool(torch.allclose(theirs, ours, rtol=0, atol=1e-5))
        change(tiny, file, {"hidden_act": name})
        if same:
            ModelConfig.from_directory(tiny)
        else:
            with pytest.raises(ConfigError, match="hidden_act"):
                ModelConfig.from_directory(tiny)
        shutil.copy(preset_directory("tiny") / file, tiny / file)


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("rms_norm_eps", True, "rms_norm_eps is True: it must be a number"),
        ("rope_theta", True, "rope_theta is True: it must be a number"),
        ("num_hidden_layers", True, "num_hidden_layers is True: it must be a number"),
        ("hidden_size", [64], r"hidden_size is \[64\]: it must be a number"),
        ("tie_word_embeddings", "false", "tie_word_embeddings is 'false': it must be true or false"),
    ],
)
def test_a_size_of_another_type_is_not_taken_for_a_number(tiny: Path, name: str, value: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        ModelConfig.from_directory(change(tiny, "llm_config.json", {name: value}))
