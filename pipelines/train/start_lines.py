"""What a training run says to the person who starts it, as text: facts in, lines out."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sigma_data.text_format import aligned, counted


@dataclass(frozen=True)
class Start:
    """What a run is about to do. `corpora`: name -> samples an epoch. `step`: already done by an earlier run."""

    model: str
    trained: bool
    """The weights are released ones, or an export's; otherwise random."""
    parameters: int
    trainable: int
    corpora: Mapping[str, int]
    packs: int
    budget: int
    held_out: int
    """Packs of a validation; 0 where there is none."""
    steps: int
    step: int
    accumulate: int
    ranks: int
    device: str
    out: str
    tokens: str = ""
    """How similar the attribute tokens' rows are; empty where they are drawn at random."""
    quantised: str = ""
    """What the frozen weights of both experts' linear layers are kept in, where that is fewer bits."""


def start_lines(start: Start) -> str:
    """Four lines at the start of a run, more about its attribute tokens, and where it goes on from a checkpoint."""
    whence = "weights as they are stored" if start.trained else "random weights"
    share = "all" if start.trainable == start.parameters else f"{start.trainable:,}"
    corpora = ", ".join(f"{name} ({counted(samples, 'sample')})" for name, samples in start.corpora.items())
    held = f"{counted(start.held_out, 'pack')} held out" if start.held_out else "no validation"
    few = f", linear layers of both experts in {start.quantised}" if start.quantised else ""
    packs = counted(start.accumulate * start.ranks, "pack")
    rows = [
        ("model", f"{start.model}, {whence}; {start.parameters:,} parameters, {share} trainable{few}"),
        *([("attribute tokens", start.tokens)] if start.tokens else ()),
        ("data", f"{corpora}; an epoch is {counted(start.packs, 'pack')} of at most {start.budget:,} tokens; {held}"),
        ("run", f"{counted(start.steps, 'step')} of {packs}, on {counted(start.ranks, 'rank')} ({start.device})"),
        ("writes to", f"{start.out}; Ctrl-C saves and stops, and the same command goes on"),
    ]
    if start.step:
        rows.append(("resuming", f"from step {start.step:,}"))
    return aligned(rows)


def result_line(result: Mapping[str, Any]) -> str:
    """What came of a run, as `trainer.train` returns it, and what to do next."""
    out, skipped = result["out"], f", {result['skipped']:,} of them skipped" if result["skipped"] else ""
    then = (
        f"saved at step {result['checkpoint']:,}, where the same command goes on"
        if result["stopped"]
        else f"`sigma export {shlex.quote(out)} --out DIR` writes a model that `sigma generate --model DIR` takes"
    )
    return f"{out}: {result['steps']:,} of {counted(result['of'], 'step')}{skipped}; {then}\n"
