"""A run that is killed, stopped, moved to other ranks or fed with nonsense is still the run that was asked for."""

from __future__ import annotations

import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from support import ranks
from support.sequences import one_thread  # noqa: F401
from support.training_data import index_of, planned
from support.training_runs import apart, lines, run, same, saved, settings_of, steps_saved
from torch.distributed.tensor import DTensor

from pipelines.common.settings import load_settings
from pipelines.train.checkpoint import CHECKPOINTS, Checkpointer
from pipelines.train.config import TrainConfig
from pipelines.train.distributed.process_group import ProcessGroup
from pipelines.train.export import export_run
from pipelines.train.logs import RunLog
from pipelines.train.lora import is_lora
from pipelines.train.run import TrainingRun, computes_otherwise, make_run
from pipelines.train.trainer import train
from sigma_data.errors import BuildError, ConfigError, LoaderError, TrainError
from sigma_data.loading.loader import PackDataset
from sigma_data.loading.workers import Place
from sigma_data.planning.plan import PackRequest
from sigma_model.checkpoint_io import Checkpoint
from sigma_model.loading import load_for_inference

ALONE = ProcessGroup.single()
FEW = {"every": 8, "packs": 1, "images": 0}


@pytest.fixture(autouse=True)
def nothing_left_behind() -> Iterator[None]:
    """Whatever a run came to, its workers have ended and the process group is left."""
    yield
    assert multiprocessing.active_children() == []
    assert not dist.is_initialized()


def killed_after(out: Path, step: int, size: int, settings: dict[str, Any]) -> None:
    """kill -9 all ranks at some moment after the checkpoint of a step is complete and before the next one."""
    running = ranks.Ranks(run, size, settings)
    deadline = time.monotonic() + 120
    while step not in steps_saved(out) or lines_or_none(out) <= step:
        assert time.monotonic() < deadline and all(process.is_alive() for process in running.processes)
        time.sleep(0.01)
    running.kill()
    assert steps_saved(out)[-1] == step


def lines_or_none(out: Path) -> int:
    return len((out / "metrics.jsonl").read_text().splitlines()) if (out / "metrics.jsonl").exists() else 0


# Resuming -------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_twenty_steps_are_eight_and_kill_9_and_twelve_resumed_to_the_bit(tmp_path: Path, training_corpus: Path) -> None:
    """Parameters, optimiser, average, and every figure of metrics.jsonl; checkpoints are asynchronous."""
    changes: dict[str, Any] = {"steps": 20, "checkpoint": {"every": 8}, "validation": FEW}
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert run(settings_of(whole, training_corpus, **changes))["steps"] == 20
    settings = settings_of(cut, training_corpus, **changes)
    killed_after(cut, 8, 1, settings)
    done = run({**settings, "loader": {"workers": 1}})
    assert (done["steps"], done["new"], done["checkpoint"]) == (20, 12, 20)
    assert same(saved(whole), saved(cut))
    assert {name.partition("/")[0] for name in saved(cut)} == {"model", "optimizer", "ema"}
    assert [line["step"] for line in lines(whole) if "loss" in line] == list(range(1, 21))
    assert lines(cut) == lines(whole)


@pytest.mark.slow
def test_a_run_of_two_ranks_goes_on_with_one_and_with_four_as_if_nothing_had_changed(
    tmp_path: Path, training_corpus: Path
) -> None:
    """Data and learning rates are the same; losses and weights within 1e-5, for sums over tokens and ranks are made
    in another order: float32 gradients then differ by some 1e-7 of their size, which AdamW passes on as that share of
    the learning rate (1e-4), but for the few gradients that are themselves as small as its eps (1e-6).
    """
    changes: dict[str, Any] = {"steps": 6, "checkpoint": {"every": 3}, "optimizer": {"lr": 1e-4, "eps": 1e-6}}
    two, one, four = (tmp_path / name for name in ("two", "one", "four"))
    settings = settings_of(two, training_corpus, **changes) | {"accumulate": 2}
    killed_after(two, 3, 2, settings)
    for other in (one, four):
        shutil.copytree(two, other)
    ranks.run(run, 2, settings, timeout_s=120)
    run({**settings, "out": one, "accumulate": 4})
    ranks.run(run, 4, {**settings, "out": four, "accumulate": 1}, timeout_s=120)
    expected = lines(two)
    for other in (one, four):
        found = lines(other)
        assert [(line["step"], line["epoch"], line["pack"], line["lr"]) for line in found] == [
            (line["step"], line["epoch"], line["pack"], line["lr"]) for line in expected
        ]
        for line, before in zip(found, expected, strict=True):
            assert line == {name: pytest.approx(value, rel=1e-4, abs=1e-5) for name, value in before.items()}
        for section in ("model", "ema"):
            assert apart(saved(two), saved(other), section) < 1e-5
        assert [line["pack"] for line in found] == [4 * step % packs(training_corpus) for step in range(6)]


