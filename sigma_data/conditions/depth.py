"""Depth maps by a model of the user's own: near is bright, whichever of the known models it is.

DPT (MiDaS) and Depth-Anything give relative inverse depth; GLPN, ZoeDepth and the metric Depth-Anything give metres,
which are inverted. Weights come from a folder on this machine, nothing is fetched.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sigma_data.errors import ConfigError

_KINDS = ("dpt", "depth_anything", "glpn", "zoedepth")
_METRES = ("glpn", "zoedepth")
_LEAST = 1e-6
"""Metres below this are no distance, and would be infinitely near."""

PERCENTILES = (2.0, 98.0)


class BlankDepthError(ValueError):
    """A depth that is the same everywhere, or is not finite: it shows nothing."""


def check_depth_model(folder: Path | None) -> None:
    """Raise ConfigError, before any work, where depth cannot be computed with this folder."""
    if folder is None:
        raise ConfigError(
            "conditions.shares.depth needs conditions.depth_model: a folder with a depth model of transformers, e.g. "
            "a copy of Intel/dpt-hybrid-midas"
        )
    kind = _config(folder).get("model_type")
    if kind not in _KINDS:
        raise ConfigError(
            f"conditions.depth_model {folder}: config.json says model_type {kind!r}, and depth is computed by "
            f"{', '.join(_KINDS)}"
        )
    if not any(folder.glob("*.safetensors")):
        raise ConfigError(f"conditions.depth_model {folder}: has no .safetensors file with the weights")
    if not (folder / "preprocessor_config.json").is_file():
        raise ConfigError(f"conditions.depth_model {folder}: has no preprocessor_config.json, copy the whole model")


@cache
def revision(folder: Path) -> str:
    """16 hex digits over the names and contents of the model's files."""
    digest = hashlib.sha256()
    for path in sorted((*folder.glob("*.json"), *folder.glob("*.safetensors"))):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()[:16]


def depth_map(image: Image.Image, folder: Path, *, device: str = "cpu", percentile: bool = False) -> npt.NDArray[Any]:
    """The depth of an RGB image as uint8 [h, w] at its size, near is 255 and far is 0.

    Scaled by its own least and greatest value, with `percentile` by the 2nd and 98th percentile. Raises
    BlankDepthError, ConfigError where the model cannot be loaded.
    """
    return levels_of(_predicted(image, folder, device), metres=_in_metres(folder), percentile=percentile)


def levels_of(depth: npt.NDArray[np.floating[Any]], *, metres: bool, percentile: bool = False) -> npt.NDArray[np.uint8]:
    """A model's output [h, w] as grey levels, near is bright. Raises BlankDepthError."""
    values = np.asarray(depth, np.float64)
    if not np.isfinite(values).all():
        raise BlankDepthError("the model's depth is not finite")
    if metres:
        values = 1 / np.maximum(values, _LEAST)
    low, high = np.percentile(values, PERCENTILES) if percentile else (values.min(), values.max())
    if high - low <= 1e-6 * max(abs(low), abs(high)):
        raise BlankDepthError("the depth is the same everywhere")
    levels: npt.NDArray[np.uint8] = np.rint((np.clip(values, low, high) - low) * (255 / (high - low))).astype(np.uint8)
    return levels


def _predicted(image: Image.Image, folder: Path, device: str) -> npt.NDArray[np.float32]:
    """The model's own output, brought to the image's size: float32 [h, w]."""
    import torch

    model, processor = _loaded(folder, device)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums must not depend on how many workers share the machine
    try:
        inputs = processor(images=image, return_tensors="pt").to(device)
        with torch.inference_mode():
            output = model(pixel_values=inputs["pixel_values"])
        sized = processor.post_process_depth_estimation(output, target_sizes=[(image.height, image.width)])
    finally:
        torch.set_num_threads(threads)
    depth: npt.NDArray[np.float32] = sized[0]["predicted_depth"].float().cpu().numpy()
    return depth


@cache
def _loaded(folder: Path, device: str) -> tuple[Any, Any]:
    """Model and processor, once a process."""
    from transformers import AutoImageProcessor, AutoModelForDepthEstimation

    try:
        model = AutoModelForDepthEstimation.from_pretrained(folder, local_files_only=True).eval().to(device)
        make_processor: Any = AutoImageProcessor.from_pretrained
        return model, make_processor(folder, local_files_only=True)
    except Exception as error:  # whatever broken files make transformers raise
        reason = " ".join(str(error).split())[:200]
        raise ConfigError(f"conditions.depth_model {folder}: cannot be loaded ({reason})") from None


@cache
def _in_metres(folder: Path) -> bool:
    config = _config(folder)
    return config.get("model_type") in _METRES or config.get("depth_estimation_type") == "metric"


def _config(folder: Path) -> dict[str, Any]:
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        raise ConfigError(f"conditions.depth_model {folder}: is not the folder of a model, it has no config.json")
    return config
