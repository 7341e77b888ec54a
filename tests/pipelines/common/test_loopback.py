"""Where a server cannot listen, the option that is at fault is named."""

from __future__ import annotations

import socket

import pytest

from pipelines.common.loopback import check_listening
from sigma_data.errors import ConfigError


def test_a_port_that_can_be_listened_on_is_told_and_a_free_one_taken_for_0() -> None:
    port = check_listening("127.0.0.1", 0)
    assert port > 0 and check_listening("127.0.0.1", port) == port


@pytest.mark.parametrize("host", ["192.0.2.1", "no such host"])
def test_a_host_that_is_not_this_machine_is_the_hosts_fault(host: str) -> None:
    with pytest.raises(ConfigError, match=f"^--host {host}: is no address of this machine: leave it out"):
        check_listening(host, 0)


def test_a_port_that_is_taken_is_the_ports_fault() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"^--port {port}: is taken: choose another, or 0 for a free one$"):
            check_listening("127.0.0.1", port)
