"""The release's layout in every Arrow type and form that holds the same data, and what is said about the others."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from support.image_files import image_bytes

from sigma_data.corpus.check_limits import Limits
from sigma_data.corpus.checks import examine
from sigma_data.sample import Rejection, Sample
from sigma_data.sources import open_source
from sigma_data.sources.parquet import bare, plain

IMAGES = [[image_bytes(seed=2 * row), image_bytes(seed=2 * row + 1)] for row in range(3)]
EQUAL = [[data.ljust(4000, b"\0") for data in row] for row in IMAGES]  # of one length, for fixed widths
TEXTS = [[[f"paint it in shade {row}"]] for row in range(3)]
BINARIES, STRINGS = pa.list_(pa.binary()), pa.list_(pa.list_(pa.string()))
STRUCT = pa.struct({"bytes": pa.binary(), "path": pa.string()})


class Blob(pa.ExtensionType):  # type: ignore[misc]
    """A library's own image type over binary."""

    def __init__(self) -> None:
        super().__init__(pa.binary(), "test.blob")

    def __arrow_ext_serialize__(self) -> bytes:
        return b""

    @classmethod
    def __arrow_ext_deserialize__(cls, storage: pa.DataType, serialized: bytes) -> Blob:
        return cls()


def write(path: Path, images: Any, texts: Any, **more: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"image_list": images, "instruction_list": texts, **more}), path)
    return path


def records(path: Path) -> list[Sample | Rejection]:
    reader = open_source(f"release:{path}")
    return [record for fragment in reader.fragments() for record in reader.read(fragment)]


def samples(path: Path) -> list[Sample]:
    found = records(path)
    assert all(isinstance(record, Sample) for record in found), found
    return [record for record in found if isinstance(record, Sample)]


def lists(values: pa.Array) -> pa.Array:
    """Two values a row, in a list of any value type."""
    return pa.ListArray.from_arrays(pa.array(range(0, len(values) + 1, 2), pa.int32()), values)


FLAT = [data for row in IMAGES for data in row]
IMAGE_COLUMNS = {
    "list<binary>": pa.array(IMAGES, BINARIES),
    "list<large_binary>": pa.array(IMAGES, pa.list_(pa.large_binary())),
    "list<binary_view>": pa.array(IMAGES, pa.list_(pa.binary_view())),
    "large_list<large_binary>": pa.array(IMAGES, pa.large_list(pa.large_binary())),
    "fixed_size_list<binary>": pa.array(IMAGES, pa.list_(pa.binary(), 2)),
    "list_view<binary>": pa.array(IMAGES, pa.list_view(pa.binary())),
    "large_list_view<binary_view>": pa.array(IMAGES, pa.large_list_view(pa.binary_view())),
    "list<list<uint8>>": pa.array([[list(data) for data in row] for row in IMAGES], pa.list_(pa.list_(pa.uint8()))),
    "list<dictionary>": lists(pa.array(FLAT, pa.binary()).dictionary_encode()),
    "list<extension>": lists(pa.ExtensionArray.from_storage(Blob(), pa.array(FLAT, pa.binary()))),
    "list<struct>": pa.array([[{"bytes": data, "path": "a.jpg"} for data in row] for row in IMAGES], pa.list_(STRUCT)),
    "large_list<large struct>": pa.array(
        [[{"path": None, "bytes": data} for data in row] for row in IMAGES],
        pa.large_list(pa.struct({"path": pa.large_string(), "bytes": pa.large_binary()})),
    ),
    "not null": pa.array(IMAGES, pa.list_(pa.field("element", pa.binary(), nullable=False))),
}
TEXT_COLUMNS = {
    "list<list<string>>": pa.array(TEXTS, STRINGS),
    "list<list<large_string>>": pa.array(TEXTS, pa.list_(pa.list_(pa.large_string()))),
    "list<list<string_view>>": pa.array(TEXTS, pa.list_(pa.list_(pa.string_view()))),
    "large lists": pa.array(TEXTS, pa.large_list(pa.large_list(pa.large_string()))),
    "fixed lists": pa.array(TEXTS, pa.list_(pa.list_(pa.string(), 1), 1)),
    "list views": pa.array(TEXTS, pa.list_view(pa.large_list_view(pa.string()))),
    "binary": pa.array([[[text[0][0].encode()]] for text in TEXTS], pa.list_(pa.list_(pa.binary()))),
    "flat list": pa.array([text[0] for text in TEXTS], pa.list_(pa.string())),
    "flat list of dictionary": pa.ListArray.from_arrays(
        pa.array(range(4), pa.int32()), pa.array([text[0][0] for text in TEXTS]).dictionary_encode()
    ),
    "plain string": pa.array([text[0][0] for text in TEXTS], pa.string()),
    "plain string_view": pa.array([text[0][0] for text in TEXTS], pa.string_view()),
    "plain dictionary": pa.array([text[0][0] for text in TEXTS]).dictionary_encode(),
}


