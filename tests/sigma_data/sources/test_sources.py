"""Sources as a whole: opened by a string, typed options, the same samples from any place."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.image_files import plain

from sigma_data.corpus.record import encode, member_names, stored_order
from sigma_data.corpus.shard import END, block
from sigma_data.errors import ConfigError, SigmaError, SourceError
from sigma_data.images.decode import probe
from sigma_data.sample import Family, Image, Rejection, Sample, Source, Turn
from sigma_data.sources import Reader, base, names, open_source
from sigma_data.sources.base import field_maps


def records(spec: str) -> list[Sample | Rejection]:
    reader = open_source(spec)
    return [record for fragment in reader.fragments() for record in reader.read(fragment)]


def sentence(spec: str) -> str:
    with pytest.raises(ConfigError) as caught:
        open_source(spec)
    assert "\n" not in str(caught.value)
    assert repr(spec) in str(caught.value)
    return str(caught.value)


def release_file(path: Path, rows: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    texts = [[[f"{path.stem} row {index}"]] for index in range(rows)]
    table = pa.table({
        "image_list": pa.array([[b"one", b"two"]] * rows, pa.list_(pa.binary())),
        "instruction_list": pa.array(texts, pa.list_(pa.list_(pa.string()))),
    })  # fmt: skip
    pq.write_table(table, path, row_group_size=7)
    return path


# Opening --------------------------------------------------------------------------------------------


def test_every_layout_has_a_name_and_a_reader_with_typed_options() -> None:
    assert {"release", "webdataset", "world"} <= set(names())
    assert names() == sorted(names())
    assert "base" not in names()
    for name in set(names()) - set(base._REGISTERED):  # other tests of this process may have registered some
        module = "map" if name in field_maps() else name
        reader = __import__(f"sigma_data.sources.{module}", fromlist=["READER"]).READER
        assert issubclass(reader, Reader)
        assert {"name", "license"} <= set(reader.options_type.model_fields)


@pytest.mark.parametrize(
    "spec", ["", "release", "data/release", "relese:data", "base:x", ":x", "RELEASE:x", "../x:y", "os:x"]
)
def test_an_unknown_layout_is_answered_with_those_of_ours_and_where_the_others_are_listed(spec: str) -> None:
    message = sentence(spec)
    assert "write release:, webdataset:, world: or one of the layouts that `sigma sources` lists" in message


@pytest.mark.parametrize(
    ("spec", "meant"),
    [
        ("relese:data", "release:"),
        ("OmniEdit:d", "omniedit:"),
        ("x2-edit:d", "x2edit:"),
        ("sigma-dataset:d", "release:"),
        ("/d/omniedit", "omniedit:/d/omniedit"),
        ("omniedit", "omniedit:data/omniedit"),
        ("data/sigma-dataset", "release:data/sigma-dataset"),
    ],
)
def test_a_misspelt_layout_or_a_folder_alone_is_answered_with_the_nearest(spec: str, meant: str) -> None:
    assert f"did you mean {meant}? " in sentence(spec)


def test_an_unknown_option_is_answered_with_those_that_exist() -> None:
    message = sentence("release:data?licens=mit")
    assert "licens" in message
    for option in ("family", "families", "license", "name"):
        assert option in message


@pytest.mark.parametrize(
    ("spec", "word"),
    [
        ("release:data?family=drawing", "family"),
        ("release:data?families=a:drawing", "families"),
        ("release:data?families=a", "families"),
        ("webdataset:data?splits=some", "splits"),
        ("webdataset:data?family=", "family"),
        ("release:data?license=a&license=b", "twice"),
        ("release:data?license=a&licence=b", "twice"),
        ("world:5?size=huge", "size"),
    ],
)
def test_an_option_of_the_wrong_type_is_named(spec: str, word: str) -> None:
    assert word in sentence(spec)


def test_options_are_typed_and_decoded() -> None:
    reader = open_source(
        "release:a folder/x?family=editing&name=my+source&license=cc%2Dby&families=a:layout,b:relation"
    )
    assert (reader.path, reader.name) == ("a folder/x", "my source")
    options = reader.options  # type: ignore[attr-defined]
    assert (options.family, options.license) == (Family.EDITING, "cc-by")
    assert options.families == {"a": Family.LAYOUT, "b": Family.RELATION}
    assert open_source("release:x").name == "release"


@pytest.mark.parametrize("scheme", ["release:x", "webdataset:x", "world:5"])
def test_the_former_spelling_of_license_is_read(scheme: str) -> None:
    for spelling in ("license", "licence"):
        assert open_source(f"{scheme}?{spelling}=mit").options.license == "mit"  # type: ignore[attr-defined]


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(st.one_of(st.text(max_size=30), st.text(max_size=20).map("release:x?".__add__)))
def test_any_words_are_a_source_or_one_sentence(spec: str) -> None:
    try:
        open_source(spec)
    except SigmaError as error:
        assert str(error)


# Places ---------------------------------------------------------------------------------------------


@pytest.fixture
def memory() -> Iterator[str]:
    place = f"memory://{uuid.uuid4().hex}"
    yield place
    fsspec.filesystem("memory").rm(place.removeprefix("memory:/"), recursive=True)


def upload(folder: Path, place: str) -> None:
    for file in folder.rglob("*"):
        if file.is_file():
            with fsspec.open(f"{place}/{file.relative_to(folder).as_posix()}", "wb") as stream:
                stream.write(file.read_bytes())


def test_a_remote_place_gives_the_same_samples_as_a_local_one(tmp_path: Path, memory: str) -> None:
    for name, rows in (("chunk_1", 20), ("chunk_10", 3), ("chunk_2", 40), ("deep/chunk_1", 1)):
        release_file(tmp_path / f"{name}.parquet", rows)
    release_file(tmp_path / ".hidden.parquet", 2)
    release_file(tmp_path / ".cache" / "chunk_1.parquet", 2)
    (tmp_path / "notes.txt").write_text("no rows here")
    upload(tmp_path, memory)
    local = records(f"release:{tmp_path}")
    assert len(local) == 64
    assert records(f"release:{memory}") == local
    assert records(f"release:{memory}/") == local
    one = records(f"release:{tmp_path}/deep/chunk_1.parquet")
    assert records(f"release:{memory}/deep/chunk_1.parquet") == one
    stamps = [(f.location, f.part, f.rows) for f in open_source(f"release:{memory}").fragments()]
    assert stamps == [(f.location, f.part, f.rows) for f in open_source(f"release:{tmp_path}").fragments()]


@pytest.mark.parametrize("place", ["memory://nothing-here", "nosuchprotocol://x", "/nothing/here"])
def test_a_place_that_is_not_there_is_one_clear_error(place: str) -> None:
    with pytest.raises(SourceError) as caught:
        open_source(f"release:{place}").fragments()
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_gone_when_it_is_read_is_one_clear_error(tmp_path: Path) -> None:
    file = release_file(tmp_path / "chunk_1.parquet", 3)
    reader = open_source(f"release:{tmp_path}")
    (fragment,) = reader.fragments()
    file.unlink()
    with pytest.raises(SourceError, match="chunk_1.parquet"):
        list(reader.read(fragment))


def test_a_stamp_changes_with_the_bytes_behind_it(tmp_path: Path) -> None:
    file = release_file(tmp_path / "chunk_1.parquet", 3)
    before = open_source(f"release:{tmp_path}").fragments()
    assert open_source(f"release:{tmp_path}").fragments() == before
    release_file(file, 4)
    assert open_source(f"release:{tmp_path}").fragments()[0].stamp != before[0].stamp


# Our own shards as a source -------------------------------------------------------------------------


def sample(number: int, family: Family = Family.EDITING) -> Sample:
    return Sample(
        id=f"{number:020x}",
        family=family,
        images=(Image(1, plain(40, 40, (number, 0, 0))), Image(2, plain(40, 40, (0, number, 9)))),
        turns=(Turn("paint <image_1>", target=2, alternatives=("colour it",)),),
        source=Source("somewhere", "far.parquet", number, "mit"),
        family_inferred=True,
        truth="{}",
    )


def packed(one: Sample) -> bytes:
    facts = {image.number: probe(image.data) for image in one.images}
    members = member_names(one, {number: fact.extension for number, fact in facts.items()})
    data = {image.number: image.data or b"" for image in one.images}
    pictures = [(members[number], data[number]) for number in stored_order(one)]
    return block(one.id, [("json", encode(one, facts)), *pictures])


def shard(path: Path, *blocks: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(blocks) + END)
    return path


def with_split(one: Sample, split: str | None) -> Sample:
    return Sample(**(vars(one) | {"split": split}))


def test_shards_read_back_as_the_samples_they_hold_with_their_splits(tmp_path: Path, memory: str) -> None:
    shard(tmp_path / "train" / "editing-00000.tar", packed(sample(1)), packed(sample(2)))
    shard(tmp_path / "test" / "layout-00000.tar", packed(sample(3, Family.LAYOUT)))
    one, two, three = sample(1), sample(2), sample(3, Family.LAYOUT)
    assert records(f"webdataset:{tmp_path}") == [
        with_split(three, "test"),
        with_split(one, "train"),
        with_split(two, "train"),
    ]
    assert records(f"webdataset:{tmp_path}?splits=new") == [three, one, two]
    assert records(f"webdataset:{tmp_path}?split=test") == [with_split(three, "test")]
    assert records(f"webdataset:{tmp_path}?family=editing&splits=new") == [one, two]
    assert records(f"webdataset:{tmp_path}/train/editing-00000.tar") == [one, two]
    upload(tmp_path, memory)
    assert records(f"webdataset:{memory}") == records(f"webdataset:{tmp_path}")


def test_a_damaged_shard_is_read_up_to_the_damage_which_becomes_a_rejection(tmp_path: Path) -> None:
    blocks = [packed(sample(number)) for number in (1, 2, 3)]
    file = shard(tmp_path / "editing-00000.tar", *blocks)
    data = bytearray(file.read_bytes())
    data[len(blocks[0]) + len(blocks[1]) + 10] ^= 1
    file.write_bytes(bytes(data))
    found = records(f"webdataset:{file}")
    assert found[:2] == [sample(1), sample(2)]
    assert isinstance(found[2], Rejection)
    assert (found[2].code, len(found)) == ("shard_bad_header", 3)
    file.write_bytes(bytes(data[:-1500]))
    assert [type(record) for record in records(f"webdataset:{file}")] == [Sample, Sample, Rejection]


@pytest.mark.parametrize(
    "bad",
    [
        block("k", [("json", b"{}")]),
        block("k", [("ref_01.png", b"x")]),
        block("k", [("json", b"{}"), ("json", b"{}")]),
        packed(sample(2)).replace(b'"id":"00', b'"id":"0f'),
        packed(sample(2))[: len(packed(sample(2))) - 1024],
    ],
    ids=["no record", "no json", "a member twice", "another id", "a picture missing"],
)
def test_a_sample_that_is_no_record_is_one_rejection_among_good_ones(tmp_path: Path, bad: bytes) -> None:
    file = shard(tmp_path / "editing-00000.tar", packed(sample(1)), bad, packed(sample(3)))
    first, middle, last = records(f"webdataset:{file}")
    assert (first, last) == (sample(1), sample(3))
    assert isinstance(middle, Rejection)
    assert (middle.code, middle.row) == ("bad_record", 1)
    assert "\n" not in middle.message


def test_a_folder_without_shards_is_one_clear_error(tmp_path: Path) -> None:
    for spec in (f"webdataset:{tmp_path}", f"webdataset:{tmp_path}?split=val"):
        with pytest.raises(SourceError, match="no .tar file"):
            open_source(spec).fragments()
