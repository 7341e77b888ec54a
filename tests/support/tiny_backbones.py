"""Tiny random models of the metrics, saved as the hub has the real ones, and results to score with them."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import save_file

from pipelines.evaluate.item import Item, Result
from support.image_files import encoded

SIDE = 32
WIDTH = 24


def save_all(folder: Path) -> dict[str, str]:
    """CLIP, DINOv2, DPT, ResNet and an aesthetic head, each in a directory of its own; by backbone."""
    torch.manual_seed(11)
    makers: dict[str, Any] = {"clip": _clip, "dino": _dino, "depth": _depth, "gram": _gram, "aesthetic": _aesthetic}
    for key, make in makers.items():
        make(folder / key)
    return {key: str(folder / key) for key in makers}


def _clip(place: Path) -> None:
    common = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    letters = "abcdefghijklmnopqrstuvwxyz0123456789.,!'-"
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    end = len(pieces) - 1
    text = {**common, "vocab_size": len(pieces), "max_position_embeddings": 20}
    special = {"bos_token_id": end - 1, "eos_token_id": end, "pad_token_id": end}
    config = transformers.CLIPConfig(
        text_config={**text, **special},
        vision_config={**common, "image_size": SIDE, "patch_size": 8},
        projection_dim=WIDTH,
        initializer_factor=5.0,  # so that embeddings of different images lie apart
    )
    transformers.CLIPModel(config).save_pretrained(place)
    tokenizer = transformers.CLIPTokenizer(vocab={piece: n for n, piece in enumerate(pieces)}, merges=[])
    tokenizer.save_pretrained(place)
    size = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    transformers.CLIPImageProcessor(**size).save_pretrained(place)


def _dino(place: Path) -> None:
    config = transformers.Dinov2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=SIDE, patch_size=8, initializer_range=0.3
    )
    transformers.Dinov2Model(config).save_pretrained(place)
    transformers.BitImageProcessor(
        size={"shortest_edge": SIDE + 4},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    ).save_pretrained(place)


def _depth(place: Path) -> None:
    config = transformers.DPTConfig(
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=48,
        image_size=SIDE,
        patch_size=8,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[8, 8, 8, 8],
        fusion_hidden_size=8,
        initializer_range=0.3,
    )
    transformers.DPTForDepthEstimation(config).save_pretrained(place)
    transformers.DPTImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(place)


def _gram(place: Path) -> None:
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 12, 16, 20], depths=[1, 1, 1, 1])
    transformers.ResNetModel(config).save_pretrained(place)
    transformers.ConvNextImageProcessor(size={"shortest_edge": SIDE}).save_pretrained(place)


def head(width: int = WIDTH) -> dict[str, torch.Tensor]:
    """An aesthetic head by LAION's names."""
    sizes = (width, 1024, 128, 64, 16, 1)
    layers = dict(zip((0, 2, 4, 6, 7), itertools.pairwise(sizes), strict=True))
    weights = {f"layers.{n}.weight": torch.randn(wide, narrow) / narrow**0.5 for n, (narrow, wide) in layers.items()}
    return weights | {f"layers.{n}.bias": torch.randn(wide) for n, (_, wide) in layers.items()}


def _aesthetic(place: Path) -> None:
    place.mkdir(parents=True)
    save_file(head(), place / "head.safetensors")


def drawn(seed: int, size: tuple[int, int] = (48, 40)) -> Image.Image:
    """An image with shapes in it: a smooth ground and four rectangles, other for every seed."""
    dice = np.random.default_rng(seed)
    ground = Image.fromarray(dice.integers(0, 256, (3, 3, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
    for _ in range(4):
        left, top = (int(dice.integers(0, side * 3 // 4)) for side in size)
        right, bottom = left + size[0] // 4, top + size[1] // 4
        ground.paste(tuple(int(level) for level in dice.integers(0, 256, 3)), (left, top, right, bottom))
    return ground


def made(number: int, output: bytes, **item: Any) -> Result:
    """A result with `output`, of an item that has what every metric needs unless `item` says otherwise."""
    given: dict[str, Any] = {
        "family": "selective",
        "instruction": f"take <select>thing {number} out of <image_1>",
        "references": (
            encoded(drawn(100 + number)),
            encoded(drawn(200 + number)),
            encoded(drawn(300 + number).convert("L")),
        ),
        "answer": encoded(drawn(number)),
        "style": 2,
    }
    return Result(Item(id=str(number), **{**given, **item}), image=output)
