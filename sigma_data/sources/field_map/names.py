"""The names of fields that a layout reads, and what to say where rows have other ones."""

from __future__ import annotations

from collections.abc import Collection, Iterator

from sigma_data.sources.base import field_maps
from sigma_data.sources.field_map.load import load_shipped
from sigma_data.sources.field_map.schema import MOST_TURNS, FamilyRule, ImageField, RowLayout


def image_names(layout: RowLayout) -> set[str]:
    """First parts of the names of all fields with images."""
    return {head for field in _image_fields(layout) for head in heads(field.field)}


def value_names(layout: RowLayout) -> set[str]:
    """First parts of the names of all other fields."""
    return {head for name in _value_fields(layout) for head in heads(name)}


def heads(name: str) -> set[str]:
    """The columns that a name may mean: its whole, or any beginning of it that ends before a dot."""
    found = set()
    for one in name.split("|"):
        parts = one.split(".")
        found |= {".".join(parts[:count]) for count in range(1, len(parts) + 1)}
    return found


def missing(layout: RowLayout, keys: Collection[str]) -> list[str]:
    """The fields without which no row of the layout gives a sample, as far as these keys do not have them."""
    return [" or ".join(names) for names in _needed(layout) if not any(heads(name) & set(keys) for name in names)]


def wrong_keys(layout: RowLayout, location: str, keys: Collection[str]) -> str | None:
    """What to say of a file whose rows have other keys than the layout reads; None if they fit, or none are known."""
    lacking = missing(layout, keys) if keys else []
    if layout.format == "webdataset" and len(lacking) < len(list(_needed(layout))):
        return None  # the members of rows differ
    if not lacking:
        return None
    near = nearest(keys)
    hint = f"; they look like those of {near} (see sigma sources {near})" if near else ""
    return f"the rows of {location} have no {', '.join(lacking)}, but the keys {', '.join(sorted(keys))[:300]}{hint}"


def nearest(keys: Collection[str]) -> str | None:
    """The shipped map whose fields these keys fit best, if any."""
    scores = {name: max(_fit(layout, keys) for layout in load_shipped(name).layouts) for name in field_maps()}
    best = max(scores, key=lambda name: scores[name], default=None)
    return best if best is not None and scores[best] > 0.5 else None


def _fit(layout: RowLayout, keys: Collection[str]) -> float:
    """The share of the needed fields that the keys have; more for layouts that read more of the keys."""
    needed = list(_needed(layout))
    have = 1 - len(missing(layout, keys)) / max(len(needed), 1)
    known = len((image_names(layout) | value_names(layout)) & set(keys)) / max(len(keys), 1)
    return have * (0.5 + known / 2)


def _needed(layout: RowLayout) -> Iterator[tuple[str, ...]]:
    fields = layout.fields
    if layout.turns is not None:
        yield (layout.turns.each or layout.turns.instruction.replace("{n}", "1").replace(".{i}", ""),)
        return
    if layout.composite is not None:
        yield (layout.composite.field.field,)
        yield from ((name,) for name in (layout.composite.left, layout.composite.right) if name)
        return
    if layout.conversation is not None:
        yield (layout.conversation.field,)
        return
    if fields.instruction and not fields.say:
        yield fields.instruction
    if not fields.text_to_image:
        yield from ((field.field,) for field in fields.references)
    if fields.target is not None:
        yield (fields.target.field,)


def _image_fields(layout: RowLayout) -> Iterator[ImageField]:
    yield from layout.fields.references
    if layout.fields.target is not None:
        yield layout.fields.target
    if layout.composite is not None:
        yield layout.composite.field
    if layout.turns is not None:
        turns = layout.turns
        names = [turns.each] if turns.each else _numbered(turns.target)
        yield from (
            ImageField(field=name) for name in (*names, turns.last_target, turns.keyed and turns.keyed[0]) if name
        )


def _numbered(name: str) -> list[str]:
    return [name.replace("{n}", str(number)).replace("{i}", str(number - 1)) for number in range(1, MOST_TURNS + 1)]


def _value_fields(layout: RowLayout) -> Iterator[str]:
    yield from layout.fields.instruction
    yield from layout.fields.alternatives
    yield from (name for field in _image_fields(layout) for name in (field.label, field.kind_by) if name)
    yield from (name for name in (layout.fields.reverse,) if name)
    if layout.chain is not None:
        yield from (layout.chain.by, layout.chain.order)
    if layout.fields.instruction_from:
        yield layout.fields.instruction_from
    if layout.turns is not None:
        yield from ([layout.turns.each] if layout.turns.each else _numbered(layout.turns.instruction))
    if layout.side_file is not None:
        yield layout.side_file.key
    if layout.conversation is not None:
        yield from (layout.conversation.field, *layout.conversation.refuse)
    if layout.composite is not None:
        yield from (name for name in (layout.composite.left, layout.composite.right, layout.composite.label) if name)
    if isinstance(layout.family, FamilyRule):
        yield layout.family.by
    for rule in layout.filters:
        yield from rule.field
        yield from rule.when
        yield from (name for name in (rule.unless,) if name)
