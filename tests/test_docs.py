"""README and docs: links lead somewhere, paths exist, command lines parse, examples run."""

from __future__ import annotations

import ast
import importlib
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from support import image_files
from support.places import ROOT

import cli
from pipelines.common.bundled_configs import config_file

PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)
CODE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PLACE = re.compile(
    r"`((?:sigma_data|sigma_model|pipelines|tests|benchmarks|tools|configs|docs|examples)/[^` ]*|cli\.py)`"
)
OPTIONS_ELSEWHERE = {
    "--logdir",
    "--steps",
    "--batch",
    "--seed",
    "--learning-rate",
    "--start",
    "--source",
}
"""Of other programs that the text names: tensorboard, tools, benchmarks."""

LAYERS = ("sigma_data", "sigma_model", "pipelines")

pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


def commands(page: Path) -> Iterator[str]:
    """The command lines of a page's consoles, each in one line without its comment."""
    for language, block in CODE.findall(page.read_text()):
        if language == "console":
            for line in block.replace("\\\n", " ").splitlines():
                if line.startswith("$ "):
                    yield line[2:]


def prose(page: Path) -> str:
    return CODE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", CODE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 180


@pages
def test_links_and_images_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name).resolve() if name else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file), target


@pages
def test_every_path_that_is_named_exists(page: Path) -> None:
    for place in PLACE.findall(page.read_text()):
        assert (ROOT / place).exists(), place


def test_the_newcomers_questions_are_answered_by_paths() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    answers = re.findall(r"^\d+\. .*\? (.*)$", text, re.MULTILINE)
    assert len(answers) == 12
    assert all(PLACE.search(answer) for answer in answers)


COMMANDS = [(page.name, line) for page in PAGES for line in commands(page) if line.startswith("sigma ")]


def test_the_pages_show_commands() -> None:
    shown = {line.split()[1] for _, line in COMMANDS}
    assert shown >= {"quickstart", "build-dataset", "train", "export", "eval", "generate", "plan", "validate", "shard"}


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_every_command_line_parses(page: str, line: str) -> None:
    _, name, *arguments = shlex.split(line, comments=True)
    app: Any = typer.main.get_command(cli.app)
    command = app.commands[name]
    context = command.make_context(name, arguments)  # parses, and refuses what it does not know, but runs nothing
    given = {one.name for one in command.params if one.param_type_name == "argument"}
    lists = [value for key, value in context.params.items() if key in given and isinstance(value, list | tuple)]
    words = [word for value in lists for word in value]
    settings_exist(name, [word for word in words if re.match(r"[a-z_.]+=", word)])
    config = context.params.get("config")
    if config is not None:
        assert (ROOT / config).is_file() or config_file(Path(config), build=name == "build-dataset").is_file()


def settings_exist(command: str, words: list[str]) -> None:
    """Whether `name=value` words are settings of the command."""
    from pipelines.build_dataset.config import BuildConfig
    from pipelines.inject.config import InjectionSettings
    from pipelines.train.config import TrainConfig
    from sigma_data.planning.plan import PlanSettings

    model = {
        "build-dataset": BuildConfig,
        "inject": InjectionSettings,
        "plan": PlanSettings,
        "train": TrainConfig,
        "export": TrainConfig,
    }.get(command)
    for word in words:
        fields: Any = getattr(model, "model_fields", {})
        for part in word.partition("=")[0].split("."):
            assert part in fields, word
            fields = getattr(fields[part].annotation, "model_fields", {})


@pages
def test_every_option_that_is_named_exists(page: Path) -> None:
    app: Any = typer.main.get_command(cli.app)
    known = {name for command in [app, *app.commands.values()] for parameter in command.params
             for name in (*parameter.opts, *parameter.secondary_opts)}  # fmt: skip
    named = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", " ".join(re.findall(r"`[^`]*`", prose(page)))))
    assert named <= known | OPTIONS_ELSEWHERE | {"--help", "--strict"}


@pages
def test_python_compiles_and_what_it_imports_of_ours_exists(page: Path) -> None:
    for language, block in CODE.findall(page.read_text()):
        if language == "python":
            for node in ast.walk(ast.parse(block)):
                if isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in LAYERS:
                    module = importlib.import_module(str(node.module))
                    assert all(hasattr(module, alias.name) for alias in node.names), node.module


def example(heading: str) -> str:
    """The Python under a heading of docs/extending.md."""
    section = (ROOT / "docs" / "extending.md").read_text().split(f"## {heading}\n")[1]
    return next(block for language, block in CODE.findall(section) if language == "python")


def test_the_example_of_a_check_finds_what_it_describes(monkeypatch: pytest.MonkeyPatch) -> None:
    from sigma_data.corpus import checks
    from sigma_data.corpus.check_limits import Limits
    from sigma_data.images.decode import probe
    from sigma_data.sample import Family, Image, Sample, Source, Turn

    monkeypatch.setattr(checks, "RULES", dict(checks.RULES))
    names = dict(vars(checks))
    exec(compile(example("A check"), "extending.md", "exec"), names)
    image = Image(1, image_files.image_bytes("png", 1))
    sample = Sample("a", Family.EDITING, (image,), (Turn("MAKE <image_1> RED"),), Source("mine", "a", 0))
    assert list(names["_shouting"](checks.RuleContext(sample, Limits(), probe))) == [
        "the instruction is all in capitals"
    ]
