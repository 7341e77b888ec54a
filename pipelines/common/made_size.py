"""The size that a model makes where another is asked for: BAGEL's kind has a grid, OmniGen2 stretches to any."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from sigma_data.sequence.layout import Kind
from sigma_model.omnigen2.files import is_omnigen2

if TYPE_CHECKING:
    from sigma_data.sequence.layout import Geometry

Size = tuple[int, int]


def made_size(model: str, base: str | None, size: Size) -> Size:
    """The nearest (width, height) to `size` that a model makes; its weights are not read. Raises SigmaError."""
    return size if is_omnigen2(Path(model)) else _geometry(model, base).fit(Kind.TARGET, size)[0]


def size_told(model: str, asked: Size, made: Size) -> str:
    """A clause that says what was made instead of what was asked for; nothing where that is the same."""
    return "" if asked == made else f"{show_size(asked)} is not a size of {model}: made {show_size(made)}"


def show_size(size: Size) -> str:
    """As `--size` takes it: 1024x768."""
    return f"{size[0]}x{size[1]}"


@lru_cache(16)
def _geometry(model: str, base: str | None) -> Geometry:
    from sigma_model.loading import describe_model

    return describe_model(model, base=base).geometry
