"""Servers for this machine alone: which addresses are its own, and under which names it may be asked."""

from __future__ import annotations

from ipaddress import ip_address


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


def host_of(header: str) -> str:
    """The host of a Host header, without its port."""
    host = header.partition("]")[0] + "]" if header.startswith("[") else header.partition(":")[0]
    return host.lower()
