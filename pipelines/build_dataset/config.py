"""The settings of a build and their digest: equal digests give equal corpora."""

from __future__ import annotations

import hashlib
import json
import re
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from pipelines.build_dataset.conditions import Conditions
from pipelines.build_dataset.filters import Filters, Licenses
from pipelines.build_dataset.made import Made
from pipelines.build_dataset.prepare import PrepareSettings
from pipelines.inject.config import InjectionSettings
from sigma_data.corpus.check_limits import Limits, Severity
from sigma_data.corpus.checks import RULES
from sigma_data.corpus.record import SCHEMA_VERSION
from sigma_data.images.reader_differences import Store
from sigma_data.sample import Family
from sigma_data.settings_base import StrictModel
from sigma_data.sources.spec import source_below, source_of_mapping

BUILD_VERSION = 2
"""Raised when a change in the code changes what a build writes: what an older one began or finished is refused then."""
SCAN_VERSION = 4
"""Raised when scan files change: an interrupted build is scanned anew then, and goes on."""


_FIRST_SETTINGS = frozenset((
    "sources", "title", "seed", "splits", "max_component", "quotas", "near_duplicates", "order", "shard_bytes",
    "shard_samples", "max_side", "store", "checks", "limits",
))  # fmt: skip


NOT_RECORDED: dict[str, set[str]] = {"injection": {"endpoint"}, "made": {"words"}}
"""Settings that name places of a machine are not noted with a corpus. What a file says counts among the inputs."""


