"""Pydantic types for paths, so that `~` means the same in YAML files and on the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator

from sigma_data.errors import ConfigError
from sigma_data.storage.paths import local_path, model_path, path_or_uri


def _checked(read: Callable[[str], Any]) -> BeforeValidator:
    """A validator from a parser that raises ConfigError; pydantic adds the name of the setting."""

    def validate(value: Any) -> Any:
        if not isinstance(value, str | Path):
            return value
        try:
            return read(str(value))
        except ConfigError as error:
            raise ValueError(str(error)) from None

    return BeforeValidator(validate)


LocalPath = Annotated[Path, _checked(local_path)]
"""A file or folder of this machine."""

ModelPath = Annotated[str, _checked(model_path)]
"""A preset, or a model's directory on this machine."""

PathOrUri = Annotated[str, _checked(path_or_uri)]
"""A folder of this machine, or an fsspec URI."""
