"""Layout samples of images and their captions: the reference is a condition computed from the target."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator

from sigma_data.conditions.canny import HIGH, LOW, canny
from sigma_data.conditions.depth import PERCENTILES, BlankDepthError, check_depth_model, depth_map, revision
from sigma_data.conditions.maps import edge_png, grey_of, grey_png
from sigma_data.images.decode import ImageFault, load, probe, reencode
from sigma_data.images.fingerprint import hash_fraction
from sigma_data.images.reader_differences import Store
from sigma_data.instruction import parse
from sigma_data.sample import Family, Image, ImageKind, Rejection, Sample
from sigma_data.settings_base import StrictModel
from sigma_data.storage.files import write_atomic
from sigma_data.storage.path_settings import LocalPath

VERSION = 1
"""Of computed conditions; raised when the same settings give other maps."""

Condition = Literal["canny", "depth"]


class Conditions(StrictModel):
    """Conditions that are computed. Off by default: a caption with its image is then filtered as no_reference."""

    shares: dict[Condition, float] = {}
    """Condition -> its share of these samples, e.g. canny: 1, depth: 1; a hash of the sample's id decides."""
    sources: tuple[str, ...] = ()
    """Names of sources that become layout samples as a whole: their texts are captions of the targets. Without them
    only captions and images without a reference do."""
    low: int = Field(LOW, ge=1)
    """Canny's lower threshold."""
    high: int = Field(HIGH, ge=1)
    """Canny's upper threshold."""
    depth_model: LocalPath | None = None
    """A folder with a depth model of transformers: DPT (MiDaS), Depth-Anything, GLPN or ZoeDepth. Never fetched."""
    depth_device: str = "cpu"
    """Where depth is computed, e.g. cuda. Only the CPU gives the same bytes on every run."""
    depth_percentile: bool = False
    """Scale depth by its 2nd and 98th percentile instead of its least and greatest value, against outliers."""

    @field_validator("shares")
    @classmethod
    def _shares(cls, value: dict[Condition, float]) -> dict[Condition, float]:
        if any(not 0 < share < float("inf") for share in value.values()):
            raise ValueError("shares are numbers above 0")
        return value

    def check(self) -> None:
        """Raise ConfigError, before any work, where a condition cannot be computed."""
        if "depth" in self.shares:
            check_depth_model(self.depth_model)

    def state(self) -> str:
        """What conditions depend on beside the settings: the version, and the depth model's files."""
        return f"{VERSION} {revision(self.depth_model) if 'depth' in self.shares and self.depth_model else ''}"

    def kind_of(self, sample: Sample) -> Condition | None:
        """The condition that the sample is to get, if any."""
        if not self.shares or len(sample.turns) != 1 or len(sample.targets) != 1:
            return None
        if not (sample.source.name in self.sources or is_text_to_image(sample)):
            return None
        place = hash_fraction("condition", sample.id) * sum(self.shares.values())
        for kind, share in sorted(self.shares.items()):
            if place < share:
                return kind
            place -= share
        return max(self.shares)

    def note(self, kind: Condition) -> dict[str, Any]:
        """What the record says of a condition."""
        if kind == "canny":
            return {"kind": kind, "low": self.low, "high": self.high, "version": VERSION}
        assert self.depth_model is not None
        return {
            "kind": kind,
            "model": self.depth_model.name,
            "revision": revision(self.depth_model),
            "percentile": list(PERCENTILES) if self.depth_percentile else None,
            "device": self.depth_device.partition(":")[0],
            "version": VERSION,
        }


def is_text_to_image(sample: Sample) -> bool:
    """Whether it is a caption and its image, which sources give as a layout sample without a reference."""
    return (
        sample.family is Family.LAYOUT and not sample.references and bool(sample.targets) and not sample.family_inferred
    )


def add_condition(
    sample: Sample,
    settings: Conditions,
    *,
    max_side: int | None,
    store: Store,
    max_pixels: int,
    cache: Path | None = None,
) -> Sample | Rejection:
    """The sample as one of layout, its reference computed from the target as the shard will hold it; else unchanged.

    Depth that was computed before is taken from the folder `cache`, so that reading a sample a second time gives the
    same bytes. A target that cannot be decoded, and one without depth (`blank_condition`), are rejections.
    """
    kind = settings.kind_of(sample)
    if kind is None:
        return sample
    number = sample.targets[0]
    target = next((image for image in sample.images if image.number == number), None)
    if target is None:
        return sample  # a check says so
    note = settings.note(kind)
    try:
        info = probe(target.data, max_pixels=max_pixels)
        data = target.data or b""
        if changed := reencode(data, info, max_side=max_side, store=store):
            data = changed[0]
        condition = _computed(data, kind, settings, note, cache)
    except ImageFault as fault:
        return _rejection(sample, fault.code, f"image {number}: {target.missing or fault.message}")
    except BlankDepthError as error:
        return _rejection(sample, "blank_condition", f"image {number}: {error}")
    turn = sample.turns[0]
    texts = [parse(text).plain if parse(text).placeholders else text for text in (turn.instruction, *turn.alternatives)]
    given = json.loads(sample.provenance) if sample.provenance else {}
    return replace(
        sample,
        family=Family.LAYOUT,
        family_inferred=False,
        images=(Image(1, condition, kind=ImageKind(kind)), replace(target, number=2)),
        turns=(replace(turn, instruction=texts[0], alternatives=tuple(texts[1:]), target=2, bindings=()),),
        provenance=json.dumps({**given, "condition": note}, sort_keys=True, ensure_ascii=False, separators=(",", ":")),
    )


def _computed(data: bytes, kind: Condition, settings: Conditions, note: dict[str, Any], cache: Path | None) -> bytes:
    """The map of an encoded image, as PNG."""
    if kind == "canny":
        return edge_png(canny(grey_of(load(data, max_pixels=2**62)), settings.low, settings.high))
    key = hashlib.sha256(data + json.dumps(note, sort_keys=True).encode()).hexdigest()
    place = cache / f"{key[:40]}.png" if cache is not None else None
    if place is not None and place.is_file():
        return place.read_bytes()
    assert settings.depth_model is not None
    image = load(data, max_pixels=2**62)
    levels = depth_map(image, settings.depth_model, device=settings.depth_device, percentile=settings.depth_percentile)
    made = grey_png(levels)
    if place is not None:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(place, made)
    return made


def _rejection(sample: Sample, code: str, message: str) -> Rejection:
    source = sample.source
    return Rejection(
        source.name, source.location, source.row, code, message, family=sample.family, license=source.license
    )
