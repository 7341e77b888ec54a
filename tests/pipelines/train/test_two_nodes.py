"""Two machines train one run: a node is killed, both start again, and the run goes on to the bit.

The machines are network namespaces with a cable between them, host names and addresses of their own, where `ip netns`
may be used; else two commands on this machine.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from support import ranks
from support.training_runs import run, saved, settings_of, steps_saved

from pipelines.train.launch import _free_port

pytestmark = pytest.mark.slow

NAMES = [f"sg{os.getpid() % 100_000}n{number}" for number in (0, 1)]
PLACES = ("10.198.0.1", "10.198.0.2")
EVERY = 16
"""Steps from a checkpoint to the next."""


def ip(*words: str) -> bool:
    return subprocess.run(["ip", *words], capture_output=True).returncode == 0


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[list[list[str]], str]]:
    """Of each node the words that run a command there; and the host where they meet."""
    first, second = NAMES
    made = shutil.which("ip") is not None and all([
        *(ip("netns", "add", name) for name in NAMES),
        ip("link", "add", first, "netns", first, "type", "veth", "peer", "name", second, "netns", second),
        *(
            ip("-n", name, *words)
            for name, place in zip(NAMES, PLACES, strict=True)
            for words in (["addr", "add", f"{place}/24", "dev", name], ["link", "set", name, "up"], ["link", "set", "lo", "up"])
        ),
    ])  # fmt: skip
    if made:
        hosts = tmp_path_factory.mktemp("hosts") / "hosts"
        known = [f"{place} {name}" for name, place in zip(NAMES, PLACES, strict=True)]
        hosts.write_text("\n".join(["127.0.0.1 localhost", *known, ""]))
        # A machine's name leads to its address, as ranks of other machines need; mounts end with the command.
        script = f'mount --bind {hosts} /etc/hosts && hostname "$0" && exec "$@"'
        inside = [["ip", "netns", "exec", name, "unshare", "--uts", "sh", "-c", script, name] for name in NAMES]
        made = all(subprocess.run([*words, "true"], capture_output=True).returncode == 0 for words in inside)
    yield (inside, PLACES[0]) if made else ([[], []], "127.0.0.1")
    for name in NAMES:
        if shutil.which("ip") is not None:
            ip("netns", "del", name)


def start(words: list[str], config: Path, *more: str) -> subprocess.Popen[str]:
    command = [*words, sys.executable, "-m", "cli", "train", str(config), *more]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)


def steps_logged(out: Path) -> int:
    return len((out / "metrics.jsonl").read_bytes().splitlines())


def test_a_node_is_killed_and_both_go_on_to_the_bit(
    nodes: tuple[list[list[str]], str], training_corpus: Path, tmp_path: Path
) -> None:
    inside, host = nodes
    out, config = tmp_path / "run", tmp_path / "run.yaml"
    values = settings_of(
        out, training_corpus, steps=100_000, schedule={"kind": "constant"}, checkpoint={"every": EVERY}
    )
    config.write_text(yaml.safe_dump({**values, "out": str(out)}))

    def both(*more: str) -> list[subprocess.Popen[str]]:
        place = ("--nnodes", "2", "--nproc", "1", "--rdzv", f"{host}:{_free_port()}")
        return [start(words, config, *place, *more) for words in inside]

    running = both()
    try:
        deadline = time.monotonic() + 240
        # Between two checkpoints: what is said of a save that a node left is another matter.
        enough = 0
        while not enough or steps_logged(out) < enough:
            if not enough and steps_saved(out):
                enough = steps_logged(out) + 3
            ended = [one.communicate() for one in running if one.poll() is not None]
            assert not ended
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.killpg(running[1].pid, signal.SIGKILL)  # the machine with its rank
        _, told = running[0].communicate(timeout=180)
        assert running[0].returncode == 2
        assert "Traceback" not in told
        assert told.splitlines()[-1].endswith("run the same command again to continue from the last checkpoint")
        step = steps_saved(out)[-1] + 3
        running = both(f"steps={step}")
        for one in running:
            _, told = one.communicate(timeout=240)
            assert one.returncode == 0, told
        ranks.run(run, 2, {**values, "out": tmp_path / "whole", "steps": step}, timeout_s=240)
    finally:
        for one in running:
            if one.poll() is None:
                os.killpg(one.pid, signal.SIGKILL)
                one.communicate()
    one, other = saved(out), saved(tmp_path / "whole")
    assert steps_saved(out)[-1] == steps_saved(tmp_path / "whole")[-1] == step
    assert one.keys() == other.keys()
    assert [name for name in one if not one[name].equal(other[name])] == []
