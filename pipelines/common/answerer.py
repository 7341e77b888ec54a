"""A loaded model of either backbone, as `sigma generate`, `sigma eval` and `sigma app` ask it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from PIL import Image as Pillow

from pipelines.common.caveats import caveat_of
from pipelines.common.inference_config import InferenceConfig
from pipelines.common.omnigen2_settings import omnigen2_settings, refuse_omnigen2_settings
from pipelines.common.weights_progress import size_of, weights_progress
from sigma_data.errors import ConfigError
from sigma_data.sequence.layout import Geometry
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_model.loading import LoadedModel, describe_model
from sigma_model.omnigen2 import generate as omnigen2
from sigma_model.omnigen2.chat import CHAT_TOKENS, Reply, chat
from sigma_model.omnigen2.files import is_omnigen2
from sigma_model.omnigen2.loading import LoadedOmnigen2, load_omnigen2
from sigma_model.omnigen2.settings import Omnigen2Generation
from sigma_model.sampling import generate as bagel
from sigma_model.sampling.generate import Preview, Request
from sigma_model.sampling.settings import MAX_TOKENS, TEMPERATURE, SamplingSettings

Progress = Callable[[int, int], None]


def sees(model: str, base: str | None) -> bool:
    """Whether a model has a vision encoder; its weights are not read. Raises SigmaError."""
    return is_omnigen2(Path(model)) or describe_model(model, base=base).config.vision is not None


@dataclass(frozen=True)
class Answering:
    """How requests are answered. `settings` are for BAGEL's kind, `omnigen2` for the other; None is its default.

    `text`: with text instead of images, of so many tokens at most, at such a temperature.
    """

    settings: SamplingSettings = field(default_factory=SamplingSettings)
    omnigen2: Omnigen2Generation | None = None
    text: bool = False
    max_tokens: int = MAX_TOKENS
    temperature: float = TEMPERATURE


class Answerer(Protocol):
    """What answers requests; each method raises SigmaError for what cannot be answered. `steps`: of the sampler."""

    name: str
    trained: bool

    @property
    def steps(self) -> int:
        """Of the sampler, for an image."""

    @property
    def caveat(self) -> str:
        """As `caveat_of` says it of what is asked for."""

    def check(self, request: Request) -> None:
        """Refuse what cannot be answered, before anything is computed."""

    def images(
        self, requests: Sequence[Request], progress: Progress | None = None, preview: Preview | None = None
    ) -> Sequence[Pillow.Image]:
        """An image for each request; `progress(done, all)` and `preview` after each step of the sampler."""

    def texts(self, requests: Sequence[Request], progress: Progress | None = None) -> Sequence[str]:
        """A text for each request; `progress(done, most)` counts tokens where the model tells them."""

    def answers(self, requests: Sequence[Request]) -> Sequence[Pillow.Image | str]:
        """Texts or images, as `Answering.text` says."""

    def replies(self, requests: Sequence[Request]) -> Sequence[Reply]:
        """OmniGen2's chat: words or an image for each request, as the model chooses. Raises ConfigError for BAGEL."""

    def asked_otherwise(self, config: InferenceConfig, *, text: bool) -> Answerer:
        """The same weights under other settings of sampling. Raises SigmaError."""

    def write(self, image: Pillow.Image, path: Path, request: Request) -> None:
        """A PNG that says how it was made. Raises BuildError where the disk refuses."""


def answering_of(config: InferenceConfig, *, text: bool) -> Answering:
    """How a configuration answers. Raises ConfigError for values that make no sense, or not with its model."""
    own = omnigen2_settings(config) if config.omnigen2 else None
    if own is None:
        refuse_omnigen2_settings(config)
    settings = SamplingSettings() if own is not None else config.sampling
    return Answering(settings, own, text, config.max_tokens, config.temperature)


def load_answerer(config: InferenceConfig, *, text: bool, first: Request | None = None) -> Answerer:
    """The model of a configuration; `text` is what it will be asked for.

    `first` is refused before the weights are read where it cannot be answered. Raises SigmaError.
    """
    how = answering_of(config, text=text)
    return answerer_of(load_backbone(config, how, first), how)


