"""Reading a checkpoint, whose metadata is a pickle, without running what a stranger may have put there."""

from __future__ import annotations

import pickle
import re
from enum import EnumMeta
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import metadata as records
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta

from sigma_model.torch_compat import CHECKPOINT_RECORDS

METADATA = ".metadata"


class CheckpointReader(FileSystemReader):
    """torch's reader of a folder. Raises UnpicklingError for metadata that holds more than records of tensors."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        with Path(self.path, METADATA).open("rb") as file:
            metadata: Metadata = _Unpickler(file).load()
        for place in (metadata.storage_data or {}).values():
            if not re.fullmatch(r"__\d+_\d+\.distcp", place.relative_path):
                raise pickle.UnpicklingError(f"its metadata names the file {place.relative_path!r}")
        metadata.storage_meta = StorageMeta(load_id=self.load_id)
        return metadata


class _Unpickler(pickle.Unpickler):
    """Knows the records of torch.distributed.checkpoint, and nothing else."""

    _records = frozenset(
        {
            *(("torch.distributed.checkpoint.metadata", name) for name in records.__all__ if "Bytes" not in name),
            *CHECKPOINT_RECORDS,
            ("torch", "Size"),
            *(("torch", name) for name, value in vars(torch).items() if isinstance(value, torch.dtype)),
            *((module, name) for module in ("pathlib", "pathlib._local") for name in ("PosixPath", "WindowsPath")),
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("builtins", "getattr"):
            return _member
        if (module, name) not in self._records:
            raise pickle.UnpicklingError(f"its metadata wants {module}.{name}, which is not part of a checkpoint")
        return super().find_class(module, name)


def _member(kind: Any, name: Any) -> Any:
    """The member of an enumeration: early releases of Python 3.11, as Debian's 3.11.2, pickle it by `getattr`."""
    if isinstance(kind, EnumMeta) and name in kind.__members__:
        return kind.__members__[name]
    raise pickle.UnpicklingError(f"its metadata wants {name!r} of {kind!r}, which is not part of a checkpoint")
