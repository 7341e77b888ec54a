"""A tiny OmniGen2 transformer with random weights, samples for it, and the scripts of benchmarks/."""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from sigma_model.config import preset_directory
from sigma_model.omnigen2.checkpoint import export_transformer, init_transformer
from sigma_model.omnigen2.conditioning import Conditioner, load_mllm
from sigma_model.omnigen2.config import TransformerConfig
from sigma_model.omnigen2.pack import DiffusionSample
from sigma_model.omnigen2.transformer import Omnigen2Transformer
from sigma_model.omnigen2.vae_files import export_vae, load_vae
from support.places import ROOT

GOLDEN = ROOT / "tests" / "golden_omnigen2"
CONFIG = TransformerConfig(
    in_channels=4,
    hidden_size=24,
    num_layers=2,
    num_refiner_layers=1,
    num_attention_heads=2,
    num_kv_heads=1,
    multiple_of=8,
    axes_dim_rope=(4, 4, 4),
    axes_lens=(128, 32, 32),
    text_feat_dim=8,
)


def model(seed: int = 0, config: TransformerConfig = CONFIG) -> Omnigen2Transformer:
    """Random in every weight: a fresh model's velocities are 0."""
    made = init_transformer(config, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return made


def latent(seed: int, rows: int, columns: int, config: TransformerConfig = CONFIG) -> torch.Tensor:
    """Of rows x columns tokens."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(config.in_channels, 2 * rows, 2 * columns, generator=generator)


def sample(
    seed: int,
    *,
    text: int = 3,
    target: tuple[int, int] = (2, 3),
    references: Sequence[tuple[int, int]] = (),
    config: TransformerConfig = CONFIG,
) -> DiffusionSample:
    """Random numbers of these sizes."""
    generator = torch.Generator().manual_seed(seed)
    return DiffusionSample(
        torch.randn(text, config.text_feat_dim, generator=generator),
        latent(seed + 1, *target, config),
        float(torch.rand((), generator=generator)),
        tuple(latent(seed + 2 + number, *grid, config) for number, grid in enumerate(references)),
    )


def script(name: str) -> ModuleType:
    """A module of benchmarks/."""
    folder = str(ROOT / "benchmarks")
    if folder not in sys.path:
        sys.path.insert(0, folder)
    return importlib.import_module(name)


def conditioner() -> Conditioner:
    """The golden toy Qwen2.5-VL with a tokenizer of its 600 words and small images."""
    return Conditioner(load_mllm(GOLDEN / "mllm"), toy_tokenizer(), toy_image_processor())


def toy_tokenizer() -> Any:
    """Bytes, and Qwen2.5-VL's control tokens at the ids of the toy."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {word: number for number, word in enumerate([*words, *(f"filler{n}" for n in range(580 - len(words)))])}
    made = Tokenizer(models.BPE(vocab, merges=[]))
    made.normalizer = normalizers.NFC()
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=made, pad_token="<|endoftext|>", eos_token="<|im_end|>")
    kinds = ("object_ref_start", "object_ref_end", "box_start", "box_end", "quad_start")
    control = ["endoftext", "im_start", "im_end", *kinds, "vision_start", "vision_end", "image_pad", "video_pad", "img"]
    fast.add_special_tokens({"additional_special_tokens": [f"<|{one}|>" for one in control]})
    assert fast.convert_tokens_to_ids("<|image_pad|>") == 590
    return fast


def toy_image_processor() -> Any:
    """At most 4 x 4 patches an image, that is four tokens."""
    from transformers import Qwen2VLImageProcessorPil

    return Qwen2VLImageProcessorPil(size={"shortest_edge": 28 * 28, "longest_edge": 56 * 56})


def directory(folder: Path) -> Path:
    """A whole model in the released layout, its transformer random, with the golden toy language model."""
    root = folder / "OmniGen2-toy"
    config = CONFIG.model_copy(update={"in_channels": 8, "text_feat_dim": 32, "axes_lens": (512, 512, 512)})
    export_transformer(model(config=config), root / "transformer")
    shutil.copytree(GOLDEN / "mllm", root / "mllm")
    toy_tokenizer().save_pretrained(root / "processor")
    toy_image_processor().save_pretrained(root / "processor")
    export_vae(load_vae(preset_directory("tiny")), root / "vae")
    (root / "scheduler").mkdir()
    (root / "scheduler" / "scheduler_config.json").write_text('{"dynamic_time_shift": true}')
    (root / "model_index.json").write_text('{"_class_name": "OmniGen2Pipeline"}')
    return root
