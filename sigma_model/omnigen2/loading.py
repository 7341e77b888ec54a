"""An OmniGen2 directory as a whole: transformer, language model, autoencoder."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from sigma_data.errors import ConfigError
from sigma_model.dtypes import DType
from sigma_model.loading import choose_device
from sigma_model.omnigen2.checkpoint import check_transformer, empty_transformer, fill_transformer, init_transformer
from sigma_model.omnigen2.conditioning import Conditioner, init_mllm, load_image_processor, load_tokenizer
from sigma_model.omnigen2.config import CONFIG_FILE, TransformerConfig
from sigma_model.omnigen2.files import find_omnigen2, is_preset
from sigma_model.omnigen2.images import INFERENCE_RULE, SizeRule
from sigma_model.omnigen2.lora import load_adapter, merge_adapter
from sigma_model.omnigen2.transformer import Omnigen2Transformer
from sigma_model.omnigen2.vae_files import load_vae
from sigma_model.vae import Vae

_LARGE = 2_000_000_000
"""Parameters above which a CPU, too, loads bfloat16."""


@dataclass(frozen=True)
class LoadedOmnigen2:
    """All that one needs to run an OmniGen2."""

    name: str
    transformer: Omnigen2Transformer
    conditioner: Conditioner
    vae: Vae
    dynamic_time_shift: bool = True
    trained: bool = True

    @property
    def device(self) -> torch.device:
        """Where the transformer lies."""
        return self.transformer.device

    @property
    def numbers(self) -> str:
        """What it computes in."""
        return str(self.transformer.dtype).removeprefix("torch.")

    @property
    def rule(self) -> SizeRule:
        """Sizes of references, and of an image by default: the released ones, or smaller as the model states.

        `max_side` is at most what the configuration states; another size is still made where it is asked for, as far as
        the tables of positions reach.
        """
        config, downsample = self.transformer.config, self.vae.config.downsample
        stride = config.patch_size * downsample
        side = min(INFERENCE_RULE.max_side, min(config.axes_lens[1:]) * stride)
        made = side if config.sample_size is None else config.sample_size * downsample
        return SizeRule(min(INFERENCE_RULE.max_pixels, side**2), min(side, made), stride)


def load_omnigen2(
    where: str,
    *,
    base: str | None = None,
    dtype: DType = DType.AUTO,
    device: str = "auto",
    adapter: str | None = None,
    seed: int = 0,
) -> LoadedOmnigen2:
    """Load a directory as released, or SGT-Gen2's with what it lacks from `base`. An `adapter` (LoRA) is merged.

    A preset is random, drawn from `seed`, to be trained. Everything that can be known from headers is checked before
    weights are read. Raises ConfigError.
    """
    directory = Path(where)
    trained = not is_preset(directory)
    files = find_omnigen2(directory, base=None if base is None else Path(base))
    mllm, processor, vae_directory = (files.need(part) for part in ("mllm", "processor", "vae"))
    config = TransformerConfig.from_file(files.transformer / CONFIG_FILE)
    model = empty_transformer(config)
    if trained:
        check_transformer(files.transformer, model)
    place = choose_device(device)
    numbers = choose_omnigen2_dtype(dtype, files.transformer / CONFIG_FILE, place)
    vae = load_vae(vae_directory, device=place)
    if vae.config.z_channels != config.in_channels:
        raise ConfigError(
            f"{vae_directory}: makes {vae.config.z_channels} channels, and the transformer takes {config.in_channels}: "
            "use the autoencoder that belongs to it"
        )
    if trained:
        conditioner = Conditioner.load(mllm, processor, dtype=numbers, device=place)
    else:
        language = init_mllm(mllm, seed=seed, dtype=numbers, device=place)
        conditioner = Conditioner(language, load_tokenizer(processor), load_image_processor(processor))
    if conditioner.width != config.text_feat_dim:
        raise ConfigError(
            f"{mllm}: its states are {conditioner.width} wide, and the transformer takes {config.text_feat_dim}: use "
            "the language model that belongs to it"
        )
    if trained:
        fill_transformer(model, files.transformer, dtype=numbers, device=place)
    else:
        model = init_transformer(config, seed=seed, dtype=numbers, device=place)
    if adapter is not None:
        load_adapter(model, Path(adapter))
        merge_adapter(model)
    return LoadedOmnigen2(
        name=directory.resolve().name,
        transformer=model.eval().requires_grad_(False),
        conditioner=conditioner,
        vae=vae,
        dynamic_time_shift=files.dynamic_time_shift,
        trained=trained,
    )


def choose_omnigen2_dtype(dtype: DType, config: Path, device: str) -> torch.dtype:
    """What a transformer of this `config.json` computes in on this device; `auto` is decided here."""
    if dtype is not DType.AUTO:
        return dtype.torch
    model = empty_transformer(TransformerConfig.from_file(config))
    large = sum(parameter.numel() for parameter in model.parameters()) > _LARGE
    return torch.bfloat16 if device != "cpu" or large else torch.float32
