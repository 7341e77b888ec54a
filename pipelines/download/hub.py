"""What a repository on the hub holds, and the hub's errors in words."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath

from pipelines.download.catalog import Kind
from sigma_data.errors import ConfigError, SourceError

_TIMEOUT_S = 30.0
_NUMBER = re.compile(r"\[Errno -?\d+\] ")


@dataclass(frozen=True)
class RemoteFile:
    """A file of a repository: its size in bytes, and the SHA-256 of it (large files) or git's SHA-1 of the blob."""

    path: str
    size: int
    sha256: str | None
    blob: str

    @property
    def digest(self) -> str:
        """What names its content."""
        return self.sha256 or self.blob


@dataclass(frozen=True)
class Repository:
    """One state of a repository. `license` as its card says, None where it says nothing."""

    name: str
    kind: Kind
    commit: str
    license: str | None
    gated: bool
    files: tuple[RemoteFile, ...]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


class Hub:
    """The hub that HF_ENDPOINT names, or `endpoint`."""

    def __init__(self, endpoint: str | None = None) -> None:
        from huggingface_hub import HfApi

        self._api = HfApi(endpoint=endpoint)
        self.endpoint = self._api.endpoint

    def repository(
        self,
        name: str,
        kind: Kind,
        *,
        revision: str | None = None,
        include: Sequence[str] = (),
        exclude: Sequence[str] = (),
    ) -> Repository:
        """What is there, of that the files that are wanted. Raises SourceError, ConfigError for what is not there."""
        from huggingface_hub.hf_api import RepoFile

        with hub_errors(name, self.endpoint):
            info = self._api.repo_info(name, repo_type=kind, revision=revision, timeout=_TIMEOUT_S)
            commit = info.sha or revision or "main"
            tree = self._api.list_repo_tree(name, recursive=True, repo_type=kind, revision=commit)
            found = [one for one in tree if isinstance(one, RepoFile)]
        for one in found:
            _check_path(name, one.path)
        files = tuple(
            RemoteFile(one.path, one.size, one.lfs.sha256 if one.lfs else None, one.blob_id)
            for one in found
            if wanted(one.path, include, exclude)
        )
        if not files:
            raise ConfigError(f"{name}: none of its {len(found):,} files is asked for: choose others with --include")
        card = getattr(info, "card_data", None)
        license_ = card.get("license") if card is not None else None
        return Repository(
            name, kind, commit, ", ".join(license_) if isinstance(license_, list) else license_, bool(info.gated), files
        )

    def url(self, repository: Repository, path: str) -> str:
        """Where the bytes of a file are."""
        from huggingface_hub import hf_hub_url

        return hf_hub_url(
            repository.name, path, repo_type=repository.kind, revision=repository.commit, endpoint=self.endpoint
        )


def wanted(path: str, include: Sequence[str], exclude: Sequence[str]) -> bool:
    """Whether a file is asked for. A pattern is a path, a folder, or a glob of the path or the file's name.

    Names on the hub hold brackets, which a glob reads as a choice of characters; so what is the same is a match.
    """
    return (not include or any(_matches(path, one) for one in include)) and not any(
        _matches(path, one) for one in exclude
    )


def _matches(path: str, pattern: str) -> bool:
    return (
        path == pattern
        or path.startswith(f"{pattern.rstrip('/')}/")
        or fnmatch.fnmatchcase(path, pattern)
        or fnmatch.fnmatchcase(path.rpartition("/")[2], pattern)
    )


def _check_path(name: str, path: str) -> None:
    """Raises SourceError for a path that would leave the folder."""
    parts = PurePosixPath(path).parts
    if not parts or path.startswith("/") or ".." in parts or "\\" in path or "\0" in path or ":" in parts[0]:
        raise SourceError(f"{name}: names a file outside of its folder ({path!r}): nothing is taken from it")


@contextmanager
def hub_errors(name: str, endpoint: str, *, advice: Mapping[int, str] | None = None) -> Iterator[None]:
    """The hub's errors and the network's as one sentence each. Raises ConfigError, SourceError.

    `advice`: what to do about a status, where it is not as for reading.
    """
    from huggingface_hub import errors

    login = "log in with `hf auth login`, or set HF_TOKEN"
    try:
        yield
    except errors.GatedRepoError:
        raise ConfigError(f"{name}: wants its terms accepted: do so at {endpoint}/{name}, then {login}") from None
    except errors.RepositoryNotFoundError:
        raise ConfigError(f"{name}: not on {endpoint}, or private: if it is yours, {login}") from None
    except errors.RevisionNotFoundError:
        raise ConfigError(f"{name}: has no such revision: choose another --revision") from None
    except errors.HFValidationError as error:
        raise ConfigError(f"{name}: {str(error).splitlines()[0]}") from None
    except errors.OfflineModeIsEnabled:
        raise ConfigError(f"{name}: HF_HUB_OFFLINE is set, so the hub is not asked: unset it") from None
    except errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        told = (_ADVICE | dict(advice or {})).get(status, _LATER).format(login)
        raise SourceError(f"{name}: {endpoint} answers {status}: {told}") from None
    except Exception as error:
        if not _of_network(error):
            raise
        reason = _NUMBER.sub("", (str(error).splitlines() or [type(error).__name__])[0])
        raise SourceError(
            f"{name}: {endpoint} cannot be reached ({reason}): check the network and HTTPS_PROXY, or set HF_ENDPOINT "
            "to a mirror; run the same command again to go on"
        ) from None


_LATER = "run the same command later to go on"
_ADVICE = {
    401: "the token is missing or not accepted: {}",
    403: "this account may not read it: {}",
    429: "too many requests: wait, and run the same command again",
}


def _of_network(error: Exception) -> bool:
    """Errors of httpx have no common base with Python's own; which httpx it is depends on the hub client's version."""
    return isinstance(error, ConnectionError | TimeoutError) or type(error).__module__.partition(".")[0] in (
        "httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3",
    )  # fmt: skip
