"""Results on disk: a folder each, with what it was made from; what was begun is there before it is computed.

`ask.json` and the references are written when something is asked, `result.json` when it ends. So a killed server loses
nothing: what has no result was interrupted, and can be asked again.
"""

from __future__ import annotations

import json
import re
import secrets
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.app.ask import Ask
from pipelines.common.folder_lock import LOCK, FolderLock
from sigma_data.errors import ConfigError, reason_of
from sigma_data.images.decode import thumbnail
from sigma_data.images.formats import EXTENSIONS, sniff
from sigma_data.storage.files import disk_error, dump_json, write_atomic

ASK, RESULT = "ask.json", "result.json"
DONE, FAILED, STOPPED, INTERRUPTED = "done", "failed", "stopped", "interrupted"
_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9]{3}-[0-9a-f]{6}")
_SIDE = 320


@dataclass(frozen=True)
class Made:
    """What a model answered: the file of an image in the entry's folder, or a text; `command` makes it again.

    `size` is the image's (width, height), None in folders of an earlier version; `caveat` as `caveat_of` says it.
    """

    model: str
    command: str
    file: str | None = None
    text: str | None = None
    seconds: float = 0.0
    trained: bool = True
    size: tuple[int, int] | None = None
    caveat: str = ""


@dataclass(frozen=True)
class Entry:
    """A result of the gallery. `message` says why it failed."""

    id: str
    folder: Path
    ask: Ask
    state: str = INTERRUPTED
    message: str = ""
    made: tuple[Made, ...] = ()

    def path(self, name: str) -> Path:
        """A file of the entry."""
        return self.folder / name


class Gallery:
    """The folder of all results, for one server at a time.

    Raises ConfigError where another server has it, or something else lies there; BuildError where it cannot be written.
    """

    def __init__(self, out: Path) -> None:
        self.out = out.absolute()
        try:
            if self.out.exists() and not self.out.is_dir():
                raise ConfigError(f"--out {out}: is a file; choose a folder")
            strange = [one.name for one in self.out.iterdir() if not _known(one.name)] if self.out.is_dir() else []
            if strange:
                raise ConfigError(f"--out {out}: holds other things ({strange[0]}); choose a folder for results alone")
            self._lock = FolderLock(self.out / LOCK, "sigma app")
        except OSError as error:
            raise disk_error(error, out) from None

    def close(self) -> None:
        """Let others use the folder."""
        self._lock.release()

    def begin(self, ask: Ask) -> Entry:
        """Keep what is asked; the entry's images are copies. Raises BuildError where the disk refuses."""
        now = time.time()
        name = f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime(now))}-{int(now * 1000) % 1000:03d}-{secrets.token_hex(3)}"
        folder = self.out / name
        try:
            folder.mkdir(parents=True)
            images = []
            for number, image in enumerate(ask.images, 1):
                with Path(image).open("rb") as file:
                    kind = EXTENSIONS.get(sniff(file.read(64)), "img")
                copy = folder / f"image_{number}.{kind}"
                shutil.copyfile(image, copy)
                images.append(str(copy))
            kept = ask.with_images(images)
            write_atomic(folder / ASK, dump_json(_relative(kept)))
        except OSError as error:
            raise disk_error(error, folder) from None
        return Entry(name, folder, kept)

    def end(self, entry: Entry, state: str, message: str = "", made: Sequence[Made] = ()) -> Entry:
        """Keep how it ended. Raises BuildError where the disk refuses."""
        ended = replace(entry, state=state, message=message, made=tuple(made))
        try:
            for one in made:
                if one.file is not None:
                    small = thumbnail(ended.path(one.file).read_bytes(), _SIDE)
                    if small is not None:
                        write_atomic(ended.path(small_name(one.file)), small)
            found = {"state": state, "message": message, "made": [vars(one) for one in made]}
            write_atomic(ended.path(RESULT), dump_json(found))
        except OSError as error:
            raise disk_error(error, entry.folder) from None
        return ended

    def ids(self) -> list[str]:
        """All entries, the latest first; nothing of them is read."""
        return sorted((one.name for one in self.out.iterdir() if _ID.fullmatch(one.name)), reverse=True)

    def entry(self, name: str) -> Entry:
        """An entry by its id. Raises ConfigError where there is none, or it cannot be read."""
        if not _ID.fullmatch(name):
            raise ConfigError("there is no such result in the gallery")
        folder = self.out / name
        try:
            asked = Ask.from_dict(json.loads((folder / ASK).read_text("utf-8")))
            ask = asked.with_images([str(folder / Path(image).name) for image in asked.images])
            if not (folder / RESULT).exists():
                return Entry(name, folder, ask)
            found: dict[str, Any] = json.loads((folder / RESULT).read_text("utf-8"))
            made = tuple(Made(**{**one, "size": _size(one.get("size"))}) for one in found["made"])
            return Entry(name, folder, ask, str(found["state"]), str(found["message"]), made)
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(f"{folder}: cannot be read ({reason_of(error)})") from None


def small_name(file: str) -> str:
    """The thumbnail beside an image."""
    return f"{Path(file).stem}.thumbnail.jpg"


def _relative(ask: Ask) -> dict[str, Any]:
    """For the file: images by their names in the folder, so that it can be moved."""
    return ask.with_images([Path(image).name for image in ask.images]).as_dict()


def _size(found: Any) -> tuple[int, int] | None:
    return None if found is None else (int(found[0]), int(found[1]))


def _known(name: str) -> bool:
    return name == LOCK or _ID.fullmatch(name) is not None
