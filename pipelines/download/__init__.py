"""`sigma download`: models and data sets from the hub, only the files that are needed, checked by their hashes.

From Python: `from_pretrained(name)` loads a model by a directory, a preset, or a name on the hub.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.download.pretrained import from_pretrained as from_pretrained

__all__ = ["from_pretrained"]


def __getattr__(name: str) -> Any:
    """The public name, imported at its first use: the list of downloads needs no torch."""
    if name != "from_pretrained":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from pipelines.download.pretrained import from_pretrained

    return from_pretrained
