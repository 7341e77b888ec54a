"""Many prompts into a folder: what is read, resuming, failures, the same bytes for any number of processes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support import omnigen2
from support.commands import sigma

from pipelines.generate.batch import BatchConfig, run_batch
from pipelines.generate.prompts import UNREADABLE, read_prompts
from sigma_data.errors import ConfigError

ROWS: list[dict[str, Any]] = [
    {"prompt": "a red cup", "size": "32x32"},
    {"id": "a/b c", "prompt": "put <subject> it <image_1> there", "images": ["red.png"]},
    {"id": "gone", "prompt": "as <image_1>", "images": ["gone.png"]},
    {"id": "four", "prompt": "bold & plain 3 < 4", "size": "32x64"},
]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    Image.new("RGB", (32, 32), (200, 30, 30)).save(tmp_path / "red.png")
    path = tmp_path / "prompts.jsonl"
    path.write_text("".join(f"{json.dumps(row)}\n" for row in ROWS) + "\n", "utf-8")
    return path


def config(source: Path, out: Path, **changes: Any) -> BatchConfig:
    return BatchConfig(source=source, out=out, **{"model": "tiny-base", "steps": 2, "batch": 2, **changes})


def answers(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (out / "answers").glob("*.png")}


@pytest.mark.slow
def test_every_prompt_is_answered_or_listed_and_a_second_run_changes_nothing(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = run_batch(config(source, out))
    assert result["failed"].keys() == {"2"}, result["failed"]
    assert (result["prompts"], result["answered"], result["before"]) == (4, 3, 0)
    assert result["failed"].keys() == {"2"}
    assert "gone.png: cannot be read (No such file or directory)" in result["failed"]["2"]
    rows = [json.loads(line) for line in (out / "results.jsonl").read_text("utf-8").splitlines()]
    assert [row["index"] for row in rows] == [0, 1, 2, 3]
    assert [row.get("file") is None for row in rows] == [False, False, True, False]
    with Image.open(out / rows[3]["file"]) as image:
        assert image.size == (32, 64)
        assert json.loads(image.text["sigma"])["prompt"] == ROWS[3]["prompt"]  # type: ignore[attr-defined]
    page = (out / "index.html").read_text("utf-8")
    assert "1 failed" in page
    assert "bold &amp; plain 3 &lt; 4" in page
    assert "3 < 4" not in page
    before = answers(out)
    times = {path: path.stat().st_mtime_ns for path in (out / "answers").glob("*.png") if "000003" not in path.name}
    (out / "answers" / Path(rows[3]["file"]).name).unlink()
    again = run_batch(config(source, out))
    assert (again["answered"], again["before"]) == (3, 2)
    assert answers(out) == before
    assert {path: path.stat().st_mtime_ns for path in times}.keys() == times.keys()


@pytest.mark.slow
@pytest.mark.parametrize("more", [[], ["--json"]])
def test_the_command_ends_with_1_where_some_failed_and_with_0_once_a_rerun_has_made_them(
    source: Path, tmp_path: Path, more: list[str]
) -> None:
    out = tmp_path / "out"
    words = ["generate", "--from", source, "--out", out, "--model", "tiny-base", "--steps", "2", *more]
    found = sigma(*words)
    assert found.returncode == 1, found.stderr
    told = found.stderr.splitlines()[-1]
    assert told == (
        f"sigma: 1 of 4 prompts failed, listed with the reasons in {out / 'results.jsonl'}: what was made is kept, "
        "and the same command makes what is missing"
    )
    assert ("read: 4 prompts in" in found.stderr) is not bool(more)  # progress is for people
    before = answers(out)
    assert len(before) == 3
    Image.new("RGB", (32, 32), (30, 200, 30)).save(tmp_path / "gone.png")
    again = sigma(*words)
    assert again.returncode == 0, again.stderr
    assert "failed" not in again.stderr
    made = answers(out)
    assert len(made) == 4
    assert {name: made[name] for name in before} == before


@pytest.mark.slow
def test_where_nothing_could_be_answered_the_reason_is_said(tmp_path: Path) -> None:
    (tmp_path / "p.jsonl").write_text('{"prompt": "as <image_1>", "images": ["gone.png"]}\n', "utf-8")
    found = sigma("generate", "--from", tmp_path / "p.jsonl", "--out", tmp_path / "out", "--model", "tiny-base")
    assert found.returncode == 2
    assert "no prompt can be read; the first: gone.png: cannot be read" in found.stderr
    (tmp_path / "p.jsonl").write_text('{"prompt": "a <styl> cup"}\n', "utf-8")
    found = sigma("generate", "--from", tmp_path / "p.jsonl", "--out", tmp_path / "out", "--model", "tiny-base")
    assert found.returncode == 2
    assert "no prompt could be answered; the first, number 0: <styl> in the prompt" in found.stderr


@pytest.mark.slow
def test_two_processes_make_the_same_bytes_as_one_and_parts_those_of_the_whole(source: Path, tmp_path: Path) -> None:
    run_batch(config(source, tmp_path / "one"))
    run_batch(config(source, tmp_path / "two", nproc=2))
    assert answers(tmp_path / "one") == answers(tmp_path / "two")
    run_batch(config(source, tmp_path / "parts", limit=2))
    run_batch(config(source, tmp_path / "parts", start=2))
    assert answers(tmp_path / "one") == answers(tmp_path / "parts")


@pytest.mark.slow
def test_a_prompt_that_was_changed_is_answered_anew_and_other_settings_are_refused(
    source: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run_batch(config(source, out, limit=1))
    source.write_text(source.read_text("utf-8").replace("a red cup", "a blue cup"), "utf-8")
    assert run_batch(config(source, out, limit=1))["before"] == 0
    with pytest.raises(ConfigError, match=r"steps \(2 there, 3 now\)"):
        run_batch(config(source, out, limit=1, steps=3))
    with pytest.raises(ConfigError, match=r"cache \(None there, taylor now\)"):
        run_batch(config(source, out, limit=1, cache="taylor"))
    settings = json.loads((out / "settings.json").read_text("utf-8"))
    for more, words in (
        ({"cache": "taylor"}, r"cache \(taylor there, None now\)"),
        ({"solver": "dpmsolver++"}, r"sampler \(dpmpp there, None now\)"),  # as folders named it before 0.2
    ):
        (out / "settings.json").write_text(json.dumps(settings | more), "utf-8")
        with pytest.raises(ConfigError, match=words):
            run_batch(config(source, out, limit=1))
    (out / "settings.json").write_text(json.dumps(settings | {"solver": None}), "utf-8")
    assert run_batch(config(source, out, limit=1))["before"] == 1


@pytest.mark.slow
def test_a_size_that_the_model_does_not_make_is_told_once(source: Path, tmp_path: Path) -> None:
    rows = [{"prompt": "a", "size": "1024x768"}, {"prompt": "b", "size": "1024x768"}, {"prompt": "c", "size": "32x64"}]
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows), "utf-8")
    words = ["generate", "--from", source, "--out", tmp_path / "out", "--model", "tiny-base", "--steps", "2"]
    told = [line for line in sigma(*words).stderr.splitlines() if "is not a size of" in line]
    assert told == ["sigma: 1024x768 is not a size of tiny-base: made 64x48, and so for 2 prompts"]
    rest = sigma(*words, "--start", "2")
    assert rest.returncode == 0, rest.stderr
    assert "is not a size" not in rest.stderr


@pytest.mark.slow
def test_a_corpus_is_asked_by_split_and_for_text(small_corpus: Path, tmp_path: Path) -> None:
    result = run_batch(config(small_corpus, tmp_path / "images", split="train", limit=2, size=(32, 32)))
    assert result["answered"] == 2
    with pytest.raises(ConfigError, match="splits with samples"):
        run_batch(config(small_corpus, tmp_path / "none", split="nosuch"))
    lines = tmp_path / "ask.jsonl"
    lines.write_text('{"prompt": "What is it?"}\n', "utf-8")
    words = run_batch(config(lines, tmp_path / "words", text=True, max_tokens=4, model="tiny"))
    (row,) = [json.loads(line) for line in Path(words["results"]).read_text("utf-8").splitlines()]
    assert isinstance(row["text"], str)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "is no JSON (Expecting property name"),
        ('["a"]', "has no prompt"),
        ('{"images": []}', "has no prompt"),
        ('{"prompt": "a", "image": "b"}', "unknown key 'image'"),
        ('{"prompt": "a", "images": "b"}', "a list of paths"),
        ('{"prompt": "a", "size": "64"}', "size: write WIDTHxHEIGHT"),
        ('{"prompt": "a \\ud800 cup"}', "has half a character"),
    ],
)
def test_a_wrong_line_is_named_and_a_file_of_such_lines_refused(tmp_path: Path, line: str, said: str) -> None:
    path = tmp_path / "p.jsonl"
    path.write_text(f'{{"prompt": "a"}}\n{line}\n', "utf-8")
    right, wrong = (item for _, item in read_prompts(path, text=False))
    assert (right.instruction, dict(right.truth)) == ("a", {"files": []})
    assert f"{path}, line 2: " in wrong.truth[UNREADABLE] and said in wrong.truth[UNREADABLE]
    path.write_text(f"{line}\n{line}\n", "utf-8")
    with pytest.raises(ConfigError, match="no prompt can be read; the first: .*line 1: ") as told:
        run_batch(config(path, tmp_path / "out"))
    assert said in str(told.value) and not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_line_that_is_no_json_is_listed_with_its_number_and_the_rest_is_made(source: Path, tmp_path: Path) -> None:
    lines = source.read_bytes().splitlines()
    source.write_bytes(b"\n".join([lines[0], b"prompt: a blue cup", b'{"prompt": "\xff"}', lines[3]]))
    found = sigma("generate", "--from", source, "--out", tmp_path / "out", "--model", "tiny-base", "--steps", "2")
    assert found.returncode == 1, found.stderr
    assert "sigma: 2 of 4 prompts failed" in found.stderr and "Traceback" not in found.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "results.jsonl").read_text("utf-8").splitlines()]
    assert ["file" in row for row in rows] == [True, False, False, True]
    assert rows[1]["failure"] == (
        f"{source}, line 2: is no JSON (Expecting value, character 1): write one object a line"
    )
    assert rows[2]["failure"].startswith(f"{source}, line 3: is no JSON (")
    assert "2 failed" in (tmp_path / "out" / "index.html").read_text("utf-8")
    source.write_bytes(b"\n".join([lines[0], lines[1], b'{"prompt": "mended"}', lines[3]]))
    again = run_batch(config(source, tmp_path / "out", batch=8))
    assert (again["before"], again["answered"]) == (2, 4)


@pytest.mark.parametrize(
    ("name", "changes", "said"),
    [
        ("none.jsonl", {}, "no such file"),
        ("folder.jsonl", {}, "holds neither parquet nor JSON lines"),
        ("red.png", {}, "give JSON lines"),
        ("prompts.jsonl", {"split": "test"}, "has no splits"),
        ("prompts.jsonl", {"start": 9}, "has no prompt there: look at --start"),
        ("prompts.jsonl", {"out": "red.png"}, "--out .*red.png: is a file: choose a folder"),
        ("empty.jsonl", {}, "holds no prompt$"),
        ("empty", {}, "is no corpus and holds neither parquet nor JSON lines: give JSON lines"),
        (
            "a.parquet",
            {},
            r"^--from \S+a.parquet: no column image_list or instruction_list, but a .*: write other prompts",
        ),
        ("b.parquet", {}, r"^--from \S+b.parquet: not a parquet file .*; download the file again$"),
    ],
)
def test_a_source_that_cannot_be_asked(source: Path, name: str, changes: dict[str, Any], said: str) -> None:
    folder = source.parent
    for one in ("folder.jsonl", "empty"):
        (folder / one).mkdir()
    for one in ("empty.jsonl", "b.parquet"):
        (folder / one).write_bytes(b"")
    pq.write_table(pa.table({"a": [1]}), folder / "a.parquet")
    out = folder / changes.pop("out", "out")
    with pytest.raises(ConfigError, match=said):
        run_batch(config(folder / name, out, **changes))
    assert not (folder / "out").exists()


def test_of_a_folder_all_files_of_lines_are_asked_in_the_order_of_their_names(tmp_path: Path) -> None:
    (tmp_path / "b.jsonl").write_text('{"prompt": "three"}\n')
    (tmp_path / "a.ndjson").write_text('{"prompt": "one"}\n\n{"prompt": "two", "id": "mine", "images": ["no.png"]}\n')
    (tmp_path / "notes.txt").write_text("x")
    (tmp_path / "._a.jsonl").write_bytes(b"\x00\x05\x16\x07")
    (tmp_path / "c.jsonl").mkdir()
    items = [item for _, item in read_prompts(tmp_path, text=False)]
    assert [(item.id, item.instruction) for item in items] == [("a-1", "one"), ("mine", "two"), ("b-1", "three")]
    assert "no.png: cannot be read" in items[1].truth[UNREADABLE] and "a.ndjson, line 3" in items[1].truth[UNREADABLE]
    assert [index for index, _ in read_prompts(tmp_path, text=False, start=1, limit=1)] == [1]
    (tmp_path / "d.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(ConfigError, match=r"d\.jsonl: cannot be read \(No such file or directory\)"):
        list(read_prompts(tmp_path, text=False))


def test_a_folder_with_other_things_in_it_is_left_alone(source: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("x")
    with pytest.raises(ConfigError, match="not empty"):
        run_batch(config(source, tmp_path / "out"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("a", "--from", "p.jsonl"), "come from the source"),
        (("--from", "p.jsonl", "--image", "a.png"), "come from the source"),
        (("a", "--limit", "3"), "belongs to --from"),
        ((), "give a file of prompts with --from"),
    ],
)
def test_options_that_do_not_go_together(words: tuple[str, ...], said: str) -> None:
    found = sigma("generate", *words)
    assert found.returncode == 2
    assert said in found.stderr


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(source: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ["--from", source, "--model", "tiny-base", "--steps", "2", "--batch", "1"]
    command = [sys.executable, "-m", "cli", "generate", *map(str, options), "--out", str(out)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    while process.poll() is None and not list((out / "answers").glob("*.png")):
        pass
    process.send_signal(signal.SIGKILL)
    process.wait()
    run_batch(config(source, out, batch=1))
    run_batch(config(source, tmp_path / "whole", batch=1))
    assert answers(out) == answers(tmp_path / "whole")


@pytest.mark.slow
def test_an_omnigen2_directory_is_asked_too(source: Path, tmp_path: Path) -> None:
    model = omnigen2.directory(tmp_path / "gen2")
    result = run_batch(config(source, tmp_path / "out", model=str(model), limit=2, size=(32, 32)))
    assert result["answered"] == 2, result["failed"]
    with pytest.raises(ConfigError, match="negative"):
        run_batch(config(source, tmp_path / "other", negative="blurred"))
