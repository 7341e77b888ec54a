"""What a folder would put on the hub: the files of a committed corpus, or those of a model, and the card."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipelines.download.catalog import Kind
from pipelines.train.provenance import stated_license
from pipelines.upload.model_card import find_evaluations, model_card
from sigma_data.corpus.corpus import CARD, COMMIT, REPORT, open_corpus
from sigma_data.errors import ConfigError
from sigma_data.storage.paths import no_folder
from sigma_model.model_files import weight_files
from sigma_model.omnigen2.files import is_omnigen2
from sigma_model.omnigen2.lora import is_adapter
from sigma_model.run_directory import refuse_run

_BLOCK = 2**20


@dataclass(frozen=True)
class LocalFile:
    """A file to be uploaded as `path`: of this machine, or bytes that are made for the hub."""

    path: str
    source: Path | bytes
    size: int

    def sha256(self) -> str:
        """What names its content where it is a large file. Raises OSError."""
        return self._hash(hashlib.sha256())

    def blob(self) -> str:
        """What names its content where git holds it. Raises OSError."""
        return self._hash(hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False))

    def _hash(self, state: hashlib._Hash) -> str:
        if isinstance(self.source, bytes):
            state.update(self.source)
        else:
            with self.source.open("rb") as file:
                while block := file.read(_BLOCK):
                    state.update(block)
        return state.hexdigest()


@dataclass(frozen=True)
class Content:
    """A place's files, in the order in which they go: `last` are those that say that all others are there."""

    kind: Kind
    license: str | None
    files: tuple[LocalFile, ...]
    last: frozenset[str]


def content_of(
    place: Path, *, name: str, license_: str | None = None, evaluations: Sequence[Path] | None = None
) -> Content:
    """The files of a corpus, or of a model with a card, which is to be called `name` on the hub.

    A card that lies there already (README.md) is taken as it is, and `license_` refused beside it; else one is written
    of what the export recorded and of `evaluations`, by default those that lie beside the model. Raises ConfigError
    for another folder, for links, and for files that are missing; CorpusError.
    """
    if not place.is_dir():
        raise ConfigError(f"{no_folder(place)}: name a corpus, or what `sigma export` wrote")
    if (place / COMMIT).exists():
        if license_ is not None or evaluations is not None:
            option = "--license" if license_ is not None else "--eval"
            raise ConfigError(f"{option} is for models: a corpus has its own card, with the licenses of its sources")
        return _corpus(place)
    refuse_run(place)
    omnigen2 = is_omnigen2(place)
    if not (omnigen2 or is_adapter(place) or weight_files(place)):
        raise ConfigError(f"{place}: is neither a corpus ({COMMIT}) nor a model with weights: nothing to upload")
    files = [_file(place, path) for path in sorted(place.rglob("*")) if _belongs(place, path)]
    card = next((file for file in files if file.path == CARD), None)
    if card is not None:
        if license_ is not None or evaluations is not None:
            raise ConfigError(f"{place / CARD}: is the card already: change it, or remove it to have one written")
        return Content("model", stated_license(place / CARD), tuple(files), frozenset({CARD}))
    found = find_evaluations(place, evaluations)
    written, stated = model_card(place, name=name, license_=license_, evaluations=found)
    text = written.encode()
    return Content("model", stated, (*files, LocalFile(CARD, text, len(text))), frozenset({CARD}))


def _corpus(place: Path) -> Content:
    commit = open_corpus(place).commit
    named = {**commit["shards"], **commit["files"]}
    files = []
    for name in (*sorted(commit["shards"]), *sorted(commit["files"]), COMMIT):
        path = place / name
        if not path.is_file():
            raise ConfigError(f"{path}: is missing: `sigma validate {place}` says what else is")
        found = _file(place, path)
        if name in named and name not in (CARD, REPORT) and found.size != named[name]["bytes"]:
            raise ConfigError(f"{path}: is not as it was built: `sigma validate {place}` says what is damaged")
        files.append(found)
    return Content("dataset", stated_license(place / CARD), tuple(files), frozenset({COMMIT, CARD}))


def _belongs(place: Path, path: Path) -> bool:
    """Hidden files are notes of this machine: of downloads, locks and indexes."""
    return not path.is_dir() and not any(part.startswith(".") for part in path.relative_to(place).parts)


def _file(place: Path, path: Path) -> LocalFile:
    if path.is_symlink() or not path.is_file():
        raise ConfigError(f"{path}: is a link, or no file: copy what it leads to, so that nothing is uploaded unseen")
    return LocalFile(path.relative_to(place).as_posix(), path, path.stat().st_size)
