"""Where the parts of an OmniGen2 model lie: the released directory, SGT-Gen2's, or a transformer alone.

The release also ships Python files beside the weights; nothing here runs them.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sigma_data.errors import ConfigError
from sigma_model.model_files import VAE_FILE, read_json
from sigma_model.omnigen2.config import CLASS_NAME, CONFIG_FILE

TRANSFORMER, MLLM, TEXT_ENCODER, PROCESSOR, VAE, SCHEDULER = (
    "transformer", "mllm", "text_encoder", "processor", "vae", "scheduler",
)  # fmt: skip
WEIGHTS = "diffusion_pytorch_model"
PIPELINE_FILE, PIPELINE_CLASS = "model_index.json", "OmniGen2Pipeline"
PRESETS = ("omnigen2-tiny",)
"""Models by name, without weights: those are drawn. Their autoencoder is that of the preset `tiny`."""

RELEASED = "omnigen2"
"""The folder of the released language model's `config.json`; the transformer's sizes are `TransformerConfig`'s own."""


def preset_path(name: str) -> Path:
    """The directory of a preset."""
    return Path(__file__).parents[1] / "presets" / name


def resolved(directory: Path) -> Path:
    """A directory, or that of the preset of this name."""
    return preset_path(str(directory)) if str(directory) in PRESETS and not directory.is_dir() else directory


def is_preset(directory: Path) -> bool:
    """Whether a directory, or a name, is that of a preset."""
    return resolved(directory).resolve() in [preset_path(name).resolve() for name in PRESETS]


@dataclass(frozen=True)
class Omnigen2Files:
    """The directories of the parts; None: not there."""

    transformer: Path
    mllm: Path | None
    processor: Path | None
    vae: Path | None
    scheduler: Path | None

    def need(self, part: str) -> Path:
        """The directory of a part. Raises ConfigError that says what is missing."""
        found: Path | None = getattr(self, part)
        if found is None:
            raise ConfigError(
                f"{self.transformer.parent}: has no {part}/: name OmniGen2's released directory as its base"
            )
        return found

    @property
    def dynamic_time_shift(self) -> bool:
        """Whether sampling times depend on the size, as `scheduler_config.json` says."""
        path = self.scheduler / "scheduler_config.json" if self.scheduler is not None else None
        return bool(read_json(path).get("dynamic_time_shift", True)) if path is not None and path.exists() else True


def is_omnigen2(directory: Path) -> bool:
    """Whether a directory holds an OmniGen2 transformer, as released, as SGT-Gen2, or alone, or names a preset."""
    return next(_transformers(resolved(directory)), None) is not None


def find_omnigen2(directory: Path, *, base: Path | None = None) -> Omnigen2Files:
    """The parts of a model: the transformer of `directory`, the rest from there or else from `base`.

    SGT-Gen2 keeps its transformer and a fine-tuned `text_encoder` one level down; the text encoder is used in place of
    `mllm`. Raises ConfigError where there is no transformer.
    """
    if is_preset(directory):
        directory, base = resolved(directory), preset_path("tiny")
    transformer = next(_transformers(directory), None)
    if transformer is None:
        raise ConfigError(f"{directory}: holds no {TRANSFORMER}/{CONFIG_FILE} of an {CLASS_NAME}")
    beside = [transformer.parent, *([transformer] if transformer == directory else [directory])]
    places = [place for place in dict.fromkeys((*beside, *([base] if base is not None else []))) if place.is_dir()]

    def part(*names: str) -> Path | None:
        candidates = (place / name for place in places for name in names)
        return next((one for one in candidates if (one / CONFIG_FILE).exists() or _holds(one, names[0])), None)

    return Omnigen2Files(
        transformer=transformer,
        mllm=part(TEXT_ENCODER, MLLM),
        processor=part(PROCESSOR, "mllm_processor"),
        vae=part(VAE) or next((place for place in places if (place / VAE_FILE).is_file()), None),
        scheduler=part(SCHEDULER),
    )


def transformer_weights(directory: Path) -> list[Path]:
    """The weight files in a transformer's directory: one, or the shards that an index names; empty: none.

    Raises ConfigError where shards are missing, or where several sets of weights lie there.
    """
    whole = directory / f"{WEIGHTS}.safetensors"
    if whole.exists():
        return [whole]
    indices = sorted(directory.glob(f"{WEIGHTS}*.index.json"))
    if len(indices) > 1:
        raise ConfigError(f"{directory}: holds {indices[0].name} and {indices[1].name}: leave one set of weights there")
    if indices:
        named = read_json(indices[0]).get("weight_map")
        if not isinstance(named, dict) or not all(isinstance(one, str) for one in named.values()):
            raise ConfigError(f"{indices[0]}: has no weight_map from tensors to files")
        parts = sorted(set(named.values()))
        for one in parts:
            if Path(one).name != one or not (directory / one).is_file():
                raise ConfigError(f"{indices[0]}: names {one!r}, which is not there: download it")
        return [directory / one for one in parts]
    found = sorted(directory.glob(f"{WEIGHTS}*.safetensors"))
    if len(found) > 1:
        raise ConfigError(f"{directory}: holds {len(found)} weight files and no index that says which belong together")
    return found


def _transformers(directory: Path) -> Iterator[Path]:
    """Directories of transformers, the nearest first."""
    down = directory / TRANSFORMER
    for place in (down, down / TRANSFORMER, directory, *_children(directory), *_children(down)):
        for one in dict.fromkeys((place, place / TRANSFORMER)):
            if _is_transformer(one):
                yield one


def _children(directory: Path) -> list[Path]:
    return sorted(child for child in directory.iterdir() if child.is_dir()) if directory.is_dir() else []


def _is_transformer(directory: Path) -> bool:
    try:
        config = json.loads((directory / CONFIG_FILE).read_text())
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and config.get("_class_name") == CLASS_NAME


def _holds(directory: Path, part: str) -> bool:
    """Whether a part that has no config.json is there."""
    files = {PROCESSOR: "tokenizer_config.json", SCHEDULER: "scheduler_config.json"}
    return part in files and (directory / files[part]).exists()
