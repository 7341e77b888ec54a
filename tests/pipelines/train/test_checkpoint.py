"""What was saved comes back to the bit on any number of ranks, and what was not saved whole never does."""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import random
import re
import resource
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

import pytest
import torch
from support import ranks
from support.sequences import case, one_thread, pack, tiny_model
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, MetadataIndex
from torch.distributed.tensor import Shard, distribute_tensor

from pipelines.train.checkpoint import Checkpointer
from pipelines.train.config import CheckpointSettings, EmaSettings, OptimizerSettings, ParallelSettings
from pipelines.train.distributed.parallelize import parallelize
from pipelines.train.distributed.process_group import ProcessGroup, barrier, start_process_group, stop_process_group
from pipelines.train.ema import Ema
from pipelines.train.optimizer import make_optimizer
from sigma_data.errors import ConfigError, TrainError
from sigma_model.model import SigmaModel

__all__ = ["one_thread"]
ASYNC, SYNC = CheckpointSettings(keep=3), CheckpointSettings(keep=3, asynchronous=False)
PLAIN = ParallelSettings()
State = dict[str, dict[str, Tensor]]


@pytest.fixture
def alone() -> Iterator[ProcessGroup]:
    yield start_process_group(PLAIN, device="cpu")
    stop_process_group()


class Small:
    """A model with an optimiser and an average that have been used."""

    def __init__(self, group: ProcessGroup, settings: ParallelSettings, *, seed: int) -> None:
        self.model: SigmaModel = tiny_model(seed=seed)
        self.model.freeze(vit=True)
        parallelize(self.model, group, settings, dtype=torch.float32)
        self.optimizer = make_optimizer(self.model, OptimizerSettings(lr=1e-2))
        self.ema = Ema(self.model.named_parameters(), EmaSettings(decay=0.9).decay)
        self.batch = pack([case("paint <subject> the cat from <image_1>", pictures=2)], seed=group.rank)
        self.step()

    def step(self) -> None:
        out = self.model(self.batch, self.model.clean_latents(self.batch, self.batch.known_latents))
        (out.mse.sum() + out.ce.sum()).backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.ema.update()

    def state(self) -> State:
        names = {parameter: name for name, parameter in self.model.named_parameters()}
        moments = {
            f"{names[p]}.{what}": value for p, held in self.optimizer.state.items() for what, value in held.items()
        }
        return {"model": dict(self.model.state_dict()), "optimizer": moments, "ema": self.ema.state_dict()}


def whole(state: Mapping[str, Mapping[str, Tensor]], group: ProcessGroup) -> dict[str, Tensor]:
    flat = {f"{section}/{name}": value for section, part in state.items() for name, value in part.items()}
    return {name: tensor.clone() for name, tensor in ranks.full_state_on_rank0(flat, group)}


def same(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def saved(folder: Path, settings: ParallelSettings, how: CheckpointSettings, further: int) -> dict[str, Tensor]:
    """Save the state of a small run and train on meanwhile; returns the state that was saved."""
    group = start_process_group(settings, device="cpu", timeout_s=20)
    small = Small(group, settings, seed=1)
    small.step()
    checkpointer = Checkpointer(folder, group, how)
    expected = whole(small.state(), group)
    extra = {"step": 2, "data": {"next": [3, 4]}}
    checkpointer.save(2, small.state(), extra)
    extra["step"] = 99
    for _ in range(further):
        small.step()
    checkpointer.finish()
    assert checkpointer.latest() == 2
    stop_process_group()
    return expected


def loaded(folder: Path, settings: ParallelSettings) -> tuple[dict[str, Tensor], Any]:
    group = start_process_group(settings, device="cpu", timeout_s=20)
    small = Small(group, settings, seed=2)
    checkpointer = Checkpointer(folder, group, ASYNC)
    step = checkpointer.latest()
    assert step is not None
    extra = checkpointer.load(step, small.state())
    state = whole(small.state(), group)
    small.step()  # what was loaded is what is trained
    assert small.optimizer.state[small.model.lm_head.weight]["step"].item() == 3
    stop_process_group()
    return state, extra


TWO_BY_TWO, COPIES = ParallelSettings(shard=2), ParallelSettings(shard=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "settings", "others"),
    [(2, PLAIN, [(1, PLAIN), (4, PLAIN)]), (1, PLAIN, [(2, COPIES)]), (4, TWO_BY_TWO, [(2, PLAIN)])],
    ids=["2", "1", "2x2"],
)
def test_a_checkpoint_of_any_number_of_ranks_loads_into_any_other_to_the_bit(
    tmp_path: Path, size: int, settings: ParallelSettings, others: list[tuple[int, ParallelSettings]]
) -> None:
    expected = ranks.run(saved, size, tmp_path, settings, ASYNC, 0)[0]
    assert any("exp_avg_sq" in name for name in expected)
    assert "ema/backbone.embed.weight" in expected
    assert "ema/vision.norm.weight" not in expected, "what is frozen has no average"
    for other, arrangement in others:
        state, extra = ranks.run(loaded, other, tmp_path, arrangement)[0]
        assert same(state, expected), f"{size} -> {other} ranks"
        assert extra == {"step": 2, "data": {"next": [3, 4]}}


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_an_asynchronous_save_holds_what_was_there_when_it_was_called(tmp_path: Path, size: int) -> None:
    expected = ranks.run(saved, size, tmp_path / "sync", PLAIN, SYNC, 0)[0]
    assert same(ranks.run(saved, size, tmp_path / "async", PLAIN, ASYNC, 5)[0], expected)
    for kind in ("sync", "async"):
        assert same(ranks.run(loaded, 1, tmp_path / kind, PLAIN)[0][0], expected)
    files = [
        json.loads((tmp_path / kind / "step-00000002" / "complete.json").read_text()) for kind in ("sync", "async")
    ]
    assert files[0]["files"] == files[1]["files"]


