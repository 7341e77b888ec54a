"""Opening fsspec URIs, and one clear error message for whatever a storage client raises.

Every client has errors of its own. They are matched by class name, so that no client is imported.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import re
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import IO, Any, Self

from sigma_data.errors import ConfigError, SigmaError, SourceError

_SCHEMES = re.compile(r"^([a-z][a-z0-9+.-]*::)*[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_CHAINED = re.compile(r"::[a-z][a-z0-9+.-]*://", re.IGNORECASE)

_EXTRAS = {"s3": "s3", "gs": "gcs"}
"""Protocol -> the extra of this package that installs its client."""
_CLIENTS = {"s3": "s3fs", "gs": "gcsfs", "az": "adlfs", "http": "aiohttp", "https": "aiohttp"}
"""Protocol -> the package of its client."""

_LOG_IN = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; for a public bucket set "
    "FSSPEC_S3='{\"anon\": true}'",
    "gs": "run gcloud auth application-default login",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY",
    "hf": "run hf auth login",
}
_SAME = {"s3a": "s3", "gcs": "gs", "abfs": "az", "abfss": "az", "adl": "az"}

_NO_CREDENTIALS = frozenset({
    "NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError", "ProfileNotFound", "NoAuthTokenError",
    "TokenRetrievalError", "SSOTokenLoadError", "UnauthorizedSSOTokenError", "DefaultCredentialsError", "RefreshError",
    "ClientAuthenticationError",
})  # fmt: skip
_UNREACHABLE = frozenset({
    "EndpointConnectionError", "ConnectTimeoutError", "ReadTimeoutError", "ConnectionClosedError", "HTTPClientError",
    "ProxyConnectionError", "ResponseStreamingError", "IncompleteReadError", "ClientConnectionError",
    "ClientConnectorError", "ClientOSError", "ServerDisconnectedError", "ServerTimeoutError", "ClientPayloadError",
    "ConnectionTimeoutError", "FSTimeoutError", "SSLError", "gaierror", "TransportError", "ServiceRequestError",
})  # fmt: skip
_REFUSED_CODES = frozenset({
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "ExpiredToken", "InvalidToken", "TokenRefreshRequired",
    "RequestTimeTooSkewed", "InvalidSecurity",
})  # fmt: skip
_DENIED_CODES = frozenset({"AccessDenied", "AllAccessDisabled", "AccountProblem", "Forbidden", "403", "401"})

_PASSING_CODES = frozenset({
    "SlowDown", "503", "500", "502", "504", "429", "InternalError", "ServiceUnavailable", "RequestTimeout",
    "Throttling", "ThrottlingException", "RequestLimitExceeded", "TooManyRequests",
})  # fmt: skip
"""Errors of a store that pass by themselves."""

logger = logging.getLogger(__name__)

_SILENT_SECONDS = 20.0
_NO_ANSWER = "%s: no answer for %.0f s, still trying: check the network and the endpoint, or end this with Ctrl-C"

_BAD_CONTENT = (ValueError, TypeError, ArithmeticError, MemoryError)
"""Errors that readers raise for corrupt content: the fault of the file, not of the storage."""


class LostError(SourceError):
    """A remote folder failed while being read: no reason to reject its rows."""


def connect(uri: str) -> tuple[Any, str]:
    """(file system, path in it) of a URI, its path taken literally. Raises SourceError."""
    with warnings.catch_warnings():  # of variables that `_refuse_settings` tells of, or that are of other stores
        warnings.filterwarnings("ignore", "Ignoring environment variable FSSPEC")
        import fsspec

    protocol = _protocol(uri)
    _refuse_settings(protocol)
    place = _SCHEMES.sub(lambda scheme: scheme[0].lower(), uri)
    try:
        if _CHAINED.search(place):
            system, root = fsspec.core.url_to_fs(place)
        else:  # url_to_fs would take a :: in a name for a chain
            kind = fsspec.get_filesystem_class(protocol)
            system, root = kind(**kind._get_kwargs_from_urls(place)), kind._strip_protocol(place)
    except ImportError as error:
        usual = _SAME.get(protocol, protocol)
        extra, client = _EXTRAS.get(usual), _CLIENTS.get(usual)
        install = f"'sigma-multimodal[{extra}]'" if extra else client
        how = f"pip install {install}" if install else _short(error)
        what = f"the package that reads {protocol}://" + (f", {client}," if client else "")
        raise SourceError(f"{uri}: {what} is not installed: {how}") from None
    except Exception as error:
        raise SourceError(f"{uri}: {reason(error, uri)}") from None
    return system, root


def _protocol(uri: str) -> str:
    """What a URI begins with, e.g. s3; of a chained one, the protocol of the place."""
    return uri.partition("://")[0].rsplit("::", 1)[-1].lower() if "://" in uri else ""


def _refuse_settings(protocol: str) -> None:
    """Raise ConfigError where fsspec would leave out settings of the environment, which most often say who asks."""
    for name in {protocol, _SAME.get(protocol, protocol)}:
        variable = f"FSSPEC_{name.upper()}"
        text = os.environ.get(variable)
        try:
            if text is None or isinstance(json.loads(text), dict):
                continue
        except ValueError:
            pass
        like = f"{variable}='{{\"anon\": true}}'"
        raise ConfigError(f"{variable}: must hold a JSON object: write e.g. {like}, or unset it")


def is_absent(error: FileNotFoundError) -> bool:
    """Whether a place has answered that nothing is there: fsspec's HTTP client raises this for every fault."""
    causes = list(_chain(error))[1:]
    names = {kind.__name__ for one in causes for kind in type(one).__mro__}
    lost = names & _UNREACHABLE or any(isinstance(one, ConnectionError | TimeoutError) for one in causes)
    return not lost and not any(_status(one) >= 400 and _status(one) not in (404, 410) for one in causes)


