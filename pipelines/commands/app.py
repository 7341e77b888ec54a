"""The command `sigma`: its subcommands by group, errors in one line, exit codes."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Sequence
from typing import Annotated, Any

import typer
import typer.core

from pipelines.commands.browse import browse
from pipelines.commands.build_dataset import build_dataset
from pipelines.commands.checks import checks
from pipelines.commands.command import Command
from pipelines.commands.doctor import doctor
from pipelines.commands.download import download
from pipelines.commands.evaluate import evaluate
from pipelines.commands.export import export
from pipelines.commands.fingerprints import fingerprints
from pipelines.commands.generate import generate
from pipelines.commands.inject import inject
from pipelines.commands.inspect import inspect
from pipelines.commands.plan import plan
from pipelines.commands.quickstart import quickstart
from pipelines.commands.serve_app import serve_app
from pipelines.commands.shard import shard
from pipelines.commands.sources import sources
from pipelines.commands.train import INTERRUPTED, train
from pipelines.commands.upload import upload
from pipelines.commands.validate import validate
from sigma_data.storage.paths import one_line

SUMMARY_LENGTH = 48
"""Characters of a command's summary, the first line of its docstring, in `sigma --help`."""


class Groups(typer.core.TyperGroup):
    """Lists the commands under the names of their groups."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write a section for each group, all with the same columns."""
        width = max(map(len, self.commands))
        groups: dict[str, list[tuple[str, str]]] = {}
        for name, command in self.commands.items():
            row = (name.ljust(width), command.get_short_help_str(SUMMARY_LENGTH + 1))
            groups.setdefault(str(getattr(command, "rich_help_panel", "")), []).append(row)
        for group, rows in groups.items():
            with formatter.section(group):
                formatter.write_dl(rows)


app = typer.Typer(
    name="sigma",
    cls=Groups,
    help="Public image corpora -> one checked interleaved corpus -> post-training -> an evaluated model.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _print_version(asked: bool) -> None:
    if asked:
        from sigma_data.version import sigma_version

        typer.echo(f"sigma {sigma_version()}")
        raise typer.Exit


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_print_version, help="Show the version and exit.")
    ] = False,
) -> None:
    """Global options; `main` looks for --debug itself, so that it may stand anywhere."""
    import logging

    from pipelines.common.console import show_messages

    show_messages(logging.INFO)


_GROUPS: dict[str, dict[str, Callable[..., None]]] = {
    "Data": {
        "sources": sources,
        "download": download,
        "upload": upload,
        "build-dataset": build_dataset,
        "validate": validate,
        "shard": shard,
        "inspect": inspect,
        "browse": browse,
        "fingerprints": fingerprints,
        "inject": inject,
    },
    "Model": {"train": train, "export": export, "generate": generate, "app": serve_app},
    "Evaluation": {"eval": evaluate},
    "Tools": {"quickstart": quickstart, "doctor": doctor, "plan": plan, "checks": checks},
}
for _group, _commands in _GROUPS.items():
    for _name, _command in _commands.items():
        app.command(_name, cls=Command, rich_help_panel=_group)(_command)


_REFUSED = frozenset({errno.EACCES, errno.ENAMETOOLONG, errno.ELOOP})
"""Why the operating system does not even say whether a path exists."""
_KEEP_NOTHING = frozenset({"doctor", "export", "fingerprints", "validate"})
"""Commands that begin anew after an interrupt."""


def _after_interrupt(arguments: Sequence[str]) -> str:
    """What an interrupted command has left, or how to go on."""
    if "--push-to-hub" in arguments:
        return "what was made is kept: run the same command again, or `sigma upload`"
    alone = "generate" in arguments[:1] and "--from" not in arguments
    if alone or "--dry-run" in arguments or set(arguments[:1]) & _KEEP_NOTHING:
        return "nothing was written"
    return "run the same command again to continue"


def main() -> None:
    """Run the command; a user's mistake ends with one line and exit code 2."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments, prog_name="sigma")
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:
            raise
        sys.stderr.write(f"interrupted; {_after_interrupt(arguments)}\n")
        sys.exit(INTERRUPTED)
    except Exception as error:
        from sigma_data.errors import SigmaError

        refused = isinstance(error, OSError) and error.errno in _REFUSED and error.filename is not None
        if debug or not (refused or isinstance(error, SigmaError)):
            raise
        told = f"{error.filename}: {error.strerror}: give another path" if isinstance(error, OSError) else str(error)
        sys.stderr.write(f"sigma: {one_line(told)}\n")
        sys.exit(2)
