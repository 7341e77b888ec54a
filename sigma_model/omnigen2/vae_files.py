"""The autoencoder in diffusers' files, as OmniGen2 ships it: `vae/config.json` and its weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from sigma_data.errors import ConfigError
from sigma_data.storage.files import dump_json, write_atomic
from sigma_model.checkpoint_io import check_stored, read_stored, write_tensors
from sigma_model.config import VaeConfig
from sigma_model.model_files import VAE_FILE, header_shapes, read_json, stored_tensors
from sigma_model.omnigen2.checkpoint import check_fit
from sigma_model.omnigen2.config import CONFIG_FILE
from sigma_model.omnigen2.files import WEIGHTS, transformer_weights
from sigma_model.vae import Vae, norm_groups

_FIXED = {
    "_class_name": "AutoencoderKL", "act_fn": "silu", "in_channels": 3, "out_channels": 3, "use_quant_conv": False,
    "use_post_quant_conv": False, "mid_block_add_attention": True, "latents_mean": None, "latents_std": None,
}  # fmt: skip
"""Keys of `config.json` that have one value here."""


def load_vae(directory: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Vae:
    """Read an autoencoder's directory strictly: diffusers' files, or FLUX's `ae.safetensors`, which BAGEL ships too.

    Raises ConfigError for a configuration or weights that do not fit.
    """
    config = vae_config(directory)
    if not (directory / CONFIG_FILE).is_file():
        return Vae.load(directory / VAE_FILE, config, dtype, device)
    with torch.device("meta"):
        vae = Vae(config)
    files = transformer_weights(directory)
    if not files:
        raise ConfigError(f"{directory}: has no {WEIGHTS}.safetensors: download the autoencoder")
    stored = {name: one for path in files for name, one in stored_tensors(path, complete=True).items()}
    state = vae.autoencoder.state_dict()
    shapes = {name: tuple(tensor.shape) for name, tensor in state.items()}
    check_fit(shapes, {name: one.shape for name, one in stored.items()}, where=str(directory))
    check_stored(stored)
    tensors = {name: read_stored(one, dtype=dtype, device=device) for name, one in stored.items()}
    vae.autoencoder.load_state_dict(tensors, assign=True)
    return vae.eval().requires_grad_(False)


def vae_config(directory: Path) -> VaeConfig:
    """Sizes of the autoencoder in a directory, as `load_vae` reads them. Raises ConfigError."""
    single = directory / VAE_FILE
    if not single.is_file() or (directory / CONFIG_FILE).is_file():
        return _config(directory / CONFIG_FILE)
    sizes = VaeConfig.from_shapes(header_shapes(single))
    ours = directory / "sigma.json"
    said = read_json(ours).get("vae", {}) if ours.is_file() else {}
    return VaeConfig(**{**sizes.model_dump(), **said})


def export_vae(vae: Vae, directory: Path) -> None:
    """Write an autoencoder as diffusers has it. Raises OSError."""
    config = vae.config
    levels = len(config.mult)
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / f"{WEIGHTS}.safetensors", vae.autoencoder.state_dict())
    values = {name: value for name, value in _FIXED.items() if value is not None} | {
        "block_out_channels": [config.ch * multiple for multiple in config.mult],
        "down_block_types": ["DownEncoderBlock2D"] * levels,
        "up_block_types": ["UpDecoderBlock2D"] * levels,
        "layers_per_block": config.num_res_blocks,
        "latent_channels": config.z_channels,
        "norm_num_groups": norm_groups(config),
        "scaling_factor": config.scale_factor,
        "shift_factor": config.shift_factor,
    }
    write_atomic(directory / CONFIG_FILE, dump_json(values))


def _config(path: Path) -> VaeConfig:
    values = read_json(path)
    for name, value in _FIXED.items():
        if name in values and values[name] != value:
            raise ConfigError(f"{path}: {name} is {values[name]!r}: OmniGen2's autoencoder has {value!r}")
    try:
        widths: list[Any] = list(values["block_out_channels"])
        if not widths or any(width % widths[0] for width in widths):
            raise ConfigError(f"{path}: block_out_channels {widths} are not multiples of the first")
        return VaeConfig(
            ch=widths[0],
            mult=tuple(width // widths[0] for width in widths),
            num_res_blocks=values["layers_per_block"],
            z_channels=values["latent_channels"],
            scale_factor=values["scaling_factor"],
            shift_factor=values["shift_factor"],
        )
    except (KeyError, TypeError, ValidationError) as error:
        raise ConfigError(f"{path}: does not describe an autoencoder ({error!r})") from None
