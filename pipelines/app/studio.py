"""One worker that computes what is asked, one request after the other; the others wait in line.

Whoever asked looks at the job's `state`, `step` and `preview`. A job that is stopped raises out of the sampler at its
next step, so nothing goes on computing for nobody. What waits lies on disk, not in memory.
"""

from __future__ import annotations

import io
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from PIL import Image as Pillow

from pipelines.app.ask import Ask
from pipelines.app.config import WAITING, AppConfig
from pipelines.app.gallery import DONE, FAILED, INTERRUPTED, STOPPED, Entry, Gallery, Made
from pipelines.app.numbers import in_fields
from pipelines.generate.config import GenerateConfig
from sigma_data.errors import ConfigError, SigmaError

if TYPE_CHECKING:
    from pipelines.common.answerer import Answerer

logger = logging.getLogger(__name__)

Decoded = TypeVar("Decoded")

QUEUED, LOADING, RUNNING = "waiting", "loading", "running"
_PREVIEW_SIDE = 512
_PREVIEW_PAUSE = 0.4
"""Seconds between previews, and at least four times what one takes."""


class Stopped(Exception):
    """Somebody stopped the job; raised out of the sampler."""


@dataclass(eq=False)
class Job:
    """A request on its way; the worker alone writes, all may read."""

    entry: Entry
    state: str = QUEUED
    model: str = ""
    """The one at work."""
    step: int = 0
    steps: int = 0
    preview: bytes | None = None
    """A JPEG of what the image is estimated to become."""
    stop: threading.Event = field(default_factory=threading.Event)
    ended: threading.Event = field(default_factory=threading.Event)
    """Set when `entry` says how it ended."""


