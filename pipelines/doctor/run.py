"""All checks, in order; what a check itself trips over is a finding, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from pipelines.common.console import warnings_only
from pipelines.doctor.finding import Finding, fail
from pipelines.doctor.machine import look_disk, look_machine, memory
from pipelines.doctor.ranks import look_ranks
from pipelines.doctor.software import look_packages, look_python, look_torch
from pipelines.doctor.training import look_run


def doctor(config: Path | None, settings: Sequence[str] = (), *, quick: bool = False) -> list[Finding]:
    """Check the machine and, with a configuration, the run that it describes.

    `quick` starts no processes and measures no disk. Never raises for what it finds.
    """
    with warnings_only():
        findings = [look_python(), *_guarded("packages", look_packages), *_guarded("torch", look_torch)]
        findings += _guarded("machine", look_machine)
        memories = _guarded_memories()
        if not quick:
            findings += _guarded("ranks", lambda: look_ranks(len(memories)))
        out, needed = Path(), None
        if config is not None:
            run = look_run(config, settings, memories, memory()[1])
            out, needed = run.out, run.checkpoints
            findings += run.findings
        findings += _guarded("disk", lambda: look_disk(out, measure=not quick, needed=needed))
    return findings


def _guarded(name: str, look: Callable[[], Iterable[Finding]]) -> list[Finding]:
    """What a check finds. A doctor that falls over what it is asked about helps nobody."""
    try:
        return list(look())
    except Exception as error:
        told = (str(error).splitlines() or [""])[0][:200]
        advice = "this check itself failed: please report it, with what --debug shows of the command that fails"
        return [fail(name, f"{type(error).__name__}: {told}", advice)]


def _guarded_memories() -> list[int]:
    """Bytes of each GPU; none where torch cannot be asked, of which its own check speaks."""
    try:
        import torch

        return [torch.cuda.get_device_properties(number).total_memory for number in range(torch.cuda.device_count())]
    except Exception:
        return []
