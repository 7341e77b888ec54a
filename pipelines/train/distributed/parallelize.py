"""A model spread over ranks: activation checkpointing, compilation, FSDP2, in this order.

Gradients are sums over ranks, not averages: a loss must be divided by the tokens of all ranks beforehand. Every
rank must run the same parts of the model in every pass, and its loss must depend on both outputs, also where its
pack has no images or no answers (a sum over nothing serves): what one rank reduces, all reduce.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn
from torch.distributed.fsdp import CPUOffloadPolicy, FSDPModule, MixedPrecisionPolicy, OffloadPolicy, fully_shard
from torch.utils.checkpoint import checkpoint

from pipelines.train.config import ParallelSettings
from pipelines.train.distributed.process_group import ProcessGroup
from pipelines.train.omnigen2.model import Omnigen2Model
from sigma_model.model import SigmaModel
from sigma_model.omnigen2.transformer import Omnigen2Transformer


def parallelize(model: nn.Module, group: ProcessGroup, settings: ParallelSettings, *, dtype: torch.dtype) -> None:
    """Make a model ready for these ranks, in place; names of parameters stay what they are.

    `dtype` is what layers compute in; gradients are reduced in float32 and summed over ranks. Without a mesh a model
    computes in the type of its parameters (see `mixed` of `start_process_group`). The trainable parameters
    must be chosen before, and all be of one type.
    """
    layers, compiled = layers_of(model)
    every = {"none": 0, "selective": 2, "full": 1}[settings.checkpointing]
    for number, layer in enumerate(layers):
        # The forward method alone is replaced: FSDP's hooks stay outside, and parameters keep their names.
        if every and number % every == 0:
            layer.forward = partial(checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False)
        if settings.compile and number < compiled:
            layer.forward = torch.compile(layer.forward)
    if group.mesh is None:
        return
    policy = MixedPrecisionPolicy(param_dtype=dtype, reduce_dtype=torch.float32, cast_forward_inputs=False)
    offload = CPUOffloadPolicy() if settings.offload else OffloadPolicy()
    for module in (*layers, *_parts_of(model), model):
        unit = fully_shard(module, mesh=group.mesh, mp_policy=policy, offload_policy=offload)
        unit.set_gradient_divide_factor(1.0)
        unit.set_force_sum_reduction_for_comms(True)  # gloo knows no other


def layers_of(model: nn.Module) -> tuple[list[nn.Module], int]:
    """The layers of a model, which are sharded and computed again one by one, and how many of the first to compile."""
    if isinstance(model, Omnigen2Model):
        layers, compiled = layers_of(model.transformer)
        if model.mllm is None:
            return layers, compiled
        inner = model.mllm.model
        return [*layers, *inner.language_model.layers, *inner.visual.blocks], compiled
    if isinstance(model, Omnigen2Transformer):
        refiners = (*model.context_refiner, *model.noise_refiner, *model.ref_image_refiner)
        return [*model.layers, *refiners], len(model.layers)
    assert isinstance(model, SigmaModel)
    vision = model.vision.layers if model.vision is not None else ()
    return [*model.backbone.layers, *vision], len(model.backbone.layers)


def _parts_of(model: nn.Module) -> list[nn.Module]:
    """Parts that run as a whole and are read and sampled by themselves."""
    return [model.transformer] if isinstance(model, Omnigen2Model) else []


@contextmanager
def callable_in_parts(model: nn.Module) -> Iterator[None]:
    """Within, parts of a model may be called by themselves, as sampling does.

    Parameters outside layers are gathered; a layer's are while it runs. So every rank must run as many passes, and
    the model must have run as a whole before.
    """
    if isinstance(model, FSDPModule):
        model.unshard()
    try:
        yield
    finally:
        if isinstance(model, FSDPModule):
            model.reshard()
