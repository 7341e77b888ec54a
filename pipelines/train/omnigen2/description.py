"""What an OmniGen2 directory says without its weights: enough to plan what the model will be shown, and to check it."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image as Pillow

from pipelines.train.config import Omnigen2Settings
from pipelines.train.omnigen2.batch import Shown
from pipelines.train.omnigen2.chat import ChatSettings, ChatWords
from pipelines.train.omnigen2.shapes import MllmSizes, Omnigen2Randomness, Omnigen2Shapes
from sigma_data.errors import ConfigError
from sigma_data.planning.plan import PlanSettings
from sigma_data.sample import Turn
from sigma_data.sequence.layout import Piece
from sigma_model.config import VaeConfig
from sigma_model.model_files import read_json
from sigma_model.omnigen2.checkpoint import check_transformer, empty_transformer
from sigma_model.omnigen2.conditioning import load_image_processor
from sigma_model.omnigen2.config import CONFIG_FILE, TransformerConfig
from sigma_model.omnigen2.files import (
    MLLM,
    PROCESSOR,
    RELEASED,
    TRANSFORMER,
    Omnigen2Files,
    find_omnigen2,
    is_preset,
    preset_path,
    resolved,
    transformer_weights,
)
from sigma_model.omnigen2.vae_files import vae_config


class ImageProcessor:
    """Qwen2.5-VL's image processor; pickles for loader workers."""

    def __init__(self, processor: Any) -> None:
        self.processor = processor

    def patches(self, images: Sequence[Pillow.Image]) -> tuple[Shown, list[int]]:
        """Patches and grids of RGB images, and how many tokens each has."""
        if not images:
            return Shown(), []
        found: Mapping[str, Any] = self.processor(images=list(images), return_tensors="pt")
        grids = found["image_grid_thw"]
        merged = int(self.processor.merge_size) ** 2
        return Shown(found["pixel_values"], grids), [int(grid.prod()) // merged for grid in grids]


@dataclass(frozen=True)
class Omnigen2Description:
    """A model's directory. `trained`: there are weights; a preset's are drawn."""

    directory: Path
    files: Omnigen2Files
    config: TransformerConfig
    vae: VaeConfig
    tokenizer: ChatWords
    geometry: Omnigen2Shapes
    processor: ImageProcessor
    trained: bool
    openings: float = 0.0
    """How often captions lose their openings."""

    @property
    def mllm(self) -> Path:
        """The language model's directory."""
        return self.files.need("mllm")

    def weight_files(self) -> list[Path]:
        """All that a run starts from and does not hold itself: transformer and language model."""
        if not self.trained:
            return []
        return [*transformer_weights(self.files.transformer), *sorted(self.mllm.glob("*.safetensors"))]

    def outline(self, turns: Sequence[Turn], images: Collection[int]) -> Sequence[Piece]:
        """The content of a sample in order."""
        return self.tokenizer.outline(turns, images)

    def recipe(self, settings: PlanSettings) -> Omnigen2Randomness:
        """The random choices of samples."""
        return Omnigen2Randomness(settings.seed, settings.dropout, self.openings)


def describe_omnigen2(where: str, settings: Omnigen2Settings, *, base: str | None = None) -> Omnigen2Description:
    """Read the JSON files of a directory or preset, and the headers of its weights.

    Raises ConfigError for parts that are missing or do not belong together.
    """
    directory = Path(where)
    files = find_omnigen2(directory, base=None if base is None else Path(base))
    mllm, processor, vae_directory = (files.need(part) for part in ("mllm", "processor", "vae"))
    config = TransformerConfig.from_file(files.transformer / CONFIG_FILE)
    trained = not is_preset(directory)
    if trained:
        check_transformer(files.transformer, empty_transformer(config))
    vae = vae_config(vae_directory)
    if vae.z_channels != config.in_channels:
        raise ConfigError(
            f"{vae_directory}: makes {vae.z_channels} channels, and the transformer takes {config.in_channels}: "
            "use the autoencoder that belongs to it"
        )
    width = _width(mllm)
    if width != config.text_feat_dim:
        raise ConfigError(
            f"{mllm}: its states are {width} wide, and the transformer takes {config.text_feat_dim}: use the language "
            "model that belongs to it"
        )
    return _described(resolved(directory), files, processor, config, vae, settings, trained=trained)


def released_omnigen2(settings: Omnigen2Settings) -> Omnigen2Description:
    """OmniGen2 in its released sizes and without its files: enough for what a run takes, and for nothing else.

    Its processor is that of the preset `omnigen2-tiny`.
    """
    directory, processor = preset_path(RELEASED), preset_path("omnigen2-tiny") / PROCESSOR
    files = Omnigen2Files(directory / TRANSFORMER, directory / MLLM, processor, None, None)
    return _described(directory, files, processor, TransformerConfig(), VaeConfig(), settings, trained=True)


def _described(
    directory: Path,
    files: Omnigen2Files,
    processor: Path,
    config: TransformerConfig,
    vae: VaeConfig,
    settings: Omnigen2Settings,
    *,
    trained: bool,
) -> Omnigen2Description:
    images = ImageProcessor(load_image_processor(processor))
    return Omnigen2Description(
        directory=directory,
        files=files,
        config=config,
        vae=vae,
        tokenizer=ChatWords(processor, ChatSettings(settings.route, settings.text_tokens, settings.attribute_tokens)),
        geometry=Omnigen2Shapes.of(
            config,
            downsample=vae.downsample,
            mllm=MllmSizes.of(images.processor),
            route=settings.route,
            text_tokens=settings.text_tokens,
            max_pixels=settings.max_pixels,
        ),
        processor=images,
        trained=trained,
        openings=settings.drop_openings,
    )


def _width(mllm: Path) -> int:
    """Width of the language model's states, as its `config.json`, flat or nested, says. Raises ConfigError."""
    values = read_json(mllm / CONFIG_FILE)
    found = values.get("hidden_size", (values.get("text_config") or {}).get("hidden_size"))
    if not isinstance(found, int):
        raise ConfigError(f"{mllm / CONFIG_FILE}: says no hidden_size: it should be that of a Qwen2.5-VL")
    return found
