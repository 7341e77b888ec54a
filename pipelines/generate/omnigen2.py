"""`sigma generate` with an OmniGen2 directory: settings that mean something there, and OmniGen2's own defaults."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.common.progress import ProgressBar
from pipelines.generate.config import GenerateConfig
from sigma_data.errors import ConfigError
from sigma_model.omnigen2.settings import Omnigen2Generation, Omnigen2Sampling

if TYPE_CHECKING:
    from sigma_model.sampling.generate import Request

logger = logging.getLogger(__name__)

_BAGEL_ONLY = ("timestep_shift", "rescale", "rescale_min", "group_mask", "understanding", "device_map", "quantize")
_OMNIGEN2_ONLY = ("negative", "route", "solver", "step_cache", "adapter")
_SAMPLING = ("steps", "text_scale", "image_scale", "interval", "solver")


def omnigen2_settings(config: GenerateConfig) -> Omnigen2Generation:
    """What was set, over OmniGen2's defaults. Raises ConfigError for what has no meaning with OmniGen2."""
    refuse(config, _BAGEL_ONLY, "has no meaning with an OmniGen2 model: leave it out")
    given = {name: getattr(config, name) for name in _SAMPLING if name in config.model_fields_set}
    sampling = replace(Omnigen2Sampling(cache=config.step_cache), **given)
    sampling.check()
    settings = Omnigen2Generation(sampling, config.negative or "")
    return settings if config.route is None else replace(settings, route=config.route)


def refuse_omnigen2_settings(config: GenerateConfig) -> None:
    """Raise ConfigError where another model is asked for what OmniGen2 alone has."""
    refuse(config, _OMNIGEN2_ONLY, "is for OmniGen2 models alone: leave it out")


def refuse(config: GenerateConfig, names: Sequence[str], reason: str) -> None:
    """Raise ConfigError where one of these settings was given."""
    for name in names:
        if name in config.model_fields_set and getattr(config, name) is not None:
            raise ConfigError(f"--{name.replace('_', '-')} {reason}")


def run_omnigen2(config: GenerateConfig, requests: Sequence[Request], files: Sequence[Path]) -> dict[str, Any]:
    """Generate; returns the files written, or the texts. Raises SigmaError."""
    from sigma_model.omnigen2.generate import check_request, describe, generate_images, generate_texts
    from sigma_model.omnigen2.loading import load_omnigen2
    from sigma_model.sampling.generate import write_png

    settings = omnigen2_settings(config)
    check_request(requests[0])  # they differ in their seeds alone
    model = load_omnigen2(
        config.model,
        base=config.base,
        dtype=config.dtype,
        device=config.device,
        adapter=None if config.adapter is None else str(config.adapter),
    )
    if config.text:
        texts = generate_texts(model, requests, max_tokens=config.max_tokens, temperature=config.temperature)
        return {"texts": texts, "trained": model.trained}
    with ProgressBar("sample", settings.sampling.steps, "steps") as progress:
        images = generate_images(model, requests, settings, progress=lambda _done, _all: progress.add())
    for image, path, request in zip(images, files, requests, strict=True):
        write_png(image, path, describe(model, request, settings, image.size))
    return {"files": [str(path) for path in files], "size": list(images[0].size), "trained": model.trained}
