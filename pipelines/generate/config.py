"""Settings of `sigma generate`."""

from __future__ import annotations

from pathlib import Path

from pipelines.common.inference_config import InferenceConfig
from sigma_data.storage.path_settings import LocalPath, ModelPath
from sigma_model.omnigen2.prompts import Route
from sigma_model.omnigen2.settings import Solver, StepCacheKind


class GenerateConfig(InferenceConfig):
    """What to generate, from what, and where to write it."""

    prompt: str
    images: tuple[LocalPath, ...] = ()
    """References: the first is <image_1>, and so on."""
    out: LocalPath = Path("out.png")
    model: ModelPath = "tiny"
    count: int = 1
    """Images to make, with seeds counting up."""
    text: bool = False
    """Answer with text instead of an image."""
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
