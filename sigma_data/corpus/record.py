"""A sample as the members of a shard: `KEY.json` and one image each, and back.

The JSON names every image's member, so a record is complete and checkable by itself. Its keys are the same for every
sample but for those that most samples have no value for (`_given`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated

from pydantic import Field, ValidationError

from sigma_data.images.decode import MEMBER_EXTENSIONS
from sigma_data.images.image_info import ImageInfo
from sigma_data.images.value_range import Rule, ValueRange
from sigma_data.sample import Family, Image, ImageKind, Sample, Source, Turn
from sigma_data.settings_base import StrictRecord

SCHEMA_VERSION = 1

KEY = re.compile(r"[A-Za-z0-9_-]{1,64}")
MEMBER = re.compile(rf"json|(?:ref_\d{{2,3}}|target(?:_\d{{2,3}})?)\.(?:{'|'.join(sorted(MEMBER_EXTENSIONS))})")
"""What may follow the key: `json`, `ref_01.jpg`, `target.png`, `target_02.png` (several turns)."""


class RecordError(ValueError):
    """JSON that is not a record of this schema, or does not match its members."""


_Number = Annotated[int, Field(ge=0, lt=2**31)]
_Finite = Annotated[float, Field(allow_inf_nan=False)]
_ImageNumber = Annotated[int, Field(ge=1, lt=1000)]  # as many as member names tell apart


class _ValueRange(StrictRecord):
    rule: Rule
    low: _Finite
    high: _Finite


class _ImageRecord(StrictRecord):
    number: _ImageNumber
    member: str
    role: str
    width: _Number
    height: _Number
    value_range: _ValueRange | None = None
    kind: ImageKind | None = None
    label: str | None = None


class _BindingRecord(StrictRecord):
    token: _Number
    image: _Number


class _TurnRecord(StrictRecord):
    instruction: str
    target: _ImageNumber | None
    response: str | None
    alternatives: list[str]
    bindings: list[_BindingRecord]
    caption: str | None = None


class _SourceRecord(StrictRecord):
    name: str
    location: str
    row: Annotated[int, Field(ge=0, lt=2**63)]
    license: str


class Record(StrictRecord):
    """What `KEY.json` holds."""

    schema_version: int
    id: str
    family: Family
    family_inferred: bool
    images: list[_ImageRecord]
    turns: list[_TurnRecord]
    source: _SourceRecord
    truth: str | None
    provenance: str | None = None


def member_names(sample: Sample, extensions: Mapping[int, str]) -> dict[int, str]:
    """The member of each image number: `ref_01.jpg` by number; `target.png`, numbered where several."""
    targets = set(sample.targets)
    several = len(targets) > 1
    names: dict[int, str] = {}
    for image in sample.images:
        number = image.number
        role = f"ref_{number:02d}" if number not in targets else f"target_{number:02d}" if several else "target"
        names[number] = f"{role}.{extensions[number]}"
    return names


def stored_order(sample: Sample) -> list[int]:
    """Image numbers in the order of the shard: references first, then targets, each by number."""
    targets = set(sample.targets)
    return sorted((image.number for image in sample.images), key=lambda number: (number in targets, number))


def encode(sample: Sample, infos: Mapping[int, ImageInfo]) -> bytes:
    """The bytes of `KEY.json`: compact, one line, sorted keys, UTF-8."""
    members = member_names(sample, {number: info.extension for number, info in infos.items()})
    targets = set(sample.targets)
    ranges = {image.number: image.value_range for image in sample.images}
    images = {image.number: image for image in sample.images}
    record = {
        "schema_version": SCHEMA_VERSION,
        "id": sample.id,
        "family": sample.family.value,
        "family_inferred": sample.family_inferred,
        "images": [
            {
                "number": number,
                "member": members[number],
                "role": "target" if number in targets else "reference",
                "width": infos[number].width,
                "height": infos[number].height,
                **({"value_range": asdict(found)} if (found := ranges[number]) is not None else {}),
                **_given(kind=images[number].kind, label=images[number].label),
            }
            for number in stored_order(sample)
        ],
        "turns": [
            {
                "instruction": turn.instruction,
                "target": turn.target,
                "response": turn.response,
                "alternatives": turn.alternatives,
                "bindings": [{"token": token, "image": image} for token, image in turn.bindings],
                **_given(caption=turn.caption),
            }
            for turn in sample.turns
        ],
        "source": vars(sample.source),
        "truth": sample.truth,
        **_given(provenance=sample.provenance),
    }
    text = json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return text.encode("utf-8", "replace") + b"\n"


def _given(**values: str | None) -> dict[str, str]:
    """The keys that have a value: records without them are those of older corpora, to the byte."""
    return {key: value for key, value in values.items() if value is not None}


def with_current_keys(data: bytes) -> bytes:
    """The bytes of `KEY.json` in the words of today: older corpora write the key `license` as `licence`."""
    return data.replace(b'"licence":', b'"license":', 1)  # a key: inside a text the quotes would be escaped


def decode(data: bytes, images: Mapping[str, bytes] | None) -> Sample:
    """A sample from the bytes of `KEY.json` and its images by member name.

    Where `images` is None, they are read another time, and the sample's images come without bytes. Raises
    RecordError where the JSON is broken, of another schema, or names other members than there are.
    """
    try:
        record = Record.model_validate_json(with_current_keys(data))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(place) for place in first["loc"])
        raise RecordError(f"the JSON is not a valid record ({where}: {first['msg']})") from None
    if record.schema_version != SCHEMA_VERSION:
        raise RecordError(f"the record has schema version {record.schema_version}, this is sigma {SCHEMA_VERSION}")
    named = [image.member for image in record.images]
    there = set(named if images is None else images)
    if missing := sorted(set(named) - there):
        raise RecordError(f"the record names {', '.join(missing)}, which is not there")
    if extra := sorted(there - set(named)):
        raise RecordError(f"{', '.join(extra)} is there, but the record does not name it")
    numbers = [image.number for image in record.images]
    if len(set(numbers)) != len(numbers) or len(set(named)) != len(named):
        raise RecordError("two images have one number or one name")
    sample = Sample(
        id=record.id,
        family=record.family,
        images=tuple(
            Image(
                image.number,
                None if images is None else images[image.member],
                value_range=None if image.value_range is None else ValueRange(**vars(image.value_range)),
                kind=image.kind,
                label=image.label,
            )
            for image in sorted(record.images, key=lambda i: i.number)
        ),
        turns=tuple(
            Turn(
                instruction=turn.instruction,
                target=turn.target,
                response=turn.response,
                alternatives=tuple(turn.alternatives),
                bindings=tuple((binding.token, binding.image) for binding in turn.bindings),
                caption=turn.caption,
            )
            for turn in record.turns
        ),
        source=Source(**vars(record.source)),
        family_inferred=record.family_inferred,
        truth=record.truth,
        provenance=record.provenance,
    )
    expected = member_names(sample, {image.number: image.member.rsplit(".", 1)[-1] for image in record.images})
    if expected != {image.number: image.member for image in record.images}:
        raise RecordError("the images are not named after their roles")
    targets = set(sample.targets)
    if any(image.role != ("target" if image.number in targets else "reference") for image in record.images):
        raise RecordError("an image's role is not the one that the turns give it")
    return sample
