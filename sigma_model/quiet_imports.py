"""Importing libraries that log, while they are imported, what concerns other machines or other libraries."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def quiet_imports() -> Iterator[None]:
    """Within it, nothing up to the level of a warning is logged.

    Libraries for quantisation log the kernels that they do not find on this machine.
    """
    before = logging.root.manager.disable
    logging.disable(max(before, logging.WARNING))
    try:
        yield
    finally:
        logging.disable(before)
