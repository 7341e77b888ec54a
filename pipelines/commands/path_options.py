"""Options and arguments of commands that are paths: `~` is expanded, a remote place is refused in one sentence."""

from __future__ import annotations

from typing import Any

import typer

from sigma_data.storage.paths import local_path, model_path


def path_option(*names: str, help: str, **more: Any) -> Any:
    """A file or folder of this machine."""
    return typer.Option(*names, parser=local_path, metavar="PATH", help=help, **more)


def path_argument(*, help: str) -> Any:
    """A file or folder of this machine, by its position."""
    return typer.Argument(parser=local_path, help=help, show_default=False)


def model_option(*names: str, help: str) -> Any:
    """A preset, or a model's directory on this machine."""
    return typer.Option(*names, parser=model_path, metavar="TEXT", help=help)
