"""Metrics on embeddings: CLIP, CLIP-I, DINO, style, CLIP-ES and the aesthetic head."""

from __future__ import annotations

import io
from abc import abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np

from pipelines.evaluate.item import Item, Result
from pipelines.evaluate.metrics.base import Floats, Metric, answer_of, image_of
from pipelines.evaluate.metrics.embeddings import Clip, Dino
from pipelines.evaluate.metrics.weights import brief, fetched, unusable
from pipelines.evaluate.stored import bytes_of
from sigma_data.images.decode import load
from sigma_data.instruction import parse
from sigma_data.sample import Family

_SCALE = "-100 to 100"

_GREY = (122, 116, 104)
"""The mean colour of CLIP's training images: zero after its normalisation."""

_HEAD = tuple(f"layers.{number}" for number in (0, 2, 4, 6, 7))
_LAION = "sac+logos+ava1-l14-linearMSE.pth"


class TextLikeness(Metric):
    """CLIP: whether the output shows what the instruction says."""

    name = "CLIP"
    better = "up"
    scale = _SCALE

    def __init__(self, clip: Clip) -> None:
        self._clip = clip
        self.definition = (
            "100 cos(CLIP image embedding of the output, CLIP text embedding of the instruction without attribute "
            f"tokens and placeholders, cut at {clip.max_tokens} tokens). Backbone {clip.value}, its own resizing and "
            "crop."
        )

    def applies(self, item: Item) -> bool:
        return bool(parse(item.instruction).plain)

    def score(self, results: Sequence[Result]) -> list[float]:
        texts = self._clip.texts([parse(result.item.instruction).plain for result in results])
        return _cosines(self._clip.images([image_of(result) for result in results]), texts)


class _Likeness(Metric):
    """100 times the cosine of the output's embedding and that of another image."""

    scale = _SCALE

    def __init__(self, backbone: Clip | Dino, name: str, better: Literal["up", "down"], formula: str) -> None:
        self._embed = backbone.images
        self.name = name
        self.better = better
        self.definition = f"{formula} Backbone {backbone.value}, its own resizing and crop."

    @abstractmethod
    def other(self, result: Result) -> bytes:
        """The encoded image to compare the output with."""

    def score(self, results: Sequence[Result]) -> list[float]:
        outputs = self._embed([image_of(result) for result in results])
        return _cosines(outputs, self._embed([self.other(result) for result in results]))


class AnswerLikeness(_Likeness):
    """CLIP-I and DINO: whether the output looks like the reference answer."""

    def __init__(self, backbone: Clip | Dino) -> None:
        name, kind = ("CLIP-I", "CLIP image") if isinstance(backbone, Clip) else ("DINO", "DINOv2 CLS")
        super().__init__(backbone, name, "up", f"100 cos({kind} embeddings of the output and the reference answer).")

    def applies(self, item: Item) -> bool:
        return item.answer is not None

    def other(self, result: Result) -> bytes:
        return answer_of(result)


class StyleLikeness(_Likeness):
    """Whether the output looks like the style reference, by CLIP."""

    def __init__(self, clip: Clip) -> None:
        formula = "100 cos(CLIP image embeddings of the output and the style reference)."
        super().__init__(clip, "style CLIP-I", "up", formula)

    def applies(self, item: Item) -> bool:
        return item.style > 0

    def other(self, result: Result) -> bytes:
        return bytes_of(result.item.references[result.item.style - 1])


class Exclusivity(_Likeness):
    """CLIP-ES: whether the output leaves out what should not come from the input.

    The input is the reference that a `<select>` token speaks of, else the first. The selected region is known in
    samples of the embedded `world` corpus, whose truth has the box of everything.
    """

    def __init__(self, clip: Clip) -> None:
        formula = (
            "100 cos(CLIP image embeddings of the output and of what should not have been taken): the input with the "
            "selected region painted in CLIP's mean colour, or the whole input where the region is not known. The "
            "formula of the published rows is not published."
        )
        super().__init__(clip, "CLIP-ES", "down", formula)

    def applies(self, item: Item) -> bool:
        return item.family == Family.SELECTIVE and bool(item.references)

    def other(self, result: Result) -> bytes:
        item = result.item
        number = _input(item)
        region = _region(item, number)
        source = bytes_of(item.references[number - 1])
        return source if region is None else _masked(source, region)


