"""Options of several commands, each written once. Imports nothing heavy: `sigma --help` answers at once.

A default stands where the pipeline's settings have it; `typed` says which options a user gave, so that a
configuration file decides the others.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sigma_data.errors import ConfigError
from sigma_data.storage.paths import is_uri, local_path, model_path, path_or_uri
from sigma_model.dtypes import DType, Quantization
from sigma_model.omnigen2.prompts import Route
from sigma_model.omnigen2.settings import StepCacheKind
from sigma_model.sampling.settings import CacheMethod, Order, Rescale, SamplingSettings, Solver

if TYPE_CHECKING:
    from pydantic import BaseModel

DEFAULTS = SamplingSettings()
BUDGET_REACHED = 3
"""Exit code of a run whose budget left captions to the rules of injection."""
_SETTING = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")


def path_option(*names: str, help: str, **more: Any) -> Any:
    """A file or folder of this machine; `~` is expanded."""
    return typer.Option(*names, parser=local_path, metavar="PATH", help=help, **more)


def path_argument(*, help: str) -> Any:
    """A file or folder of this machine, by its position."""
    return typer.Argument(parser=local_path, help=help, show_default=False)


def place(text: str) -> str:
    """A path of this machine, its `~` expanded, or a URI."""
    return text if is_uri(text) else str(local_path(text))


def model_option(*names: str, help: str, parser: Callable[[str], str] = model_path) -> Any:
    """A preset, or a model's directory on this machine; with `path_or_uri` also one in a store."""
    return typer.Option(*names, parser=parser, metavar="TEXT", help=help)


def _warnings_only(as_json: bool) -> bool:
    """Progress and messages are for people: a program that reads the JSON is told of warnings alone."""
    if as_json:
        import logging

        from pipelines.common.console import show_messages

        show_messages(logging.WARNING)
    return as_json


