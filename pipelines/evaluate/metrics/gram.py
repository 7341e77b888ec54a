"""The Gram-matrix distance to the style reference: whether texture and palette agree, wherever things stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from pipelines.evaluate.item import Item, Result
from pipelines.evaluate.metrics.base import Metric, chunks, image_of
from pipelines.evaluate.metrics.weights import pretrained
from pipelines.evaluate.stored import bytes_of
from sigma_data.images.decode import load

if TYPE_CHECKING:
    from torch import Tensor

_STAGES = 3


class GramDistance(Metric):
    """Gram matrices (Gatys et al., 2016) of a ResNet's first stages, output against style reference.

    Raises ConfigError and Unavailable as `weights.pretrained` does.
    """

    name = "style Gram"
    better = "down"
    scale = "0 is equal, 1 as far as the reference is from nothing"

    def __init__(self, value: str, device: str, batch: int) -> None:
        self._model, self._processor, _ = pretrained("gram", value, "ResNetModel", device)
        self._batch = batch
        self.definition = (
            "Mean over the first three stages of |G(output) - G(style reference)| / |G(style reference)|, Frobenius "
            "norms, where G is the Gram matrix of a stage's feature maps over all places. "
            f"Backbone {value}, its own resizing and crop."
        )

    def applies(self, item: Item) -> bool:
        return item.style > 0

    def score(self, results: Sequence[Result]) -> list[float]:
        return [value for some in chunks(results, self._batch) for value in self._batched(some)]

    def _batched(self, results: Sequence[Result]) -> list[float]:
        import torch

        outputs = self._grams([image_of(result) for result in results])
        styles = self._grams([bytes_of(result.item.references[result.item.style - 1]) for result in results])
        norm = torch.linalg.matrix_norm
        distances = [
            norm(output - style) / norm(style) for output, style in zip(outputs, styles, strict=True)
        ]  # a stage: [n]
        return [float(value) for value in torch.stack(distances).mean(0)]

    def _grams(self, images: Sequence[bytes]) -> list[Tensor]:
        """The Gram matrices [n, C, C] of each stage, in double precision."""
        import torch

        inputs = self._processor(images=[load(image) for image in images], return_tensors="pt")
        with torch.inference_mode():
            stages = self._model(inputs["pixel_values"].to(self._model.device), output_hidden_states=True).hidden_states
        # The first hidden state is the stem's.
        maps = [stage.flatten(2).double() for stage in stages[1 : 1 + _STAGES]]  # [n, C, places]
        return [features @ features.mT / features.shape[2] for features in maps]
