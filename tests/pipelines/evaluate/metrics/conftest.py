"""Tiny checkpoints of every backbone, made once."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import tiny_backbones


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """By backbone, the directory of a tiny random model."""
    return tiny_backbones.save_all(Path(tmp_path_factory.mktemp("backbones")))