def packs(corpus: Path) -> int:
    return len(planned(index_of(corpus), budget=400).plan(0))


@pytest.mark.slow
def test_two_ranks_learn_what_one_does(tmp_path: Path, training_corpus: Path) -> None:
    """To 1e-5 in float32, as above."""
    optimizer = {"lr": 1e-4, "eps": 1e-6}
    run({**settings_of(tmp_path / "1", training_corpus, optimizer=optimizer), "accumulate": 2})
    ranks.run(run, 2, settings_of(tmp_path / "2", training_corpus, optimizer=optimizer), timeout_s=120)
    one, two = (saved(tmp_path / name) for name in ("1", "2"))
    assert apart(one, two, "model") < 1e-5 and apart(one, two, "ema") < 1e-5
    assert apart(one, saved(tmp_path / "1", 6), "model") == 0
    for alone, on_all_ranks in zip(lines(tmp_path / "1"), lines(tmp_path / "2"), strict=True):
        assert on_all_ranks == {name: pytest.approx(value, rel=1e-4, abs=1e-5) for name, value in alone.items()}


def after_packs(monkeypatch: pytest.MonkeyPatch, count: int, act: Callable[[], Any]) -> None:
    """Do something in the training process, which reads packs itself, when it reads pack number `count`, once."""
    load, read = PackDataset.load, []

    def watched(self: PackDataset, ticket: PackRequest, place: Place) -> Any:
        read.append(ticket.pack)
        if len(read) == count:
            act()
        return load(self, ticket, place)

    monkeypatch.setattr(PackDataset, "load", watched)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_a_run_saves_and_leaves_and_the_same_command_goes_on(
    number: signal.Signals, tmp_path: Path, training_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = signal.getsignal(number)
    with monkeypatch.context() as patch:
        after_packs(patch, 3, lambda: os.kill(os.getpid(), number))
        stopped = run(settings_of(tmp_path / "cut", training_corpus))
    assert (stopped["stopped"], stopped["steps"], stopped["checkpoint"]) == (True, 3, 3)
    assert signal.getsignal(number) is before
    done = run(settings_of(tmp_path / "cut", training_corpus))
    assert (done["stopped"], done["steps"], done["new"]) == (False, 6, 3)
    run(settings_of(tmp_path / "whole", training_corpus))
    assert same(saved(tmp_path / "cut"), saved(tmp_path / "whole"))
    assert lines(tmp_path / "cut") == lines(tmp_path / "whole")


@pytest.mark.slow
def test_a_second_ctrl_c_ends_at_once_and_a_save_in_flight_is_whole(
    tmp_path: Path, training_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        for _ in range(2):
            signal.raise_signal(signal.SIGINT)

    write, slow = Checkpointer._write, []

    def slowly(self: Checkpointer, *what: Any) -> None:
        slow.append(1)
        time.sleep(1)
        write(self, *what)

    monkeypatch.setattr(Checkpointer, "_write", slowly)
    after_packs(monkeypatch, 3, twice)
    with pytest.raises(KeyboardInterrupt):
        run(settings_of(tmp_path, training_corpus, checkpoint={"every": 2}))
    assert slow == [1] and steps_saved(tmp_path) == [2]


@pytest.mark.slow
def test_a_finished_run_that_is_started_again_says_so_and_does_nothing(
    tmp_path: Path, training_corpus: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    settings = settings_of(tmp_path, training_corpus, steps=2)
    run(settings)
    before = (tmp_path / "metrics.jsonl").read_text()
    done = train(TrainConfig.model_validate(settings))
    assert (done["steps"], done["new"], done["stopped"]) == (2, 0, False)
    assert "train: all 2 steps are done already; to go on, set more steps" in caplog.text
    assert (tmp_path / "metrics.jsonl").read_text() == before
    assert run({**settings, "steps": 3})["new"] == 1


@pytest.mark.slow
def test_other_data_settings_are_refused_and_the_run_that_lies_there_is_untouched(
    tmp_path: Path, training_corpus: Path
) -> None:
    settings = settings_of(tmp_path, training_corpus, steps=1)
    run(settings)
    with pytest.raises(ConfigError, match="the data is not what the checkpoint was trained on: budget was 400 and is "):
        run(settings_of(tmp_path, training_corpus, steps=2, data={"budget": 500}))
    assert load_settings(TrainConfig, tmp_path / "config.yaml", ()) == TrainConfig.model_validate(settings)


def put_together(out: Path, corpus: Path, group: ProcessGroup = ALONE, **changes: Any) -> TrainingRun:
    return make_run(TrainConfig.model_validate(settings_of(out, corpus, **changes)), group)


@pytest.mark.slow
def test_epochs_are_counted_once_though_every_epoch_has_packs_of_its_own(tmp_path: Path, training_corpus: Path) -> None:
    planner = planned(index_of(training_corpus), budget=400)
    first = len(planner.plan(0))
    changes: dict[str, Any] = {"steps": None, "epochs": 3, "schedule": {"kind": "linear"}}
    one = put_together(tmp_path, training_corpus, **changes)
    assert one.total == 3 * first
    epoch = next(epoch for epoch in range(1, 3) if len(planner.plan(epoch)) != first)
    one.step = first * epoch
    one.save({"plan": {"digest": planner.digest, "fields": {}}, "epoch": epoch, "next_pack": 2})
    one.checkpointer.finish()
    assert put_together(tmp_path, training_corpus, **changes).total == one.total
    # Twice as many packs a step: what is left takes half as many.
    double = put_together(tmp_path, training_corpus, **{**changes, "accumulate": 2})
    left = (3 - epoch) * len(planner.plan(epoch)) - 2
    assert double.total == one.step + -(-left // 2)
    longer = put_together(tmp_path, training_corpus, **{**changes, "epochs": 4})
    assert longer.total == one.step + left + len(planner.plan(epoch))


# Faults ---------------------------------------------------------------------------------------------


def poisoned(monkeypatch: pytest.MonkeyPatch, *numbers: int) -> None:
    """Put NaN into the noise or the latents of the packs read as these numbers, counted from 1."""
    load, read = PackDataset.load, []

    def spoilt(self: PackDataset, ticket: PackRequest, place: Place) -> Any:
        read.append(ticket)
        loaded = load(self, ticket, place)
        if len(read) not in numbers:
            return loaded
        nothing = torch.full_like(loaded.batch.noise, float("nan"))
        weights = torch.full_like(loaded.batch.answer_weights, float("nan"))
        return replace(loaded, batch=replace(loaded.batch, noise=nothing, answer_weights=weights))

    monkeypatch.setattr(PackDataset, "load", spoilt)


@pytest.mark.slow
def test_a_batch_of_nan_is_skipped_counted_and_leaves_the_weights_alone(
    tmp_path: Path, training_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, 3)
    done = run(settings_of(tmp_path, training_corpus, steps=4, checkpoint={"every": 1, "keep": 9}))
    assert (done["steps"], done["skipped"]) == (4, 1)
    assert same(saved(tmp_path, 2), saved(tmp_path, 3)) and not same(saved(tmp_path, 3), saved(tmp_path, 4))
    found = lines(tmp_path)
    assert [line["skipped"] for line in found] == [0, 0, 1, 1]
    assert found[2]["non_finite"] == "loss nan, norm nan" and not {"loss", "norm", "image"} & found[2].keys()
    assert all(bool(tensor.isfinite().all()) for tensor in saved(tmp_path).values())


@pytest.mark.slow
def test_ten_bad_steps_in_a_row_end_the_run_with_a_sentence(
    tmp_path: Path, training_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    poisoned(monkeypatch, 1, *range(3, 30))
    with pytest.raises(TrainError) as error:
        run(settings_of(tmp_path, training_corpus, steps=40, checkpoint={"every": 2}))
    assert str(error.value).startswith(
        "10 steps in a row up to step 12 gave non-finite losses or gradients, or a spike "
    )
    assert "\n" not in str(error.value)
    assert [line["skipped"] for line in lines(tmp_path)] == [1, 1, *range(2, 12)]
    assert steps_saved(tmp_path)[-1] == 10
    poisoned(monkeypatch, *range(1, 30))  # a resumed run goes on counting: eight were bad at step 10
    with pytest.raises(TrainError, match="10 steps in a row up to step 12 "):
        run(settings_of(tmp_path, training_corpus, steps=40, checkpoint={"every": 2}))


def test_whatever_ends_a_run_its_workers_end_too(
    tmp_path: Path, training_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise LoaderError("a fault while workers are at work")

    monkeypatch.setattr("pipelines.train.bagel_backbone.forward", broken)
    with pytest.raises(LoaderError, match="a fault while"):
        run(settings_of(tmp_path, training_corpus, loader={"workers": 2}))


# What learns ----------------------------------------------------------------------------------------


def test_a_full_disk_ends_a_run_with_a_sentence(
    tmp_path: Path, training_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(RunLog, "step", full)
    with pytest.raises(BuildError, match="disk is full: free some space, then run the same command again"):
        run(settings_of(tmp_path, training_corpus, steps=2))


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory, training_corpus: Path) -> Path:
    """A directory in the released layout with weights that have learnt a little."""
    folder = tmp_path_factory.mktemp("weights")
    run(settings_of(folder / "run", training_corpus, steps=2))
    return export_run(folder / "run", folder / "released")


@pytest.mark.slow
def test_lora_trains_its_own_parameters_alone_and_resumes_to_the_bit(
    tmp_path: Path, training_corpus: Path, weights: Path
) -> None:
    changes: dict[str, Any] = {
        "lora": {"rank": 4}, "freeze": {"und": True}, "model": {"path": str(weights), "master": "bfloat16"}, "steps": 6,
    }  # fmt: skip
    run(settings_of(tmp_path / "whole", training_corpus, **changes))
    settings = settings_of(tmp_path / "cut", training_corpus, **changes, checkpoint={"every": 3})
    killed_after(tmp_path / "cut", 3, 1, settings)
    assert run(settings)["new"] == 3
    assert same(saved(tmp_path / "whole"), saved(tmp_path / "cut"))
    held = saved(tmp_path / "whole")
    trainable = {name.removeprefix("model/") for name in held if name.startswith("model/")}
    assert trainable and all(is_lora(name) and ".gen." in name for name in trainable)
    assert {tensor.dtype for tensor in held.values()} == {torch.float32}
    assert all(tensor.any() for name, tensor in held.items() if name.endswith("lora_B.weight"))


@pytest.mark.slow
def test_low_rank_additions_need_no_mixed_path_and_go_beside_full_parameters_of_their_type_alone(
    tmp_path: Path, training_corpus: Path
) -> None:
    changes: dict[str, Any] = {"model": {"dtype": "bfloat16", "master": "bfloat16"}, "lora": {"rank": 2}}
    one = put_together(tmp_path / "a", training_corpus, **changes)
    kinds = {parameter.dtype for parameter in one.parts.model.parameters() if not parameter.requires_grad}
    assert kinds == {torch.bfloat16} and not computes_otherwise(one.config)
    model = {"dtype": "bfloat16"}
    assert not computes_otherwise(put_together(tmp_path / "b", training_corpus, model=model, lora={}).config)
    both = settings_of(tmp_path / "c", training_corpus, **{**changes, "lora": {"train": ["norm"]}})
    with pytest.raises(ValueError, match=r"lora\.train: needs model\.master float32"):
        TrainConfig.model_validate(both)
    wide = settings_of(tmp_path / "d", training_corpus, model=model, lora={"train": ["norm_gen"]}, steps=2)
    assert computes_otherwise(TrainConfig.model_validate(wide))
    assert run(wide)["skipped"] == 0


@pytest.mark.slow
def test_a_frozen_understanding_expert_stays_as_it_was(tmp_path: Path, training_corpus: Path) -> None:
    run(settings_of(tmp_path, training_corpus, freeze={"und": True}, steps=2))
    learnt = [name for name in saved(tmp_path) if name.startswith("model/")]
    assert learnt and not [name for name in learnt if ".und." in name or "vision" in name or "embed.weight" in name]
    assert any(".gen." in name for name in learnt)


@pytest.mark.slow
def test_answers_in_words_are_learnt_by_their_text_loss(tmp_path: Path, training_corpus: Path) -> None:
    corpora = [{"path": str(training_corpus), "families": ["understanding"]}]
    changes: dict[str, Any] = {"data": {"corpora": corpora}, "loss": {"text": 1.0}, "steps": 20}
    run(settings_of(tmp_path, training_corpus, **changes, optimizer={"lr": 3e-3}))
    losses = [line["text"] for line in lines(tmp_path)]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])
    assert all("image" not in line and line["loss"] == pytest.approx(line["text"], rel=0.5) for line in lines(tmp_path))


@pytest.mark.slow
def test_a_vision_encoder_in_the_weights_is_left_out_where_none_is_wanted(
    tmp_path: Path, training_corpus: Path, weights: Path
) -> None:
    assert any(name.startswith("vit_model.") for name in Checkpoint(weights).tensors)
    model = {"path": str(weights), "vision": False}
    run(settings_of(tmp_path / "blind", training_corpus, model=model, steps=1))
    assert not [name for name in saved(tmp_path / "blind") if "vision" in name or "connector" in name]
    parts = load_for_inference(str(export_run(tmp_path / "blind", tmp_path / "out")))
    assert parts.model.vision is None and parts.geometry.vit is None
    kept = {name for name in Checkpoint(weights).tensors if not name.startswith(("vit_", "connector."))}
    assert Checkpoint(tmp_path / "out").tensors.keys() == kept


# Figures --------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_shares_of_time_and_rates_are_told_and_no_mfu_on_a_device_nobody_knows(
    tmp_path: Path, training_corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    after_packs(monkeypatch, 2, lambda: time.sleep(1))
    save = Checkpointer.save

    def slowly(self: Checkpointer, *what: Any) -> None:
        time.sleep(1)
        save(self, *what)

    monkeypatch.setattr(Checkpointer, "save", slowly)
    run(settings_of(tmp_path, training_corpus, steps=4, checkpoint={"every": 2}, log={"every": 1}))
    found = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert all("mfu" not in line and line["tokens_per_second"] > 0 and line["memory"] > 0 for line in found)
    waits, stalls = ([line[name] for line in found] for name in ("data_wait", "checkpoint_stall"))
    assert waits[1] == max(waits) and all(0 < share < 1 for share in waits)
    assert stalls[2] == max(stalls) > 0 and stalls[0] == stalls[1] == stalls[3] == 0
    rates = {name: value for name, value in found[0].items() if name.startswith("tokens_per_second/")}
    assert sum(rates.values()) == pytest.approx(found[0]["tokens_per_second"])


@pytest.mark.slow
def test_the_optimiser_of_a_resumed_run_is_the_fused_one_with_its_count_of_steps(
    tmp_path: Path, training_corpus: Path
) -> None:
    run(settings_of(tmp_path, training_corpus, steps=3))
    again = put_together(tmp_path, training_corpus, steps=5)
    assert (again.step, again.total) == (3, 5)
    assert all(group["fused"] for group in again.optimizer.param_groups)
    for state in again.optimizer.state.values():
        assert float(state["step"]) == 3 and state["step"].dtype == torch.float32
        assert not isinstance(state["exp_avg"], DTensor) and state["exp_avg"].dtype == torch.float32
    assert (tmp_path / CHECKPOINTS).is_dir()
