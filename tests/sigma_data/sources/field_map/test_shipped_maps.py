"""The shipped maps of corpora with images in the rows, on small corpora of their layouts."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from PIL import Image
from support.foreign_layouts import hf_image, records, told, write_lines, write_parquet
from support.image_files import encoded, image_bytes, plain, smooth

from sigma_data.images.decode import open_image
from sigma_data.sample import ImageKind, Rejection, Sample
from sigma_data.sources import open_source

IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def pair(seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    return hf_image(image_bytes(seed=seed)), hf_image(image_bytes(seed=seed + 500))


def samples(spec: str) -> list[Sample]:
    found = records(spec)
    assert all(isinstance(record, Sample) for record in found), found
    return [record for record in found if isinstance(record, Sample)]


# OmniEdit -------------------------------------------------------------------------------------------


def omniedit(folder: Path) -> Path:
    scores = [8.0, 7.0, 6.99, math.nan, math.inf, None, 9.0, 9.0, 9.0]
    texts: list[Any] = [["short", "a long one"], ["one"], *([["text"]] * 4), [], None, ["None", "", "last"]]
    rows = []
    for number, (score, prompts) in enumerate(zip(scores, texts, strict=True)):
        source, target = pair(number)
        task = "style" if number % 2 else "env"
        rows.append(
            {"task": task, "src_img": source, "edited_img": target, "edited_prompt_list": prompts, "o_score": score}
        )
    write_parquet(folder / "data" / "train-00000-of-00001.parquet", rows)
    write_parquet(folder / "data" / "dev-00000-of-00001.parquet", rows)
    return folder


def test_omniedit_filters_by_score_and_takes_the_first_phrasing_that_says_something(tmp_path: Path) -> None:
    spec = f"omniedit:{omniedit(tmp_path)}"
    assert [told(record) for record in records(spec)] == [
        "editing", "stylization", "(low_score)", "(no_score)", "(no_score)", "(no_score)",
        "empty_instruction", "empty_instruction", "editing",
    ]  # fmt: skip
    unfiltered = records(f"{spec}?filters=off")
    assert [told(record) for record in unfiltered].count("editing") == 4
    first, last = unfiltered[0], unfiltered[-1]
    assert isinstance(first, Sample)
    assert isinstance(last, Sample)
    assert (first.turns[0].instruction, first.turns[0].alternatives) == ("short", ("a long one",))
    assert (last.turns[0].instruction, last.turns[0].alternatives) == ("last", ())
    assert json.loads(first.provenance or "") == {"resolved": ["bytes", "bytes"]}
    assert first.source.license == "mit"


def test_the_phrasing_is_an_option(tmp_path: Path) -> None:
    spec = f"omniedit:{omniedit(tmp_path)}"
    (last, *_), (drawn, *_) = records(f"{spec}?phrasing=last"), records(f"{spec}?phrasing=drawn")
    assert isinstance(last, Sample)
    assert isinstance(drawn, Sample)
    assert (last.turns[0].instruction, last.turns[0].alternatives) == ("a long one", ("short",))
    assert {drawn.turns[0].instruction, *drawn.turns[0].alternatives} == {"short", "a long one"}


def test_the_survey_tells_families_licenses_and_filters_without_an_image(tmp_path: Path) -> None:
    reader = open_source(f"omniedit:{omniedit(tmp_path)}?license=other")
    seen = [(one.family, one.code, one.filtered) for one in reader.survey()]
    read = [
        (record.family, None, False) if isinstance(record, Sample) else (record.family, record.code, record.filtered)
        for fragment in reader.fragments()
        for record in reader.read(fragment)
    ]
    assert seen == read
    assert {one.license for one in reader.survey()} == {"other"}


def test_an_image_without_bytes_is_empty_even_if_its_path_is_there(tmp_path: Path) -> None:
    source, target = pair(0)
    (tmp_path / "a.jpg").write_bytes(b"x")
    row = {"task": "env", "edited_prompt_list": ["text"], "o_score": 9.0, "src_img": source}
    rows = [{**row, "edited_img": value} for value in (hf_image(None, "a.jpg"), None, hf_image(b""), target)]
    schema = pa.schema({"task": pa.string(), "edited_prompt_list": pa.list_(pa.string()), "o_score": pa.float64(),
                        "src_img": IMAGE, "edited_img": IMAGE})  # fmt: skip
    write_parquet(tmp_path / "train.parquet", rows, schema=schema)
    assert [told(record) for record in records(f"omniedit:{tmp_path}")] == ["empty", "empty", "empty", "editing"]


# Subjects200K ---------------------------------------------------------------------------------------


def composite(height: int, width: int | None = None) -> dict[str, Any]:
    return hf_image(image_bytes("jpeg", 1, width=width or 2 * height, height=height))


def subject(image: dict[str, Any], score: int | None = 5, valid: bool | None = True, **more: Any) -> dict[str, Any]:
    quality = {"compositeStructure": 5, "objectConsistency": score, "imageQuality": 5}
    description = {
        "item": "Mug",
        "description_0": "A mug.",
        "description_1": "The mug at night.",
        "description_valid": valid,
    }
    return {"image": image, "quality_assessment": quality, "description": description, **more}


def test_subjects200k_cuts_composites_and_gives_both_directions(tmp_path: Path) -> None:
    rows = [
        subject(composite(96)),
        subject(composite(96), score=4),
        subject(composite(96), score=None),
        subject(composite(96), valid=False),
        subject(composite(96, 190)),
        subject(composite(16)),
        subject(hf_image(b"not an image")),
        {**subject(composite(128), valid=None)},
        {**subject(composite(96)), "quality_assessment": None},
    ]
    write_parquet(tmp_path / "data" / "train.parquet", rows)
    found = records(f"subjects200k:{tmp_path}")
    assert [told(record) for record in found] == [
        "compositional", "compositional", "(low_score)", "(no_score)", "(invalid_description)", "bad_composite",
        "bad_composite", "bad_composite", "bad_composite", "wrong_type", "wrong_type",
        "compositional", "compositional", "(no_score)",
    ]  # fmt: skip
    left, right = found[:2]
    assert isinstance(left, Sample)
    assert isinstance(right, Sample)
    assert left.id != right.id
    assert (left.source.row, left.source.location) == (0, "data/train.parquet#left")
    assert left.turns[0].instruction == "A mug."
    assert right.turns[0].instruction == "The mug at night."
    assert [image.label for image in left.images] == ["Mug", None]
    assert [image.data for image in left.images] == [image.data for image in right.images][::-1]
    assert {open_image(image.data).size for image in left.images} == {(80, 80)}
    whole = open_image(rows[0]["image"]["bytes"]).convert("RGB")
    assert open_image(left.images[1].data).tobytes() == whole.crop((8, 8, 88, 88)).tobytes()
    assert open_image(left.images[0].data).tobytes() == whole.crop((96, 8, 176, 88)).tobytes()


# MultiGen-20M, BAGEL --------------------------------------------------------------------------------


def test_multigen_takes_a_depth_map_of_the_same_aspect_that_shows_something(tmp_path: Path) -> None:
    image = hf_image(image_bytes(seed=1, width=200, height=150))
    maps = [
        encoded(smooth(2, 200, 150).convert("L")),
        encoded(smooth(2, 100, 75)),
        encoded(smooth(2, 200, 148)),
        encoded(smooth(2, 200, 145)),
        plain(200, 150),
        None,
        encoded(smooth(2, 200, 150))[:200],
    ]
    rows = [{"image": image, "control_depth": hf_image(data), "text": "a place"} for data in maps]
    write_parquet(tmp_path / "MultiGen-20M_depth" / "data" / "train.parquet", [*rows, {**rows[0], "text": " "}])
    write_parquet(tmp_path / "MultiGen-20M_train" / "data" / "train.parquet", [{"text": "a place", "image": image}])
    write_parquet(tmp_path / "MultiGen-20M_canny_eval" / "data" / "train.parquet", rows)
    found = records(f"multigen20m:{tmp_path}")
    assert [told(record) for record in found] == [
        "layout", "layout", "layout", "aspect_mismatch", "blank_condition", "empty", "truncated", "empty_instruction",
        "layout",
    ]  # fmt: skip
    depth, computed = found[0], found[-1]
    assert isinstance(depth, Sample)
    assert isinstance(computed, Sample)
    assert [image.kind for image in depth.images] == [ImageKind.DEPTH, None]
    assert (computed.references, computed.targets) == ((), (1,))


def test_bagel_text_to_image_has_captions_in_json(tmp_path: Path) -> None:
    data = image_bytes()
    captions = ['{"short": "a", "long": "b c"}', "a cat", "{}", '["x"]', '{"a": 3}', "3", '{"a": "None", "b": "d"}']
    write_parquet(tmp_path / "t2i" / "chunk_0.parquet", [{"image": data, "captions": text} for text in captions])
    found = records(f"bagel_t2i:{tmp_path}")
    assert [told(record) for record in found] == [
        "layout", "bad_fields", "empty_instruction", "layout", "bad_fields", "bad_fields", "layout"
    ]  # fmt: skip
    assert isinstance(found[0], Sample)
    assert found[0].turns[0].alternatives == ("b c",)


# LLaVA-OneVision ------------------------------------------------------------------------------------


def said(*texts: str | None, speakers: tuple[str, ...] = ("human", "gpt")) -> list[dict[str, Any]]:
    return [{"from": speakers[index % len(speakers)], "value": text} for index, text in enumerate(texts)]


CONVERSATIONS: list[tuple[list[dict[str, Any]], bool, str]] = [
    (said("<image>\nWhat?", "A cat."), True, "understanding"),
    (said("What?", "A cat.", "Where?", "Here."), True, "understanding"),
    (said("What?", "A cat."), False, "understanding"),
    (said("What?", ""), True, "no_answer"),
    (said("What?", None), True, "no_answer"),
    (said("What?"), True, "no_answer"),
    (said("What?", "A cat.", "Where?"), True, "no_answer"),
    (said("What?", "Who?", "me", speakers=("human", "human", "gpt")), True, "no_answer"),
    (said("An answer", "What?", speakers=("gpt", "human")), True, "turns_mismatch"),
    (said("Be kind.", "What?", "A cat.", speakers=("system", "human", "gpt")), True, "understanding"),
    (said("<image>\n<image>\nWhat?", "A cat."), True, "placeholder_without_picture"),
    (said("<image>\nWhat?", "A.", "<image>\nAnd?", "B."), True, "placeholder_without_picture"),
    (said("<image>\nWhat?", "A cat."), False, "placeholder_without_picture"),
    (said("<image>", "A cat."), True, "empty_instruction"),
    (said("What?", "A cat.", speakers=("human", "robot")), True, "bad_fields"),
    ([], True, "bad_fields"),
    (said("What?", speakers=("gpt",)), True, "turns_mismatch"),
]


def test_an_image_of_which_only_a_path_is_left_is_empty(tmp_path: Path) -> None:
    turn = pa.struct([("from", pa.string()), ("value", pa.string())])
    schema = pa.schema({"image": IMAGE, "conversations": pa.list_(turn)})
    rows = [
        {"image": image, "conversations": said("What?", "A cat.")} for image in (hf_image(None, "a.jpg"), hf_image(b""))
    ]
    write_parquet(tmp_path / "train.parquet", rows, schema=schema)
    assert [told(record) for record in records(f"llava_onevision:{tmp_path}")] == ["empty", "empty"]


@pytest.mark.parametrize("form", ["parquet", "json", "jsonl"])
def test_llava_onevision_is_read_as_parquet_and_as_json(tmp_path: Path, form: str) -> None:
    rows = []
    for number, (conversation, has_image, _) in enumerate(CONVERSATIONS):
        data = image_bytes(seed=number)
        if form != "parquet":
            (tmp_path / "images" / "a").mkdir(parents=True, exist_ok=True)
            (tmp_path / "images" / "a" / f"{number}.jpg").write_bytes(data)
        image: Any = (hf_image(data) if form == "parquet" else f"a/{number}.jpg") if has_image else None
        rows.append({"id": str(number), "image": image, "conversations": conversation})
    if form == "parquet":
        turn = pa.struct([("from", pa.string()), ("value", pa.string())])
        schema = pa.schema({"id": pa.string(), "image": IMAGE, "conversations": pa.list_(turn)})
        write_parquet(tmp_path / "chartqa(cauldron,llava_format)[x]" / "train.parquet", rows, schema=schema)
    elif form == "json":
        (tmp_path / "annotations").mkdir()
        (tmp_path / "annotations" / "all_data.json").write_text(json.dumps(rows, indent=1))
    else:
        write_lines(tmp_path / "annotations" / "all_data.jsonl", rows)
    found = records(f"llava_onevision:{tmp_path}")
    assert [told(record) for record in found] == [expected for *_, expected in CONVERSATIONS]
    first, second, third = found[:3]
    assert isinstance(first, Sample)
    assert isinstance(second, Sample)
    assert isinstance(third, Sample)
    assert first.turns[0].instruction == "<image_1>\nWhat?"
    assert [turn.response for turn in second.turns] == ["A cat.", "Here."]
    assert second.references == (1,)
    assert third.images == ()
    assert isinstance(found[9], Sample)
    assert len(found[9].turns) == 1


# HQ-Edit, AnyEdit, UltraEdit ------------------------------------------------------------------------


def test_hq_edit_gives_the_reverse_edit_too(tmp_path: Path) -> None:
    source, target = pair(1)
    row = {"input_image": source, "output_image": target, "edit": "make it night", "inverse_edit": "make it day",
           "input": "a street", "output": "a street at night"}  # fmt: skip
    write_parquet(tmp_path / "data" / "train.parquet", [row, {**row, "inverse_edit": None}, {**row, "edit": ""}])
    found = records(f"hq_edit:{tmp_path}")
    assert [told(record) for record in found] == ["editing", "editing", "editing", "empty_instruction"]
    forth, back = found[:2]
    assert isinstance(forth, Sample)
    assert isinstance(back, Sample)
    assert back.turns[0].instruction == "make it day"
    assert [image.data for image in back.images] == [image.data for image in forth.images][::-1]
    assert back.id != forth.id


def test_anyedit_has_a_second_reference_for_visual_edits(tmp_path: Path) -> None:
    source, target = pair(1)
    row = {"image_file": source, "edited_file": target, "edit_instruction": "do it", "input": "x", "output": "y"}
    rows = [
        {**row, "edit_type": "visual_depth", "visual_input": hf_image(image_bytes(seed=7))},
        {**row, "edit_type": "style_change", "visual_input": None},
        {**row, "edit_type": "color_alter", "visual_input": hf_image(None)},
    ]
    write_parquet(tmp_path / "data" / "train.parquet", rows)
    depth, style, plain_edit = samples(f"anyedit:{tmp_path}")
    assert [image.kind for image in depth.images] == [None, ImageKind.DEPTH, None]
    assert [one.family.value for one in (depth, style, plain_edit)] == ["editing", "stylization", "editing"]
    assert [len(one.images) for one in (depth, style, plain_edit)] == [3, 2, 2]


def test_ultraedit_has_no_mask_among_its_references(tmp_path: Path) -> None:
    source, target = pair(1)
    row = {"source_image": source, "edited_image": target, "edit_prompt": "do it", "mask_image": source}
    write_parquet(tmp_path / "data" / "FreeForm_0.parquet", [row])
    assert [len(sample.images) for sample in samples(f"ultraedit:{tmp_path}")] == [2]


# MagicBrush -----------------------------------------------------------------------------------------


def test_magicbrush_turns_of_one_image_are_one_sample(tmp_path: Path) -> None:
    images = [image_bytes("png", seed) for seed in range(40)]

    def turn(image: str, index: int, source: int, target: int, text: str = "do it") -> dict[str, Any]:
        return {"img_id": image, "turn_index": index, "source_img": hf_image(images[source]), "mask_img": None,
                "target_img": hf_image(images[target]), "instruction": text}  # fmt: skip

    rows = [
        turn("a", 1, 0, 1), turn("a", 2, 1, 2), turn("a", 3, 2, 3),
        turn("b", 1, 4, 5),
        turn("c", 1, 6, 7), turn("c", 2, 8, 9),  # does not go on from the target before
        turn("d", 1, 10, 11), turn("d", 3, 12, 13),  # a hole
        turn("e", 1, 14, 15), turn("e", 2, 15, 16, " "), turn("e", 3, 16, 17),
        *(row for n in range(40) for row in (turn(f"f{n}", 1, 18, 19), turn(f"f{n}", 2, 19, 20))),
    ]  # fmt: skip
    schema = pa.schema({"img_id": pa.string(), "turn_index": pa.int32(), "source_img": IMAGE, "mask_img": IMAGE,
                        "target_img": IMAGE, "instruction": pa.string()})  # fmt: skip
    for group in (1, 3, 33, 100):
        write_parquet(tmp_path / "data" / "train.parquet", rows, group=group, schema=schema)
        found = records(f"magicbrush:{tmp_path}")
        turns = [len(record.turns) if isinstance(record, Sample) else record.code for record in found]
        assert turns[:9] == [3, 1, 1, 1, 1, 1, 1, "empty_instruction", 1]
        assert turns[9:] == [2] * 40
        assert [one.source.row if isinstance(one, Sample) else one.row for one in found[:6]] == [0, 3, 4, 5, 6, 7]
        first = found[0]
        assert isinstance(first, Sample)
        assert (first.references, first.targets) == ((1,), (2, 3, 4))
        assert [one.code for one in open_source(f"magicbrush:{tmp_path}").survey()][:1] == [None]


# Relation252K ---------------------------------------------------------------------------------------


def relation(folder: Path, name: str, seeds: list[int | None], width: int = 96) -> None:
    (folder / name).mkdir(parents=True, exist_ok=True)
    rows = []
    for number, seed in enumerate(seeds):
        rows.append({"img_name": f"{number}.jpg", "edit_instruction": f"as {name.split('/')[0]}"})
        if seed is not None:
            (folder / name / f"{number}.jpg").write_bytes(image_bytes(seed=seed, width=width, height=48))
    (folder / name / "labels.json").write_text(json.dumps(rows))


def test_relation252k_makes_each_pair_once_query_and_once_demonstration(tmp_path: Path) -> None:
    relation(tmp_path, "1-Old/Group1", [1, 2, None, 3])
    relation(tmp_path, "1-Old/Group2", [4], width=97)
    relation(tmp_path, "2-One/Group1", [5])
    relation(tmp_path, "3-Same/Group1", [6, 6])
    relation(tmp_path, "4-Still/Group1", [7])
    still = encoded(Image.new("RGB", (96, 48), "#336699"))
    (tmp_path / "4-Still" / "Group1" / "0.jpg").write_bytes(still)  # nothing was edited
    (tmp_path / "1-Old" / "Group1" / "3.jpg").write_bytes(b"GIF89a")
    found = records(f"relation252k_raw:{tmp_path}")
    assert sorted(told(record) for record in found) == [
        "(single_pair)", "(single_pair)", "(single_pair)", "missing_picture", "relation", "relation", "relation",
        "target_equals_reference", "undecodable",
    ]  # fmt: skip
    quadruples = [record for record in found if isinstance(record, Sample)]
    queries = [[image.data for image in sample.images[2:]] for sample in quadruples]
    shown = [[image.data for image in sample.images[:2]] for sample in quadruples]
    assert sorted(queries) == sorted(shown)
    assert all(query != other for query, other in zip(queries, shown, strict=True))
    assert all(sample.targets == (4,) for sample in quadruples)
    (odd,) = [sample for sample in quadruples if "Group2" in sample.source.location]
    assert [open_image(image.data).size for image in odd.images[2:]] == [(48, 48), (49, 48)]
    (lost,) = [record for record in found if isinstance(record, Rejection) and record.code == "missing_picture"]
    assert lost.row == 2
    codes = [one.code for one in open_source(f"relation252k_raw:{tmp_path}").survey()]
    assert codes.count("single_pair") == 2  # what only images tell is not surveyed


def test_ready_relations_name_their_four_images(tmp_path: Path) -> None:
    names = ("cond1", "cond2", "source", "target")
    for seed, name in enumerate(names):
        (tmp_path / f"{name}.jpg").write_bytes(image_bytes(seed=seed))
    row = {**{name: f"{name}.jpg" for name in names}, "text": "the same again"}
    lines = [row, {**row, "target": "gone.jpg"}, {**row, "source": None}, {**row, "cond2": "../x.jpg"}, b"{broken"]
    write_lines(tmp_path / "data.jsonl", [*lines, {"text": "a"}, {**row, "target": 3}, {**row, "text": ["", "None"]}])
    assert [told(record) for record in records(f"relation252k:{tmp_path}")] == [
        "relation", "missing_picture", "missing_picture", "unsafe_path", "bad_line", "bad_fields", "bad_fields",
        "empty_instruction",
    ]  # fmt: skip
