"""Which parameters of a run are trainable, and the rows of the fifteen attribute tokens: their start, their similarity.

BAGEL never trained these rows, and reserved rows tend to be nearly equal: a run that does not train them either may
show the model fifteen tokens that it cannot tell apart.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from pipelines.train.config import TrainConfig
from pipelines.train.freeze import apply_freeze
from pipelines.train.lora import add_lora
from pipelines.train.token_rows import TABLE, add_token_rows, rows_trainable
from sigma_data.errors import ConfigError
from sigma_data.instruction import ATTRIBUTES
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_model.checkpoint_io import Checkpoint, released_name
from sigma_model.config import ModelConfig, weight_files
from sigma_model.initialization import fresh_tensor
from sigma_model.model import SigmaModel

ALIKE = 0.99
"""Cosine of two rows from which on they are taken as nearly equal: trained words of Qwen2.5 are far below."""


def choose_trainable(model: SigmaModel, config: TrainConfig, ids: Sequence[int]) -> None:
    """Freeze, add LoRA and the attribute tokens' own rows, as a run's settings say; `ids` are those tokens'.

    Raises ConfigError as `apply_freeze` and `add_lora` do, and for rows that are initialised but not trainable.
    """
    apply_freeze(model, config.freeze)
    if config.lora is not None:
        add_lora(model, config.lora, seed=config.model.seed)
    if config.freeze.except_attribute_tokens:
        add_token_rows(model, ids)
    check_token_init(config, trainable=rows_trainable(model))


def check_token_init(config: TrainConfig, *, trainable: bool) -> None:
    """Raise ConfigError if the attribute tokens' rows are initialised but not `trainable`."""
    if config.model.token_init != "keep" and not trainable:
        raise ConfigError(
            f"model.token_init {config.model.token_init}: the attribute tokens' rows are frozen, so that a checkpoint "
            "would not hold them: set freeze.except_attribute_tokens=true, or model.token_init=keep"
        )


def stored_rows(directory: Path, shape: ModelConfig, numbers: Sequence[int], *, seed: int) -> Tensor:
    """[n, D] float32: rows of the embedding table in a model's directory, or those that a preset draws.

    A file is read at these rows alone. Raises ConfigError where it has no such table.
    """
    if not weight_files(directory):
        table = torch.Size((shape.language.vocab_size, shape.language.hidden_size))
        return fresh_tensor(shape, TABLE, table, seed=seed)[list(numbers)]
    stored = Checkpoint(directory, config=shape)
    name = released_name(TABLE)
    if name not in stored.tensors:
        raise ConfigError(f"{stored.where}: has no {name}: download the weights again")
    return torch.cat([stored.read(name, dtype=torch.float32, rows=(number, number + 1)) for number in numbers])


def start_rows(directory: Path, shape: ModelConfig, tokenizer: Tokenizer, *, init: str, seed: int) -> Tensor:
    """[15, D] float32, in the order of `ATTRIBUTES`: what the attribute tokens' rows start from.

    `init` keep: the rows of the weights. words: the mean of the rows of the tokens that the attribute's name is in
    plain text, `style` for `<style>`.
    """
    if init == "keep":
        return stored_rows(directory, shape, attribute_ids_in_order(tokenizer.attribute_ids), seed=seed)
    words = [tokenizer.encode(name) for name in ATTRIBUTES]
    rows = stored_rows(directory, shape, [number for ids in words for number in ids], seed=seed)
    return torch.stack([part.mean(0) for part in rows.split([len(ids) for ids in words])])


@dataclass(frozen=True)
class RowSimilarity:
    """Cosines between the rows of all pairs of attribute tokens; `nearest` are the names of the most similar.

    `trainable`: the run trains these rows.
    """

    least: float
    mean: float
    most: float
    nearest: tuple[str, str]
    trainable: bool

    @classmethod
    def of(cls, rows: Tensor, *, trainable: bool) -> RowSimilarity:
        """Of rows [15, D] in the order of `ATTRIBUTES`. Two rows of zeros have a cosine of 1, one beside another 0."""
        wide = rows.double()
        norms = wide.norm(dim=1)
        unit = wide / norms.clamp(min=1e-30)[:, None]
        zero = norms == 0
        cosines = torch.where(zero[:, None] & zero, 1.0, unit @ unit.T)
        first, second = torch.triu_indices(len(rows), len(rows), offset=1)
        pairs = cosines[first, second]
        place = int(pairs.argmax())
        nearest = ATTRIBUTES[int(first[place])], ATTRIBUTES[int(second[place])]
        return cls(float(pairs.min()), float(pairs.mean()), float(pairs.max()), nearest, trainable)

    @property
    def warning(self) -> str:
        """What to do about tokens that cannot be told apart and never will be; empty if all is well."""
        if self.trainable or self.most < ALIKE:
            return ""
        return (
            f"the rows of <{self.nearest[0]}> and <{self.nearest[1]}> are nearly equal (cosine {self.most:.4f}, and "
            f"{ALIKE} is the limit), and this run does not train them: the model cannot tell such tokens apart. Set "
            "freeze.except_attribute_tokens=true"
        )

    def show(self) -> str:
        """One line."""
        return (
            f"cosines of the 15 rows {self.least:.4f} to {self.most:.4f}, mean {self.mean:.4f}; nearest "
            f"<{self.nearest[0]}> and <{self.nearest[1]}>; {'trained' if self.trainable else 'not trained'}"
        )


def start_rows_similarity(
    config: TrainConfig, directory: Path, shape: ModelConfig, tokenizer: Tokenizer, *, trainable: bool
) -> RowSimilarity | None:
    """How similar the rows are that a run starts from; None if they are drawn at random.

    Reads the rows alone, by their place in the file.
    """
    if not weight_files(directory):
        return None
    rows = start_rows(directory, shape, tokenizer, init=config.model.token_init, seed=config.model.seed)
    return RowSimilarity.of(rows, trainable=trainable)


def attribute_ids_in_order(ids: Mapping[str, int]) -> list[int]:
    """The attribute tokens' ids in the order of `ATTRIBUTES`."""
    return [ids[name] for name in ATTRIBUTES]
