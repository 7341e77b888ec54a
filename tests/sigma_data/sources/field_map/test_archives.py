"""Images and rows in archives in place: within their scope, unpacked trees first, holes told, nothing guessed."""

from __future__ import annotations

import json
import shutil
import tarfile
from pathlib import Path

import pytest
from fsspec.implementations.memory import MemoryFileSystem
from support.archives import unpack
from support.layouts import lines, picture, put, put_tar, read, sample, tar_of, told

from sigma_data.errors import SourceError
from sigma_data.sample import Rejection
from sigma_data.sources import open_source
from sigma_data.sources.field_map.archives import glob_files
from sigma_data.storage.data_folder import data_folder

MULTI, FANTASY = "Multi-Reference-Image", "Surrel-Fantasy-Image"


def echo4o(root: Path) -> Path:
    for subset, first in ((MULTI, 0), (FANTASY, 100)):
        images = {
            f"{n:05}{part}.jpg": picture(first + 10 * n + i) for n in range(4) for i, part in enumerate(("", "_1"))
        }
        names = list(images)
        put_tar(root / subset / "images/0-5000.tar.gz", {name: images[name] for name in names[:4]})
        put_tar(root / subset / "images/5000-10000.tar.gz", {name: images[name] for name in names[4:]})
    rows = [
        {"task_type": "ic", "instruction": f"Place it, {n}", "input_images": [f"/Echo-4o-Image/{MULTI}/images/{n:05}_1.jpg"],
         "output_image": f"/Echo-4o-Image/{MULTI}/images/{n:05}.jpg"}
        for n in range(5)
    ]  # fmt: skip
    put(root / MULTI / f"{MULTI}.jsonl", lines(rows) + '{"cut": "of')
    put(root / FANTASY / "conflict.jsonl", lines([{
        "task_type": "t2i", "instruction": "A picture", "output_image": f"/Echo-4o-Image/{FANTASY}/images/00000.jpg",
    }]))  # fmt: skip
    return root


def test_a_name_is_looked_for_in_the_archives_of_its_subset_alone(tmp_path: Path) -> None:
    found = read("echo4o", echo4o(tmp_path / "c"))
    assert told(found) == [*["compositional"] * 4, "missing_picture", "bad_line", "layout"]
    for number in range(4):
        assert [image.data for image in sample(found[number]).images] == [
            picture(10 * number + 1),
            picture(10 * number),
        ]
    assert sample(found[-1]).images[0].data == picture(100)
    assert json.loads(sample(found[0]).provenance or "")["resolved"] == ["name", "name"]


def test_a_name_in_two_archives_of_the_scope_is_ambiguous(tmp_path: Path) -> None:
    root = echo4o(tmp_path / "c")
    put_tar(root / MULTI / "images/more.tar.gz", {"00001.jpg": picture(7), "00002_1.jpg": picture(8)})
    assert told(read("echo4o", root))[:4] == ["compositional", "ambiguous_name", "ambiguous_name", "compositional"]


def test_an_archive_with_a_hole_makes_its_rows_part_missing_and_no_others(tmp_path: Path) -> None:
    root = echo4o(tmp_path / "c")
    archive = root / MULTI / "images/5000-10000.tar.gz"
    content = archive.read_bytes()
    archive.unlink()
    for number in (0, 2):
        put(archive.with_name(f"{archive.name}.part{number}"), content[number * 100 :][:100])
    assert told(read("echo4o", root))[:4] == ["compositional", "compositional", "part_missing", "part_missing"]


def test_a_tree_unpacked_beside_is_read_instead_and_the_archive_may_be_gone(tmp_path: Path) -> None:
    root = echo4o(tmp_path / "c")
    before = read("echo4o", root)
    unpacked = Path(shutil.copytree(root, tmp_path / "d"))
    for archive in unpacked.glob("*/images/*.gz"):
        with tarfile.open(archive) as tar:
            unpack(tar, archive.parent)
        archive.write_bytes(b"no archive any more")
    after = read("echo4o", unpacked)
    assert told(after) == told(before)
    for one, other in zip(before, after, strict=True):
        assert getattr(one, "images", None) == getattr(other, "images", None)


