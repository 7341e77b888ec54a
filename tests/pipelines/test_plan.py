"""The plan: every record is placed or named, nothing leaks between splits, no byte is claimed twice."""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.placing import Shard
from pipelines.build_dataset.plan import Plan, make_plan
from pipelines.build_dataset.scan import ScanTask, scan_fragment, scan_schema
from pipelines.build_dataset.tables import manifest_tables, quarantine_tables
from sigma_data.corpus.shard import BLOCK, END, member_size
from sigma_data.errors import ConfigError
from sigma_data.images.fingerprint import SIGNATURE_BYTES, near
from sigma_data.sample import Family
from sigma_data.sources import open_source

HALVES = {"train": 50.0, "test": 50.0}
FAMILIES = [family.value for family in Family]


def signature(name: str) -> bytes:
    """The signature of a picture; `dog~1` is nearly identical to `dog` and to `dog~2`."""
    word, _, copy = name.partition("~")
    base = bytearray(np.random.default_rng(list(word.encode())).bytes(SIGNATURE_BYTES))
    if copy:
        base[20] ^= 1 << int(copy) % 8
    return bytes(base)


def record(
    number: int, pictures: Sequence[str] | str, text: str | None = None, *, family: str = "editing",
    split: str | None = None, source: str = "test",
) -> dict[str, Any]:  # fmt: skip
    """A good record as the scan writes it, by the names of its pictures, the target last."""
    names = pictures.split() if isinstance(pictures, str) else list(pictures)
    text = f"do {number}" if text is None else text
    json_size = 300 + number % 400
    images = [
        {
            "number": place, "role": "target" if place == len(names) else "reference", "member": f"ref_{place:02d}.jpg",
            "format": "JPEG", "mode": "RGB", "width": 64, "height": 64, "size": 500 + sum(name.encode()) % 1500,
            "offset": None, "sha256": hashlib.sha256(name.encode()).hexdigest(), "signature": signature(name),
            "reencoded": None,
        }
        for place, name in enumerate(names, 1)
    ]  # fmt: skip
    return {
        "status": "ok", "id": f"id{number:06d}", "family": family, "family_inferred": False, "source": source,
        "location": "file", "row": number, "license": "mit", "images": images, "instruction": text,
        "turns": [{"instruction": text, "target": len(names) or None, "response": None}], "attributes": [],
        "references": max(0, len(names) - 1), "tokens": 100, "text": text, "json": b"{}", "json_size": json_size,
        "json_sha256": hashlib.sha256(text.encode()).hexdigest(), "warnings": [], "old_split": split,
        "content": hashlib.sha256(repr((names, text)).encode()).hexdigest(),
        "size": member_size(json_size) + sum(member_size(image["size"]) for image in images),
    }  # fmt: skip


def rejection(number: int, code: str = "truncated") -> dict[str, Any]:
    return {
        "status": "rejected", "source": "test", "location": "file", "row": number, "code": code, "codes": [code],
        "message": "broken", "id": f"id{number:06d}", "family": "editing",
    }  # fmt: skip


@dataclass
class Planned:
    """A plan and the tables that are made of it."""

    plan: Plan
    rows: pl.DataFrame
    out: pl.DataFrame

    @property
    def read(self) -> int:
        return self.plan.read

    @property
    def shards(self) -> tuple[Shard, ...]:
        return self.plan.shards

    def digest(self) -> str:
        return self.plan.digest()


def planned(scans: Sequence[Path], config: BuildConfig, scratch: Path) -> Planned:
    made = make_plan(scans, config)
    frames = [
        pl.DataFrame(pl.from_arrow(pa.concat_tables(tables)))
        for tables in (manifest_tables(made, scratch), quarantine_tables(made))
    ]
    assert made.codes == Counter(
        frames[1]
        .with_columns(filtered=frames[1].get_column("filtered", default=pl.lit(False)))
        .select("code", "filtered")
        .rows()
    )
    return Planned(made, *frames)


