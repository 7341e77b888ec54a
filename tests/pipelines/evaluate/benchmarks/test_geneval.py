"""GenEval: prompts read strictly, the folder of the official scorer, and the score after detection."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support import image_files

from pipelines.evaluate.benchmarks import open_benchmark
from pipelines.evaluate.benchmarks.geneval import TAGS, write_folder
from pipelines.evaluate.benchmarks.geneval_rules import Box, Detection, correct, relations
from pipelines.evaluate.item import Result
from sigma_data.errors import ConfigError

DOG: Box = (0, 0, 10, 10)


def found(name: str, box: Box = DOG, *, score: float = 0.95, colour: str | None = None) -> Detection:
    return Detection(name, score, box, colour)


def prompt(tag: str, *include: dict[str, Any], **rest: Any) -> dict[str, Any]:
    return {"tag": tag, "include": list(include), "prompt": f"a photo for {tag}", **rest}


def one(name: str, count: int = 1, **rest: Any) -> dict[str, Any]:
    return {"class": name, "count": count, **rest}


@pytest.mark.parametrize(
    ("demand", "detections", "fits"),
    [
        (prompt("single_object", one("dog")), [found("dog", score=0.31)], True),
        (prompt("single_object", one("dog")), [found("dog", score=0.3)], False),
        (prompt("single_object", one("dog")), [found("cat")], False),
        (prompt("two_object", one("dog"), one("cat")), [found("dog"), found("cat")], True),
        (prompt("two_object", one("dog"), one("cat")), [found("dog"), found("dog")], False),
        (prompt("counting", one("dog", 2), exclude=[one("dog", 3)]), [found("dog")] * 2, True),
        (prompt("counting", one("dog", 2), exclude=[one("dog", 3)]), [found("dog")] * 3, False),
        # A third dog that the detector is not sure of does not count, but it would under any other tag.
        (
            prompt("counting", one("dog", 2), exclude=[one("dog", 3)]),
            [*[found("dog")] * 2, found("dog", score=0.9)],
            True,
        ),
        (
            prompt("two_object", one("dog", 2), exclude=[one("dog", 3)]),
            [*[found("dog")] * 2, found("dog", score=0.9)],
            False,
        ),
        (prompt("counting", one("dog", 16)), [found("dog")] * 20, True),
        (prompt("counting", one("dog", 17)), [found("dog")] * 20, False),  # never more than sixteen
        (prompt("colors", one("dog", color="red")), [found("dog", colour="red")], True),
        (prompt("colors", one("dog", color="red")), [found("dog", colour="blue")], False),
        # Only as many as asked for are looked at, the surest first.
        (
            prompt("colors", one("dog", color="red")),
            [found("dog", colour="red", score=0.5), found("dog", colour="blue", score=0.9)],
            False,
        ),
        (
            prompt("color_attr", one("dog", color="red"), one("cat", color="blue")),
            [found("dog", colour="red"), found("cat", colour="blue")],
            True,
        ),
        (
            prompt("color_attr", one("dog", color="red"), one("cat", color="blue")),
            [found("dog", colour="blue"), found("cat", colour="red")],
            False,
        ),
        (
            prompt("position", one("cat"), one("dog", position=["right of", 0])),
            [found("cat"), found("dog", (30, 0, 40, 10))],
            True,
        ),
        (
            prompt("position", one("cat"), one("dog", position=["left of", 0])),
            [found("cat"), found("dog", (30, 0, 40, 10))],
            False,
        ),
        # Without the cat nothing is right of it.
        (prompt("position", one("cat"), one("dog", position=["right of", 0])), [found("dog", (30, 0, 40, 10))], False),
    ],
)
def test_an_image_fits_by_the_official_rules(
    demand: dict[str, Any], detections: Sequence[Detection], fits: bool
) -> None:
    assert correct(demand, detections) is fits
    assert correct(demand, list(reversed(detections))) is fits


@pytest.mark.parametrize(
    ("box", "expected"),
    [
        ((20, 0, 30, 10), {"right of"}),
        ((-20, 0, -10, 10), {"left of"}),
        ((0, -20, 10, -10), {"above"}),
        ((0, 20, 10, 30), {"below"}),
        ((20, 20, 30, 30), {"right of", "below"}),
        ((2, 0, 12, 10), set()),  # 2 apart is not more than a tenth of 10 + 10
        ((4, 0, 14, 10), set()),  # 2 beyond it is no more than half of the 4 between the centres
        ((5, 0, 15, 10), {"right of"}),
        ((0, 0, 10, 10), set()),
    ],
)
def test_positions_follow_centres_and_sizes(box: Box, expected: set[str]) -> None:
    assert relations(box, DOG) == expected


def write(path: Path, prompts: Sequence[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in prompts), "utf-8")
    return path


PROMPTS = [prompt(tag, one("dog")) for tag in TAGS]


def test_every_prompt_is_asked_four_times_under_its_tag(tmp_path: Path) -> None:
    write(tmp_path / "evaluation_metadata.jsonl", PROMPTS)
    items = open_benchmark(f"geneval:{tmp_path}").items()
    assert len(items) == 24 and len({item.id for item in items}) == 24
    assert [item.family for item in items[::4]] == list(TAGS)
    assert items[5].id == "00001-0001" and items[5].instruction == "a photo for two_object"
    assert len(open_benchmark(f"geneval:{tmp_path}", images=1).items()) == 6


def test_overall_is_the_plain_mean_of_the_tags_and_failed_images_count(tmp_path: Path) -> None:
    # Four images each, but the tag counting has two prompts: tags weigh the same whatever their size.
    path = write(tmp_path / "p.jsonl", [*PROMPTS, prompt("counting", one("dog"))])
    dog = image_files.image_bytes("png", 1)
    benchmark = open_benchmark(f"geneval:{path}", detector=lambda data: [found("dog")] if data == dog else [])
    results = []
    for item in benchmark.items():
        number, image = item.truth["number"], item.truth["picture"]
        if number == 0 and image == 0:
            results.append(Result(item, failure="out of memory"))
        elif number == 6:
            results.append(Result(item, image=image_files.image_bytes("png", 2)))
        else:
            results.append(Result(item, image=dog))
    scores = benchmark.own_scores(results)
    assert (scores[0].value, scores[0].reason) == (0.0, "out of memory")
    summary = benchmark.summary(results, scores)
    assert summary["single_object"] == 0.75 and summary["counting"] == 0.5 and summary["position"] == 1.0
    assert summary["overall"] == pytest.approx((0.75 + 0.5 + 4) / 6)


def test_without_a_detector_the_folder_is_written_and_the_metric_skipped(tmp_path: Path) -> None:
    benchmark = open_benchmark(f"geneval:{write(tmp_path / 'p.jsonl', PROMPTS)}")
    jpeg = image_files.image_bytes("jpeg", 1)
    results = [
        Result(item, image=jpeg) if item.truth["picture"] else Result(item, failure="broken")
        for item in benchmark.items()
    ]
    assert benchmark.own_scores(results) == [] and benchmark.summary(results, []) == {}
    assert "no detector" in benchmark.skipped["geneval-correct"]
    write_folder(results, tmp_path / "out")
    assert json.loads((tmp_path / "out/00003/metadata.jsonl").read_text()) == PROMPTS[3]
    assert sorted(path.name for path in (tmp_path / "out/00003/samples").iterdir()) == [
        "0000.png", "0001.png", "0002.png", "0003.png",
    ]  # fmt: skip
    with Image.open(tmp_path / "out/00003/samples/0001.png") as image:
        assert image.format == "PNG" and image.getbbox() is not None


@pytest.mark.parametrize("made", [{"failure": "broken"}, {"image": b"no image"}])
def test_a_failed_image_is_black_in_the_folder_so_that_the_official_scorer_counts_it_as_wrong(
    tmp_path: Path, made: dict[str, Any]
) -> None:
    items = open_benchmark(f"geneval:{write(tmp_path / 'p.jsonl', PROMPTS)}").items()
    write_folder([Result(items[0], **made)], tmp_path / "out")
    with Image.open(tmp_path / "out/00000/samples/0000.png") as image:
        assert (image.format, image.mode, image.getbbox()) == ("PNG", "RGB", None)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 1: is not JSON"),
        ('{"tag": "shapes", "prompt": "p", "include": [{"class": "dog", "count": 1}]}', "line 1: tag"),
        ('{"tag": "colors", "prompt": "p", "include": []}', "line 1: include"),
        (
            '{"tag": "position", "prompt": "p", "include": [{"class": "a", "count": 1, "position": ["above", 0]}]}',
            "must name an earlier one",
        ),
        ("", "has no prompts"),
    ],
)
def test_a_broken_prompts_file_is_named_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "p.jsonl").write_text(line + "\n")
    with pytest.raises(ConfigError, match=message):
        open_benchmark(f"geneval:{tmp_path / 'p.jsonl'}")


@pytest.mark.parametrize(
    "change",
    [{"count": "2"}, {"count": True}, {"count": 2.0}, {"class": 7}, {"color": 1}, {"position": ["above", "0"]}],
)
def test_a_prompt_with_a_value_of_another_type_is_refused_and_not_used_unconverted(
    tmp_path: Path, change: dict[str, Any]
) -> None:
    line = prompt("position", one("cat"), one("dog") | change)
    (tmp_path / "evaluation_metadata.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ConfigError, match="line 1: include.1"):
        open_benchmark(f"geneval:{tmp_path}")


def test_a_line_of_prompts_ends_at_a_newline_and_nowhere_else_and_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    told = [f"a dog{separator}and a cat" for separator in ("\u2028", "\u2029", "\u0085", "\x1c", "\x0b", "\x0c")]
    lines = [json.dumps({**prompt("single_object", one("dog")), "prompt": text}, ensure_ascii=False) for text in told]
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join([*lines, ""]).encode())
    items = open_benchmark(f"geneval:{path}", images=1).items()
    assert [item.instruction for item in items] == told
