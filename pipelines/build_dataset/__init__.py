"""Corpora: `build_dataset(sources, out)` runs what `sigma build-dataset` runs: scan, plan, write, commit.

Nothing is imported at the top, for workers import this package and need only their own pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sigma_data.corpus.corpus import Corpus


def build_dataset(
    sources: str | Sequence[str],
    out: str | PathLike[str],
    *,
    workers: int | None = None,
    overwrite: bool = False,
    strict_files: bool = False,
    **settings: Any,
) -> Corpus:
    """Build a corpus, or finish the build that was interrupted there; returns it, open.

    `sources` are e.g. "release:DIR" or "world:600?size=64"; `settings` are those of docs/configuration.md, e.g.
    `splits={"train": 0.9, "test": 0.1}`. `workers` is the number of processes, by default one a core; with
    `strict_files` a source file that cannot be used at all is an error. A script must call it under
    `if __name__ == "__main__"`, because workers import the script. Raises SigmaError for what a user can mend; the
    folder then holds no corpus.
    """
    from pipelines.build_dataset.config import BuildConfig
    from pipelines.build_dataset.run import build
    from pipelines.common.process_pool import default_workers
    from pipelines.common.settings import merge_settings
    from sigma_data.storage.paths import local_path

    config = merge_settings(
        BuildConfig, {"sources": [sources] if isinstance(sources, str) else list(sources)}, settings
    )
    result = build(
        config,
        local_path(str(out)),
        workers=workers or default_workers(),
        overwrite=overwrite,
        strict_files=strict_files,
    )
    return result.corpus
