"""TensorBoard as a view of a run: where it cannot be written, that is said in a line, and the run goes on without.

Its writer works in a thread of its own, whose failure would print a traceback and be raised much later.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

logger = logging.getLogger(__name__)


class TensorBoardLog:
    """Curves, images and texts in `folder`; those of steps behind `resumed` are dropped by whoever shows them."""

    def __init__(self, folder: Path, resumed: int) -> None:
        self._folder = folder
        self._writer: Any = None
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            logger.warning(
                "log.tensorboard: tensorboard is not installed, figures go to metrics.jsonl alone: "
                "run `pip install tensorboard` to see curves"
            )
            return
        self._hook = threading.excepthook
        threading.excepthook = self._on_thread_failure
        try:
            self._writer = SummaryWriter(str(folder), purge_step=resumed + 1)
        except OSError as error:
            self._stop(error)

    def scalar(self, name: str, value: float, step: int) -> None:
        """A point of a curve; one that is not finite is shown as such."""
        self._do(lambda: self._writer.add_scalar(name, value, step))

    def image(self, name: str, pixels: Any, step: int) -> None:
        """An image, [h, w, 3] bytes."""
        self._do(lambda: self._writer.add_image(name, pixels, step, dataformats="HWC"))

    def text(self, name: str, text: str, step: int) -> None:
        """A text."""
        self._do(lambda: self._writer.add_text(name, text, step))

    def close(self) -> None:
        """Write what is left."""
        self._do(lambda: self._writer.close())
        if threading.excepthook == self._on_thread_failure:
            threading.excepthook = self._hook

    def _do(self, write: Callable[[], None]) -> None:
        if self._writer is None:
            return
        try:
            write()
        except OSError as error:
            self._stop(error)

    def _stop(self, error: OSError) -> None:
        self._writer = None
        logger.warning(
            "train: %s: curves cannot be written (%s), and end here; metrics.jsonl has all figures",
            self._folder, error.strerror or error,
        )  # fmt: skip

    def _on_thread_failure(self, failure: threading.ExceptHookArgs) -> None:
        """What the writer's own thread fails of, it raises again in the next call."""
        if not type(failure.thread).__module__.startswith("tensorboard"):
            self._hook(failure)
