"""The members of a tar by their headers, from files that nobody vouches for.

Unlike `tarfile` it holds one header in memory whatever the headers claim, goes on through tars that stand one after
the other, and says of each member that cannot be given why.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

BLOCK = 512
_ZERO = bytes(BLOCK)
_MOST_EXTENSION = 2**20
"""Most bytes of a long name or of extended attributes (pax); real ones have a few hundred."""
_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_PLAIN = re.compile(
    rb"[^\0].{99}(?:[0-7]{7}[\0 ]){3}(?P<size>[0-7]{11})[\0 ][0-7]{11}[\0 ](?P<sum>[0-7]{6})[\0 ]{2}0.{172}"
    rb"(?:[0-7]{7}[\0 ]|\0{8}){2}\0.{166}",
    re.DOTALL,
)
"""The header of a regular file as nearly every tar has it: octal numbers of full width, no prefix of the name."""
_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)


class MemberKind(IntEnum):
    """Whether a member can be read, else why not."""

    FILE = 0
    UNSAFE = 1
    """Its name leaves the archive: absolute, or with `..`."""
    LINK = 2
    SPECIAL = 3
    """A device, a pipe, a sparse file or an unknown kind."""
    CUT = 4
    """The archive ends inside it."""
    LARGE = 5
    """More bytes than are unpacked."""


@dataclass(frozen=True, slots=True)
class TarMember:
    """A member but folders; `name` has no `./` in front, `offset` is where its content begins."""

    name: str
    offset: int
    size: int
    kind: MemberKind


class TarError(Exception):
    """The archive cannot be read from here on; `code` is not_a_tar, truncated or bad_header."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class Forward(Protocol):
    """What a tar is read from, front to back."""

    def take(self, size: int) -> bytes:
        """The next `size` bytes, fewer at the end."""

    def skip_to(self, offset: int) -> bool:
        """Move to an offset that is not behind; False if the file ends before it."""


