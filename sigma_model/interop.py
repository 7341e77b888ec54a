"""What other programs read beside BAGEL's own files: `config.json` and the like, in the release's keys.

vLLM-Omni tells a BAGEL by `model_type`, takes the geometry of its latents from `config.json`, image sizes from
`preprocessor_config.json`, and with an index reads the files alone that the index names, the autoencoder's too. NeMo
Automodel makes its `BagelConfig` of the same `config.json`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from sigma_data.errors import ConfigError
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_data.sequence.tokenizer_reader import open_tokenizer
from sigma_data.storage.files import dump_json, write_atomic
from sigma_model.checkpoint_io import released_name
from sigma_model.config import ModelConfig
from sigma_model.model import SigmaModel
from sigma_model.model_files import LLM_FILE, VAE_FILE, VIT_FILE, stored_tensors
from sigma_model.sharded_files import shards_of, write_shards

CONFIG_FILE, GENERATION_FILE, PROCESSOR_FILE = "config.json", "generation_config.json", "preprocessor_config.json"


def write_configs(directory: Path, config: ModelConfig, tokenizer: Tokenizer, *, dtype: torch.dtype) -> None:
    """Write `config.json`, `generation_config.json` and, with a vision encoder, `preprocessor_config.json`.

    The released layout's own JSON files must lie there already: `config.json` repeats them. Raises OSError.
    """
    number = str(dtype).removeprefix("torch.")
    llm = json.loads((directory / LLM_FILE).read_text("utf-8"))
    content: dict[str, Any] = {
        "architectures": ["BagelForConditionalGeneration"],
        "model_type": "bagel",
        "torch_dtype": number,
        "visual_gen": True,
        "visual_und": config.vision is not None,
        "llm_config": {"model_type": "qwen2", "pad_token_id": _padding(directory, tokenizer), **llm},
        "vae_config": {"z_channels": config.vae.z_channels, "downsample": config.latent.downsample},
        "latent_patch_size": config.latent.patch_size,
        "max_latent_size": config.latent.grid,
        "connector_act": "gelu_pytorch_tanh",
        "interpolate_pos": False,
        "timestep_shift": 1.0,
        "bos_token_id": tokenizer.bos,
        "eos_token_id": tokenizer.eos,
    }
    if config.vision is not None:
        vit = json.loads((directory / VIT_FILE).read_text("utf-8"))
        content["vit_config"] = {"model_type": "siglip_vision_model", **vit}
        content |= {"vit_max_num_patch_per_side": config.vision.grid, "vit_patch_size": config.vision.patch_size}
        content |= {"vit_select_layer": -2, "vit_rope": False}
        side = config.vision.grid * config.vision.patch_size
        images = {
            "image_processor_type": "SiglipImageProcessor",
            "do_resize": True,
            "size": {"height": side, "width": side},
            "resample": 3,
            "do_rescale": True,
            "rescale_factor": 1 / 255,
            "do_normalize": True,
            "image_mean": [0.5, 0.5, 0.5],
            "image_std": [0.5, 0.5, 0.5],
        }
        write_atomic(directory / PROCESSOR_FILE, dump_json(images))
    write_atomic(directory / CONFIG_FILE, dump_json(content))
    generation = {"bos_token_id": tokenizer.bos, "eos_token_id": tokenizer.eos, "do_sample": False}
    write_atomic(directory / GENERATION_FILE, dump_json(generation))


def _padding(directory: Path, tokenizer: Tokenizer) -> int:
    """The id of `<|endoftext|>`, which Qwen2.5 pads with; of `<|im_end|>` where the vocabulary has none.

    NeMo Automodel takes 151643 where a configuration says nothing, which a smaller vocabulary does not have.
    """
    found = open_tokenizer(directory).get_vocab().get("<|endoftext|>")
    return tokenizer.eos if found is None else int(found)


def export_sharded(model: SigmaModel, directory: Path, *, dtype: torch.dtype | None, shard_bytes: int) -> bool:
    """Write the weights as `model-0000N-of-0000M.safetensors` with `model.safetensors.index.json`, and our JSON files.

    `directory` must hold the autoencoder's file already: the index names its tensors, too, since vLLM-Omni reads what
    the index names and nothing else. Returns False, with nothing written, where one file is enough. Memory: a buffer
    more than the model. Raises ConfigError where the files cannot be written.
    """
    tensors = {released_name(ours): tensor for ours, tensor in model.state_dict().items()}
    shards = shards_of(tensors, dtype, shard_bytes)
    if len(shards) == 1:
        return False
    try:
        write_shards(directory, tensors, shards, stem="model", dtype=dtype, beside=stored_tensors(directory / VAE_FILE))
        model.config.write(directory)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{directory}: cannot be written ({reason}): free space or choose another place") from None
    return True
