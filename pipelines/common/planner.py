"""From settings to a planner: opens every corpus's index, and makes those that are not there yet."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from pipelines.common.progress import ProgressBar
from sigma_data.planning.index import CorpusIndex, open_index
from sigma_data.planning.plan import Planner, PlanSettings
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_model.loading import ModelDescription


def open_planner(settings: PlanSettings, description: ModelDescription, *, cache: Path | None = None) -> Planner:
    """The planner of some settings for a model, with progress on standard error while an index is made.

    `cache` is where indexes of remote and read-only corpora are kept, as `open_index` has it.

    Raises CorpusError where a corpus is not sound, ConfigError where the settings find no samples in them.
    """
    indexes = [_open(corpus.path, description.tokenizer, cache) for corpus in settings.corpora]
    return Planner(settings, indexes, description.geometry, tokenizer=description.tokenizer.digest)


def _open(path: str, tokenizer: Tokenizer, cache: Path | None) -> CorpusIndex:
    with ExitStack() as stack:
        shown: ProgressBar | None = None

        def progress(done: int, total: int) -> None:
            nonlocal shown
            shown = shown or stack.enter_context(ProgressBar("index", total, "samples"))
            shown.add(done - shown.count)

        return open_index(path, tokenizer, cache=cache, progress=progress)
