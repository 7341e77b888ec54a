"""The tiny preset with fewer layers: where a test is not about the model, half the tensors show the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

_LAYERS = {"llm_config.json": 2, "vit_config.json": 2}
"""The vision encoder's file counts one more than is used, as the release does."""


def copy_preset(folder: Path) -> Path:
    """Configuration, tokenizer and VAE of the preset, for two layers of the language model and one of the encoder."""
    from sigma_model.config import preset_directory

    shutil.copytree(preset_directory("tiny"), folder)
    for name, layers in _LAYERS.items():
        values = json.loads((folder / name).read_text())
        (folder / name).write_text(json.dumps({**values, "num_hidden_layers": layers}))
    return folder


def save_random(folder: Path, *, seed: int = 0) -> Path:
    """The same with random weights."""
    import torch

    from sigma_model.checkpoint_io import export_model, init_model
    from sigma_model.config import ModelConfig

    copy_preset(folder)
    model = init_model(ModelConfig.from_directory(folder), seed=seed, dtype=torch.float32, device="cpu")
    export_model(model, folder)
    return folder
