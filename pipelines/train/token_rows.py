"""Rows of the embedding table that are trained while the table is frozen: those of the fifteen attribute tokens.

An embedding becomes a subclass of itself in place, whose rows for these tokens are a parameter of their own. The
table keeps its name and its bits; gradients, optimizer, EMA, checkpoints and FSDP see fifteen rows, not 152,064.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sigma_data.errors import ConfigError
from sigma_model.embed import Embedding
from sigma_model.model import SigmaModel

TABLE = "backbone.embed.weight"
ROWS = "backbone.embed.rows"
"""The parameter of a `TokenRows`, by our name; no released file has it."""


class TokenRows(Embedding):
    """An embedding in which the rows `ids` come from a parameter `rows` [n, D] instead of the table."""

    def __init__(self, base: nn.Embedding, ids: Sequence[int]) -> None:
        super().__init__(base.num_embeddings, base.embedding_dim, device="meta")
        self.weight = base.weight
        self.ids = tuple(ids)
        self.rows = nn.Parameter(base.weight.new_empty(len(self.ids), base.embedding_dim, dtype=torch.float32))

    def forward(self, input: Tensor) -> Tensor:
        words = super().forward(input)
        found = input[..., None] == torch.tensor(self.ids, device=input.device)
        own = F.embedding(found.int().argmax(-1), self.rows.to(words.dtype))
        return torch.where(found.any(-1, keepdim=True), own, words)

    def merge(self) -> nn.Embedding:
        """The plain embedding that gives the same; takes over this one's table and changes it."""
        plain = Embedding(self.num_embeddings, self.embedding_dim, device="meta")
        with torch.no_grad():
            self.weight[list(self.ids)] = self.rows.to(self.weight.dtype)
        plain.weight = self.weight
        return plain


def add_token_rows(model: SigmaModel, ids: Sequence[int]) -> None:
    """Give the rows `ids` of a frozen embedding table a parameter that is trained; to be called after `add_lora`.

    Gradients flow through the understanding expert's hidden states from then on, or none would reach the rows: its
    weights stay frozen, but its activations are recorded, even under `freeze.und`. The rows hold no numbers on the
    meta device, else the table's. Raises ConfigError if the table is trainable as a whole.
    """
    embed = model.backbone.embed
    if embed.weight.requires_grad:
        raise ConfigError(
            "freeze.except_attribute_tokens: the embeddings are not frozen, so that all their rows are trained: "
            "leave it out, or freeze them"
        )
    model.freeze_und = False
    model.backbone.embed = TokenRows(embed, ids)
    if not embed.weight.is_meta:
        with torch.no_grad():
            model.backbone.embed.rows.copy_(embed.weight[list(ids)])


def rows_trainable(model: SigmaModel) -> bool:
    """Whether the attribute tokens' rows are trained, alone or with the whole table."""
    embed = model.backbone.embed
    return isinstance(embed, TokenRows) or embed.weight.requires_grad


def merge_token_rows(model: SigmaModel) -> None:
    """Write the rows into the table and make the embedding plain again. The model must not be sharded."""
    if isinstance(model.backbone.embed, TokenRows):
        model.backbone.embed = model.backbone.embed.merge()
