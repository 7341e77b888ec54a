"""How long a sample's sequence is, before any tokenizer or model is at hand."""

from __future__ import annotations

from collections.abc import Mapping

from sigma_data.images.image_info import ImageInfo
from sigma_data.images.resize_rule import VAE_RULE, VIT_RULE, ResizeRule
from sigma_data.sample import Sample


def count_tokens(
    sample: Sample, facts: Mapping[int, ImageInfo], *, vae: ResizeRule = VAE_RULE, vit: ResizeRule = VIT_RULE
) -> int:
    """Sequence length of a sample: every reference as VAE latents and ViT patches, every target once.

    Pictures are counted exactly by the resize rule. Text is an upper estimate of three bytes a
    token (Qwen2.5 needs about four for English); the training planner counts it with the tokenizer.
    """
    total = 0
    for turn in sample.turns:
        for text in (turn.instruction, turn.response):
            if text:
                total += 2 + -(-len(text.encode("utf-8", "replace")) // 3)
    targets = set(sample.targets)
    for number, fact in facts.items():
        total += _picture_tokens(fact, vae)
        if number not in targets:
            total += _picture_tokens(fact, vit)
    return total


def _picture_tokens(fact: ImageInfo, rule: ResizeRule) -> int:
    width, height = rule.size(fact.width, fact.height)
    return width // rule.stride * (height // rule.stride) + 2
