"""The tiny preset with fewer layers and a narrow VAE: where a test is not about the model, that shows the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

_LAYERS = {"llm_config.json": 2, "vit_config.json": 2}
"""The vision encoder's file counts one more than is used, as the release does."""
_VAE_WIDTH = 6
"""Channels, of 24: encoding images was two fifths of a training step."""


def copy_preset(folder: Path) -> Path:
    """Configuration and tokenizer of the preset, for two layers of the language model and one of the encoder.

    Its VAE makes latents of the preset's size and is random.
    """
    import torch

    from sigma_model.config import VaeConfig, preset_directory
    from sigma_model.vae import Vae

    shutil.copytree(preset_directory("tiny"), folder)
    values = json.loads((folder / "sigma.json").read_text())
    values["vae"]["ch"] = _VAE_WIDTH
    (folder / "sigma.json").write_text(json.dumps(values))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        Vae(VaeConfig(**values["vae"])).save(folder / "ae.safetensors")
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