class BuildConfig(StrictModel):
    """A build. Everything here shapes the corpus; where and with how many workers it runs does not."""

    sources: tuple[str, ...] = ()
    """Source strings, e.g. release:PATH?license=mit; in YAML also {source: release, path: PATH, license: mit}."""
    data: str = ""
    """Folder in which relative paths of the sources begin."""
    title: str = "SIGMA interleaved corpus"
    """Heads the data set card and the report."""
    seed: int = 0
    """Seeds the splits and the order of samples."""
    splits: dict[str, float] = {"train": 95.0, "val": 2.5, "test": 2.5}
    """Split -> share of the components."""
    max_component: int | None = Field(None, ge=1)
    """A component of more samples than this goes to the largest split, whatever its hash says. Off by
    default, for a component that grows beyond it when data is added would change its split."""
    quotas: dict[Family, int] = {}
    """Family -> most samples to write; the rest is listed in the quarantine as over_quota."""
    shares: dict[Family, dict[str, float]] = {}
    """Family -> source name -> its share of the family's quota. What a source cannot fill goes to the others by their
    shares, and then to sources that are not named."""
    near_duplicates: Literal["join", "drop"] = "join"
    """Samples alike in text whose images are all nearly identical: keep in one split, or drop."""
    order: Literal["shuffled", "source"] = "shuffled"
    """Order of samples in the shards of a family."""
    shard_bytes: int = Field(512 * 2**20, ge=1)
    """A shard is closed before it grows beyond this (a single larger sample gets its own)."""
    shard_samples: int = Field(10_000, ge=1)
    """Most samples in a shard."""
    max_side: int | None = Field(None, ge=16)
    """Images longer than this are scaled down and re-encoded; by default none is."""
    store: Store = "auto"
    """Bytes to store of an image that other readers show differently (docs/corpus-format.md): `original` the bytes that
    came, `shown` an upright 8-bit RGB PNG of what we show; `auto` does so for deep images (16 bits, floats) alone."""
    licenses: Licenses = Licenses()
    """Licenses that are taken."""
    filters: Filters = Filters()
    """Sizes of images that are taken."""
    conditions: Conditions = Conditions()
    """Edge maps and depth maps, computed for captions with their images."""
    made: Made = Made()
    """Samples made from others of the corpus."""
    exclude: tuple[str, ...] = ()
    """Files of `sigma fingerprints`: samples with one of these images, exactly or nearly, are filtered."""
    injection: InjectionSettings = InjectionSettings()
    """Attribute tokens for captions that have none."""
    checks: dict[str, Severity] = {}
    """Check code -> error, warning or off. `sigma checks` lists them."""
    limits: Limits = Limits()
    """Limits of the checks."""

    @field_validator("sources", mode="before")
    @classmethod
    def _mappings(cls, value: object) -> object:
        if isinstance(value, list | tuple):
            return [source_of_mapping(one) if isinstance(one, dict) else one for one in value]
        return value

    @field_validator("splits")
    @classmethod
    def _splits(cls, value: dict[str, float]) -> dict[str, float]:
        if not value or any(not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name) for name in value):
            raise ValueError("name at least one split, in letters, digits and underscores")
        if any(not 0 <= share < float("inf") for share in value.values()) or sum(value.values()) <= 0:
            raise ValueError("shares are numbers of at least 0 and not all 0")
        return value

    @field_validator("quotas")
    @classmethod
    def _quotas(cls, value: dict[Family, int]) -> dict[Family, int]:
        if any(count < 0 for count in value.values()):
            raise ValueError("a quota is at least 0")
        return value

    @model_validator(mode="after")
    def _shares(self) -> Self:
        for family, shares in self.shares.items():
            if family not in self.quotas:
                raise ValueError(f"shares: {family} has no quota to share, set quotas.{family}")
            if any(not 0 < share < float("inf") for share in shares.values()):
                raise ValueError(f"shares: {family}: shares are numbers above 0")
        return self

    @field_validator("checks", mode="before")
    @classmethod
    def _off(cls, value: object) -> object:
        if isinstance(value, dict):  # YAML reads a plain `off` as false
            return {code: Severity.OFF if severity is False else severity for code, severity in value.items()}
        return value

    @model_validator(mode="after")
    def _checks(self) -> Self:
        for code in self.checks:
            if code not in RULES:
                raise ValueError(f"checks: there is no check {code!r} (sigma checks lists them)")
            if RULES[code].fixed and self.checks[code] is not RULES[code].severity:
                raise ValueError(f"checks: {code} cannot be relaxed, such a sample cannot be used")
        return self

    @property
    def specs(self) -> tuple[str, ...]:
        """The source strings, with relative paths below `data`."""
        return tuple(source_below(source, self.data) for source in self.sources)

    @property
    def preparation(self) -> PrepareSettings:
        """The sections that say what happens to a sample before it is checked."""
        return PrepareSettings(**{name: getattr(self, name) for name in PrepareSettings.model_fields})

    def digest(self) -> str:
        """SHA-256 over every setting and the versions of format and code.

        A setting that version 0.1 did not have counts only where it is not the default: what was built without it is
        the same corpus.
        """
        fields = BuildConfig.model_fields
        left_out: dict[str, Any] = {
            name: True for name in fields.keys() - _FIRST_SETTINGS if getattr(self, name) == fields[name].default
        }
        left_out.setdefault("made", {"words"} | ({"dense"} if not self.made.dense else set()))
        text = f"{SCHEMA_VERSION}\x1f{BUILD_VERSION}\x1f{self.model_dump_json(exclude=left_out | {'injection': True})}"
        if self.injection.by != "none":  # where a model is asked, and at what cost, shapes nothing
            text += f"\x1f{json.dumps(self.injection.shaping(), sort_keys=True)}"
        return hashlib.sha256(text.encode()).hexdigest()

    def scan_digest(self) -> str:
        """SHA-256 over what the scan of a fragment depends on, so that the rest may change."""
        parts = self.model_dump_json(include={"checks", *PrepareSettings.model_fields})
        return hashlib.sha256(
            f"{SCHEMA_VERSION}\x1f{SCAN_VERSION}\x1f{parts}\x1f{self.conditions.state()}".encode()
        ).hexdigest()
