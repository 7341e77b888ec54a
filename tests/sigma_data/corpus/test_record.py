"""A sample as JSON and members, and back: nothing is lost, and nothing else is taken."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma_data.corpus.record import (
    KEY,
    MEMBER,
    SCHEMA_VERSION,
    RecordError,
    decode,
    encode,
    member_names,
    stored_order,
)
from sigma_data.images.decode import EXTENSIONS
from sigma_data.images.image_info import ImageInfo
from sigma_data.sample import Family, Image, ImageKind, Sample, Source, Turn


def facts_of(sample: Sample, formats: list[str] | None = None) -> dict[int, ImageInfo]:
    """Facts as `probe` would give them; the record needs sizes and formats only."""
    kinds = formats or ["JPEG"]
    return {
        image.number: ImageInfo(
            format=kinds[index % len(kinds)], mode="RGB", width=64 + index, height=48, size=len(image.data or b""),
            sha256="0" * 64, signature=bytes(86), coarse=0, orientation=1,
        )
        for index, image in enumerate(sample.images)
    }  # fmt: skip


def members(sample: Sample, infos: dict[int, ImageInfo]) -> dict[str, bytes]:
    names = member_names(sample, {number: info.extension for number, info in infos.items()})
    return {names[image.number]: image.data or b"" for image in sample.images}


def round_trip(sample: Sample, formats: list[str] | None = None) -> Sample:
    infos = facts_of(sample, formats)
    return decode(encode(sample, infos), members(sample, infos))


words = st.text(max_size=12)  # any Unicode but lone surrogates
number = st.integers(0, 10**6)


@st.composite
def samples(draw: st.DrawFn) -> Sample:
    count = draw(st.integers(0, 12))
    numbers = draw(st.permutations(range(1, count + 1)))
    targets = draw(st.lists(st.sampled_from(numbers), unique=True, max_size=3)) if count else []
    turns = [
        Turn(
            instruction=draw(words),
            target=target,
            response=draw(st.none() | words),
            alternatives=tuple(draw(st.lists(words, max_size=2))),
            bindings=tuple(draw(st.lists(st.tuples(number, number), max_size=2))),
            caption=draw(st.none() | words),
        )
        for target in [*targets, *draw(st.lists(st.none(), max_size=2))]
    ]
    return Sample(
        id=draw(st.from_regex(KEY, fullmatch=True)),
        family=draw(st.sampled_from(Family)),
        images=tuple(
            Image(
                place,
                draw(st.binary(max_size=4)),
                kind=draw(st.none() | st.sampled_from(ImageKind)),
                label=draw(st.none() | words),
            )
            for place in range(1, count + 1)
        ),
        turns=tuple(turns),
        source=Source(draw(words), draw(words), draw(number), draw(words)),
        family_inferred=draw(st.booleans()),
        truth=draw(st.none() | words),
        provenance=draw(st.none() | words),
    )


SAMPLE = Sample(
    id="0123456789abcdef0123",
    family=Family.COMPOSITIONAL,
    images=(Image(1, b"one"), Image(2, b"two"), Image(3, b"three")),
    turns=(
        Turn("put <subject>a dog of <image_1> on <image_2>", target=3, alternatives=("or so",), bindings=((0, 1),)),
    ),
    source=Source("release", "seedxedit_multi/chunk_1.parquet", 7, "cc-by-4.0"),
    truth='{"answer": 1}',
)


@pytest.mark.slow
@settings(deadline=None, max_examples=150)
@given(samples(), st.lists(st.sampled_from(sorted(EXTENSIONS)), min_size=1, max_size=4))
def test_a_sample_comes_back_as_it_was(sample: Sample, formats: list[str]) -> None:
    assert round_trip(sample, formats) == sample


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(samples())
def test_the_record_is_one_line_of_sorted_json_and_leaves_out_only_provenance(sample: Sample) -> None:
    data = encode(sample, facts_of(sample))
    assert data.endswith(b"\n")
    assert data.count(b"\n") == 1
    record = json.loads(data)
    assert list(record) == sorted(record)
    known = set(json.loads(encode(SAMPLE, facts_of(SAMPLE))))
    assert set(record) == known | ({"provenance"} if sample.provenance is not None else set())
    assert record["schema_version"] == SCHEMA_VERSION
    assert encode(decode(data, members(sample, facts_of(sample))), facts_of(sample)) == data


@pytest.mark.slow
@settings(deadline=None, max_examples=100)
@given(samples())
def test_members_have_names_that_a_shard_takes_and_references_come_first(sample: Sample) -> None:
    names = member_names(sample, dict.fromkeys((image.number for image in sample.images), "png"))
    assert all(MEMBER.fullmatch(name) for name in names.values())
    assert len(set(names.values())) == len(sample.images)
    order = stored_order(sample)
    assert sorted(order) == sorted(names)
    roles = [names[place].startswith("target") for place in order]
    assert roles == sorted(roles)
    assert [names[place].startswith("target") for place in order] == [place in sample.targets for place in order]


def test_members_are_named_after_their_roles() -> None:
    assert member_names(SAMPLE, {1: "jpg", 2: "png", 3: "webp"}) == {
        1: "ref_01.jpg", 2: "ref_02.png", 3: "target.webp",
    }  # fmt: skip
    several = Sample("k", Family.EDITING, SAMPLE.images, (Turn("a", 2), Turn("b", 3)), SAMPLE.source)
    assert list(member_names(several, dict.fromkeys([1, 2, 3], "jpg")).values()) == [
        "ref_01.jpg", "target_02.jpg", "target_03.jpg",
    ]  # fmt: skip


def test_lone_surrogates_do_not_stop_a_record() -> None:
    sample = Sample("k", Family.EDITING, SAMPLE.images, (Turn("a \ud800 b", 3),), SAMPLE.source)
    assert round_trip(sample).turns[0].instruction == "a ? b"


# Strictness -----------------------------------------------------------------------------------------

FACTS = facts_of(SAMPLE)
MEMBERS = members(SAMPLE, FACTS)


def test_a_record_is_read_without_its_pictures() -> None:
    images = tuple(Image(image.number, None) for image in SAMPLE.images)
    assert decode(encode(SAMPLE, FACTS), None) == replace(SAMPLE, images=images)


def changed(edit: Callable[[dict[str, Any]], object]) -> bytes:
    record = json.loads(encode(SAMPLE, FACTS))
    edit(record)
    return json.dumps(record).encode()


def rename(record: dict[str, Any], old: str, new: str) -> None:
    next(image for image in record["images"] if image["member"] == old)["member"] = new


EDITS: dict[str, Callable[[dict[str, Any]], object]] = {
    "an extra key": lambda r: r.update(extra=1),
    "an extra key in an image": lambda r: r["images"][0].update(extra=1),
    "an extra key in a turn": lambda r: r["turns"][0].update(extra=1),
    "an extra key in the source": lambda r: r["source"].update(extra=1),
    "an extra key in a binding": lambda r: r["turns"][0]["bindings"][0].update(extra=1),
    "no id": lambda r: r.pop("id"),
    "no images": lambda r: r.pop("images"),
    "no truth": lambda r: r.pop("truth"),
    "no target": lambda r: r["turns"][0].pop("target"),
    "no license": lambda r: r["source"].pop("license"),
    "another schema version": lambda r: r.update(schema_version=SCHEMA_VERSION + 1),
    "a schema version in words": lambda r: r.update(schema_version=str(SCHEMA_VERSION)),
    "an unknown family": lambda r: r.update(family="drawing"),
    "a number in words": lambda r: r["images"][0].update(number="1"),
    "a number with a fraction": lambda r: r["images"][0].update(width=64.0),
    "a truth value in words": lambda r: r.update(family_inferred="no"),
    "an id that is a number": lambda r: r.update(id=5),
    "an instruction that is null": lambda r: r["turns"][0].update(instruction=None),
    "a picture numbered 0": lambda r: r["images"][0].update(number=0),
    "two pictures of one number": lambda r: r["images"][0].update(number=2),
    "two pictures of one name": lambda r: rename(r, "ref_01.jpg", "ref_02.jpg"),
    "a member that is not there": lambda r: rename(r, "ref_01.jpg", "ref_01.png"),
    "a picture left out": lambda r: r["images"].pop(0),
    "a target that the members do not name": lambda r: r["turns"][0].update(target=2),
    "a role that its member's name denies": lambda r: r["images"][0].update(role="target"),
    "an unknown role": lambda r: r["images"][0].update(role="other"),
    "swapped numbers": lambda r: (r["images"][0].update(number=2), r["images"][1].update(number=1)),
}


@pytest.mark.parametrize("what", EDITS)
def test_a_record_that_is_not_as_we_write_it_is_refused(what: str) -> None:
    with pytest.raises(RecordError) as caught:
        decode(changed(EDITS[what]), MEMBERS)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"null", b"[]", b"\xff\xfe", b'"text"', b"{}", b"1e999", b"[" * 5_000, b'{"id": "\\ud800"}'],
    ids=["nothing", "cut", "null", "list", "no utf-8", "text", "no keys", "infinite", "deep", "surrogate"],
)
def test_what_is_no_record_is_refused(data: bytes) -> None:
    with pytest.raises(RecordError):
        decode(data, {})


@pytest.mark.parametrize("cut", range(1, 120, 7))
def test_a_cut_record_is_refused(cut: int) -> None:
    with pytest.raises(RecordError):
        decode(encode(SAMPLE, FACTS)[: -cut - 1], MEMBERS)


def test_members_and_record_must_name_each_other() -> None:
    data = encode(SAMPLE, FACTS)
    with pytest.raises(RecordError, match="ref_02.jpg.*not there"):
        decode(data, {name: MEMBERS[name] for name in MEMBERS if name != "ref_02.jpg"})
    with pytest.raises(RecordError, match="ref_09.jpg.*does not name"):
        decode(data, {**MEMBERS, "ref_09.jpg": b""})


@pytest.mark.parametrize(
    "name", ["json", "ref_01.jpg", "ref_100.png", "target.webp", "target_02.gif", "ref_12.bmp", "target_123.tif"]
)
def test_the_members_of_the_layout_are_known(name: str) -> None:
    assert MEMBER.fullmatch(name)


@pytest.mark.parametrize(
    "name", ["JSON", "ref_1.jpg", "ref_01.jpeg", "ref.jpg", "target.exe", "target_1.png", "ref_0001.jpg", "json\n", ""]
)
def test_other_members_are_not(name: str) -> None:
    assert not MEMBER.fullmatch(name)
