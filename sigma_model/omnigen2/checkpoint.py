"""The transformer's weights in and out, strictly: every name and shape is compared before any data is read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sigma_data.errors import ConfigError
from sigma_model.checkpoint_io import assign, check_stored, counted, read_stored
from sigma_model.model_files import StoredTensor, stored_tensors
from sigma_model.omnigen2.config import CONFIG_FILE, TransformerConfig
from sigma_model.omnigen2.files import WEIGHTS, transformer_weights
from sigma_model.omnigen2.transformer import Omnigen2Transformer
from sigma_model.sharded_files import shard_names, shards_of, write_shards

SHARD_BYTES = 10_000_000_000
"""Largest file that is written; more are several, with an index."""

INIT_STD = 0.02


def empty_transformer(config: TransformerConfig) -> Omnigen2Transformer:
    """A transformer on the meta device: names and shapes, no memory."""
    with torch.device("meta"):
        return Omnigen2Transformer(config)


def check_transformer(directory: Path, model: Omnigen2Transformer) -> dict[str, StoredTensor]:
    """The stored tensors of a directory, known to be just the model's but for its adapters.

    Reads headers alone. Raises ConfigError.
    """
    files = transformer_weights(directory)
    if not files:
        raise ConfigError(f"{directory}: has no {WEIGHTS}.safetensors and no index of shards: download the weights")
    found: dict[str, StoredTensor] = {}
    for path in files:
        for name, stored in stored_tensors(path, complete=True).items():
            if name in found:
                raise ConfigError(f"{path}: holds {name}, which {found[name].path.name} holds as well")
            found[name] = stored
    state = model.state_dict(keep_vars=True)
    wanted = {name: tuple(tensor.shape) for name, tensor in state.items() if ".lora_" not in name}
    check_fit(wanted, {name: stored.shape for name, stored in found.items()}, where=str(directory))
    check_stored(found)
    return found


def check_fit(wanted: Mapping[str, Sequence[int]], found: Mapping[str, Sequence[int]], *, where: str) -> None:
    """Raise ConfigError that counts and names what is missing, unexpected or of another shape."""
    misshaped = [
        f"{name} is {list(found[name])}, not {list(shape)}"
        for name, shape in wanted.items()
        if name in found and list(found[name]) != list(shape)
    ]
    kinds = (
        ("missing", [name for name in wanted if name not in found]),
        ("unexpected", sorted(found.keys() - wanted.keys())),
        ("of another shape", misshaped),
    )
    if faults := [counted(names, kind) for kind, names in kinds if names]:
        raise ConfigError(f"{where}: does not fit its {CONFIG_FILE}: {'; '.join(faults)} (download both again)")


def load_transformer(
    directory: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Omnigen2Transformer:
    """A transformer from its own directory, whatever float type it is stored in.

    Memory: one copy of the model and a buffer. Raises ConfigError before any data is read.
    """
    directory = Path(directory)
    model = empty_transformer(TransformerConfig.from_file(directory / CONFIG_FILE))
    fill_transformer(model, directory, dtype=dtype, device=device)
    return model


def fill_transformer(
    model: Omnigen2Transformer, directory: Path, *, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> None:
    """Read the weights into a model on the meta device; parameters keep `requires_grad`. Raises ConfigError."""
    stored = check_transformer(directory, model)
    for name in sorted(stored, key=lambda one: (stored[one].path, stored[one].start)):
        assign(model, name, read_stored(stored[name], dtype=dtype, device=device))


def export_transformer(
    model: Omnigen2Transformer,
    directory: Path,
    *,
    dtype: torch.dtype | None = None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `config.json` and the weights in the released layout; shards and their index above `shard_bytes`.

    `dtype` None keeps each tensor's own. Raises ConfigError where the files cannot be written or others lie there.
    """
    tensors = model.state_dict()
    shards = shards_of(tensors, dtype, shard_bytes)
    names = shard_names(WEIGHTS, len(shards))
    others = [one.name for one in directory.glob(f"{WEIGHTS}*") if one.name not in names]
    if others and (others != [f"{WEIGHTS}.safetensors.index.json"] or len(shards) == 1):
        raise ConfigError(f"{directory}: holds {others[0]}: choose another folder")
    try:
        directory.mkdir(parents=True, exist_ok=True)
        write_shards(directory, tensors, shards, stem=WEIGHTS, dtype=dtype)
        model.config.write(directory)
    except OSError as error:
        reason = error.strerror or error
        raise ConfigError(f"{directory}: cannot be written ({reason}): free space or choose another place") from None


def init_transformer(
    config: TransformerConfig, *, seed: int, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
) -> Omnigen2Transformer:
    """A transformer to train from scratch, as `fresh_tensor` draws it: its velocities are 0."""
    model = empty_transformer(config)
    for name, empty in model.state_dict().items():
        assign(model, name, fresh_tensor(name, empty.shape, seed=seed).to(device=device, dtype=dtype))
    return model


def fresh_tensor(name: str, shape: torch.Size, *, seed: int) -> Tensor:
    """What a parameter starts from, as OmniGen2 draws it, from a generator keyed by seed and name.

    Linears of blocks and patch embedders: Xavier, uniform. What the time modulates and the final layer: 0. Time and
    caption linears and image indices: normal with std 0.02, the caption's cut at two. Norms 1, biases 0.
    """
    owner, _, leaf = name.rpartition(".")
    if leaf == "bias" or owner.startswith("norm_out.") or owner.endswith("norm1.linear"):
        return torch.zeros(shape)
    if len(shape) == 1:
        return torch.ones(shape)
    digest = hashlib.sha256(f"{seed}/{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
    tensor = torch.empty(shape)
    if "caption_embedder" in owner:
        return nn.init.trunc_normal_(tensor, std=INIT_STD, a=-2 * INIT_STD, b=2 * INIT_STD, generator=generator)
    if "timestep_embedder" in owner or name == "image_index_embedding":
        return nn.init.normal_(tensor, std=INIT_STD, generator=generator)
    return nn.init.xavier_uniform_(tensor, generator=generator)
