"""`sigma app` and `sigma browse` as processes of their own, which may reach loopback addresses alone."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from support.places import ROOT

FENCE = '''"""Imported by Python at its start: connections to other machines, and their names, are refused and written down."""
import os, socket
def _away(kind, host):
    with open(os.environ["FENCE_LOG"], "a") as file:
        file.write(f"{kind} {host}\\n")
    raise OSError(f"{host} is not this machine")
def _local(host):
    return host in (None, "", "localhost", "::1") or str(host).startswith("127.") or str(host) == "0.0.0.0"
_connect, _getaddrinfo = socket.socket.connect, socket.getaddrinfo
def connect(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6) and not _local(address[0]):
        _away("connect", address[0])
    return _connect(self, address)
def getaddrinfo(host, *rest, **more):
    if not _local(host.decode() if isinstance(host, bytes) else host):
        _away("look-up", host)
    return _getaddrinfo(host, *rest, **more)
socket.socket.connect, socket.getaddrinfo = connect, getaddrinfo
'''


class Server:
    """A server process; `address` is where its page is, `log` what it has said, `fenced` what it tried to reach."""

    def __init__(self, folder: Path, *words: str | Path, patience: float = 240.0) -> None:
        fence = folder / "fence"
        fence.mkdir(parents=True)
        (fence / "sitecustomize.py").write_text(FENCE)
        self._fence_log = folder / "fence.log"
        path = os.pathsep.join((str(fence), str(ROOT)))
        self.process = subprocess.Popen(
            [sys.executable, "-m", "cli", *map(str, words), "--port", "0"],
            cwd=folder, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": path, "FENCE_LOG": str(self._fence_log), "PYTHONWARNINGS": "default"},
        )  # fmt: skip
        self.log: list[str] = []
        self.address = ""
        self._up = threading.Event()
        threading.Thread(target=self._listen, daemon=True).start()
        if not self._up.wait(patience) or not self.address:
            self.kill()
            raise AssertionError("".join(self.log))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.kill()

    @property
    def fenced(self) -> str:
        return self._fence_log.read_text() if self._fence_log.exists() else ""

    def kill(self) -> None:
        """As a machine that fails ends it."""
        self.process.kill()
        self.process.wait()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r" is at (http://\S+)", line):
                self.address = found[1]
                self._up.set()
        self._up.set()
