"""What a file in the place of a shard is, by its first bytes and members, and what to do about it.

People have tars of other tools, compressed tars, zips, downloads that failed, and our own shards packed anew by
plain tar. None of them can be read by the manifest's byte ranges, and each is repaired in another way.
"""

from __future__ import annotations

import json
import shlex
import tarfile
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import IO

from sigma_data.corpus.record import KEY, MEMBER
from sigma_data.corpus.shard import BLOCK, Member, header
from sigma_data.storage.files import LFS_MESSAGE, is_lfs_pointer
from sigma_data.storage.paths import one_line

ARCHIVES = (".tar.gz", ".tgz", ".tar.zst", ".tzst", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.lz4", ".zip", ".7z")
"""Endings of archives that are unpacked before anything reads them."""

_COMPRESSED = {
    b"\x1f\x8b": "gzip",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"BZh": "bzip2",
    b"\xfd7zXZ": "xz",
    b"\x04\x22\x4d\x18": "lz4",
}
_ARCHIVED = {b"PK\x03\x04": ("zip", "unzip"), b"7z\xbc\xaf": ("7z", "7z x")}
_LOOKED_AT = 60
"""Members of a tar that are looked at to tell whose it is."""
_MOST_MEMBERS = 200_000
"""Members of a tar packed anew that are held in memory to be put in order."""
_MOST_JSON = 2**20


def archive_fault(head: bytes, path: str) -> str | None:
    """Why the file at `path` that begins so is not a tar, and what to do; None if it may be one."""
    if is_lfs_pointer(head):
        return f"is {LFS_MESSAGE}"
    if head[:64].lstrip().lower().startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not a tar: the download went wrong, fetch it again"
    for magic, tool in _COMPRESSED.items():
        if head.startswith(magic):
            command = f"{tool} -dc {shlex.quote(path)} > {shlex.quote(_unpacked(path))}"
            return f"is compressed by {tool}, and shards are read by byte ranges: unpack it first, {command}"
    for magic, (kind, command) in _ARCHIVED.items():
        if head.startswith(magic):
            return f"is a {kind} archive, not a tar: unpack it first, {command} {shlex.quote(path)}"
    if head.startswith(b"PAR1"):
        return "is a parquet file: read it with release:, or as the public corpus that it is (`sigma sources`)"
    return None


def foreign_tar(file: IO[bytes]) -> str | None:
    """What a tar without any record of ours holds, e.g. "KEY.jpg, KEY.txt"; None if it has one, or is truncated."""
    kinds: dict[str, None] = {}
    try:
        for name, _, size, offset in islice(_walk(file), _LOOKED_AT):
            _, _, suffix = name.partition(".")
            if MEMBER.fullmatch(suffix) and suffix != "json":
                return None
            if suffix == "json" and size <= _MOST_JSON:
                file.seek(offset)
                if _is_record(file.read(size)):
                    return None
            kinds.setdefault(f"KEY.{suffix}" if suffix else name)
    except tarfile.TarError:
        return None
    return ", ".join(list(kinds)[:6]) if kinds else None


def archive_of(location: str) -> str | None:
    """What a file that was given for parquet is by its name, and what to do; None where it may be parquet."""
    if location.lower().endswith(ARCHIVES):
        return "is an archive: unpack it first, and name the folder"
    return "is a tar: if sigma wrote it, read it with webdataset:" if location.lower().endswith(".tar") else None


def foreign_message(kinds: str) -> str:
    """What to do with a tar that sigma did not write."""
    return (
        f"is a tar of {kinds}, which sigma did not write and does not read: write its rows as parquet with the columns "
        "image_list and instruction_list (docs/corpus-format.md), then sigma build-dataset release:FOLDER"
    )


def repacked(file: IO[bytes]) -> list[Member] | None:
    """The members of a shard that another tool has packed anew, those of a key side by side, in order of first sight.

    Folders, ./ in front of names and extended headers are passed over. None where the tar is as we write it, is cut,
    or holds what no shard of ours does.
    """
    file.seek(0)
    head = file.read(BLOCK)
    members: dict[str, list[Member]] = {}
    try:
        for number, (name, kind, size, offset) in enumerate(_walk(file)):
            key, _, suffix = name.partition(".")
            if kind or number >= _MOST_MEMBERS or not KEY.fullmatch(key) or not MEMBER.fullmatch(suffix):
                return None
            if not number and offset == BLOCK and head == header(name, size):
                return None
            members.setdefault(key, []).append(Member(key, suffix, offset, size))
    except (tarfile.TarError, ValueError):
        return None
    return [member for group in members.values() for member in group] or None


def is_repacked(file: IO[bytes], expected: Mapping[str, tuple[int, int]]) -> bool:
    """Whether a file holds just the members expected (name -> offset, size), packed elsewhere by another tool."""
    members = repacked(file) or ()
    same = {member.name: member.size for member in members} == {name: size for name, (_, size) in expected.items()}
    return same and any(expected[member.name][0] != member.offset for member in members)


def rebuild_advice(folder: str) -> str:
    """How to repair a corpus whose shards were repacked."""
    return (
        "the shard was repacked by another tool, so the manifest's byte ranges no longer match: build the corpus "
        f"from it again, sigma build-dataset {shlex.quote('webdataset:' + folder)} --out NEW"
    )


def shard_fault(path: Path, folder: str) -> str | None:
    """What a file in the place of a shard is, and what to do; None where it may be a shard that is damaged."""
    with path.open("rb") as file:
        if fault := archive_fault(file.read(BLOCK), str(path)):
            return fault
        return rebuild_advice(folder) if repacked(file) is not None else None


def folder_hint(path: Path) -> str:
    """What a path that is not a corpus holds instead and what to do, to be added to a message; may be empty."""
    if path.is_file():
        return f"; {_file_hint(path)}"
    for file in _first_files(path):
        if file.suffix == ".parquet":
            source = shlex.quote(f"release:{path}")
            built = f"build a corpus from it, sigma build-dataset {source} --out CORPUS"
            return f"; it holds parquet: {built}, with the name of a public corpus (`sigma sources`) for release"
        if file.name.lower().endswith((*ARCHIVES, ".tar")):
            return f"; {one_line(file.relative_to(path).as_posix())} {_file_hint(file)}"
    return ""


def _file_hint(path: Path) -> str:
    try:
        with path.open("rb") as file:
            if fault := archive_fault(file.read(BLOCK), str(path)):
                return fault
            if kinds := foreign_tar(file):
                return foreign_message(kinds)
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    if path.name.endswith(".tar"):
        source = shlex.quote(f"webdataset:{path.parent}")
        return f"is one tar: a corpus is built from shards by sigma build-dataset {source} --out CORPUS"
    return "is a file, and a corpus is the folder with corpus.json in it"


def _first_files(path: Path) -> Iterator[Path]:
    """Files of a folder and of those just below it, in order."""
    try:
        for entry in islice(sorted(path.iterdir()), 1000):
            if entry.is_file():
                yield entry
            elif entry.is_dir() and not entry.name.startswith("."):
                yield from islice((file for file in sorted(entry.iterdir()) if file.is_file()), 3)
    except OSError:
        return


def _walk(file: IO[bytes]) -> Iterator[tuple[str, str, int, int]]:
    """(name without folders, what else than a file it is, size, offset) of each member but folders.

    Raises TarError if it is not a tar or is truncated, ValueError for a name that points outside.
    """
    file.seek(0, 2)
    length = file.tell()
    file.seek(0)
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for info in tar:
            tar.members.clear()  # type: ignore[attr-defined] # it would keep them all
            if info.isdir():
                continue
            if info.name.startswith("/") or ".." in info.name.split("/"):
                raise ValueError(f"{info.name!r} points outside")
            if info.offset_data + info.size > length:
                raise tarfile.ReadError("cut")
            name = info.name.rpartition("/")[2]
            yield name, "" if info.isreg() and not info.issparse() else "special", info.size, info.offset_data


def _is_record(data: bytes) -> bool:
    try:
        record = json.loads(data)
    except (ValueError, RecursionError):
        return False
    return isinstance(record, dict) and "schema_version" in record and "turns" in record


def _unpacked(path: str) -> str:
    """The name of an archive as a tar."""
    for ending in sorted(ARCHIVES, key=len, reverse=True):
        if path.lower().endswith(ending):
            return path[: -len(ending)] + ".tar"
    return path.removesuffix(".tar") + ".unpacked.tar"
