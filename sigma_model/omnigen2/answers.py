"""Questions about images and their answers, as Qwen2.5-VL learns them: SGT's understanding half.

Every answer of a conversation is learnt, and so is the `<|im_end|>` that closes it, or the model never learns to stop.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from sigma_data.errors import ConfigError, SequenceError
from sigma_model.omnigen2.conditioning import IGNORED, Conditioner, MllmInputs
from sigma_model.omnigen2.prompts import IM_END, IM_START, VISION

SYSTEM = "You are a helpful assistant."
"""Of questions: the model's own, not that of image generation."""

MAX_TOKENS = 3072
IMAGE = "<image>"
"""Where an image stands in a question; images that no question places stand before the first."""


@dataclass(frozen=True)
class Conversation:
    """Questions and answers in turn, about `images`."""

    exchanges: tuple[tuple[str, str], ...]
    images: tuple[Image.Image, ...] = ()


def pieces(conversation: Conversation) -> list[tuple[str, bool]]:
    """The text in pieces, each with whether it is learnt. Raises ConfigError for what has no answer to learn."""
    return pieces_of(conversation.exchanges, len(conversation.images))


def pieces_of(exchanges: Sequence[tuple[str, str]], images: int) -> list[tuple[str, bool]]:
    """`pieces` of questions and answers about so many images."""
    if not exchanges or not all(answer.strip() for _, answer in exchanges):
        raise ConfigError("a conversation needs at least one question, and an answer to each")
    placed = sum(question.count(IMAGE) for question, _ in exchanges)
    if placed > images:
        raise ConfigError(f"the questions name {placed} images with {IMAGE}, and there are {images}")
    front = VISION * (images - placed)
    found = [(f"{IM_START}system\n{SYSTEM}{IM_END}\n", False)]
    for number, (question, answer) in enumerate(exchanges):
        shown = (front if number == 0 else "") + question.replace(IMAGE, VISION)
        found.append((f"{IM_START}user\n{shown}{IM_END}\n{IM_START}assistant\n", False))
        found += [(f"{answer.strip()}{IM_END}", True), ("\n", False)]
    return found


def answer_inputs(
    conditioner: Conditioner, conversations: Sequence[Conversation], *, max_tokens: int = MAX_TOKENS
) -> tuple[MllmInputs, Tensor]:
    """What the language model takes, padded on the right, and the labels [B, L] of what is learnt.

    Raises SequenceError for a conversation that is too long, ConfigError as `pieces` does.
    """
    pixels, grids, counts = conditioner.patches([image for one in conversations for image in one.images])
    at = iter(counts)
    rows, labels = [], []
    for conversation in conversations:
        for question, answer in conversation.exchanges:
            conditioner.refuse_control(question)
            conditioner.refuse_control(answer)
        own = iter([next(at) for _ in conversation.images])
        ids: list[int] = []
        wanted: list[int] = []
        for text, learnt in pieces(conversation):
            part = conditioner.token_ids(text, own)
            ids += part
            wanted += part if learnt else [IGNORED] * len(part)
        if len(ids) > max_tokens:
            raise SequenceError(f"a conversation of {len(ids):,} tokens: at most {max_tokens:,} are taken")
        rows.append(ids)
        labels.append(wanted)
    longest = max(map(len, rows))
    padded = torch.tensor([one + [IGNORED] * (longest - len(one)) for one in labels])
    return conditioner.padded(rows, pixels, grids), padded