def tar_members(source: Forward) -> Iterator[TarMember]:
    """Yield each member before its content is read or skipped; the caller may `take` up to `size` bytes of it.

    Zero blocks are passed over, so that tars one after the other are read to the last. Raises TarError, after the
    members before the fault were yielded.
    """
    position = 0
    name: str | None = None
    size: int | None = None
    attributes: dict[str, str] = {}  # of a global pax header
    seen = False
    while True:
        head = source.take(BLOCK)
        if not head:
            if name is not None or size is not None:
                raise TarError("truncated", "it ends after an extended header")
            if not seen:
                raise TarError("truncated", "it is empty")
            return
        if head == _ZERO:
            position += BLOCK
            continue
        if len(head) < BLOCK:
            raise TarError("truncated", f"it ends inside a header, at byte {position:,}")
        info = _header(head, position, seen)
        seen = True
        start = position + BLOCK
        end = start + -(-info.size // BLOCK) * BLOCK
        if info.type in (_LONG_NAME, _LONG_LINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE):
            if info.size > _MOST_EXTENSION:
                raise TarError("bad_header", f"an extended header claims {info.size:,} bytes, at byte {position:,}")
            data = source.take(end - start)
            if len(data) < info.size:
                raise TarError("truncated", f"it ends inside an extended header, at byte {position:,}")
            if info.type == _LONG_NAME:
                name = data[: info.size].split(b"\0", 1)[0].decode("utf-8", "backslashreplace")
            elif info.type == tarfile.XGLTYPE:
                attributes |= _pax(data[: info.size], position)
            elif info.type != _LONG_LINK:
                own = attributes | _pax(data[: info.size], position)
                name = own.get("path", name)
                size = _size(own["size"], position) if "size" in own else size
                if any(key.startswith("GNU.sparse") for key in own):
                    raise TarError("bad_header", f"it holds a sparse file, at byte {position:,}: pack it without")
            position = end
            continue
        if size is not None:
            end = start + -(-size // BLOCK) * BLOCK
        member = _member(info, start, name=name or attributes.get("path"), size=size)
        name = size = None
        if info.type == tarfile.GNUTYPE_SPARSE:
            raise TarError("bad_header", f"it holds a sparse file, at byte {position:,}: pack it without")
        if member is not None:
            yield member
        if not source.skip_to(end):
            inside = member.name if member is not None else "a folder's entry"
            raise TarError("truncated", f"it ends inside {inside[:200]}")
        position = end


def is_whole(size: int, end: bytes) -> bool:
    """Whether a tar of `size` bytes with these last 1,024 bytes was closed properly."""
    return size % BLOCK == 0 and len(end) == 2 * BLOCK and not end.strip(b"\0")


def safe_name(name: str) -> str | None:
    """The name without `./` and doubled slashes; None where it leaves the archive."""
    if name.startswith("/") or "\\" in name or "\0" in name:
        return None
    words = [word for word in name.split("/") if word not in ("", ".")]
    return None if ".." in words or not words or (len(words[0]) == 2 and words[0][1] == ":") else "/".join(words)


def _header(head: bytes, position: int, seen: bool) -> tarfile.TarInfo:
    plain = _PLAIN.fullmatch(head)
    if plain is not None and sum(head) - sum(head[148:156]) + 8 * ord(" ") == int(plain["sum"], 8):
        info = tarfile.TarInfo(head[:100].partition(b"\0")[0].decode("utf-8", "backslashreplace"))
        info.size = int(plain["size"], 8)
        return info
    try:
        info = tarfile.TarInfo.frombuf(head, "utf-8", "backslashreplace")
    except (tarfile.HeaderError, ValueError) as error:
        if seen:
            raise TarError("bad_header", f"what stands at byte {position:,} is not a tar header ({error})") from None
        raise TarError("not_a_tar", f"it is not a tar ({error})") from None
    if info.size < 0:
        raise TarError("bad_header", f"a header claims {info.size:,} bytes, at byte {position:,}")
    if info.type not in tarfile.SUPPORTED_TYPES or info.type in _FILES:
        return info
    if info.type in (
        tarfile.LNKTYPE,
        tarfile.SYMTYPE,
        tarfile.DIRTYPE,
        tarfile.CHRTYPE,
        tarfile.BLKTYPE,
        tarfile.FIFOTYPE,
    ):
        info.size = 0  # no content follows, whatever the header says
    return info


def _member(info: tarfile.TarInfo, start: int, *, name: str | None, size: int | None) -> TarMember | None:
    """The member of a header, None for a folder."""
    if info.type == tarfile.DIRTYPE or (info.type == tarfile.AREGTYPE and info.name.endswith("/")):
        return None
    named = info.name if name is None else name
    clean = safe_name(named)
    kind = MemberKind.FILE
    if clean is None:
        kind = MemberKind.UNSAFE
    elif info.type in (tarfile.LNKTYPE, tarfile.SYMTYPE):
        kind = MemberKind.LINK
    elif info.type not in _FILES:
        kind = MemberKind.SPECIAL
    return TarMember(clean or named, start, info.size if size is None else size, kind)


def _pax(data: bytes, position: int) -> dict[str, str]:
    """The records of an extended header: length, space, key, equals, value, newline."""
    found: dict[str, str] = {}
    start = 0
    while start < len(data) and data[start : start + 1] != b"\0":
        digits, space, _ = data[start : start + 20].partition(b" ")
        end = start + int(digits) if digits.isdigit() else 0
        key, equals, value = data[start + len(digits) + 1 : max(end - 1, 0)].partition(b"=")
        if not space or not equals or end > len(data) or data[end - 1 : end] != b"\n":
            raise TarError("bad_header", f"an extended header cannot be read, at byte {position:,}")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "backslashreplace")
        start = end
    return found


def _size(text: str, position: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) < 20):
        raise TarError("bad_header", f"an extended header gives no size, at byte {position:,}")
    return int(text)
