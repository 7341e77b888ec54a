"""A loaded model of either backbone, as batch inference asks it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from PIL import Image as Pillow

from pipelines.common.inference_config import InferenceConfig
from pipelines.common.omnigen2_settings import omnigen2_settings
from sigma_model.loading import load_for_inference
from sigma_model.omnigen2 import generate as omnigen2
from sigma_model.omnigen2.loading import load_omnigen2
from sigma_model.sampling import generate as bagel
from sigma_model.sampling.generate import Request


class Answerer(Protocol):
    """What answers requests; each method raises SigmaError for what cannot be answered."""

    name: str
    trained: bool

    def check(self, request: Request) -> None:
        """Refuse what cannot be answered, before anything is computed."""

    def images(self, requests: Sequence[Request]) -> Sequence[Pillow.Image]:
        """An image for each request."""

    def texts(self, requests: Sequence[Request]) -> Sequence[str]:
        """A text for each request."""

    def write(self, image: Pillow.Image, path: Path, request: Request) -> None:
        """A PNG that says how it was made. Raises BuildError where the disk refuses."""


def load_answerer(config: InferenceConfig, *, text: bool, device: str) -> Answerer:
    """The model of a configuration, on `device`; `text` is what it will be asked for. Raises ConfigError."""
    return _Omnigen2(config, text=text, device=device) if config.omnigen2 else _Bagel(config, text=text, device=device)


class _Bagel:
    def __init__(self, config: InferenceConfig, *, text: bool, device: str) -> None:
        assert config.model is not None
        self._config, self._text = config, text
        self._model = load_for_inference(
            config.model,
            base=config.base,
            dtype=config.dtype,
            device=device,
            vision=config.understanding,
            device_map=config.device_map,
            quantization=config.quantize,
        )
        self.name, self.trained = self._model.name, self._model.trained

    def check(self, request: Request) -> None:
        bagel.lay_out(request, self._model.tokenizer, self._model.geometry, answer=not self._text)

    def images(self, requests: Sequence[Request]) -> Sequence[Pillow.Image]:
        return bagel.generate_images(self._model, requests, self._config.sampling)

    def texts(self, requests: Sequence[Request]) -> Sequence[str]:
        config = self._config
        return bagel.generate_texts(
            self._model,
            requests,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            group_mask=config.group_mask,
        )

    def write(self, image: Pillow.Image, path: Path, request: Request) -> None:
        bagel.write_image(image, path, self._model, request, self._config.sampling)


class _Omnigen2:
    def __init__(self, config: InferenceConfig, *, text: bool, device: str) -> None:
        assert config.model is not None
        self._config, self._text, self._settings = config, text, omnigen2_settings(config)
        adapter = None if config.adapter is None else str(config.adapter)
        self._model = load_omnigen2(config.model, base=config.base, dtype=config.dtype, device=device, adapter=adapter)
        self.name, self.trained = Path(config.model).name, self._model.trained

    def check(self, request: Request) -> None:
        if not self._text:
            omnigen2.check_request(request)

    def images(self, requests: Sequence[Request]) -> Sequence[Pillow.Image]:
        return omnigen2.generate_images(self._model, requests, self._settings)

    def texts(self, requests: Sequence[Request]) -> Sequence[str]:
        return omnigen2.generate_texts(
            self._model, requests, max_tokens=self._config.max_tokens, temperature=self._config.temperature
        )

    def write(self, image: Pillow.Image, path: Path, request: Request) -> None:
        bagel.write_png(image, path, omnigen2.describe(self._model, request, self._settings, image.size))
