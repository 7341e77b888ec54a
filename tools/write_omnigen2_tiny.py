"""Writes the preset `omnigen2-tiny`: sizes, a tokenizer and an image processor, no weights.

The tokenizer is that of the preset `tiny` with Qwen2.5-VL's other control tokens; the autoencoder is the one of `tiny`,
where it lies. Run as `python -m tools.write_omnigen2_tiny`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sigma_data.storage.files import dump_json, write_atomic
from sigma_model.config import preset_directory
from sigma_model.omnigen2.config import TransformerConfig
from sigma_model.omnigen2.files import PIPELINE_CLASS, PIPELINE_FILE, PRESETS, preset_path

WIDTH = 96
CONTROL = (
    "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>", "<|img|>",
)  # fmt: skip
"""In the order of their ids, behind those that `tiny` has."""

TRANSFORMER = TransformerConfig(
    in_channels=8,
    hidden_size=WIDTH,
    num_layers=4,
    num_refiner_layers=1,
    num_attention_heads=4,
    num_kv_heads=2,
    multiple_of=16,
    axes_dim_rope=(8, 8, 8),
    axes_lens=(2048, 1024, 1024),
    text_feat_dim=64,
    sample_size=16,
)


def mllm(ids: dict[str, int]) -> dict[str, Any]:
    """The configuration of a Qwen2.5-VL with these control tokens."""
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_act": "silu", "hidden_size": 64, "intermediate_size": 128, "initializer_range": 0.02,
        "max_position_embeddings": 4096, "num_attention_heads": 4, "num_hidden_layers": 2, "num_key_value_heads": 2,
        "rms_norm_eps": 1e-06, "rope_theta": 1000000.0, "rope_scaling": {"type": "mrope", "mrope_section": [2, 3, 3]},
        "tie_word_embeddings": True, "use_sliding_window": False, "vocab_size": 1024, "dtype": "float32",
        "bos_token_id": ids["<|endoftext|>"], "eos_token_id": ids["<|im_end|>"],
        "image_token_id": ids["<|image_pad|>"], "video_token_id": ids["<|video_pad|>"],
        "vision_start_token_id": ids["<|vision_start|>"], "vision_end_token_id": ids["<|vision_end|>"],
        "vision_config": {
            "model_type": "qwen2_5_vl_vision", "depth": 2, "fullatt_block_indexes": [1], "hidden_act": "silu",
            "hidden_size": 48, "in_channels": 3, "initializer_range": 0.02, "intermediate_size": 96, "num_heads": 4,
            "out_hidden_size": 64, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2,
            "tokens_per_second": 4, "window_size": 56,
        },
    }  # fmt: skip


def write(root: Path) -> None:
    """Write all files."""
    from transformers import AutoTokenizer, Qwen2VLImageProcessorPil

    tokenizer = AutoTokenizer.from_pretrained(preset_directory("tiny"), local_files_only=True)
    tokenizer.add_special_tokens({"additional_special_tokens": list(CONTROL)})
    (root / "processor").mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(root / "processor")
    sizes = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}
    Qwen2VLImageProcessorPil(size=sizes).save_pretrained(root / "processor")
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    control = {token: vocabulary[token] for token in ("<|endoftext|>", *CONTROL)}
    for folder in ("transformer", "mllm", "scheduler"):
        (root / folder).mkdir(exist_ok=True)
    TRANSFORMER.write(root / "transformer")
    write_atomic(root / "mllm" / "config.json", dump_json(mllm(control)))
    write_atomic(root / "scheduler" / "scheduler_config.json", dump_json({"dynamic_time_shift": True}))
    write_atomic(root / PIPELINE_FILE, dump_json({"_class_name": PIPELINE_CLASS}))
    assert json.loads((root / "processor" / "preprocessor_config.json").read_text())["merge_size"] == 2


if __name__ == "__main__":
    write(preset_path(PRESETS[0]))
