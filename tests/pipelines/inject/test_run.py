"""`sigma inject`: a file of captions in, a file of instructions out, in its order."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.model_server import Reply, caption_of, completion, model_server
from typer.testing import CliRunner

import cli

CAPTIONS = [
    {"caption": "Add a hat to the man", "family": "editing", "references": 1, "id": "a"},
    {"caption": "A dream of two things", "family": "compositional", "references": [{"image": 1}, {"image": 2}]},
    {"caption": "a red car", "family": "layout", "references": [{"image": 1, "kind": "canny"}], "id": "c"},
]


@pytest.fixture
def captions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SIGMA_CACHE", str(tmp_path / "cache"))
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "captions.jsonl"
    path.write_text("\n".join(json.dumps(one) for one in CAPTIONS) + "\n\n")
    return path


def sigma(*arguments: str) -> Any:
    return CliRunner().invoke(cli.app, ["inject", *arguments])


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rules_are_the_default(captions: Path, tmp_path: Path) -> None:
    result = sigma(str(captions), "--out", str(tmp_path / "out.jsonl"))
    assert result.exit_code == 0, result.output
    found = lines(tmp_path / "out.jsonl")
    assert found[0]["instruction"] == "Add a hat to the <id>man <image_1>"
    assert found[0]["phrases"] == [{"text": "man", "token": "id", "image": 1, "in_frame": False}]
    assert [one["code"] for one in found] == ["", "unbound_reference", ""]
    assert "3 captions" in result.output
    assert "unbound_reference 1" in result.output


def test_a_model_answers_what_the_rules_refuse_and_a_second_run_writes_the_same_bytes(
    captions: Path, tmp_path: Path
) -> None:
    def script(request: dict[str, Any], number: int) -> Reply:
        count = len(json.loads(request["messages"][1]["content"])["references"])
        places = " ".join(f"<image_{n + 1}>" for n in range(count))
        return completion(json.dumps({"phrases": [], "instruction": f"{caption_of(request)} {places}"}))

    with model_server(script) as server:
        asked = ["by=model", "model.name=m", f"endpoint.base_url={server.base_url}"]
        dry = sigma(str(captions), *asked, "--dry-run", "--json")
        assert json.loads(dry.output)["captions"] == 2
        assert server.requests == []
        first = sigma(str(captions), *asked, "-o", str(tmp_path / "1.jsonl"), "--json")
        assert first.exit_code == 0, first.output
        assert len(server.requests) == 2
        assert json.loads(first.stdout)["model"]["answered"] == {"first try": 2}
        sigma(str(captions), *asked, "-o", str(tmp_path / "2.jsonl"))
        assert len(server.requests) == 2
    assert (tmp_path / "1.jsonl").read_bytes() == (tmp_path / "2.jsonl").read_bytes()
    assert lines(tmp_path / "1.jsonl")[1]["instruction"] == "A dream of two things <image_1> <image_2>"


def test_a_budget_that_is_reached_gives_an_exit_code_and_the_rules_go_on(captions: Path, tmp_path: Path) -> None:
    with model_server(lambda request, number: Reply(status=500)) as server:
        result = sigma(str(captions), "by=model", "model.name=m", f"endpoint.base_url={server.base_url}",
                       "endpoint.max_requests=0", "-o", str(tmp_path / "out.jsonl"))  # fmt: skip
    assert result.exit_code == 3
    assert "endpoint.max_requests is reached" in result.output
    assert lines(tmp_path / "out.jsonl")[0]["instruction"] == "Add a hat to the <id>man <image_1>"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "captions.jsonl:1: the line"),
        ('{"caption": "x", "family": "edit", "references": 1}', "captions.jsonl:1: family"),
        ('{"caption": "x", "references": 1}', "captions.jsonl:1: family"),
    ],
)
def test_a_line_that_is_none_is_named(captions: Path, line: str, message: str) -> None:
    captions.write_text(line + "\n")
    result = sigma(str(captions))
    assert result.exit_code != 0
    assert message in str(result.exception)


def test_the_rules_do_not_look_at_the_cache_of_replies(captions: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "injection.sqlite").write_bytes(b"not a database" * 100)
    assert sigma(str(captions)).exit_code == 0
    assert "cannot be used" in str(sigma(str(captions), "by=model", "--dry-run").exception)
