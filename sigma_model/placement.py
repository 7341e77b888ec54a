"""Layers of the language model that do not lie where the rest does: on other GPUs, in CPU memory, or in the files.

For generating alone. A layer's place is one of: the model's own device; another device, where the layer computes; `cpu`
beside a GPU, or `disk`, from where its weights are copied to the model's device each time they are used, so that one
layer more than what is resident needs memory. Attention, with its cache, stays on the model's device. No number
changes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sigma_data.errors import ConfigError
from sigma_model.attention import Attention
from sigma_model.checkpoint_io import Checkpoint, assign, expected
from sigma_model.config import ModelConfig
from sigma_model.model import SigmaModel
from sigma_model.state_dict_adapter import PROJECTION, released_name

DISK, CPU = "disk", "cpu"

_LAYER = re.compile(r"^backbone\.layers\.(\d+)\.")


def spread(places: Sequence[str], layers: int) -> list[str]:
    """A place for each layer: equal runs of layers, in the order of `places`, the first ones longer."""
    share, more = divmod(layers, len(places))
    return [place for index, place in enumerate(places) for _ in range(share + (index < more))]


def fill(free: Mapping[str, int], *, layers: int, layer_bytes: int, rest_bytes: int) -> list[str]:
    """A place for each layer: devices are filled one by one with what is `free` (bytes), the CPU takes what is left.

    The first device also holds the rest of the model. A tenth of what is free on each, and twice that on the first,
    which holds the cache, is left for the work.
    """
    found: list[str] = []
    for index, (device, size) in enumerate(free.items()):
        usable = int(size * (0.7 if index == 0 else 0.9)) - (rest_bytes if index == 0 else 0)
        found += [device] * max(0, min(usable // layer_bytes, layers - len(found)))
    return found + [CPU] * (layers - len(found))


def load_placed(
    directory: Path,
    places: Sequence[str],
    *,
    config: ModelConfig,
    dtype: torch.dtype,
    device: str,
    vision: bool = True,
) -> SigmaModel:
    """A model to generate with whose layer `i` of the language model lies at `places[i]`, the rest on `device`.

    Raises ConfigError as `load_model` does.
    """
    with torch.device("meta"):
        model = SigmaModel(config).requires_grad_(False)
    checkpoint = Checkpoint(Path(directory), vision=vision, config=config)
    wanted = expected(model)
    checkpoint.check(wanted)
    ours = {released_name(name): name for name in model.state_dict(keep_vars=True)}
    for released in checkpoint.in_order():
        name = ours[released]
        layer = _LAYER.match(name)
        place = device if layer is None else places[int(layer[1])]
        if place != DISK:
            tensor = checkpoint.read(released, dtype=dtype, device=place)
            streamed = place == CPU and torch.device(device).type == "cuda"
            assign(model, name, tensor.pin_memory() if streamed else tensor)
    if PROJECTION in wanted and PROJECTION not in checkpoint.tensors:
        assign(model, PROJECTION, torch.zeros(wanted[PROJECTION], dtype=dtype, device=device))
    for number, (layer_, place) in enumerate(zip(model.backbone.layers, places, strict=True)):
        if place == DISK:
            path = f"backbone.layers.{number}."
            _stream(layer_, device, partial(_from_file, checkpoint, path, dtype, device))
        elif place == CPU and torch.device(device).type != "cpu":
            kept = dict(layer_.named_parameters())
            _stream(layer_, device, partial(_from_memory, kept, device))
        elif torch.device(place) != torch.device(device):
            layer_.register_forward_pre_hook(partial(_go, device, place))
            layer_.register_forward_hook(partial(_come, device))
    return model.eval()


def _from_file(checkpoint: Checkpoint, path: str, dtype: torch.dtype, device: str, name: str) -> Tensor:
    return checkpoint.read(released_name(path + name), dtype=dtype, device=device)


def _from_memory(kept: Mapping[str, Tensor], device: str, name: str) -> Tensor:
    return kept[name].to(device, non_blocking=True)


def _stream(layer: nn.Module, device: str, read: Any) -> None:
    """Let a layer's weights be read when it runs, and forgotten afterwards."""
    names = [name for name, _ in layer.named_parameters()]
    empty = {name: parameter.to("meta") for name, parameter in layer.named_parameters()}

    def before(_layer: nn.Module, _inputs: Any) -> None:
        for name in names:
            assign(layer, name, read(name))

    def after(_layer: nn.Module, _inputs: Any, _outputs: Any) -> None:
        for name in names:
            assign(layer, name, empty[name])

    after(layer, None, None)
    layer.register_forward_pre_hook(before)
    layer.register_forward_hook(after, always_call=True)


def _go(home: str, place: str, _layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """A layer's inputs on its own device, and attention that goes home."""

    def moved(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(place)
        if isinstance(value, tuple):
            return tuple(moved(one) for one in value)
        return partial(_attend_at_home, value, home, place) if callable(value) else value

    return tuple(moved(value) for value in inputs)


def _attend_at_home(attend: Attention, home: str, place: str, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return attend(q.to(home), k.to(home), v.to(home)).to(place)


def _come(home: str, _layer: nn.Module, _inputs: Any, outputs: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return outputs[0].to(home), outputs[1].to(home)


def parse_places(text: str, *, config: ModelConfig, dtype: torch.dtype, device: str) -> list[str]:
    """What `--device-map` says, as a place for each layer of the language model.

    `balanced` spreads the layers over all GPUs, `auto` fills the GPUs and keeps the rest in CPU memory, and a list as
    `cuda:0,cuda:1,cpu,disk` gives each place an equal run of layers. Raises ConfigError.
    """
    layers = config.language.num_hidden_layers
    gpus = [f"cuda:{number}" for number in range(torch.cuda.device_count())]
    if text in ("auto", "balanced"):
        if not gpus:
            raise ConfigError(f"--device-map {text}: PyTorch finds no GPU here; use cpu or disk, or leave it out")
        if text == "balanced":
            return spread(gpus, layers)
        with torch.device("meta"):
            model = SigmaModel(config)
        sizes = {name: tensor.numel() * dtype.itemsize for name, tensor in model.state_dict(keep_vars=True).items()}
        in_layers = sum(size for name, size in sizes.items() if _LAYER.match(name))
        free = {gpu: torch.cuda.mem_get_info(gpu)[0] for gpu in sorted(gpus, key=lambda gpu: gpu != device)}
        return fill(free, layers=layers, layer_bytes=in_layers // layers, rest_bytes=sum(sizes.values()) - in_layers)
    places = [place.strip() for place in text.split(",")]
    for place in places:
        if place in (DISK, CPU):
            continue
        try:
            torch.zeros(1, device=place)
            if torch.device(place).type == "meta":
                raise RuntimeError("it computes nothing")
        except Exception:  # every back end has its own
            raise ConfigError(
                f"--device-map {text}: {place!r} is no place for layers here: write auto, balanced, or a list of "
                "devices, cpu and disk"
            ) from None
    return spread([f"{place}:0" if place == "cuda" else place for place in places], layers)
