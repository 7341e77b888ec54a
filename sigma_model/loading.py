"""A model directory as a whole: network, autoencoder, tokenizer, and how it lays out samples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from sigma_data.errors import ConfigError
from sigma_data.planning.plan import PlanSettings, SampleRandomness
from sigma_data.sample import Turn
from sigma_data.sequence.layout import Geometry, Piece, outline
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_data.sequence.tokenizer_reader import TOKENIZER_FILES
from sigma_model.checkpoint_io import init_model, load_model
from sigma_model.config import PRESETS, VAE_FILE, ModelConfig, find_file, preset_directory, weight_files
from sigma_model.dtypes import DType as DType
from sigma_model.dtypes import Quantization
from sigma_model.model import SigmaModel, geometry
from sigma_model.model_files import no_weights
from sigma_model.peft_adapter import ADAPTER_CONFIG as ADAPTER_CONFIG
from sigma_model.peft_adapter import is_peft, merge_peft, peft_settings
from sigma_model.placement import load_placed, parse_places
from sigma_model.quantization import converter, load_quantized
from sigma_model.run_directory import refuse_run
from sigma_model.vae import Vae

_LARGE = 2_000_000_000
"""Parameters above which a CPU, too, loads bfloat16: the memory matters more."""


@dataclass(frozen=True)
class LoadedModel:
    """All that one needs to run a model.

    `trained` is False where the network is random; `quantization` says what the layers' weights were brought to.
    """

    name: str
    model: SigmaModel
    vae: Vae
    tokenizer: Tokenizer
    geometry: Geometry
    trained: bool
    quantization: Quantization | None = None

    @property
    def numbers(self) -> str:
        """What it computes in, and what its layers' weights are stored in where that is another."""
        return shown_dtype(self.model.dtype, self.quantization)

    @property
    def device(self) -> torch.device:
        """Where the network lies."""
        return self.model.device


@dataclass(frozen=True)
class ModelDescription:
    """What a model directory says without its weights: enough to plan what the model will be shown.

    `places` are the directories where its files may lie, the first wins; `words` is the one of the tokenizer.
    """

    directory: Path
    places: tuple[Path, ...]
    words: Path
    config: ModelConfig
    tokenizer: Tokenizer
    geometry: Geometry

    def outline(self, turns: Sequence[Turn], images: Collection[int]) -> Iterator[Piece]:
        """The content of a sample in order."""
        return outline(turns, images)

    def recipe(self, settings: PlanSettings) -> SampleRandomness:
        """The random choices of samples."""
        return SampleRandomness(settings.seed, settings.dropout)


def describe_model(
    where: str, *, base: str | None = None, vision: bool = True, max_latent_size: int | None = None
) -> ModelDescription:
    """Read the configuration and the tokenizer of a preset, or of a directory in the released layout.

    Files that the directory lacks are taken from `base`. Without `vision` images are latents alone.
    `max_latent_size` is a larger latent grid than the model has. Raises ConfigError.
    """
    directory = _directory(where)
    refuse_run(directory)
    if is_peft(directory):
        raise ConfigError(
            f"{directory}: is a LoRA adapter and no model: name its base with --model and it with --adapter, or merge "
            f"the two with `sigma export {directory} --out MODEL`"
        )
    places = (directory,) if base is None else (directory, _directory(base))
    config = ModelConfig.from_directory(directory, base=places[-1])
    if max_latent_size is not None:
        config = config.with_grid(max_latent_size)
    words = next((place for place in places if any((place / name).exists() for name in TOKENIZER_FILES)), places[-1])
    return ModelDescription(
        directory=directory,
        places=places,
        words=words,
        config=config,
        tokenizer=Tokenizer.load(words, vocab_size=config.language.vocab_size, rows=config.rows),
        geometry=geometry(config if vision else config.model_copy(update={"vision": None})),
    )