@pytest.mark.parametrize("kind", IMAGE_COLUMNS)
def test_images_are_read_from_every_type_that_holds_bytes(tmp_path: Path, kind: str) -> None:
    made = samples(write(tmp_path / "chunk_0.parquet", IMAGE_COLUMNS[kind], pa.array(TEXTS, STRINGS)))
    assert [[image.data for image in sample.images] for sample in made] == IMAGES


def test_images_of_one_width_are_read(tmp_path: Path) -> None:
    column = pa.array(EQUAL, pa.list_(pa.binary(4000)))
    made = samples(write(tmp_path / "chunk_0.parquet", column, pa.array(TEXTS, STRINGS)))
    assert [[image.data for image in sample.images] for sample in made] == EQUAL


@pytest.mark.parametrize("kind", TEXT_COLUMNS)
def test_instructions_are_read_from_every_type_and_form_that_holds_text(tmp_path: Path, kind: str) -> None:
    made = samples(write(tmp_path / "chunk_0.parquet", pa.array(IMAGES, BINARIES), TEXT_COLUMNS[kind]))
    assert [[turn.instruction for turn in sample.turns] for sample in made] == [text[0] for text in TEXTS]


def test_the_same_rows_in_any_type_are_the_same_samples(tmp_path: Path) -> None:
    first = samples(write(tmp_path / "a" / "chunk_0.parquet", pa.array(IMAGES, BINARIES), pa.array(TEXTS, STRINGS)))
    other = IMAGE_COLUMNS["large_list_view<binary_view>"], TEXT_COLUMNS["plain string_view"]
    assert samples(write(tmp_path / "b" / "chunk_0.parquet", *other)) == first


def test_run_end_encoded_values_are_looked_through() -> None:
    values = pa.RunEndEncodedArray.from_arrays([2, 3], pa.array([b"a", b"b"]))
    assert bare(values.type) == pa.binary()
    assert [plain(value) for value in values] == [b"a", b"a", b"b"]


@pytest.mark.parametrize("single", [pa.array([row[0] for row in IMAGES]), pa.array(
    [{"bytes": row[0], "path": None} for row in IMAGES], STRUCT)])  # fmt: skip
def test_a_single_image_without_a_list_is_a_list_of_one(tmp_path: Path, single: pa.Array) -> None:
    made = samples(write(tmp_path / "chunk_0.parquet", single, pa.array(TEXTS, STRINGS)))
    assert [[image.data for image in sample.images] for sample in made] == [row[:1] for row in IMAGES]
    assert [sample.targets for sample in made] == [(1,)] * 3


def test_a_flat_list_holds_a_turn_an_entry(tmp_path: Path) -> None:
    texts = pa.array([["make it red", "make it larger"], ["make it red", "make it larger"]], pa.list_(pa.string()))
    images = pa.array([[image_bytes(seed=k) for k in range(3)], [image_bytes(seed=k) for k in range(2)]], BINARIES)
    fits, short = records(write(tmp_path / "chunk_0.parquet", images, texts))
    assert isinstance(fits, Sample)
    assert [(turn.instruction, turn.target) for turn in fits.turns] == [("make it red", 2), ("make it larger", 3)]
    assert isinstance(short, Rejection)
    assert short.code == "turns_mismatch"


