"""Which sigma this is."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version


def sigma_version() -> str:
    """The version of this package; `unknown` where it runs uninstalled."""
    try:
        return version("sigma-multimodal")
    except PackageNotFoundError:
        return "unknown"