def load_for_inference(
    where: str,
    *,
    base: str | None = None,
    dtype: DType = DType.AUTO,
    device: str = "auto",
    seed: int = 0,
    vision: bool = True,
    device_map: str | None = None,
    quantization: Quantization | None = None,
    adapter: Path | None = None,
    check: Callable[[Tokenizer, Geometry], None] = lambda _encoder, _geometry: None,
) -> LoadedModel:
    """Load a preset by name, or a directory in the released layout.

    Files that the directory lacks (SIGMA's hold weights alone) are taken from `base`, another one, but
    for the weights. A preset without weights gives a random network, drawn from `seed`, to be trained.
    Without `vision` the model generates only, and images enter it as latents alone. `check` is called
    before the network's weights are read, which may take minutes. `device_map` says where the layers lie, as
    `parse_places` reads it, and `quantization` what their weights become; neither is for training. An `adapter` in
    peft's files is merged (`merge_peft`). Raises ConfigError.
    """
    if adapter is not None and (device_map is not None or quantization is not None):
        option = "--device-map" if quantization is None else "--quantize"
        raise ConfigError(f"--adapter and {option} exclude each other: merge it first, `sigma export {adapter}`")
    if adapter is not None:
        peft_settings(adapter)  # what is no adapter is refused before weights are read
    blueprint = describe_model(where, base=base, vision=vision)
    config, directory = blueprint.config, blueprint.directory
    vae = find_file(VAE_FILE, *blueprint.places)
    if not vae.exists():
        raise ConfigError(f"{vae.parent}: has no {VAE_FILE}: put the autoencoder's released file there")
    if config.vae.z_channels != config.latent.channels:
        raise ConfigError(
            f"{vae}: makes {config.vae.z_channels} channels, and the weights of {directory} take "
            f"{config.latent.channels}: use the autoencoder that belongs to them"
        )
    place = choose_device(device)
    trained = bool(weight_files(directory))
    if not trained and where not in PRESETS:
        raise ConfigError(no_weights(directory))
    numbers = choose_dtype(dtype, config, place)
    layers = _layers(where, device_map, quantization, trained, config, numbers, place)
    check(blueprint.tokenizer, blueprint.geometry)
    autoencoder = Vae.load(vae, config.vae, device=place)
    if layers is not None:
        model = load_placed(directory, layers, config=config, dtype=numbers, device=place)
    elif quantization is not None:
        model = load_quantized(directory, quantization, config=config, dtype=numbers, device=place)
    elif trained:
        model = load_model(directory, dtype=numbers, device=place, config=config)
    else:
        model = init_model(config, seed=seed, dtype=numbers, device=place)
    if adapter is not None:
        merge_peft(model, adapter)
    return LoadedModel(
        name=directory.resolve().name + ("" if adapter is None else f"+{adapter.resolve().name}"),
        model=model.eval().requires_grad_(False),
        vae=autoencoder,
        tokenizer=blueprint.tokenizer,
        geometry=blueprint.geometry,
        trained=trained,
        quantization=quantization,
    )


def _layers(
    where: str,
    device_map: str | None,
    quantization: Quantization | None,
    trained: bool,
    config: ModelConfig,
    dtype: torch.dtype,
    device: str,
) -> list[str] | None:
    """A place for each layer; None: all with the rest. Raises ConfigError for what cannot be, before work is done."""
    if not trained and (device_map is not None or quantization is not None):
        option = "--quantize" if device_map is None else "--device-map"
        raise ConfigError(f"{option}: {where} has no weights to spread or to quantise: it is random, and to be trained")
    if quantization is not None:
        if device_map is not None:
            raise ConfigError("--quantize and --device-map exclude each other: quantised layers lie on one device")
        converter(quantization)
    return None if device_map is None else parse_places(device_map, config=config, dtype=dtype, device=device)


def _directory(where: str) -> Path:
    """A directory, or that of a preset."""
    return preset_directory(where) if where in PRESETS and not Path(where).is_dir() else Path(where)


def shown_dtype(dtype: torch.dtype | str, quantization: Quantization | None) -> str:
    """As `bfloat16`, or `bfloat16, nf4`."""
    name = str(dtype).removeprefix("torch.")
    return name if quantization is None else f"{name}, {quantization}"


def choose_device(name: str) -> str:
    """`auto` is the GPU where there is one. Raises ConfigError for a device that is not there."""
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        if name == "meta":
            raise RuntimeError("it computes nothing")
        torch.zeros(1, device=name)
    except Exception:  # every back end has its own
        raise ConfigError(f"--device {name}: PyTorch finds no such device here; use cpu, or auto") from None
    return name


def choose_dtype(dtype: DType, config: ModelConfig, device: str) -> torch.dtype:
    """What a model of this size computes in on this device; `auto` is decided here."""
    if dtype is not DType.AUTO:
        return dtype.torch
    with torch.device("meta"):
        size = sum(parameter.numel() for parameter in SigmaModel(config).parameters())
    return torch.bfloat16 if device != "cpu" or size > _LARGE else torch.float32
