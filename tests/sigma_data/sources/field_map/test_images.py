"""Where images are found: in the order of the rules, never by guessing, never out of the source."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sigma_data.sources.field_map.images import Scope, TreeStore, _content, written_paths
from sigma_data.sources.field_map.schema import ImagesMap
from sigma_data.sources.field_map.values import RowFault
from sigma_data.storage.data_folder import data_folder


def tree(root: Path, *paths: str) -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(path.encode())
    return root


def find(root: Path, path: str, *folders: str, **spec: object) -> tuple[str, str]:
    """(content, rule) of what a path finds, or the (code, message) of the fault."""
    store = TreeStore(ImagesMap.model_validate({"from": "tree", **spec}), data_folder(str(root)))
    try:
        found = store.find(path, Scope(folders or (".",)))
    except RowFault as fault:
        with pytest.raises(RowFault):
            store.locate(path, Scope(folders or (".",)))
        return fault.code, str(fault)
    assert found.data.decode() == store.locate(path, Scope(folders or (".",)))
    return found.data.decode(), found.rule


def test_a_path_is_tried_as_written_before_it_is_changed(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.jpg", "P/a/1.jpg")
    assert find(tmp_path, "P/a/1.jpg", strip_prefix="P/") == ("P/a/1.jpg", "as written")
    (tmp_path / "P/a/1.jpg").unlink()
    assert find(tmp_path, "P/a/1.jpg", strip_prefix="P/") == ("a/1.jpg", "strip_prefix P/")


def test_paths_begin_in_the_folders_of_the_map(tmp_path: Path) -> None:
    tree(tmp_path, "images/a/1.jpg")
    assert find(tmp_path, "a/1.jpg")[0] == "missing_picture"
    assert find(tmp_path, "./a//1.jpg", ".", "images") == ("images/a/1.jpg", "as written under images")


def test_a_foreign_absolute_path_is_not_followed_but_may_be_changed(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", "images/1.jpg")
    outside = tree(tmp_path, "secret.jpg") / "secret.jpg"
    assert find(root, str(outside))[0] == "unsafe_path"
    assert find(root, "/mnt/x/images/1.jpg", replace=[["^.*/images/", "images/"]])[0] == "images/1.jpg"
    assert find(root, "C:\\x\\1.jpg")[0] == "unsafe_path"
    assert find(root, "/mnt/x/images/2.jpg", replace=[["^.*/images/", "images/"]])[0] == "missing_picture"


@pytest.mark.parametrize("path", ["../secret.jpg", "a/../../secret.jpg", "a/../1.jpg", "..\\secret.jpg", "a\0b"])
def test_a_path_that_climbs_is_unsafe(tmp_path: Path, path: str) -> None:
    root = tree(tmp_path / "root", "1.jpg", "a/2.jpg")
    tree(tmp_path, "secret.jpg")
    assert find(root, path, match="name")[0] == "unsafe_path"


def test_a_link_out_of_the_source_is_unsafe_and_one_inside_is_not(tmp_path: Path) -> None:
    root = tree(tmp_path / "root", "1.jpg")
    tree(tmp_path, "secret.jpg", "other/2.jpg")
    (root / "out.jpg").symlink_to(tmp_path / "secret.jpg")
    (root / "folder").symlink_to(tmp_path / "other")
    (root / "in.jpg").symlink_to(root / "1.jpg")
    assert find(root, "out.jpg")[0] == "unsafe_path"
    assert find(root, "folder/2.jpg")[0] == "unsafe_path"
    store = TreeStore(ImagesMap.model_validate({"from": "tree"}), data_folder(str(root)))
    assert store.find("in.jpg", Scope()).data == b"1.jpg"


def test_a_name_is_taken_only_where_the_map_says_so_and_no_other_has_it(tmp_path: Path) -> None:
    tree(tmp_path, "s/a/1.jpg", "s/b/1.jpg", "s/b/2.jpg", "t/1.jpg", "t/3.jpg")
    assert find(tmp_path, "x/2.jpg", "s")[0] == "missing_picture"
    assert find(tmp_path, "/x/2.jpg", "s", match="name") == ("s/b/2.jpg", "name")
    assert find(tmp_path, "x/1.jpg", "s", match="name")[0] == "ambiguous_name"
    assert find(tmp_path, "x/1.jpg", "t", match="name") == ("t/1.jpg", "name")
    assert find(tmp_path, "x/3.jpg", "s", match="name")[0] == "missing_picture"
    assert find(tmp_path, "y/b/1.jpg", "s", match="tail2") == ("s/b/1.jpg", "tail2")
    assert find(tmp_path, "y/c/1.jpg", "s", match="tail2")[0] == "missing_picture"


def test_an_address_is_never_fetched(tmp_path: Path) -> None:
    assert find(tmp_path, "https://example.com/a.jpg")[0] == "missing_picture"


@settings(deadline=None)
@given(st.text(alphabet="ab./\\~:C\0", max_size=12), st.sampled_from(["", "a/", "/a/"]))
def test_no_written_path_leads_out(path: str, prefix: str) -> None:
    images = ImagesMap.model_validate({"from": "tree", "strip_prefix": prefix, "replace": [["^/?b/", "/b/"]]})
    try:
        found = list(written_paths(path, images))
    except RowFault as fault:
        assert fault.code == "unsafe_path"
        return
    for location, _ in found:
        assert not location.startswith(("/", "\\", "~", "C:\\", "C:/"))
        assert "\0" not in location
        assert ".." not in location.split("/")


@pytest.mark.parametrize("told", [0, 3, 7, 8, 20])
def test_a_file_is_read_to_its_end_whatever_its_size_was_said_to_be(tmp_path: Path, told: int) -> None:
    (tmp_path / "a").write_bytes(b"12345678")
    with (tmp_path / "a").open("rb") as file:
        assert _content(file.fileno(), told) == b"12345678"
