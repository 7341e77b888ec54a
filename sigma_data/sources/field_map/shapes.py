"""From a row to drafts of samples: what is asked, of which images, by words and values alone.

A draft names images by what the row holds of them; `samples` reads them. So the drafts of a survey cost no image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from sigma_data.sample import Family, ImageKind
from sigma_data.sources.field_map.filters import family_of
from sigma_data.sources.field_map.images import Scope
from sigma_data.sources.field_map.schema import Conversation, Fields, ImageField, RowLayout
from sigma_data.sources.field_map.values import ABSENT, Row, RowFault, is_empty, look_up, spelled, texts


@dataclass(slots=True)  # not frozen: several are made of every row
class DraftImage:
    """An image as a row names it: bytes, a path, a struct of both, or None.

    `side` is the part that is meant: the left or right half, or the square inside a border of so many pixels. `scope`
    is where it lies, if elsewhere than the images of its row.
    """

    value: Any
    field: str
    null: Literal["empty", "missing"] = "missing"
    kind: ImageKind | None = None
    label: str | None = None
    side: Literal["left", "right"] | None = None
    border: int | None = None
    scope: Scope | None = None


@dataclass(slots=True)
class DraftTurn:
    """A turn: phrasings of what is asked, the first of them the instruction, and the image or words to produce.

    `takes` are the images that it begins with, where the row says so: each must be one that was shown before.
    """

    instructions: tuple[str, ...]
    target: DraftImage | None = None
    response: str | None = None
    takes: tuple[DraftImage, ...] = ()


@dataclass(slots=True)
class Draft:
    """A sample whose images are not read yet. `suffix` tells samples of one row apart."""

    family: Family
    references: tuple[DraftImage, ...]
    turns: tuple[DraftTurn, ...]
    family_inferred: bool = False
    suffix: str = ""


def drafts(layout: RowLayout, row: Row) -> list[Draft]:
    """The drafts of a row that stands for itself. Raises RowFault."""
    if layout.conversation is not None:
        return [_conversation(layout, layout.conversation, row)]
    if layout.composite is not None:
        return _directions(layout, row)
    references, target = images_of(layout, row)
    turn = DraftTurn(instructions_of(layout.fields, row), target)
    family, inferred = family_of(layout.family, row)
    if not references:  # text to image: a layout sample once a condition is computed
        family, inferred = Family.LAYOUT, False
    found = [Draft(family, references, (turn,), inferred)]
    if layout.fields.reverse is not None and len(references) == 1:
        said = look_up(row, layout.fields.reverse)
        back = _stripped(layout.fields, texts(said, layout.fields.reverse)) if said is not ABSENT else []
        if back:
            found.append(Draft(family, (target,), (DraftTurn((back[0],), references[0]),), inferred, "#reverse"))
    return found


def instructions_of(fields: Fields, row: Row) -> tuple[str, ...]:
    """The instruction and its alternatives. Raises RowFault `bad_fields` or `empty_instruction`."""
    if fields.say:
        return fields.say
    found: list[str] = []
    known = False
    named = look_up(row, fields.instruction_from) if fields.instruction_from else None
    for name in [*([named] if isinstance(named, str) and named in row else []), *fields.instruction]:
        value = look_up(row, name)
        known = known or value is not ABSENT
        if value is not ABSENT and (found := _stripped(fields, texts(value, name, from_json=name in fields.json_text))):
            break
    if not known:
        raise RowFault("bad_fields", f"no field {' or '.join(fields.instruction)}, but {_keys(row)}")
    if not found:
        raise RowFault("empty_instruction", f"no words in {' or '.join(fields.instruction)}")
    for name in fields.alternatives:
        if (value := look_up(row, name)) is not ABSENT:
            found += _stripped(fields, texts(value, name, from_json=name in fields.json_text))
    return tuple(dict.fromkeys(found))


def _stripped(fields: Fields, found: list[str]) -> list[str]:
    if fields.strip is None:
        return found
    cut = [re.sub(fields.strip, "", text).strip() for text in found]
    return [text for text in cut if not is_empty(text)]


def images_of(layout: RowLayout, row: Row) -> tuple[tuple[DraftImage, ...], DraftImage]:
    """The references and the target of a row. Raises RowFault."""
    fields = layout.fields
    references: list[DraftImage] = []
    for field in fields.references:
        value = look_up(row, field.field)
        if value is not ABSENT:
            references += _images(layout, field, value, row)
        elif layout.format == "webdataset":
            raise RowFault("missing_picture", f"no member {field.field} beside {_keys(row)}")
        elif not fields.text_to_image:
            raise RowFault("bad_fields", f"no field {field.field}, but {_keys(row)}")
    if fields.last_is_target:
        if not references:
            raise RowFault("missing_picture", "the row names no image")
        return tuple(references[:-1]), references[-1]
    if fields.target is None:
        raise RowFault("bad_fields", "the map names no target")
    return tuple(references), one_image(layout, fields.target, row)


def one_image(layout: RowLayout, field: ImageField, row: Row) -> DraftImage:
    """The image of a field that holds just one. Raises RowFault."""
    value = look_up(row, field.field)
    if value is ABSENT:
        code = "missing_picture" if layout.format == "webdataset" else "bad_fields"
        raise RowFault(code, f"no field {field.field}, but {_keys(row)}")
    found = _images(layout, field, value, row)
    if len(found) != 1:
        raise RowFault("bad_fields", f"{field.field} names {len(found)} images, not one")
    return found[0]


def images_in(layout: RowLayout, field: ImageField, row: Row) -> list[DraftImage]:
    """The images of a field. Raises RowFault `bad_fields` where the row has no such field."""
    value = look_up(row, field.field)
    if value is ABSENT:
        raise RowFault("bad_fields", f"no field {field.field}, but {_keys(row)}")
    return _images(layout, field, value, row)


def _images(layout: RowLayout, field: ImageField, value: Any, row: Row) -> list[DraftImage]:
    """The images of a field: one, or those of a list."""
    lost: Literal["empty", "missing"] = "empty" if layout.images.origin == "bytes" else "missing"
    null = field.if_null or lost
    lost = null if null != "none" else lost
    if value is None and (null == "none" or (layout.fields.text_to_image and field is not layout.fields.target)):
        return []
    values = list(value) if isinstance(value, list | tuple) else [value]
    label = look_up(row, field.label) if field.label else None
    kind = field.kind
    if field.kind_by is not None:
        kind = field.spelled_kinds.get(spelled(look_up(row, field.kind_by)), kind)
    words = label.strip() if isinstance(label, str) and not is_empty(label) else None
    found = []
    for item in values:
        if not (item is None or isinstance(item, str | bytes) or _is_struct(item)):
            raise RowFault("bad_fields", f"{field.field} holds {type(item).__name__}, not an image")
        if isinstance(item, str) and is_null_path(item):
            item = None
        if null == "none" and (
            item is None or (isinstance(item, dict) and all(part is None for part in item.values()))
        ):
            continue
        if isinstance(item, str):
            for pattern, replacement in field.change:
                item = re.sub(pattern, replacement, item)
        found.append(DraftImage(item, field.field, lost, kind, words))
    return found


def is_null_path(text: str) -> bool:
    """Whether a path is a word for none."""
    return text.strip().lower() in ("", "none", "null", "nan")


def _is_struct(value: Any) -> bool:
    return isinstance(value, dict) and ("bytes" in value or "path" in value)


def _keys(row: Row) -> str:
    return ", ".join(str(key) for key in row)[:200] or "nothing"


def _conversation(layout: RowLayout, spec: Conversation, row: Row) -> Draft:
    """Questions and answers. `<image>` is the next image, counted through all turns."""
    for name in spec.refuse:
        if look_up(row, name) not in (ABSENT, None):
            raise RowFault("bad_fields", f"the row has {name}, which is not read")
    references: list[DraftImage] = []
    for field in layout.fields.references:
        value = look_up(row, field.field)
        if value is not ABSENT:
            references += _images(layout, field.model_copy(update={"if_null": "none"}), value, row)
    said = look_up(row, spec.field)
    if not isinstance(said, Sequence) or isinstance(said, str | bytes) or not said:
        raise RowFault("bad_fields", f"{spec.field} is no list of turns")
    turns: list[DraftTurn] = []
    asked: str | None = None
    seen = 0
    for item in said:
        speaker = look_up(item, spec.speaker) if isinstance(item, dict) else ABSENT
        text = look_up(item, spec.text) if isinstance(item, dict) else ABSENT
        if not isinstance(speaker, str) or not (text is None or isinstance(text, str)):
            raise RowFault("bad_fields", f"a turn of {spec.field} lacks {spec.speaker} or {spec.text}")
        text = (text or "").strip()
        if speaker in spec.leave_out:
            continue
        if speaker in spec.human:
            if asked is not None:
                raise RowFault("no_answer", "a question has no answer")
            asked, seen = numbered(text, seen)
        elif speaker in spec.answer:
            if asked is None:
                raise RowFault("turns_mismatch", "an answer has no question")
            if not text:
                raise RowFault("no_answer", "a question has an empty answer")
            turns.append(DraftTurn((asked,), response=text))
            asked = None
        else:
            raise RowFault("bad_fields", f"{speaker[:40]!r} speaks in {spec.field}, which the map does not know")
    if asked is not None or not turns:
        raise RowFault("no_answer", "the last question has no answer" if turns or asked else "no question")
    if seen > len(references):
        raise RowFault("placeholder_without_picture", f"{seen} <image> and {len(references)} images")
    if any(not re.sub(r"<image_[0-9]+>", "", turn.instructions[0]).strip() for turn in turns):
        raise RowFault("empty_instruction", "a question has no words")
    family, inferred = family_of(layout.family, row)
    return Draft(family, tuple(references), tuple(turns), inferred)


def numbered(text: str, seen: int) -> tuple[str, int]:
    """The text with every bare `<image>` numbered on from `seen`, and how many there are by now."""

    def number(_: re.Match[str]) -> str:
        nonlocal seen
        seen += 1
        return f"<image_{seen}>"

    return re.sub(r"<image>", number, text), seen


_SIDES: tuple[tuple[Literal["left", "right"], Literal["left", "right"]], ...] = (("left", "right"), ("right", "left"))


def _directions(layout: RowLayout, row: Row) -> list[Draft]:
    """A sample for each direction of a composite."""
    spec = layout.composite
    assert spec is not None
    image = one_image(layout, spec.field, row)
    label = look_up(row, spec.label) if spec.label else None
    family, inferred = family_of(layout.family, row)
    found = []
    for side, other in _SIDES:
        name = getattr(spec, side)
        if name is None:
            continue
        instructions = instructions_of(Fields(instruction=(name,), strip=layout.fields.strip), row)
        words_for = label.strip() if isinstance(label, str) and not is_empty(label) else None
        reference = replace(image, side=other, border=spec.border, label=words_for)
        target = replace(image, side=side, border=spec.border)
        turn = DraftTurn(instructions, target)
        found.append(Draft(family, (reference,), (turn,), inferred, suffix=f"#{side}"))
    return found
