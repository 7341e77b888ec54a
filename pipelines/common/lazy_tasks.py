"""Tasks of a pool that are made when they are dealt out, where all of them at once would fill memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar, overload

Task = TypeVar("Task")


class LazyTasks(Sequence[Task]):
    """`count` tasks; `make(number)` makes one, each time it is asked for."""

    def __init__(self, count: int, make: Callable[[int], Task]) -> None:
        self._count, self._make = count, make

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, number: int) -> Task: ...
    @overload
    def __getitem__(self, number: slice) -> Sequence[Task]: ...
    def __getitem__(self, number: Any) -> Any:
        if isinstance(number, slice):
            return [self._make(one) for one in range(*number.indices(self._count))]
        return self._make(number)

    def __iter__(self) -> Iterator[Task]:
        return (self._make(number) for number in range(self._count))
