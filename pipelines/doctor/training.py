"""Whether a training run would start here: settings, model, corpora, memory, room for its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.doctor.finding import Finding, fail, ok, warn
from sigma_data.errors import SigmaError
from sigma_data.text_format import counted, format_bytes

if TYPE_CHECKING:
    from pipelines.train.config import TrainConfig
    from pipelines.train.estimate.dry_run import DryRun

ADVICE = "as it says; `sigma train CONFIG --dry-run` shows more"


@dataclass(frozen=True)
class Run:
    """A run as it is meant: where it writes, what its checkpoints take (None where that is not known)."""

    out: Path
    checkpoints: int | None
    findings: tuple[Finding, ...]


def look_run(config: Path, settings: Sequence[str], memories: Sequence[int], available: int) -> Run:
    """Check a run of this configuration on GPUs with these bytes of memory, or on the CPU with `available` bytes."""
    from pipelines.common.bundled_configs import config_file
    from pipelines.common.settings import load_settings
    from pipelines.train.config import TrainConfig
    from pipelines.train.settings_checks import check_settings

    try:
        chosen = load_settings(TrainConfig, config_file(config), settings)
        check_settings(chosen)
    except SigmaError as error:
        return Run(
            Path(), None, (fail("config", str(error), "mend it; `sigma train CONFIG --print-config` shows all"),)
        )
    return look_config(chosen, memories, available)


def look_config(config: TrainConfig, memories: Sequence[int], available: int) -> Run:
    """The same of settings that are known to be right."""
    from pipelines.train.estimate.dry_run import dry_run

    faults = [*_model(config), *_corpora(config)]
    if faults:
        return Run(config.out, None, tuple(faults))
    try:
        seen = dry_run(config, ranks=max(1, len(memories)))
    except SigmaError as error:
        return Run(config.out, None, (fail("run", str(error), ADVICE),))
    whole = seen.estimate
    most = int(whole.checkpoint * (whole.checkpoints_kept + 1))  # the oldest goes once the newest is whole
    return Run(config.out, most, tuple(_fit(seen, memories, available)))


def _model(config: TrainConfig) -> list[Finding]:
    """What is wrong with the model's files; nothing where they fit."""
    from pipelines.train.estimate.dry_run import look_at_model
    from pipelines.train.start_description import start_description

    try:
        look_at_model(config, start_description(config))
    except SigmaError as error:
        return [fail("model", str(error), "get the model's files whole, or set model.path")]
    return []


def _corpora(config: TrainConfig) -> list[Finding]:
    """What is wrong with each corpus; nothing where all can be read."""
    from sigma_data.corpus.corpus import open_corpus

    findings = []
    for corpus in config.data.corpora:
        try:
            open_corpus(corpus.path)
        except SigmaError as error:
            advice = "build it (`sigma build-dataset`), or set data.corpora to where it lies"
            findings.append(fail("corpus", str(error), advice))
    return findings


def _fit(seen: DryRun, memories: Sequence[int], available: int) -> list[Finding]:
    held = "random weights" if seen.weights is None else format_bytes(seen.weights.bytes)
    findings = [ok("model", f"{seen.model}, {held}: names and shapes fit")]
    findings += [
        ok("corpus", f"{one.path}: {counted(one.samples, 'sample')} an epoch in {counted(one.shards, 'shard')}")
        for one in seen.corpora
    ]
    peak = seen.estimate.memory_peak
    has, where = (min(memories), "GPU") if memories else (available, "machine")
    found = f"{format_bytes(peak)} estimated for each of {counted(seen.estimate.ranks, 'rank')}"
    advice = "lower data.budget, use more GPUs, parallel.offload, or LoRA (configs/sigma-lora.yaml)"
    if peak > has:
        findings.append(fail("memory", f"{found}, and the {where} has {format_bytes(has)}", advice))
    elif peak > 0.9 * has:
        findings.append(warn("memory", f"{found}, of {format_bytes(has)}: CUDA and fragments need the rest", advice))
    else:
        findings.append(ok("memory", f"{found}, of {format_bytes(has)}"))
    findings += [warn("settings", line, "change it, or leave it if it is meant") for line in seen.warnings]
    return findings
