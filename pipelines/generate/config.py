"""Settings of `sigma generate`."""

from __future__ import annotations

from pathlib import Path

from pipelines.common.inference_config import EMBEDDED, InferenceConfig
from sigma_data.storage.path_settings import LocalPath, ModelPath


class GenerateConfig(InferenceConfig):
    """What to generate, from what, and where to write it."""

    prompt: str
    images: tuple[LocalPath, ...] = ()
    """References: the first is <image_1>, and so on."""
    out: LocalPath = Path("out.png")
    model: ModelPath = EMBEDDED
    count: int = 1
    """Images to make, with seeds counting up."""
    text: bool = False
    """Answer with text instead of an image."""
    chat: bool = False
    """OmniGen2: answer with text, or with an image where the model says `<|img|>`; images go both ways to it."""