@pytest.mark.parametrize(
    "texts",
    [
        pa.nulls(3), pa.array([None] * 3, pa.string()), pa.array([[None]] * 3, pa.list_(pa.null())),
        pa.array([[[None]]] * 3), pa.array([[]] * 3, STRINGS), pa.array([[None]] * 3, STRINGS),
    ],
    ids=str,
)  # fmt: skip
def test_rows_without_an_instruction_say_so_whatever_type_the_writer_gave_the_nulls(
    tmp_path: Path, texts: pa.Array
) -> None:
    made = samples(write(tmp_path / "chunk_0.parquet", pa.array(IMAGES, BINARIES), texts))
    assert [examine(sample, Limits()).errors[0].code for sample in made] == ["empty_instruction"] * 3


@pytest.mark.parametrize("images", [pa.nulls(3), pa.array([[None, None]] * 3, pa.list_(pa.null()))], ids=str)
def test_rows_without_images_are_rows_whatever_type_the_writer_gave_the_nulls(tmp_path: Path, images: pa.Array) -> None:
    made = samples(write(tmp_path / "chunk_0.parquet", images, pa.array(TEXTS, STRINGS)))
    assert {examine(sample, Limits()).errors[0].code for sample in made} <= {"no_pictures", "empty"}


def test_extra_and_reordered_columns_change_nothing(tmp_path: Path) -> None:
    images, texts = pa.array(IMAGES, BINARIES), pa.array(TEXTS, STRINGS)
    first = samples(write(tmp_path / "a" / "chunk_0.parquet", images, texts))
    more = {"score": pa.array([0.1, None, 2.0]), "meta": pa.array([{"a": 1}] * 3), "none": pa.nulls(3)}
    second = tmp_path / "b" / "chunk_0.parquet"
    second.parent.mkdir()
    pq.write_table(pa.table({**more, "instruction_list": texts, "image_list": images}), second)
    assert samples(second) == first


@pytest.mark.parametrize(
    ("images", "texts", "word"),
    [
        (pa.array([["eA=="]] * 3), pa.array(TEXTS), "base64"),
        (pa.array([[1]] * 3), pa.array(TEXTS), "image_list"),
        (pa.array([[{"path": "a.jpg"}]] * 3), pa.array(TEXTS), "embed"),
        (pa.array(IMAGES, BINARIES), pa.array([1, 2, 3]), "instruction_list"),
    ],
)
def test_a_file_of_other_types_counts_all_its_rows(tmp_path: Path, images: Any, texts: Any, word: str) -> None:
    path = write(tmp_path / "chunk_0.parquet", images, texts)
    (fragment,) = open_source(f"release:{path}").fragments()
    assert fragment.rows == 3
    found = records(path)
    assert [(record.code, record.row) for record in found if isinstance(record, Rejection)] == [
        ("wrong_columns", None)
    ] * 3
    assert all(isinstance(record, Rejection) and word in record.message for record in found)


# Images by path -------------------------------------------------------------------------------------


def by_path(folder: Path, *paths: str | None) -> Sample:
    images = [[{"bytes": None, "path": path} for path in paths]]
    write(folder / "deep" / "chunk_0.parquet", pa.array(images, pa.list_(STRUCT)), pa.array(TEXTS[:1]))
    (made,) = samples(folder)
    return made


