"""What every command makes of the words behind it: pairs as people write them, and mistakes told in words."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import typer
import typer.core

if TYPE_CHECKING:
    from pydantic import ValidationError

_NUMBER = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")
_BETWEEN = re.compile(r"\s*,\s*|\s+")


class Command(typer.core.TyperCommand):
    """A command whose options of two numbers take `0.4 1.0`, `0.4,1.0` and `[0.4, 1.0]`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Options and arguments as the command takes them. Raises typer.BadParameter in words."""
        pairs = {name for param in self.params if param.nargs == 2 for name in param.opts}
        try:
            return super().parse_args(ctx, split_pairs(args, pairs))
        except typer.BadParameter as error:
            from pydantic import ValidationError  # only here: it takes a tenth of a second

            if isinstance(error.__cause__, ValidationError):
                error.message = _error_message(error.__cause__)
            raise


def _error_message(error: ValidationError) -> str:
    """What is wrong with an option's value, without the library's own terms."""
    from pydantic import BaseModel

    from pipelines.common.settings_messages import error_message

    return error_message(error.errors(include_url=False)[0], BaseModel)[1]


def split_pairs(args: list[str], options: set[str]) -> list[str]:
    """The words of a command line with both numbers of each of these options as words of their own.

    Raises typer.BadParameter where an option has not two numbers.
    """
    found: list[str] = []
    place = 0
    while place < len(args):
        word = args[place]
        place += 1
        if word == "--":
            return found + args[place - 1 :]
        name, equals, value = word.partition("=")
        if name not in options:
            found.append(word)
            continue
        words = [value] if equals else []
        while place < len(args) and len(_values(words)) < 2 and not args[place].startswith("--"):
            words.append(args[place])
            place += 1
        values = _values(words)
        if len(values) != 2 or not all(_NUMBER.fullmatch(one) for one in values):
            raise typer.BadParameter(f"{' '.join(words)!r}: write two numbers, e.g. 0.4,1.0", param_hint=name)
        found += [name, *values]
    return found


def _values(words: list[str]) -> list[str]:
    text = " ".join(words).strip()
    if text.startswith(("[", "(")):
        text = text[1:].rstrip("])")
    return [part for part in _BETWEEN.split(text.strip()) if part]
