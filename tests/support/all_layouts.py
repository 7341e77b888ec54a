"""A small folder of all corpora that examples/all_layouts.yaml names, each in its publisher's layout."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support import corpora
from support.foreign_layouts import hf_image, write_parquet
from support.image_files import encoded, image_bytes, smooth
from support.layouts import lines, put, put_tar, tar_of

_SHARED = 7_000
"""The image that several corpora have: a leak between splits would show."""


def make_all_layouts(root: Path, rows: int = 4) -> Path:
    """All layouts with about `rows` rows each; in every one of them something is broken, filtered or given twice."""
    corpora.make_release(root / "release", 3 * rows)
    _x2edit(root, rows)
    _json_lists(root, rows)
    _parquet(root, rows)
    _archives(root, rows)
    _trees(root, rows)
    return root


def _image(corpus: int, number: int, **more: Any) -> bytes:
    return image_bytes("jpeg", 1000 * corpus + number, **more)


def _x2edit(root: Path, rows: int) -> None:
    for corpus, name in ((1, "x2edit"), (2, "x2edit_variants")):
        members: dict[str, bytes] = {}
        for n in range(rows):
            row = {"task": ("style_change", "color_change")[n % 2], "instruction": "" if n == 3 else f"Make it {n}"}
            members |= {
                f"{n:05}.1.0.jpg": _image(corpus, n),
                f"{n:05}.2.jpg": _image(corpus, 500 + n),
                f"{n:05}.json": json.dumps(row).encode(),
            }
        second = {f"{rows:05}{end}": members[f"00000{end}"] for end in (".1.0.jpg", ".2.jpg", ".json")}
        put(
            root / name / "X2Edit_data/kontext/0/0.tar", tar_of(members) + tar_of(second)
        )  # the same again: a duplicate


def _json_lists(root: Path, rows: int) -> None:
    names = {f"image/v2v_{n}.png": _image(3, n) for n in range(2 * rows)}
    put_tar(root / "sharegpt4o/text_and_image_to_image_part_0.tar", names)
    put(root / "sharegpt4o/text_and_image_to_image.json", json.dumps([
        {"input_prompt": ("Turn it into a sketch", "Add a hat")[n % 2], "input_image": [f"images/v2v_{n}.png"],
         "output_image": f"images/v2v_{rows + n}.png"} for n in range(rows)
    ]))  # fmt: skip
    for n in range(rows):
        put(root / f"omnigen2_lines/images/{n}_a.jpg", _image(4, n))
        put(root / f"omnigen2_lines/images/{n}_b.jpg", image_bytes("jpeg", _SHARED))
        put(root / f"omnigen2_lines/images/{n}_t.jpg", _image(4, 500 + n))
    put(root / "omnigen2_lines/train.jsonl", lines([
        {"task_type": "ic", "instruction": f"Place the dog of <image_1> beside the cat of <image_2>, {n}", "output_image": f"images/{n}_t.jpg",
         "input_images": [f"images/{n}_a.jpg", f"images/{n}_b.jpg"] if n else []} for n in range(rows)
    ]) + '{"cut": "of')  # fmt: skip


def _parquet(root: Path, rows: int) -> None:
    numbers = range(rows)

    def image(corpus: int, number: int, **more: Any) -> dict[str, Any]:
        return hf_image(_image(corpus, number, **more))

    write_parquet(root / "omniedit/data/train-00000-of-00001.parquet", [
        {"task": ("style", "swap")[n % 2], "src_img": hf_image(image_bytes("jpeg", _SHARED)) if n == 1 else image(5, n),
         "edited_img": image(5, 500 + n), "edited_prompt_list": [f"Do {n}", f"Do it, {n}"],
         "o_score": 5.0 if n == 2 else 9.0} for n in numbers
    ])  # fmt: skip
    write_parquet(root / "subjects200k/data/train-00000-of-00001.parquet", [
        {"image": image(6, n, width=192, height=96),
         "quality_assessment": {"compositeStructure": 5, "objectConsistency": 5 - (n == 2), "imageQuality": 5},
         "description": {"item": "Mug", "description_0": f"A mug, {n}.", "description_1": f"The mug at night, {n}.",
                         "description_valid": True}} for n in numbers
    ])  # fmt: skip
    write_parquet(root / "multigen20m/MultiGen-20M_depth/data/train-00000-of-00001.parquet", [
        {"image": image(7, n, width=96, height=64), "text": f"a place, {n}",
         "control_depth": hf_image(encoded(smooth(7500 + n, 96, 64 if n else 80).convert("L")))} for n in numbers
    ])  # fmt: skip
    write_parquet(root / "bagel_t2i/t2i/chunk_0.parquet", [
        {"image": _image(8, n), "captions": "no JSON" if n == 2 else json.dumps({"a": f"a place, {n}"})} for n in numbers
    ])  # fmt: skip
    write_parquet(root / "llava_onevision/chartqa(cauldron,llava_format)/train-00000-of-00001.parquet", [
        {"id": str(n), "image": image(9, n), "data_source": "x", "conversations": [
            {"from": "human", "value": f"<image>\nWhat, {n}?"}, {"from": "gpt", "value": "" if n == 2 else "A chart."},
        ]} for n in numbers
    ])  # fmt: skip
    prompt = {"prompt": "Remove it", "input_images": ["results/0/original.png"], "output_images": ["results/0/1.png"]}
    files = {
        f"results/{n}/{name}.png": _image(10, 10 * n + p) for n in numbers for p, name in enumerate(("original", "1"))
    }
    put_tar(root / "imgedit/Singleturn/results_replace_part0.tar", files, ".split.{:03}", 3)
    write_parquet(root / "imgedit/Parquet/replace_part0.parquet", [
        {name: [one.replace("/0/", f"/{n}/") for one in value] if isinstance(value, list) else f"{value}, {n}"
         for name, value in prompt.items()} for n in range(rows + 1)
    ])  # fmt: skip


def _archives(root: Path, rows: int) -> None:
    multi = "Multi-Reference-Image"
    images = {
        f"{n:05}{part}.jpg": _image(11, 10 * n + p) for n in range(rows) for p, part in enumerate(("", "_1", "_2"))
    }
    put_tar(root / f"echo4o/{multi}/images/0-5000.tar.gz", images)
    put(root / f"echo4o/{multi}/{multi}.jsonl", lines([
        {"task_type": "ic", "instruction": f"Place both, {n}", "output_image": f"/Echo-4o-Image/{multi}/images/{n:05}.jpg",
         "input_images": [f"/Echo-4o-Image/{multi}/images/{n:05}_{part}.jpg" for part in (1, 2)]} for n in range(rows)
    ]))  # fmt: skip
    for task in ("addition", "style"):
        members = {f"{task}/{side}/{n}.png": _image(12, 10 * n + s + 500 * (task == "style"))
                   for n in range(rows) for s, side in enumerate(("input", "output"))}  # fmt: skip
        table = [{"input": f"input/{n}.png", "output": f"output/{n}.png", "instruction": f"Do {n}", "task": task}
                 for n in range(rows)]  # fmt: skip
        members[f"{task}/metadata/omniedit_{task}.json"] = json.dumps(table).encode()
        put_tar(root / f"gpt_image_edit/{task}/{task}.tar.gz", members, ".part{:02}", 3)
    place = root / "seed_edit/SEED-Data-Edit-Part2-3/multi_turn_editing"
    put_tar(
        place / "images/multi_turn.tar.gz", {f"d/{n}.jpg": _image(13, n) for n in range(3 * rows)}, ".part-{:02}", 3
    )
    put(place / "annotations/split_0.jsonl", lines([
        {"source_image": f"d/{3 * n}.jpg", "instruction_1": f"First {n}", "edit_image_1": f"d/{3 * n + 1}.jpg",
         "instruction_2": None if n == 1 else f"Then {n}", "edit_image_2": f"d/{3 * n + 2}.jpg"} for n in range(rows)
    ]))  # fmt: skip
    names = [f"sa_{n}" for n in range(rows)]
    photos = {f"sam_selection/{name}.jpg": _image(14, n) for n, name in enumerate(names)}
    masks = {f"sam_mask/{name}.png": encoded(smooth(14_500 + n).quantize(8).convert("RGB"))
             for n, name in enumerate(names[1:], 1)}  # fmt: skip
    put(root / "sam_sgt/sam_selection/sam_selection-00000.tar", tar_of(photos))
    put(root / "sam_sgt/sam_mask/sam_mask-00000.tar", tar_of(masks))


def _trees(root: Path, rows: int) -> None:
    nano = root / "nano150k"
    for n in range(rows):
        put(nano / f"Image/orignal/people/{n}.jpg", _image(15, n // 2))  # two edits of one portrait
        put(nano / f"Image/output/action/Run/{n}.jpg", _image(15, 500 + n))
    put(nano / "json/action_cleaned.jsonl", lines([
        {"task_type": "ic", "instruction": "" if n == 3 else f"Let them run, {n}", "general_prompt": "Run",
         "input_images": [f"Nano-150k/Image/orignal/people/{n}.jpg"],
         "output_image": f"Nano-150k/Image/output/action/Run/{n}.jpg"} for n in range(rows)
    ]))  # fmt: skip
    parts = ("cond1", "cond2", "source", "target")
    for n in range(rows):
        for p, part in enumerate(parts):
            put(root / f"relation252k/{n}_{part}.jpg", _image(16, 10 * n + p))
    put(root / "relation252k/data.jsonl", lines([
        {**{part: f"{n}_{part}.jpg" for part in parts}, "text": f"the same, {n}"} for n in range(rows)
    ]))  # fmt: skip
    group = root / "relation252k_raw/1-Old/Group1"
    for n in range(rows):
        put(group / f"{n}.jpg", _image(17, n, width=128, height=64))
    put(group / "labels.json", json.dumps([
        {"img_name": f"{n}.jpg", "edit_instruction": "make it old"} for n in range(rows + 1)
    ]))  # fmt: skip
    for corpus, place, folder in ((18, "llava", "."), (19, "bagel_vlm", "vlm")):
        for n in range(rows):
            put(root / place / folder / f"images/{n}.jpg", _image(corpus, n))
        put(root / place / folder / "llava_ov_si.jsonl", lines([
            {"id": str(n), "image": f"{n}.jpg", "conversations": [
                {"from": "human", "value": f"<image>\nWhat, {n}?"}, {"from": "gpt", "value": f"A thing, {n}."},
            ]} for n in range(rows)
        ]))  # fmt: skip
    for n in range(rows):
        put(root / f"pico_banana/images/positive-edit/{n}.png", _image(20, n))
        put(root / f"pico_banana/openimage_source_images/{n}.jpg", _image(20, 500 + n))
    put(root / "pico_banana/jsonl/sft_with_local_source_image_path.jsonl", lines([
        {"text": f"Do it, {n}", "summarized_text": "do", "output_image": f"images/positive-edit/{n}.png",
         "edit_type": "Add a new object", "local_input_image": f"openimage_source_images/{n}.jpg"} for n in range(rows)
    ]))  # fmt: skip
