"""The examples of docs/injection.md are what the rules give."""

from __future__ import annotations

import re

import pytest
from support.places import ROOT

from sigma_data.injection import Reference, Request, inject
from sigma_data.sample import Family

_ROW = re.compile(r"^\| (\w+)(?:, (\d))? \| (.+?) \| (.+?) \|$", re.MULTILINE)
_TABLE = (ROOT / "docs" / "injection.md").read_text().split("<!-- examples -->")[1].split("\n\n")[0]
EXAMPLES = [match for match in _ROW.findall(_TABLE) if match[0] != "family"]


def test_the_page_has_examples() -> None:
    assert len(EXAMPLES) >= 10


@pytest.mark.parametrize(("family", "count", "caption", "instruction"), EXAMPLES)
def test_an_example_is_what_the_rules_give(family: str, count: str, caption: str, instruction: str) -> None:
    references = tuple(Reference(number) for number in range(1, int(count or 1) + 1))
    found = inject(Request(Family(family), caption, references))
    assert instruction == (f"refused: {found.code}" if found.refused else found.instruction)
