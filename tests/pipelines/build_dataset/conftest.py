"""What tests of broken corpora share."""

from __future__ import annotations

import faulthandler
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support import corpora

_PATIENCE = 60  # seconds a test may take before it counts as a hang


@pytest.fixture(scope="session")
def twelve_samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sound corpus of six families in three splits, small enough to be read whole many times. Never change it."""
    folder = tmp_path_factory.mktemp("twelve")
    release = corpora.make_release(folder / "release", 12, seed=7)
    corpora.build(folder / "corpus", f"release:{release}", splits={"train": 60, "val": 20, "test": 20})
    return folder / "corpus"


@pytest.fixture
def no_hang() -> Iterator[None]:
    """Python code that hangs gets an exception, native code that hangs a traceback and the end."""

    def give_up(*_: object) -> None:
        raise TimeoutError(f"more than {_PATIENCE} s: a hang")

    old = signal.signal(signal.SIGALRM, give_up)
    signal.alarm(_PATIENCE)
    faulthandler.dump_traceback_later(_PATIENCE + 30, exit=True)
    yield
    faulthandler.cancel_dump_traceback_later()
    signal.alarm(0)
    signal.signal(signal.SIGALRM, old)


@pytest.fixture
def arena(tmp_path: Path) -> Iterator[Path]:
    """A folder deep enough for `../..`, in which only `out` may change."""
    folder = tmp_path / "a" / "b" / "c"
    folder.mkdir(parents=True)
    yield folder
    names = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")}
    stray = {name for name in names if "evil" in Path(name).name and not name.startswith("a/b/c/in")}
    assert not stray
    assert not Path("/sigma_evil.json").exists()


@pytest.fixture
def corpus(small_corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_corpus, tmp_path / "corpus"))


@pytest.fixture(scope="module")
def other_corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    release = corpora.make_release(folder / "release", 12, seed=8)
    corpora.build(folder / "corpus", f"release:{release}")
    return folder / "corpus"
