"""From a name to files in a folder: what there is and what it takes, then the files, several at a time."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.common.folder_lock import LOCK, FolderLock
from pipelines.common.progress import ProgressBar
from pipelines.download.catalog import Entry
from pipelines.download.fetch import Record, fetch, partial_path, unfinished_mark
from pipelines.download.hub import Hub, RemoteFile, Repository
from sigma_data.errors import ConfigError
from sigma_data.storage.files import disk_error
from sigma_data.text_format import counted, format_bytes

STREAMS = 4
"""Files at a time: one stream does not fill a line."""
_MEGABYTE = 10**6


@dataclass(frozen=True)
class Part:
    """A repository, the folder it goes to, and its files that are not there yet."""

    repository: Repository
    folder: Path
    missing: tuple[RemoteFile, ...]


@dataclass(frozen=True)
class Plan:
    """What a download would bring."""

    entry: Entry
    folder: Path
    parts: tuple[Part, ...]
    free: int

    @property
    def missing(self) -> int:
        """Bytes that are not there yet; of a file that was begun, all."""
        return sum(file.size for part in self.parts for file in part.missing)

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "name": self.entry.name,
            "repositories": [
                {
                    "repository": part.repository.name,
                    "commit": part.repository.commit,
                    "license": part.repository.license or self.entry.license,
                    "folder": str(part.folder),
                    "files": len(part.repository.files),
                    "bytes": part.repository.size,
                    "missing": [{"path": file.path, "bytes": file.size} for file in part.missing],
                }
                for part in self.parts
            ],
            "missing_bytes": self.missing,
            "free_bytes": self.free,
        }

    def show(self) -> str:
        """License, sizes and folders, for a person."""
        lines = []
        for part in self.parts:
            found = part.repository
            missing = format_bytes(sum(file.size for file in part.missing)) if part.missing else "nothing"
            lines += [
                found.name,
                f"  license  {self._license(found)}{', terms to accept' if found.gated else ''}",
                f"  files    {len(found.files):,} of {format_bytes(found.size)}; {missing} to fetch",
                f"  folder   {part.folder}",
            ]
        return "\n".join([*lines, f"{format_bytes(self.free)} are free there"])

    def _license(self, found: Repository) -> str:
        if found.license is None and self.entry.license is not None:
            return f"{self.entry.license} (says `sigma sources`; the card says none)"
        return found.license or "not stated"


def plan_download(
    entry: Entry,
    out: Path | None,
    *,
    revision: str | None = None,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    endpoint: str | None = None,
) -> Plan:
    """Ask the hub what there is. `include` and `exclude` replace and add to what the name asks for.

    Raises ConfigError, SourceError as `Hub.repository` does.
    """
    hub = Hub(endpoint)
    out = out or entry.folder
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file: choose a folder with --out")
    parts = []
    for name in entry.repos:
        repository = hub.repository(
            name,
            entry.repo_kind,
            revision=revision,
            include=include or entry.include,
            exclude=(*entry.exclude, *exclude),
        )
        folder = out if len(entry.repos) == 1 else out / name.rpartition("/")[2]
        record = Record(folder)
        missing = tuple(file for file in repository.files if not record.holds(file, folder / file.path))
        parts.append(Part(repository, folder, missing))
    there = next(place for place in (out, *out.absolute().parents) if place.is_dir())
    return Plan(entry, out, tuple(parts), shutil.disk_usage(there).free)


def download(plan: Plan, *, endpoint: str | None = None, streams: int = STREAMS) -> dict[str, Any]:
    """Bring what is missing; returns the folders. What is there stays, whatever happens; run it again to go on.

    Raises ConfigError where there is no room or another process is at work there, SourceError where the hub fails.
    """
    if plan.missing > plan.free + sum(_begun(part) for part in plan.parts):
        raise ConfigError(
            f"{plan.entry.name}: {format_bytes(plan.missing)} are missing and {format_bytes(plan.free)} are free: "
            "choose another disk with --out, or fewer files with --include"
        )
    hub = Hub(endpoint)
    mark = unfinished_mark(plan.folder, plan.entry.name)
    if plan.missing:
        try:
            plan.folder.mkdir(parents=True, exist_ok=True)
            mark.touch()
        except OSError as error:
            raise disk_error(error, plan.folder) from None
    for part in plan.parts:
        if part.missing:
            _fetch_all(hub, part, streams)
    mark.unlink(missing_ok=True)
    return {
        "folders": [str(part.folder) for part in plan.parts],
        "files": sum(len(part.repository.files) for part in plan.parts),
        "bytes": sum(part.repository.size for part in plan.parts),
    }


def downloaded(plan: Plan, result: dict[str, Any]) -> str:
    """The result in a line."""
    folders = ", ".join(result["folders"])
    return f"{folders}: {counted(result['files'], 'file')} of {format_bytes(result['bytes'])}, hashes as on the hub\n"


def _fetch_all(hub: Hub, part: Part, streams: int) -> None:
    from huggingface_hub.utils.tqdm import disable_progress_bars

    disable_progress_bars()  # one bar for all files is enough
    part.folder.mkdir(parents=True, exist_ok=True)
    held = FolderLock(part.folder / LOCK, "a download", otherwise="choose another --out")
    record = Record(part.folder)
    lock = threading.Lock()
    total = sum(file.size for file in part.missing)
    stopped = threading.Event()
    try:
        with ProgressBar("download", -(-total // _MEGABYTE), "MB") as progress:
            count = 0

            def add(amount: int) -> None:
                nonlocal count
                if stopped.is_set():
                    raise _Stopped
                with lock:
                    count += amount
                    progress.add(count // _MEGABYTE - progress.count)

            def one(file: RemoteFile) -> None:
                path = fetch(hub, part.repository, file, part.folder, add)
                with lock:
                    record.add(file, path)

            pool = ThreadPoolExecutor(streams, thread_name_prefix="download")
            try:
                largest_first = sorted(part.missing, key=lambda file: -file.size)
                futures = [pool.submit(one, file) for file in largest_first]
                done, _ = wait(futures, return_when=FIRST_EXCEPTION)
                for future in done:
                    future.result()
            finally:  # also for Ctrl-C: threads end with their next block, and partial files stay for the next run
                stopped.set()
                pool.shutdown(wait=True, cancel_futures=True)
    except OSError as error:
        raise disk_error(error, part.folder) from None
    finally:
        held.release()


class _Stopped(Exception):
    """Another file has failed, or the user has had enough."""


def _begun(part: Part) -> int:
    """Bytes of partial files, which the missing ones count as missing."""
    return sum(
        path.stat().st_size for file in part.missing for path in [partial_path(part.folder, file)] if path.is_file()
    )