def load_backbone(
    config: InferenceConfig, how: Answering | None = None, first: Request | None = None
) -> LoadedModel | LoadedOmnigen2:
    """The network, autoencoder and tokenizer of a configuration's model, of whichever backbone.

    `first`, asked as `how` says, is refused before the weights are read where it cannot be answered. Raises SigmaError.
    """
    text = how is not None and how.text
    if not config.omnigen2:

        def check(tokenizer: Tokenizer, geometry: Geometry) -> None:
            if first is not None:
                bagel.lay_out(first, tokenizer, geometry, answer=not text)

        with weights_progress("load", _weight_bytes(config)):
            return config.load(check)
    assert config.model is not None
    if first is not None and not text:
        omnigen2.check_request(first)
    with weights_progress("load", _weight_bytes(config)):
        return load_omnigen2(
            config.model,
            base=config.base,
            dtype=config.dtype,
            device=config.device,
            adapter=None if config.adapter is None else str(config.adapter),
        )


def _weight_bytes(config: InferenceConfig) -> int:
    """About how many bytes are read for a model; 0 where that is not known before it is loaded."""
    folder = Path(config.model or "")
    return size_of(folder.rglob("*.safetensors")) if folder.is_dir() else 0


def answerer_of(loaded: LoadedModel | LoadedOmnigen2, how: Answering) -> Answerer:
    """A loaded model, asked as `how` says."""
    return _Omnigen2(loaded, how) if isinstance(loaded, LoadedOmnigen2) else _Bagel(loaded, how)


class _Loaded(Answerer, Protocol):
    """What both backbones share: `_how` they are asked."""

    _how: Answering

    def answers(self, requests: Sequence[Request]) -> Sequence[Pillow.Image | str]:
        return self.texts(requests) if self._how.text else self.images(requests)

    def asked_otherwise(self, config: InferenceConfig, *, text: bool) -> Answerer:
        other = copy(self)
        other._how = answering_of(config, text=text)
        return other


class _Bagel(_Loaded):
    def __init__(self, model: LoadedModel, how: Answering) -> None:
        self._model, self._how = model, how
        self.name, self.trained = model.name, model.trained

    @property
    def steps(self) -> int:
        return self._how.settings.steps - 1

    @property
    def caveat(self) -> str:
        return caveat_of(trained=self.trained, sees=self._model.model.config.vision is not None, text=self._how.text)

    def check(self, request: Request) -> None:
        bagel.lay_out(request, self._model.tokenizer, self._model.geometry, answer=not self._how.text)

    def images(
        self, requests: Sequence[Request], progress: Progress | None = None, preview: Preview | None = None
    ) -> Sequence[Pillow.Image]:
        return bagel.generate_images(self._model, requests, self._how.settings, progress=progress, preview=preview)

    def texts(self, requests: Sequence[Request], progress: Progress | None = None) -> Sequence[str]:
        return bagel.generate_texts(
            self._model,
            requests,
            max_tokens=self._how.max_tokens,
            temperature=self._how.temperature,
            group_mask=self._how.settings.group_mask,
            progress=progress,
        )

    def replies(self, requests: Sequence[Request]) -> Sequence[Reply]:
        raise ConfigError(
            f"{self.name}: --chat is for OmniGen2 models alone: ask for an image, or for words with --text"
        )

    def write(self, image: Pillow.Image, path: Path, request: Request) -> None:
        bagel.write_image(image, path, self._model, request, self._how.settings)


class _Omnigen2(_Loaded):
    def __init__(self, model: LoadedOmnigen2, how: Answering) -> None:
        self._model, self._how = model, how
        self.name, self.trained = model.name, model.trained

    @property
    def _settings(self) -> Omnigen2Generation:
        return self._how.omnigen2 or Omnigen2Generation()

    @property
    def steps(self) -> int:
        return self._settings.sampling.steps

    @property
    def caveat(self) -> str:
        return caveat_of(trained=self.trained, sees=True, text=self._how.text)

    def check(self, request: Request) -> None:
        if not self._how.text:
            omnigen2.check_request(request)

    def images(
        self, requests: Sequence[Request], progress: Progress | None = None, preview: Preview | None = None
    ) -> Sequence[Pillow.Image]:
        return omnigen2.generate_images(self._model, requests, self._settings, progress=progress, preview=preview)

    def texts(self, requests: Sequence[Request], progress: Progress | None = None) -> Sequence[str]:
        return omnigen2.generate_texts(
            self._model, requests, max_tokens=self._how.max_tokens, temperature=self._how.temperature
        )

    def replies(self, requests: Sequence[Request]) -> Sequence[Reply]:
        most = min(self._how.max_tokens, CHAT_TOKENS)
        return chat(self._model, requests, self._settings, max_tokens=most, temperature=self._how.temperature)

    def write(self, image: Pillow.Image, path: Path, request: Request) -> None:
        bagel.write_png(image, path, omnigen2.describe(self._model, request, self._settings, image.size))
