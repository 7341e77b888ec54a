"""A program that is given so much time: where it takes more, all that it started ends with it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress


def run_within(
    seconds: float, command: Sequence[str], env: Mapping[str, str], *, shown: bool = False
) -> subprocess.CompletedProcess[str] | None:
    """The program at its end, or None where it took longer. What it prints is kept, or `shown` but for its errors.

    Killing the program alone would leave its workers, who hold its output open, and so its end would be waited for.
    """
    stdout = None if shown else subprocess.PIPE
    process = subprocess.Popen(
        command, env=env, stdout=stdout, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    try:
        printed, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return subprocess.CompletedProcess(list(command), process.returncode, printed, errors)
