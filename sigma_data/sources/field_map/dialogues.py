"""Dialogues that stand in one row: numbered fields, or a list of turns.

Every turn needs words and an image to produce. Turns without either may follow the last one, for tables are as wide as
their longest row; a hole before it is a fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sigma_data.sources.field_map.filters import family_of
from sigma_data.sources.field_map.schema import MOST_TURNS, RowLayout, Turns
from sigma_data.sources.field_map.shapes import Draft, DraftImage, DraftTurn, drafts, images_in, is_null_path
from sigma_data.sources.field_map.values import ABSENT, Row, RowFault, look_up, texts


def drafts_of(layout: RowLayout, row: Row, *, single: bool = False) -> list[Draft]:
    """The drafts of a row; `single`: every turn of a dialogue by itself. Raises RowFault."""
    if layout.turns is None:
        return drafts(layout, row)
    found = dialogue(layout, row)
    return single_turns(layout, found) if single else [found]


def dialogue(layout: RowLayout, row: Row) -> Draft:
    """The draft of a row that is a dialogue. Raises RowFault, `turns_mismatch` where words and images do not fit."""
    spec = layout.turns
    assert spec is not None
    if spec.keyed is not None:
        row = {**row, spec.keyed[0]: _keyed(row, *spec.keyed)}
    found = _listed(layout, spec, row) if spec.each is not None else _numbered(layout, spec, row)
    family, inferred = family_of(layout.family, row)
    return replace(found, family=family, family_inferred=inferred)


def single_turns(layout: RowLayout, draft: Draft) -> list[Draft]:
    """Every turn of a dialogue as a draft of its own: what it takes, else the image before, is its reference."""
    if layout.turns is None or layout.turns.together or len(draft.turns) == 1:
        return [draft]
    found = []
    before = draft.references
    for number, turn in enumerate(draft.turns, 1):
        references = turn.takes or before
        found.append(replace(draft, references=references, turns=(replace(turn, takes=()),), suffix=f"#turn{number}"))
        before = (turn.target,) if turn.target is not None else before
    return found


def _numbered(layout: RowLayout, spec: Turns, row: Row) -> Draft:
    turns: list[tuple[list[str], Any]] = []
    for number in range(1, MOST_TURNS + 2):
        name, target = (_counted(text, number) for text in (spec.instruction, spec.target))
        words = look_up(row, name)
        turns.append((texts(words if words is not ABSENT else None, name), _path(look_up(row, target))))
    if spec.last_target is not None:
        last = _path(look_up(row, spec.last_target))
        count = sum(bool(words) for words, _ in turns)
        if last is None or not count or turns[count - 1][1] is not None:
            raise RowFault("turns_mismatch", f"{count} instructions, and {spec.last_target} does not end them")
        turns[count - 1] = turns[count - 1][0], last
    count = max((number for number, turn in enumerate(turns, 1) if turn[0] or turn[1] is not None), default=0)
    if not count:
        code = "empty_instruction" if look_up(row, spec.target.replace("{n}", "1")) is not ABSENT else "bad_fields"
        raise RowFault(code, "the row has no turn")
    if count > MOST_TURNS:
        raise RowFault("bad_fields", f"more than {MOST_TURNS} turns")
    for number, (words, target_of) in enumerate(turns[:count], 1):
        if not words or target_of is None:
            lacks = "instruction" if not words else "image"
            raise RowFault("turns_mismatch", f"turn {number} of {count} has no {lacks}")
    references = [image for field in layout.fields.references for image in images_in(layout, field, row)]
    return Draft(
        layout.family if isinstance(layout.family, str) else layout.family.default,
        tuple(references),
        tuple(DraftTurn(tuple(words), _image(target)) for words, target in turns[:count]),
    )


def _counted(name: str, number: int) -> str:
    return name.replace("{n}", str(number)).replace("{i}", str(number - 1))


def _listed(layout: RowLayout, spec: Turns, row: Row) -> Draft:
    items = look_up(row, spec.each or "")
    if not isinstance(items, Sequence) or isinstance(items, str | bytes) or not items:
        raise RowFault("bad_fields", f"{spec.each} is no list of turns")
    if len(items) > MOST_TURNS:
        raise RowFault("bad_fields", f"more than {MOST_TURNS} turns")
    rule: list[str] = []
    turns: list[DraftTurn] = []
    references: tuple[DraftImage, ...] = ()
    for number, item in enumerate(items, 1):
        if not isinstance(item, Mapping):
            raise RowFault("bad_fields", f"turn {number} is {type(item).__name__}, not an object")
        words = texts(None if (value := look_up(item, spec.instruction)) is ABSENT else value, spec.instruction)
        takes = _paths(item, spec.takes) if spec.takes else []
        targets = _paths(item, spec.target)
        if not takes and not targets and not turns and words:
            rule += words[:1]  # for all turns that follow
            continue
        if not words:
            raise RowFault("empty_instruction" if len(items) == 1 else "turns_mismatch", f"turn {number} has no words")
        if len(targets) != 1 or (spec.takes and not takes):
            message = f"turn {number} takes {len(takes)} images and produces {len(targets)}"
            raise RowFault("turns_mismatch", message)
        images = tuple(_image(path) for path in takes)
        if not turns:
            references = images
        asked = tuple(" ".join([*rule, text]) for text in words) if not turns else tuple(words)
        turns.append(DraftTurn(asked, _image(targets[0]), takes=images))
    if not turns:
        raise RowFault("turns_mismatch", "no turn has images")
    return Draft(layout.family if isinstance(layout.family, str) else layout.family.default, references, tuple(turns))


def _keyed(row: Row, field: str, key: str, value: str) -> dict[str, Any]:
    items = look_up(row, field)
    if not isinstance(items, Sequence) or isinstance(items, str | bytes):
        raise RowFault("bad_fields", f"{field} is no list")
    found: dict[str, Any] = {}
    for item in items:
        name = look_up(item, key) if isinstance(item, Mapping) else ABSENT
        if not isinstance(name, str) or name in found:
            raise RowFault("bad_fields" if not isinstance(name, str) else "turns_mismatch", f"{field}: {name} twice")
        found[name] = look_up(item, value)
    return found


def _path(value: Any) -> str | None:
    """A path, None where there is none. Raises RowFault `bad_fields` for what is no text."""
    if value is ABSENT or value is None or (isinstance(value, str) and is_null_path(value)):
        return None
    if not isinstance(value, str):
        raise RowFault("bad_fields", f"an image is {type(value).__name__}, not a path")
    return value


def _paths(item: Mapping[str, Any], name: str) -> list[str]:
    value = look_up(item, name)
    values = list(value) if isinstance(value, Sequence) and not isinstance(value, str | bytes) else [value]
    return [path for one in values if (path := _path(one)) is not None]


def _image(path: str) -> DraftImage:
    return DraftImage(path, "turns")
