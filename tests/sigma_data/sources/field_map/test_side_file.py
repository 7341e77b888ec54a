"""Scores that lie in one file beside the rows, and the subsets of ImgEdit that need them."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.layouts import picture, put, put_tar, read, sample, told

from sigma_data.errors import SourceError
from sigma_data.sources.field_map.side_file import json_items

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(content=st.dictionaries(st.text(max_size=8), VALUES, max_size=8), indent=st.sampled_from([None, 0, 2]))
def test_an_object_is_read_in_pieces_as_json_reads_it(content: dict[str, Any], indent: int | None) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            return super().read(3)

    text = json.dumps(content, indent=indent, ensure_ascii=bool(indent)).encode("utf-8", "surrogatepass")
    try:
        text.decode()
    except UnicodeDecodeError:
        return
    assert dict(json_items(Slow(text))) == content
    for cut in range(1, len(text), 7):
        with pytest.raises(ValueError, match=r".+"):
            list(json_items(Slow(text[: len(text) - cut])))


@pytest.mark.parametrize("text", [b"[]", b"", b"3", b'{"a"', b'{"a" 1}', b"{1: 2}", b'{"a": ' + b"[" * 100_000])
def test_what_is_no_object_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        list(json_items(io.BytesIO(text)))


def imgedit(root: Path, name: str, prefix: str, archive: str, top: str, samples: int = 4) -> None:
    rows = [
        {
            "input_images": [f"{prefix}{n}/original.png"],
            "output_images": [f"{prefix}{n}/result.png"],
            "prompt": f"do {n}",
        }
        for n in range(samples)
    ]
    put(root / f"Parquet/{name}.parquet", b"")
    pq.write_table(pa.Table.from_pylist(rows), root / f"Parquet/{name}.parquet")
    seed = 100 * sum(map(ord, name))
    images = {
        f"{top}{n}/{side}.png": picture(seed + 10 * n + s)
        for n in range(samples)
        for s, side in enumerate(("original", "result"))
    }
    put_tar(root / f"Singleturn/{archive}.tar", images, ".split.{:03}", 3)


def scores(root: Path, content: dict[str, str]) -> None:
    put(root / "all_dataset_gpt_score.json", json.dumps(content))


def test_a_subset_is_read_from_its_own_archive_by_the_tail_of_its_paths(tmp_path: Path) -> None:
    root = tmp_path / "c"
    subsets = [
        ("add_part0", "results_add_laion_part0/", "results_add_laion_part0", "results_add_laion_part0/"),
        ("replace_part0", "replace/", "results_replace_part0", "results/"),
        ("adjust_canny_part2", "results_adjust_canny_laion_part2/", "results_adjust_canny_laion_part2", "./"),
        ("hybrid_part6", "results_hybrid_part6/", "results_hybrid_part6", "results_compose_part6_fix/"),
        ("remove_part0", "results_remove_part0/", "results_remove_laion_part0", "results_remove/"),
        ("hybrid_part7", "hybrid_part7/", "results_hybrid_part7_fix", "results_compose_part7_fix/"),
        ("hybrid_part1", "results_hybrid_part1/", "results_hybrid_part1", "results_compose_part1/"),
    ]
    for subset in subsets:
        imgedit(root, *subset)
    for record in read("imgedit", root):
        one = sample(record)
        name = Path(one.source.location).stem
        seed = 100 * sum(map(ord, name)) + 10 * one.source.row
        assert [image.data for image in one.images] == [picture(seed), picture(seed + 1)], name


def test_families_follow_from_the_subset(tmp_path: Path) -> None:
    root = tmp_path / "c"
    for name in ("reference_extract_part1", "reference_replace_part1", "style_transfer_part0", "background_part1"):
        archive = f"results_extract_and_visualedit_{name[-5:]}" if name.startswith("ref") else f"results_{name}"
        imgedit(root, name, "top/", archive, "top/", 1)
    assert told(read("imgedit", root)) == ["selective", "compositional", "editing", "stylization"]


def test_scores_filter_and_rows_without_are_kept(tmp_path: Path) -> None:
    root = tmp_path / "c"
    imgedit(root, "replace_part0", "replace/", "results_replace_part0", "results/")
    assert told(read("imgedit", root)) == ["editing"] * 4  # no file: no scores
    scores(root, {
        "results/0": "Brief reasoning: x\nScore 1: 4\nScore 2: 4\nObjects match: True",
        "results/1": "Score 1: 5 Score 2: 2 Objects match: False", "results/2": "no scores at all",
        "results/3": "Score 1: 4 Score 2: None Objects match: True",  # half of a score is none
    })  # fmt: skip
    assert told(read("imgedit", root)) == ["editing", "(low_score)", "editing", "editing"]
    assert told(read("imgedit", root, filters="off")) == ["editing"] * 4
    scores(root, {"results/0": "Score 1: 1\nScore 2: 1"})
    assert told(read("imgedit", root))[0] == "(low_score)"  # changed, so it is read anew


def test_bare_names_lie_in_the_folder_of_the_part(tmp_path: Path) -> None:
    root = tmp_path / "c"
    imgedit(root, "action_part3", "", "action_part3", "part3/", 1)
    rows = [{"input_images": ["a.png"], "output_images": ["b.png"], "prompt": "wave"}]
    pq.write_table(pa.Table.from_pylist(rows), root / "Parquet/action_part3.parquet")
    images = {"part3/a.png": picture(1), "part3/b.png": picture(2), "other/a.png": picture(3)}
    put_tar(root / "Singleturn/action_part3.tar", images, ".split.{:03}", 3)
    (found,) = read("imgedit", root)
    assert [image.data for image in sample(found).images] == [picture(1), picture(2)]


def test_unpacked_archives_are_read_and_never_another_subsets_images(tmp_path: Path) -> None:
    root = tmp_path / "c"
    for name in ("replace_part0", "replace_part7"):
        imgedit(root, name, f"results_{name}/", f"results_{name}", "results/", 1)
    for part in (root / "Singleturn").iterdir():
        part.unlink()
    put(root / "Singleturn/results_replace_part0/results/0/original.png", picture(1))
    put(root / "Singleturn/results_replace_part0/results/0/result.png", picture(2))
    assert told(read("imgedit", root)) == ["editing", "missing_picture"]


def test_scores_of_a_subset_under_another_name(tmp_path: Path) -> None:
    root = tmp_path / "c"
    imgedit(root, "hybrid_part1", "results_hybrid_part1/", "results_hybrid_part1", "results_compose_part1/", 1)
    scores(root, {"results_compose_part1/0": "Score 1: 1 Score 2: 2"})
    assert told(read("imgedit", root)) == ["(low_score)"]


def test_a_broken_file_of_scores_stops_in_one_line(tmp_path: Path) -> None:
    root = tmp_path / "c"
    imgedit(root, "replace_part0", "replace/", "results_replace_part0", "results/")
    put(root / "all_dataset_gpt_score.json", '{"a": ')
    with pytest.raises(SourceError, match=r"all_dataset_gpt_score.json cannot be read"):
        read("imgedit", root)