class Planner:
    """Writes scans and plans them."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def __call__(self, *fragments: Sequence[dict[str, Any]], **config: Any) -> Planned:
        paths = []
        for rows in fragments:
            path = self.folder / f"scan-{self.count}.parquet"
            self.count += 1
            numbered = [{"position": place, **row} for place, row in enumerate(rows)]
            pq.write_table(pa.Table.from_pylist(numbered, schema=scan_schema()), path)
            paths.append(path)
        return planned(paths, BuildConfig.model_validate(config), self.folder)


@pytest.fixture
def plan(tmp_path: Path) -> Planner:
    return Planner(tmp_path)


def chance(seed: int, count: int, *, start: int = 0, pool: int = 60) -> list[dict[str, Any]]:
    """Records that share pictures, repeat each other, are near, or are broken, at random."""
    dice = np.random.default_rng(seed)
    rows: list[dict[str, Any]] = []
    for number in range(start, start + count):
        kind = dice.random()
        if kind < 0.1:
            rows.append(rejection(number))
            continue
        words = [f"p{dice.integers(pool)}" for _ in range(dice.integers(1, 5))]
        words += [f"own{number}"] if kind < 0.8 else [f"p{dice.integers(pool)}~{dice.integers(3)}"]
        text = f"do {dice.integers(4)}" if kind > 0.6 else None
        one = record(number, words, text, family=FAMILIES[int(dice.integers(len(FAMILIES)))])
        rows.append(one)
        if kind > 0.93:
            rows.append(one | {"id": f"twin{number}"})
    return rows


def splits(plan: Planned) -> dict[str, str]:
    return dict(plan.rows.select("id", "split").iter_rows())


def codes(plan: Planned) -> dict[str, int]:
    return dict(Counter(plan.out["code"]))


def check_whole(plan: Planned, fragments: Sequence[Sequence[dict[str, Any]]], config: BuildConfig) -> None:
    """All that must hold for any plan."""
    ids = [row["id"] for rows in fragments for row in rows]
    assert plan.read == len(ids) == len(plan.rows) + len(plan.out)
    assert Counter(plan.rows["id"]) + Counter(plan.out["id"]) == Counter(ids)
    assert plan.out["code"].null_count() == plan.out["message"].null_count() == 0
    check_no_leak(plan)
    check_places(plan, config)


def check_no_leak(plan: Planned) -> None:
    component_of: dict[str, str] = {}
    split_of_component: dict[str, str] = {}
    seen: list[tuple[bytes, str]] = []
    for component, split, images in plan.rows.select("component", "split", "images").iter_rows():
        assert split_of_component.setdefault(component, split) == split
        for image in images:
            assert component_of.setdefault(image["sha256"], component) == component
            seen.append((image["signature"], split))
    different = list(dict(seen).items())
    for place, (first, split) in enumerate(different):
        for second, other in different[:place]:
            assert split == other or not near(first, second)


def check_places(plan: Planned, config: BuildConfig) -> None:
    """Samples fill each shard from its start to its end without gap or overlap, members each sample."""
    assert plan.rows["shard"].unique(maintain_order=True).to_list() == [shard.path for shard in plan.shards]
    for shard in plan.shards:
        rows = plan.rows.filter(pl.col("shard") == shard.path)
        assert len(rows) == shard.samples <= config.shard_samples
        assert shard.size <= config.shard_bytes or shard.samples == 1
        assert rows["index"].to_list() == list(range(len(rows)))
        assert rows["split"].n_unique() == rows["family"].n_unique() == 1
        assert shard.path.startswith(f"{rows['split'][0]}/{rows['family'][0]}-")
        position = members = 0
        for row in rows.iter_rows(named=True):
            assert row["offset"] == position
            assert row["json_offset"] == position + BLOCK
            position += member_size(row["json_size"])
            for image in row["images"]:
                assert image["offset"] == position + BLOCK
                position += member_size(image["size"])
            assert position == row["offset"] + row["size"]
            members += 1 + len(row["images"])
        assert (position + len(END), members) == (shard.size, shard.members)
    numbers = defaultdict(list)
    for shard in plan.shards:
        kind, _, number = shard.path.removesuffix(".tar").rpartition("-")
        numbers[kind].append(int(number))
    assert all(found == list(range(len(found))) for found in numbers.values())


# Any input ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("near_duplicates", ["join", "drop"])
def test_every_record_is_placed_or_named_and_nothing_leaks(plan: Planner, seed: int, near_duplicates: str) -> None:
    fragments = [chance(seed, 60), [], chance(seed + 100, 50, start=1000, pool=400)]
    config = {
        "splits": HALVES, "near_duplicates": near_duplicates, "shard_samples": 5 + seed, "shard_bytes": 30_000,
        "quotas": {"editing": 5, "layout": 0} if seed % 2 else {}, "order": ["shuffled", "source"][seed % 2],
        "max_component": 30,
    }  # fmt: skip
    check_whole(plan(*fragments, **config), fragments, BuildConfig.model_validate(config))


def test_the_same_scans_give_the_same_plan(plan: Planner) -> None:
    rows = chance(3, 80)
    first, second = plan(rows), plan(rows)
    assert first.digest() == second.digest()
    assert first.rows.equals(second.rows)
    assert first.out.equals(second.out)
    assert first.shards == second.shards


def test_fragment_borders_change_nothing_but_the_fragment(plan: Planner) -> None:
    rows = chance(4, 60)
    assert plan(rows).digest() == plan(rows[:17], rows[17:40], [], rows[40:]).digest()


@pytest.mark.parametrize("near_duplicates", ["join", "drop"])
def test_a_source_without_a_good_record_is_a_plan_without_shards(plan: Planner, near_duplicates: str) -> None:
    for rows in ([], [rejection(number) for number in range(3)]):
        made = plan(rows, near_duplicates=near_duplicates, quotas={"editing": 1})
        assert (made.read, len(made.rows), len(made.out), made.shards) == (len(rows), 0, len(rows), ())


@pytest.mark.parametrize("near_duplicates", ["join", "drop"])
def test_samples_without_pictures_are_placed(plan: Planner, near_duplicates: str) -> None:
    talk = [record(number, [], family="understanding") for number in range(4)]
    for rows in (
        talk,
        [record(10, "a b"), *talk, record(11, "c d")],
        [*talk, record(12, [], "do 1", family="understanding")],
    ):
        config = {"near_duplicates": near_duplicates, "splits": HALVES}
        made = plan(rows, **config)
        check_whole(made, [rows], BuildConfig.model_validate(config))
        assert all(images is not None for images in made.rows["images"].to_list())


# Duplicates -----------------------------------------------------------------------------------------


def test_of_identical_samples_the_first_is_kept_and_the_others_name_it(plan: Planner) -> None:
    made = plan(
        [record(5, "a b", "same"), record(1, "a b", "other")],
        [record(2, "a b", "same"), record(3, "b a", "same")],
        [record(0, "a b", "same")],
    )
    assert set(made.rows["id"]) == {"id000005", "id000001", "id000003"}
    assert codes(made) == {"duplicate": 2}
    assert all("id000005" in message for message in made.out["message"])
    assert made.out["codes"].to_list() == [["duplicate"]] * 2


def test_near_duplicates_are_joined_by_default_and_dropped_on_demand(plan: Planner) -> None:
    rows = [
        record(1, "a b", "same"),
        record(2, "a~1 b~2", "same"),
        record(3, "a~1 b", "other"),
        record(4, "a c", "same"),
    ]
    joined = plan(rows, splits=HALVES)
    assert len(joined.rows) == 4
    assert joined.rows["component"].unique().to_list() == ["id000001"]
    dropped = plan(rows, splits=HALVES, near_duplicates="drop")
    assert set(dropped.rows["id"]) == {"id000001", "id000003", "id000004"}
    assert codes(dropped) == {"near_duplicate": 1}
    assert "id000001" in dropped.out["message"][0]


def test_a_sample_alike_in_part_is_no_near_duplicate(plan: Planner) -> None:
    rows = [record(1, "a b", "same"), record(2, "a~1", "same"), record(3, "b a", "same"), record(4, "a~1 b c", "same")]
    assert len(plan(rows, near_duplicates="drop").rows) == 4


def test_rejects_keep_the_order_of_the_source(plan: Planner) -> None:
    rows = [rejection(9), record(1, "a b", "x"), record(2, "a b", "x"), rejection(3), record(4, "a b", "x")]
    made = plan(rows)
    assert made.out["row"].to_list() == [9, 2, 3, 4]
    assert made.out["code"].to_list() == ["truncated", "duplicate", "truncated", "duplicate"]


def test_one_id_for_different_samples_is_refused_with_both_places(plan: Planner) -> None:
    with pytest.raises(ConfigError) as caught:
        plan([record(1, "a b")], [record(1, "c d", source="other")])
    for word in ("id000001", "test file row 1", "other file row 1", "?name="):
        assert word in str(caught.value)


def test_one_id_for_the_same_sample_twice_is_a_duplicate(plan: Planner) -> None:
    assert codes(plan([record(1, "a b")], [record(1, "a b")])) == {"duplicate": 1}


# Components and splits ------------------------------------------------------------------------------


def test_a_chain_of_shared_pictures_is_one_component(plan: Planner) -> None:
    links = [
        record(number, [f"p{number}", f"p{number + 1}~1" if number % 2 else f"p{number + 1}"]) for number in range(20)
    ]
    made = plan(links[::-1], [record(99, "alone here")], splits=HALVES)
    assert made.rows["component"].n_unique() == 2
    assert set(made.rows.filter(pl.col("component") != "id000099")["component"]) == {"id000019"}


def test_splits_have_about_their_shares(plan: Planner) -> None:
    made = plan(
        [record(number, f"a{number} b{number}") for number in range(2_000)], splits={"train": 80, "val": 0, "test": 20}
    )
    counts = Counter(made.rows["split"])
    assert set(counts) == {"train", "test"}
    assert abs(counts["train"] / 2_000 - 0.8) < 0.03


@pytest.mark.parametrize("seed", range(3))
def test_data_added_behind_moves_no_sample_to_another_split(plan: Planner, seed: int) -> None:
    first = chance(seed, 120, pool=900)
    more = [record(5_000 + number, f"new{number} more{number % 30}") for number in range(100)]
    before, after = splits(plan(first, splits=HALVES)), splits(plan(first, more, splits=HALVES))
    assert {name: after[name] for name in before} == before
    assert len(set(after.values())) == 2


def test_data_added_to_a_component_goes_where_the_component_is(plan: Planner) -> None:
    first = [record(number, f"a{number} b{number}") for number in range(60)]
    more = [record(100 + number, f"a{number} c{number}") for number in range(60)]
    before, after = splits(plan(first, splits=HALVES)), splits(plan(first, more, splits=HALVES))
    for number in range(60):
        name = f"id{number:06d}"
        assert after[name] == after[f"id{100 + number:06d}"] == before[name]


@pytest.mark.slow
def test_a_component_that_is_too_large_goes_to_the_largest_split(plan: Planner) -> None:
    shares = {"val": 45.0, "train": 55.0}
    for group in range(12):
        rows = [record(number + 100 * group, f"logo{group} own{group}x{number}") for number in range(6)]
        assert set(plan(rows, splits=shares, max_component=5).rows["split"]) == {"train"}
    fates = {plan([record(n + 100 * g, f"logo{g} own{g}x{n}") for n in range(6)], splits=shares, max_component=6).rows["split"][0]
             for g in range(12)}  # fmt: skip
    assert fates == {"train", "val"}


def test_samples_keep_the_split_they_come_with(plan: Planner) -> None:
    rows = [record(number, f"a{number} b{number}", split=["train", "test"][number % 2]) for number in range(40)]
    made = splits(plan(rows, splits={"train": 99.0, "test": 1.0}))
    assert made == {f"id{number:06d}": ["train", "test"][number % 2] for number in range(40)}


def test_a_component_that_comes_with_several_splits_goes_to_the_largest_of_them(plan: Planner) -> None:
    shares = {"train": 90.0, "val": 6.0, "test": 4.0}
    rows = [record(1, "a b", split="test"), record(2, "b c", split="val"), record(3, "c d")]
    assert set(splits(plan(rows, splits=shares)).values()) == {"val"}
    more = [*rows, record(4, "d e", split="train")]
    assert set(splits(plan(more, splits=shares)).values()) == {"train"}


def test_a_split_that_the_configuration_does_not_have_is_an_error_that_says_what_to_do(plan: Planner) -> None:
    rows = [record(number, f"a{number} b{number}", split="holdout") for number in range(6)]
    with pytest.raises(ConfigError, match=r"'holdout'.*splits=new"):
        plan(rows, splits=HALVES)


# Quotas, order, shards ------------------------------------------------------------------------------


def test_quotas_are_exact_and_what_is_over_is_named(plan: Planner) -> None:
    rows = [record(number, f"a{number} b{number}", family=FAMILIES[number % 4]) for number in range(80)]
    quotas = {FAMILIES[0]: 7, FAMILIES[1]: 0, FAMILIES[2]: 500}
    made = plan(rows, quotas=quotas)
    assert Counter(made.rows["family"]) == {FAMILIES[0]: 7, FAMILIES[2]: 20, FAMILIES[3]: 20}
    assert codes(made) == {"over_quota": 13 + 20}
    assert all("the quota of" in message for message in made.out["message"])


def test_a_larger_quota_keeps_what_a_smaller_one_kept_and_quotas_move_no_split(plan: Planner) -> None:
    rows = [record(number, f"a{number % 50} b{number}") for number in range(80)]
    small, large, whole = (splits(plan(rows, splits=HALVES, quotas={"editing": count})) for count in (10, 30, 80))
    assert small.items() <= large.items() <= whole.items()
    assert (len(small), len(large), len(whole)) == (10, 30, 80)


def test_rows_are_ordered_by_split_and_family_and_then_as_asked(plan: Planner) -> None:
    rows = [record(number, f"a{number} b{number}", family=FAMILIES[number * 7 % 3]) for number in range(90)]
    in_order = plan(rows, splits=HALVES, order="source").rows
    shuffled = plan(rows, splits=HALVES).rows
    for frame in (in_order, shuffled):
        kinds = [
            (list(HALVES).index(split), FAMILIES.index(family))
            for split, family in frame.select("split", "family").rows()
        ]
        assert kinds == sorted(kinds)
    for (_, _), group in in_order.group_by("split", "family"):
        assert group["row"].is_sorted()
    assert in_order["id"].to_list() != shuffled["id"].to_list()
    assert set(in_order["id"]) == set(shuffled["id"])
    assert plan(rows, splits=HALVES, seed=1).rows["id"].to_list() != shuffled["id"].to_list()


def test_a_sample_larger_than_a_shard_gets_its_own(plan: Planner) -> None:
    rows = [record(number, [f"p{number}x{place}" for place in range(1 + 9 * (number == 3))]) for number in range(7)]
    config = {"splits": {"all": 1}, "shard_bytes": 7_000, "order": "source"}
    made = plan(rows, **config)
    check_whole(made, [rows], BuildConfig.model_validate(config))
    large = made.rows.filter(pl.col("row") == 3)["shard"][0]
    assert [shard.samples for shard in made.shards if shard.path == large] == [1]
    assert any(shard.samples > 1 for shard in made.shards)


def test_a_shard_is_filled_to_its_limit_and_not_beyond(plan: Planner) -> None:
    rows = [record(1000 * number, f"p{number}") for number in range(6)]
    sizes = [row["size"] for row in rows]
    exact = sum(sizes[:3]) + len(END)
    for limit, first in ((exact, 3), (exact - 1, 2)):
        made = plan(rows, splits={"all": 1}, order="source", shard_bytes=limit)
        assert made.shards[0].samples == first
    made = plan(rows, splits={"all": 1}, order="source", shard_samples=4)
    assert [shard.samples for shard in made.shards] == [4, 2]


# From real records ----------------------------------------------------------------------------------


def test_scans_of_a_real_source_are_planned(tmp_path: Path) -> None:
    scans = []
    spec = "world:14?size=64"
    for index, fragment in enumerate(open_source(spec).fragments()):
        path = tmp_path / f"{index}.parquet"
        scan_fragment(ScanTask(spec, fragment, {}, str(path)))
        scans.append(path)
    config = BuildConfig(splits=HALVES, shard_samples=2)
    made = planned([*scans, *scans], config, tmp_path)
    assert (made.read, len(made.rows)) == (28, 14)
    assert codes(made) == {"duplicate": 14}
    check_no_leak(made)
    check_places(made, config)
