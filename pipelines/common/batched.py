"""`itertools.batched` of Python 3.12, for the 3.11 this project still runs on."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Lists of `size` items, the last one perhaps shorter; no more than one list is held."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch
