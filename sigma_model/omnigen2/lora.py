"""LoRA adapters in OmniGen2's file format.

That is `pytorch_lora_weights.safetensors` with names as `transformer.<module>.lora_A.weight`, and peft's two files
beside it, which are read where they stand alone.

What others write without the prefix, and with an adapter's name (`lora_A.default.weight`), is read as well.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigma_data.errors import ConfigError
from sigma_data.storage.files import dump_json, write_atomic
from sigma_model.checkpoint_io import check_stored, counted, read_stored, write_tensors
from sigma_model.lora_linear import LoraLinear
from sigma_model.model_files import stored_tensors
from sigma_model.omnigen2.transformer import Omnigen2Transformer
from sigma_model.peft_adapter import ADAPTER_CONFIG, ADAPTER_FILE, is_peft, no_adapter, peft_settings

LORA_FILE = "pytorch_lora_weights.safetensors"
TARGETS = ("to_q", "to_k", "to_v", "to_out.0")
"""In the attention of all four stacks."""

RANK = 8
_PREFIXES = ("transformer.", "base_model.model.", "module.")
_NAME = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight")


def add_adapter(
    model: Omnigen2Transformer,
    *,
    rank: int = RANK,
    alpha: float | None = None,
    targets: Sequence[str] = TARGETS,
    seed: int = 0,
) -> None:
    """Give attention layers adapters, which alone are trainable from now on; nothing changes at first.

    `alpha` defaults to the rank. A is drawn normal with std 1 / rank, as peft's gaussian initialisation, from
    generators keyed by seed and name; B is zero. Raises ConfigError where nothing is matched.
    """
    if rank < 1:
        raise ConfigError(f"a LoRA rank of {rank}: it must be at least 1")
    paths = [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and any(path.endswith(f".attn.{target}") for target in targets)
    ]
    if not paths:
        raise ConfigError(f"LoRA targets {list(targets)} match no layer: those are {', '.join(TARGETS)}")
    model.requires_grad_(False)
    for path in paths:
        layer = _adapt(model, path, rank, float(rank if alpha is None else alpha))
        if not layer.lora_A.weight.is_meta:
            digest = hashlib.sha256(f"{seed}/{path}.lora_A".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
            drawn = torch.randn(layer.lora_A.weight.shape, generator=generator) / rank
            with torch.no_grad():
                layer.lora_A.weight.copy_(drawn)
                layer.lora_B.weight.zero_()


def is_adapter(directory: Path) -> bool:
    """Whether a directory holds an adapter, in peft's files or OmniGen2's."""
    return is_peft(directory) or (directory / LORA_FILE).is_file()


def check_adapter(place: Path, *, omnigen2: bool) -> None:
    """Raise ConfigError for what is clearly no adapter of such a model; its weights are not read."""
    if not omnigen2 or is_peft(place):
        peft_settings(place)
    elif not place.is_file() and not is_adapter(place):
        raise ConfigError(no_adapter(place, LORA_FILE, ADAPTER_CONFIG))


def load_adapter(model: Omnigen2Transformer, path: Path, *, alpha: float | None = None) -> None:
    """Apply the adapter of a file, or of a directory that holds such a file, to a model.

    `alpha` defaults to what the metadata of the file says, else to the rank. Raises ConfigError for a file that is no
    adapter of this transformer: unknown layers, a side without the other, other shapes.
    """
    check_adapter(path, omnigen2=True)
    settings = peft_settings(path) if is_peft(path) and not (path / LORA_FILE).is_file() else None
    path = path / (LORA_FILE if settings is None else ADAPTER_FILE) if path.is_dir() else path
    if not path.is_file():
        raise ConfigError(f"{path}: is not there: save the adapter as safetensors")
    stored = stored_tensors(path, complete=True)
    check_stored(stored)
    sides: dict[str, dict[str, Tensor]] = {}
    unknown = []
    for name, where in stored.items():
        match = _NAME.fullmatch(_bare(name))
        module = _module(model, match["module"]) if match else None
        if match is None or module is None:
            unknown.append(name)
            continue
        tensor = read_stored(where, dtype=torch.float32)
        if sides.setdefault(match["module"], {}).setdefault(match["side"], tensor) is not tensor:
            raise ConfigError(f"{path}: holds lora_{match['side']} of {match['module']} twice, under two names")
    if unknown:
        raise ConfigError(f"{path}: is no adapter of this transformer: {counted(unknown, 'unexpected')}")
    if not sides:
        raise ConfigError(f"{path}: holds no adapter")
    said = _alpha_of(path) if alpha is None else alpha
    for name, pair in sides.items():
        linear = _module(model, name)
        assert linear is not None
        if set(pair) != {"A", "B"}:
            raise ConfigError(f"{path}: holds one side alone of the adapter of {name}")
        a, b = pair["A"], pair["B"]
        if a.ndim != 2 or b.ndim != 2 or a.shape != (b.shape[1], linear.in_features) or len(b) != linear.out_features:
            raise ConfigError(
                f"{path}: the adapter of {name} is {list(a.shape)} and {list(b.shape)}, the layer is "
                f"{[linear.out_features, linear.in_features]}"
            )
        chosen = said if settings is None or alpha is not None else settings.scale(name, len(a)) * len(a)
        layer = _adapt(model, name, len(a), float(len(a) if chosen is None else chosen))
        with torch.no_grad():
            layer.lora_A.weight.copy_(a)
            layer.lora_B.weight.copy_(b)


def save_adapter(
    model: Omnigen2Transformer, directory: Path, *, dtype: torch.dtype | None = None, base: str | None = None
) -> Path:
    """Write a model's adapter alone, not the model: as diffusers has it, and as peft does.

    `base` is what the latter names as its base. Raises ConfigError where the model has no adapter, OSError.
    """
    layers = dict(adapted_layers(model))
    if not layers:
        raise ConfigError("the model has no LoRA adapter to be saved")
    tensors: dict[str, Tensor] = {}
    for path, layer in layers.items():
        # The file has no place for alpha: B carries alpha / rank, so that whoever reads alpha = rank gets the same.
        b = layer.lora_B.weight.detach() * (layer.alpha / layer.rank)
        tensors |= {f"transformer.{path}.lora_A.weight": layer.lora_A.weight.detach()}
        tensors |= {f"transformer.{path}.lora_B.weight": b}
    directory.mkdir(parents=True, exist_ok=True)
    write_tensors(directory / LORA_FILE, tensors, dtype=dtype)
    plain = {f"base_model.model.{name.removeprefix('transformer.')}": tensor for name, tensor in tensors.items()}
    write_tensors(directory / ADAPTER_FILE, plain, dtype=dtype)
    ranks = {path: layer.rank for path, layer in layers.items()}
    rank = next(iter(ranks.values()))
    config = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(layers),
        "rank_pattern": {path: one for path, one in ranks.items() if one != rank},
        "alpha_pattern": {path: one for path, one in ranks.items() if one != rank},
    }
    write_atomic(directory / ADAPTER_CONFIG, dump_json(config))
    return directory / LORA_FILE


def merge_adapter(model: Omnigen2Transformer) -> None:
    """Add the adapter to the weights, in float32 and rounded once, and make the layers plain again."""
    for path, layer in list(adapted_layers(model)):
        model.set_submodule(path, layer.merge())


def adapted_layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    """Path and layer of every adapter."""
    return ((path, module) for path, module in model.named_modules() if isinstance(module, LoraLinear))


def _adapt(model: Omnigen2Transformer, path: str, rank: int, alpha: float) -> LoraLinear:
    base = model.get_submodule(path)
    if isinstance(base, LoraLinear):
        raise ConfigError(f"{path} has a LoRA adapter already: merge it first")
    assert isinstance(base, nn.Linear)
    layer = LoraLinear(base, rank, alpha)
    model.set_submodule(path, layer)
    return layer


def _bare(name: str) -> str:
    while prefix := next((one for one in _PREFIXES if name.startswith(one)), None):
        name = name.removeprefix(prefix)
    return name


def _module(model: nn.Module, path: str) -> nn.Linear | None:
    try:
        found = model.get_submodule(path)
    except AttributeError:
        return None
    return found if isinstance(found, nn.Linear) else None


def _alpha_of(path: Path) -> float | None:
    """`lora_alpha` as diffusers and peft write it into the header's metadata; None: not said."""
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    said = (header.get("__metadata__") or {}).get("lora_adapter_metadata")
    try:
        settings: Any = json.loads(said) if said else {}
    except ValueError:
        return None
    found = [value for key, value in settings.items() if key.rpartition(".")[2] == "lora_alpha"]
    return float(found[0]) if found and isinstance(found[0], int | float) else None
