"""Settings of `sigma app`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field

from sigma_data.settings_base import StrictModel
from sigma_data.storage.path_settings import LocalPath, ModelPath
from sigma_model.dtypes import DType, Quantization

PORT = 7860
MAX_IMAGES = 6
MAX_IMAGE_BYTES = 32 * 2**20
"""Of an uploaded file that is taken."""
MAX_UPLOAD_BYTES = 16 * MAX_IMAGE_BYTES
"""Of an uploaded file that is looked at: a larger one ends the upload with all others that it came with."""
WAITING = 40
"""Requests that may wait; one more is refused."""


class AppConfig(StrictModel):
    """Which models are served, where, and where results are kept."""

    models: tuple[ModelPath, ...] = ("tiny-base",)
    """Directories in the released layout, or presets; each stays loaded once it was asked."""
    out: LocalPath = Path("sigma-app")
    """The gallery: a folder a result, with everything it was made from."""
    host: str = "127.0.0.1"
    """Address to listen on; any other than a loopback address lets others on the network in."""
    port: Annotated[int, Field(ge=0, le=65535)] = PORT
    """Port; 0 takes a free one."""
    base: ModelPath | None = None
    """Directory of files that a model's lacks."""
    device: str = "auto"
    dtype: DType = DType.AUTO
    device_map: str | None = None
    quantize: Quantization | None = None
    adapter: LocalPath | None = None
    """A LoRA adapter in peft's files, or OmniGen2's LoRA file; it is merged into each model."""

    def loading(self) -> dict[str, object]:
        """What says how a model is loaded, where it is not as by default; names of `GenerateConfig`."""
        names = ("base", "device", "dtype", "device_map", "quantize", "adapter")
        fields = type(self).model_fields
        return {name: getattr(self, name) for name in names if getattr(self, name) != fields[name].default}
