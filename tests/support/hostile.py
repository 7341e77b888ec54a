"""Builds of hostile input, and what became of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipelines.validate.run import validate_corpus
from sigma_data.corpus.corpus import COMMIT, open_corpus
from sigma_data.errors import SigmaError
from support import corpora


def build_safely(out: Path, source: str, *, watch: Path) -> dict[str, Any] | None:
    """The sums of a build from a hostile source, None where it ended in a sentence; only `out` may change."""
    before = corpora.files_below(watch)
    sums: dict[str, Any] | None
    sentence = ""
    try:
        sums = dict(corpora.build(out, source).corpus.sums)
    except SigmaError as error:
        sums, sentence = None, str(error)
    inside = out.relative_to(watch).as_posix() + "/"
    after = {name: entry for name, entry in corpora.files_below(watch).items() if not name.startswith(inside)}
    assert after == before
    assert (out / COMMIT).exists() == (sums is not None)
    assert "\n" not in sentence
    if sums is not None:
        assert corpora.adds_up(sums)
        assert validate_corpus(out, deep=True, workers=0).problems == []
    return sums


def codes_by_location(corpus: Path) -> dict[str, set[str]]:
    rows = open_corpus(corpus).quarantine.select("location", "code").iter_rows()
    result: dict[str, set[str]] = {}
    for location, code in rows:
        result.setdefault(location, set()).add(code)
    return result


# --- tars ------------------------------------------------------------------------------------------
