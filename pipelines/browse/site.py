"""What every page of `sigma browse` has: an answer, the templates, pages of a long list."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlencode

import jinja2

from sigma_data.images.decode import EXTENSIONS, ImageFault, sniff, thumbnail
from sigma_data.token_style import TARGET_COLOUR, TOKEN_COLOURS

PAGE = 24
_SIDE = 240
_TYPES = {"jpg": "image/jpeg", "tif": "image/tiff"}


class NotFoundError(LookupError):
    """There is no such page."""


def own_file(folder: Path, name: str) -> bytes:
    """A file of a folder. Raises NotFoundError where it leads out of it, for links in a corpus may lead anywhere."""
    path = folder / name
    if not path.resolve().is_relative_to(folder.resolve()):
        raise NotFoundError
    return path.read_bytes()


@dataclass(frozen=True)
class Answer:
    """What is sent. `own_policy`: the page has a content security policy in itself."""

    body: bytes
    kind: str = "text/html; charset=utf-8"
    own_policy: bool = False


class Site(Protocol):
    """What is browsed."""

    def answer(self, path: Sequence[str], query: Mapping[str, str]) -> Answer:
        """The page at a path, in parts. Raises NotFoundError, and SigmaError for what is damaged."""


@dataclass(frozen=True)
class At:
    """A page of a list: what it says, and the addresses before and after it."""

    first: int
    said: str
    before: str
    after: str


def page_of(total: int, query: Mapping[str, str], path: str, size: int = PAGE) -> At:
    """Where in a list of `total` an address is."""
    pages = max(1, math.ceil(total / size))
    page = min(max(1, number(query.get("page", "1"))), pages)
    others = {name: value for name, value in query.items() if name != "page" and value}

    def address(to: int) -> str:
        return f"{path}?{urlencode({**others, 'page': to})}" if 1 <= to <= pages else ""

    first = (page - 1) * size
    said = f"{first + 1:,} to {min(first + size, total):,} of {total:,}" if total else "none"
    return At(first, said, address(page - 1), address(page + 1))


def number(text: str) -> int:
    """A whole number of an address. Raises NotFoundError."""
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise NotFoundError
    return int(text)


def image_answer(data: bytes, *, small: bool = False) -> Answer:
    """An image, or its thumbnail. Raises NotFoundError for bytes that are no image, whatever they are."""
    try:
        kind = EXTENSIONS[sniff(data)]
    except ImageFault:
        raise NotFoundError from None
    if small:
        found = thumbnail(data, _SIDE)
        if found is None:
            raise NotFoundError
        return Answer(found, "image/jpeg")
    return Answer(data, _TYPES.get(kind, f"image/{kind}"))


@cache
def _templates() -> jinja2.Environment:
    folder = files("pipelines.browse")

    def load(name: str) -> str:
        return folder.joinpath(name).read_text("utf-8")

    return jinja2.Environment(
        loader=jinja2.FunctionLoader(load),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> Answer:
    """A page from a template."""
    page = _templates().get_template(template)
    text = page.render(colours=TOKEN_COLOURS, target_colour=TARGET_COLOUR, **values)
    return Answer(text.encode("utf-8", "replace"))
