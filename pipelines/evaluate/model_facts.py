"""What an evaluation must know of a model before it is loaded, whichever backbone it is of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch

from pipelines.evaluate import run_folder
from sigma_data.errors import ConfigError
from sigma_data.sequence.layout import Kind
from sigma_model.config import weight_files
from sigma_model.dtypes import DType
from sigma_model.loading import choose_dtype, describe_model
from sigma_model.omnigen2.files import find_omnigen2, is_omnigen2, is_preset, resolved, transformer_weights
from sigma_model.omnigen2.loading import choose_omnigen2_dtype

Size = tuple[int, int]


@dataclass(frozen=True)
class ModelFacts:
    """`digest`: of all its files. `max_tokens`: question and answer. `fit`: the size it makes for one asked for."""

    directory: Path
    digest: str
    trained: bool
    max_tokens: int
    fit: Callable[[Size], Size]
    dtype: Callable[[DType, str], torch.dtype]
    """What it computes in, of what is asked for and a device."""


def model_facts(model: str, *, base: str | None, adapter: Path | None = None) -> ModelFacts:
    """Read a directory's JSON files and digests. Raises ConfigError."""
    if is_omnigen2(Path(model)):
        return _of_omnigen2(Path(model), None if base is None else Path(base), adapter)
    description = describe_model(model, base=base)
    digest = run_folder.digest_of_model(description)
    return ModelFacts(
        directory=description.directory,
        digest=digest if adapter is None else run_folder.digest_of_files(_files_of(adapter), digest),
        trained=bool(weight_files(description.directory)),
        max_tokens=description.geometry.max_tokens,
        fit=lambda size: description.geometry.fit(Kind.TARGET, size)[0],
        dtype=lambda dtype, device: choose_dtype(dtype, description.config, device),
    )


def _files_of(adapter: Path) -> list[Path]:
    """The files of an adapter. Raises ConfigError where there are none."""
    if not adapter.exists():
        raise ConfigError(f"--adapter {adapter}: is not there")
    return sorted(path for path in adapter.iterdir() if path.is_file()) if adapter.is_dir() else [adapter]


def _of_omnigen2(directory: Path, base: Path | None, adapter: Path | None) -> ModelFacts:
    files = find_omnigen2(directory, base=base)
    folders = [files.need(part) for part in ("mllm", "processor", "vae")]
    loose = sorted(path for folder in folders for path in folder.iterdir() if path.suffix in (".safetensors", ".json"))
    adapters = [] if adapter is None else _files_of(adapter)
    config = files.transformer / "config.json"
    return ModelFacts(
        directory=resolved(directory),
        digest=run_folder.digest_of_files([*transformer_weights(files.transformer), config, *loose, *adapters]),
        trained=not is_preset(directory),
        max_tokens=_ANSWERS,
        fit=lambda size: size,
        dtype=lambda dtype, device: choose_omnigen2_dtype(dtype, config, device),
    )


_ANSWERS = 32768
"""Tokens of a question with its answer that Qwen2.5-VL is made for."""
