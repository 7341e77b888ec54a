"""Sizes of OmniGen2's transformer, read from `transformer/config.json`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from sigma_data.errors import ConfigError
from sigma_data.settings_base import StrictModel
from sigma_data.storage.files import dump_json, write_atomic
from sigma_model.model_files import read_json

CONFIG_FILE = "config.json"
CLASS_NAME = "OmniGen2Transformer2DModel"
MAX_REFERENCES = 5
"""Rows of the table of image indices."""

Positive = Annotated[int, Field(gt=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Axes = tuple[Positive, Positive, Positive]


class TransformerConfig(StrictModel):
    """The keys of `transformer/config.json`; the defaults are the released sizes."""

    patch_size: Positive = 2
    in_channels: Positive = 16
    out_channels: Positive | None = None
    hidden_size: Positive = 2520
    num_layers: Positive = 32
    num_refiner_layers: Annotated[int, Field(ge=0)] = 2
    """Layers of each of the three refiners."""
    num_attention_heads: Positive = 21
    num_kv_heads: Positive = 7
    multiple_of: Positive = 256
    ffn_dim_multiplier: PositiveFloat | None = None
    norm_eps: PositiveFloat = 1e-5
    axes_dim_rope: Axes = (40, 40, 40)
    axes_lens: Axes = (10000, 10000, 10000)
    """Positions on each axis: text and image number, row, column."""
    text_feat_dim: Positive = 2048
    timestep_scale: PositiveFloat = 1000.0
    sample_size: Positive | None = None
    """Side of the latents that the model is made for, diffusers' name for it; the release has none: 1024 pixels."""

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def inner_width(self) -> int:
        """Width inside the MLPs."""
        width = 4 * self.hidden_size
        if self.ffn_dim_multiplier is not None:
            width = int(self.ffn_dim_multiplier * width)
        return -(-width // self.multiple_of) * self.multiple_of

    @property
    def time_width(self) -> int:
        """Width of the time embedding."""
        return min(self.hidden_size, 1024)

    @property
    def features(self) -> int:
        """Numbers an image token: patch * patch * channels."""
        return self.patch_size**2 * self.in_channels

    @property
    def out_features(self) -> int:
        """Numbers of an image token's velocity."""
        return self.patch_size**2 * (self.out_channels or self.in_channels)

    @model_validator(mode="after")
    def _fits(self) -> TransformerConfig:
        if self.hidden_size % self.num_attention_heads or self.num_attention_heads % self.num_kv_heads:
            raise ValueError("heads must divide hidden_size, and num_kv_heads the heads")
        if any(width % 2 for width in self.axes_dim_rope) or sum(self.axes_dim_rope) != self.head_dim:
            raise ValueError(f"axes_dim_rope must be even and add up to the width of a head, {self.head_dim}")
        if self.out_channels not in (None, self.in_channels):
            raise ValueError("out_channels must be null or in_channels: the velocity has the latent's shape")
        return self

    @classmethod
    def from_file(cls, path: Path) -> TransformerConfig:
        """Read a `config.json`. Raises ConfigError naming the file and the key at fault."""
        return cls.from_values(read_json(path), path)

    @classmethod
    def from_values(cls, values: Mapping[str, Any], where: Path) -> TransformerConfig:
        """From the keys of a `config.json` that was read from `where`. Raises ConfigError."""
        said = values.get("_class_name", CLASS_NAME)
        if said != CLASS_NAME:
            raise ConfigError(f"{where}: describes a {said}, not a {CLASS_NAME}")
        try:
            return cls(**{name: value for name, value in values.items() if not name.startswith("_")})
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"{where}: does not fit OmniGen2's transformer: {key}: {first['msg']}") from None

    def write(self, directory: Path) -> None:
        """Write `config.json` as diffusers has it. Raises OSError."""
        values = self.model_dump(mode="json", exclude=None if self.sample_size else {"sample_size"})
        write_atomic(directory / CONFIG_FILE, dump_json({"_class_name": CLASS_NAME, **values}))