GPT = "omniedit"


def gpt_image_edit(root: Path) -> Path:
    members: dict[str, bytes] = {}
    for t, task in enumerate(("addition", "style")):
        rows = []
        for n in range(3):
            members |= {
                f"{task}/{side}/{n}.png": picture(100 * t + 10 * n + s) for s, side in enumerate(("input", "output"))
            }
            rows.append({"input": f"input/{n}.png", "output": f"output/{n}.png", "instruction": f"Do {n}",
                         "instruction_original": "old" if n else None})  # fmt: skip
        rows.append({"input": "input/0.png", "output": "output/2.png", "instruction": "Do it, too"})
        members[f"{task}/metadata/{GPT}_{task}.json"] = json.dumps(rows).encode()
    put_tar(root / GPT / f"{GPT}.tar.gz", members, ".part{:02}", 4)
    return root


def test_rows_in_an_archive_are_read_in_place_or_where_they_were_unpacked(tmp_path: Path) -> None:
    root = gpt_image_edit(tmp_path / "c")
    packed = read("gpt_image_edit", root)
    right = ["editing", "editing", "ambiguous_name", "ambiguous_name", "stylization", "stylization"]
    assert told(packed)[:6] == right
    assert sample(packed[1]).source.location == "omniedit/omniedit.tar.gz::addition/metadata/omniedit_addition.json"
    assert [image.data for image in sample(packed[1]).images] == [picture(10), picture(11)]
    assert sample(packed[1]).turns[0].alternatives == ("old",)
    parts = sorted((root / GPT).glob("*.part*"))
    put(tmp_path / "whole.tar.gz", b"".join(part.read_bytes() for part in parts))
    with tarfile.open(tmp_path / "whole.tar.gz") as tar:
        unpack(tar, root / GPT)
    unpacked = read("gpt_image_edit", root)
    assert told(unpacked) == told(packed)
    assert sample(unpacked[1]).source.location == "omniedit/addition/metadata/omniedit_addition.json"
    assert [sample(one).images for one in unpacked[:2]] == [sample(one).images for one in packed[:2]]


def test_lists_of_the_training_repository_name_the_same_images(tmp_path: Path) -> None:
    root = gpt_image_edit(tmp_path / "c")
    rows = [
        {"image": ["style/input/1.png", "style/output/1.png"],
         "conversations": [{"from": "human", "value": "<image>\nDo it"}, {"from": "gpt", "value": "<gen_image>"}]},
        {"image": ["style/input/9.png", "style/output/1.png"],
         "conversations": [{"from": "human", "value": "<image>\nDo it"}, {"from": "gpt", "value": "<gen_image>"}]},
    ]  # fmt: skip
    put(root / "training_json/omniedit_gpt.json", json.dumps(rows))
    found = read("gpt_image_edit_json", root)
    assert told(found) == ["stylization", "missing_picture"]
    assert sample(found[0]).turns[0].instruction == "Do it"
    assert sample(found[0]).images[1].data == picture(111)


def test_rows_in_an_archive_with_a_hole_are_one_refused_file_and_others_are_read(tmp_path: Path) -> None:
    root = gpt_image_edit(tmp_path / "c")
    put_tar(root / "hqedit/hqedit.tar.gz", {
        "edit/input/0.png": picture(1), "edit/output/0.png": picture(2),
        "edit/metadata/hqedit_edit.json": b'{"input": "input/0.png", "output": "output/0.png", "instruction": "Do"}',
    })  # fmt: skip
    (root / GPT / "omniedit.tar.gz.part02").unlink()
    found = read("gpt_image_edit", root)
    assert told(found) == ["editing", "part_missing"]
    refused = found[-1]
    assert isinstance(refused, Rejection)
    assert (refused.row, "part 02 is missing" in refused.message) == (None, True)


