"""What tests of broken corpora share."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import corpora


@pytest.fixture(scope="session")
def twelve_samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound corpus of six families in three splits, small enough to be read whole many times. Never change it."""
    folder = tmp_path_factory.mktemp("twelve")
    release = corpora.make_release(folder / "release", 12, seed=7)
    corpora.build(folder / "corpus", f"release:{release}", splits={"train": 60, "val": 20, "test": 20})
    return folder / "corpus"
