"""What a model without trained weights starts from: nothing is learnt yet, and little has to be unlearnt.

It begins as the identity on latents, which is nearly the velocity where there is mostly noise; and a token
attends most to tokens that are like it, so to the same place in other images, which is how references are read.
"""

from __future__ import annotations

import hashlib
import math

import torch
from torch import Tensor

from sigma_model.config import LanguageConfig, ModelConfig
from sigma_model.embed import sincos_table
from sigma_model.state_dict_adapter import PROJECTION, released_name

EMBEDDING_STD = 0.02


def fresh_tensor(config: ModelConfig, name: str, shape: torch.Size, *, seed: int) -> Tensor:
    """What a parameter or buffer starts from, by our name; float32 on the CPU.

    Norms are one; biases and the attribute projection zero; embeddings normal with std 0.02; the weights of linear
    layers normal with std 1 / sqrt(inputs). But `latent_in` has orthogonal columns and `latent_out` undoes it, and
    in every layer queries start as the generation expert's keys do, those of the understanding expert included.

    Every tensor draws from its own generator, keyed by seed and name: the same numbers on every device, for any
    share of the tensors, and whatever other parts the model has. The global generators stay untouched.
    """
    owner, _, leaf = name.rpartition(".")
    width = config.language.hidden_size
    if name == "latent_positions":
        return sincos_table(config.latent.grid, width)
    if name == "patch_positions":
        assert config.vision is not None
        return sincos_table(config.vision.grid, width)
    if leaf == "bias" or name == PROJECTION:
        return torch.zeros(shape)
    if "norm" in owner.rpartition(".")[2]:
        return torch.ones(shape)
    if owner in ("backbone.embed", "vision.position_embedding"):
        return _normal(name, shape, seed) * EMBEDDING_STD
    if owner in ("latent_in", "latent_out"):
        return _identity(owner, shape, seed)
    if owner.startswith("backbone.layers.") and owner.endswith((".q", ".k")):
        return _like_keys(config.language, owner, shape, seed)
    return _linear(name, shape, seed)


def _normal(name: str, shape: torch.Size, seed: int) -> Tensor:
    digest = hashlib.sha256(f"{seed}/{released_name(name)}".encode()).digest()
    return torch.randn(shape, generator=torch.Generator().manual_seed(int.from_bytes(digest[:8], "little")))


def _linear(name: str, shape: torch.Size, seed: int) -> Tensor:
    return _normal(name, shape, seed) / math.sqrt(shape[1])


def _identity(owner: str, shape: torch.Size, seed: int) -> Tensor:
    """Latents of variance one become hidden states of variance one, and leave them again as they were.

    Between them lie the table of positions, of mean square 1/2, and the final norm, which divides by the root of
    3/2 then.
    """
    width, features = shape if owner == "latent_in" else reversed(shape)
    columns, _ = torch.linalg.qr(_normal("latent_in.weight", torch.Size((width, features)), seed))  # [D, min(D, F)]
    missing = features - columns.shape[1]
    scale = math.sqrt(width / features)
    columns = torch.nn.functional.pad(columns, (0, missing))
    tensor = columns * scale if owner == "latent_in" else columns.T * (math.sqrt(1.5) / scale)
    return tensor.contiguous()  # qr gives columns that lie together


def _like_keys(config: LanguageConfig, owner: str, shape: torch.Size, seed: int) -> Tensor:
    """Keys of the generation expert, [K * head, D], as often as there are queries a key."""
    layer = owner.rpartition(".")[0].rpartition(".")[0]  # backbone.layers.N
    heads, inputs = config.num_key_value_heads, shape[1]
    keys = _linear(f"{layer}.gen.k.weight", torch.Size((heads * config.head_dim, inputs)), seed)
    times = shape[0] // keys.shape[0]
    return keys.view(heads, config.head_dim, inputs).repeat_interleave(times, dim=0).reshape(shape)