def test_rows_in_a_truncated_archive_are_read_as_far_as_they_go_and_it_is_told(tmp_path: Path) -> None:
    root = gpt_image_edit(tmp_path / "c")
    (root / GPT / "omniedit.tar.gz.part03").unlink()
    found = read("gpt_image_edit", root)
    assert told(found)[-1] == "truncated"
    assert found[-1].source == "gpt_image_edit"


def test_the_cache_is_bounded_by_an_option(tmp_path: Path) -> None:
    root = gpt_image_edit(tmp_path / "c")
    with pytest.raises(SourceError, match="cache_gb"):
        read("gpt_image_edit", root, cache_gb="0.000001")


def test_only_folders_that_a_glob_names_are_listed(tmp_path: Path) -> None:
    root = tmp_path / "c"
    for name in ("a/x.tar", "a/b/x.tar", "c(d,e)/images/x.tar.part0", "top.tar", ".hidden/x.tar", "c/deep/er/x.tar"):
        put(root / name, b"")
    folder = data_folder(str(root))

    def found(*globs: str) -> set[str]:
        return {location for location, _ in glob_files(folder, globs)}

    assert found("*.tar") == {"top.tar"}
    assert found("*/*.tar") == {"a/x.tar"}
    assert found("c(d,e)/images/*.tar") == {"c(d,e)/images/x.tar.part0"}
    assert found("**/*.tar") == {"top.tar", "a/x.tar", "a/b/x.tar", "c(d,e)/images/x.tar.part0", "c/deep/er/x.tar"}
    assert found("nothing/*.tar", "*.tar") == {"top.tar"}


def test_masks_of_sam_sgt_come_from_a_second_set_of_tars(tmp_path: Path) -> None:
    root = tmp_path / "c"
    names = [f"sa_{n}" for n in range(5)]
    put(root / "sam_selection/sam_selection-00000.tar", tar_of({
        f"sam_selection/{name}.{end}": picture(n, kind="JPEG") if end == "jpg" else b"{}"
        for n, name in enumerate(names) for end in ("jpg", "json")
    }))  # fmt: skip
    masks = {f"sam_mask/{name}.png": picture(50 + n) for n, name in enumerate(names[:4])}
    put(root / "sam_mask/sam_mask-00000.tar", tar_of(masks | {"sam_mask/sa_3.png": picture(9, (48, 80))}))
    expected = ["segmentation"] * 3 + ["aspect_mismatch", "missing_picture"]
    assert told(read("sam_sgt", root)) == expected  # without a list every image is used
    put(root / "file_names/list.txt", "".join(f"/data/sam_selection/{name}.jpg\n" for name in names))
    found = read("sam_sgt", root)
    assert told(found) == expected
    first = sample(found[0])
    assert [image.kind for image in first.images] == [None, "mask"]
    assert [image.data for image in first.images] == [picture(0, kind="JPEG"), picture(50)]
    assert len({sample(one).turns[0].instruction for one in found[:3]}) > 1
    for tar in ("sam_selection", "sam_mask"):
        with tarfile.open(root / tar / f"{tar}-00000.tar") as file:
            unpack(file, root)
    for path in root.glob("*/*.tar"):
        path.unlink()
    assert told(read("sam_sgt", root.rename(tmp_path / "unpacked"))) == expected


def test_archives_of_a_remote_folder_are_read_as_local_ones(tmp_path: Path) -> None:
    root = gpt_image_edit(tmp_path / "c")
    echo4o(root / "echo")
    local = read("gpt_image_edit", root), read("echo4o", root / "echo")
    store = MemoryFileSystem()
    store.store.clear()
    store.put(f"{root}/", "/far/", recursive=True)
    for layout, place, records in (("gpt_image_edit", "far", local[0]), ("echo4o", "far/echo", local[1])):
        reader = open_source(f"{layout}:memory://{place}?cache={tmp_path}/remote")
        found = [record for fragment in reader.fragments() for record in reader.read(fragment)]
        assert told(found) == told(records)
        assert [getattr(one, "images", None) for one in found] == [getattr(one, "images", None) for one in records]
