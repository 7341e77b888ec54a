"""A model by name: directories and presets as they are, hub names through the downloads, offline in one line."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest
from huggingface_hub import constants
from support.hub_server import FakeHub, serve

from pipelines.download import from_pretrained, pretrained
from pipelines.download.run import download, plan_download
from sigma_data.errors import ConfigError, SigmaError
from sigma_model.config import preset_directory
from sigma_model.loading import LoadedModel

BASE = preset_directory("tiny-base")
FILES = {path.name: path.read_bytes() for path in BASE.iterdir() if path.is_file()}


def ask(monkeypatch: pytest.MonkeyPatch, endpoint: str) -> None:
    """What HF_ENDPOINT does, which the hub's client reads when it is imported."""
    monkeypatch.setattr(pretrained, "plan_download", partial(plan_download, endpoint=endpoint))
    monkeypatch.setattr(pretrained, "download", partial(download, endpoint=endpoint))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[FakeHub]:
    with serve(FakeHub({"models/Owner/Tiny": dict(FILES)})) as served:
        ask(monkeypatch, served.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(time, "sleep", lambda _seconds: None)
        monkeypatch.chdir(tmp_path)
        yield served


def test_a_hub_name_is_fetched_once_and_then_loaded(hub: FakeHub, tmp_path: Path) -> None:
    model = from_pretrained("Owner/Tiny", device="cpu")
    assert isinstance(model.parts, LoadedModel) and model.parts.trained
    assert (tmp_path / "models" / "Tiny" / "ema.safetensors").read_bytes() == FILES["ema.safetensors"]
    asked = len(hub.requests)
    from_pretrained("Owner/Tiny")
    from_pretrained("Owner/Tiny", local_files_only=True)
    assert len(hub.requests) == asked


def test_a_hub_that_does_not_answer_leaves_what_is_there(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ask(monkeypatch, "http://127.0.0.1:1")
    with pytest.raises(SigmaError) as caught:
        from_pretrained("Owner/Tiny", folder=tmp_path / "mine")
    assert "\n" not in str(caught.value)
    (tmp_path / "mine").mkdir()
    for name, data in FILES.items():
        (tmp_path / "mine" / name).write_bytes(data)
    with caplog.at_level(logging.WARNING):
        assert from_pretrained("Owner/Tiny", folder=tmp_path / "mine").parts.name == "mine"
    assert "using what is in" in caplog.text


def test_a_directory_and_a_preset_are_taken_as_they_are(tmp_path: Path) -> None:
    assert from_pretrained(BASE).parts.name == "tiny-base"
    assert pretrained.model_directory("tiny") == "tiny"


def test_nothing_is_fetched_offline_and_one_line_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for options in ({"local_files_only": True}, {}):  # conftest has the hub's client offline
        with pytest.raises(
            ConfigError, match=r"nothing is fetched offline: `sigma download Owner/Tiny --out"
        ) as caught:
            from_pretrained("Owner/Tiny", **options)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("./nowhere", "no such directory of a model"),
        (Path("nowhere"), "no such directory of a model"),
        ("sigma-dataset", "is a data set and no model"),
        ("bagle", "did you mean bagel"),
    ],
)
def test_what_is_no_model_is_one_line(name: str | Path, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_pretrained(name)
