"""Results from a worker to the process that uses them, through memory that both see and that is filled again.

A result is pickled with its tensors beside it (pickle's protocol 5): they are copied into a segment of shared memory,
and what arrives are views of it. Once no view is left the worker fills the segment again, so that after the first
results neither side waits for fresh pages. Segments have no name: nothing is left behind, whoever is killed.
"""

from __future__ import annotations

import io
import mmap
import os
import pickle
import sys
import tempfile
import weakref
from collections import deque
from collections.abc import Iterable, Sequence
from multiprocessing.connection import Connection
from multiprocessing.reduction import recv_handle, send_handle
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from sigma_data.errors import LoaderError

Bytes = npt.NDArray[np.uint8]

_ALIGNED = 64
"""Bytes: where every type may start."""
_MEGABYTE = 2**20
_ROOM = 1.125
"""A segment is larger than what it is made for, since the next results are not all smaller."""


class Outbox:
    """A worker's end."""

    def __init__(self) -> None:
        self._segments: dict[int, Bytes] = {}
        self._free: set[int] = set()
        self._made = 0

    def take_back(self, numbers: Iterable[int]) -> None:
        """Segments of which the other side has no view any more."""
        self._free |= set(numbers)

    def send(self, pipe: Connection, value: Any) -> None:
        """Send a value. Raises LoaderError where there is no memory for its tensors."""
        parts: list[pickle.PickleBuffer] = []
        stream = io.BytesIO()
        _Pickler(stream, protocol=5, buffer_callback=parts.append).dump(value)
        raws = [part.raw() for part in parts]
        spans = _spans([raw.nbytes for raw in raws])
        if not spans:
            pipe.send((None, 0, (), (), stream.getvalue()))
            return
        number, dropped, handle = self._segment(spans[-1][1])
        segment = self._segments[number]
        for raw, (start, end) in zip(raws, spans, strict=True):
            segment[start:end] = np.frombuffer(raw, np.uint8)
        try:
            pipe.send((number, len(segment) if handle is not None else 0, dropped, spans, stream.getvalue()))
            if handle is not None:
                send_handle(pipe, handle, None)
        finally:
            if handle is not None:
                os.close(handle)

    def _segment(self, size: int) -> tuple[int, tuple[int, ...], int | None]:
        """A segment to fill, those given up for it, and its file where it is new."""
        fitting = [number for number in self._free if len(self._segments[number]) >= size]
        if fitting:
            number = min(fitting, key=lambda number: len(self._segments[number]))
            self._free.remove(number)
            return number, (), None
        dropped = tuple(self._free)  # too small, and so is what will follow
        for number in dropped:
            del self._segments[number]
        self._free.clear()
        room = -(-int(size * _ROOM) // _MEGABYTE) * _MEGABYTE
        handle = _file(room)
        self._made += 1
        self._segments[self._made] = _mapped(handle, room)
        return self._made, dropped, handle


class Inbox:
    """The other end of a worker's outbox. `freed` are the segments to tell it of, with its next task."""

    def __init__(self) -> None:
        self.freed: deque[int] = deque()
        self._segments: dict[int, mmap.mmap] = {}

    def receive(self, pipe: Connection) -> Any:
        """A value as sent, its tensors views of memory that stays theirs as long as there is one. Raises EOFError."""
        number, size, dropped, spans, stream = pipe.recv()
        for gone in dropped:
            del self._segments[gone]
        if size:
            handle = recv_handle(pipe)
            try:
                self._segments[number] = mmap.mmap(handle, size)
            finally:
                os.close(handle)
        views: list[memoryview] = []
        if number is not None:
            segment = np.frombuffer(self._segments[number], np.uint8)
            # Every view keeps this very array alive.
            weakref.finalize(segment, self.freed.append, number).atexit = False
            views = [segment.data[start:end] for start, end in spans]
        return pickle.loads(stream, buffers=views)  # noqa: S301 - from a process of our own


class _Pickler(pickle.Pickler):
    """Leaves the memory of tensors out of the stream, as it does that of arrays by itself."""

    def reducer_override(self, obj: Any) -> Any:
        if type(obj) is not Tensor or obj.device.type != "cpu" or obj.layout is not torch.strided or obj.requires_grad:
            return NotImplemented
        strides = torch.empty_like(obj, device="meta").stride()  # images lie [h, w, 3] in memory
        if not obj.numel():
            return _empty, (obj.dtype, tuple(obj.shape), strides)
        order = sorted(range(obj.dim()), key=lambda axis: -strides[axis])
        flat = obj.permute(order).contiguous().view(-1).view(torch.uint8)
        return _tensor, (pickle.PickleBuffer(flat.numpy().data), obj.dtype, tuple(obj.shape), strides)


def _tensor(memory: Any, dtype: torch.dtype, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    return torch.frombuffer(memory, dtype=dtype).as_strided(shape, strides)


def _empty(dtype: torch.dtype, shape: Sequence[int], strides: Sequence[int]) -> Tensor:
    return torch.empty_strided(tuple(shape), tuple(strides), dtype=dtype)


def _spans(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Where blocks of these sizes start and end, one behind another."""
    spans, start = [], 0
    for size in sizes:
        spans.append((start, start + size))
        start += -(-size // _ALIGNED) * _ALIGNED
    return spans


def _file(size: int) -> int:
    """A file in memory without a name, its pages there already. Raises LoaderError where there is no room."""
    if sys.platform == "linux":
        handle = os.memfd_create("sigma-loader")
    else:
        with tempfile.TemporaryFile() as file:
            handle = os.dup(file.fileno())
    try:
        if sys.platform == "linux":
            os.posix_fallocate(handle, 0, size)  # or the lack of memory would show as a killed process
        else:
            os.ftruncate(handle, size)
    except OSError as error:
        os.close(handle)
        raise LoaderError(
            f"no memory is left for a batch of {size:,} bytes ({error.strerror}): use fewer workers, or a smaller "
            "prefetch"
        ) from None
    return handle


def _mapped(handle: int, size: int) -> Bytes:
    return np.frombuffer(mmap.mmap(handle, size), np.uint8)
