"""The pydantic base of what users and files write: unknown keys are refused, objects do not change."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class StrictModel(BaseModel):
    """Settings: values are converted as YAML and the command line need it ("4" is 4)."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class StrictRecord(StrictModel, strict=True):
    """What our own code wrote to a file, which may be hostile by now: no value is converted."""
