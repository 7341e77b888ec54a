"""The document of all settings says what the code says."""

from __future__ import annotations

from pydantic import Field

from sigma_data.settings_base import StrictModel
from tools.write_configuration import DOCUMENT, _table, document


class Example(StrictModel):
    """Settings to write down."""

    rate: float | None = Field(None, gt=0)
    """Learning rate;
    null is none."""
    sizes: tuple[int, ...] = (2, 3)
    plain: bool = True


def test_the_document_is_what_make_docs_writes() -> None:
    assert DOCUMENT.read_text() == document(), "run `make docs`"


def test_every_setting_is_explained() -> None:
    assert not [line for line in document().splitlines() if line.endswith("| |")]


def test_a_setting_has_its_type_its_default_and_its_docstring() -> None:
    assert _table(Example, "part").splitlines()[2:] == [
        "| `part.rate` | number or null > 0 | `null` | Learning rate; null is none. |",
        "| `part.sizes` | list of integer | `[2, 3]` | |",
        "| `part.plain` | `true`, `false` | `true` | |",
    ]
