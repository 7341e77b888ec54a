"""From settings to a planner: opens every corpus's index, and makes those that are not there yet."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Protocol

from pipelines.common.progress import ProgressBar
from sigma_data.planning.index import CorpusIndex, open_index
from sigma_data.planning.index_writer import TextCounter
from sigma_data.planning.plan import Planner, PlanSettings, SampleRandomness
from sigma_data.planning.segment_table import SampleShapes
from sigma_data.sample import Turn
from sigma_data.sequence.layout import Geometry, Piece


class Described(Protocol):
    """What a plan asks of a model's description, whichever kind the model is of."""

    @property
    def tokenizer(self) -> TextCounter: ...

    @property
    def geometry(self) -> Geometry | SampleShapes: ...

    def outline(self, turns: Sequence[Turn], images: Collection[int]) -> Iterable[Piece]:
        """The content of a sample in order. Raises SequenceError."""

    def recipe(self, settings: PlanSettings) -> SampleRandomness:
        """The random choices of samples."""


def open_planner(settings: PlanSettings, description: Described, *, cache: Path | None = None) -> Planner:
    """The planner of some settings for a model, with progress on standard error while an index is made.

    `cache` is where indexes of remote and read-only corpora are kept, as `open_index` has it.

    Raises CorpusError where a corpus is not sound, ConfigError where the settings find no samples in them.
    """
    indexes = [_open(corpus.path, description, cache) for corpus in settings.corpora]
    return Planner(
        settings,
        indexes,
        description.geometry,
        tokenizer=description.tokenizer.digest,
        recipe=description.recipe(settings),
    )


def _open(path: str, description: Described, cache: Path | None) -> CorpusIndex:
    with ExitStack() as stack:
        shown: ProgressBar | None = None

        def progress(done: int, total: int) -> None:
            nonlocal shown
            shown = shown or stack.enter_context(ProgressBar("index", total, "samples"))
            shown.add(done - shown.count)

        return open_index(path, description.tokenizer, cache=cache, progress=progress, outline=description.outline)
