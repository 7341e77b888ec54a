"""From a draft to a sample: its images found and read, its text in the canonical spelling."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import lru_cache
from typing import Any

from sigma_data.corpus.foreign_spellings import settle
from sigma_data.images.decode import load, open_image, probe
from sigma_data.images.fingerprint import near
from sigma_data.images.formats import ImageFault
from sigma_data.instruction import canonical
from sigma_data.sample import Image, Sample, Source, Turn, sample_id
from sigma_data.sources.field_map.composite import cut
from sigma_data.sources.field_map.images import FoundImage, ImageStore, Scope
from sigma_data.sources.field_map.schema import RowLayout
from sigma_data.sources.field_map.shapes import Draft, DraftImage, DraftTurn, is_null_path
from sigma_data.sources.field_map.values import RowFault


def image_data(image: DraftImage, store: ImageStore, scope: Scope) -> FoundImage:
    """The encoded image of a draft. Raises RowFault."""
    value: Any = image.value
    path = None
    if isinstance(value, dict):
        value, path = value.get("bytes"), value.get("path")
    if isinstance(value, str):
        value, path = None, value
    if isinstance(value, bytes) and value:
        found = FoundImage(value, "bytes", image.field)
    elif isinstance(path, str) and not is_null_path(path) and store.images.origin != "bytes":
        found = store.find(path, image.scope or scope)
    elif image.null == "empty" or isinstance(value, bytes):
        what = f", only the path {path[:200]!r}" if isinstance(path, str) and path else ""
        raise RowFault("empty", f"{image.field} has no bytes{what}")
    else:
        raise RowFault("missing_picture", f"{image.field} names no image")
    if image.side is None:
        return found
    return FoundImage(cut(found.data, image.side, image.border), found.rule, f"{found.location}#{image.side}")


def sample_of(
    draft: Draft, layout: RowLayout, source: Source, store: ImageStore, scope: Scope, phrasing: str = "first"
) -> Sample:
    """The sample of a draft, references first. Raises RowFault."""
    named = [*draft.references, *(turn.target for turn in draft.turns if turn.target is not None)]
    found = [image_data(image, store, scope) for image in named]
    images = tuple(
        Image(number, one.data, kind=image.kind, label=image.label)
        for number, (one, image) in enumerate(zip(found, named, strict=True), 1)
    )
    check_shapes(layout, draft, images)
    identity = sample_id(source.name, source.location, source.row)
    if say := layout.fields.say:
        turns_said = tuple(replace(turn, instructions=(say[int(identity, 16) % len(say)],)) for turn in draft.turns)
        draft = replace(draft, turns=turns_said)
    references = len(draft.references)
    turns, target = [], references
    for turn in draft.turns:
        before = target
        target += turn.target is not None
        turns.append(_turn(turn, target if turn.target is not None else None, before, references, identity, phrasing))
    provenance = _provenance(tuple(one.rule for one in found)) if found else None
    takes = [_taken(turn, number, draft, images, store, scope) for number, turn in enumerate(draft.turns)]
    if any(numbers != [number] for number, numbers in enumerate(takes[1:], references + 1) if numbers):
        resolved = {"resolved": [one.rule for one in found]} if found else {}
        provenance = json.dumps({**resolved, "takes": takes}, ensure_ascii=False)
    return Sample(
        id=identity,
        family=draft.family,
        images=images,
        turns=tuple(turns),
        source=source,
        family_inferred=draft.family_inferred,
        provenance=provenance,
    )


@lru_cache(maxsize=256)
def _provenance(rules: tuple[str, ...]) -> str:
    """The provenance of a sample whose images were found by these rules: most rows have the same."""
    return json.dumps({"resolved": rules}, ensure_ascii=False)


def _taken(
    turn: DraftTurn, index: int, draft: Draft, images: tuple[Image, ...], store: ImageStore, scope: Scope
) -> list[int]:
    """The numbers of the images that a turn begins with. Raises RowFault where one was not shown before.

    Publishers save an image again for the turn that takes it, so it may differ by its encoding.
    """
    shown = images[: len(draft.references) + sum(earlier.target is not None for earlier in draft.turns[:index])]
    numbers = []
    for image in turn.takes:
        data = image_data(image, store, scope).data
        same = [one.number for one in shown if one.data == data] or [one.number for one in shown if _alike(one, data)]
        if not same:
            raise RowFault("turns_mismatch", f"turn {index + 1} begins with an image that was not shown before")
        numbers.append(same[-1])
    return numbers


def _alike(image: Image, data: bytes) -> bool:
    try:
        one, other = probe(image.data), probe(data)
    except ImageFault as fault:
        raise RowFault(fault.code, fault.message) from None
    return near(one.signature, other.signature)


def _turn(turn: DraftTurn, target: int | None, images: int, references: int, identity: str, phrasing: str) -> Turn:
    """A turn; `images` is how many images it may name."""
    texts = [canonical(settle(text, images), references=references) for text in turn.instructions]
    chosen = {"first": 0, "last": len(texts) - 1}.get(phrasing, int(identity, 16) % len(texts))
    alternatives = [text for index, text in enumerate(texts) if index != chosen]
    return Turn(texts[chosen], target, turn.response, tuple(dict.fromkeys(alternatives)))


def check_shapes(layout: RowLayout, draft: Draft, images: tuple[Image, ...]) -> None:
    """Raise RowFault `aspect_mismatch` or `blank_condition` where the layout asks for these."""
    if layout.max_aspect_difference is not None and draft.turns and draft.references:
        sizes = [_size(image) for image in images]
        wide = [width / height for width, height in sizes]
        for ratio, size in zip(wide[:-1], sizes[:-1], strict=True):
            if abs(ratio / wide[-1] - 1) > layout.max_aspect_difference:
                message = f"the reference is {size[0]} x {size[1]}, the target {sizes[-1][0]} x {sizes[-1][1]}"
                raise RowFault("aspect_mismatch", message)
    if layout.min_deviation is not None:
        for image in images[: len(draft.references)]:
            if image.kind is not None and _deviation(image) < layout.min_deviation:
                raise RowFault("blank_condition", f"the {image.kind} map shows nothing: it is of one grey")


def _size(image: Image) -> tuple[int, int]:
    try:
        return open_image(image.data).size
    except ImageFault as fault:
        raise RowFault(fault.code, f"image {image.number}: {fault.message}") from None


def _deviation(image: Image) -> float:
    """Standard deviation of the grey values."""
    from PIL import ImageStat

    try:
        return float(ImageStat.Stat(load(image.data).convert("L")).stddev[0])
    except ImageFault as fault:
        if fault.code == "no_range":  # deep values that are all the same
            return 0.0
        raise RowFault(fault.code, f"image {image.number}: {fault.message}") from None
