"""A sample's sequence length, estimated without a tokenizer or model."""

from __future__ import annotations

from collections.abc import Mapping

from sigma_data.images.image_info import ImageInfo
from sigma_data.images.resize_rule import VAE_RULE, VIT_RULE, ResizeRule
from sigma_data.sample import Sample
from sigma_data.sequence.layout import image_grid, segment_length


def count_tokens(
    sample: Sample, infos: Mapping[int, ImageInfo], *, vae: ResizeRule = VAE_RULE, vit: ResizeRule = VIT_RULE
) -> int:
    """Sequence length of a sample: every reference as VAE latents and ViT patches, every target once.

    Images are counted exactly by the resize rule. Text is an upper estimate of three bytes a
    token (Qwen2.5 needs about four for English); the training planner counts it with the tokenizer.
    """
    total = 0
    for turn in sample.turns:
        for text in (turn.instruction, turn.response):
            if text:
                total += segment_length(-(-len(text.encode("utf-8", "replace")) // 3))
    targets = set(sample.targets)
    for number, info in infos.items():
        total += _image_tokens(info, vae)
        if number not in targets:
            total += _image_tokens(info, vit)
    return total


def _image_tokens(info: ImageInfo, rule: ResizeRule) -> int:
    rows, columns = image_grid(rule, *rule.size(info.width, info.height))
    return segment_length(rows * columns)
