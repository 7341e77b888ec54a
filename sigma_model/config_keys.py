"""What a release's two JSON files may say: each key is honoured, refused with its reason, or known to be harmless.

They come from transformers (`Qwen2Config`, `SiglipVisionConfig`) and from BAGEL's subclasses of them, so a key that is
left out has the value that it has there. A key that nobody here has heard of may change every number: it is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sigma_data.errors import ConfigError

_Fits = Callable[[Any, Mapping[str, Any]], bool]

LANGUAGE_SIZES = frozenset({
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "rms_norm_eps", "rope_theta", "max_position_embeddings", "tie_word_embeddings",
})  # fmt: skip
"""Keys of `llm_config.json` that a model is built from."""

VISION_SIZES = frozenset({
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "patch_size", "image_size",
    "layer_norm_eps",
})  # fmt: skip
"""Keys of `vit_config.json` that a model is built from."""

HARMLESS = frozenset({
    # what a file says about itself
    "_name_or_path", "_commit_hash", "_from_model_config", "architectures", "auto_map", "custom_pipelines", "name",
    "tokenizer_class", "transformers_version", "finetuning_task", "task_specific_params", "problem_type", "prefix",
    # how transformers stores, runs and returns; types and kernels are options of our commands
    "dtype", "torch_dtype", "torchscript", "use_bfloat16", "tf_legacy_loss", "use_cache", "return_dict",
    "use_return_dict", "output_attentions", "output_hidden_states", "chunk_size_feed_forward", "_attn_implementation",
    "_attn_implementation_internal", "_attn_implementation_autoset", "attn_implementation", "_output_attentions",
    "_experts_implementation", "_experts_implementation_internal", "use_flash_attention_2",
    # heads for classification, and token ids: ours are the tokenizer's
    "id2label", "label2id", "num_labels", "bos_token_id", "eos_token_id", "pad_token_id", "sep_token_id",
    "decoder_start_token_id", "forced_bos_token_id", "forced_eos_token_id",
    # how transformers' own `generate` samples, which configurations of version 4 repeat
    "max_length", "min_length", "do_sample", "early_stopping", "num_beams", "num_beam_groups", "diversity_penalty",
    "temperature", "top_k", "top_p", "typical_p", "repetition_penalty", "length_penalty", "no_repeat_ngram_size",
    "encoder_no_repeat_ngram_size", "bad_words_ids", "num_return_sequences", "output_scores",
    "return_dict_in_generate", "remove_invalid_values", "exponential_decay_length_penalty", "suppress_tokens",
    "begin_suppress_tokens", "tie_encoder_decoder", "cross_attention_hidden_size",
    # what random weights are drawn with: ours have a rule of their own
    "initializer_range", "initializer_factor",
})  # fmt: skip
"""Keys of either file that change no number here."""

LANGUAGE_HARMLESS = HARMLESS | {"freeze_und", "sliding_window", "max_window_layers"}
"""`freeze_und` is a run's own setting; the window is judged where `use_sliding_window` is."""

VISION_HARMLESS = HARMLESS | {"vision_use_head"}
"""The release has no head, and the names of the weights tell."""


def _one_of(*allowed: Any) -> _Fits:
    return lambda value, _config: any(value == one for one in allowed)


def _full_attention(value: Any, config: Mapping[str, Any]) -> bool:
    return value is None or (isinstance(value, list) and all(kind == "full_attention" for kind in value))


def _no_window(value: Any, config: Mapping[str, Any]) -> bool:
    """Whether no layer looks through a window: transformers gives one to layers from `max_window_layers` on."""
    if value in (False, None):
        return True
    window, longest = config.get("sliding_window", 4096), config.get("max_position_embeddings", 32768)
    first, layers = config.get("max_window_layers", 28), config.get("num_hidden_layers")
    if window is None:
        return True
    return all(isinstance(one, int) for one in (window, longest, first, layers)) and (
        window >= longest or first >= layers
    )


def _whole_heads(value: Any, config: Mapping[str, Any]) -> bool:
    width, heads = config.get("hidden_size"), config.get("num_attention_heads")
    return value is None or (isinstance(width, int) and isinstance(heads, int) and value * heads == width)


_TANH_GELU = ("gelu_pytorch_tanh", "gelu_new", "gelu_fast", "gelu_accurate", "gelu_python_tanh")

_COMMON: dict[str, tuple[_Fits, str]] = {
    "attention_dropout": (_one_of(0, None), "nothing is dropped inside attention here, 0.0 is the only value"),
    "is_encoder_decoder": (_one_of(False, None), "the model has no decoder of its own"),
    "is_decoder": (_one_of(False, True, None), "must be true or false"),
    "add_cross_attention": (_one_of(False, None), "the model has no cross-attention"),
    "pruned_heads": (lambda value, _: not value, "no head may be pruned"),
    "quantization_config": (
        _one_of(None),
        "quantised weights are not read: start from those in bfloat16 and quantise while loading",
    ),
}
LANGUAGE_RULES: dict[str, tuple[_Fits, str]] = _COMMON | {
    "model_type": (_one_of("qwen2", "bagel", ""), "the language model must be a qwen2"),
    "hidden_act": (_one_of("silu", "swish"), "the MLPs compute with silu"),
    "qk_norm": (_one_of(True), "queries and keys are normalised in every layer"),
    "layer_module": (_one_of("Qwen2MoTDecoderLayer"), "a layer is a Mixture-of-Transformers, Qwen2MoTDecoderLayer"),
    "is_causal": (_one_of(True, None), "text is causal"),
    "use_sliding_window": (_no_window, "every token sees all before it, there is no sliding window"),
    "layer_types": (_full_attention, "every layer has full_attention"),
    "head_dim": (_whole_heads, "a head is hidden_size / num_attention_heads wide"),
    "attention_bias": (_one_of(True), "queries, keys and values have biases"),
    "qkv_bias": (_one_of(True), "queries, keys and values have biases"),
    "mlp_bias": (_one_of(False, None), "the MLPs have no biases"),
    "hidden_dropout": (_one_of(0, None), "nothing is dropped here"),
    "partial_rotary_factor": (_one_of(1, None), "positions turn the whole head"),
    "no_rope_layers": (lambda value, _: not value, "every layer has rotary positions"),
}
"""Keys of `llm_config.json` with one right value: (whether a value is it, in this file; what it must be and why)."""

