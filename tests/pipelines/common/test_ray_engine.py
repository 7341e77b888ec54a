"""On a Ray cluster: the same results, crashes and errors as in processes of one machine, also when nodes go."""

from __future__ import annotations

import logging
import os
import re
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support import corpora
from support.places import ROOT
from support.pool_tasks import work

from pipelines.build_dataset.config import BuildConfig
from pipelines.build_dataset.run import build
from pipelines.common.engine import open_engine
from pipelines.common.process_pool import Crashed
from pipelines.common.ray_engine import RayEngine, parse_resources
from pipelines.shard.run import Selection, reshard
from pipelines.validate.run import validate_corpus
from sigma_data.errors import ConfigError, CorpusError

pytestmark = pytest.mark.slow
pytest.importorskip("ray")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """A cluster with a head of one CPU, to which tests add nodes."""
    patch = pytest.MonkeyPatch()  # before the nodes start: their workers import what tests do
    patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    patch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'tests'}")
    import ray
    from ray.cluster_utils import Cluster

    made = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 * 2**20},
    )
    yield made
    ray.shutdown()
    made.shutdown()
    patch.undo()


def add_node(cluster: Any) -> Any:
    node = cluster.add_node(num_cpus=1, object_store_memory=80 * 2**20)
    cluster.wait_for_nodes()
    return node


def test_results_crashes_and_errors_are_those_of_a_pool(cluster: Any, tmp_path: Path) -> None:
    found: dict[int, Any] = {}
    with RayEngine(address=cluster.address) as engine:
        engine.run(
            work,
            [("a", tmp_path / "0"), ("crash", tmp_path / "1"), ("b", tmp_path / "2")],
            found.__setitem__,
            what="testing",
        )
        assert found == {0: "a", 1: Crashed("SIGSEGV"), 2: "b"}
        assert len((tmp_path / "1").read_text().split()) == 2, "it is tried twice"
        with pytest.raises(CorpusError, match="this task fails"):
            engine.run(work, [("raise", tmp_path / "3")], found.__setitem__, what="testing")
        assert engine.peak_bytes > 10e6


