"""Settings that `generate` and `eval` share: which model, where it runs, how it samples."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator, model_validator

from sigma_data.errors import ConfigError
from sigma_data.settings_base import StrictModel
from sigma_data.storage.path_settings import LocalPath, ModelPath
from sigma_model.config import PRESETS, preset_directory
from sigma_model.dtypes import DType, Quantization
from sigma_model.omnigen2.files import is_omnigen2
from sigma_model.omnigen2.prompts import Route
from sigma_model.omnigen2.settings import StepCacheKind
from sigma_model.sampling.settings import (
    MAX_TOKENS,
    TEMPERATURE,
    CacheMethod,
    Guidance,
    Rescale,
    SamplingSettings,
    Solver,
    StepCaching,
)
from sigma_model.sampling.tea_file import fitted

if TYPE_CHECKING:
    from sigma_data.sequence.layout import Geometry
    from sigma_data.sequence.tokenizer import Tokenizer
    from sigma_model.loading import LoadedModel

EMBEDDED = "tiny-base"
"""The model that answers where none is named."""
_DEFAULTS = SamplingSettings()
OF_TEXT = ("max_tokens", "temperature")
"""Settings of text answers alone."""
OF_IMAGES = (
    "size", "steps", "timestep_shift", "text_scale", "image_scale", "interval", "rescale", "rescale_min", "sampler",
    "cache", "cache_every", "cache_order", "cache_threshold", "guidance_threshold", "negative", "step_cache",
)  # fmt: skip
"""Settings of images alone."""


def parse_size(value: Any) -> Any:
    """'1024x768' -> (1024, 768); what is not text as it is. Raises ValueError."""
    if not isinstance(value, str):
        return value
    found = [part.strip() for part in re.split("[x×,]", value.lower())]
    sides = [int(side) for side in found if side.isdecimal() and len(side) < 10]
    if len(found) != 2 or len(sides) < 2 or not all(sides):
        raise ValueError("write WIDTHxHEIGHT in pixels, e.g. 1024x768")
    return sides[0], sides[1]


class InferenceConfig(StrictModel):
    """A model and how it answers."""

    model: ModelPath | None = None
    """A directory in the released layout, or a preset."""
    base: ModelPath | None = None
    """Directory of files that the model's lacks."""
    device: str = "auto"
    dtype: DType = DType.AUTO
    device_map: str | None = None
    quantize: Quantization | None = None
    understanding: bool = True
    """Whether references go to the vision encoder, too."""
    seed: int = 0
    size: Annotated[tuple[int, int] | None, BeforeValidator(parse_size)] = None
    """Width and height of the output, brought to the nearest that the model makes."""
    steps: int = _DEFAULTS.steps
    timestep_shift: float = _DEFAULTS.timestep_shift
    text_scale: float = _DEFAULTS.guidance.text
    image_scale: float = _DEFAULTS.guidance.image
    interval: tuple[float, float] = _DEFAULTS.guidance.interval
    rescale: Rescale = _DEFAULTS.guidance.rescale
    rescale_min: float = _DEFAULTS.guidance.rescale_min
    group_mask: bool = _DEFAULTS.group_mask
    sampler: Solver = _DEFAULTS.sampler
    """How steps are made; `heun` and `dpmpp` need fewer of them."""
    cache: CacheMethod = _DEFAULTS.cache.method
    """What stands for the network at some steps: `taylor`, `tea`, or none."""
    cache_every: int = _DEFAULTS.cache.every
    """With `taylor`, every so-manieth step is computed."""
    cache_order: int = _DEFAULTS.cache.order
    """Degree of the series between computed steps; 0 keeps the last velocity."""
    cache_threshold: float | None = None
    """With `tea`, estimated change that a step is computed after; null is the model's own, or 0.05."""
    guidance_threshold: float = _DEFAULTS.guidance_threshold
    """Leave out a guidance branch for some steps if its velocity differs by less than this share; 0 is never."""
    max_tokens: int = MAX_TOKENS
    """Longest text answer."""
    temperature: float = TEMPERATURE
    """Of a text answer; 0 is greedy."""

    negative: str | None = None
    """OmniGen2's negative prompt; by default empty, as in its library."""
    route: Route | None = None
    """Where OmniGen2's references go; by default `vae`, as in its training."""
    step_cache: StepCacheKind | None = None
    """What leaves OmniGen2's layers out of some steps as in its library; `cache` is the same for both backbones."""
    adapter: LocalPath | None = None
    """A LoRA adapter in peft's files, which is merged; of OmniGen2 also a file or a directory with
    `pytorch_lora_weights.safetensors`."""

    @model_validator(mode="before")
    @classmethod
    def _one_sampler(cls, given: Any) -> Any:
        """Files written before 0.2 may name OmniGen2's sampler `solver`, beside the other's `sampler`, euler then."""
        if not isinstance(given, dict) or "solver" not in given:
            return given
        kept = {name: value for name, value in given.items() if name != "solver"}
        if given["solver"] is None or kept.get("sampler", Solver.EULER) != Solver.EULER:
            return kept
        return kept | {"sampler": given["solver"]}

    @property
    def omnigen2(self) -> bool:
        """Whether the model is an OmniGen2, told by the files of its directory."""
        return self.model is not None and is_omnigen2(Path(self.model))

    @property
    def sampling(self) -> SamplingSettings:
        """How images are sampled. Raises ConfigError for values that make no sense."""
        guidance = Guidance(
            text=self.text_scale,
            image=self.image_scale,
            interval=self.interval,
            rescale=self.rescale,
            rescale_min=self.rescale_min,
        )
        settings = SamplingSettings(
            self.steps,
            self.timestep_shift,
            guidance,
            self.group_mask,
            sampler=self.sampler,
            cache=self.caching,
            guidance_threshold=self.guidance_threshold,
        )
        settings.check()
        return settings

    @property
    def caching(self) -> StepCaching:
        """How steps are left out, with what was fitted for the model. Raises ConfigError."""
        caching = StepCaching(self.cache, self.cache_every, self.cache_order)
        if self.cache is CacheMethod.TEA:
            named = [place for place in (self.model, self.base) if place is not None]
            caching = fitted(caching, [preset_directory(one) if one in PRESETS else Path(one) for one in named])
            if self.cache_threshold is not None:
                caching = replace(caching, threshold=self.cache_threshold)
        elif self.cache_threshold is not None:
            raise ConfigError("--cache-threshold belongs to --cache tea")
        for name, belongs in (("cache_every", self.cache is CacheMethod.TAYLOR), ("cache_order", self.cached)):
            if not belongs and getattr(self, name) != type(self).model_fields[name].default:
                option = f"--{name.replace('_', '-')}"
                raise ConfigError(
                    f"{option} belongs to --cache {'taylor' if name == 'cache_every' else 'taylor or tea'}"
                )
        return caching

    @property
    def cached(self) -> bool:
        """Whether steps are left out."""
        return self.cache is not CacheMethod.NONE

    def load(self, check: Callable[[Tokenizer, Geometry], None]) -> LoadedModel:
        """The model; `check` is called before its weights are read. Raises ConfigError."""
        from sigma_model.loading import load_for_inference

        if self.model is None:
            raise ConfigError("name a model with --model, a directory or a preset (tiny-base)")
        return load_for_inference(
            self.model,
            base=self.base,
            dtype=self.dtype,
            device=self.device,
            vision=self.understanding,
            device_map=self.device_map,
            quantization=self.quantize,
            adapter=self.adapter,
            check=check,
        )
