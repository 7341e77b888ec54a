"""Rows that claim one and the same target: whose it is cannot be known, so all of them are refused."""

from __future__ import annotations

import hashlib
import posixpath

from sigma_data.sources.field_map.dialogues import dialogue
from sigma_data.sources.field_map.formats import format_of
from sigma_data.sources.field_map.names import image_names
from sigma_data.sources.field_map.schema import RowLayout
from sigma_data.sources.field_map.shapes import DraftTurn, images_of
from sigma_data.sources.field_map.values import Row, RowFault
from sigma_data.storage.data_folder import DataFolder

_KEPT_FILES = 4
_kept: dict[tuple[str, str, str], frozenset[bytes]] = {}
"""Of the files that this process read last, for it reads many fragments of one file."""


def repeated_targets(folder: DataFolder, layout: RowLayout, location: str, stamp: str) -> frozenset[bytes]:
    """The keys of all targets that more than one row of a file names; 8 bytes are held of every row meanwhile."""
    key = (folder.uri, location, stamp)
    if key not in _kept:
        rows = format_of(layout, folder)
        once, twice = set[bytes](), set[bytes]()
        for fragment in rows.fragments(location, stamp):
            for _, row in rows.read(fragment, image_names(layout)):
                for target in set() if isinstance(row, RowFault) else _targets(layout, row):
                    (twice if target in once else once).add(target)
        while len(_kept) >= _KEPT_FILES:
            _kept.pop(next(iter(_kept)))
        _kept[key] = frozenset(twice)
    return _kept[key]


def _targets(layout: RowLayout, row: Row) -> set[bytes]:
    """The keys of a row's targets, whatever else is wrong with the row."""
    try:
        turns = dialogue(layout, row).turns if layout.turns else (DraftTurn((), images_of(layout, row)[1]),)
    except RowFault:
        return set()
    return {key for turn in turns if (key := target_key(turn)) is not None}


def target_key(turn: DraftTurn) -> bytes | None:
    """What tells a target named by a path from others; None for bytes."""
    path = turn.target.value if turn.target is not None else None
    if not isinstance(path, str):
        return None
    return hashlib.blake2b(posixpath.normpath(path).encode("utf-8", "surrogatepass"), digest_size=8).digest()