class Aesthetic(Metric):
    """AES: the LAION aesthetic head, an affine map in five layers, on CLIP embeddings.

    `value` is a directory or hub repository with the head's one file, safetensors or `.pth` (LAION's own file is
    chosen among several). Raises ConfigError and Unavailable as `weights.fetched` does, and where the head does
    not fit the CLIP model.
    """

    name = "AES"
    better = "up"
    scale = "about 1 to 10"

    def __init__(self, clip: Clip, value: str) -> None:
        self._clip = clip
        self._layers = _head(value, clip)
        self.definition = (
            "LAION's improved aesthetic predictor (linear layers D-1024-128-64-16-1) on the unit CLIP image embedding "
            f"of the output. Backbone {clip.value} (the head was trained on CLIP ViT-L/14), head {value}."
        )

    def applies(self, item: Item) -> bool:
        return True

    def score(self, results: Sequence[Result]) -> list[float]:
        values = self._clip.images([image_of(result) for result in results])
        for weight, bias in self._layers:
            values = values @ weight.T + bias
        return [float(value) for value in values[:, 0]]


def _cosines(first: Floats, second: Floats) -> list[float]:
    return [float(value) for value in 100 * np.einsum("nd,nd->n", first, second)]


def _input(item: Item) -> int:
    """The number of the reference that is selected from."""
    instruction = parse(item.instruction, references=len(item.references))
    tokens = zip(instruction.attributes, instruction.groups(), strict=True)
    numbers = (number for token, number in tokens if token == "select" and number)
    return next((number for number in numbers if number <= len(item.references)), 1)


def _region(item: Item, number: int) -> Sequence[float] | None:
    """Left, top, right, bottom of what is selected in reference `number`, in fractions; None where it is not known."""
    selected = (item.truth.get("change") or {}).get("select")
    if selected is None:
        return None
    objects = item.truth["references"][number - 1]["scene"]["objects"]
    return next((thing["box"] for thing in objects if thing["name"] == selected), None)


def _masked(source: bytes, region: Sequence[float]) -> bytes:
    """The image as PNG with the region painted over, rounded outwards to whole pixels."""
    image = load(source)
    left, top, right, bottom = region
    box = (
        int(np.floor(left * image.width)), int(np.floor(top * image.height)),
        int(np.ceil(right * image.width)), int(np.ceil(bottom * image.height)),
    )  # fmt: skip
    image.paste(_GREY, box)
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def _head(value: str, clip: Clip) -> list[tuple[Floats, Floats]]:
    """Weight [out, in] and bias [out] of each layer."""
    import torch
    from safetensors.torch import load_file

    place = fetched("aesthetic", value)
    try:
        file = _file_of_head(place)
        state = load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
        layers = [
            (state[f"{layer}.weight"].double().numpy(), state[f"{layer}.bias"].double().numpy()) for layer in _HEAD
        ]
    except Exception as error:  # a broken file makes its reader raise anything
        raise unusable("aesthetic", value, f"holds no aesthetic head ({brief(error)})") from None
    sizes = [weight.shape[1] for weight, _ in layers]
    if sizes[0] != clip.width:
        why = f"its head takes embeddings of width {sizes[0]}, and those of {clip.value} have {clip.width}"
        raise unusable("aesthetic", value, why)
    return layers


def _file_of_head(place: Path) -> Path:
    files = sorted([*place.glob("*.safetensors"), *place.glob("*.pth")])
    if len(files) > 1:
        files = [file for file in files if file.name == _LAION]
    if len(files) != 1:
        raise FileNotFoundError("one .safetensors or .pth file must lie there")
    return files[0]
