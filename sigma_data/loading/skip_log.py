"""What training had to leave out: samples whose images turned out bad when they were read."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from sigma_data.errors import LoaderError
from sigma_data.storage.files import append, disk_error, dump_line

_FEW = 10
"""So many skips are borne whatever their share: at the start one would be too many."""


@dataclass(frozen=True)
class SkippedSample:
    """A sample that was planned and not shown: where it lies, and what is wrong with which image."""

    epoch: int
    pack: int
    corpus: str
    sample: str
    shard: str
    image: int
    code: str
    message: str


class SkipLog:
    """Counts samples and appends a JSON line to `path` for each skip; `max_bad` is the share that is allowed."""

    def __init__(self, path: Path, max_bad: float) -> None:
        self.path = path
        self.max_bad = max_bad
        self.samples = 0
        self.skipped = 0

    def add(self, samples: int, skips: tuple[SkippedSample, ...]) -> None:
        """Count `samples`, of which `skips` were left out.

        Raises LoaderError once there are too many of them, BuildError where the file cannot be written.
        """
        self.samples += samples
        self.skipped += len(skips)
        if not skips:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            append(self.path, "".join(dump_line(asdict(skip)) for skip in skips))
        except OSError as error:
            raise disk_error(error, self.path) from None
        if self.skipped >= (_FEW if self.max_bad else 1) and self.skipped > self.max_bad * self.samples:
            last = skips[-1]
            raise LoaderError(
                f"{self.skipped:,} of {self.samples:,} samples had images that cannot be used, the last one "
                f"{last.sample} in {last.shard} ({last.message}): see {self.path}, mend the corpus, or set max_bad "
                f"above {self.max_bad:g}"
            )
