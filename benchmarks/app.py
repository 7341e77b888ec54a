"""How long `sigma app` takes from its command to its page: `python benchmarks/app.py`, some starts one after the other.

A start ends with the first HTTP 200 for the page; the target is 10 s. CPU time is that of the server, which tells more
on a machine that does other things, too.
"""

from __future__ import annotations

import argparse
import http.client
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
TARGET = 10.0
"""Seconds."""
_PAUSE = 0.02


def main() -> None:
    """Start, ask until the page is there, end; as often as is said. Exits with 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--starts", type=int, default=3)
    options = parser.parse_args()
    missed = False
    for number in range(1, options.starts + 1):
        with tempfile.TemporaryDirectory() as folder:
            wall, processor = start(Path(folder))
        missed |= wall > TARGET
        load = os.getloadavg()[0]
        said = "MISSED" if wall > TARGET else "met"
        print(f"start {number}  {wall:5.1f} s  {processor:5.1f} s CPU  load {load:4.1f}  {said}", flush=True)
    sys.exit(missed)


def start(folder: Path) -> tuple[float, float]:
    """Seconds of time and of CPU until the page is served."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "cli", "app", "--port", str(port), "--out", str(folder / "gallery")]
    begun = time.monotonic()
    server = subprocess.Popen(
        command, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.DEVNULL
    )
    try:
        while not answers(port):
            if server.poll() is not None:
                sys.exit("sigma app ended before it served its page")
            time.sleep(_PAUSE)
        return time.monotonic() - begun, cpu_seconds(server.pid)
    finally:
        server.terminate()
        server.wait()


def answers(port: int) -> bool:
    """Whether the page is there."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/")
        return connection.getresponse().status == http.HTTPStatus.OK
    except OSError:
        return False
    finally:
        connection.close()


def cpu_seconds(process: int) -> float:
    """Of a process of this machine (Linux), NaN elsewhere."""
    stat = Path(f"/proc/{process}/stat")
    if not stat.exists():
        return float("nan")
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


if __name__ == "__main__":
    main()
