"""FID: how far a set of outputs lies from the set of reference answers, as torchmetrics computes it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipelines.evaluate.item import Item, Result
from pipelines.evaluate.metrics.base import SetMetric, answer_of, at_size, chunks, image_of
from pipelines.evaluate.metrics.weights import EXTRA, directory, loading, package
from sigma_data.errors import ConfigError

_SIDE = 299
_FEATURES = 2048
_NAME = "inception-v3-compat"


class Fid(SetMetric):
    """Frechet inception distance of outputs and reference answers.

    `distance` is a torchmetrics FrechetInceptionDistance; `value` says whose features it takes. It needs as many
    results as there are features: from fewer, a covariance is singular and the number mostly reflects how few.
    """

    name = "FID"
    better = "down"
    scale = "0 and up"

    def __init__(self, distance: Any, value: str, device: str, batch: int) -> None:
        self._distance = distance.to(device)
        self._device = device
        self._batch = batch
        self.least = len(distance.real_features_sum)
        self.definition = (
            "Frechet distance of the Gaussians fitted to features of the outputs and of the reference answers, all at "
            f"{_SIDE} x {_SIDE} pixels (bicubic, antialiased), for sets of {self.least} or more. Features {value}."
        )

    def applies(self, item: Item) -> bool:
        return item.answer is not None

    def score_set(self, results: Sequence[Result]) -> float:
        import torch

        if len(results) < self.least:
            raise ValueError(f"FID needs {self.least} results or more, not {len(results)}")
        self._distance.reset()
        with torch.inference_mode():
            for some in chunks(results, self._batch):
                self._distance.update(self._pixels([answer_of(result) for result in some]), real=True)
                self._distance.update(self._pixels([image_of(result) for result in some]), real=False)
            return float(self._distance.compute())

    def _pixels(self, images: Sequence[bytes]) -> Any:
        """uint8 [n, 3, 299, 299]."""
        import torch

        stacked = np.stack([np.asarray(at_size(image, (_SIDE, _SIDE))) for image in images])
        return torch.from_numpy(stacked).permute(0, 3, 1, 2).to(self._device)


def load_fid(value: str, device: str, batch: int) -> Fid:
    """FID on the 2,048 features of the original Inception, as torch-fidelity has it.

    `value` is that network's name, then torch-fidelity fetches it, or a directory with its one `.pth` file.
    Raises ConfigError for other values, Unavailable without the packages or the weights.
    """
    place = directory("inception", value)
    if place is None and value != _NAME:
        raise ConfigError(f"{value}: FID takes {_NAME}, or a directory with its .pth file")
    file = None if place is None else _file(place)
    module = package("torchmetrics.image.fid", f"{EXTRA} torch-fidelity")
    with loading("inception", value):
        distance = module.FrechetInceptionDistance(feature=_FEATURES, feature_extractor_weights_path=file)
    return Fid(distance, value, device, batch)


def _file(place: Path) -> str:
    files = sorted(place.glob("*.pth"))
    if len(files) != 1:
        raise ConfigError(f"{place}: holds {len(files)} .pth files; the one of Inception must lie there for FID")
    return str(files[0])