@contextmanager
def reaching(uri: str) -> Iterator[None]:
    """Turn every error of a storage client into a SourceError.

    Says after a while that there is no answer yet: clients try several times, each for as long as they think right.
    """
    told = threading.Timer(_SILENT_SECONDS, logger.warning, (_NO_ANSWER, uri, _SILENT_SECONDS))
    told.daemon = True
    told.start()
    try:
        yield
    except SigmaError:
        raise
    except Exception as error:
        raise SourceError(f"{uri}: {reason(error, uri)}") from None
    finally:
        told.cancel()


def every_file(fs: Any, root: str) -> dict[str, Any]:
    """Path -> info of all files below a place of an fsspec file system, of itself if it is a file; empty if nothing is.

    Raises SourceError for a folder below `root` that cannot be listed: fsspec's own walk leaves those out, whatever its
    `on_error` says. Raises the client's exceptions else. Stores that have a listing of their own use it.
    """
    from fsspec.asyn import AsyncFileSystem
    from fsspec.spec import AbstractFileSystem

    kind = type(fs)
    walks = (
        kind._find is AsyncFileSystem._find
        if issubclass(kind, AsyncFileSystem)
        else kind.find is AbstractFileSystem.find
    )
    top = next(iter(fs.walk(root, maxdepth=1, detail=True)), None) if walks else None
    if top is None or not (top[1] or top[2]):  # a store, a file, or nothing
        listing: dict[str, Any] = fs.find(root, detail=True)
        return listing
    found = {info["name"]: info for info in top[2].values()}
    folders = [info["name"] for info in top[1].values()]
    while folders:
        folder = folders.pop()
        with reaching(fs.unstrip_protocol(folder)):
            inside = fs.ls(folder, detail=True)
        for info in inside:
            if info["type"] != "directory":
                found[info["name"]] = info
            elif info["name"].rstrip("/") != folder.rstrip("/"):
                folders.append(info["name"])
    return found


def is_passing(error: BaseException) -> bool:
    """Whether it may succeed if it is tried again: throttling, a server's fault, a connection that is lost."""
    chain = list(_chain(error))
    names = {kind.__name__ for one in chain for kind in type(one).__mro__}
    codes = {_code(one) for one in chain}
    if codes & (_REFUSED_CODES | _DENIED_CODES) or names & _NO_CREDENTIALS or "NoSuchBucket" in codes:
        return False
    statuses = {_status(one) for one in chain}
    passing = bool(codes & _PASSING_CODES) or any(status >= 500 or status == 429 for status in statuses)
    lost = bool(names & _UNREACHABLE) or any(isinstance(one, ConnectionError | TimeoutError) for one in chain)
    return passing or lost or getattr(error, "errno", None) in (errno.EBUSY, errno.EIO, errno.EAGAIN)


def lacks_bucket(error: BaseException) -> bool:
    """Whether it is the bucket that is not there, not an object in it."""
    return any(_code(one) == "NoSuchBucket" or "bucket does not exist" in str(one) for one in _chain(error))


