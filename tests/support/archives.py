"""Unpacking an archive of our own."""

from __future__ import annotations

import tarfile
from pathlib import Path


def unpack(tar: tarfile.TarFile, folder: Path) -> None:
    """All of it into a folder. Python before 3.11.4 has no `filter`, and a later one warns where none is chosen."""
    tar.extraction_filter = getattr(tarfile, "data_filter", None)  # type: ignore[assignment]
    tar.extractall(folder)
