"""Paths are names: nothing in them is a pattern or a URI, `~` means home, and a remote place is told where it cannot be."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from support import corpora
from support.places import ROOT

import cli
from pipelines.common.settings import load_settings
from pipelines.inspect.run import inspect_corpus, inspect_sample
from pipelines.plan.config import plan_config
from pipelines.plan.run import run_plan
from pipelines.shard.run import Selection, export_release, reshard
from pipelines.train.config import TrainConfig
from pipelines.validate.run import validate_corpus
from sigma_data.corpus.corpus import open_corpus
from sigma_data.errors import ConfigError
from sigma_data.sources import open_source, source_spec
from sigma_data.storage.paths import is_uri, local_path, model_path, one_line, path_or_uri

NAMES = [
    "run [v1]", "a*b", "50%", "%3F", "x{1..3}", "q?x", "w??t", "q?x=1", "name #2", "a:b", "a::b", "s3:x", "a=b&c",
    "-lead", "ünï 数据", "new\nline", "~x", "back\\slash", "'quoted'", "$HOME",
]  # fmt: skip


def run_main(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    """The exit code of the command, run in this process."""
    monkeypatch.setattr(sys, "argv", ["sigma", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_corpus_may_lie_in_a_folder_of_any_name(
    name: str, small_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # a relative path with a colon is what some libraries take for a URI
    folder = local_path(f"./{name}")
    shutil.copytree(small_corpus, folder / "corpus")
    corpus = folder / "corpus"
    assert validate_corpus(corpus, deep=False, workers=0).problems == []
    assert len(inspect_corpus(corpus).families) == 6
    inspect_sample(corpus, "0", folder / "sample.png")
    counts = reshard(corpus, folder / "part", Selection(limit=3), shard_bytes=10**9, shard_samples=10, workers=0)
    assert counts["samples"] == 3
    assert len(open_corpus(folder / "part").manifest) == 3
    assert export_release(corpus, folder / "release", Selection())["samples"] == 37
    told = run_plan(plan_config((f"./{name}/corpus",), ("budget=8192",)))
    assert told["epochs"][0]["packs"] > 0
    for layout, below in (("release", "release"), ("webdataset", "corpus")):
        reader = open_source(source_spec(layout, f"./{name}/{below}"))
        assert sum(1 for fragment in reader.fragments() for _ in reader.read(fragment)) == 37
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_corpus_is_built_into_and_from_folders_of_any_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    corpora.make_release(tmp_path / "in [a]*:b?c", 8)
    result = corpora.build(Path("run [v1]:x"), "release:in [a]*:b?c")
    assert result.corpus.sums["written"] == 8
    assert validate_corpus(Path("run [v1]:x"), deep=True, workers=0).problems == []


@pytest.mark.parametrize(
    ("text", "path", "license"),
    [
        ("a", "a", "unknown"),
        ("a?license=b", "a", "b"),
        ("a?license=https://x/y?z=1", "a", "https://x/y?z=1"),
        ("q?x", "q?x", "unknown"),
        ("q?x/y z?license=b", "q?x/y z", "b"),
        ("w??t", "w??t", "unknown"),
        ("q??x=1", "q?x=1", "unknown"),
        ("q??x=1?license=b", "q?x=1", "b"),
        ("q???license=b", "q?", "b"),
        ("a?", "a", "unknown"),
        ("a??", "a?", "unknown"),
        ("50%20#&=:[*]{1}", "50%20#&=:[*]{1}", "unknown"),
    ],
)
def test_options_of_a_source_begin_where_an_option_does(text: str, path: str, license: str) -> None:
    reader = open_source(f"release:{text}")
    assert (reader.path, reader.options.license) == (path, license)  # type: ignore[attr-defined]


@pytest.mark.parametrize("path", [*NAMES, "a?", "a??license=b", "?x=1"])
def test_a_source_spec_opens_the_very_path(path: str) -> None:
    assert open_source(source_spec("release", path) if not path.startswith("~") else f"release:./{path}").path in (
        path,
        f"./{path}",
    )
    assert open_source(source_spec("release", f"./{path}") + "?name=z").path == f"./{path}"


def test_a_question_mark_of_the_path_that_looks_like_an_option_is_told_how_to_be_written() -> None:
    with pytest.raises(ConfigError, match=r"a \? of the path itself is written \?\?"):
        open_source("release:q?x=1")


# Home -----------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    monkeypatch.setenv("HOME", str(folder))
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    return folder


def test_a_tilde_is_home_in_every_setting_that_is_a_path(home: Path) -> None:
    config = load_settings(
        TrainConfig, None, ["out=~/run", "model.path=~/m", "model.base=~/b", "loader.cache=~/c", "steps=1"],
        data={"corpora": [{"path": "~/one"}, {"path": "s3://b/~two"}]},
    )  # fmt: skip
    assert (config.out, config.model.path, config.model.base) == (home / "run", f"{home}/m", f"{home}/b")
    assert config.loader.cache == home / "c"
    assert [corpus.path for corpus in config.data.corpora] == [f"{home}/one", "s3://b/~two"]


def test_a_tilde_is_home_only_in_front_and_no_folder_is_named_after_it(home: Path) -> None:
    assert local_path("~") == home
    assert local_path("~/a [b]") == home / "a [b]"
    assert local_path("a/~/b") == Path("a/~/b")
    assert local_path("./~/b") == Path.cwd() / "~" / "b"
    assert local_path(local_path("./~")) == Path.cwd() / "~", "a second time changes nothing"
    assert (path_or_uri("~/a"), path_or_uri("./~a"), path_or_uri("s3://b/~a")) == (f"{home}/a", "./~a", "s3://b/~a")
    assert (model_path("tiny"), model_path("~/m")) == ("tiny", f"{home}/m")
    with pytest.raises(ConfigError, match=r"~nobody-here has no home folder here; if it is a name, write \./~nobody"):
        local_path("~nobody-here/x")


@pytest.mark.parametrize("read", [local_path, model_path, path_or_uri])
def test_a_store_with_a_slash_too_few_is_no_folder_of_that_name(home: Path, read: Callable[[str], Any]) -> None:
    with pytest.raises(
        ConfigError, match=r"^S3:/bucket/x: write s3://bucket/x; if it is a folder here, write \./S3:/b"
    ):
        read("S3:/bucket/x")
    with pytest.raises(ConfigError, match="write simplecache::gs://bucket;"):
        read("simplecache::gs:/bucket")
    assert Path(read("./s3:/bucket")).absolute() == Path.cwd() / "s3:" / "bucket"
    assert local_path(local_path("./s3:/bucket")) == Path.cwd() / "s3:" / "bucket"
    assert Path(read("a:/b")) == Path("a:/b"), "colons belong to the name"


def test_environment_variables_are_not_expanded(home: Path) -> None:
    assert local_path("$HOME/${X}") == Path("$HOME/${X}")


@pytest.mark.slow
def test_commands_put_what_they_write_under_home_and_never_under_a_tilde(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    corpora.make_release(home / "release", 6)
    for arguments in (
        ["build-dataset", "release:~/release", "--out", "~/corpus", "--workers", "1", "--json"],
        ["validate", "~/corpus"],
        ["inspect", "~/corpus", "0", "--out=~/sample.png"],
        ["shard", "~/corpus", "--out", "~/export", "--to", "release"],
        ["plan", "~/corpus", "budget=8192"],
    ):
        assert run_main(arguments, monkeypatch) == 0, arguments
    assert {path.name for path in home.iterdir()} >= {"corpus", "sample.png", "export"}
    assert list(Path().iterdir()) == []


# Remote places where only local ones will do ----------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        ["shard", "x", "--out", "s3://bkt/y"],
        ["train", "s3://bkt/x.yaml"],
        ["train", "run.yaml", "out=s3://bkt/run"],
        ["train", "run.yaml", "model.path=hf://owner/model"],
        ["export", "s3://bkt/run", "--out", "y"],
        ["generate", "a cat", "--model", "s3://bkt/x"],
        ["generate", "a <image_1>", "--image", "https://host/x.png"],
        ["eval", "geneval:s3://bkt/x", "--out", "y"],
        ["eval", "sigma:x", "--out", "memory://y"],
        ["quickstart", "--out", "s3://bkt/x"],
    ],
)
def test_a_remote_place_that_must_be_local_is_one_sentence_with_its_whole_name(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("out: run\nsteps: 1\ndata: {corpora: [{path: x}], budget: 100}\n")
    assert run_main(arguments, monkeypatch) == 2
    (line,) = capsys.readouterr().err.splitlines()
    uri = next(
        part for word in arguments for part in [word.rpartition("=")[2].removeprefix("geneval:")] if is_uri(part)
    )
    assert f"{uri}: is a remote place" in line
    assert [path.name for path in tmp_path.iterdir()] == ["run.yaml"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["validate", "s3://bkt/x"],
        ["inspect", "s3://bkt/x"],
        ["shard", "gs://bkt/x", "--out", "y"],
        ["eval", "sigma:s3://bkt/x", "--model", "tiny", "--out", "y"],
        ["eval", "sigma:x", "--model", "s3://bkt/x", "--out", "y"],
        ["build-dataset", "world:10", "--out", "s3://bkt/x"],
    ],
)
def test_a_remote_place_that_cannot_be_reached_is_one_sentence_with_its_whole_name(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("SIGMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    assert run_main(arguments, monkeypatch) == 2
    *_, line = capsys.readouterr().err.splitlines()
    uri = next(part for word in arguments for part in [word.removeprefix("sigma:")] if is_uri(part))
    assert line.startswith(f"sigma: {uri}: ")
    assert not (tmp_path / "y").exists()


TABLE = re.findall(
    r"^\| `sigma (.*s3://.*)` \| (yes|no) \|$", (ROOT / "docs" / "scale.md").read_text("utf-8"), re.MULTILINE
)


def test_the_table_of_places_names_every_command_that_takes_corpora_or_models() -> None:
    assert {line.split()[0] for line, _ in TABLE} == {
        "build-dataset", "validate", "inspect", "fingerprints", "shard", "plan", "train", "export", "generate", "eval",
        "quickstart", "browse", "upload", "inject", "app", "download", "sources",
    }  # fmt: skip


@pytest.mark.parametrize(("line", "address"), TABLE)
def test_a_place_of_the_table_is_reached_for_or_told_to_be_local(
    line: str, address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("SIGMA_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    Path("run.yaml").write_text("out: run\nsteps: 1\ndata: {corpora: [{path: x}], budget: 100}\n")
    words = shlex.split(line.replace("[{", "'[{").replace("}]", "}]'"))
    assert run_main(words, monkeypatch) == 2
    *_, told = capsys.readouterr().err.splitlines()
    uri = re.search(r"s3://[a-z/]+", line)
    assert uri is not None
    assert uri[0] in told
    assert ("is a remote place" in told) == (address == "no")


def test_a_message_is_one_line_whatever_names_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_main(["validate", f"{tmp_path}/new\nline\x1b[31m"], monkeypatch) == 2
    assert capsys.readouterr().err == f"sigma: {tmp_path}/new\\nline\\x1b[31m: no such folder\n"
    assert one_line("数 [a]") == "数 [a]"
