"""Work on several items that one of them can spoil: at once, and where that fails one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")
Fault = TypeVar("Fault", bound=Exception)


def together_or_each(
    act: Callable[[Sequence[Item]], Iterable[Made]], items: Sequence[Item], fault: type[Fault]
) -> list[Made | Fault]:
    """What `act` makes of all items at once, one thing of each, in order.

    Where it raises `fault`, each item is tried alone, so that those at fault are found and the others kept: in an
    item's place stands what was raised for it. Any other exception goes through. No items: `act` is not called.
    """
    if not items:
        return []
    try:
        return [*act(items)]
    except fault as error:
        if len(items) == 1:
            return [error]
    return [made for item in items for made in together_or_each(act, [item], fault)]
