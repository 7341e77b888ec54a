"""Settings that `generate` and `eval` share: which model, where it runs, how it samples."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import BeforeValidator

from sigma_data.errors import ConfigError
from sigma_data.settings_base import StrictModel
from sigma_data.storage.path_settings import LocalPath, ModelPath
from sigma_model.dtypes import DType, Quantization
from sigma_model.omnigen2.files import is_omnigen2
from sigma_model.omnigen2.prompts import Route
from sigma_model.omnigen2.settings import Solver, StepCacheKind
from sigma_model.sampling.settings import MAX_TOKENS, TEMPERATURE, Guidance, Rescale, SamplingSettings

if TYPE_CHECKING:
    from sigma_data.sequence.layout import Geometry
    from sigma_data.sequence.tokenizer import Tokenizer
    from sigma_model.loading import LoadedModel

_DEFAULTS = SamplingSettings()


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
    max_tokens: int = MAX_TOKENS
    """Longest text answer."""
    temperature: float = TEMPERATURE
    """Of a text answer; 0 is greedy."""

    negative: str | None = None
    """OmniGen2's negative prompt; by default empty, as in its library."""
    route: Route | None = None
    """Where OmniGen2's references go; by default `vae`, as in its training."""
    solver: Solver | None = None
    """OmniGen2's sampler; by default `euler`."""
    step_cache: StepCacheKind | None = None
    """What leaves OmniGen2's layers out of some steps; by default nothing."""
    adapter: LocalPath | None = None
    """OmniGen2's LoRA file, or a directory with `pytorch_lora_weights.safetensors`; it is merged."""

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
        settings = SamplingSettings(self.steps, self.timestep_shift, guidance, self.group_mask)
        settings.check()
        return settings

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
            check=check,
        )
