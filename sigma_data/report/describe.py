"""A sample as coloured text for a terminal, whatever it holds (missing images, long text, control characters)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from sigma_data.images.decode import ImageFault, open_image, probe
from sigma_data.images.image_info import ImageInfo
from sigma_data.instruction import Attribute, Part, Placeholder, Text, parse
from sigma_data.sample import Image, Sample, Turn
from sigma_data.token_style import TOKEN_COLOURS, printable

if TYPE_CHECKING:
    from rich.text import Text as RichText


def describe(sample: Sample, infos: Mapping[int, ImageInfo] | None = None) -> RichText:
    """The sample as coloured text; `str()` of it is readable without colours.

    `infos` are those of `sigma_data.corpus.checks.examine`; without them the image headers are read.
    """
    from rich.text import Text as RichText

    out = RichText()
    out.append(printable(sample.id), style="bold").append(f"  {sample.family}", style="bold")
    if sample.family_inferred:
        out.append(" (inferred)", style="dim")
    source = sample.source
    out.append(printable(f"\n{source.name}, {source.location}, row {source.row}, license {source.license}\n"), "dim")
    for index, turn in enumerate(sample.turns):
        heading = "instruction" if len(sample.turns) == 1 else f"turn {index + 1}"
        out.append(f"\n{heading}\n", style="bold")
        _describe_turn(out, sample, index, turn)
    if not sample.turns:
        out.append("\nno turns\n", style="bold")
    out.append("\nimages\n" if sample.images else "\nno images\n", style="bold")
    targets = set(sample.targets)
    for image in sample.images:
        role = "target" if image.number in targets else "reference"
        size = f"{len(image.data):,} bytes" if image.data else ""
        out.append(f"  {image.number:>2}  {role:<9}  ").append(f"{_image_info(image, infos)}  {size}".rstrip() + "\n")
    if sample.truth is not None:
        out.append("\ntruth\n", style="bold")
        for line in _truth(sample.truth):
            out.append(f"  {printable(line)}\n")
    out.rstrip()
    return out


def _describe_turn(out: RichText, sample: Sample, index: int, turn: Turn) -> None:
    references = len(sample.references)
    instruction = parse(turn.instruction, references=references)
    out.append("  ")
    _append_parts(out, instruction.parts)
    out.append("\n")
    named = set(instruction.placeholders)
    before = tuple(number for number in sample.context(index) if number not in named)
    groups = instruction.groups(before=before, bindings=dict(turn.bindings))
    for name, number in zip(instruction.attributes, groups, strict=True):
        out.append("    ").append(f"<{name}>", style=f"bold {TOKEN_COLOURS[name]}")
        out.append(" refers to no image\n" if number is None else f" refers to image {number}\n")
    for text in turn.alternatives:
        out.append("  or: ", style="dim")
        _append_parts(out, parse(text, references=references).parts)
        out.append("\n")
    if turn.target is not None:
        out.append("  target ", style="dim").append(f"image {turn.target}\n")
    if turn.response is not None:
        out.append("  response ", style="dim").append(printable(turn.response).replace("\n", "\n  ") + "\n")
    if turn.target is None and turn.response is None:
        out.append("  no target and no response\n", style="dim")


def _append_parts(out: RichText, parts: Sequence[Part]) -> None:
    for part in parts:
        match part:
            case Text(text):
                out.append(printable(text).replace("\n", "\n  "))
            case Attribute(name):
                out.append(f"<{name}>", style=f"bold {TOKEN_COLOURS[name]}")
            case Placeholder(number):
                out.append(f"<image_{number}>", style="bold underline")


def _image_info(image: Image, infos: Mapping[int, ImageInfo] | None) -> str:
    try:
        # An image without info is faulty, and only decoding it tells how.
        known = None if infos is None else infos.get(image.number) or probe(image.data)
        header = known or open_image(image.data)
    except ImageFault as fault:
        return fault.message
    shown = f"  values {image.value_range}" if image.value_range is not None else ""
    return f"{header.format:<5} {header.width} x {header.height}{shown}"


def _truth(truth: str) -> Iterator[str]:
    try:
        value = json.loads(truth)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        yield truth
        return
    for key, entry in value.items():
        yield f"{key}: {json.dumps(entry, ensure_ascii=False)}"
