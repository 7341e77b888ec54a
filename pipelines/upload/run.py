"""From a folder to a repository: what it lacks, in commits that can be cut off between any two and gone on with.

The files that say that all others are there, a corpus's `corpus.json` and the card, go with the last commit, as does
the removal of what does not belong: until then the repository is what it was, with more files in it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.common.console import shows_progress
from pipelines.common.progress import ProgressBar
from pipelines.download.hub import RemoteFile
from pipelines.upload.content import Content, LocalFile, content_of
from pipelines.upload.repository import HubRepository, State
from sigma_data.errors import ConfigError, SourceError
from sigma_data.storage.files import disk_error
from sigma_data.text_format import aligned, counted, format_bytes

_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_COMMIT_BYTES, _COMMIT_FILES = 5 * 10**9, 100
"""Of a commit: what a cut loses at most, where the hub does not keep parts of it."""
_MEGABYTE = 10**6
_SHOWN = 20


@dataclass(frozen=True)
class Plan:
    """What an upload would do. `state` is None where the hub was not asked, for want of an account."""

    place: Path
    content: Content
    repository: HubRepository
    public: bool
    account: str | None
    state: State | None
    missing: tuple[LocalFile, ...]
    others: tuple[str, ...]
    """Files that are there and not here, which are removed."""

    @property
    def size(self) -> int:
        """Bytes to be sent."""
        return sum(file.size for file in self.missing)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        lacks = {file.path for file in self.missing}
        return {
            "repository": self.repository.name,
            "kind": self.content.kind,
            "address": self.repository.address,
            "account": self.account,
            "exists": None if self.state is None else self.state.exists,
            "public": self.public,
            "license": self.content.license,
            "files": [
                {"path": file.path, "bytes": file.size, "missing": file.path in lacks} for file in self.content.files
            ],
            "removed": list(self.others),
            "missing_bytes": self.size,
        }

    def show(self, *, every: bool = False) -> str:
        """Files and sizes for a person, the largest, or `every` one."""
        lacks = {file.path for file in self.missing}
        largest = sorted(self.content.files, key=lambda file: -file.size)
        shown = list(self.content.files) if every else largest[:_SHOWN]
        rows = [(file.path, format_bytes(file.size), "" if file.path in lacks else "is there") for file in shown]
        left = len(self.content.files) - len(shown)
        made = "new" if self.state is None or not self.state.exists else "there already"
        seen = "public" if self.public else "private"
        stated = self.content.license or "not stated"
        there = len(self.content.files) - len(self.missing)
        lines = [
            aligned(rows, right=(1,)),
            *([f"and {counted(left, 'smaller file')}"] if left else []),
            *(f"{path}: is removed there" for path in self.others),
            f"{self.repository.address} ({self.content.kind}, {made}, {seen}, license {stated})",
            f"{counted(len(self.missing), 'file')} of {format_bytes(self.size)} to send, {there} there",
        ]
        if self.state is None:
            lines.append("not logged in: what is there already is not known")
        return "\n".join(lines)


def check_target(name: str) -> None:
    """Raise ConfigError unless this is OWNER/NAME."""
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name}: is no name on the hub: write OWNER/NAME")


def plan_upload(
    place: Path,
    name: str,
    *,
    public: bool = False,
    replace: bool = False,
    license_: str | None = None,
    evaluations: Sequence[Path] | None = None,
    endpoint: str | None = None,
    dry: bool = False,
) -> Plan:
    """Look at the folder, and ask the hub what `name` holds of it; a `dry` plan can do without an account.

    With `replace`, files that are there and not here are removed at the end. Raises ConfigError as `content_of`,
    without an account, where there are such files and no `replace`, and where the repository is public and that was
    not asked for; SourceError where the hub fails.
    """
    check_target(name)
    content = content_of(place, name=name, license_=license_, evaluations=evaluations)
    repository = HubRepository(name, content.kind, endpoint=endpoint)
    try:
        account = repository.check_account()
    except (ConfigError, SourceError):
        if not dry:
            raise
        return Plan(place, content, repository, public, None, None, content.files, ())
    state = repository.state()
    if state.exists and not state.private and not public:
        raise ConfigError(f"{name}: is public: add --public to upload to it all the same, or choose another name")
    here = {file.path for file in content.files}
    others = tuple(file.path for file in state.files if file.path not in here)
    if others and not replace:
        few = ", ".join(others[:3]) + (", ..." if len(others) > 3 else "")
        raise ConfigError(
            f"{name}: holds {counted(len(others), 'file')} that {place} does not ({few}): add --replace to remove "
            "what is not here, or choose another name"
        )
    there = {file.path: file for file in state.files}
    try:
        missing = tuple(file for file in content.files if not _same(file, there.get(file.path)))
    except OSError as error:
        raise disk_error(error, place) from None
    return Plan(place, content, repository, public or not state.private, account, state, missing, others)


def upload(plan: Plan) -> dict[str, Any]:
    """Send what is missing, and hold what the hub then has against what is here. Run it again to go on.

    Raises ConfigError where the name is taken, SourceError where the hub fails or has other bytes afterwards.
    """
    repository, content = plan.repository, plan.content
    assert plan.state is not None
    if not plan.state.exists:
        repository.create(private=not plan.public)
    parent = plan.state.commit
    try:
        batches = list(_batches(plan))
        with _bars(), ProgressBar("upload", -(-plan.size // _MEGABYTE), "MB") as progress:
            sent = 0
            for number, (files, delete) in enumerate(batches, 1):
                part = f" ({number} of {len(batches)})" if len(batches) > 1 else ""
                message = f"Upload by sigma{part}"
                parent = repository.commit(files, delete=delete, parent=parent, message=message)
                sent += sum(file.size for file in files)
                progress.add(-(-sent // _MEGABYTE) - progress.count)
        _verify(plan)
    except OSError as error:
        raise disk_error(error, plan.place) from None
    return {
        "repository": repository.name,
        "address": repository.address,
        "public": plan.public,
        "commit": parent,
        "files": len(content.files),
        "sent": len(plan.missing),
        "sent_bytes": plan.size,
        "removed": list(plan.others),
    }


def uploaded(result: dict[str, Any]) -> str:
    """The result in a line."""
    seen = "public" if result["public"] else "private"
    return (
        f"{result['address']}: {counted(result['files'], 'file')}, {result['sent']:,} of them sent "
        f"({format_bytes(result['sent_bytes'])}), hashes as here; {seen}\n"
    )


def _batches(plan: Plan) -> Iterator[tuple[list[LocalFile], Sequence[str]]]:
    last = [file for file in plan.missing if file.path in plan.content.last]
    batch: list[LocalFile] = []
    for file in plan.missing:
        if file.path in plan.content.last:
            continue
        if batch and (len(batch) == _COMMIT_FILES or sum(one.size for one in batch) + file.size > _COMMIT_BYTES):
            yield batch, ()
            batch = []
        batch.append(file)
    if len(batch) + len(last) > _COMMIT_FILES:
        yield batch, ()
        batch = []
    if batch or last or plan.others:
        yield [*batch, *last], plan.others


def _verify(plan: Plan) -> None:
    """Raises SourceError where the hub has other files, or other bytes, than are here."""
    there = {file.path: file for file in plan.repository.state().files}
    differ = [file.path for file in plan.missing if not _same(file, there.get(file.path))]
    if differ:
        raise SourceError(
            f"{plan.repository.name}: {differ[0]} is not there as it is here, of {counted(len(differ), 'file')}: run "
            "the same command again"
        )


def _same(file: LocalFile, there: RemoteFile | None) -> bool:
    if there is None or there.size != file.size:
        return False
    return file.sha256() == there.sha256 if there.sha256 else file.blob() == there.blob


class _bars:  # noqa: N801 - used as a function
    """The client's own bars, by bytes, on a terminal; none elsewhere, where our lines suffice."""

    def __enter__(self) -> None:
        from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars

        self._before = are_progress_bars_disabled()
        if not (shows_progress() and sys.stderr.isatty()):
            disable_progress_bars()

    def __exit__(self, *_: object) -> None:
        from huggingface_hub.utils.tqdm import enable_progress_bars

        if not self._before:
            enable_progress_bars()