# One process, plain tensors


def state_of(step: int, *, numbers: int = 1000) -> State:
    """A state that only its step can have."""
    generator = torch.Generator().manual_seed(step)
    sections = (("model", 3), ("optimizer", 2))
    return {
        section: {f"{section}.{n}": torch.randn(numbers, generator=generator) for n in range(count)}
        for section, count in sections
    }


def holds(checkpointer: Checkpointer, step: int, *, numbers: int = 1000) -> bool:
    state = state_of(0, numbers=numbers)
    assert checkpointer.load(step, state)["step"] == step
    expected = state_of(step, numbers=numbers)
    return all(same(state[section], expected[section]) for section in expected)


def test_a_save_in_flight_lets_training_go_on_and_counts_only_when_it_is_complete(
    tmp_path: Path, alone: ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = Checkpointer(tmp_path, alone, ASYNC)
    go, fsync = threading.Event(), os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: (go.wait(20), fsync(handle))[1])
    checkpointer.save(1, state_of(1), {"step": 1})
    assert not (tmp_path / "step-00000001" / "complete.json").exists()
    threading.Timer(0.2, go.set).start()
    checkpointer.save(2, state_of(2), {"step": 2})  # waits for the first
    assert go.is_set()
    checkpointer.finish()
    assert checkpointer.latest() == 2
    assert holds(checkpointer, 1)
    assert holds(checkpointer, 2)


def folders(root: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in root.iterdir())


def test_the_newest_are_kept_and_older_incomplete_ones_are_removed(tmp_path: Path, alone: ProcessGroup) -> None:
    checkpointer = Checkpointer(tmp_path, alone, CheckpointSettings(keep=2))
    for step in (10, 20, 30):
        checkpointer.save(step, state_of(step), {"step": step})
    checkpointer.finish()
    assert folders(tmp_path) == [20, 30]
    (tmp_path / "step-00000020" / "complete.json").unlink()
    (tmp_path / "step-00000050").mkdir()  # newer than the newest complete one
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes").rename(tmp_path / "step-00000007")
    checkpointer.save(40, state_of(40), {"step": 40})
    checkpointer.finish()
    assert folders(tmp_path) == [30, 40, 50]
    assert checkpointer.latest() == 40
    checkpointer.save(50, state_of(50), {"step": 50})  # in the place of what was cut off
    checkpointer.finish()
    assert folders(tmp_path) == [40, 50]
    assert holds(checkpointer, 50)


