"""The release's layout: every row of every file becomes one sample or one rejection, once."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.image_files import image_bytes

from sigma_data.errors import SourceError
from sigma_data.sample import Family, Rejection, Sample, Turn, sample_id
from sigma_data.sources import Fragment, open_source
from sigma_data.sources.release import infer_family

BINARY, STRINGS = pa.list_(pa.binary()), pa.list_(pa.list_(pa.string()))


def picture(seed: int) -> bytes:
    return image_bytes("png", seed, width=40, height=40)


def row(pictures: int | list[Any] | None = 2, texts: Any = "make it red", **more: Any) -> dict[str, Any]:
    data = [picture(seed) for seed in range(pictures)] if isinstance(pictures, int) else pictures
    return {"image_list": data, "instruction_list": [[texts]] if isinstance(texts, str) else texts, **more}


def write(path: Path, rows: list[dict[str, Any]], *, group: int = 10, **types: Any) -> Path:
    fields = {"image_list": BINARY, "instruction_list": STRINGS, **types}
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.Table.from_pylist(rows, schema=pa.schema(list(fields.items())))
    pq.write_table(table, path, row_group_size=group)
    return path


def records(spec: str | Path, options: str = "") -> list[Sample | Rejection]:
    reader = open_source(f"release:{spec}{options}")
    return [record for fragment in reader.fragments() for record in reader.read(fragment)]


def one(tmp_path: Path, only: dict[str, Any], options: str = "", **types: Any) -> Sample | Rejection:
    (record,) = records(write(tmp_path / "chunk_1.parquet", [only], **types), options)
    return record


def sample(tmp_path: Path, only: dict[str, Any], options: str = "", **types: Any) -> Sample:
    record = one(tmp_path, only, options, **types)
    assert isinstance(record, Sample)
    return record


# Rows -----------------------------------------------------------------------------------------------


def test_a_plain_row_has_its_last_picture_as_target(tmp_path: Path) -> None:
    made = sample(tmp_path, row(3, "Put the cat of <Image 2> into <image_1>"), "?license=cc-by-4.0")
    assert [image.number for image in made.images] == [1, 2, 3]
    assert [image.data for image in made.images] == [picture(seed) for seed in range(3)]
    assert made.turns == (Turn("Put the cat of <image_2> into <image_1>", target=3),)
    assert (made.references, made.targets) == ((1, 2), (3,))
    assert (made.source.name, made.source.location, made.source.row) == ("release", "chunk_1.parquet", 0)
    assert made.source.license == "cc-by-4.0"
    assert made.id == sample_id("release", "chunk_1.parquet", 0)


def test_the_first_phrasing_counts_and_the_others_are_alternatives(tmp_path: Path) -> None:
    made = sample(tmp_path, row(2, [["paint <Image>", "colour <image>", "colour <image>", "tint <Image1>"]]))
    assert made.turns == (
        Turn("paint <image_1>", target=2, alternatives=("colour <image_1>", "tint <image_1>")),
    )  # fmt: skip


@pytest.mark.parametrize("count", [2, 3, 5])
def test_several_turns_have_one_picture_more_and_each_makes_the_next(tmp_path: Path, count: int) -> None:
    texts = [[f"step {turn}", f"stage {turn}"] for turn in range(count)]
    made = sample(tmp_path, row(count + 1, texts))
    assert made.targets == tuple(range(2, count + 2))
    assert made.references == (1,)
    assert [turn.instruction for turn in made.turns] == [f"step {turn}" for turn in range(count)]
    assert [turn.alternatives for turn in made.turns] == [(f"stage {turn}",) for turn in range(count)]
    assert (made.family, made.family_inferred) == (Family.EDITING, True)


@pytest.mark.parametrize(("turns", "pictures"), [(2, 2), (2, 4), (3, 2), (2, 0), (3, 5)])
def test_turns_that_do_not_fit_the_pictures_are_rejected(tmp_path: Path, turns: int, pictures: int) -> None:
    record = one(tmp_path, row(pictures, [["do"]] * turns))
    assert isinstance(record, Rejection)
    assert (record.code, record.row) == ("turns_mismatch", 0)
    assert f"{turns} turns need {turns + 1} images, the row has {pictures}" in record.message


@pytest.mark.parametrize(
    ("pictures", "texts"),
    [(None, "a"), (0, "a"), (2, None), (2, []), (2, [[]]), (2, [None]), (2, [[None]]), (None, None), (1, "a")],
)
def test_empty_rows_become_samples_for_the_checks_to_refuse(tmp_path: Path, pictures: Any, texts: Any) -> None:
    made = sample(tmp_path, row(pictures, texts))
    assert len(made.turns) == 1
    assert made.turns[0].instruction == ("a" if texts == "a" else "")
    assert len(made.images) == (pictures or 0)


def test_null_pictures_stay_in_their_places_without_bytes(tmp_path: Path) -> None:
    made = sample(tmp_path, row([picture(0), None, b"", picture(1)]))
    assert [image.data for image in made.images] == [picture(0), None, b"", picture(1)]
    assert made.targets == (4,)


def test_null_texts_are_left_out(tmp_path: Path) -> None:
    made = sample(tmp_path, row(2, [[None, "first", None, "second"]]))
    assert (made.turns[0].instruction, made.turns[0].alternatives) == ("first", ("second",))


# Column types ---------------------------------------------------------------------------------------

STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


@pytest.mark.parametrize(
    ("pictures", "texts"),
    [
        (pa.list_(pa.binary()), pa.list_(pa.list_(pa.string()))),
        (pa.large_list(pa.large_binary()), pa.large_list(pa.large_list(pa.large_string()))),
        (pa.list_(pa.large_binary()), pa.large_list(pa.list_(pa.string()))),
    ],
)
def test_lists_of_any_width_are_read(tmp_path: Path, pictures: pa.DataType, texts: pa.DataType) -> None:
    made = sample(tmp_path, row(3, "mix"), image_list=pictures, instruction_list=texts)
    assert [image.data for image in made.images] == [picture(seed) for seed in range(3)]
    assert made.turns[0].instruction == "mix"


def test_pictures_as_hf_datasets_stores_them_are_read(tmp_path: Path) -> None:
    data = [
        {"bytes": picture(0), "path": "a.png"},
        None,
        {"bytes": None, "path": "b.png"},
        {"bytes": picture(1), "path": None},
    ]
    made = sample(tmp_path, row(data), image_list=pa.list_(STRUCT))
    assert [image.data for image in made.images] == [picture(0), None, None, picture(1)]


@pytest.mark.parametrize("kind", [pa.string(), pa.int64(), pa.struct({"name": pa.string()})])
def test_a_method_of_any_type_is_read_or_ignored(tmp_path: Path, kind: pa.DataType) -> None:
    value = {"string": "selective", "int64": 5}.get(str(kind), {"name": "x"})
    made = sample(tmp_path, row(2, data_prep_method=value), data_prep_method=kind)
    assert (made.family, made.family_inferred) == (
        (Family.SELECTIVE, False) if kind == pa.string() else (Family.EDITING, True)
    )  # fmt: skip


# Families -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("method", "family"),
    [
        *((family.value, family) for family in Family),
        ("Composition", Family.COMPOSITIONAL),
        (" SELECTION ", Family.SELECTIVE),
        ("content_extraction", Family.SELECTIVE),
        ("style_transfer", Family.STYLIZATION),
        ("relation_transfer", Family.RELATION),
        ("edit", Family.EDITING),
        ("conditional", Family.LAYOUT),
        ("canny", Family.LAYOUT),
        ("depth", Family.LAYOUT),
    ],
)
def test_the_family_is_what_the_row_says(tmp_path: Path, method: str, family: Family) -> None:
    made = sample(tmp_path, row(2, data_prep_method=method), data_prep_method=pa.string())
    assert (made.family, made.family_inferred) == (family, False)


def test_a_mapping_option_names_further_methods_and_changes_known_ones(tmp_path: Path) -> None:
    file = write(
        tmp_path / "c.parquet",
        [row(2, data_prep_method=method) for method in ("nano", "edit", "canny", None, "other")],
        data_prep_method=pa.string(),
    )
    made = records(file, "?families=nano:compositional,edit:stylization")
    assert [(r.family, r.family_inferred) for r in made if isinstance(r, Sample)] == [
        (Family.COMPOSITIONAL, False), (Family.STYLIZATION, False), (Family.LAYOUT, False),
        (Family.EDITING, True), (Family.EDITING, True),
    ]  # fmt: skip


def test_the_family_option_holds_for_every_row(tmp_path: Path) -> None:
    file = write(
        tmp_path / "c.parquet",
        [row(2, data_prep_method="edit"), row(3, "<select>x", data_prep_method=None)],
        data_prep_method=pa.string(),
    )
    made = records(file, "?family=segmentation")
    assert [(r.family, r.family_inferred) for r in made if isinstance(r, Sample)] == [(Family.SEGMENTATION, False)] * 2


RELATION = "Transform <image_3>, as the transformation from <image_1> to <style>style reference<image_2>"


@pytest.mark.parametrize(
    ("pictures", "text", "family"),
    [
        (2, "Isolate <select> the first person from the left in <Image>.", Family.SELECTIVE),
        (3, "<select> the dog of <image_1> beside <image_2>", Family.SELECTIVE),
        (4, RELATION, Family.RELATION),
        (4, "Apply the change of <image_1> and <image_2> to <image_3>", Family.RELATION),
        (4, "Put <image_1>, <image_2> and <image_3> on a table", Family.COMPOSITIONAL),
        (2, "Follow the <layout>map of <image_1>", Family.LAYOUT),
        (2, "Paint a castle along the canny edges", Family.LAYOUT),
        (3, "A street that follows the depth of <image_1>, with <image_2>", Family.LAYOUT),
        (3, "Redraw <image_1> as <style>the painting <image_2>", Family.STYLIZATION),
        (2, "Redraw it in <style>the style", Family.EDITING),
        (2, "Make the sky pink", Family.EDITING),
        (3, "Place the woman from <Image 2> in the bedroom of <Image 1>.", Family.COMPOSITIONAL),
        (1, "A dog", Family.EDITING),
    ],
)
def test_where_nothing_is_said_the_family_is_inferred_and_marked(
    tmp_path: Path, pictures: int, text: str, family: Family
) -> None:
    made = sample(tmp_path, row(pictures, text))
    assert (made.family, made.family_inferred) == (family, True)
    assert infer_family(made.turns, pictures - 1) is family


# Fragments ------------------------------------------------------------------------------------------


@pytest.mark.slow
@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 150), st.integers(1, 70)), min_size=1, max_size=4))
def test_fragments_cover_every_row_once_in_order(
    tmp_path_factory: pytest.TempPathFactory, files: list[tuple[int, int]]
) -> None:
    folder = tmp_path_factory.mktemp("release")
    for number, (rows, group) in enumerate(files, 1):
        write(folder / f"chunk_{number}.parquet", [row([b"x"], f"row {index}") for index in range(rows)], group=group)
    reader = open_source(f"release:{folder}")
    wanted = [(f"chunk_{number}.parquet", index) for number, (rows, _) in enumerate(files, 1) for index in range(rows)]
    fragments = reader.fragments()
    assert len(set(fragments)) == len(fragments)
    seen = []
    for fragment in fragments:
        found = list(reader.read(fragment))
        assert len(found) == fragment.rows
        assert found == list(reader.read(fragment))
        seen += [(r.source.location, r.source.row) for r in found if isinstance(r, Sample)]
        assert all(isinstance(r, Sample) and r.turns[0].instruction == f"row {r.source.row}" for r in found)
    assert seen == wanted


def test_files_come_in_the_order_of_the_numbers_in_their_names(tmp_path: Path) -> None:
    names = ["b/chunk_1", "a/chunk_10", "a/chunk_2", "a/chunk_1", "part10/x", "part9/x", "chunk_3"]
    for name in names:
        write(tmp_path / f"{name}.parquet", [row()])
    assert [fragment.location for fragment in open_source(f"release:{tmp_path}").fragments()] == [
        "a/chunk_1.parquet", "a/chunk_2.parquet", "a/chunk_10.parquet", "b/chunk_1.parquet", "chunk_3.parquet",
        "part9/x.parquet", "part10/x.parquet",
    ]  # fmt: skip


def test_ids_do_not_change_when_the_folder_moves(tmp_path: Path) -> None:
    write(tmp_path / "here" / "seedxedit_multi" / "chunk_1.parquet", [row(), row(3)])
    before = [r.id for r in records(tmp_path / "here") if isinstance(r, Sample)]
    shutil.move(tmp_path / "here", tmp_path / "there")
    assert [r.id for r in records(tmp_path / "there") if isinstance(r, Sample)] == before
    assert [r.id for r in records(tmp_path / "there", "?name=second") if isinstance(r, Sample)] != before
    assert len(set(before)) == 2


def test_files_of_other_kinds_and_hidden_ones_are_left_alone(tmp_path: Path) -> None:
    write(tmp_path / "chunk_1.parquet", [row()])
    write(tmp_path / ".hidden.parquet", [row()])
    write(tmp_path / ".cache" / "chunk_2.parquet", [row()])
    (tmp_path / "parquet_info.json").write_text("{not even JSON")
    assert len(records(tmp_path)) == 1


def test_one_file_is_a_source_too(tmp_path: Path) -> None:
    file = write(tmp_path / "deep" / "chunk_1.parquet", [row(), row()])
    assert [r.source.location for r in records(file) if isinstance(r, Sample)] == ["chunk_1.parquet"] * 2


# What cannot be read --------------------------------------------------------------------------------


def only_rejection(tmp_path: Path) -> Rejection:
    (record,) = records(tmp_path)
    assert isinstance(record, Rejection)
    assert "\n" not in record.message
    return record


@pytest.mark.parametrize("data", [b"", b"PAR1", b"not a parquet file at all" * 40, b"PAR1" + bytes(500) + b"PAR1"])
def test_a_file_that_is_no_parquet_is_one_rejection(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "chunk_1.parquet").write_bytes(data)
    rejection = only_rejection(tmp_path)
    assert (rejection.code, rejection.location, rejection.row) == ("unreadable_file", "chunk_1.parquet", None)


def test_a_cut_parquet_is_one_rejection_and_the_other_files_are_read(tmp_path: Path) -> None:
    whole = write(tmp_path / "chunk_2.parquet", [row()] * 3)
    (tmp_path / "chunk_1.parquet").write_bytes(whole.read_bytes()[:-5])
    first, *rest = records(tmp_path)
    assert isinstance(first, Rejection)
    assert first.code == "unreadable_file"
    assert all(isinstance(record, Sample) for record in rest)
    assert len(rest) == 3


@pytest.mark.parametrize(
    "table",
    [
        pa.table({"image": [b"x"], "text": ["a"]}),
        pa.table({"image_list": [[b"x"]]}),
        pa.table({"image_list": [["x.jpg"]], "instruction_list": [[["a"]]]}),
        pa.table({"image_list": [[[b"x"]]], "instruction_list": [[["a"]]]}),
        pa.table({"image_list": [[b"x"]], "instruction_list": [[[["a"]]]]}),
        pa.table({"image_list": [[b"x"]], "instruction_list": [[{"text": "a"}]]}),
        pa.table({"image_list": [[{"path": "a"}]], "instruction_list": [[["a"]]]}),
        pa.table({"image_list": [[1]], "instruction_list": [[[1]]]}),
    ],
)
def test_other_columns_are_one_rejection_that_names_what_is_there(tmp_path: Path, table: pa.Table) -> None:
    pq.write_table(table, tmp_path / "chunk_1.parquet")
    rejection = only_rejection(tmp_path)
    assert (rejection.code, rejection.row) == ("wrong_columns", None)
    assert "image" in rejection.message


def test_an_unreadable_row_group_loses_exactly_its_rows(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    file = write(tmp_path / "chunk_1.parquet", [row([dice.bytes(400)], f"row {index}") for index in range(50)])
    start = pq.ParquetFile(file).metadata.row_group(2).column(0)
    begin = start.dictionary_page_offset or start.data_page_offset
    data = bytearray(file.read_bytes())
    data[begin : begin + start.total_compressed_size] = b"\xff" * start.total_compressed_size
    file.write_bytes(bytes(data))
    found = records(file)
    assert len(found) == 50
    lost = [record for record in found if isinstance(record, Rejection)]
    assert [record.row for record in lost] == list(range(20, 30))
    assert {record.code for record in lost} == {"unreadable_rows"}
    assert all("row group 2" in record.message for record in lost)
    good = [record.turns[0].instruction for record in found if isinstance(record, Sample)]
    assert good == [f"row {index}" for index in range(50) if not 20 <= index < 30]


def test_text_that_is_no_utf_8_loses_only_its_row(tmp_path: Path) -> None:
    file = write(tmp_path / "chunk_1.parquet", [row([b"x"], text) for text in ("good", "brkn", "fine")])
    table = pq.read_table(file)
    broken = pa.py_buffer(b"good" + b"\xff\xfe\xff\xfe" + b"fine")
    words = pa.StringArray.from_buffers(3, pa.py_buffer(np.array([0, 4, 8, 12], dtype=np.int32).tobytes()), broken)
    offsets = pa.array([0, 1, 2, 3], pa.int32())
    nested = pa.ListArray.from_arrays(offsets, pa.ListArray.from_arrays(offsets, words))
    pq.write_table(pa.table({"image_list": table["image_list"], "instruction_list": nested}), file)
    found = records(file)
    assert [type(record) for record in found] == [Sample, Rejection, Sample]
    assert isinstance(found[1], Rejection)
    assert (found[1].row, found[1].code) == (1, "unreadable_rows")


def test_any_changed_byte_gives_records_and_no_crash(tmp_path: Path) -> None:
    file = write(tmp_path / "chunk_1.parquet", [row(2, f"row {index}") for index in range(12)], group=5)
    whole, dice = file.read_bytes(), np.random.default_rng(4)
    for _ in range(60):
        data = bytearray(whole)
        for place in dice.integers(0, len(data), 3):
            data[place] = dice.integers(0, 256)
        file.write_bytes(bytes(data))
        for record in records(file):
            assert isinstance(record, Sample | Rejection)


def test_a_fragment_of_a_file_that_changed_is_no_crash(tmp_path: Path) -> None:
    file = write(tmp_path / "chunk_1.parquet", [row()] * 12, group=4)
    reader = open_source(f"release:{file}")
    fragment = reader.fragments()[0]
    write(file, [row()] * 2, group=4)
    assert all(isinstance(record, Sample | Rejection) for record in reader.read(fragment))
    assert list(reader.read(Fragment("chunk_1.parquet", "nonsense", fragment.stamp))) == []


@pytest.mark.parametrize("make", ["nothing", "empty folder", "other files"])
def test_a_place_without_the_layout_is_one_clear_error(tmp_path: Path, make: str) -> None:
    place = tmp_path / "place"
    if make != "nothing":
        place.mkdir()
    if make == "other files":
        (place / "readme.txt").write_text("hello")
    with pytest.raises(SourceError) as caught:
        open_source(f"release:{place}").fragments()
    assert str(place) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_without_a_row_give_no_records_and_no_error(tmp_path: Path) -> None:
    file = write(tmp_path / "chunk_1.parquet", [])
    with pq.ParquetWriter(tmp_path / "chunk_2.parquet", pq.read_schema(file)):
        pass  # not even a row group
    assert records(tmp_path) == []
    assert records(tmp_path / "chunk_2.parquet") == []


def test_a_path_written_from_a_folder_above_the_source_is_found(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "set"
    (folder / "images").mkdir(parents=True)
    (folder / "images" / "a.jpg").write_bytes(b"jpeg")
    rows = [[{"bytes": None, "path": "data/set/images/a.jpg"}, {"bytes": b"x", "path": None}]]
    table = pa.table({"image_list": pa.array(rows, pa.list_(STRUCT)), "instruction_list": [[["Make it red"]]]})
    pq.write_table(table, folder / "chunk_0.parquet")
    (one,) = records(folder)
    assert isinstance(one, Sample)
    assert one.images[0].data == b"jpeg"
