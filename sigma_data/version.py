"""Which sigma this is."""

from __future__ import annotations

from functools import cache
from importlib.metadata import PackageNotFoundError, version


@cache  # a distribution's metadata is read and parsed each time
def sigma_version() -> str:
    """The version of this package; `unknown` where it runs uninstalled."""
    try:
        return version("sigma-multimodal")
    except PackageNotFoundError:
        return "unknown"
