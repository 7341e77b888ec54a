"""The loop: read packs, step, log, validate, save, until the steps are done or someone says stop."""

from __future__ import annotations

import errno
import logging
import os
import resource
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, nullcontext, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch

from pipelines.common.console import warnings_only
from pipelines.common.folder_lock import LOCK, FolderLock
from pipelines.train.config import TrainConfig
from pipelines.train.distributed.process_group import (
    ProcessGroup,
    all_reduce_sum,
    from_rank0,
    on_all_ranks,
    start_process_group,
    stop_process_group,
)
from pipelines.train.distributed.rank_agreement import facts_of
from pipelines.train.estimate.flops import Work, peak_flops
from pipelines.train.logs import Meter, RunLog
from pipelines.train.losses import loss_names
from pipelines.train.optimizer import learning_rate
from pipelines.train.preflight import check_out
from pipelines.train.qlora import quantized_numel
from pipelines.train.run import TrainingRun, compute_dtype, computes_otherwise, make_run
from pipelines.train.settings_checks import EpochContent, check_machine, check_settings, warnings
from pipelines.train.settings_history import record_settings
from pipelines.train.start_from import take_start
from pipelines.train.start_lines import Start, start_lines
from pipelines.train.train_step import StepResult, TrainStep
from sigma_data.errors import ConfigError, SigmaError, TrainError
from sigma_data.loading.loader import Loaded, Loader
from sigma_data.loading.skip_log import SkipLog
from sigma_data.sample import Family
from sigma_data.storage.files import disk_error
from sigma_model.attention import flash_available

logger = logging.getLogger(__name__)

_OF_STEP = ("loss", "norm", "lr", "skipped", "epoch", "pack", "memory")
_SHOWN = ("val/image", "val/text", "val_ema/image", "val_ema/text")
_VISIBLE_AFTER = 60.0
"""Seconds that a shared folder may take to show a new file on other machines."""
SKIPPED = "skipped-{rank}.jsonl"
"""Samples with bad images that a rank has met."""


def train(config: TrainConfig, *, machines: int | None = None) -> dict[str, Any]:
    """Train, resuming where the folder has a checkpoint; returns what came of it.

    `machines` is how many this rank was told of, which all must agree on, as on all else they read. Raises SigmaError
    for what a user can mend.
    """
    # Longer than anything that one rank does alone while the others wait: an index to be made, a slow disk.
    patience = max(3600.0, config.loader.timeout + 300)
    check_settings(config)
    on_gpu = torch.cuda.is_available()
    check_machine(config, on_gpu=on_gpu, flash=on_gpu and flash_available())
    facts = facts_of(config, **{"--nnodes": machines or "left to the launcher"})
    group = start_process_group(config.parallel, mixed=computes_otherwise(config), timeout_s=patience, facts=facts)
    run = lock = None
    try:
        lock = on_all_ranks(group, lambda: _lock(config.out) if group.rank == 0 else None)
        _check_shared(config.out, group)
        config = take_start(config, group)
        with nullcontext() if group.rank == 0 else warnings_only():
            run = make_run(config, group)
            return Trainer(run).run()
    except OSError as error:
        if not _refused(error, config.out):
            raise
        raise disk_error(error, config.out, option="out=") from None
    finally:
        if run is not None:
            with suppress(SigmaError):  # after an error, which says more
                run.checkpointer.finish()  # a save in flight needs the other ranks
        if lock is not None:
            lock.release()
        stop_process_group()


def _lock(out: Path) -> FolderLock:
    """Take the folder of the run, which another training may not enter then."""
    check_out(out)
    try:
        return FolderLock(out / LOCK, "training", otherwise="choose another place with out=")
    except OSError as error:
        raise disk_error(error, out, option="out=") from None


def _check_shared(out: Path, group: ProcessGroup) -> None:
    """Raise ConfigError, on all ranks, where one does not see the folder that rank 0 has locked."""
    if group.size == 1:
        return
    token = from_rank0(group, lambda: (out / LOCK).read_text("utf-8"))

    def look() -> None:
        deadline = time.monotonic() + _VISIBLE_AFTER
        while not (out / LOCK).exists() or (out / LOCK).read_text("utf-8") != token:
            if time.monotonic() > deadline:
                raise ConfigError(f"{out}: is not the folder that rank 0 writes to: all machines must share it")
            time.sleep(0.2)

    on_all_ranks(group, look)