@pytest.mark.parametrize("lost_in", ["scan", "write"])
def test_a_build_on_two_nodes_of_which_one_is_lost_has_the_bytes_of_a_local_one(
    cluster: Any, lost_in: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = corpora.make_release(tmp_path / "release", 24, seed=5, files=4)
    config = BuildConfig.model_validate({"sources": [f"release:{release}"], "shard_samples": 8})
    build(config, tmp_path / "local", workers=0)
    node = add_node(cluster)
    lost: list[str] = []
    run = RayEngine.run

    def losing(self: RayEngine, function: Any, tasks: Any, done: Any, *, what: str) -> None:
        def told(index: int, result: Any) -> None:
            if not lost and what == {"scan": "scanning", "write": "writing"}[lost_in]:
                lost.append(what)
                cluster.remove_node(node, allow_graceful=False)
            done(index, result)

        run(self, function, tasks, told, what=what)

    monkeypatch.setattr(RayEngine, "run", losing)
    with RayEngine(address=cluster.address) as engine:
        assert engine.workers == 2
    build(config, tmp_path / "there", engine=RayEngine(address=cluster.address))
    assert lost
    assert files(tmp_path / "there") == files(tmp_path / "local")


def files(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_validation_and_new_shards_are_those_of_one_process(
    cluster: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, logger="pipelines")
    monkeypatch.setattr("pipelines.common.progress._PLAIN_INTERVAL", 0.0)
    corpus = corpora.build(tmp_path / "corpus", "world:12?size=64", shard_samples=4).corpus.path
    with RayEngine(address=cluster.address):  # one join of the cluster for all of them
        kept = Selection(limit=7)
        for out, engine in (("here", None), ("there", RayEngine(address=cluster.address))):
            reshard(corpus, tmp_path / out, kept, shard_bytes=2**30, shard_samples=3, workers=0, engine=engine)
        assert files(tmp_path / "there") == files(tmp_path / "here")
        shard = next((tmp_path / "there").rglob("*.tar"))
        data = bytearray(shard.read_bytes())
        data[1500] ^= 1
        shard.write_bytes(data)
        caplog.clear()
        told = validate_corpus(tmp_path / "there", deep=True, engine=RayEngine(address=cluster.address))
    assert told.problems
    assert told == validate_corpus(tmp_path / "there", deep=True, workers=0)
    lines = [line for line in caplog.messages if line.startswith("validate: ")]
    assert re.fullmatch(
        r"validate: 1 of \d shards, .* shards/s, \d.* MiB at .* MiB/s, \d nodes?, \d tasks?, .* left", lines[0]
    )


def test_resources_of_a_task_bound_how_many_run_and_what_no_node_has_is_one_sentence(cluster: Any) -> None:
    with RayEngine(address=cluster.address, resources="CPU=0.5,memory=100MB") as engine:
        assert engine.workers in (2, 4), "a node that was lost may count for some seconds"
        found: list[Any] = []
        engine.run(abs, [-1, -2, -3], lambda _, value: found.append(value), what="testing")
        assert sorted(found) == [1, 2, 3]
    with pytest.raises(ConfigError, match="no node of the cluster has CPU 1, disk 2 for a task"):
        RayEngine(address=cluster.address, resources="disk=2").__enter__()
    assert parse_resources("cpu=2, memory=1.5GiB,node=0.01") == {"CPU": 2, "memory": 1.5 * 2**30, "node": 0.01}
    for wrong in ("CPU", "CPU=0", "CPU=1.5", "memory=4XB", "CPU=2GB", "=1"):
        with pytest.raises(ConfigError, match="write NAME=AMOUNT"):
            parse_resources(wrong)


def test_what_was_begun_is_cancelled_when_the_driver_is_interrupted(cluster: Any, tmp_path: Path) -> None:
    def interrupt(index: int, result: Any) -> None:
        raise KeyboardInterrupt

    with RayEngine(address=cluster.address) as engine:
        engine.workers = 2  # one runs, one waits for a CPU
        with pytest.raises(KeyboardInterrupt):
            engine.run(work, [("a", tmp_path / "0"), ("wait", tmp_path / "1")], interrupt, what="testing")
        found: list[Any] = []
        engine.run(work, [("b", tmp_path / "2")], lambda _, value: found.append(value), what="testing")
    assert found == ["b"], "the CPU is free again"


def leave_address(folder: Path) -> str:
    """As a `ray start` that was killed: a closed port in the file of the folder RAY_TMPDIR."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
    (folder / "ray").mkdir()
    (folder / "ray" / "ray_current_cluster").write_text(address)
    return address


def test_a_cluster_of_ones_own_leaves_no_token_and_one_that_asks_for_a_token_is_one_sentence(
    tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    short = tempfile.TemporaryDirectory(
        ignore_cleanup_errors=True
    )  # Ray's sockets lie here: their paths have a limit of 107 bytes
    request.addfinalizer(short.cleanup)
    leave_address(Path(short.name))
    home = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    home |= {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "RAY_TMPDIR": short.name}
    script = """
import sys
from pipelines.common.ray_engine import RayEngine
from sigma_data.errors import ConfigError
try:
    with RayEngine(1, address=sys.argv[1]):
        import ray
        print(ray.get_runtime_context().gcs_address, flush=True)
        sys.stdin.readline()
except ConfigError as error:
    print(error, flush=True)
"""
    words = [sys.executable, "-c", script]
    with (tmp_path / "stderr").open("w") as stderr:
        own = subprocess.Popen(
            [*words, "local"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=stderr, text=True, env=home
        )
    assert own.stdin is not None
    assert own.stdout is not None
    address = own.stdout.readline().strip()
    other = subprocess.run([*words, address], stdin=subprocess.DEVNULL, capture_output=True, text=True, env=home)
    own.stdin.close()
    own.stdout.close()
    assert own.wait() == 0
    assert not (tmp_path / ".ray").exists()
    assert "Token authentication" not in (tmp_path / "stderr").read_text()
    assert re.fullmatch(
        r"--engine ray: the cluster \S+ asks for a token that was not sent: set RAY_AUTH_MODE=token, .*\n", other.stdout
    )


def test_an_address_without_ray_and_one_that_does_not_answer_are_one_sentence() -> None:
    with pytest.raises(ConfigError, match="add --engine ray"):
        open_engine("local", 1, address="auto")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    for address in (f"127.0.0.1:{port}", f"ray://127.0.0.1:{port}", "127.0.0.1:99999999"):
        with pytest.raises(ConfigError, match="nothing answers at .*: look at the address"):
            open_engine("ray", 1, address=address).__enter__()


@pytest.mark.parametrize("address", [None, "auto"])
def test_an_address_that_a_killed_ray_left_is_one_sentence_at_once(
    address: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    # "auto" prefers what runs on this machine, as other tests' clusters do.
    monkeypatch.setattr("ray._private.services.find_gcs_addresses", frozenset)
    left = leave_address(tmp_path)
    begun = time.monotonic()
    with pytest.raises(
        ConfigError, match=rf"nothing answers at {left} \(.*\): .*`ray stop` .* or give --address local"
    ):
        open_engine("ray", 1, address=address).__enter__()
    assert time.monotonic() - begun < 5, "Ray itself tries for minutes"
