"""Limits of the checks, and the severity of a broken rule."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from sigma_data.images.decode import DEFAULT_MAX_PIXELS, PILLOW_MAX_PIXELS
from sigma_data.settings_base import StrictModel


class Severity(StrEnum):
    """ERROR sends the sample to quarantine, WARNING is noted in the manifest, OFF is not looked at."""

    ERROR = "error"
    WARNING = "warning"
    OFF = "off"


class Limits(StrictModel):
    """Limits of the checks."""

    max_pixels: int = Field(DEFAULT_MAX_PIXELS, ge=1, le=PILLOW_MAX_PIXELS)
    """Width x height a header may announce before the image counts as a decompression bomb."""
    min_side: int = Field(32, ge=1)
    """Shortest side in pixels."""
    max_aspect: float = Field(8.0, ge=1)
    """Longest side over shortest side."""
    max_references: int = Field(10, ge=1)
    """Reference images in a sample."""
    max_instruction: int = Field(8_000, ge=1)
    """Characters in an instruction or a response."""
    max_tokens: int = Field(30_000, ge=1)
    """Sequence length of a sample with all references as VAE latents and ViT patches."""
