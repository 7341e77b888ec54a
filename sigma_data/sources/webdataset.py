"""Shards written by sigma as a source, so that corpora can be merged, filtered and rebuilt.

The path is a corpus, a folder of tars or one tar. Ids, families and sources are those of the records. A damaged tar is
read up to the damage, which becomes a rejection.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, ClassVar, Literal, cast

from sigma_data.corpus.archives import ARCHIVES, archive_fault, foreign_message, foreign_tar, repacked
from sigma_data.corpus.corpus import COMMIT, WORK, is_shard_name
from sigma_data.corpus.record import RecordError, decode
from sigma_data.corpus.shard import BLOCK, Member, ShardFault, group_members, header, read_members, read_range
from sigma_data.errors import SourceError
from sigma_data.sample import Family, Rejection, Sample
from sigma_data.sources.base import Fragment, Reader, ReaderOptions
from sigma_data.storage.data_folder import data_folder

MAX_MEMBER_BYTES = 256 * 2**20
"""Largest member of a tar that is read."""


class WebdatasetOptions(ReaderOptions):
    """Shards that sigma wrote."""

    split: str | None = None
    """Only the shards in the folder of this split."""
    family: Family | None = None
    """Only the samples of this family."""
    splits: Literal["keep", "new"] = "keep"
    """keep: samples stay in the split of their shard's path (SPLIT/FAMILY-00000.tar), so that a test set is kept when
    corpora are merged; new: splits are assigned anew."""


class WebdatasetReader(Reader):
    """Reads shards that `sigma` wrote."""

    options_type: ClassVar[type[ReaderOptions]] = WebdatasetOptions
    injected = True

    def __init__(self, scheme: str, path: str, options: ReaderOptions) -> None:
        super().__init__(scheme, path, options)
        self.options = cast(WebdatasetOptions, options)
        self._folder = data_folder(path)

    def folder(self) -> Path | None:
        return self._folder.local

    def fingerprint(self, fragment: Fragment) -> str:
        return self._folder.fingerprint(fragment.location, fragment.stamp)

    def fragments(self) -> list[Fragment]:
        listed = self._folder.files(".tar")
        self._check_commits([location for location, _ in listed])
        wanted = self.options.split
        found = [
            Fragment(location, "", stamp)
            for location, stamp in listed
            if wanted is None or location.split("/")[-2:-1] == [wanted]
        ]
        if not found:
            raise SourceError(f"{self.path}: no .tar file below this place{'' if listed else self._hint()}")
        self._refuse_foreign([fragment.location for fragment in found])
        return found

    def _hint(self) -> str:
        """What there is instead of tars, for the error message."""
        for location, _ in self._folder.files(""):
            if location.lower().endswith((*ARCHIVES, ".parquet")):
                with self._folder.open(location) as file:
                    fault = archive_fault(file.read(BLOCK), location)
                return f", but {location}: it {fault}" if fault else ""
        return ""

    def _refuse_foreign(self, locations: list[str]) -> None:
        """Raise SourceError if no tar is a sigma shard; a single foreign tar becomes a rejection."""
        first = ""
        for location in locations:
            with self._folder.open(location) as file:
                fault = archive_fault(file.read(BLOCK), location)
                if fault is None and (kinds := foreign_tar(file)):
                    fault = foreign_message(kinds)
            if fault is None:
                return
            first = first or f"{location} {fault}"
        raise SourceError(f"{self.path}: {first}")

    def _check_commits(self, locations: list[str]) -> None:
        """A corpus that shards belong to must be finished and have exactly these shards."""
        corpora: dict[str, set[str]] = {}
        for location in locations:
            folders = location.split("/")
            if len(folders) > 1:
                root = "/".join([*folders[:-2], ""])
                corpora.setdefault(root, set()).add("/".join(folders[-2:]))
        for root, there in corpora.items():
            if not self._folder.exists(f"{root}{COMMIT}"):
                if self._folder.exists(f"{root}{WORK}"):
                    raise SourceError(f"{self.path}: the build of {root or 'this corpus'} has not finished")
                continue
            try:
                with self._folder.open(f"{root}{COMMIT}") as file:
                    named = set(json.load(file)["shards"])
            except (ValueError, KeyError, TypeError):
                raise SourceError(f"{self.path}: {root}{COMMIT} cannot be read; run sigma validate") from None
            if wrong := sorted(named ^ there):
                what = "is not there" if wrong[0] in named else "is not named in its corpus.json"
                raise SourceError(f"{self.path}: the shard {root}{wrong[0]} {what}; run sigma validate")

    def read(self, fragment: Fragment) -> Iterator[Sample | Rejection]:
        tail = fragment.location.split("/")[-2:]
        split = tail[0] if self.options.splits == "keep" and is_shard_name("/".join(tail)) else None
        with self._folder.open(fragment.location) as file:
            if fault := archive_fault(file.read(BLOCK), fragment.location):
                yield Rejection(self.name, fragment.location, None, "shard_bad_header", f"the file {fault}")
                return
            rewritten = repacked(file) if self._folder.local or _begins_like_foreign_tar(file) else None
            members = read_members(file) if rewritten is None else iter(rewritten)
            index = 0
            damage: ShardFault | None = None

            def until_fault() -> Iterator[Member]:
                nonlocal damage
                try:
                    yield from members
                except ShardFault as found:
                    damage = found

            for group in group_members(until_fault()):
                record = self._record(file, group, fragment.location, index)
                index += 1
                if isinstance(record, Rejection):
                    yield record
                elif self.options.family in (None, record.family):
                    yield replace(record, split=split)
            if damage is not None:
                yield Rejection(self.name, fragment.location, None, f"shard_{damage.code}", str(damage))

    def _record(self, file: IO[bytes], group: list[Member], location: str, row: int) -> Sample | Rejection:
        try:
            suffixes = [member.suffix for member in group]
            if len(set(suffixes)) != len(suffixes):
                raise RecordError(f"the key {group[0].key} has a member twice")
            if "json" not in suffixes:
                raise RecordError(f"the key {group[0].key} has no JSON")
            if large := [member.name for member in group if member.size > MAX_MEMBER_BYTES]:
                raise RecordError(f"{large[0]} is larger than {MAX_MEMBER_BYTES:,} bytes")
            content = {member.suffix: read_range(file, member.offset, member.size) for member in group}
            sample = decode(content.pop("json"), content)
            if sample.id != group[0].key:
                raise RecordError(f"the record of key {group[0].key} has the id {sample.id!r}")
            return sample
        except (RecordError, ShardFault) as error:
            return Rejection(self.name, location, row, "bad_record", str(error))


def _begins_like_foreign_tar(file: IO[bytes]) -> bool:
    """Whether a tar does not begin as sigma writes it; for a remote one, whose headers are read only once."""
    try:
        first = next(read_members(file), None)
    except ShardFault:
        return True
    file.seek(0)
    return first is None or file.read(BLOCK) != header(first.name, first.size)


READER = WebdatasetReader
