"""A checkpoint of an OmniGen2 run as a directory: as released, as SGT-Gen2's, or its LoRA file alone."""

from __future__ import annotations

import shutil
from enum import StrEnum
from pathlib import Path

import torch
from torch import nn

from pipelines.train.config import TrainConfig
from pipelines.train.omnigen2.build import choose_trainable, read_mllm, trains_mllm
from pipelines.train.omnigen2.description import Omnigen2Description
from pipelines.train.omnigen2.model import Omnigen2Model
from pipelines.train.omnigen2.token_rows import merge_attribute_rows
from sigma_data.errors import ConfigError
from sigma_data.storage.files import dump_json, write_atomic
from sigma_model.checkpoint_io import DTYPES
from sigma_model.model_files import stored_tensors
from sigma_model.omnigen2.checkpoint import SHARD_BYTES, export_transformer, init_transformer, load_transformer
from sigma_model.omnigen2.conditioning import save_mllm
from sigma_model.omnigen2.config import CONFIG_FILE
from sigma_model.omnigen2.files import (
    MLLM,
    PIPELINE_CLASS,
    PIPELINE_FILE,
    PROCESSOR,
    SCHEDULER,
    TEXT_ENCODER,
    TRANSFORMER,
    VAE,
    transformer_weights,
)
from sigma_model.omnigen2.lora import merge_adapter, save_adapter
from sigma_model.omnigen2.vae_files import export_vae, load_vae


class Layout(StrEnum):
    """How an OmniGen2 is laid out in its directory."""

    RELEASED = "released"
    """`transformer/`, `mllm/`, `processor/`, `vae/`, `scheduler/`: a whole model."""
    SGT = "sgt-gen2"
    """`transformer/transformer/` and, if trained, `transformer/text_encoder/`: what SGT-Gen2 releases. Everything else
    is taken from OmniGen2, named as base."""


def started_type(description: Omnigen2Description) -> torch.dtype:
    """The widest type among the transformer's starting weights; float32 where there are none."""
    if not description.trained:
        return torch.float32
    stored = [
        one for path in transformer_weights(description.files.transformer) for one in stored_tensors(path).values()
    ]
    return max((DTYPES.get(one.dtype, torch.float32) for one in stored), key=lambda kind: kind.itemsize)


def starting(config: TrainConfig, description: Omnigen2Description, dtype: torch.dtype) -> Omnigen2Model:
    """The model with the weights that the run started from, frozen and with adapters as in the run."""
    if description.trained:
        transformer = load_transformer(description.files.transformer, dtype=dtype)
    else:
        transformer = init_transformer(description.config, seed=config.model.seed, dtype=dtype)
    mllm = read_mllm(config, description, dtype=dtype) if trains_mllm(config) else None
    model = Omnigen2Model(transformer, mllm)
    choose_trainable(model, config, description)
    return model


def write_adapter(model: nn.Module, folder: Path, *, dtype: torch.dtype | None, base: str) -> None:
    """The LoRA files alone, of diffusers and of peft. Raises ConfigError where the run trains more than it holds."""
    assert isinstance(model, Omnigen2Model)
    if model.mllm is not None:
        raise ConfigError(
            "--adapter: OmniGen2's LoRA file holds the transformer's adapters alone, and the run trains rows of "
            "attribute tokens: export the whole model"
        )
    save_adapter(model.transformer, folder, dtype=dtype, base=base)


def write_model(
    model: nn.Module,
    config: TrainConfig,
    description: Omnigen2Description,
    folder: Path,
    *,
    dtype: torch.dtype,
    layout: Layout,
    shard_bytes: int | None = None,
) -> None:
    """All parts of a model; adapters are merged, and so are rows of attribute tokens. Raises OSError."""
    assert isinstance(model, Omnigen2Model)
    merge_adapter(model.transformer)
    if model.mllm is not None:
        merge_attribute_rows(model.mllm)
    root = folder / TRANSFORMER if layout is Layout.SGT else folder
    export_transformer(model.transformer, root / TRANSFORMER, dtype=dtype, shard_bytes=shard_bytes or SHARD_BYTES)
    mllm = root / (TEXT_ENCODER if layout is Layout.SGT else MLLM)
    if model.mllm is not None:
        save_mllm(model.mllm.to(dtype), mllm)
    elif layout is Layout.RELEASED:
        _language_model(config, description, mllm)
    if layout is Layout.SGT:
        if config.omnigen2.attribute_tokens:
            _processor(config, description, root / PROCESSOR)
        return
    _processor(config, description, root / PROCESSOR)
    vae = description.files.need("vae")
    if (vae / CONFIG_FILE).is_file():
        _copied(vae, root / VAE)
    else:
        export_vae(load_vae(vae), root / VAE)
    if description.files.scheduler is not None:
        _copied(description.files.scheduler, root / SCHEDULER)
    write_atomic(root / PIPELINE_FILE, dump_json({"_class_name": PIPELINE_CLASS}))


def _language_model(config: TrainConfig, description: Omnigen2Description, folder: Path) -> None:
    """The language model as the run started from it."""
    if description.trained:
        _copied(description.mllm, folder)
    else:
        save_mllm(read_mllm(config, description, dtype=torch.float32), folder)


def _processor(config: TrainConfig, description: Omnigen2Description, folder: Path) -> None:
    if not config.omnigen2.attribute_tokens:
        _copied(description.files.need("processor"), folder)
        return
    folder.mkdir(parents=True)
    description.processor.processor.save_pretrained(folder)
    description.tokenizer.tokenizer.save_pretrained(folder)


def _copied(source: Path, folder: Path) -> None:
    """A part's files, but for Python files, which the release ships and nothing here runs."""
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.iterdir()):
        if path.is_file() and path.suffix != ".py":
            shutil.copyfile(path, folder / path.name)
