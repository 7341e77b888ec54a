"""LoRA adapters on linear layers: y = W x + b + (alpha / rank) B A x, where A and B are trainable.

A linear layer becomes a subclass of itself in place, so its weight keeps its name: weights load, shard and
are saved as without LoRA. peft's own layers rename it and draw A from global state; only its file format is used.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor

from pipelines.train.config import LoraSettings
from pipelines.train.freeze import matching
from pipelines.train.token_rows import ROWS, TokenRows
from sigma_data.errors import ConfigError
from sigma_data.storage.files import dump_json, write_atomic
from sigma_model.checkpoint_io import released_name, write_tensors
from sigma_model.lora_linear import LoraLinear as LoraLinear
from sigma_model.model import SigmaModel

_LORA = re.compile(r"\.lora_[AB]\.weight$")
_PEFT_PREFIX = "base_model.model."
_EMBED = ROWS.rpartition(".")[0]


def add_lora(model: SigmaModel, settings: LoraSettings, *, seed: int) -> None:
    """Give linear layers LoRA adapters; these alone are trainable from now on, and what `settings.train` matches.

    What is frozen stays so: a frozen layer gets no adapter, a frozen parameter is not trained. The
    adapters of a model on the meta device hold no numbers: call `init_lora` once it has memory.
    Raises ConfigError for a pattern that matches nothing, or nothing that is not frozen, and for a layer
    that would get an adapter and be trained in full.
    """
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    linears = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    every = [name for name, _ in model.named_parameters()]
    targets = set()
    for pattern in settings.targets:
        found = matching([name for name in every if name in linears], pattern, setting="lora.targets", suffix=".weight")
        targets |= _not_frozen(found, trainable, f"lora.targets: {pattern!r}")
    trained = set()
    for pattern in settings.train:
        trained |= _not_frozen(matching(every, pattern, setting="lora.train"), trainable, f"lora.train: {pattern!r}")
    paths = {name.removesuffix(".weight") for name in targets}
    if both := sorted(paths & {name.rpartition(".")[0] for name in trained}):
        raise ConfigError(f"lora.train: {both[0]} is matched by lora.targets as well; narrow one of the two")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in trained)
    for path in paths:
        base = model.get_submodule(path)
        assert isinstance(base, nn.Linear)
        model.set_submodule(path, LoraLinear(base, settings.rank, settings.alpha))
    init_lora(model, seed=seed)


def init_lora(model: nn.Module, *, seed: int) -> None:
    """Draw A uniformly within 1 / sqrt(in), as peft does, and set B to zero, so that nothing changes at first.

    Each A draws from its own generator, keyed by seed and name, on the CPU: the same numbers however the
    model is sharded. Parameters on the meta device are left as they are.
    """
    for path, layer in _layers(model):
        if layer.lora_A.weight.is_meta:
            continue
        digest = hashlib.sha256(f"{seed}/{path}.lora_A".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        drawn = torch.rand(layer.lora_A.weight.shape, generator=generator).mul_(2).sub_(1)
        fill_parameter(layer.lora_A.weight, drawn / math.sqrt(layer.in_features))
        fill_parameter(layer.lora_B.weight, torch.zeros(layer.lora_B.weight.shape))


def is_lora(name: str) -> bool:
    """Whether a parameter of this name belongs to a LoRA adapter, which has no released name."""
    return _LORA.search(name) is not None


def merge_lora(model: nn.Module) -> None:
    """Merge the LoRA adapters into the weights and make the layers plain again; one tensor more is held at a time.

    Sums are made in float32 and rounded once to the type of the weight. The model must not be sharded.
    """
    for path, layer in list(_layers(model)):
        model.set_submodule(path, layer.merge())


def save_adapter(
    model: SigmaModel, directory: Path, *, base: str, dtype: torch.dtype | None = None, released: bool = False
) -> None:
    """Write what is trainable in a model with LoRA as an adapter that peft loads and merges.

    Its names are ours, so it goes onto a SigmaModel with the starting weights, whose name is `base`:
    `peft.PeftModel.from_pretrained(load_model(base), directory)`. With `released` they are those of the release, for
    BAGEL's own model. Beside LoRA peft knows whole modules only: of a module with a trainable weight, all is
    written, but of the embeddings the attribute tokens' rows alone where these are trained so
    (`trainable_token_indices`). The model must not be sharded. `dtype` None keeps each tensor's own. Raises OSError.
    """

    def module(path: str) -> str:
        return released_name(f"{path}.weight").removesuffix(".weight") if released else path

    def parameter_name(name: str) -> str:
        path, dot, part = name.partition(".lora_")
        return module(path) + dot + part if dot else (released_name(name) if released else name)

    layers = dict(_layers(model))
    first = next(iter(layers.values()))
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    whole = {name.rpartition(".")[0] for name in trainable if not is_lora(name) and name != ROWS}
    embed = model.backbone.embed
    settings = {
        "peft_type": "LORA",
        "base_model_name_or_path": base,
        "inference_mode": True,
        "r": first.rank,
        "lora_alpha": first.alpha,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": sorted(module(path) for path in layers),
        "modules_to_save": sorted(module(path) for path in whole) or None,
    }
    tensors = {
        f"{_PEFT_PREFIX}{parameter_name(name)}": parameter
        for name, parameter in model.named_parameters()
        if is_lora(name) or name.rpartition(".")[0] in whole
    }
    if isinstance(embed, TokenRows):
        place = module(_EMBED)
        settings["trainable_token_indices"] = {place: list(embed.ids)}
        tensors[f"{_PEFT_PREFIX}{place}.token_adapter.trainable_tokens_delta"] = embed.rows
    write_tensors(directory / "adapter_model.safetensors", tensors, dtype=dtype)
    write_atomic(directory / "adapter_config.json", dump_json(settings))


def _layers(model: nn.Module) -> Iterator[tuple[str, LoraLinear]]:
    return ((path, module) for path, module in model.named_modules() if isinstance(module, LoraLinear))


def _not_frozen(found: list[str], trainable: list[str], pattern: str) -> set[str]:
    left = set(found) & set(trainable)
    if not left:
        raise ConfigError(f"{pattern} matches only what `freeze` holds fast; freeze less, or leave the pattern out")
    return left


@torch.no_grad()
def fill_parameter(parameter: Tensor, whole: Tensor) -> None:
    """Copy a whole tensor into a parameter; into this rank's part where it is sharded."""
    if isinstance(parameter, DTensor):
        whole = whole.to(parameter.device)
        part = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
        parameter.to_local().copy_(part.to_local())
    else:
        parameter.copy_(whole)
