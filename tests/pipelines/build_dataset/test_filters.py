"""Filters: what a build is asked to leave out is counted apart from what is broken."""

from __future__ import annotations

from pathlib import Path

import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import corpora, image_files

from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.filters import Filters, Licenses, filter_license, filter_size
from pipelines.build_dataset.prepare import PrepareSettings, prepare
from pipelines.build_dataset.selection import share_quota
from pipelines.validate.run import validate_corpus
from sigma_data.corpus.corpus import QUARANTINE, open_corpus
from sigma_data.errors import BuildError
from sigma_data.sample import Family, Image, Rejection, Sample, Source, Turn


def sample(
    license: str = "mit", sizes: tuple[tuple[int, int], ...] = ((64, 64), (64, 64)), family: Family = Family.EDITING
) -> Sample:
    images = [
        Image(number, image_files.image_bytes("png", number, width=width, height=height))
        for number, (width, height) in enumerate(sizes, start=1)
    ]
    return Sample(
        "0123456789", family, tuple(images), (Turn("Make it red", len(images)),), Source("s", "file", 7, license)
    )


def code(result: Sample | Rejection) -> str | None:
    if isinstance(result, Sample):
        return None
    assert result.filtered
    assert "\n" not in result.message
    return result.code


@pytest.mark.parametrize(
    ("licenses", "license", "expected"),
    [
        ({}, "unknown", None),
        ({}, "CC BY-NC 4.0", None),
        ({}, "cc-by-nc-nd-4.0", "no_derivatives"),
        ({"no_derivatives": True}, "cc-by-nc-nd-4.0", None),
        ({"allow": ["cc-by-*"]}, "cc-by-nc-nd-4.0", "no_derivatives"),
        ({"allow": ["MIT", "CC-BY-4.0"]}, "cc by 4.0", None),
        ({"allow": ["MIT"]}, "apache-2.0", "license_refused"),
        ({"allow": ["mit"]}, "unknown", "license_refused"),
        ({"allow": ["mit", "unknown"]}, "", None),
        ({"deny": ["unknown"]}, "", "license_refused"),
        ({"deny": ["cc-by-nc*"]}, "CC BY-NC-SA 4.0", "license_refused"),
        ({"allow": ["cc-*"], "deny": ["cc-by-nc*"]}, "cc-by-nc-4.0", "license_refused"),
    ],
)
def test_a_license_is_taken_or_filtered(licenses: dict[str, object], license: str, expected: str | None) -> None:
    assert code(filter_license(sample(license), Licenses.model_validate(licenses))) == expected


def test_a_license_that_forbids_derivatives_is_refused_with_the_way_to_allow_it() -> None:
    found = filter_license(sample("CC-BY-ND-4.0"), Licenses())
    assert isinstance(found, Rejection)
    assert "licenses.no_derivatives=true" in found.message


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ({}, None),
        ({"min_side": 48}, None),
        ({"min_side": 49}, "small_side"),
        ({"min_pixels": 48 * 100}, None),
        ({"min_pixels": 48 * 100 + 1}, "few_pixels"),
        ({"max_aspect": 2.1}, None),
        ({"max_aspect": 2}, "long_aspect"),
    ],
)
def test_every_image_of_a_sample_must_have_the_size(filters: dict[str, float], expected: str | None) -> None:
    one = sample(sizes=((100, 100), (48, 100)))
    assert code(filter_size(one, Filters.model_validate(filters))) == expected


def test_a_broken_image_is_left_to_the_checks() -> None:
    broken = Sample("0123456789", Family.EDITING, (Image(1, b"no image"),), (), Source("s", "file", 0))
    assert filter_size(broken, Filters(min_side=1000)) is broken


def test_a_caption_without_a_reference_is_filtered_and_a_broken_layout_row_is_not() -> None:
    alone = sample(sizes=((64, 64),), family=Family.LAYOUT)
    assert [code(one) for one in prepare(alone, PrepareSettings())] == ["no_reference"]
    assert [code(one) for one in prepare(sample(family=Family.LAYOUT), PrepareSettings())] == [None]


def test_a_rejection_of_the_chain_names_the_row() -> None:
    found = filter_license(sample(), Licenses(deny=("mit",)))
    assert isinstance(found, Rejection)
    assert (found.source, found.location, found.row) == ("s", "file", 7)
    assert (found.family, found.license) == (Family.EDITING, "mit")


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str]:
    """Two sources of different licenses, a broken row, a small image and a duplicate in the first."""
    folder = tmp_path_factory.mktemp("releases")
    first = corpora.make_release(folder / "a", 12, seed=1)
    broken = corpora.release_row(5) | {"image_list": [b"", image_files.image_bytes("jpeg", 1)]}
    small = corpora.release_row(6)
    small["image_list"][0] = image_files.image_bytes("jpeg", 6, width=40)
    corpora.write_parquet(
        first / "seedxedit_multi" / "chunk_1.parquet", [broken, small, corpora.release_row(9), corpora.release_row(9)]
    )
    second = corpora.make_release(folder / "b", 12, seed=2)
    return f"release:{first}?license=mit", f"release:{second}?name=second&license=CC-BY-NC-4.0"


