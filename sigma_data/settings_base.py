"""The pydantic base of what users and files write: unknown keys are refused, objects do not change."""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict, model_validator


class StrictModel(BaseModel):
    """Settings: values are converted as YAML and the command line need it ("4" is 4)."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    former_names: ClassVar[dict[str, str]] = {}
    """Former names of settings, by which older files and commands still give them -> the names of today."""

    @model_validator(mode="before")
    @classmethod
    def _rename(cls, given: Any) -> Any:
        if isinstance(given, dict) and (old := cls.former_names.keys() & given.keys()):
            renamed = {cls.former_names[name]: given[name] for name in sorted(old)}
            return renamed | {name: value for name, value in given.items() if name not in old}
        return given


class StrictRecord(StrictModel, strict=True):
    """What our own code wrote to a file, which may be hostile by now: no value is converted."""
