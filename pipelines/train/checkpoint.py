"""The state of a run on disk: sharded, written beside the training, complete only with its marker.

Each rank writes its own shards through torch.distributed.checkpoint, so any number of ranks can load them. The
marker `complete.json` is written last, durably, by rank 0, after every rank's data is on disk; what has none, or
not the files it names, is never resumed from. An asynchronous save copies the shards and writes the copies.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import pickle
import re
import shutil
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.filesystem import FileSystemWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as load_shards
from torch.distributed.checkpoint.state_dict_saver import save as save_shards
from torch.distributed.tensor import DTensor
from torch.utils.serialization import config

from pipelines.train.checkpoint_reader import METADATA, CheckpointReader
from pipelines.train.config import CheckpointSettings
from pipelines.train.distributed.process_group import ProcessGroup
from sigma_data.errors import ConfigError, TrainError
from sigma_data.storage.files import dump_json, write_atomic
from sigma_model.checkpoint_io import counted
from sigma_model.torch_compat import sharded_like

CHECKPOINTS = "checkpoints"
"""Folder of the checkpoints in that of a run."""
MARKER = "complete.json"
PATIENCE = timedelta(hours=1)
"""How long the first rank that has written its part waits for the last."""

State = Mapping[str, Mapping[str, Any]]
"""Sections (model, optimizer, ema) of named tensors, DTensors or the same on every rank."""

_FOLDER = re.compile(r"step-(\d{8,})")
_Value = TypeVar("_Value")


class Checkpointer:
    """Saves and loads the checkpoints of one run, in `folder`, which all ranks must see. Its methods are collective."""

    def __init__(self, folder: Path, group: ProcessGroup, settings: CheckpointSettings) -> None:
        self._root = folder
        self._group = group
        self._settings = settings
        # A group of its own: collectives of a save in flight must not mix with those of training.
        self._save_group = dist.new_group(backend="gloo", timeout=PATIENCE) if dist.is_initialized() else None
        self._copies: dict[str, Tensor] = {}
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None

    def save(self, step: int, state: State, extra: Mapping[str, Any]) -> None:
        """Save the state, and rank 0's `extra`, as the checkpoint of a step; one of that step is replaced.

        Asynchronous: the state may change as soon as this returns; it waits for a save in flight first. Memory:
        nothing, or where asynchronous one copy of this rank's part, in the memory of the CPU, from then on.
        Afterwards the newest `keep` complete checkpoints are kept, and older or incomplete ones removed.
        Raises TrainError where this save, or asynchronously the one before, cannot be written.
        """
        self.finish()
        text = json.dumps(extra)  # here, so that later changes do not reach it
        tensors = _flat(state)
        if not self._settings.asynchronous:
            self._write(step, tensors, text)
            return
        copies = self._copied(tensors)

        def work() -> None:
            try:
                self._write(step, copies, text)
            except BaseException as error:  # raised by `finish`
                self._failure = error

        self._thread = threading.Thread(target=work, name="checkpoint", daemon=True)
        self._thread.start()

    def finish(self) -> None:
        """Wait for a save in flight. Raises TrainError where it could not be written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        failure, self._failure = self._failure, None
        if failure is not None:
            raise failure

    def latest(self) -> int | None:
        """The step of the newest checkpoint that is complete and undamaged, the same on all ranks; None without.

        Waits for a save in flight. Raises TrainError as `finish` does.
        """
        self.finish()

        return self._on_rank0(lambda: max(self.complete(), default=None))

    def complete(self) -> list[int]:
        """Steps of the checkpoints that are complete and undamaged, the oldest first; one rank may ask alone."""
        return sorted(step for step, path in self._folders().items() if _read_marker(path) is not None)

    def read_extra(self, step: int) -> dict[str, Any]:
        """What was saved beside the tensors of a checkpoint. Raises ConfigError where it is incomplete or damaged."""
        self.finish()
        extra: dict[str, Any] = self._marker(step)["extra"]
        return extra

    def tidy(self) -> None:
        """Remove what saves that were killed, or ran out of space, have left behind; whoever calls this holds the run.

        Raises OSError, the same on all ranks.
        """

        def remove() -> None:
            for path in self._folders().values():
                if not (path / MARKER).exists():
                    _remove(path)

        self._on_rank0(remove)

    def load(self, step: int, state: State, *, part: bool = False) -> dict[str, Any]:
        """Fill tensors in place with those of a checkpoint, saved by any number of ranks; returns its `extra`.

        `part`: the state is only some of the sections, and the others are left. Raises ConfigError where names,
        shapes or types differ, before any tensor is touched, and where the checkpoint is incomplete or damaged.
        Waits for a save in flight; raises TrainError as `finish` does.
        """
        self.finish()
        folder = self._path(step)
        marker = self._marker(step)
        tensors = _flat(state)
        reader = CheckpointReader(folder)
        try:
            stored = reader.read_metadata().state_dict_metadata
        except (OSError, pickle.UnpicklingError, AttributeError, TypeError, EOFError) as error:
            why = _reason(error)
            raise ConfigError(f"{folder}: cannot be read ({why}): remove it to resume from the one before") from None
        _check(folder, tensors, {name: s for name, s in stored.items() if not part or name.partition("/")[0] in state})
        try:
            with _alone_is_meant():
                load_shards(tensors, storage_reader=reader, process_group=self._save_group)
        except (CheckpointException, OSError, RuntimeError) as error:
            why = _reason(error)
            raise ConfigError(f"{folder}: cannot be read ({why}): remove it to resume from the one before") from None
        extra: dict[str, Any] = marker["extra"]
        return extra

    def _marker(self, step: int) -> dict[str, Any]:
        marker = _read_marker(self._path(step))
        if marker is None:
            raise ConfigError(
                f"{self._path(step)}: is not a complete checkpoint, or is damaged: choose another, or remove it"
            )
        return marker

    def _write(self, step: int, tensors: dict[str, Tensor], extra: str) -> None:
        """Write, commit, tidy up. Raises TrainError, the same on all ranks, unless a rank was killed."""
        folder = self._path(step)
        try:
            self._on_rank0(lambda: _remove(folder))
            with _alone_is_meant():
                save_shards(tensors, storage_writer=_Writer(folder), process_group=self._save_group)
            mine = {path.name: path.stat().st_size for path in folder.glob(f"__{self._group.rank}_*")}
            files = dict(item for of_rank in self._gathered(mine) for item in of_rank.items())
            self._on_rank0(lambda: self._commit(step, files, extra))
        except (CheckpointException, OSError, RuntimeError) as error:
            # Half of one is of no use, and takes room; one that was whole when another rank was lost is the last.
            if self._group.rank == 0 and (isinstance(error, OSError) or _read_marker(folder) is None):
                with contextlib.suppress(OSError):
                    _remove(folder)
            lost = isinstance(error, RuntimeError) and self._group.size > 1  # a rank, not the disk
            raise TrainError(
                f"{folder}: the checkpoint could not be written ({_reason(error)}): "
                f"{'' if lost else 'make room or mend the disk, then '}run the same command again to continue"
            ) from None

    def _commit(self, step: int, files: Mapping[str, int], extra: str) -> None:
        folder = self._path(step)
        for name in files:
            if not (folder / name).exists():
                raise OSError(f"{name}, written by another rank, is not there for rank 0; all machines must share it")
        metadata = (folder / METADATA).read_bytes()
        marker = {
            "step": step,
            "ranks": self._group.size,
            "files": dict(sorted(files.items())),
            "metadata": hashlib.sha256(metadata).hexdigest(),
            "extra": json.loads(extra),
        }
        _sync(folder)
        write_atomic(folder / MARKER, dump_json(marker), durable=True)
        _sync(folder)
        _sync(self._root)
        complete = sorted(step for step, path in self._folders().items() if _read_marker(path) is not None)
        kept = complete[-self._settings.keep :]
        for other, path in self._folders().items():
            if other < step and other not in kept:
                with contextlib.suppress(OSError):  # tried again the next time
                    _remove(path)

    def _path(self, step: int) -> Path:
        return self._root / f"step-{step:08d}"

    def _folders(self) -> dict[int, Path]:
        """What lies there, complete or not, by step."""
        found = self._root.iterdir() if self._root.is_dir() else ()
        return {int(match[1]): path for path in found if (match := _FOLDER.fullmatch(path.name)) and path.is_dir()}

    def _copied(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Copies of this rank's parts, in memory that is kept for the next time."""
        copies = {}
        for name, tensor in tensors.items():
            part = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            copy = self._copies.get(name)
            if copy is None or copy.shape != part.shape or copy.dtype != part.dtype:
                copy = torch.empty(part.shape, dtype=part.dtype, pin_memory=part.is_cuda)
                self._copies[name] = copy
            copy.copy_(part, non_blocking=True)
            copies[name] = sharded_like(copy, tensor) if isinstance(tensor, DTensor) else copy
        if self._group.device.type == "cuda":
            torch.cuda.synchronize(self._group.device)
        return copies

    def _gathered(self, value: _Value) -> list[_Value]:
        """What each rank has, on all ranks."""
        if self._save_group is None:
            return [value]
        values: list[Any] = [None] * self._group.size
        dist.all_gather_object(values, value, group=self._save_group)
        return values

    def _on_rank0(self, act: Callable[[], _Value]) -> _Value:
        """Have rank 0 do something while the others wait; all get its value, or raise OSError as it does."""
        outcome: list[Any] = [None, None]
        if self._group.rank == 0:
            try:
                outcome[0] = act()
            except OSError as error:
                outcome[1] = error.strerror or str(error)
        if self._save_group is not None:
            dist.broadcast_object_list(outcome, src=0, group=self._save_group)
        if outcome[1] is not None:
            raise OSError(outcome[1])
        value: _Value = outcome[0]
        return value


def complete_step(run: Path, step: int | None) -> int:
    """The step asked for, or that of the newest complete checkpoint. Raises ConfigError if there is none."""
    steps = Checkpointer(run / CHECKPOINTS, ProcessGroup.single(), CheckpointSettings()).complete()
    if not steps:
        raise ConfigError(f"{run / CHECKPOINTS}: holds no complete checkpoint")
    if step is not None and step not in steps:
        raise ConfigError(
            f"{run / CHECKPOINTS}: holds no complete checkpoint of step {step:,}; there are "
            f"{', '.join(map(str, steps))}"
        )
    return steps[-1] if step is None else step


class _Writer(FileSystemWriter):
    """Writes a rank's file; torch hides a full disk behind a complaint about positions, this says what it was."""

    def write_data(self, plan: Any, planner: Any) -> Any:
        try:
            # Its sums would take three quarters of the processor time of a save, and torch.load never looks at them.
            with config.patch({"save.compute_crc32": False}):  # type: ignore[attr-defined]
                return super().write_data(plan, planner)
        except RuntimeError as error:
            cause: BaseException | None = error
            while cause is not None and not isinstance(cause, OSError):
                cause = cause.__context__
            if cause is None:
                raise
            raise OSError(cause.errno, cause.strerror) from None


@contextlib.contextmanager
def _alone_is_meant() -> Iterator[None]:
    """Keep torch from warning, even where it is told, that it works in one process."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        yield


def _flat(state: State) -> dict[str, Tensor]:
    """The tensors of all sections, by section/name."""
    tensors = {f"{section}/{name}": value for section, part in state.items() for name, value in part.items()}
    for name, value in tensors.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is not a tensor: put it into `extra`")
    return {name: tensor.detach() for name, tensor in tensors.items()}


def _check(folder: Path, wanted: Mapping[str, Tensor], stored: Mapping[str, object]) -> None:
    """Raise ConfigError unless a checkpoint holds these tensors, in these shapes and types, and no other."""
    missing = [name for name in wanted if name not in stored]
    extra = [name for name in stored if name not in wanted]
    other = [
        f"{name} is {shape}, not {_shape(tensor.shape, tensor.dtype)}"
        for name, tensor in wanted.items()
        if (found := stored.get(name)) is not None
        # What is stored as anything but a tensor, torch would unpickle without looking.
        and (shape := _stored_shape(found)) != _shape(tensor.shape, tensor.dtype)
    ]
    kinds = (("missing", missing), ("unexpected", extra), ("of another shape or type", other))
    if faults := [counted(names, kind) for kind, names in kinds if names]:
        raise ConfigError(
            f"{folder}: does not fit this run: {'; '.join(faults)} (model, LoRA, freezing and EMA must be those "
            "that it was saved with: set them so, or choose another `out`)"
        )


def _stored_shape(found: object) -> str:
    return _shape(found.size, found.properties.dtype) if isinstance(found, TensorStorageMetadata) else "not a tensor"


def _shape(size: torch.Size, dtype: torch.dtype) -> str:
    return f"{list(size)} {str(dtype).removeprefix('torch.')}"


def _read_marker(folder: Path) -> dict[str, Any] | None:
    """A checkpoint's marker; None where it is incomplete or its files are not those that were written."""
    try:
        marker: dict[str, Any] = json.loads((folder / MARKER).read_bytes())
        metadata = (folder / METADATA).read_bytes()
        sizes = {name: (folder / name).stat().st_size for name in marker["files"]}
        whole = sizes == marker["files"] and hashlib.sha256(metadata).hexdigest() == marker["metadata"]
        return marker if whole and folder.name == f"step-{marker['step']:08d}" and "extra" in marker else None
    except (OSError, ValueError, LookupError, TypeError):
        return None


def _remove(folder: Path) -> None:
    """Remove a checkpoint, its marker first, so that a kill leaves an incomplete one and no damaged one."""
    if folder.exists():
        (folder / MARKER).unlink(missing_ok=True)
        shutil.rmtree(folder)


def _sync(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _reason(error: BaseException) -> str:
    """What went wrong, in a few words; of several ranks the first."""
    error = next(iter(error.failures.values()))[0] if isinstance(error, CheckpointException) else error
    return str(getattr(error, "strerror", None) or error).strip().partition("\n")[0]
