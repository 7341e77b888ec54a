"""`sigma` as a user types it, in this process: starting Python and importing torch takes seconds each time."""

from __future__ import annotations

import contextlib
import io
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import cli


@dataclass(frozen=True)
class Ended:
    """What a process would have left, by subprocess's names."""

    returncode: int
    stdout: str
    stderr: str


def sigma(*words: str | Path) -> Ended:
    """Run `sigma WORDS`; an exception that nobody caught is a traceback and 1, as in a process."""
    code = 0
    with (
        contextlib.redirect_stdout(io.StringIO()) as out,
        contextlib.redirect_stderr(io.StringIO()) as err,
        mock.patch.object(sys, "argv", ["sigma", *map(str, words)]),
    ):
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except Exception:
            traceback.print_exc()
            code = 1
    return Ended(code, out.getvalue(), err.getvalue())