Json = Annotated[bool, typer.Option("--json", callback=_warnings_only, help="Print the result as JSON, for machines.")]
PrintConfig = Annotated[bool, typer.Option("--print-config", help="Print all settings as YAML and stop.")]
Config = Annotated[Path | None, path_option(help="YAML file with settings (see --print-config).")]
Workers = Annotated[int | None, typer.Option(min=1, help="Most tasks at a time; by default one per core.")]
EngineOption = Annotated[
    Literal["local", "ray"], typer.Option("--engine", help="Where tasks run: processes of this machine, or Ray.")
]
Address = Annotated[
    str | None,
    typer.Option(help="The Ray cluster: auto, local, or HOST:PORT (default: RAY_ADDRESS).", show_default=False),
]
TaskResources = Annotated[
    str | None,
    typer.Option(help="What Ray sets aside for a task, e.g. CPU=2,memory=4GB (CPU=1).", show_default=False),
]
CorpusPath = Annotated[
    str,
    typer.Argument(parser=place, help="A corpus: the folder with corpus.json, or a URI.", show_default=False),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Remove the corpus that is there first.")]

ModelPath = Annotated[
    str | None,
    model_option("--model", "-m", help="A directory in the released layout, or tiny, tiny-base or omnigen2-tiny."),
]
Base = Annotated[
    str | None, model_option(help="Directory of files that MODEL lacks, e.g. BAGEL's for fine-tuned weights alone.")
]
ModelPlace = Annotated[
    str | None,
    model_option("--model", "-m", help="A directory in the released layout, its URI, or a preset.", parser=path_or_uri),
]
BasePlace = Annotated[
    str | None, model_option(help="Directory, or its URI, of files that MODEL lacks.", parser=path_or_uri)
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")]
Dtype = Annotated[
    DType, typer.Option(help="What the network computes in; auto is bfloat16 on a GPU or for a large model.")
]
DeviceMap = Annotated[
    str | None,
    typer.Option(
        help="Where the layers are placed: balanced, auto, or a list, e.g. cuda:0,cuda:1,cpu,disk; by default all on "
        "--device.",
        show_default=False,
    ),
]
Quantize = Annotated[
    Quantization | None,
    typer.Option(help="Store the layers' weights in 4 or 8 bits (needs the extra `quant`).", show_default=False),
]

Seed = Annotated[int, typer.Option(help="Seed of the noise.")]
Steps = Annotated[int, typer.Option(min=2, help="Noise levels of the sampler.")]
TextScale = Annotated[float, typer.Option(help="Guidance towards the text; 1 or less switches it off.")]
ImageScale = Annotated[float, typer.Option(help="Guidance towards the references; 1 or less switches it off.")]
Interval = Annotated[
    tuple[float, float], typer.Option(help="Noise levels, lower first, between which guidance applies.")
]
GuidanceRescale = Annotated[Rescale, typer.Option(help="How guidance is kept from overshooting.")]
RescaleMin = Annotated[float, typer.Option(min=0, max=1, help="Smallest factor of rescaling.")]
TimestepShift = Annotated[float, typer.Option(help="Above 1 spends more steps at high noise.")]
GroupMask = Annotated[
    bool, typer.Option("--group-mask/--no-group-mask", help="Attribute tokens see their own reference only.")
]
Understanding = Annotated[
    bool, typer.Option("--understanding/--no-understanding", help="Show references to the vision encoder, too.")
]
Negative = Annotated[str | None, typer.Option(help="OmniGen2: negative prompt.", show_default=False)]
ReferenceRoute = Annotated[
    Route | None,
    typer.Option("--route", help="OmniGen2: where references go, as in its training (vae).", show_default=False),
]
SamplerOption = Annotated[
    Solver, typer.Option("--sampler", help="How steps are made; heun and dpmpp need fewer of them.")
]
CacheOption = Annotated[
    CacheMethod,
    typer.Option("--cache", help="Leave the network out of some steps: a fixed rhythm (taylor), or by change (tea)."),
]
CacheEvery = Annotated[int, typer.Option(min=1, help="--cache taylor: compute every so-manieth step.")]
CacheOrder = Annotated[
    int, typer.Option(min=0, max=4, help="--cache: degree of the series between computed steps; 0 keeps the last.")
]
CacheThreshold = Annotated[
    float | None,
    typer.Option(
        min=0, help="--cache tea: change to compute a step after; by default as fitted for the model.",
        show_default=False,
    ),
]  # fmt: skip
GuidanceThreshold = Annotated[
    float,
    typer.Option(min=0, help="Leave out a guidance branch for some steps if it differs by less than this share."),
]
StepCache = Annotated[
    StepCacheKind | None,
    typer.Option(help="OmniGen2: leave layers out of some steps as its library does.", show_default=False),
]
Adapter = Annotated[Path | None, path_option(help="A LoRA adapter in peft's files, to merge.")]
Layout = Annotated[Order, typer.Option(help="References at their placeholders, as in training, or after all text.")]
MaxTokens = Annotated[int, typer.Option(min=1, help="Longest text answer, in tokens.")]
Temperature = Annotated[float, typer.Option(min=0, help="Sampling temperature of a text answer; 0 is greedy.")]


def typed(context: typer.Context, model: type[BaseModel]) -> dict[str, Any]:
    """The settings of a model that stand on the command line, as options and arguments of their names."""
    given = {}
    for name in model.model_fields.keys() & context.params.keys():
        source = context.get_parameter_source(name)
        if source is not None and source.name == "COMMANDLINE":
            given[name] = context.params[name]
    return given


def refuse_given(context: typer.Context, names: Sequence[str], why: str) -> None:
    """Raise typer.BadParameter where one of these was given and would do nothing; `why` says what to do instead.

    One that was given as it is by default asks for nothing, and is let pass.
    """
    for name in names:
        [shown] = [param for param in context.command.params if param.name == name]
        origin = context.get_parameter_source(name)
        nothing: tuple[Any, ...] = (None, False, [], (), shown.default)
        if origin is not None and origin.name == "COMMANDLINE" and context.params[name] not in nothing:
            hint = shown.opts[0] if shown.param_type_name == "option" else name.upper()
            raise typer.BadParameter(why, param_hint=hint)


def split_settings(words: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """Arguments as those that are no settings, and the settings written as name=value."""
    found = list(words or ())
    return [word for word in found if not _SETTING.match(word)], [word for word in found if _SETTING.match(word)]


def listed(values: Sequence[str] | None) -> tuple[str, ...]:
    """Values of an option that may be repeated, or list them with commas."""
    return tuple(part.strip() for value in values or () for part in value.split(",") if part.strip())


def pairs(option: str, values: Sequence[str] | None, form: str = "NAME=VALUE") -> dict[str, str]:
    """Values of an option that are pairs. Raises typer.BadParameter."""
    found = {}
    for value in listed(values):
        name, equals, setting = value.partition("=")
        if not equals:
            raise typer.BadParameter(f"{value!r}: write {form}", param_hint=option)
        found[name] = setting
    return found


def need_terminal(what: str) -> None:
    """Raise ConfigError where nobody can be asked; `what` has to be agreed to."""
    if not sys.stdin.isatty():
        raise ConfigError(f"{what} to be agreed to, and there is no terminal to ask in: add --yes if you agree")


def print_result(text: str) -> None:
    """Print a command's result; everything else goes to standard error."""
    typer.echo(text, nl=False)


def print_json(value: Any) -> None:
    """Print a command's result as JSON."""
    import json

    from sigma_data.storage.files import finite

    print_result(json.dumps(finite(value), indent=1, ensure_ascii=False, default=str) + "\n")
