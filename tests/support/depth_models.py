"""A depth model with random weights, made offline: its depth means nothing, but has a shape and a range."""

from __future__ import annotations

from pathlib import Path


def write_depth_model(folder: Path, *, seed: int = 0) -> Path:
    """The folder of a tiny DPT with its image processor."""
    import torch
    from transformers import DPTConfig, DPTForDepthEstimation, DPTImageProcessor

    torch.manual_seed(seed)
    config = DPTConfig(
        hidden_size=32, num_hidden_layers=4, num_attention_heads=4, intermediate_size=64, image_size=64, patch_size=16,
        backbone_out_indices=[0, 1, 2, 3], neck_hidden_sizes=[16, 32, 32, 32], fusion_hidden_size=16,
        is_hybrid=False, use_auxiliary_head=False,
    )  # fmt: skip
    DPTForDepthEstimation(config).save_pretrained(folder)
    DPTImageProcessor(size={"height": 64, "width": 64}, ensure_multiple_of=16).save_pretrained(folder)
    return folder
