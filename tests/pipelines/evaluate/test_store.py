"""An evaluation whose questions and model lie in an object store is that of copies on this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import eval_runs
from support.s3_server import S3Server, error, s3_bucket

from pipelines.common.model_copy import local_model
from pipelines.evaluate import evaluate
from sigma_data.errors import SigmaError

pytest.importorskip("s3fs")
pytest.importorskip("moto")


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[S3Server]:
    with s3_bucket(monkeypatch, tmp_path / "cache") as (server, _):
        yield server


def put(folder: Path, place: str) -> Any:
    import s3fs

    system = s3fs.S3FileSystem()
    for path in folder.rglob("*"):
        if path.is_file():
            system.pipe_file(f"{place}/{path.relative_to(folder).as_posix()}", path.read_bytes())
    return system


def scores(out: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((out / "scores").iterdir())]


@pytest.mark.slow
def test_questions_and_model_in_a_store_give_the_images_and_scores_of_local_ones(
    server: S3Server, tmp_path: Path
) -> None:
    world = eval_runs.save_world(tmp_path / "world", 6)
    model = eval_runs.save_model(tmp_path / "mine")
    put(world, "bucket/world")
    put(model, "bucket/models/mine")
    more: dict[str, Any] = {"steps": 3, "limit": 4, "metrics": []}
    evaluate(f"world:{world}", tmp_path / "here", model=model, **more)
    made = evaluate("world:s3://bucket/world", tmp_path / "there", model="s3://bucket/models/mine/", **more)
    assert made["name"] == "mine"
    assert eval_runs.generated(tmp_path / "there") == eval_runs.generated(tmp_path / "here")
    assert scores(tmp_path / "there") == scores(tmp_path / "here")
    before = eval_runs.marks(tmp_path / "there")
    evaluate("world:s3://bucket/world", tmp_path / "there", model="s3://bucket/models/mine", **more)
    assert eval_runs.marks(tmp_path / "there") == before, "nothing is made again"
    again = evaluate("world:s3://bucket/world", tmp_path / "there", stage="report")
    assert again["items"] == 4


def test_of_a_model_that_changed_the_changed_files_are_copied_anew(server: S3Server, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    (folder / "part").mkdir(parents=True)
    for name in ("config.json", "part/a.bin", "b.bin"):
        (folder / name).write_text(name)
    system = put(folder, "bucket/model")
    copy = Path(local_model("s3://bucket/model"))
    assert copy.name == "model"
    assert (copy / "part" / "a.bin").read_text() == "part/a.bin"
    system.pipe_file("bucket/model/b.bin", b"new")
    system.rm("bucket/model/part/a.bin")
    system.invalidate_cache()
    server.requests.clear()
    assert Path(local_model("s3://bucket/model")) == copy
    assert (copy / "b.bin").read_text() == "new"
    assert not (copy / "part" / "a.bin").exists()
    assert not [line for line in server.requests if line.startswith("GET") and "config.json" in line]


def test_a_store_that_refuses_is_one_sentence_and_leaves_no_evaluation(server: S3Server, tmp_path: Path) -> None:
    server.fail("GET", "", error("400 Bad Request", "ExpiredToken"))
    server.fail("HEAD", "", ("403 Forbidden", b""))  # such an answer has no body, so no code
    for benchmark, model in (("world:s3://bucket/world", "tiny"), ("world:x", "s3://bucket/model")):
        with pytest.raises(
            SigmaError, match="s3://bucket/.*(credentials are refused|may not be read|credentials may not|denied)"
        ) as caught:
            evaluate(benchmark, tmp_path / "out", model=model)
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()
    server.rules.clear()
    with pytest.raises(SigmaError, match="no such bucket|no such file or folder|no corpus"):
        evaluate("world:s3://nowhere/world", tmp_path / "out", model="tiny")
    with pytest.raises(SigmaError, match="no such bucket|no such file or folder"):
        evaluate("world:x", tmp_path / "out", model="s3://bucket/nothing")
