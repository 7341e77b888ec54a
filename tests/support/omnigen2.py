"""A tiny OmniGen2 transformer with random weights, samples for it, and the scripts of benchmarks/."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from types import ModuleType

import torch

from sigma_model.omnigen2.checkpoint import init_transformer
from sigma_model.omnigen2.config import TransformerConfig
from sigma_model.omnigen2.pack import DiffusionSample
from sigma_model.omnigen2.transformer import Omnigen2Transformer
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
