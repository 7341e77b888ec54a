"""Whether a training run would start here: settings, model, corpora, memory, room for its checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pipelines.doctor.finding import Finding, fail, failed, ok, warn
from pipelines.download.catalog import entry_of_folder
from sigma_data.errors import SigmaError
from sigma_data.text_format import counted, format_bytes
from sigma_model.omnigen2.files import RELEASED as OMNIGEN2

if TYPE_CHECKING:
    from pipelines.train.config import TrainConfig
    from pipelines.train.estimate.dry_run import DryRun
    from pipelines.train.estimate.run_estimate import Estimate

ASSUMED = "packs assumed full of images, two references to a target, the largest of {pixels:,} pixels"
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

    advice = "name one that is there"
    try:
        file = config_file(config)
        advice = "mend it; `sigma train CONFIG --print-config` shows all"
        chosen = load_settings(TrainConfig, file, settings)
        check_settings(chosen)
    except SigmaError as error:
        return Run(Path(), None, (fail("config", str(error), advice),))
    return look_config(chosen, memories, available)


def look_config(config: TrainConfig, memories: Sequence[int], available: int) -> Run:
    """The same of settings that are known to be right."""
    from pipelines.train.estimate.dry_run import dry_run

    ranks = max(1, len(memories))
    found = [*_model(config), *_corpora(config)]
    if not failed(found):
        try:
            seen = dry_run(config, ranks=ranks)
        except SigmaError as error:
            found.append(fail("run", str(error), ADVICE))
        else:
            return Run(config.out, _room(seen.estimate), tuple(_fit(seen, memories, available)))
    whole = _assumed(config, ranks)
    if whole is None:
        advice = "run `sigma doctor` again with the model in its place"
        return Run(config.out, None, (*found, warn("memory", "not known without the model's configuration", advice)))
    assumed = ASSUMED.format(pixels=whole.largest_image)
    return Run(config.out, _room(whole), (*found, _memory(whole, memories, available, f"; {assumed}")))


def _room(whole: Estimate) -> int:
    """Bytes of all checkpoints at their most."""
    return int(whole.checkpoint * (whole.checkpoints_kept + 1))  # the oldest goes once the newest is whole


def _assumed(config: TrainConfig, ranks: int) -> Estimate | None:
    """What the run takes, as far as it is known before all is there; None for a model whose shape is not known."""
    from pipelines.train.estimate.assumed import assumed_estimate
    from pipelines.train.omnigen2.description import released_omnigen2
    from pipelines.train.start_description import Description, start_description
    from sigma_model.config import ModelConfig, preset

    model: Description | ModelConfig
    try:
        model = start_description(config)
    except SigmaError:
        entry = entry_of_folder(Path(config.model.path))
        if entry is None or entry.shape is None:
            return None
        model = released_omnigen2(config.omnigen2) if entry.shape == OMNIGEN2 else preset(entry.shape)
    try:
        return assumed_estimate(config, model, ranks=ranks)
    except SigmaError:
        return None


def _model(config: TrainConfig) -> list[Finding]:
    """Whether the model's files fit the run."""
    from pipelines.train.estimate.dry_run import look_at_model
    from pipelines.train.start_description import start_description
    from sigma_model.model_files import how_to_fetch

    try:
        look_at_model(config, start_description(config))
    except SigmaError as error:
        how = how_to_fetch(Path(config.model.path))
        said = str(error).removesuffix(f": {how}")  # of a file that is not there; the line says it once
        return [fail("model", said, f"{how}; or set model.path to where it lies")]
    return [ok("model", f"{config.model.path}: names and shapes fit")]


def _corpora(config: TrainConfig) -> list[Finding]:
    """Whether each corpus can be read."""
    from sigma_data.corpus.corpus import open_corpus

    findings = []
    for corpus in config.data.corpora:
        try:
            found = open_corpus(corpus.path)
        except SigmaError as error:
            advice = "build it (`sigma build-dataset`), or set data.corpora to where it lies"
            findings.append(fail("corpus", str(error), advice))
        else:
            findings.append(ok("corpus", f"{corpus.path}: {counted(len(found), 'sample')}"))
    return findings


def _fit(seen: DryRun, memories: Sequence[int], available: int) -> list[Finding]:
    held = "random weights" if seen.weights is None else format_bytes(seen.weights.bytes)
    findings = [ok("model", f"{seen.model}, {held}: names and shapes fit")]
    findings += [
        ok("corpus", f"{one.path}: {counted(one.samples, 'sample')} an epoch in {counted(one.shards, 'shard')}")
        for one in seen.corpora
    ]
    findings.append(_memory(seen.estimate, memories, available))
    findings += [warn("settings", line, "change it, or leave it if it is meant") for line in seen.warnings]
    return findings


def _memory(whole: Estimate, memories: Sequence[int], available: int, how: str = "") -> Finding:
    """Whether it fits; `how` it was estimated, where that is not from the planned packs."""
    peak = whole.memory_peak
    has, where = (min(memories), "GPU") if memories else (available, "machine")
    found = f"{format_bytes(peak)} estimated for {_each(whole.ranks)}"
    advice = "lower data.budget, use more GPUs, parallel.offload, or LoRA (configs/sigma-lora.yaml)"
    if peak > has:
        return fail("memory", f"{found}, and the {where} has {format_bytes(has)}{how}", advice)
    if peak > 0.9 * has:
        return warn("memory", f"{found}, of {format_bytes(has)}: CUDA and fragments need the rest{how}", advice)
    return ok("memory", f"{found}, of {format_bytes(has)}{how}")


def _each(ranks: int) -> str:
    return "one rank" if ranks == 1 else f"each of {counted(ranks, 'rank')}"
