"""Rows that claim one and the same target: whose it is cannot be known, so all of them are refused."""

from __future__ import annotations

import hashlib
import posixpath

from sigma_data.sources.field_map.formats import format_of
from sigma_data.sources.field_map.names import image_names
from sigma_data.sources.field_map.schema import RowLayout
from sigma_data.sources.field_map.shapes import DraftTurn, images_of
from sigma_data.sources.field_map.values import RowFault
from sigma_data.storage.data_folder import data_folder

_KEPT_FILES = 4
_kept: dict[tuple[str, str, str], frozenset[bytes]] = {}
"""Of the files that this process read last, for it reads many fragments of one file."""


def repeated_targets(uri: str, layout: RowLayout, location: str, stamp: str) -> frozenset[bytes]:
    """The keys of all targets that more than one row of a file names; 8 bytes are held of every row meanwhile."""
    key = (uri, location, stamp)
    if key not in _kept:
        rows = format_of(layout, data_folder(uri))
        once, twice = set[bytes](), set[bytes]()
        for fragment in rows.fragments(location, stamp):
            for _, row in rows.read(fragment, image_names(layout)):
                try:
                    target = None if isinstance(row, RowFault) else target_key(DraftTurn((), images_of(layout, row)[1]))
                except RowFault:
                    continue
                if target is not None:
                    (twice if target in once else once).add(target)
        while len(_kept) >= _KEPT_FILES:
            _kept.pop(next(iter(_kept)))
        _kept[key] = frozenset(twice)
    return _kept[key]


def target_key(turn: DraftTurn) -> bytes | None:
    """What tells a target named by a path from others; None for bytes."""
    path = turn.target.value if turn.target is not None else None
    if not isinstance(path, str):
        return None
    return hashlib.blake2b(posixpath.normpath(path).encode("utf-8", "surrogatepass"), digest_size=8).digest()
