"""Words behind a command: pairs as people write them, lists with commas, mistakes without a library's terms."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.commands import sigma
from typer.testing import CliRunner

import cli
from pipelines.commands.command import split_pairs
from pipelines.commands.options import listed, pairs
from pipelines.common.inference_config import parse_size


@pytest.mark.parametrize(
    "words",
    [["0.4", "1.0"], ["0.4,1.0"], ["0.4, 1.0"], ["0.4,", "1.0"], ["0.4 1.0"], ["[0.4,1.0]"], ["[0.4,", "1.0]"],
     ["(0.4, 1.0)"], ["0.4", ",", "1.0"]],
)  # fmt: skip
def test_a_pair_may_be_written_in_any_usual_way(words: list[str]) -> None:
    wanted = ["prompt", "--interval", "0.4", "1.0", "--steps", "3"]
    assert split_pairs(["prompt", "--interval", *words, "--steps", "3"], {"--interval"}) == wanted
    joined = ["prompt", f"--interval={words[0]}", *words[1:], "--steps", "3"]
    assert split_pairs(joined, {"--interval"}) == wanted


def test_other_words_stay_as_they_are() -> None:
    words = ["a, b", "--size=3,4", "--", "--interval", "1,2"]
    assert split_pairs(words, {"--interval"}) == words


@pytest.mark.parametrize("command", ["generate", "eval"])
@pytest.mark.parametrize("words", [["0.4"], ["0.4,a"], ["0.4,0.5,0.6"], ["--steps", "3"], ["0.4", "--steps"]])
def test_what_is_no_pair_is_told_by_the_option(command: str, words: list[str]) -> None:
    result = CliRunner().invoke(cli.app, [command, "x", "--interval", *words])
    assert result.exit_code == 2
    assert "--interval" in result.output and "write two numbers, e.g. 0.4,1.0" in result.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["generate", "x", "--steps", "abc"], "'--steps': needs a whole number, not 'abc'"),
        (["generate", "x", "--steps", "1"], "'--steps': must be at least 2, not '1'"),
        (["generate", "x", "--text-scale", "much"], "'--text-scale': needs a number, not 'much'"),
        (["train", "x", "--nproc", "0"], "'--nproc': must be at least 1, not '0'"),
        (["shard", "x", "--out", "y", "--to", "relase"], "'--to': 'relase' is not one of 'corpus', 'release'"),
    ],
)
def test_a_mistake_in_an_option_is_told_in_words(words: list[str], told: str) -> None:
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 2
    assert told in result.output
    assert "Input should" not in result.output


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ["build-dataset", "world:3?families=foo:1", "--out", "DIR/out"],
            "families: 'foo' is not one of compositional",
        ),
        (["build-dataset", "world:3?size=abc", "--out", "DIR/out"], "size: must be a valid integer"),
        (["generate", "x", "--model", "DIR", "--out", "DIR/x.png"], "has no llm_config.json, nor weights: name the"),
        (["export", "DIR", "--out", "DIR/out"], "is no run of `sigma train`, which has a config.yaml: name the folder"),
    ],
)
def test_what_is_not_what_it_should_be_is_told_in_words(words: list[str], told: str, tmp_path: Path) -> None:
    result = sigma(*(word.replace("DIR", str(tmp_path)) for word in words))
    assert result.returncode == 2
    assert told in result.stderr and "Value error" not in result.stderr
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("validate x --engine ray", "--engine: belongs to --deep"),
        ("validate x --address auto", "--address: belongs to --deep"),
        ("build-dataset world:3 --out DIR/x --work DIR/y", "--work: is for an --out in a store"),
        ("build-dataset world:3 --out DIR/x --rate 5", "--rate: belongs to --dry-run"),
        ("build-dataset world:3 --out DIR/x --address auto", "add --engine ray"),
        ("build-dataset world:3 --out DIR/x --task-resources CPU=2", "add --engine ray"),
        ("shard x --out DIR/y --to release --shard-bytes 9", "--shard-bytes: is for a corpus"),
        ("shard x --out DIR/y --to release --engine ray", "--engine: is for a corpus"),
        ("train quickstart --rdzv a:1", "--rdzv: is where several machines meet: say how many with --nnodes"),
        ("train quickstart --ranks 2", "--ranks: belongs to --dry-run"),
        ("download --out DIR/x", "--out: needs a NAME"),
        ("download bagel --dataset", "is a model: leave --dataset out"),
        ("generate --from x.jsonl --text --steps 9", "--steps: is of images: leave it out with --text"),
        ("generate --from x.jsonl --max-tokens 9", "--max-tokens: is of text answers"),
        ("fingerprints DIR --out DIR/x --split test", "is not a corpus and has no splits: leave --split out"),
        ("eval questions:CORPUS --model tiny --out DIR/x --cache taylor", "is answered with text: leave --cache out"),
        ("eval questions:CORPUS --model tiny --out DIR/x --steps 9", "is answered with text: leave --steps out"),
        ("eval cv-bench:DIR --model tiny --out DIR/x --negative a", "is for OmniGen2 models alone"),
        (
            "eval sigma:CORPUS --model tiny --out DIR/x --max-tokens 9",
            "is answered with images: leave --max-tokens out",
        ),
        ("eval world:x --out DIR/x --stage report --engine ray", "--engine ray is for scoring"),
        ("eval world:x --model tiny --out DIR/x --task-resources CPU=2", "add --engine ray"),
    ],
)
def test_an_option_that_would_do_nothing_is_refused_with_what_to_do(
    words: str, told: str, small_corpus: Path, tmp_path: Path
) -> None:
    result = sigma(*words.replace("DIR", str(tmp_path)).replace("CORPUS", str(small_corpus)).split())
    assert result.returncode == 2
    assert told in result.stderr
    assert not any(tmp_path.iterdir())


def test_an_option_given_as_it_is_by_default_or_as_a_bound_that_is_kept_is_let_pass(small_corpus: Path) -> None:
    assert sigma("validate", small_corpus, "--engine", "local", "--workers", "4").returncode == 0


def test_lists_may_be_written_with_commas() -> None:
    assert listed(["editing,layout", "relation"]) == ("editing", "layout", "relation")
    assert listed(None) == ()
    assert pairs("--quota", ["editing=3,layout=4"]) == {"editing": "3", "layout": "4"}


@pytest.mark.parametrize("text", ["1024x768", "1024,768", "1024 x 768", "1024X768", "1024×768"])
def test_a_size_is_a_pair(text: str) -> None:
    assert parse_size(text) == (1024, 768)


@pytest.mark.parametrize("text", ["64", "0x64", "64x", "64x-3", "axb"])
def test_a_size_is_two_numbers(text: str) -> None:
    with pytest.raises(ValueError, match="WIDTHxHEIGHT"):
        parse_size(text)


def test_the_list_of_checks_fits_a_terminal() -> None:
    told = CliRunner().invoke(cli.app, ["checks"]).output
    listed = json.loads(CliRunner().invoke(cli.app, ["checks", "--json"]).output)
    assert len(listed) > 30 and all(one["code"] in told and one["severity"] in told for one in listed)
    assert max(map(len, told.splitlines())) < 80
