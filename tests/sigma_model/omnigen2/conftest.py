"""A tiny OmniGen2 directory and the model of it, once a file of tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import omnigen2

from sigma_model import load
from sigma_model.api import Model


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return omnigen2.directory(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(directory: Path) -> Model:
    return load(directory, device="cpu")
