"""Weights for a parallelized transformer on the meta device: each rank reads or draws its own rows."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from pipelines.train.distributed.materialize import materialize
from pipelines.train.distributed.process_group import ProcessGroup
from pipelines.train.lora import is_lora
from sigma_model.checkpoint_io import read_stored
from sigma_model.omnigen2.checkpoint import check_transformer, fresh_tensor
from sigma_model.omnigen2.transformer import Omnigen2Transformer


def load_transformer_sharded(
    model: Omnigen2Transformer,
    directory: Path,
    group: ProcessGroup,
    *,
    dtype: torch.dtype,
    trainable: torch.dtype | None = None,
) -> None:
    """Fill a model from a transformer's directory; a rank reads its own rows alone.

    All becomes `dtype`, trainable parameters `trainable` if given; LoRA adapters become zero. Raises ConfigError before
    any data is read.
    """
    stored = check_transformer(directory, model)
    order = sorted(stored, key=lambda name: (stored[name].path, stored[name].start))

    def read(name: str, part: Tensor, rows: tuple[int, int]) -> None:
        part.copy_(read_stored(stored[name], dtype=part.dtype, device=part.device, rows=rows))

    materialize(model, group, dtype, trainable, order, read)


def init_transformer_sharded(
    model: Omnigen2Transformer,
    seed: int,
    group: ProcessGroup,
    *,
    dtype: torch.dtype,
    trainable: torch.dtype | None = None,
) -> None:
    """Fill a model with what training from scratch starts from, the same on any number of ranks."""
    shapes = {name: tensor.shape for name, tensor in model.state_dict(keep_vars=True).items() if not is_lora(name)}

    def draw(name: str, part: Tensor, rows: tuple[int, int]) -> None:
        part.copy_(fresh_tensor(name, shapes[name], seed=seed)[rows[0] : rows[1]])

    materialize(model, group, dtype, trainable, shapes, draw)
