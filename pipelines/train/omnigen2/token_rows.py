"""The fifteen attribute tokens in the language model's vocabulary: rows of their own beside its table.

Qwen2.5-VL's table has room for them behind its tokens; the rows are trained, whether the table is or not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from pipelines.train.omnigen2.chat import ChatWords
from pipelines.train.token_rows import TokenRows
from sigma_data.errors import ConfigError

ROWS = "mllm.model.language_model.embed_tokens.rows"
"""The parameter, by our name; no released file has it."""


def add_attribute_rows(mllm: Any, ids: Sequence[int]) -> None:
    """Give the rows `ids` a parameter of their own. Raises ConfigError where the table is too short."""
    embed: nn.Embedding = mllm.model.language_model.embed_tokens
    if max(ids) >= embed.num_embeddings:
        raise ConfigError(
            f"omnigen2.attribute_tokens: the language model's table has {embed.num_embeddings:,} rows, and the tokens "
            f"would take those up to {max(ids):,}: leave it out"
        )
    mllm.model.language_model.embed_tokens = TokenRows(embed, ids)


def init_attribute_rows(mllm: Any, words: ChatWords) -> None:
    """Start each row from the mean of the rows of its word: `style` for `<style>`."""
    embed: TokenRows = mllm.model.language_model.embed_tokens
    with torch.no_grad():
        for place, name in enumerate(words.attribute_ids):
            embed.rows[place] = embed.weight[words.ids(name, [])].float().mean(0)


def merge_attribute_rows(mllm: Any) -> None:
    """Write the rows into the table, which a tied text head shares, and make the embedding plain again."""
    embed = mllm.model.language_model.embed_tokens
    if isinstance(embed, TokenRows):
        mllm.model.language_model.embed_tokens = embed.merge()
