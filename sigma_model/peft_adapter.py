"""LoRA adapters in peft's files, `adapter_config.json` and `adapter_model.safetensors`: read, checked, merged.

Layers are named as in our model or as in the release; beside LoRA such a file may hold whole modules
(`modules_to_save`) and rows of the embeddings (`trainable_token_indices`). What computes something else is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigma_data.errors import ConfigError, reason_of
from sigma_data.storage.paths import no_folder
from sigma_model.checkpoint_io import check_stored, counted, our_name, read_stored
from sigma_model.model_files import stored_tensors

ADAPTER_CONFIG, ADAPTER_FILE = "adapter_config.json", "adapter_model.safetensors"

_PREFIX = "base_model.model."
_LORA = re.compile(r"(?P<module>.+)\.lora_(?P<side>[AB])(?:\.[^.]+)?\.weight")
_ROWS = re.compile(r"(?P<module>.+)\.token_adapter\.trainable_tokens_delta(?:\.[^.]+)?")
_REFUSED: Mapping[str, tuple[object, ...]] = {
    "peft_type": ("LORA",), "bias": ("none", None), "use_dora": (False, None), "fan_in_fan_out": (False, None),
    "lora_bias": (False, None), "layer_replication": (None,), "alora_invocation_tokens": (None,),
}  # fmt: skip
"""Settings that change what an adapter computes, with the values that are read here."""


@dataclass(frozen=True)
class PeftSettings:
    """What `adapter_config.json` says of how adapters are scaled, and which rows of embeddings they replace."""

    base: str | None
    rank: int
    alpha: float
    alphas: Mapping[str, float]
    root_of_rank: bool
    rows: Mapping[str, tuple[int, ...]]

    def scale(self, module: str, rank: int) -> float:
        """What B A of a module is multiplied by, its matrices being of this rank."""
        alpha = next((one for key, one in self.alphas.items() if re.fullmatch(rf"(.*\.)?({key})", module)), self.alpha)
        return alpha / (math.sqrt(rank) if self.root_of_rank else rank)


def is_peft(directory: Path) -> bool:
    """Whether a directory holds an adapter in peft's files."""
    return (directory / ADAPTER_CONFIG).is_file()


def peft_settings(directory: Path) -> PeftSettings:
    """Read `adapter_config.json`. Raises ConfigError for what is not there, damaged, or not LoRA as it is read here."""
    path = directory / ADAPTER_CONFIG
    if not path.is_file():
        raise ConfigError(no_adapter(directory, ADAPTER_CONFIG))
    try:
        found: dict[str, Any] = json.loads(path.read_text("utf-8"))
        for name, allowed in _REFUSED.items():
            if name in found and found[name] not in allowed:
                raise ConfigError(f"{path}: {name} is {found[name]!r}: only plain LoRA is read: merge it with peft")
        rows = found.get("trainable_token_indices") or {}
        named = rows if isinstance(rows, dict) else {"embed_tokens": rows}
        return PeftSettings(
            base=found.get("base_model_name_or_path"),
            rank=int(found["r"]),
            alpha=float(found["lora_alpha"]),
            alphas={str(key): float(one) for key, one in (found.get("alpha_pattern") or {}).items()},
            root_of_rank=bool(found.get("use_rslora")),
            rows={name: tuple(int(one) for one in ids) for name, ids in named.items()},
        )
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: is not the configuration of an adapter by peft ({reason_of(error)})") from None


def no_adapter(place: Path, *files: str) -> str:
    """Why a place is no adapter, which is a folder with one of these files, and what to do."""
    held = " or ".join(files)
    wrong = f"{place}: is no adapter" if place.is_dir() else no_folder(place)
    return f"{wrong}: name the folder that holds {held}"


@torch.no_grad()
def merge_peft(model: nn.Module, directory: Path) -> None:
    """Add an adapter to the weights of a model, in float32 and rounded once; nothing is changed if it does not fit.

    Raises ConfigError, naming what is unknown, of another shape, or half there.
    """
    settings = peft_settings(directory)
    path = directory / ADAPTER_FILE
    if not path.is_file():
        raise ConfigError(f"{path}: is not there: save the adapter as safetensors")
    stored = stored_tensors(path, complete=True)
    check_stored(stored)
    parameters = dict(model.named_parameters())
    sides: dict[str, dict[str, str]] = {}
    whole: dict[str, str] = {}
    rows: dict[str, tuple[str, tuple[int, ...]]] = {}
    unknown = []
    for name in stored:
        bare = name.removeprefix(_PREFIX)
        lora, delta = _LORA.fullmatch(bare), _ROWS.fullmatch(bare)
        module = lora["module"] if lora else delta["module"] if delta else None
        ours = _ours(bare if module is None else f"{module}.weight", parameters)
        if ours is None:
            unknown.append(name)
        elif lora:
            sides.setdefault(ours, {})[lora["side"]] = name
        elif module is not None:
            ids = next((ids for key, ids in settings.rows.items() if module == key or module.endswith(f".{key}")), ())
            rows[ours] = (name, ids)
        else:
            whole[ours] = name
    if unknown:
        raise ConfigError(f"{path}: is no adapter of this model: {counted(unknown, 'unexpected')}")
    if not sides and not whole and not rows:
        raise ConfigError(f"{path}: holds no adapter")
    shapes = {name: tuple(one.shape) for name, one in stored.items()}
    for ours, pair in sides.items():
        if set(pair) != {"A", "B"}:
            raise ConfigError(f"{path}: holds one side alone of the adapter of {ours}")
        a, b, weight = shapes[pair["A"]], shapes[pair["B"]], tuple(parameters[ours].shape)
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or (b[0], a[1]) != weight:
            raise ConfigError(f"{path}: the adapter of {ours} is {list(a)} and {list(b)}, the layer is {list(weight)}")
    fits = {ours: (name, tuple(parameters[ours].shape)) for ours, name in whole.items()}
    fits |= {ours: (name, (len(ids), parameters[ours].shape[1])) for ours, (name, ids) in rows.items()}
    for ours, (name, shape) in fits.items():
        if shapes[name] != shape:
            raise ConfigError(f"{path}: {name} is {list(shapes[name])}, and {ours} takes {list(shape)}")
    if past := [ours for ours, (_, ids) in rows.items() if max(ids, default=0) >= len(parameters[ours])]:
        raise ConfigError(
            f"{directory / ADAPTER_CONFIG}: names tokens past the {len(parameters[past[0]]):,} of the base"
        )

    def read(name: str, device: torch.device) -> Tensor:
        return read_stored(stored[name], dtype=torch.float32, device=device)

    for ours, name in whole.items():
        parameters[ours].copy_(read(name, parameters[ours].device))
    for ours, (name, ids) in rows.items():
        parameters[ours][list(ids)] = read(name, parameters[ours].device).to(parameters[ours].dtype)
    for ours, pair in sides.items():
        layer = parameters[ours]
        down, up = read(pair["A"], layer.device), read(pair["B"], layer.device)
        module = pair["A"].removeprefix(_PREFIX).partition(".lora_A")[0]  # as the file's own patterns name it
        layer.copy_((up @ down).mul_(settings.scale(module, len(down))).add_(layer))


def _ours(name: str, parameters: Mapping[str, Tensor]) -> str | None:
    """A parameter by our name, given that or the released one."""
    if name in parameters:
        return name
    found = our_name(name)
    return found if found in parameters else None
