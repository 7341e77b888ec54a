"""Every fault of commit, manifest and quarantine is found, by `validate --fast` and `--deep`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from support import corpora
from support.faults import SHARD, assert_found, check, flip, samples

from sigma_data.corpus.corpus import COMMIT, MANIFEST, QUARANTINE


def manifest_flipped_bit(corpus: Path, other: Path) -> tuple[str, str]:
    flip(corpus / MANIFEST, (corpus / MANIFEST).stat().st_size // 2)
    return "changed_file", MANIFEST


def manifest_of_another_corpus(corpus: Path, other: Path) -> tuple[str, str]:
    shutil.copy(other / MANIFEST, corpus / MANIFEST)
    return "changed_file", MANIFEST


def manifest_of_another_corpus_forged(corpus: Path, other: Path) -> tuple[str, str]:
    shutil.copy(other / MANIFEST, corpus / MANIFEST)
    corpora.forge_commit(corpus, lambda commit: commit["sums"].update(read=15, written=12, quarantined=2, duplicates=1))
    return "extra_member", SHARD


def manifest_without_a_row(corpus: Path, other: Path) -> tuple[str, str]:
    rows = corpora.read_manifest(corpus)
    corpora.write_manifest(corpus, [row for row in rows if row["id"] != samples(corpus)[1]["id"]])
    corpora.forge_commit(corpus)
    return "bad_sums", MANIFEST


def manifest_with_a_row_twice(corpus: Path, other: Path) -> tuple[str, str]:
    rows = corpora.read_manifest(corpus)
    corpora.write_manifest(corpus, [*rows, rows[0]])
    corpora.forge_commit(corpus, lambda commit: commit["sums"].update(read=41, written=38))
    return "duplicate_id", rows[0]["id"]


def manifest_removed(corpus: Path, other: Path) -> tuple[str, str]:
    (corpus / MANIFEST).unlink()
    return "missing_file", MANIFEST


def quarantine_removed(corpus: Path, other: Path) -> tuple[str, str]:
    (corpus / QUARANTINE).unlink()
    return "missing_file", QUARANTINE


def quarantine_emptied(corpus: Path, other: Path) -> tuple[str, str]:
    corpora.write_quarantine(corpus, [])
    corpora.forge_commit(corpus)
    return "bad_sums", QUARANTINE


def card_edited(corpus: Path, other: Path) -> tuple[str, str]:
    with (corpus / "README.md").open("a") as file:
        file.write("mine\n")
    return "changed_file", "README.md"


def report_removed(corpus: Path, other: Path) -> tuple[str, str]:
    (corpus / "report.html").unlink()
    return "missing_file", "report.html"


def commit_edited_by_hand(corpus: Path, other: Path) -> tuple[str, str]:
    commit = corpora.read_commit(corpus)
    commit["config"]["title"] = "mine"
    (corpus / COMMIT).write_text(json.dumps(commit))
    return "bad_commit", COMMIT


def commit_with_other_sums(corpus: Path, other: Path) -> tuple[str, str]:
    corpora.forge_commit(corpus, lambda commit: commit["sums"].update(read=99))
    return "bad_sums", COMMIT


def commit_without_a_shard(corpus: Path, other: Path) -> tuple[str, str]:
    corpora.forge_commit(corpus, lambda commit: commit["shards"].pop(SHARD))
    return "missing_shard", SHARD


def commit_with_another_count(corpus: Path, other: Path) -> tuple[str, str]:
    corpora.forge_commit(corpus, lambda commit: commit["shards"][SHARD].update(samples=2))
    return "bad_sums", SHARD


def commit_removed(corpus: Path, other: Path) -> tuple[str, str]:
    (corpus / COMMIT).unlink()
    return "not_committed", COMMIT


def commit_cut(corpus: Path, other: Path) -> tuple[str, str]:
    (corpus / COMMIT).write_bytes((corpus / COMMIT).read_bytes()[:500])
    return "bad_commit", COMMIT


def commit_of_another_corpus(corpus: Path, other: Path) -> tuple[str, str]:
    shutil.copy(other / COMMIT, corpus / COMMIT)
    return "changed_file", MANIFEST


def commit_without_a_table(corpus: Path, other: Path) -> tuple[str, str]:
    corpora.forge_commit(corpus, lambda commit: commit["files"].pop(QUARANTINE))
    return "bad_commit", QUARANTINE


def picture_leaks_by_component(corpus: Path, other: Path) -> tuple[str, str]:
    rows = corpora.read_manifest(corpus)
    train = next(row for row in rows if row["split"] == "train")
    test = next(row for row in rows if row["split"] == "test")
    test["component"] = train["component"]
    corpora.write_manifest(corpus, rows)
    corpora.forge_commit(corpus)
    return "leak", train["component"]


TABLES = [
    manifest_flipped_bit, manifest_of_another_corpus, manifest_of_another_corpus_forged, manifest_without_a_row,
    manifest_with_a_row_twice, manifest_removed, quarantine_removed, quarantine_emptied, card_edited, report_removed,
    commit_edited_by_hand, commit_with_other_sums, commit_without_a_shard, commit_with_another_count, commit_removed,
    commit_cut, commit_of_another_corpus, commit_without_a_table, picture_leaks_by_component,
]  # fmt: skip


@pytest.mark.parametrize("fault", TABLES, ids=lambda fault: fault.__name__)
def test_a_fault_of_commit_or_tables_is_found_fast_and_deep(
    corpus: Path, other_corpus: Path, fault: Callable[[Path, Path], tuple[str, str]]
) -> None:
    code, named = fault(corpus, other_corpus)
    for deep in (False, True):
        assert_found(check(corpus, deep=deep), code, named)


# --- shard, manifest and commit retold together ---------------------------------------------------
