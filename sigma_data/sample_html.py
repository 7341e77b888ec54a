"""A sample as HTML for notebooks: the instruction with its tokens in their colours, the images small and named.

It takes plain values, so that `Sample` can use it; styles are inline, so that nothing leaks into the page around it.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from html import escape

from sigma_data.images.decode import thumbnail
from sigma_data.token_style import TARGET_COLOUR, TOKEN_COLOURS, instruction_parts, printable

_SIDE = 160
"""Pixels of the longest side of an image that is shown."""


def sample_html(
    title: str,
    facts: str,
    turns: Sequence[tuple[str, int | None, str | None]],
    images: Sequence[tuple[int, bool, bytes | None]],
) -> str:
    """HTML of turns (instruction, number of the target, response) and images (number, whether a target, bytes)."""
    references = sum(not is_target for _, is_target, _ in images)
    lines = [f"<p><b>{_shown(title)}</b><br><small>{_shown(facts)}</small></p>"]
    for instruction, target, response in turns:
        answer = response if response is not None else "no answer" if target is None else f"image {target}"
        lines.append(
            f'<p>{_instruction(instruction, references)} <span style="color:{TARGET_COLOUR}">&rarr; '
            f"{_shown(answer)}</span></p>"
        )
    lines.append("".join(_figure(*image) for image in images))
    return f"<div>{''.join(lines)}</div>"


def _instruction(text: str, references: int) -> str:
    pieces = []
    for kind, words in instruction_parts(text, references):
        if kind == "attribute":
            pieces.append(f'<b style="color:{TOKEN_COLOURS[words]}">&lt;{words}&gt;</b>')
        elif kind == "image":
            pieces.append(f"<b><u>&lt;image_{words}&gt;</u></b>")
        else:
            pieces.append(_shown(words))
    return "".join(pieces)


def _figure(number: int, is_target: bool, data: bytes | None) -> str:
    role = "target" if is_target else "reference"
    small = thumbnail(data, _SIDE)
    name = f"image {number}, {role}"
    colour = TARGET_COLOUR if is_target else "#888"
    inside = (
        f'<img alt="{name}" src="data:image/jpeg;base64,{base64.b64encode(small).decode()}" '
        f'style="border:2px solid {colour}">'
        if small is not None
        else "<i>unreadable</i>"
    )
    return f'<figure style="display:inline-block;margin:4px">{inside}<figcaption>{name}</figcaption></figure>'


def _shown(text: str) -> str:
    return escape(printable(text)).replace("\n", "<br>")
