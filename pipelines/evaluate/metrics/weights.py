"""Where a metric's weights come from: a directory, a name on the hub, or what a package fetches itself.

A wrong path is the user's mistake (ConfigError); a name that cannot be fetched makes the metric unavailable.
Directories and snapshots are loaded strictly: a weight that is missing would be random, and its score no number.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from pipelines.evaluate.metrics.base import Unavailable
from sigma_data.errors import ConfigError
from sigma_data.storage.paths import local_path

DEFAULTS: Mapping[str, str] = {
    "clip": "openai/clip-vit-large-patch14",
    "dino": "facebook/dinov2-large",
    "depth": "Intel/dpt-large",
    "gram": "microsoft/resnet-50",
    "aesthetic": "trl-lib/ddpo-aesthetic-predictor",
    "dreamsim": "ensemble",
    "lpips": "alex",
    "inception": "inception-v3-compat",
}
"""Backbones and what stands for them unless the user says otherwise; the last three are names of packages' models."""

EXTRA = "'sigma-multimodal[eval]'"
"""What to install for torchmetrics."""

_FILES = ("*.json", "*.txt", "*.safetensors", "*.pth")
"""What is fetched of a hub repository; pickled copies of safetensors (`*.bin`) stay there."""

_CONFIGURED = frozenset({"clip", "dino", "depth", "gram"})
"""Backbones in transformers' format: a directory of one has a configuration."""

_UNUSED = "neck.fusion_stage.layers.0.residual_layer1."
"""DPT never calls this layer, and Intel's checkpoints lack it."""


def directory(key: str, value: str) -> Path | None:
    """The directory that `value` names for the backbone `key`, or None where it is a name and no path.

    It is a path where it is absolute, starts with `.` or `~`, has more than the one slash of a hub name, or its
    first part lies here. Raises ConfigError for such a path that is not a directory.
    """
    place = local_path(value)
    if value and place.is_dir():
        return place
    path_like = place.is_absolute() or value.startswith((".", "~")) or len(place.parts) > 2
    if not value or path_like or place.exists() or (len(place.parts) == 2 and place.parent.is_dir()):
        raise ConfigError(f"{value or '(empty)'}: no such directory for the model {key!r} of the metrics")
    return None


def check(key: str, value: str) -> None:
    """Raises ConfigError as `directory` does and where the directory clearly holds no such model; opens no weights."""
    place = directory(key, value)
    if place is not None and key in _CONFIGURED and not (place / "config.json").is_file():
        raise ConfigError(f"{value}: has no config.json, so it is not a directory for the model {key!r} of the metrics")


def fetched(key: str, value: str) -> Path:
    """The directory of a backbone's files: the one that `value` names, or a snapshot of that hub repository.

    Raises ConfigError as `directory` does and for what is not a hub name; Unavailable where the hub does not give it.
    """
    place = directory(key, value)
    if place is not None:
        return place
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError

    try:
        return Path(snapshot_download(value, allow_patterns=list(_FILES)))
    except HFValidationError:
        raise ConfigError(f"{value}: neither a directory nor a hub name for the model {key!r} of the metrics") from None
    except Exception as error:  # the hub's client raises its own errors, those of HTTP and of the network
        raise Unavailable(f"{value}: neither in the cache nor to be had from the hub ({brief(error)})") from None


def pretrained(key: str, value: str, kind: str, device: str) -> tuple[Any, Any, Path]:
    """A transformers model of the class `kind`, float32 in evaluation mode, its image processor, its directory.

    Raises ConfigError where a directory does not hold such a model whole, otherwise as `fetched` does.
    """
    place = fetched(key, value)
    import torch
    import transformers

    # The processor on Pillow everywhere: torchvision's resampling gives other pixels, so other scores.
    version = int(transformers.__version__.split(".")[0])
    on_pillow: dict[str, Any] = {"backend": "pil"} if version >= 5 else {"use_fast": False}
    try:
        with _quiet():
            model, info = getattr(transformers, kind).from_pretrained(
                place, dtype=torch.float32, local_files_only=True, output_loading_info=True
            )
        missing = sorted(name for name in info["missing_keys"] if not name.startswith(_UNUSED))
        if missing:
            raise ValueError(f"{len(missing)} weights are missing, the first is {missing[0]}")
        reader: Any = transformers.AutoImageProcessor
        processor = reader.from_pretrained(place, local_files_only=True, **on_pillow)
    except Exception as error:  # transformers raises OSError, ValueError, KeyError, RuntimeError for broken files
        raise unusable(key, value, f"holds no {kind} that can be loaded ({brief(error)})") from None
    return model.to(device).eval().requires_grad_(False), processor, place


def unusable(key: str, value: str, why: str) -> Exception:
    """The error for weights that are there and do not fit: ConfigError for a directory, Unavailable for a name."""
    if directory(key, value) is not None:
        return ConfigError(f"{value}: {why}; give the model {key!r} of the metrics another directory or a hub name")
    return Unavailable(f"{value}: {why}")


def package(name: str, install: str) -> Any:
    """The module `name`. Raises Unavailable with how to `install` it where it is missing or broken."""
    try:
        return import_module(name)
    except Exception as error:  # a torchvision that does not fit its torch raises RuntimeError
        raise Unavailable(f"needs a package: pip install {install} ({brief(error)})") from None


@contextmanager
def loading(key: str, value: str) -> Iterator[None]:
    """What a package raises while it fetches and loads a model, as ConfigError or Unavailable."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise Unavailable(f"needs a package ({brief(error)})") from None
    except Exception as error:  # the network, a broken file, an unknown model: packages raise anything
        raise unusable(key, value, f"cannot be loaded ({brief(error)})") from None


@contextmanager
def _quiet() -> Iterator[None]:
    """Transformers without its bar of weights and its report of those that a checkpoint has besides."""
    from transformers.utils import logging as library

    logging: Any = library  # untyped

    level, bar = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()


def brief(error: Exception) -> str:
    """The message of an error in one line of 160 characters at most."""
    return " ".join(str(error).split())[:160] or type(error).__name__
