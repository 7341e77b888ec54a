"""Ctrl-C in the middle of every long command: one line, exit code 130, nothing half-written; the next run goes on.

Work is counted where it is shown, so the signal comes with the second piece of it. Builds, training, evaluation, injection
and the quickstart have such tests of their own (test_kill, test_launch, test_ask, ...), with real signals.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from support import image_files
from support.commands import Ended, sigma
from support.hub_server import FakeHub, serve
from support.hub_uploads import TOKEN

from pipelines.common import weights_progress
from pipelines.common.progress import ProgressBar
from pipelines.upload import run as upload_run
from sigma_model.config import preset_directory

GO_ON = "run the same command again to continue"
NOTHING = "nothing was written"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    with serve(FakeHub({"models/Owner/Model": {"a.json": b"a" * 3_000_000, "b.json": b"b" * 3_000_000}})) as served:
        template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, served.endpoint)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(constants, "ENDPOINT", served.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 500_000)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield served


def interrupted(said: str, *words: str | Path, call: int = 2) -> None:
    """Run it with Ctrl-C at the piece of work of this number."""
    add, left = ProgressBar.add, [call]

    def counting(self: ProgressBar, amount: int = 1) -> None:
        left[0] -= 1
        if left[0] == 0:
            raise KeyboardInterrupt
        add(self, amount)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ProgressBar, "add", counting)
        ended = sigma(*words)
    assert left[0] <= 0, "it was in the middle"
    assert ended.returncode == 130 and "Traceback" not in ended.stderr, ended.stderr
    assert ended.stderr.splitlines()[-1] == f"interrupted; {said}"


def whole(*words: str | Path) -> Ended:
    ended = sigma(*words)
    assert ended.returncode == 0, ended.stderr
    return ended


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_validate(small_corpus: Path) -> None:
    before = files(small_corpus)
    interrupted(NOTHING, "validate", small_corpus, "--workers", "1")
    assert files(small_corpus) == before
    whole("validate", small_corpus, "--workers", "1")


@pytest.mark.slow
def test_shard(small_corpus: Path, tmp_path: Path) -> None:
    words = ("shard", small_corpus, "--where", "family == 'editing'", "--shard-samples", "2", "--workers", "1", "--out")
    whole(*words, tmp_path / "at once")
    interrupted(GO_ON, *words, tmp_path / "in two")
    assert not (tmp_path / "in two" / "corpus.json").exists()
    whole(*words, tmp_path / "in two")
    assert files(tmp_path / "in two") == files(tmp_path / "at once")


@pytest.mark.slow
def test_plan(small_corpus: Path, tmp_path: Path) -> None:
    corpus = Path(shutil.copytree(small_corpus, tmp_path / "corpus"))
    shutil.rmtree(corpus / ".index", ignore_errors=True)
    words = ("plan", corpus, "budget=8192")
    interrupted(GO_ON, *words, call=1)
    assert not list((corpus / ".index").glob("*/index.json")), "half an index is none"
    whole(*words)
    assert len(list((corpus / ".index").glob("*/index.json"))) == 1


def test_fingerprints(tmp_path: Path) -> None:
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(image_files.image_bytes("png", number))
    interrupted(NOTHING, "fingerprints", tmp_path, "--out", tmp_path / "prints.txt")
    assert not (tmp_path / "prints.txt").exists()
    whole("fingerprints", tmp_path, "--out", tmp_path / "prints.txt")


@pytest.mark.slow
def test_one_image(tmp_path: Path) -> None:
    words = ("generate", "a circle", "--model", "tiny", "--steps", "4", "--size", "32x32", "--out", tmp_path / "a.png")
    interrupted(NOTHING, *words)
    assert list(tmp_path.iterdir()) == []
    whole(*words)


@pytest.mark.slow
def test_many_prompts(tmp_path: Path) -> None:
    lines = [json.dumps({"prompt": f"{count} circles", "size": "32x32"}) for count in range(1, 5)]
    (tmp_path / "prompts.jsonl").write_text("\n".join(lines))
    words = (
        "generate",
        "--from",
        tmp_path / "prompts.jsonl",
        "--model",
        "tiny",
        "--steps",
        "2",
        "--batch",
        "1",
        "--out",
    )
    whole(*words, tmp_path / "at once")
    interrupted(GO_ON, *words, tmp_path / "in two", call=2)  # while the prompts are read
    assert not list((tmp_path / "in two").rglob("*.png"))
    interrupted(GO_ON, *words, tmp_path / "in two", call=len(lines) + 2)  # while they are answered
    made = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "in two").rglob("*.png")}
    assert 0 < len(made) < 4
    whole(*words, tmp_path / "in two")
    again = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "in two").rglob("*.png")}
    assert len(again) == 4 and made.items() <= again.items(), "what was made is kept"
    one, two = ({name: data for name, data in files(tmp_path / folder).items() if name.endswith(".png")}
                for folder in ("at once", "in two"))  # fmt: skip
    assert one == two


def test_download(hub: FakeHub, tmp_path: Path) -> None:
    words = ("download", "Owner/Model", "--out", tmp_path / "model", "--yes")
    interrupted(GO_ON, *words, call=4)
    assert not (tmp_path / "model" / ".lock").exists()
    whole(*words)
    assert (tmp_path / "model" / "a.json").read_bytes() == b"a" * 3_000_000


@pytest.mark.slow
def test_upload(hub: FakeHub, small_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_run, "_COMMIT_FILES", 4)
    words = ("upload", small_corpus, "Owner/Thing", "--yes")
    interrupted(GO_ON, *words, call=1)
    assert len(hub.uploads.commits) == 1 and "corpus.json" not in hub.repos["datasets/Owner/Thing"]
    whole(*words)
    added = [name for _, names, _ in hub.uploads.commits for name in names]
    assert len(added) == len(set(added)) and "corpus.json" in hub.repos["datasets/Owner/Thing"]


@pytest.mark.slow
def test_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights_progress, "LARGE", 0)
    words = ("export", tmp_path / "adapter", "--out", tmp_path / "model", f"model.path={preset_directory('tiny-base')}")
    (tmp_path / "adapter").mkdir()
    _adapter(tmp_path / "adapter")
    interrupted(NOTHING, *words, call=20)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter"]
    whole(*words)


def _adapter(folder: Path) -> None:
    from pipelines.train.config import LoraSettings
    from pipelines.train.lora import add_lora, save_adapter
    from sigma_model.checkpoint_io import load_model

    model = load_model(preset_directory("tiny-base"))
    add_lora(model, LoraSettings(rank=2), seed=0)
    save_adapter(model, folder, base="tiny-base")
