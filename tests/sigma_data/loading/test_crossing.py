"""Tensors arrive as they were sent, and their memory is filled again only once nobody has a view of it."""

from __future__ import annotations

import errno
import gc
import os
from collections.abc import Iterator
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sigma_data.errors import LoaderError
from sigma_data.loading.crossing import Inbox, Outbox


class Line:
    """Both ends in one process."""

    def __init__(self) -> None:
        self.outbox, self.inbox = Outbox(), Inbox()
        self.ends: tuple[Connection, Connection] = Pipe()

    def carry(self, value: Any) -> Any:
        freed = self.inbox.freed
        self.outbox.take_back([freed.popleft() for _ in range(len(freed))])
        sending = Thread(target=self.outbox.send, args=(self.ends[0], value))
        sending.start()
        try:
            return self.inbox.receive(self.ends[1])
        finally:
            sending.join()

    def close(self) -> None:
        for end in self.ends:
            end.close()


@pytest.fixture
def line() -> Iterator[Line]:
    made = Line()
    yield made
    made.close()


def memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


NUMBERS = torch.arange(720)


@pytest.mark.parametrize(
    "tensor",
    [
        NUMBERS,
        NUMBERS.view(6, 120).float(),
        NUMBERS.view(20, 12, 3).permute(2, 0, 1).to(torch.uint8),  # planes of an image that lies [h, w, 3]
        NUMBERS.view(6, 120).t(),
        NUMBERS[::3],
        NUMBERS.view(6, 120)[:, 5:17],
        NUMBERS.view(720, 1).expand(720, 2),
        NUMBERS.bfloat16(),
        NUMBERS > 7,
        torch.zeros(0, 64),
        torch.zeros(3, 0, dtype=torch.uint8).t(),
        torch.tensor(2.5, dtype=torch.float64),
    ],
)
def test_a_tensor_arrives_as_it_was(tensor: Tensor, line: Line) -> None:
    found = line.carry({"one": [tensor]})["one"][0]
    assert found.dtype == tensor.dtype and found.shape == tensor.shape and torch.equal(found, tensor)
    assert found.stride() == torch.empty_like(tensor).stride()
    found.zero_()  # it is the receiver's
    assert not tensor.numel() or tensor.count_nonzero() > 0


def test_other_values_arrive_too(line: Line) -> None:
    value = (True, "text", {"array": np.arange(5), "error": LoaderError("no")})
    found = line.carry(value)
    assert found[:2] == value[:2] and found[2]["array"].tolist() == [0, 1, 2, 3, 4]
    assert type(found[2]["error"]) is LoaderError


def test_memory_in_use_is_left_alone_and_what_is_free_is_filled_again(line: Line) -> None:
    first, second = line.carry(torch.full((1000,), 1)), line.carry(torch.full((1000,), 2))
    part = first[10:20]
    place = memory(first)
    del first
    third = line.carry(torch.full((1000,), 3))  # a view of the first is left
    assert part.tolist() == [1] * 10 and second.unique().tolist() == [2]
    assert len({place, memory(second), memory(third)}) == 3
    del part
    gc.collect()
    assert memory(line.carry(torch.full((900,), 4))) == place


@pytest.mark.slow
@given(st.lists(st.tuples(st.integers(0, 400_000), st.integers(0, 3)), min_size=1, max_size=12))
def test_nothing_that_is_kept_changes(sends: list[tuple[int, int]]) -> None:
    line = Line()
    kept: list[tuple[int, Tensor]] = []
    for number, (size, forget) in enumerate(sends):
        kept.append((number, line.carry((number, torch.full((size,), number)))[1]))
        for _ in range(min(forget, len(kept))):
            kept.pop(0)
        assert all((tensor == value).all() for value, tensor in kept)
    line.close()


@pytest.mark.slow
def test_segments_that_are_too_small_are_given_up(line: Line) -> None:
    for megabytes in range(1, 12):
        line.carry(torch.zeros(megabytes << 20, dtype=torch.uint8))
        gc.collect()
    mapped = Path("/proc/self/maps")
    assert not mapped.is_file() or mapped.read_text().count("memfd:sigma-loader") <= 4  # two segments, at both ends


def test_no_memory_for_a_result_is_an_error_that_says_what_to_do(line: Line, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(LoaderError, match="no memory is left for a batch of .* bytes .*use fewer workers"):
        line.outbox.send(line.ends[0], torch.zeros(1000))
    monkeypatch.undo()
    assert line.carry(torch.ones(3)).tolist() == [1, 1, 1]