def reason(error: BaseException, uri: str, *, doing: str = "read") -> str:
    """Why a URI cannot be read (or `written`) and what to do, without its name."""
    protocol = _protocol(uri)
    log_in = _LOG_IN.get(_SAME.get(protocol, protocol), "log in as its client asks")
    chain = list(_chain(error))
    names = {kind.__name__ for one in chain for kind in type(one).__mro__}
    codes = {_code(one) for one in chain}
    silent = isinstance(error, FileNotFoundError) and not is_absent(error)  # it has nothing but a name
    detail = _short(chain[1] if silent else error)
    if names & _NO_CREDENTIALS:
        return f"there are no credentials for it ({detail}): {log_in}"
    if lacks_bucket(error):
        return "there is no such bucket: check its name, and that the endpoint is the right one"
    if codes & _REFUSED_CODES:
        return f"its credentials are refused ({detail}): {log_in}"
    if "400" in codes and log_in == _LOG_IN["s3"]:  # to a question for the header alone, S3's answer has no other code
        return f"the store refuses the request ({detail}), as it does where credentials have expired: {log_in}"
    if codes & _DENIED_CODES or isinstance(error, PermissionError):
        may = "read" if doing == "read" else "write to"
        return f"may not be {doing} ({detail}): {log_in}, of an account that may {may} it"
    if isinstance(error, FileNotFoundError) and not silent:
        return "no such file or folder"
    if names & _UNREACHABLE or any(isinstance(one, ConnectionError | TimeoutError) for one in chain):
        endpoint = " and the endpoint (AWS_ENDPOINT_URL)" if _LOG_IN["s3"] == log_in else ""
        return f"cannot be reached ({detail}): check the network{endpoint}"
    if codes & _PASSING_CODES:
        return f"cannot be {doing}, the store asks for fewer requests ({detail}): try again later, with fewer --workers"
    return f"cannot be {doing} ({detail})"


class Stream:
    """An open file that raises LostError if its storage fails while it is read."""

    def __init__(self, file: IO[bytes], name: str) -> None:
        self._file = file
        self._name = name

    @property
    def local_path(self) -> str | None:
        """The path of a file of this machine, for libraries that read faster without Python between."""
        name = self._file.name if isinstance(self._file, io.BufferedReader) else None
        return os.path.abspath(name) if isinstance(name, str) else None  # noqa: PTH100 - links stay as they are

    @property
    def closed(self) -> bool:
        """As `io.IOBase`."""
        return self._file.closed

    def readable(self) -> bool:
        """As `io.IOBase`."""
        return True

    def seekable(self) -> bool:
        """As `io.IOBase`."""
        return True

    def writable(self) -> bool:
        """As `io.IOBase`."""
        return False

    def read(self, size: int = -1) -> bytes:
        """As `io.IOBase`. Raises LostError."""
        with self._watched():
            return self._file.read(size)

    def readline(self, size: int = -1) -> bytes:
        """As `io.IOBase`. Raises LostError."""
        try:  # once a line: no context manager
            return self._file.readline(size)
        except _BAD_CONTENT:
            raise
        except Exception as error:
            raise LostError(f"{self._name}: {reason(error, self._name)}") from None

    def seek(self, offset: int, whence: int = 0) -> int:
        """As `io.IOBase`. Raises LostError."""
        with self._watched():
            return self._file.seek(offset, whence)

    def tell(self) -> int:
        """As `io.IOBase`."""
        return self._file.tell()

    def close(self) -> None:
        """As `io.IOBase`."""
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    @contextmanager
    def _watched(self) -> Iterator[None]:
        try:
            yield
        except _BAD_CONTENT:
            raise
        except Exception as error:
            raise LostError(f"{self._name}: {reason(error, self._name)}") from None


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and its causes."""
    one: BaseException | None = error
    for _ in range(10):
        if one is None:
            return
        yield one
        one = one.__cause__ or one.__context__


def _code(error: BaseException) -> str:
    """The error code of botocore, or the HTTP status."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return str(response.get("Error", {}).get("Code", ""))
    return str(getattr(error, "status", ""))


def _status(error: BaseException) -> int:
    """The HTTP status of botocore's or another client's error, 0 if it has none."""
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return int(response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0) or 0)
    status = getattr(error, "status", 0) or getattr(error, "code", 0)
    return status if isinstance(status, int) else 0


def _short(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error)
    return " ".join(str(text).split())[:200] or type(error).__name__
