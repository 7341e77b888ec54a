"""A repository on the hub as a place to upload to: what it holds, commits into it, the hub's refusals in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from pipelines.download.catalog import Kind
from pipelines.download.hub import RemoteFile, hub_errors
from pipelines.upload.content import LocalFile
from sigma_data.errors import ConfigError, SourceError

GIT_ATTRIBUTES = ".gitattributes"
"""The hub's own file in every repository."""
_LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"
_ADVICE = {
    401: f"the token is not valid: {_LOGIN}",
    402: "this account has no room left for private repositories: free some, or add --public",
    403: f"this account may not write there: {_LOGIN}, or choose another name",
    412: "somebody else has changed the repository meanwhile: run the same command again",
    413: "a file is too large for the hub: export with --max-shard-size",
}


@dataclass(frozen=True)
class State:
    """A repository at a commit. `exists` is False where there is none yet, or none that this account sees."""

    exists: bool
    private: bool = True
    commit: str | None = None
    files: tuple[RemoteFile, ...] = ()


class HubRepository:
    """`name` (OWNER/NAME) of a kind, on the hub that HF_ENDPOINT names, or `endpoint`."""

    def __init__(self, name: str, kind: Kind, *, endpoint: str | None = None) -> None:
        from huggingface_hub import HfApi

        self.name, self.kind = name, kind
        self._api = HfApi(endpoint=endpoint)
        self.endpoint = self._api.endpoint

    @property
    def address(self) -> str:
        """Where a person looks at it."""
        return f"{self.endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{self.name}"

    def check_account(self) -> str:
        """The account of the token. Raises ConfigError without one, SourceError where the hub refuses it."""
        from huggingface_hub import errors

        with self._errors():
            try:
                return str(self._api.whoami().get("name", "?"))
            except errors.LocalTokenNotFoundError:
                raise ConfigError(f"{self.name}: uploading needs an account on {self.endpoint}: {_LOGIN}") from None

    def state(self) -> State:
        """What is there. Raises SourceError, ConfigError."""
        from huggingface_hub import errors
        from huggingface_hub.hf_api import RepoFile

        with self._errors():
            try:
                info = self._api.repo_info(self.name, repo_type=self.kind)
            except errors.GatedRepoError:
                raise
            except errors.RepositoryNotFoundError:
                return State(exists=False)
            tree = self._api.list_repo_tree(self.name, recursive=True, repo_type=self.kind, revision=info.sha)
            files = tuple(
                RemoteFile(one.path, one.size, one.lfs.sha256 if one.lfs else None, one.blob_id)
                for one in tree
                if isinstance(one, RepoFile) and one.path != GIT_ATTRIBUTES
            )
        return State(exists=True, private=bool(info.private), commit=info.sha, files=files)

    def create(self, *, private: bool) -> None:
        """Make it. Raises ConfigError where the name is taken, SourceError."""
        from huggingface_hub import errors

        with self._errors():
            try:
                self._api.create_repo(self.name, repo_type=self.kind, private=private)
            except errors.HfHubHTTPError as error:
                if error.response is None or error.response.status_code != 409:
                    raise
                raise ConfigError(
                    f"{self.name}: is taken, by a repository that this account cannot see: choose another name"
                ) from None

    def commit(
        self, files: Sequence[LocalFile], *, delete: Sequence[str] = (), parent: str | None, message: str
    ) -> str:
        """Add files and remove some in one commit after `parent`; its id. Raises SourceError, OSError of the disk."""
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

        operations: list[Any] = [
            CommitOperationAdd(one.path, one.source if isinstance(one.source, bytes) else str(one.source))
            for one in files
        ]
        operations += [CommitOperationDelete(path) for path in delete]
        with self._errors():
            made = self._api.create_commit(
                self.name, operations, commit_message=message, repo_type=self.kind, parent_commit=parent
            )
        return str(made.oid)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raises ConfigError, SourceError; what the client wraps in an error of its own is taken out of it."""
        with hub_errors(self.name, self.endpoint, advice=_ADVICE):
            try:
                yield
            except RuntimeError as error:  # of a thread that sent a file: the reason is its cause
                if isinstance(error.__cause__, Exception):
                    raise error.__cause__ from None
                raise
            except ValueError as error:  # what the hub answers to a card or a batch of large files
                if type(error) is not ValueError:
                    raise
                raise SourceError(f"{self.name}: {self.endpoint} refuses: {' '.join(str(error).split())}") from None
