"""A loaded model of either backbone, as `sigma generate` asks it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from pathlib import Path
from typing import Protocol

from PIL import Image as Pillow

from pipelines.common.inference_config import InferenceConfig
from pipelines.common.omnigen2_settings import omnigen2_settings, refuse_omnigen2_settings
from sigma_data.sequence.layout import Geometry
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_model.omnigen2 import generate as omnigen2
from sigma_model.omnigen2.loading import load_omnigen2
from sigma_model.sampling import generate as bagel
from sigma_model.sampling.generate import Preview, Request

Progress = Callable[[int, int], None]


class Answerer(Protocol):
    """What answers requests; each method raises SigmaError for what cannot be answered. `steps`: of the sampler."""

    name: str
    trained: bool
    steps: int

    def check(self, request: Request) -> None:
        """Refuse what cannot be answered, before anything is computed."""

    def images(
        self, requests: Sequence[Request], progress: Progress | None = None, preview: Preview | None = None
    ) -> Sequence[Pillow.Image]:
        """An image for each request; `progress(done, all)` and `preview` after each step of the sampler."""

    def texts(self, requests: Sequence[Request], progress: Progress | None = None) -> Sequence[str]:
        """A text for each request; `progress(done, most)` counts tokens where the model tells them."""

    def asked_otherwise(self, config: InferenceConfig, *, text: bool) -> Answerer:
        """The same weights under other settings of sampling. Raises SigmaError."""

    def write(self, image: Pillow.Image, path: Path, request: Request) -> None:
        """A PNG that says how it was made. Raises BuildError where the disk refuses."""


def load_answerer(config: InferenceConfig, *, text: bool, first: Request | None = None) -> Answerer:
    """The model of a configuration; `text` is what it will be asked for.

    `first` is refused before the weights are read where it cannot be answered. Raises SigmaError.
    """
    return _Omnigen2(config, text, first) if config.omnigen2 else _Bagel(config, text, first)


class _Bagel:
    def __init__(self, config: InferenceConfig, text: bool, first: Request | None) -> None:
        def check(tokenizer: Tokenizer, geometry: Geometry) -> None:
            if first is not None:
                bagel.lay_out(first, tokenizer, geometry, answer=not text)

        self._model = config.load(check)
        self.name, self.trained = self._model.name, self._model.trained
        self._take(config, text)

    def _take(self, config: InferenceConfig, text: bool) -> None:
        self._config, self._text, self.steps = config, text, config.steps - 1

    def asked_otherwise(self, config: InferenceConfig, *, text: bool) -> Answerer:
        config.sampling  # noqa: B018  # raises for values that make no sense
        refuse_omnigen2_settings(config)
        other = copy(self)
        other._take(config, text)
        return other

    def check(self, request: Request) -> None:
        bagel.lay_out(request, self._model.tokenizer, self._model.geometry, answer=not self._text)

    def images(
        self, requests: Sequence[Request], progress: Progress | None = None, preview: Preview | None = None
    ) -> Sequence[Pillow.Image]:
        return bagel.generate_images(self._model, requests, self._config.sampling, progress=progress, preview=preview)

    def texts(self, requests: Sequence[Request], progress: Progress | None = None) -> Sequence[str]:
        config = self._config
        return bagel.generate_texts(
            self._model,
            requests,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            group_mask=config.group_mask,
            progress=progress,
        )

    def write(self, image: Pillow.Image, path: Path, request: Request) -> None:
        bagel.write_image(image, path, self._model, request, self._config.sampling)


class _Omnigen2:
    def __init__(self, config: InferenceConfig, text: bool, first: Request | None) -> None:
        assert config.model is not None
        self._take(config, text)
        if first is not None:
            omnigen2.check_request(first)
        self._model = load_omnigen2(
            config.model,
            base=config.base,
            dtype=config.dtype,
            device=config.device,
            adapter=None if config.adapter is None else str(config.adapter),
        )
        self.name, self.trained = Path(config.model).name, self._model.trained

    def _take(self, config: InferenceConfig, text: bool) -> None:
        self._config, self._text, self._settings = config, text, omnigen2_settings(config)
        self.steps = self._settings.sampling.steps

    def asked_otherwise(self, config: InferenceConfig, *, text: bool) -> Answerer:
        other = copy(self)
        other._take(config, text)
        return other

    def check(self, request: Request) -> None:
        if not self._text:
            omnigen2.check_request(request)

    def images(
        self, requests: Sequence[Request], progress: Progress | None = None, preview: Preview | None = None
    ) -> Sequence[Pillow.Image]:
        return omnigen2.generate_images(self._model, requests, self._settings, progress=progress, preview=preview)

    def texts(self, requests: Sequence[Request], progress: Progress | None = None) -> Sequence[str]:
        return omnigen2.generate_texts(
            self._model, requests, max_tokens=self._config.max_tokens, temperature=self._config.temperature
        )

    def write(self, image: Pillow.Image, path: Path, request: Request) -> None:
        bagel.write_png(image, path, omnigen2.describe(self._model, request, self._settings, image.size))
