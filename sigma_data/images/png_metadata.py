"""PNGs with more metadata than Pillow reads: it is given the file without the chunks that exceed its limits.

Pillow refuses a whole PNG for a compressed text or colour profile that unpacks to more than 1 MiB, or for 64 MiB of
texts. Its limits are module variables, and raising them would affect the whole process. The chunks left out hold no
pixels, and the stored bytes stay as they are.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

MAX_CHUNK = 2**20
"""Bytes that one compressed chunk may unpack to: Pillow's PngImagePlugin.MAX_TEXT_CHUNK."""

MAX_TEXT = 64 * MAX_CHUNK
"""Bytes of all texts together: Pillow's PngImagePlugin.MAX_TEXT_MEMORY."""

_ORIENTED = frozenset({b"XML:com.adobe.xmp", b"Raw profile type exif"})
"""Texts in which Pillow looks for an orientation: unpacked instead of left out."""


def is_large(data: bytes) -> bool:
    """Whether Pillow refuses the PNG for its metadata."""
    return readable(data) is not data


def readable(data: bytes) -> bytes:
    """The PNG itself if Pillow reads its metadata, else a copy without the chunks that it refuses."""
    pieces: list[bytes] = []
    done = text = 0
    for start, end, kind in _chunks(data):
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
            continue
        content = data[start + 8 : end - 4]
        packed = _packed(kind, content)
        size = len(content) if packed is None else _unpacked_size(packed)
        if size is not None and (kind == b"iCCP" or text + size <= MAX_TEXT):
            text += 0 if kind == b"iCCP" else size
            continue
        instead = b"" if packed is None else _plain(kind, content, packed, MAX_TEXT - text)
        text += len(instead)
        pieces += [data[done:start], instead]
        done = end
    return b"".join([*pieces, data[done:]]) if done else data


def _chunks(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(start, end, name) of each chunk, up to the first that is not whole."""
    place = 8
    while place + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, place)
        end = place + 12 + length
        if end > len(data) or kind == b"IEND":
            return
        yield place, end, kind
        place = end


def _packed(kind: bytes, content: bytes) -> bytes | None:
    """The deflated part of a chunk; None if nothing is deflated, or by an unknown method."""
    rest = content.partition(b"\0")[2]
    if kind == b"iTXt":
        fields = rest[2:].split(b"\0", 2)
        return fields[2] if rest[:2] == b"\1\0" and len(fields) == 3 else None
    return rest[1:] if kind != b"tEXt" and rest[:1] == b"\0" else None


def _unpacked_size(packed: bytes) -> int | None:
    """Bytes that the data unpacks to; None if more than Pillow accepts. Never holds more than that."""
    unpacker = zlib.decompressobj()
    try:
        size = len(unpacker.decompress(packed, MAX_CHUNK))
    except zlib.error:
        return 0  # Pillow ignores it
    return None if unpacker.unconsumed_tail else size


def _plain(kind: bytes, content: bytes, packed: bytes, room: int) -> bytes:
    """The chunk with its text unpacked, as Pillow limits only packed ones; empty if the text is not needed."""
    key = content.partition(b"\0")[0]
    if key not in _ORIENTED or kind == b"iCCP" or room <= 0:
        return b""
    unpacker = zlib.decompressobj()
    value = unpacker.decompress(packed, room)
    if unpacker.unconsumed_tail:
        return b""
    name, body = (b"iTXt", key + bytes(5) + value) if kind == b"iTXt" else (b"tEXt", key + b"\0" + value)
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
