"""Settings of generating and evaluating that one backbone alone has, and OmniGen2's own defaults."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from pipelines.common.inference_config import InferenceConfig
from sigma_data.errors import ConfigError
from sigma_model.omnigen2.settings import Omnigen2Generation, Omnigen2Sampling

AnyConfig = TypeVar("AnyConfig", bound=InferenceConfig)

_BAGEL_ONLY = ("timestep_shift", "rescale", "rescale_min", "group_mask", "understanding", "device_map", "quantize")
_OMNIGEN2_ONLY = ("negative", "route", "step_cache")
_SAMPLING = ("steps", "text_scale", "image_scale", "interval", "sampler")


def omnigen2_settings(config: InferenceConfig) -> Omnigen2Generation:
    """What was set, over OmniGen2's defaults. Raises ConfigError for what has no meaning with OmniGen2."""
    refuse(config, _BAGEL_ONLY, "has no meaning with an OmniGen2 model: leave it out")
    given = {name: getattr(config, name) for name in _SAMPLING if name in config.model_fields_set}
    plain = Omnigen2Sampling(
        cache=config.step_cache, reuse=config.caching, guidance_threshold=config.guidance_threshold
    )
    sampling = replace(plain, **given)
    sampling.check()
    settings = Omnigen2Generation(sampling, config.negative or "")
    return settings if config.route is None else replace(settings, route=config.route)


def with_own_defaults(config: AnyConfig) -> AnyConfig:
    """The settings as they would be used, to be printed: with an OmniGen2 model, its defaults instead of BAGEL's."""
    if not config.omnigen2:
        return config
    found = omnigen2_settings(config)
    values = {name: getattr(found.sampling, name) for name in _SAMPLING}
    return config.model_copy(update={**values, "negative": found.negative, "route": found.route})


def refuse_omnigen2_settings(config: InferenceConfig) -> None:
    """Raise ConfigError where another model is asked for what OmniGen2 alone has."""
    refuse(config, _OMNIGEN2_ONLY, "is for OmniGen2 models alone: leave it out")


def refuse(config: InferenceConfig, names: Sequence[str], reason: str) -> None:
    """Raise ConfigError where one of these settings is not as it is by default."""
    for name in names:
        if getattr(config, name) != type(config).model_fields[name].default:
            raise ConfigError(f"--{name.replace('_', '-')} {reason}")
