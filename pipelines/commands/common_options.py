"""Options of several commands, written once; as light to import as `cli`."""

from __future__ import annotations

from typing import Annotated

import typer


def _only_warnings(as_json: bool) -> bool:
    """Progress and messages are for people: a program that reads the JSON is told of warnings alone."""
    if as_json:
        import logging

        from pipelines.common.console import show_messages

        show_messages(logging.WARNING)
    return as_json


Json = Annotated[bool, typer.Option("--json", callback=_only_warnings, help="Print the result as JSON, for machines.")]