def _refused(error: OSError, out: Path) -> bool:
    """Whether the system refused to write into the folder of the run: no room, wherever, or a fault that names it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    place = str(error.filename or "")
    return place.startswith(f"{out}{os.sep}") and error.errno != errno.ENOENT


class Trainer:
    """Works off the steps of a run."""

    def __init__(self, run: TrainingRun) -> None:
        config = run.config
        self._run = run
        self._total = run.total
        self._train_step = TrainStep(config, run.group, run.parts, run.optimizer, run.ema)
        self._skips = SkipLog(config.out / SKIPPED.format(rank=run.group.rank), config.loader.max_bad)
        device = run.group.device
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        self._meter = Meter(peak_flops(name, compute_dtype(config, device)))
        self._stop = False
        self._waited = 0.0
        self._recorded = False

    def run(self) -> dict[str, Any]:
        """All steps that are left. Raises TrainError where too many in a row went wrong."""
        run, config = self._run, self._run.config
        began, stopped = run.step, False
        if run.group.rank == 0:
            logger.info(start_lines(self._start()))
            for line in self._warnings():  # for a person, as the lines above: --json shows neither
                logger.info("train: warning: %s", line)
        if began >= self._total:  # nothing is written: records say what happened
            logger.info(f"train: all {self._total:,} steps are done already; to go on, set more steps, or epochs")
            return self._summary(began, stopped=False)
        loader = run.loader()
        self._log = self._open_log()
        with self._stop_on_signals(), closing(self._log), closing(iter(loader)) as packs:
            if run.step == 0:
                self._validate()
            while run.step < self._total and not stopped:
                data = loader.state()
                try:
                    loaded = self._read(packs)
                except SigmaError:
                    if run.group.size == 1 and run.step > began:  # several ranks could not agree on it any more
                        run.save(data)
                    raise
                stop = self._one_step(loaded)
                stopped = stop and run.step < self._total
                # Before the checkpoint, so that all of a step is there once it is saved. Who must stop has no time.
                if not stop and config.validation.every and run.step % config.validation.every == 0:
                    self._validate()
                due = config.checkpoint.every and run.step % config.checkpoint.every == 0
                if due or stop or run.step == self._total:
                    self._save(loader)
            run.checkpointer.finish()
        return self._summary(began, stopped=stopped)

    def _summary(self, began: int, *, stopped: bool) -> dict[str, Any]:
        """What came of the run."""
        run = self._run
        return {
            "out": str(run.config.out), "steps": run.step, "of": self._total, "new": run.step - began,
            "skipped": run.skipped, "stopped": stopped, "checkpoint": run.checkpointer.latest(),
        }  # fmt: skip

    def _open_log(self) -> RunLog:
        """The record of the run, with a column for each figure that there may be."""
        run = self._run
        held = run.validation is not None
        numbers = {number for index in run.planner.indexes for number in np.unique(index.families).tolist()}
        families = [family for number, family in enumerate(Family) if number in numbers]
        losses = loss_names(families)
        return RunLog(
            run.config.out,
            run.config.log,
            total=self._total,
            resumed=run.step if run.resumed else -1,
            rank=run.group.rank,
            columns=[
                *_OF_STEP, *losses, *self._meter.names,
                *(f"{kind}/{name}" for kind in ("val", "val_ema") if held for name in losses),
            ],
        )  # fmt: skip

    def _start(self) -> Start:
        """What the run is about to do."""
        run, config = self._run, self._run.config
        parameters = list(run.parts.model.parameters())
        plan = run.planner.plan(run.position.epoch)
        samples = np.bincount(plan.draws.corpus, minlength=len(config.data.corpora)).tolist()
        device = run.group.device
        tokens = run.tokens
        return Start(
            model=run.parts.name,
            trained=run.parts.trained,
            parameters=sum(parameter.numel() for parameter in parameters) + quantized_numel(run.parts.model),
            trainable=sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
            quantised=config.model.quantize or "",
            corpora={corpus.title: count for corpus, count in zip(config.data.corpora, samples, strict=True)},
            packs=len(plan),
            budget=config.data.budget,
            held_out=run.validation.packs if run.validation is not None else 0,
            steps=self._total,
            step=run.step,
            accumulate=config.accumulate,
            ranks=run.group.size,
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
            out=str(config.out),
            tokens=tokens.show() if tokens is not None else "",
        )

    def _warnings(self) -> list[str]:
        """What is possible and hardly meant, a line each."""
        run = self._run
        plan = run.planner.plan(run.position.epoch)
        epoch = EpochContent(run.planner.kinds(), len(plan.draws.row), len(plan), len(run.planner.unfit))
        rows = [run.tokens.warning] if run.tokens is not None and run.tokens.warning else []
        return [*rows, *warnings(run.config, epoch, steps=self._total, ranks=run.group.size), *run.warnings]

    def _read(self, packs: Iterator[Loaded]) -> list[Loaded]:
        """This rank's packs of a step. Raises LoaderError, CorpusError."""
        begin = time.perf_counter()
        loaded = [next(packs) for _ in range(self._run.config.accumulate)]
        self._waited = time.perf_counter() - begin
        for pack in loaded:
            self._skips.add(pack.samples, pack.skips)
            for skip in pack.skips:
                logger.info(f"train: sample {skip.sample} is skipped ({skip.message}); see {self._skips.path}")
        return loaded

    def _one_step(self, loaded: Sequence[Loaded]) -> bool:
        """Train, log; whether a rank was told to stop."""
        run, config = self._run, self._run.config
        begin = time.perf_counter()
        lr = learning_rate(run.step, self._total, config.optimizer, config.schedule)
        result = self._train_step.step(loaded, lr, stop=self._stop)
        run.step += 1
        run.bad = 0 if result.taken else run.bad + 1
        run.skipped += not result.taken
        if not self._recorded and run.group.rank == 0:
            record_settings(config, step=run.step, ranks=run.group.size)
        self._recorded = True
        failed = run.bad >= config.optimizer.max_bad_steps
        seconds = self._waited + time.perf_counter() - begin
        works = [run.parts.work(pack.batch) for pack in loaded]
        work, flops = sum((one for one, _ in works), Work()), sum(flops for _, flops in works)
        self._meter.add(
            work, seconds=seconds, wait=self._waited, flops=flops,
            samples=sum(pack.samples for pack in loaded), skipped_samples=sum(len(pack.skips) for pack in loaded),
        )  # fmt: skip
        if run.step % config.log.every == 0 or result.stop or failed or run.step == self._total:
            self._log_step(loaded, lr, result)
        if failed:
            raise TrainError(
                f"{run.bad} steps in a row up to step {run.step} gave non-finite losses or gradients, or a spike "
                f"(the last loss was {result.loss:g}, its gradient's norm {result.norm:g}): use a lower optimizer.lr, "
                "or look at the samples of the packs that metrics.jsonl names"
            )
        return result.stop

    def _save(self, loader: Loader) -> None:
        """Save a checkpoint; what that takes counts as a share of the steps until the next line of figures."""
        begin = time.perf_counter()
        self._run.save(loader.state())
        seconds = time.perf_counter() - begin
        self._meter.add(Work(), seconds=seconds, stall=seconds)

    def _log_step(self, loaded: Sequence[Loaded], lr: float, result: StepResult) -> None:
        """Figures of the steps since the last time, over all ranks; `pack` is the first of the last step."""
        run, group = self._run, self._run.group
        losses = self._train_step.losses
        losses.table = all_reduce_sum(losses.table, group)
        totals = all_reduce_sum(self._meter.totals.to(group.device), group).cpu()
        figures: dict[str, float | None] = {
            "loss": result.loss, "norm": result.norm, "lr": lr, "skipped": run.skipped,
            "epoch": loaded[0].epoch, "pack": loaded[0].pack, "memory": _memory(group.device),
            **losses.averages(), **self._meter.figures(totals, ranks=group.size),
        }  # fmt: skip
        self._log.step(run.step, figures)
        losses.clear()
        self._meter.clear()

    def _validate(self) -> None:
        """Held-out losses of the weights, and of their average; images of what is used afterwards."""
        run, settings = self._run, self._run.config.validation
        if run.validation is None:
            return
        model = run.parts.model
        figures = {f"val/{name}": value for name, value in run.validation.losses(run.parts).items()}
        with run.ema.swapped(model) if run.ema is not None else nullcontext():
            if run.ema is not None:
                averaged = run.validation.losses(run.parts)
                figures |= {f"val_ema/{name}": value for name, value in averaged.items()}
            made = run.validation.images(run.parts, settings.images)
        self._log.step(run.step, figures)
        shown = [f"{name.replace('/', ' ')} {figures[name]:.4f}" for name in _SHOWN if name in figures]
        logger.info(f"train: step {run.step:,}: {', '.join(shown)}")
        if made:
            self._log.images(run.step, "sample", list(made.values()))

    @contextmanager
    def _stop_on_signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM end the run after the step that is under way; a second Ctrl-C ends it at once."""
        interrupts = 0

        def stop(number: int, _frame: FrameType | None) -> None:
            nonlocal interrupts
            interrupts += number == signal.SIGINT  # a launcher may have told us of the first one, too
            if interrupts > 1:
                raise KeyboardInterrupt
            self._stop = True

        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def _memory(device: torch.device) -> int:
    """Most bytes that this process has had, on the device or in memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
