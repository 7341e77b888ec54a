"""GenEval: prompts of six tags, four images each; its folder layout, and its score after a detector.

No detector is bundled. Without one the images are written as the official scorer expects them; with one other
than the official Mask2Former the number is of another name.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, Field, ValidationError, model_validator

from pipelines.evaluate.aggregate import MetricInfo
from pipelines.evaluate.benchmarks.base import Benchmark, share
from pipelines.evaluate.benchmarks.geneval_rules import Detection, correct
from pipelines.evaluate.item import Item, Result, Score
from pipelines.evaluate.stored import bytes_of
from sigma_data.errors import ConfigError, reason_of
from sigma_data.images.decode import ImageFault, load

TAGS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")

_BLACK = 512
"""Side in pixels of what is written for a failed image; a detector scales what it is given, so any size does."""

Detector = Callable[[bytes], Sequence[Detection]]
"""An encoded image -> what is in it."""

CORRECT = MetricInfo("geneval-correct", "1", "up", (
    "1 where a detector finds in the picture what the prompt asks for, else 0, by GenEval's rules: scores above 0.3"
    " (counting 0.9), at most 16 objects a class, positions apart by more than 0.1 of the summed sizes."
))  # fmt: skip


class _Demand(BaseModel):
    name: str = Field(alias="class")
    count: int = Field(ge=0)
    color: str | None = None
    position: tuple[Literal["left of", "right of", "above", "below"], int] | None = None


class _Prompt(BaseModel):
    """What must hold of a line of the prompts file."""

    tag: Literal["single_object", "two_object", "counting", "colors", "position", "color_attr"]
    prompt: str = Field(min_length=1)
    include: list[_Demand] = Field(min_length=1)
    exclude: list[_Demand] = []

    @model_validator(mode="after")
    def _earlier(self) -> _Prompt:
        for index, demand in enumerate(self.include):
            if demand.position and not 0 <= demand.position[1] < index:
                raise ValueError(f"the position of include {index} must name an earlier one")
        return self


class GenEval(Benchmark):
    """`path`: GenEval's prompts, a .jsonl file or the folder in which it lies (`evaluation_metadata.jsonl`).

    `images` are made of every prompt. `detector` scores them.
    """

    name = "geneval"
    version = "1"
    answers = "image"
    metrics = (CORRECT,)
    main = dict.fromkeys(TAGS, CORRECT.name)

    def __init__(self, path: str, *, images: int = 4, detector: Detector | None = None) -> None:
        if images < 1:
            raise ConfigError(f"benchmark geneval: images must be at least 1, it is {images}")
        self.images = images
        self.detector = detector
        if detector is None:
            self.skipped = {CORRECT.name: "no detector; score the written folder with GenEval's own scorer"}
        self.prompts = _read(_file(Path(path)))

    def iter_items(self) -> Iterator[Item]:
        """An item an image, `NNNNN-k`."""
        yield from (
            Item(
                id=f"{number:05d}-{image:04d}",
                family=prompt["tag"],
                instruction=prompt["prompt"],
                truth={"metadata": prompt, "number": number, "picture": image},
                question=f"{number:05d}",
            )
            for number, prompt in enumerate(self.prompts)
            for image in range(self.images)
        )

    def own_scores(self, results: Sequence[Result]) -> list[Score]:
        """A failed image is not correct: it scores 0, with the reason. Without a detector there are no scores."""
        return [] if self.detector is None else [_score(result, self.detector) for result in results]

    def summary(self, results: Sequence[Result], scores: Sequence[Score]) -> dict[str, float]:
        """The accuracy of each tag over its images, and `overall`, their plain mean where all six are there."""
        if self.detector is None:
            return {}
        tags = {
            tag: share([result for result in results if result.item.family == tag], scores, CORRECT.name)
            for tag in TAGS
        }
        known = {tag: value for tag, value in tags.items() if value is not None}
        if len(known) == len(TAGS):
            known["overall"] = sum(known.values()) / len(TAGS)
        return known


def _score(result: Result, detector: Detector) -> Score:
    item = result.item
    if result.image is None:
        return Score(item.id, CORRECT.name, 0.0, result.failure or "there is no image")
    return Score(item.id, CORRECT.name, float(correct(item.truth["metadata"], detector(bytes_of(result.image)))))


def write_folder(results: Sequence[Result], folder: Path) -> None:
    """Write `NNNNN/metadata.jsonl` and `NNNNN/samples/KKKK.png` as GenEval's scorer reads them.

    The official scorer divides by the images it finds, so a failed one would be left out of its figures instead
    of counted as wrong. A black image takes its place, in which nothing is to be found.
    """
    from PIL import Image

    for result in results:
        truth = result.item.truth
        place = folder / f"{truth['number']:05d}"
        (place / "samples").mkdir(parents=True, exist_ok=True)
        (place / "metadata.jsonl").write_text(json.dumps(truth["metadata"]) + "\n", "utf-8")
        try:
            image = load(None if result.image is None else bytes_of(result.image))
        except ImageFault:
            image = Image.new("RGB", (_BLACK, _BLACK))
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        (place / "samples" / f"{truth['picture']:04d}.png").write_bytes(buffer.getvalue())


def _file(path: Path) -> Path:
    if path.is_file():
        return path
    if not path.is_dir():
        raise ConfigError(f"benchmark geneval: {path}: no such file or folder")
    official = path / "evaluation_metadata.jsonl"
    found = [official] if official.is_file() else sorted(path.glob("*.jsonl"))
    if len(found) != 1:
        raise ConfigError(f"benchmark geneval: {path}: has {len(found)} .jsonl files; name the file of prompts itself")
    return found[0]


def _read(path: Path) -> list[Mapping[str, Any]]:
    prompts = []
    try:
        # Lines end in \n alone: str.splitlines would also cut at U+2028, which JSON allows inside a text.
        lines = path.read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"benchmark geneval: {path}: cannot be read ({reason_of(error)})") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            prompt = json.loads(line)
            _Prompt.model_validate_json(line, strict=True)  # strict: the line itself is what is used
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise ConfigError(f"benchmark geneval: {path}, line {number}: {where}: {first['msg']}") from None
        except (ValueError, RecursionError) as error:
            raise ConfigError(f"benchmark geneval: {path}, line {number}: is not JSON ({error})") from None
        prompts.append(prompt)
    if not prompts:
        raise ConfigError(f"benchmark geneval: {path}: has no prompts")
    return prompts
