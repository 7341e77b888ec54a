"""Embeddings of images and texts by CLIP, of images by DINOv2: each image embedded once, whoever asks.

CLIP, CLIP-I, CLIP-ES, style and AES share one backbone, and answers and references recur between items and runs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from pipelines.evaluate.metrics.base import Floats, chunks
from pipelines.evaluate.metrics.weights import pretrained, unusable
from sigma_data.images.decode import load

if TYPE_CHECKING:
    from torch import Tensor


class Embeddings:
    """Unit embeddings of encoded images under one backbone.

    `encode` takes images and gives [n, D]. What was embedded is kept for as long as this lives, by the SHA-256
    of the encoded image: 4 D bytes each, 3 KB for CLIP ViT-L/14.
    """

    def __init__(self, encode: Callable[[list[Image.Image]], Tensor], batch: int) -> None:
        self._encode = encode
        self._batch = batch
        self._kept: dict[bytes, npt.NDArray[np.float32]] = {}

    def __call__(self, images: Sequence[bytes]) -> Floats:
        """[n, D], rows of length 1. Raises ImageFault where an image cannot be decoded."""
        keys = [hashlib.sha256(image).digest() for image in images]
        new = {key: image for key, image in zip(keys, images, strict=True) if key not in self._kept}
        for some in chunks(list(new.items()), self._batch):
            vectors = self._encode([load(image) for _, image in some]).float().cpu().numpy()
            self._kept.update(zip((key for key, _ in some), vectors, strict=True))
        return unit(np.stack([self._kept[key] for key in keys]))


class Clip:
    """A CLIP model: `images` gives unit embeddings of images, `texts` those of texts.

    Raises ConfigError and Unavailable as `weights.pretrained` does.
    """

    def __init__(self, value: str, device: str, batch: int) -> None:
        import transformers

        self._model, self._processor, place = pretrained("clip", value, "CLIPModel", device)
        try:
            self._tokenizer: Any = transformers.AutoTokenizer.from_pretrained(place, local_files_only=True)
        except Exception as error:  # as broken or missing files make transformers raise
            raise unusable("clip", value, f"holds no tokenizer that can be loaded ({type(error).__name__})") from None
        self._batch = batch
        self.value = value
        self.max_tokens = int(self._model.config.text_config.max_position_embeddings)
        self.width = int(self._model.config.projection_dim)
        self.images = Embeddings(self._encode, batch)

    def texts(self, texts: Sequence[str]) -> Floats:
        """[n, D], rows of length 1; a text longer than `max_tokens` tokens is cut there."""
        import torch

        found = []
        for some in chunks(texts, self._batch):
            # Every batch is as wide as the model: what else is in a batch must not change a text's embedding.
            tokens = self._tokenizer(
                list(some), padding="max_length", truncation=True, max_length=self.max_tokens, return_tensors="pt"
            ).to(self._model.device)
            with torch.inference_mode():
                output = self._model.get_text_features(**tokens)
            found.append(_pooled(output).float().cpu().numpy())
        return unit(np.concatenate(found))

    def _encode(self, images: list[Image.Image]) -> Tensor:
        import torch

        pixels = self._processor(images=images, return_tensors="pt")["pixel_values"].to(self._model.device)
        with torch.inference_mode():
            return _pooled(self._model.get_image_features(pixel_values=pixels))


class Dino:
    """A DINOv2 model: `images` gives unit CLS embeddings of images, after the last norm.

    Raises ConfigError and Unavailable as `weights.pretrained` does.
    """

    def __init__(self, value: str, device: str, batch: int) -> None:
        self._model, self._processor, _ = pretrained("dino", value, "Dinov2Model", device)
        self.value = value
        self.images = Embeddings(self._encode, batch)

    def _encode(self, images: list[Image.Image]) -> Tensor:
        import torch

        pixels = self._processor(images=images, return_tensors="pt")["pixel_values"].to(self._model.device)
        with torch.inference_mode():
            tokens: Tensor = self._model(pixel_values=pixels).last_hidden_state
        return tokens[:, 0]


def unit(vectors: npt.NDArray[np.float32]) -> Floats:
    """[n, D] -> [n, D] with rows of length 1, in double precision: an image's cosine with itself is 1."""
    exact = vectors.astype(np.float64)
    lengths: Floats = np.linalg.norm(exact, axis=1, keepdims=True)
    return exact / lengths


def _pooled(output: Any) -> Tensor:
    # transformers 5 returns an output object, 4 the tensor itself.
    pooled: Tensor = getattr(output, "pooler_output", output)
    return pooled
