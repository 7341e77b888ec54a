"""Shards: plain ustar files that any webdataset reader takes, written byte for byte predictably.

The writer's arithmetic (`member_size`, `block`) lets a plan give every sample its final offset
before a byte is written. The reader is strict where `tarfile` is lenient: only regular members with
a key, a known suffix and a sound header, members of a key side by side, and a proper end.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import IO

from sigma_data.corpus.record import KEY, MEMBER
from sigma_data.errors import ShardError

BLOCK = 512
END = bytes(2 * BLOCK)
"""The two zero blocks that close a tar."""

_ZERO = bytes(BLOCK)


def padded(size: int) -> int:
    """`size` rounded up to whole tar blocks."""
    return -(-size // BLOCK) * BLOCK


def member_size(size: int) -> int:
    """Bytes that a member of `size` bytes takes in a tar: header, content, padding."""
    return BLOCK + padded(size)


def header(name: str, size: int) -> bytes:
    """The ustar header of a file with fixed owner, mode and time, so that equal content gives equal tars.

    Raises ValueError for a name or a size that such a header cannot hold.
    """
    info = tarfile.TarInfo(name)
    info.size = size
    return info.tobuf(tarfile.USTAR_FORMAT, "ascii", "strict")


def block(key: str, members: Sequence[tuple[str, bytes]]) -> bytes:
    """All of a sample's members, (suffix, content) in order, as they stand in a shard."""
    parts: list[bytes] = []
    for suffix, content in members:
        parts += (header(f"{key}.{suffix}", len(content)), content, bytes(-len(content) % BLOCK))
    return b"".join(parts)


@dataclass(frozen=True)
class Member:
    """A member of a shard; `offset` is where its content starts in the file."""

    key: str
    suffix: str
    offset: int
    size: int

    @property
    def name(self) -> str:
        """The name in the tar, `KEY.SUFFIX`."""
        return f"{self.key}.{self.suffix}"


class ShardFault(ShardError):
    """What is wrong with a shard, and where: `code` and the byte offset of the header."""

    def __init__(self, code: str, message: str, offset: int) -> None:
        super().__init__(f"{message} (at byte {offset:,})")
        self.code = code
        self.offset = offset
        self._fields = (code, message, offset)

    def __reduce__(self) -> tuple[type[ShardFault], tuple[str, str, int]]:
        return type(self), self._fields  # faults travel between processes


def read_members(file: IO[bytes]) -> Iterator[Member]:
    """Walk a seekable tar by its headers, without reading contents.

    Raises ShardFault at the first thing that is not as this module writes it, after yielding what
    stands before: `cut` (ends early), `bad_header`, `unsafe_name`, `not_a_file`, `bad_name`.
    """
    file.seek(0, 2)
    length = file.tell()
    position = 0
    while True:
        file.seek(position)
        head = file.read(BLOCK)
        if head == _ZERO:
            rest = file.read(length - position - BLOCK) if length - position <= 64 * 1024 else b"x"
            if rest.strip(b"\0"):
                raise ShardFault("bad_header", "something follows the end of the tar", position)
            if len(rest) < BLOCK:
                raise ShardFault("cut", "the second closing block is missing", position)
            return
        if len(head) < BLOCK:
            raise ShardFault("cut", "the tar ends without its closing blocks", position)
        member = _parse(head, position)
        if member.offset + padded(member.size) > length:
            raise ShardFault("cut", f"the tar ends inside {member.name}", position)
        yield member
        position = member.offset + padded(member.size)


def group_members(members: Iterator[Member]) -> Iterator[list[Member]]:
    """Members of one key that stand side by side."""
    group: list[Member] = []
    for member in members:
        if group and member.key != group[0].key:
            yield group
            group = []
        group.append(member)
    if group:
        yield group


def read_range(file: IO[bytes], offset: int, size: int) -> bytes:
    """Exactly `size` bytes from `offset`; raises ShardFault `cut` where the file ends before."""
    # Asked first: `read` sets memory aside for as much as it is told to read.
    missing = offset + size - file.seek(0, 2)
    if missing > 0 or offset < 0 or size < 0:
        raise ShardFault("cut", f"the shard ends {missing:,} bytes too early", offset)
    file.seek(offset)
    return file.read(size)


def _parse(head: bytes, position: int) -> Member:
    fields = head[:148] + b" " * 8 + head[156:]
    try:
        checksum = int(head[148:156].strip(b"\0 "), 8)
        size = int(head[124:136].strip(b"\0 "), 8)
    except ValueError:
        raise ShardFault("bad_header", "the header holds no numbers where they belong", position) from None
    if checksum != sum(fields) or size < 0:
        raise ShardFault("bad_header", "the header's checksum is wrong", position)
    name = head[:100].split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
    prefix = head[345:500].split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
    name = f"{prefix}/{name}" if prefix and head[257:263] == b"ustar\0" else name
    if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/"):
        raise ShardFault("unsafe_name", f"the member {name!r} points outside the shard", position)
    if head[156:157] not in (b"0", b"\0"):
        raise ShardFault("not_a_file", f"the member {name!r} is a link, a folder or an extension", position)
    key, _, suffix = name.partition(".")
    if not KEY.fullmatch(key) or not MEMBER.fullmatch(suffix):
        raise ShardFault("bad_name", f"{name!r} is not a member of a sample (KEY.json, KEY.ref_01.jpg, ...)", position)
    return Member(key, suffix, position + BLOCK, size)