def test_a_checkpoint_that_was_complete_when_another_rank_was_lost_stays(
    tmp_path: Path, alone: ProcessGroup, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpointer = Checkpointer(tmp_path, alone, CheckpointSettings(keep=1, asynchronous=False))
    checkpointer.save(1, state_of(1), {"step": 1})
    tell = Checkpointer._on_rank0

    def lost(self: Checkpointer, act: Callable[[], Any]) -> Any:
        value = tell(self, act)
        if (tmp_path / "step-00000002" / "complete.json").exists():
            raise RuntimeError("Connection closed by peer")
        return value

    monkeypatch.setattr(Checkpointer, "_on_rank0", lost)
    with pytest.raises(TrainError, match="closed by peer"):
        checkpointer.save(2, state_of(2), {"step": 2})
    monkeypatch.undo()
    assert checkpointer.latest() == 2
    assert holds(checkpointer, 2)


@pytest.mark.parametrize(("size", "told"), [(1, "): make room or mend the disk, then"), (2, "): run the same command")])
def test_a_lost_rank_is_no_fault_of_the_disk(
    tmp_path: Path, alone: ProcessGroup, monkeypatch: pytest.MonkeyPatch, size: int, told: str
) -> None:
    def lost(self: Checkpointer, act: Callable[[], Any]) -> Any:
        raise RuntimeError("Connection closed by peer")

    monkeypatch.setattr(Checkpointer, "_on_rank0", lost)
    checkpointer = Checkpointer(tmp_path, replace(alone, size=size), CheckpointSettings(asynchronous=False))
    with pytest.raises(TrainError, match=re.escape(f"(Connection closed by peer{told}")):
        checkpointer.save(1, state_of(1), {"step": 1})


DAMAGE = {
    "a file cut short": lambda folder: os.truncate(folder / "__0_0.distcp", 100),
    "a file missing": lambda folder: (folder / "__0_0.distcp").unlink(),
    "no marker": lambda folder: (folder / "complete.json").unlink(),
    "an empty marker": lambda folder: os.truncate(folder / "complete.json", 0),
    "another folder's name": lambda folder: folder.rename(folder.parent / "step-00000003"),
    "other metadata": lambda folder: (folder / ".metadata").write_bytes((folder / ".metadata").read_bytes() + b" "),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over_and_refused(tmp_path: Path, alone: ProcessGroup, damage: str) -> None:
    checkpointer = Checkpointer(tmp_path, alone, SYNC)
    for step in (1, 2):
        checkpointer.save(step, state_of(step), {"step": step})
    DAMAGE[damage](tmp_path / "step-00000002")
    assert checkpointer.latest() == 1
    assert holds(checkpointer, 1)
    with pytest.raises(ConfigError, match="step-0000000[23]: is not a complete checkpoint"):
        checkpointer.load(3 if "name" in damage else 2, state_of(0))


def test_without_any_checkpoint_there_is_no_latest(tmp_path: Path, alone: ProcessGroup) -> None:
    assert Checkpointer(tmp_path / "new", alone, ASYNC).latest() is None


def test_a_state_that_does_not_fit_is_refused_by_name_before_anything_is_read(
    tmp_path: Path, alone: ProcessGroup
) -> None:
    checkpointer = Checkpointer(tmp_path, alone, SYNC)
    checkpointer.save(1, state_of(1), {"step": 1})
    cases: list[tuple[Any, str]] = [
        (lambda s: s["model"].update(more=torch.zeros(1)), "1 tensor missing: model/more"),
        (lambda s: s["model"].pop("model.0"), "1 tensor unexpected: model/model.0"),
        (lambda s: s.pop("optimizer"), "2 tensors unexpected: optimizer/optimizer.0, optimizer/optimizer.1"),
        (lambda s: s["model"].update({"model.1": torch.zeros(7)}), r"model/model.1 is \[1000\] float32, not \[7\]"),
        (lambda s: s["model"].update({"model.1": torch.zeros(1000).half()}), r"not \[1000\] float16"),
    ]
    for change, message in cases:
        state = state_of(0)
        change(state)
        with pytest.raises(ConfigError, match=message):
            checkpointer.load(1, state)
        assert torch.equal(state["model"]["model.2"], state_of(0)["model"]["model.2"])
    part = {"model": state_of(0)["model"]}
    checkpointer.load(1, part, part=True)
    assert same(part["model"], state_of(1)["model"])


def test_metadata_that_would_run_a_program_is_refused(tmp_path: Path, alone: ProcessGroup) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    checkpointer = Checkpointer(tmp_path, alone, SYNC)
    checkpointer.save(1, state_of(1), {"step": 1})
    folder = tmp_path / "step-00000001"
    evil = pickle.dumps(Evil())
    marker = json.loads((folder / "complete.json").read_text()) | {"metadata": hashlib.sha256(evil).hexdigest()}
    (folder / ".metadata").write_bytes(evil)
    (folder / "complete.json").write_text(json.dumps(marker))
    with pytest.raises(ConfigError, match="not part of a checkpoint"):
        checkpointer.load(1, state_of(0))
    assert not (tmp_path / "ran").exists()


class EarlyPickler(pickle.Pickler):
    """Pickles enumerations as Python 3.11.2 does."""

    def reducer_override(self, value: Any) -> Any:
        return (getattr, (type(value), value.name)) if isinstance(value, Enum) else NotImplemented


def rewritten(folder: Path, metadata: Any) -> None:
    """Put other metadata into a checkpoint, which stays complete."""
    buffer = io.BytesIO()
    EarlyPickler(buffer).dump(metadata)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    marker = json.loads((folder / "complete.json").read_text()) | {"metadata": digest}
    (folder / ".metadata").write_bytes(buffer.getvalue())
    (folder / "complete.json").write_text(json.dumps(marker))


def test_what_an_early_python_3_11_has_written_is_read(tmp_path: Path, alone: ProcessGroup) -> None:
    checkpointer = Checkpointer(tmp_path, alone, SYNC)
    checkpointer.save(1, state_of(1), {"step": 1})
    metadata = tmp_path / "step-00000001" / ".metadata"
    rewritten(metadata.parent, pickle.loads(metadata.read_bytes()))
    assert b"getattr" in metadata.read_bytes()
    state = state_of(0)
    assert checkpointer.load(1, state) == {"step": 1}
    assert same(state["model"], state_of(1)["model"])


@pytest.mark.parametrize(("of", "name"), [(torch.Size, "mro"), (torch.distributed.checkpoint.metadata.Metadata, "x")])
def test_nothing_but_the_member_of_an_enumeration_is_got(
    tmp_path: Path, alone: ProcessGroup, of: Any, name: str
) -> None:
    class Wants:
        def __reduce__(self) -> Any:
            return getattr, (of, name)

    checkpointer = Checkpointer(tmp_path, alone, SYNC)
    checkpointer.save(1, state_of(1), {"step": 1})
    rewritten(tmp_path / "step-00000001", Wants())
    with pytest.raises(ConfigError, match="not part of a checkpoint"):
        checkpointer.load(1, state_of(0))


def test_a_tensor_that_is_stored_as_bytes_is_not_unpickled(tmp_path: Path, alone: ProcessGroup) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return os.mkdir, (str(tmp_path / "ran"),)

    checkpointer = Checkpointer(tmp_path, alone, SYNC)
    state = {"model": {"w": torch.zeros(10)}}
    checkpointer.save(1, state, {"step": 1})
    folder = tmp_path / "step-00000001"
    packed = io.BytesIO()
    torch.save(Evil(), packed)
    (folder / "__0_0.distcp").write_bytes(packed.getvalue())
    metadata = pickle.loads((folder / ".metadata").read_bytes())
    metadata.state_dict_metadata = {"model/w": BytesStorageMetadata()}
    size = len(packed.getvalue())
    metadata.storage_data = {MetadataIndex("model/w"): _StorageInfo("__0_0.distcp", 0, size)}
    forged = pickle.dumps(metadata)
    (folder / ".metadata").write_bytes(forged)
    marker = json.loads((folder / "complete.json").read_text())
    marker |= {"metadata": hashlib.sha256(forged).hexdigest(), "files": {"__0_0.distcp": size}}
    (folder / "complete.json").write_text(json.dumps(marker))
    with pytest.raises(ConfigError, match="cannot be read"):
        checkpointer.load(1, state)
    assert not (tmp_path / "ran").exists()


# Failures


def full_disk(folder: Path, how: CheckpointSettings, only: int) -> str:
    group = start_process_group(PLAIN, device="cpu", timeout_s=20)
    checkpointer = Checkpointer(folder, group, how)
    checkpointer.save(1, state_of(1), {"step": 1})
    checkpointer.finish()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    if group.rank == only:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    sharded = {"model": {"w": distribute_tensor(torch.randn(100_000), group.mesh, [Shard(0)])}}
    try:
        checkpointer.save(2, sharded, {"step": 2})
        checkpointer.finish()
        message = ""
    except TrainError as error:
        message = str(error)
    resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert checkpointer.latest() == 1
    checkpointer.finish()  # told once
    checkpointer.save(3, sharded, {"step": 3})
    checkpointer.finish()
    assert checkpointer.latest() == 3
    stop_process_group()
    return message


@pytest.mark.slow
@pytest.mark.parametrize("only", [0, 1])
@pytest.mark.parametrize("how", [SYNC, ASYNC], ids=["sync", "async"])
def test_a_rank_that_cannot_write_is_an_error_in_words_on_all_and_the_one_before_stays(
    tmp_path: Path, how: CheckpointSettings, only: int
) -> None:
    for message in ranks.run(full_disk, 2, tmp_path, how, only):
        assert "step-00000002: the checkpoint could not be written (File too large)" in message


NUMBERS = 400_000


def save_for_ever(folder: Path, log: Path) -> None:
    """Save on and on; the log names what is known to be complete, and is never ahead."""
    group = start_process_group(PLAIN, device="cpu", timeout_s=20)
    checkpointer = Checkpointer(folder, group, CheckpointSettings(keep=2))
    step = checkpointer.latest() or 0
    if step:
        assert same_parts(checkpointer, group, step)
    while True:
        step += 1
        checkpointer.save(step, parts_of(step, group), {"step": step})
        if group.rank == 0:
            with log.open("a") as file:  # the save before is complete, for at most one is in flight
                file.write(f"{step - 1}\n")


def parts_of(step: int, group: ProcessGroup) -> dict[str, dict[str, Any]]:
    state: dict[str, dict[str, Any]] = dict(state_of(step, numbers=NUMBERS))
    if group.mesh is not None:
        state["model"] = {n: distribute_tensor(t, group.mesh, [Shard(0)]) for n, t in state["model"].items()}
    return state


def same_parts(checkpointer: Checkpointer, group: ProcessGroup, step: int) -> bool:
    state = parts_of(0, group)
    assert checkpointer.load(step, state)["step"] == step
    found, expected = whole(state, group), whole(parts_of(step, group), group)
    return same(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("size", [1, 2])
def test_kills_at_random_moments_never_leave_a_checkpoint_that_is_not_whole(
    tmp_path: Path, alone: ProcessGroup, size: int
) -> None:
    dice, folder, log = random.Random(size), tmp_path / "run", tmp_path / "log"
    log.touch()
    checkpointer = Checkpointer(folder, alone, ASYNC)
    cut_off = 0
    for number in range(6):
        running = ranks.Ranks(save_for_ever, size, folder, log)
        known = len(log.read_text().splitlines())
        deadline = time.monotonic() + 30
        while len(log.read_text().splitlines()) < known + 2:
            assert time.monotonic() < deadline, "no checkpoint comes about"
            time.sleep(0.005)
        time.sleep(dice.random() * 0.1)
        if number % 3 == 2 and size > 1:
            running.kill(dice.randrange(size))  # one alone: the other must not complete what is not whole
            time.sleep(0.1)
        running.kill()
        latest = checkpointer.latest()
        assert latest is not None
        assert latest >= int(log.read_text().splitlines()[-1])
        assert holds(checkpointer, latest, numbers=NUMBERS), f"kill {number}"
        cut_off += any(step > latest for step in folders(folder))
    assert cut_off >= 2, "many kills must have hit a save"


# Memory


def memory(folder: Path, how: CheckpointSettings) -> dict[str, float]:
    """Growth of this process's peak memory while saving and loading, in shares of the parameters it holds."""
    group = start_process_group(PLAIN, device="cpu", timeout_s=60)
    assert group.mesh is not None
    rows = torch.arange(2000.0)[:, None].expand(2000, 1250)
    state: dict[str, dict[str, Any]] = {
        "model": {f"w{n}": distribute_tensor(rows + n, group.mesh, [Shard(0)], src_data_rank=None) for n in range(20)}
    }
    for name, tensor in state["model"].items():  # of their own memory, not views of a whole
        state["model"][name] = tensor.clone()
    share = sum(tensor.to_local().nbytes for tensor in state["model"].values())
    warm = {"model": {"w": distribute_tensor(torch.zeros(100), group.mesh, [Shard(0)])}}
    first = Checkpointer(folder / "warm", group, how)
    first.save(1, warm, {"step": 1})
    first.finish()
    first.load(1, warm)
    checkpointer = Checkpointer(folder / "run", group, how)
    barrier(group)
    found = {"share": float(share)}
    before = ranks.reset_peak()
    checkpointer.save(1, state, {"step": 1})
    checkpointer.finish()
    found["save"] = (ranks.peak() - before) / share
    barrier(group)
    before = ranks.reset_peak()
    checkpointer.save(2, state, {"step": 2})
    checkpointer.finish()
    found["again"] = (ranks.peak() - before) / share
    barrier(group)
    before = ranks.reset_peak()
    checkpointer.load(2, state)
    found["load"] = (ranks.peak() - before) / share
    barrier(group)
    stop_process_group()
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="reads peak memory from /proc")
@pytest.mark.parametrize("how", [SYNC, ASYNC], ids=["sync", "async"])
def test_saving_takes_no_more_than_one_copy_of_the_share_and_loading_one_tensor(
    tmp_path: Path, how: CheckpointSettings
) -> None:
    for found in ranks.run(memory, 2, tmp_path, how):
        assert found["share"] == 100e6
        assert found["save"] < (1.25 if how.asynchronous else 0.25), found
        assert found["again"] < 0.25, "copies are kept"
        assert found["load"] < 0.25, found