VISION_RULES: dict[str, tuple[_Fits, str]] = _COMMON | {
    "model_type": (
        _one_of("siglip_vision_model", "siglip", "siglip_navit", ""),
        "the vision encoder must be a siglip_vision_model",
    ),
    "hidden_act": (_one_of(*_TANH_GELU), "the MLPs compute with gelu_pytorch_tanh"),
    "num_channels": (_one_of(3), "images have 3 channels"),
    "rope": (_one_of(False, None), "positions are a learned table, rotary ones are off"),
    "head_dim": (_whole_heads, "a head is hidden_size / num_attention_heads wide"),
    "vit_select_layer": (_one_of(-2), "the last layer that the file counts is not used, which is -2"),
}
"""The same of `vit_config.json`."""

_ROPE_KEYS = ("rope_theta", "rope_type", "type", "partial_rotary_factor")
_ROPE_NAMES = ("rope_parameters", "rope_scaling")
_DEFAULT_THETA = 10_000.0
"""What transformers and BAGEL take where a file does not say."""


def language_values(config: Mapping[str, Any], where: object) -> dict[str, Any]:
    """The sizes in `llm_config.json`, under the names of LanguageConfig. `where` names the file in errors.

    Raises ConfigError naming the first key that is unknown, or has a value that the model does not compute with.
    """
    flat = {name: value for name, value in config.items() if name not in _ROPE_NAMES}
    _refuse(flat, where, LANGUAGE_SIZES, LANGUAGE_RULES, LANGUAGE_HARMLESS)
    values = {name: value for name, value in flat.items() if name in LANGUAGE_SIZES}
    if values.get("num_key_value_heads", 0) is None:
        values["num_key_value_heads"] = values.get("num_attention_heads")
    if values.get("tie_word_embeddings", False) is None:
        values["tie_word_embeddings"] = False
    return values | {"rope_theta": _theta(config, where)}


def vision_values(config: Mapping[str, Any], where: object) -> dict[str, Any]:
    """The sizes in `vit_config.json` as they stand there. Raises ConfigError as `language_values` does."""
    _refuse(config, where, VISION_SIZES, VISION_RULES, VISION_HARMLESS)
    return {name: value for name, value in config.items() if name in VISION_SIZES}


def _refuse(
    config: Mapping[str, Any],
    where: object,
    sizes: frozenset[str],
    rules: Mapping[str, tuple[_Fits, str]],
    harmless: frozenset[str],
) -> None:
    for name, value in config.items():
        if name in rules:
            fits, reason = rules[name]
            if not fits(value, config):
                raise ConfigError(f"{where}: {name} is {_short(value)}: {reason}")
        elif name in sizes and isinstance(value, bool) != (name == "tie_word_embeddings") and value is not None:
            kind = "true or false" if name == "tie_word_embeddings" else "a number"
            raise ConfigError(f"{where}: {name} is {_short(value)}: it must be {kind}")
        elif name in sizes and isinstance(value, list | dict):
            raise ConfigError(f"{where}: {name} is {_short(value)}: it must be a number")
        elif name not in sizes and name not in harmless:
            raise ConfigError(
                f"{where}: {name} ({_short(value)}) is no key that is known here, and may change what the model "
                "computes: remove it if it does not"
            )


def _theta(config: Mapping[str, Any], where: object) -> Any:
    """The base of the rotary positions, wherever transformers 4 or 5 writes it; nothing else about them may differ."""
    found: dict[str, Any] = {}
    if config.get("rope_theta") is not None:
        found["rope_theta"] = config["rope_theta"]
    for name in _ROPE_NAMES:
        stated = config.get(name)
        if not stated:
            continue
        if isinstance(stated, dict) and stated.keys() == {"full_attention"}:  # by kind of layer; ours are all of one
            stated = stated["full_attention"] or {}
        if not isinstance(stated, dict):
            raise ConfigError(f"{where}: {name} is {_short(stated)}: it must be a JSON object")
        for key, value in stated.items():
            if key not in _ROPE_KEYS:
                raise ConfigError(f"{where}: {name}.{key} is {_short(value)}: scaled rotary positions are not computed")
        kinds = {str(stated[key]) for key in ("rope_type", "type") if stated.get(key) is not None}
        if kinds - {"default"}:
            kind = sorted(kinds - {"default"})[0]
            raise ConfigError(f"{where}: {name} is of type {kind!r}: scaled rotary positions are not computed")
        if stated.get("partial_rotary_factor") not in (None, 1):
            raise ConfigError(f"{where}: {name}.partial_rotary_factor: positions turn the whole head")
        if stated.get("rope_theta") is not None:
            found[f"{name}.rope_theta"] = stated["rope_theta"]
    said = list(found.items())
    for name, value in said[1:]:
        if value != said[0][1]:
            raise ConfigError(f"{where}: {said[0][0]} is {said[0][1]} and {name} is {value}: leave one of them")
    return said[0][1] if said else _DEFAULT_THETA


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
