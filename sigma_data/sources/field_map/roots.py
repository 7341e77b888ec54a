"""The list that publishers of LLaVA-like rows have beside them: lines `ROOT,JSON,WEIGHT`, a folder for each file.

Both are written as they lay on the publisher's disk, so they are compared from their ends.
"""

from __future__ import annotations

import posixpath

from sigma_data.storage.data_folder import DataFolder

_MOST_BYTES = 2**20


class Roots:
    """The folders of a list, read when the first is asked for; none where there is no list."""

    def __init__(self, folder: DataFolder, location: str) -> None:
        self._folder, self._location = folder, location
        self._lines: list[tuple[list[str], list[str]]] | None = None  # parts of (root, file)

    def of(self, rows: str) -> list[str]:
        """The folders that a list gives a file of rows, as written and with ever more of their beginning taken off."""
        parts = _parts(rows)
        for root, file in self._read():
            if file and root and ".." not in root and (_ends(parts, file) or _ends(file, parts)):
                return ["/".join(root[start:]) for start in range(len(root))]
        return []

    def _read(self) -> list[tuple[list[str], list[str]]]:
        if self._lines is None:
            text = ""
            if self._folder.exists(self._location):
                with self._folder.open(self._location) as file:
                    text = file.read(_MOST_BYTES).decode("utf-8", "replace")
            split = [line.split(",") for line in text.splitlines() if "," in line]
            self._lines = [(_parts(one[0]), _parts(one[1])) for one in split]
        return self._lines


def _parts(path: str) -> list[str]:
    return [part for part in posixpath.normpath(path.strip()).split("/") if part not in ("", ".")]


def _ends(whole: list[str], end: list[str]) -> bool:
    return len(end) <= len(whole) and whole[len(whole) - len(end) :] == end
