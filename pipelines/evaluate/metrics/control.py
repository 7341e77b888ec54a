"""Obedience to a control map: edge F1 and depth RMSE, and which of the two an item's condition calls for."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.evaluate.item import Item, Result
from pipelines.evaluate.metrics.base import Floats, Metric, Pixels, at_size, chunks, image_of
from pipelines.evaluate.metrics.edges import f1
from pipelines.evaluate.metrics.weights import pretrained
from pipelines.evaluate.stored import bytes_of
from sigma_data.conditions.canny import HIGH, LOW, canny
from sigma_data.images.decode import load

if TYPE_CHECKING:
    from torch import Tensor

_MIDDLE = slice(64, 192)
_MIDDLE_SHARE = 0.1


class Condition(Enum):
    """What a control map shows."""

    EDGES = "edges"
    DEPTH = "depth"
    IMAGE = "image"


def condition_of(item: Item) -> Condition:
    """The kind of the item's condition.

    Truth of the embedded `world` corpus says it (`references[n - 1]["map"]`). Otherwise the image does: colours
    make it an image; in a grey one, fewer than a tenth of the pixels between 64 and 191 make it an edge map.
    Raises ImageFault where it cannot be decoded.
    """
    described = item.truth.get("references", ())
    known = described[item.condition - 1].get("map") if len(described) >= item.condition else None
    if known:
        return Condition.DEPTH if known == "depth" else Condition.EDGES
    pixels = np.asarray(load(_map(item))).astype(np.int16)
    if np.ptp(pixels, axis=2).max() > 32:  # JPEG puts a little colour into grey
        return Condition.IMAGE
    levels = np.bincount(pixels[..., 1].ravel(), minlength=256)
    return Condition.EDGES if levels[_MIDDLE].sum() < _MIDDLE_SHARE * levels.sum() else Condition.DEPTH


class EdgeF1(Metric):
    """F1: whether the output has its edges where the condition has them."""

    name = "F1"
    better = "up"
    scale = "0 to 1"

    def __init__(self, tolerance: int = 0) -> None:
        self._tolerance = tolerance
        self.definition = (
            f"F1 of edge pixels at the condition's size, tolerance {tolerance} pixels. Edges of the output by Canny "
            f"({LOW}, {HIGH}; Sobel 3x3, L1 norm, as OpenCV); a condition that is an edge map counts where it is above "
            "127, any other goes through the same Canny. Depth maps are left to depth RMSE."
        )

    def applies(self, item: Item) -> bool:
        return item.condition > 0 and condition_of(item) is not Condition.DEPTH

    def score(self, results: Sequence[Result]) -> list[float]:
        return [self._one(result) for result in results]

    def _one(self, result: Result) -> float:
        shown = load(_map(result.item))
        condition = _grey(shown)
        edges = condition > 127 if condition_of(result.item) is Condition.EDGES else canny(condition, LOW, HIGH)
        output = _grey(at_size(image_of(result), shown.size))
        return f1(canny(output, LOW, HIGH), edges, tolerance=self._tolerance)


class DepthRmse(Metric):
    """Depth RMSE: whether the output has the depth that the condition shows.

    Raises ConfigError and Unavailable as `weights.pretrained` does.
    """

    name = "depth RMSE"
    better = "down"
    scale = "0 to 1"

    def __init__(self, value: str, device: str, batch: int) -> None:
        self._model, self._processor, _ = pretrained("depth", value, "AutoModelForDepthEstimation", device)
        self._batch = batch
        self.definition = (
            "Root mean square of the difference between the output's inverse depth (near is bright), bilinear at the "
            "condition's size, and the condition as grey, each scaled to 0..1 by its own least and greatest value. "
            f"Backbone {value}."
        )

    def applies(self, item: Item) -> bool:
        return item.condition > 0 and condition_of(item) is Condition.DEPTH

    def score(self, results: Sequence[Result]) -> list[float]:
        return [value for some in chunks(results, self._batch) for value in self._batched(some)]

    def _batched(self, results: Sequence[Result]) -> list[float]:
        from torch.nn import functional as F

        found = []
        for result, depth in zip(results, self._depths([image_of(result) for result in results]), strict=True):
            condition = _grey(load(_map(result.item)))
            scaled = F.interpolate(depth[None, None], size=condition.shape, mode="bilinear", align_corners=False)
            difference = _spread(scaled[0, 0].double().cpu().numpy()) - _spread(condition.astype(np.float64))
            found.append(float(np.sqrt(np.mean(difference**2))))
        return found

    def _depths(self, images: Sequence[bytes]) -> list[Tensor]:
        """The inverse depth [h, w] of each image; those that the processor makes alike in size go together."""
        import torch

        inputs: list[Any] = [
            self._processor(images=load(image), return_tensors="pt")["pixel_values"][0] for image in images
        ]
        groups: dict[tuple[int, ...], list[int]] = {}
        for number, pixels in enumerate(inputs):
            groups.setdefault(tuple(pixels.shape), []).append(number)
        found: dict[int, Tensor] = {}
        for numbers in groups.values():
            stacked = torch.stack([inputs[number] for number in numbers]).to(self._model.device)
            with torch.inference_mode():
                found |= zip(numbers, self._model(pixel_values=stacked).predicted_depth.float(), strict=True)
        return [found[number] for number in range(len(inputs))]


def _map(item: Item) -> bytes:
    return bytes_of(item.references[item.condition - 1])


def _grey(image: Image.Image) -> Pixels:
    """uint8 [h, w], by ITU-R 601 weights."""
    return np.asarray(image.convert("L"))


def _spread(values: Floats) -> npt.NDArray[np.float64]:
    """Scaled to 0..1; what is flat becomes 0."""
    low, high = values.min(), values.max()
    spread: Floats = (values - low) / (high - low) if high > low else np.zeros_like(values)
    return spread
