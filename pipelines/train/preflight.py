"""What must hold before a run reads a single weight: a folder to write to, files that belong together."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from pipelines.train.config import TrainConfig
from sigma_data.corpus.archives import shard_fault
from sigma_data.errors import ConfigError, CorpusError
from sigma_data.planning.index import CorpusIndex
from sigma_data.storage.data_folder import data_folder
from sigma_data.text_format import counted
from sigma_model.config import PRESETS, VAE_FILE, ModelConfig, find_file, preset_directory, weight_files
from sigma_model.loading import ModelDescription
from sigma_model.model_files import no_weights
from sigma_model.vae import Vae


def check_out(out: Path) -> int:
    """Bytes that are free where the run will lie. Raises ConfigError where it cannot be written."""
    there = next(place for place in (out, *out.absolute().parents) if place.exists())
    if not there.is_dir():
        raise ConfigError(f"{there}: is a file, and the run would write a folder there: choose another `out`")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{there}: the run cannot write there: choose another `out`, or change who may")
    return shutil.disk_usage(there).free


def check_optimizer(config: TrainConfig, ranks: int) -> None:
    """Raises ConfigError where it cannot work with parameters that lie on several ranks."""
    if config.optimizer.kind == "muon" and ranks > 1:
        raise ConfigError(
            f"optimizer.kind muon needs each matrix whole, and {ranks} ranks would share them: train on one "
            "(--nproc 1), or with optimizer.kind=adamw"
        )


def check_autoencoder(description: ModelDescription, shape: ModelConfig) -> Path:
    """The VAE's file, by its header. Raises ConfigError where it does not fit the model."""
    path = find_file(VAE_FILE, *description.places)
    if shape.vae.z_channels != shape.latent.channels:
        raise ConfigError(
            f"{path}: makes {shape.vae.z_channels} channels, and the model takes {shape.latent.channels}: "
            "use the VAE that belongs to it"
        )
    Vae.load(path, shape.vae, device="meta")  # maps the file, and reads none of its numbers
    return path


def has_weights(config: TrainConfig, description: ModelDescription) -> bool:
    """Whether there are weights to start from; a preset may have none. Raises ConfigError where there must be some."""
    if weight_files(description.directory):
        return True
    if description.directory.parent != preset_directory(PRESETS[0]).parent:
        raise ConfigError(no_weights(description.directory))
    return False


def check_shards(index: CorpusIndex) -> tuple[int, int]:
    """How many shards, and their bytes. Raises CorpusError unless each is there with the size that was committed."""
    found = {location: stamp.partition(":")[0] for location, stamp in data_folder(index.uri).files(".tar")}
    committed = dict(zip(index.shards, index.shard_bytes, strict=True))
    missing = [name for name in committed if name not in found]
    other = [name for name, wanted in committed.items() if name in found and found[name] != str(wanted)]
    if missing or other:
        name = (missing or other)[0]
        fault = "is not there" if missing else f"has {int(found[name]):,} bytes, and {committed[name]:,} were committed"
        more = len(missing) + len(other) - 1
        if not missing and (local := data_folder(index.uri).local) and (what := shard_fault(local / name, index.uri)):
            fault = f"{fault}; {what}"
        others = f" ({counted(more, 'other shard')} besides)" if more else ""
        raise CorpusError(f"{index.uri}/{name}: {fault}{others}: copy the corpus there again, or build it anew")
    return len(committed), sum(committed.values())
