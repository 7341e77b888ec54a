"""`sigma browse`: what a folder is, and a server for it on this machine, which reads and never writes."""

from __future__ import annotations

import logging
import socket
from collections.abc import Mapping, Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pipelines.browse.corpus_site import CorpusSite
from pipelines.browse.run_site import METRICS, RunSite
from pipelines.browse.site import Answer, NotFoundError, Site, own_file
from pipelines.common.loopback import host_of, hosts_of, is_loopback, listen_error
from pipelines.evaluate.report.report import REPORT, RESULTS
from sigma_data.corpus.corpus import COMMIT, open_corpus
from sigma_data.errors import ConfigError, SigmaError
from sigma_data.storage.paths import no_folder

logger = logging.getLogger(__name__)

PORT = 7870
_POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'unsafe-inline'; form-action 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)


class EvaluationSite:
    """An evaluation: its report, which is a page in itself."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def answer(self, path: Sequence[str], query: Mapping[str, str]) -> Answer:
        """See `Site`."""
        if path:
            raise NotFoundError
        try:
            return Answer(own_file(self._folder, REPORT), own_policy=True)
        except OSError:
            raise ConfigError(f"{self._folder}: has no report yet: run `sigma eval` to its end") from None


def open_site(place: Path) -> Site:
    """The pages of a corpus, a training run or an evaluation. Raises SigmaError for anything else."""
    if (place / COMMIT).is_file():
        return CorpusSite(open_corpus(place))
    if (place / METRICS).is_file():
        return RunSite(place)
    if (place / REPORT).is_file() and (place / RESULTS).is_file():
        return EvaluationSite(place)
    if not place.is_dir():
        raise ConfigError(no_folder(place))
    page = place / "index.html"
    hint = f"; open {page} in a browser" if page.is_file() else ""  # the sheet of `sigma generate --from`
    raise ConfigError(
        f"{place}: is neither a corpus ({COMMIT}), a training run ({METRICS}) nor an evaluation ({RESULTS}){hint}"
    )


def make_server(site: Site, host: str, port: int) -> ThreadingHTTPServer:
    """A server that listens. Raises ConfigError where it cannot."""
    kind = _Server6 if ":" in host else _Server
    handler = type("Handler", (_Handler,), {"site": site, "hosts": hosts_of(host)})
    try:
        return kind((host, port), handler)
    except (OSError, OverflowError) as error:
        raise listen_error(error, host, port) from None


def run_browse(place: Path, *, host: str, port: int) -> None:
    """Serve until Ctrl-C. Raises SigmaError."""
    server = make_server(open_site(place), host, port)
    shown = f"[{host}]" if ":" in host else host
    logger.info("sigma: %s is at http://%s:%d/ (Ctrl-C ends it)", place, shown, server.server_address[1])
    if not is_loopback(host):
        logger.warning("sigma: everybody who reaches %s can read it", host)
    with server, suppress(KeyboardInterrupt):
        server.serve_forever()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(BaseHTTPRequestHandler):
    """Answers GET and HEAD from `site`; no name of a file is ever taken from an address."""

    site: Site
    hosts: frozenset[str] | None
    server_version, sys_version, timeout = "sigma", "", 60

    def do_GET(self) -> None:  # http.server's name
        """Answer."""
        if self.hosts is not None and host_of(self.headers.get("Host", "")) not in self.hosts:
            self._send(
                403, Answer(b"sigma browse listens on loopback alone: open it as http://127.0.0.1", "text/plain")
            )
            return
        try:
            address = urlsplit(self.path)
            path = [unquote(part) for part in address.path.split("/") if part]
            query = dict(parse_qsl(address.query, keep_blank_values=True, max_num_fields=20))
            self._send(200, self.site.answer(path, query))
        except NotFoundError:
            self._send(404, Answer(b"there is no such page", "text/plain"))
        except SigmaError as error:
            self._send(500, Answer(str(error).encode("utf-8", "replace"), "text/plain; charset=utf-8"))
        except ValueError:
            self._send(400, Answer(b"this is no address", "text/plain"))
        except ConnectionError:  # the reader has gone on
            return

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing of every request."""

    def _send(self, status: int, answer: Answer) -> None:
        self.send_response(status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(answer.body)))
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Referrer-Policy", "no-referrer")
        if not answer.own_policy:
            self.send_header("Content-Security-Policy", _POLICY)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