def test_read_is_written_filtered_quarantined_and_duplicates(releases: tuple[str, str], tmp_path: Path) -> None:
    settings = {"licenses": {"deny": ["cc-by-nc*"]}, "filters": {"min_side": 41}, "quotas": {"selective": 1}}
    corpus = corpora.build(tmp_path / "out", *releases, **settings).corpus
    sums = corpus.sums
    assert sums["read"] == sums["written"] + sums["filtered"] + sums["quarantined"] + sums["duplicates"] == 28
    assert sums["filters"] == {"license_refused": 12, "over_quota": 1, "small_side": 1}
    assert sums["filtered"] == sum(sums["filters"].values())
    assert sums["quarantined"] == sum(sums["codes"].values())
    assert set(sums["codes"]) == {"empty"}
    assert not set(sums["codes"]) & set(sums["filters"])
    table = corpus.quarantine
    assert table.filter("filtered").height == sums["filtered"]
    assert table.filter(pl.col("code") == "license_refused")["family"].null_count() == 0
    assert not validate_corpus(corpus.path, deep=True, workers=0).problems


def test_what_a_quota_leaves_out_counts_as_filtered(releases: tuple[str, str], tmp_path: Path) -> None:
    sums = corpora.build(tmp_path / "out", *releases, quotas={"editing": 1}).corpus.sums
    assert set(sums["filters"]) == {"over_quota"}
    assert sums["families"]["editing"] == 1


def test_a_build_of_which_everything_is_filtered_says_why(releases: tuple[str, str], tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"license_refused 28.*the license mit is not one of those allowed"):
        corpora.build(tmp_path / "out", *releases, licenses={"allow": ["apache-2.0"]})


@pytest.mark.slow
def test_filters_are_the_same_bytes_for_any_number_of_workers(releases: tuple[str, str], tmp_path: Path) -> None:
    def build(workers: int) -> dict[str, tuple[int, str]]:
        out = tmp_path / str(workers)
        corpora.build(out, *releases, workers=workers, filters={"min_side": 41}, licenses={"deny": ["cc-*"]})
        return corpora.files_below(out)

    assert build(0) == build(1) == build(3)


def test_settings_at_their_defaults_change_neither_the_digest_nor_the_tables(
    releases: tuple[str, str], tmp_path: Path
) -> None:
    plain = BuildConfig(sources=("release:x",))
    same = BuildConfig(sources=("release:x",), licenses=Licenses(), filters=Filters())
    assert plain.digest() == same.digest() != BuildConfig(sources=("release:x",), filters=Filters(min_side=9)).digest()
    out = corpora.build(tmp_path / "out", *releases).corpus.path
    assert "filtered" not in pl.read_parquet(out / QUARANTINE).columns
    assert not open_corpus(out).quarantine["filtered"].any()


def test_a_change_of_filters_scans_anew_and_is_another_configuration(releases: tuple[str, str], tmp_path: Path) -> None:
    before, after = BuildConfig(), BuildConfig(filters=Filters(min_side=9))
    assert before.scan_digest() != after.scan_digest()


@pytest.mark.parametrize(
    ("quota", "there", "shares", "taken"),
    [
        (10, {"a": 100, "b": 100}, {"a": 1, "b": 1}, {"a": 5, "b": 5}),
        (10, {"a": 100, "b": 100}, {"a": 2, "b": 1}, {"a": 7, "b": 3}),
        (10, {"a": 3, "b": 100}, {"a": 1, "b": 1}, {"a": 3, "b": 7}),
        (10, {"a": 3, "b": 4}, {"a": 1, "b": 1}, {"a": 3, "b": 4}),
        (10, {"a": 1, "b": 100, "c": 100}, {"a": 8, "b": 1, "c": 1}, {"a": 1, "b": 4, "c": 5}),
        (0, {"a": 1}, {"a": 1}, {"a": 0}),
        (5, {}, {}, {}),
    ],
)
def test_a_quota_is_shared_and_what_a_source_lacks_goes_to_the_others(
    quota: int, there: dict[str, int], shares: dict[str, float], taken: dict[str, int]
) -> None:
    found = share_quota(quota, there, shares)
    assert sum(found.values()) == min(quota, sum(there.values()))
    assert all(abs(found[name] - count) <= 1 for name, count in taken.items())


@given(
    st.integers(0, 500),
    st.dictionaries(st.sampled_from("abcdef"), st.tuples(st.integers(0, 300), st.floats(0.01, 100)), max_size=6),
)
def test_shares_fill_the_quota_with_what_there_is(quota: int, sources: dict[str, tuple[int, float]]) -> None:
    there = {name: count for name, (count, _) in sources.items()}
    found = share_quota(quota, there, {name: share for name, (_, share) in sources.items()})
    assert all(0 <= found[name] <= there[name] for name in there)
    assert sum(found.values()) == min(quota, sum(there.values()))


@pytest.mark.slow
def test_shares_of_sources_hold_in_a_build(releases: tuple[str, str], tmp_path: Path) -> None:
    def sources(**settings: object) -> dict[str, int]:
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        rows = corpora.build(out, *releases, quotas={"editing": 4}, **settings).corpus.manifest
        counts = rows.filter(pl.col("family") == "editing").group_by("source").len()
        return dict(counts.iter_rows())

    both = {"editing": {"release": 1, "second": 1}}
    assert sources(shares=both) == {"release": 2, "second": 2}
    assert sources(shares={"editing": {"second": 1}}) == {"release": 2, "second": 2}  # it has but two
    with pytest.raises(ValueError, match="has no quota to share"):
        BuildConfig.model_validate({"shares": {"layout": {"a": 1}}})
