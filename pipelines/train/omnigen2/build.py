"""An OmniGen2 for training: transformer spread over ranks, language model beside it or with it, autoencoder whole."""

from __future__ import annotations

import hashlib
from typing import Any

import torch
from torch import nn

from pipelines.train.config import LoraSettings, TrainConfig
from pipelines.train.distributed.parallelize import parallelize
from pipelines.train.distributed.process_group import ProcessGroup
from pipelines.train.freeze import matching_names
from pipelines.train.lora import fill_parameter
from pipelines.train.omnigen2.backbone import Omnigen2Backbone
from pipelines.train.omnigen2.cost import Rates, rates_of
from pipelines.train.omnigen2.dataset import Omnigen2Dataset
from pipelines.train.omnigen2.description import Omnigen2Description
from pipelines.train.omnigen2.model import Omnigen2Model
from pipelines.train.omnigen2.token_rows import add_attribute_rows, init_attribute_rows
from pipelines.train.omnigen2.weights import init_transformer_sharded, load_transformer_sharded
from sigma_data.errors import ConfigError
from sigma_data.planning.plan import Planner
from sigma_model.dtypes import DType
from sigma_model.model_files import read_json
from sigma_model.omnigen2.checkpoint import empty_transformer
from sigma_model.omnigen2.conditioning import Conditioner, init_mllm, load_mllm
from sigma_model.omnigen2.config import CONFIG_FILE
from sigma_model.omnigen2.lora import TARGETS, adapted_layers, add_adapter
from sigma_model.omnigen2.vae_files import load_vae


def build_backbone(
    config: TrainConfig, description: Omnigen2Description, group: ProcessGroup, *, dtype: torch.dtype
) -> Omnigen2Backbone:
    """The model of a run with its starting weights; `dtype` is what layers compute in. Raises ConfigError.

    A language model that is trained is read whole by every rank, then shared out; one that is not stays whole on each.
    """
    master = torch.float32 if config.lora is not None else DType(config.model.master).torch
    mllm = read_mllm(config, description, dtype=master if trains_mllm(config) else dtype)
    model = Omnigen2Model(empty_transformer(description.config), mllm if trains_mllm(config) else None)
    choose_trainable(model, config, description)
    if model.mllm is not None:
        for parameter in model.mllm.parameters():
            parameter.data = parameter.data.to(master if parameter.requires_grad else dtype)
    parallelize(model, group, config.parallel, dtype=dtype)
    if description.trained:
        load_transformer_sharded(model.transformer, description.files.transformer, group, dtype=dtype, trainable=master)
    else:
        init_transformer_sharded(model.transformer, config.model.seed, group, dtype=dtype, trainable=master)
    if config.lora is not None:
        init_adapter(model.transformer, seed=config.model.seed)
    place = torch.device("cpu") if group.offload else group.device
    if model.mllm is None or group.mesh is None:
        mllm.to(place if model.mllm is not None else group.device)
    processor = description.processor.processor
    conditioner = Conditioner(mllm, description.tokenizer.tokenizer, processor)
    vae = load_vae(description.files.need("vae"), device=group.device)
    model.train()
    return Omnigen2Backbone(config, description, model, conditioner, vae, rates_for(config, description))


def trains_mllm(config: TrainConfig) -> bool:
    """Whether gradients pass through the language model: it is trained, or the rows of attribute tokens are."""
    return config.omnigen2.train_mllm or config.omnigen2.attribute_tokens


def read_mllm(config: TrainConfig, description: Omnigen2Description, *, dtype: torch.dtype) -> Any:
    """The language model on the CPU, as stored or drawn."""
    if description.trained:
        return load_mllm(description.mllm, dtype=dtype)
    return init_mllm(description.mllm, seed=config.model.seed, dtype=dtype)


def choose_trainable(model: Omnigen2Model, config: TrainConfig, description: Omnigen2Description) -> None:
    """Freeze, add LoRA and the rows of attribute tokens, as a run's settings say. Raises ConfigError."""
    settings = config.omnigen2
    model.transformer.requires_grad_(True)
    if model.mllm is not None:
        model.mllm.requires_grad_(settings.train_mllm)
        if config.freeze.vit:
            model.mllm.model.visual.requires_grad_(False)
    parameters = dict(model.named_parameters())
    for pattern in config.freeze.patterns:
        for name in matching_names(parameters, pattern, setting="freeze.patterns", example="transformer.layers.0.attn"):
            parameters[name].requires_grad_(False)
    if config.lora is not None:
        add_adapter(
            model.transformer,
            rank=config.lora.rank,
            alpha=config.lora.alpha,
            targets=lora_targets(config.lora),
            seed=config.model.seed,
        )
        if model.mllm is not None:
            model.mllm.requires_grad_(False)
    if settings.attribute_tokens:
        add_attribute_rows(model.mllm, list(description.tokenizer.attribute_ids.values()))
        if not any(one.is_meta for one in model.mllm.parameters()):
            init_attribute_rows(model.mllm, description.tokenizer)
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("freeze: leaves no trainable parameter; freeze less")


def lora_targets(lora: LoraSettings) -> tuple[str, ...]:
    """Ends of the names of layers that get adapters; BAGEL's pattern, the default, means OmniGen2's own."""
    return TARGETS if lora.targets == LoraSettings().targets else lora.targets


def init_adapter(model: nn.Module, *, seed: int) -> None:
    """Draw A normal with std 1 / rank from generators keyed by seed and name, B zero, on any number of ranks."""
    for path, layer in adapted_layers(model):
        digest = hashlib.sha256(f"{seed}/{path}.lora_A".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little"))
        fill_parameter(layer.lora_A.weight, torch.randn(layer.lora_A.weight.shape, generator=generator) / layer.rank)
        fill_parameter(layer.lora_B.weight, torch.zeros(layer.lora_B.weight.shape))


def dataset_of(config: TrainConfig, description: Omnigen2Description, planner: Planner) -> Omnigen2Dataset:
    """The data set that works off a planner's tickets."""
    recipe = description.recipe(planner.settings)
    return Omnigen2Dataset(
        planner.indexes,
        recipe,
        description.tokenizer,
        description.geometry,
        description.processor,
        downsample=description.vae.downsample,
        channels=description.vae.z_channels,
        cache=config.loader.shard_cache(),
    )


def rates_for(config: TrainConfig, description: Omnigen2Description) -> Rates:
    """What a token of each kind takes in this run."""
    return rates_of(
        description.config,
        read_json(description.mllm / CONFIG_FILE),
        lora=None if config.lora is None else config.lora.rank,
        trains_mllm=trains_mllm(config),
        checkpointing=config.parallel.checkpointing,
    )