class Studio:
    """The models and the line of requests. `load` is `load_answerer`, or a stand-in."""

    def __init__(
        self, config: AppConfig, gallery: Gallery, load: Callable[[GenerateConfig], Answerer] | None = None
    ) -> None:
        self.config, self.gallery = config, gallery
        self._load = load or _load
        self._loading = config.loading()
        self._loaded: dict[str, Answerer] = {}
        self._line: deque[Job] = deque()
        self._now: Job | None = None
        self._turn = threading.Condition()
        self._decoder = ThreadPoolExecutor(1, "decoder")
        self._closed = self._cold = False
        self._worker = threading.Thread(target=self._work, name="studio", daemon=True)
        self._worker.start()

    def warm_up(self) -> None:
        """Load the first model before anybody asks."""
        with self._turn:
            self._cold = True
            self._turn.notify_all()

    def submit(self, ask: Ask) -> Job:
        """Put a request in line, checked and kept on disk.

        Raises ConfigError for what cannot be used and where too many wait, BuildError where the disk refuses.
        """
        for model in ask.models:
            if model not in self.config.models:
                raise ConfigError(f"{model}: is not served here; start `sigma app` with --model {model}")
            ask.config(model, self._loading)
        self._refuse_when_full()
        self.decode(ask.check)
        with self._turn:
            self._refuse_when_full()
            job = Job(self.gallery.begin(ask))
            self._line.append(job)
            self._turn.notify_all()
        return job

    def decode(self, act: Callable[..., Decoded], *arguments: Any) -> Decoded:
        """Do what decodes images: one at a time, however many ask, and always in the same thread.

        Both bound the memory: of what a thread has freed, the C library keeps up to 30 MB for that thread.
        """
        return self._decoder.submit(act, *arguments).result()

    def entry(self, name: str) -> Entry:
        """An entry of the gallery; one that waits or is at work has that state. Raises ConfigError as the gallery."""
        found = self.gallery.entry(name)
        if found.state != INTERRUPTED:
            return found
        with self._turn:
            if self._now is not None and self._now.entry.id == name:
                return replace(found, state=RUNNING)
            if any(job.entry.id == name for job in self._line):
                return replace(found, state=QUEUED)
        return self.gallery.entry(name)  # it may have ended in the meantime

    def ahead(self, job: Job) -> int:
        """How many are computed before a job that waits."""
        with self._turn:
            waiting = [*self._line]
            return (self._now is not None) + (waiting.index(job) if job in waiting else 0)

    def stop(self, job: Job) -> None:
        """End a job; one at work ends at its next step, one in line at once."""
        job.stop.set()
        with self._turn:
            waiting = job in self._line
            if waiting:
                self._line.remove(job)
        if waiting:
            self._end(job, STOPPED, "stopped before its turn", [])

    def close(self) -> None:
        """Stop everything; what waits is kept as interrupted. Again: nothing."""
        with self._turn:
            if self._closed:
                return
            self._closed = True
            self._line.clear()
            if self._now is not None:
                self._now.stop.set()
            self._turn.notify_all()
        self._worker.join(30)
        self.gallery.close()

    def _refuse_when_full(self) -> None:
        if len(self._line) >= WAITING:
            raise ConfigError(f"{WAITING} requests wait already: try again in a minute")

    def _work(self) -> None:
        while True:
            with self._turn:
                self._now = None
                while not (self._line or self._closed or self._cold):
                    self._turn.wait()
                if self._closed:
                    return
                job = self._now = self._line.popleft() if self._line else None
                cold, self._cold = self._cold, False
            if cold:
                self._load_first()
            if job is None:
                continue
            made: list[Made] = []
            try:
                self._answer(job, made)
            except Stopped:
                self._end(job, STOPPED, f"stopped at step {job.step} of {job.steps}", made)
            except SigmaError as error:
                self._end(job, FAILED, _reason(error), made)
            except Exception as error:  # a kernel, a driver, memory: the next one may work
                logger.exception("sigma: %s failed", job.entry.id)
                self._end(job, FAILED, _reason(error), made)
            else:
                self._end(job, DONE, "", made)

    def _load_first(self) -> None:
        """What is wrong with the model is told to who asks it."""
        model = self.config.models[0]
        try:
            self._answerer(Ask("", models=(model,)), model)
        except Exception as error:
            logger.warning("sigma: %s: %s", model, _reason(error))
        else:
            logger.info("sigma: %s is loaded", model)

    def _answer(self, job: Job, made: list[Made]) -> None:
        from sigma_model.sampling.generate import Request

        ask, entry = job.entry.ask, job.entry
        for number, model in enumerate(ask.models, 1):
            job.model, job.state = model, LOADING
            answerer = self._answerer(ask, model)
            images = [Path(image).read_bytes() for image in ask.images]
            config = ask.config(model, self._loading)
            request = Request(ask.prompt, images, ask.names, config.size, config.seed)
            answerer.check(request)
            job.step, job.steps, job.preview = 0, answerer.steps, None
            job.state = RUNNING
            start = time.monotonic()
            file, text, size = None, None, None
            if ask.text:
                text = answerer.texts([request], _Watch(job).progress)[0]
            else:
                watch = _Watch(job)
                image = answerer.images([request], watch.progress, watch.preview)[0]
                file, size = f"result_{number}.png", image.size
                answerer.write(image, entry.path(file), request)
            seconds = round(time.monotonic() - start, 2)
            command = ask.command(model, self._loading)
            made.append(Made(model, command, file, text, seconds, answerer.trained, size, answerer.caveat))
            if job.stop.is_set() and number < len(ask.models):
                raise Stopped

    def _answerer(self, ask: Ask, model: str) -> Answerer:
        config = ask.config(model, self._loading)
        if model not in self._loaded:
            self._loaded[model] = self._load(config)
        return self._loaded[model].asked_otherwise(config, text=ask.text)

    def _end(self, job: Job, state: str, message: str, made: list[Made]) -> None:
        try:
            job.entry = self.gallery.end(job.entry, state, message, made)
        except SigmaError as error:  # the disk is full: who asked is told, and the line goes on
            job.entry = Entry(job.entry.id, job.entry.folder, job.entry.ask, FAILED, str(error))
        job.state = job.entry.state
        job.ended.set()


class _Watch:
    """What the sampler calls after its steps: counts, previews now and then, and ends a stopped job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._next = 0.0

    def progress(self, done: int, of: int) -> None:
        self._job.step, self._job.steps = done, of
        if self._job.stop.is_set():
            raise Stopped

    def preview(self, decode: Callable[[], list[Pillow.Image]]) -> None:
        start = time.monotonic()
        if self._job.stop.is_set() or start < self._next:
            return
        image = decode()[0]
        image.thumbnail((_PREVIEW_SIDE, _PREVIEW_SIDE))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        self._job.preview = buffer.getvalue()
        end = time.monotonic()
        self._next = end + max(_PREVIEW_PAUSE, 4 * (end - start))


def _load(wanted: GenerateConfig) -> Answerer:
    """Load a model; torch with the first one, which is when the page is there already."""
    from pipelines.common.answerer import load_answerer

    return load_answerer(wanted, text=wanted.text)


def _reason(error: Exception) -> str:
    """An error of ours or of a library, in a line."""
    if isinstance(error, SigmaError):
        return in_fields(str(error))
    if "out of memory" in str(error).lower() or isinstance(error, MemoryError):
        return "there is not enough memory for this: take smaller or fewer images, or a smaller size"
    lines: list[Any] = str(error).splitlines()
    return f"{type(error).__name__}: {(lines or ['no reason given'])[0][:300]}"
