"""Servers for this machine alone: which addresses are its own, and under which names it may be asked."""

from __future__ import annotations

import errno
import socket
from ipaddress import ip_address

from sigma_data.errors import ConfigError, reason_of


def is_loopback(host: str) -> bool:
    """Whether an address is this machine's own."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def hosts_of(host: str) -> frozenset[str] | None:
    """The names under which a server on a loopback address is asked; None: any, on other addresses.

    A page elsewhere can point a name of its own at 127.0.0.1 (DNS rebinding), and is refused by its name.
    """
    return frozenset({"127.0.0.1", "localhost", "[::1]", host, f"[{host}]"}) if is_loopback(host) else None


def check_listening(host: str, port: int) -> int:
    """The port to listen on, a free one for 0. Raises ConfigError, as `listen_error`, where that is not possible."""
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as servers do: a port that was just left
            one.bind((host, port))
            return int(one.getsockname()[1])
    except (OSError, OverflowError) as error:
        raise listen_error(error, host, port) from None


def listen_error(error: Exception, host: str, port: int) -> ConfigError:
    """Why a server cannot listen, and which option to change."""
    code = error.errno if isinstance(error, OSError) else None
    if code == errno.EADDRINUSE:
        return ConfigError(f"--port {port}: is taken: choose another, or 0 for a free one")
    if code == errno.EACCES:
        return ConfigError(f"--port {port}: you may not listen there: choose one above 1023, or 0 for a free one")
    if code == errno.EADDRNOTAVAIL or isinstance(error, socket.gaierror):
        return ConfigError(f"--host {host}: is no address of this machine: leave it out, or give one that it has")
    return ConfigError(f"--host {host} --port {port}: cannot be listened on ({reason_of(error)}): choose others")


def host_of(header: str) -> str:
    """The host of a Host header, without its port."""
    host = header.partition("]")[0] + "]" if header.startswith("[") else header.partition(":")[0]
    return host.lower()