def test_images_stored_as_paths_are_read_from_the_source_folder(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    (folder / "deep").mkdir(parents=True)
    (folder / "pictures").mkdir()
    (folder / "deep" / "a.jpg").write_bytes(IMAGES[0][0])
    (folder / "pictures" / "b.jpg").write_bytes(IMAGES[0][1])
    absolute = str((folder / "pictures" / "b.jpg").resolve())
    made = by_path(folder, "a.jpg", "pictures/b.jpg", absolute, "source/pictures/b.jpg", "../pictures/b.jpg")
    assert [image.data for image in made.images] == [IMAGES[0][0], *[IMAGES[0][1]] * 4]


def test_images_stored_as_paths_are_read_behind_fsspec(tmp_path: Path) -> None:
    import fsspec

    data = by_path(tmp_path, "a.jpg") and (tmp_path / "deep" / "chunk_0.parquet").read_bytes()
    files = fsspec.filesystem("memory")
    files.pipe("/named-images/deep/chunk_0.parquet", data)
    files.pipe("/named-images/a.jpg", IMAGES[0][0])
    reader = open_source("release:memory://named-images")
    (made,) = [record for fragment in reader.fragments() for record in reader.read(fragment)]
    assert isinstance(made, Sample)
    assert made.images[0].data == IMAGES[0][0]


def test_no_path_leads_out_of_the_source_folder(tmp_path: Path) -> None:
    folder = tmp_path / "source"
    (folder / "deep").mkdir(parents=True)
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(IMAGES[0][0])
    (folder / "link.jpg").symlink_to(secret)
    made = by_path(folder, "../../secret.jpg", str(secret), "link.jpg", "/etc/passwd", "s3://bucket/a.jpg", "..")
    assert [image.data for image in made.images] == [None] * 6
    assert "outside the source folder" in (made.images[0].missing or "")


def test_an_image_that_is_only_a_path_says_how_to_embed_it(tmp_path: Path) -> None:
    made = by_path(tmp_path, "gone/a.jpg", None)
    (finding, *_) = examine(made, Limits()).errors
    assert finding.code == "empty"
    assert all(word in finding.message for word in ("gone/a.jpg", "embed", "push_to_hub"))
    assert made.images[1].missing is None


# Git LFS --------------------------------------------------------------------------------------------

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"ab" * 32 + b"\nsize 49823741\n"


def test_a_pointer_in_place_of_a_parquet_file_says_git_lfs_pull(tmp_path: Path) -> None:
    (tmp_path / "chunk_0.parquet").write_bytes(POINTER)
    (found,) = records(tmp_path)
    assert isinstance(found, Rejection)
    assert (found.code, found.row) == ("lfs_pointer", None)
    assert "git lfs pull" in found.message


def test_a_pointer_in_place_of_an_image_says_git_lfs_pull(tmp_path: Path) -> None:
    images = pa.array([[IMAGES[0][0], POINTER]], BINARIES)
    (made,) = samples(write(tmp_path / "chunk_0.parquet", images, pa.array(TEXTS[:1])))
    (finding, *_) = examine(made, Limits()).errors
    assert finding.code == "wrong_type"
    assert "git lfs pull" in finding.message


# Large row groups -----------------------------------------------------------------------------------


def test_a_row_group_is_streamed_and_never_held_whole(tmp_path: Path) -> None:
    dice = np.random.default_rng(0)
    images = [[dice.bytes(200_000), dice.bytes(200_000)] for _ in range(150)]  # 60 MB
    table = pa.table({"image_list": pa.array(images, BINARIES), "instruction_list": pa.array([[["a"]]] * 150)})
    pq.write_table(table, tmp_path / "chunk_0.parquet", write_batch_size=4, use_dictionary=False)
    assert pq.ParquetFile(tmp_path / "chunk_0.parquet").num_row_groups == 1
    del table
    before, most, seen = pa.total_allocated_bytes(), 0, 0
    reader = open_source(f"release:{tmp_path}")
    for fragment in reader.fragments():
        for record in reader.read(fragment):
            assert isinstance(record, Sample)
            assert [image.data for image in record.images] == images[record.source.row]
            most, seen = max(most, pa.total_allocated_bytes() - before), seen + 1
    assert seen == 150
    assert most < 25e6
