"""Downloads against a hub on loopback: what is wanted, resuming, hashes, every error in a sentence."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from support.commands import sigma
from support.hub_server import COMMIT, FakeHub, serve

from pipelines.download import run
from pipelines.download.catalog import Entry, catalog, find_entry
from pipelines.download.fetch import partial_path, unfinished
from pipelines.download.hub import wanted
from pipelines.download.run import Plan, download, plan_download
from pipelines.evaluate.benchmarks import NAMES
from sigma_data.errors import ConfigError, SigmaError, SourceError
from sigma_data.sources.base import names
from sigma_model.model_files import DOWNLOADS, how_to_fetch

LARGE = random.Random(0).randbytes(3_000_000)
FILES = {
    "README.md": b"a card",
    "config.json": b"{}",
    "model.safetensors": LARGE,
    "model.bin": b"pickle",
    "code.py": b"print()",
    "sub/tokenizer.json": b"{" + b" " * 200 + b"}",
}
REPO = "models/Owner/Model"


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serve(FakeHub({REPO: dict(FILES), "datasets/Owner/Data": {"a[b],c/part-0.parquet": b"x" * 500}})) as served:
        yield served


@pytest.fixture(autouse=True)
def _client(monkeypatch: pytest.MonkeyPatch) -> None:
    """It waits seconds between attempts, writes 10 MB at a time, and conftest has it ask nobody."""
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100_000)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)


def plan(hub: FakeHub, out: Path, entry: Entry | None = None, **changes: Any) -> Plan:
    return plan_download(entry or find_entry("Owner/Model"), out, endpoint=hub.endpoint, **changes)


def fetch(hub: FakeHub, out: Path, **changes: Any) -> dict[str, Any]:
    return download(plan(hub, out, **changes), endpoint=hub.endpoint)


def there(out: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(out)): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and not path.name.startswith(".")
    }


def test_only_what_a_model_needs_is_fetched_and_a_second_time_nothing(hub: FakeHub, tmp_path: Path) -> None:
    wanted_files = {name: data for name, data in FILES.items() if name not in ("model.bin", "code.py")}
    result = fetch(hub, tmp_path)
    assert there(tmp_path) == wanted_files
    assert (result["files"], result["bytes"]) == (4, sum(map(len, wanted_files.values())))
    asked = len(hub.requests)
    again = plan(hub, tmp_path)
    assert again.missing == 0
    assert download(again, endpoint=hub.endpoint) == result
    assert len(hub.requests) == asked


def test_the_plan_shows_license_size_and_folder_and_fetches_nothing(hub: FakeHub, tmp_path: Path) -> None:
    found = plan(hub, tmp_path / "m")
    (repository,) = found.as_dict()["repositories"]
    assert (repository["license"], repository["commit"], repository["files"]) == ("apache-2.0", COMMIT, 4)
    assert "apache-2.0" in found.show()
    assert str(tmp_path / "m") in found.show()
    assert hub.requests == []
    assert not (tmp_path / "m").exists()
    hub.license = None
    assert "not stated" in plan(hub, tmp_path / "m").show()


def test_a_file_goes_on_where_it_was_cut_off(hub: FakeHub, tmp_path: Path) -> None:
    hub.cut["model.safetensors"] = [1_000_000] + [0] * 20
    with pytest.raises(SourceError, match="run the same command again"):
        fetch(hub, tmp_path)
    assert "model.safetensors" not in there(tmp_path)
    hub.cut.clear()
    hub.requests.clear()
    fetch(hub, tmp_path)
    assert there(tmp_path)["model.safetensors"] == LARGE
    (asked,) = [range_ for name, range_ in hub.requests if name == "model.safetensors"]
    assert asked is not None
    assert int(asked.removeprefix("bytes=").rstrip("-")) > 0, "not from the start"


def test_a_server_without_ranges_gives_the_same_file(hub: FakeHub, tmp_path: Path) -> None:
    hub.ranges = False
    hub.cut["model.safetensors"] = [1_000_000] + [0] * 20
    with pytest.raises(SourceError):
        fetch(hub, tmp_path)
    hub.cut.clear()
    fetch(hub, tmp_path)
    assert there(tmp_path)["model.safetensors"] == LARGE


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_wrong_bytes_are_fetched_again_and_never_kept(hub: FakeHub, tmp_path: Path, name: str) -> None:
    hub.wrong[name] = 1
    fetch(hub, tmp_path / "once")
    assert there(tmp_path / "once")[name] == FILES[name]
    hub.wrong[name] = 2
    with pytest.raises(SourceError, match="another hash"):
        fetch(hub, tmp_path / "twice")
    assert name not in there(tmp_path / "twice")


def test_a_file_that_was_changed_since_is_fetched_again(hub: FakeHub, tmp_path: Path) -> None:
    fetch(hub, tmp_path)
    (tmp_path / "config.json").write_bytes(b"[]")
    fetch(hub, tmp_path)
    assert (tmp_path / "config.json").read_bytes() == b"{}"


def test_a_file_that_lay_there_already_is_hashed_and_kept(hub: FakeHub, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(LARGE)
    fetch(hub, tmp_path)
    assert all(name != "model.safetensors" for name, _ in hub.requests)


def test_names_with_brackets_and_pages_of_a_long_list(hub: FakeHub, tmp_path: Path) -> None:
    hub.page = 1
    hub.repos["datasets/Owner/Data"]["d/e.txt"] = b"e"
    data = Entry("data", "dataset", ("Owner/Data",), "")
    fetch(hub, tmp_path / "all", entry=data)
    assert set(there(tmp_path / "all")) == {"a[b],c/part-0.parquet", "d/e.txt"}
    fetch(hub, tmp_path / "one", entry=data, include=["a[b],c"])
    assert set(there(tmp_path / "one")) == {"a[b],c/part-0.parquet"}


@pytest.mark.parametrize(
    ("path", "include", "exclude", "expected"),
    [
        ("a/b.json", [], [], True),
        ("a/b.json", ["*.json"], [], True),
        ("a/b.json", ["a"], [], True),
        ("a/b.json", ["a/"], ["b.json"], False),
        ("ab/b.json", ["a"], [], False),
        ("x(y,z)/t-[0].tar", ["x(y,z)/t-[0].tar"], [], True),
        ("a/b.bin", [], ["*.bin"], False),
    ],
)
def test_what_is_wanted(path: str, include: list[str], exclude: list[str], *, expected: bool) -> None:
    assert wanted(path, include, exclude) is expected


@pytest.mark.parametrize("path", ["../escape.json", "/etc/x.json", "a/../../b.json", "C:/x.json", "a\\b.json"])
def test_a_file_outside_of_its_folder_is_refused(hub: FakeHub, tmp_path: Path, path: str) -> None:
    hub.repos[REPO][path] = b"{}"
    with pytest.raises(SourceError, match="outside of its folder"):
        fetch(hub, tmp_path / "in")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "changes", "statuses", "said"),
    [
        ("Owner/Nothing", {}, {}, "not on http.* or private: if it is yours, log in"),
        ("Owner/Model", {"revision": "v9"}, {}, "no such revision"),
        ("Owner/Model", {"include": ["*.tar"]}, {}, "none of its 6 files is asked for"),
        ("Owner/Model", {}, {"Owner/Model": [503] * 9}, "answers 503: run the same command later"),
        ("Owner/Model", {}, {"Owner/Model": [429] * 9}, "answers 429: too many requests"),
        ("Owner/Model", {}, {"config.json": [403]}, "answers 403: this account may not read it"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(
    hub: FakeHub, tmp_path: Path, name: str, changes: dict[str, Any], statuses: dict[str, list[int]], said: str
) -> None:
    hub.statuses = statuses
    with pytest.raises(SigmaError, match=said) as raised:
        fetch(hub, tmp_path, entry=find_entry(name), **changes)
    assert "\n" not in str(raised.value)


def test_terms_are_to_be_accepted_and_a_token_is_sent(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    hub.gated = True
    with pytest.raises(ConfigError, match="wants its terms accepted"):
        fetch(hub, tmp_path)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    fetch(hub, tmp_path)
    assert "Bearer hf_secret" in hub.tokens
    assert all(b"hf_secret" not in path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())


def test_no_network_and_offline_mode(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nobody = FakeHub({}, endpoint="http://127.0.0.1:9")
    with pytest.raises(SourceError, match=r"cannot be reached \([A-Z]\w+ refused\)"):
        plan(nobody, tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        plan(nobody, tmp_path)


def test_without_room_nothing_is_begun(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = os.statvfs(tmp_path)
    monkeypatch.setattr(run.shutil, "disk_usage", lambda _path: type("U", (), {"free": 1000, "total": usage.f_blocks}))
    with pytest.raises(ConfigError, match="choose another disk with --out"):
        fetch(hub, tmp_path / "m")
    assert hub.requests == []


def test_the_list_has_models_the_release_and_corpora_of_the_hub() -> None:
    names = {entry.name: entry for entry in catalog()}
    assert {"bagel", "omnigen2", "sgt-bagel", "sgt-gen2", "sigma-dataset", "sigma-benchmark", "x2edit"} <= set(names)
    assert len(names) == len(catalog())
    assert names["bagel"].folder == Path("models/BAGEL-7B-MoT"), "where configs/sigma-bagel-7b.yaml looks"
    assert names["seed_edit"].repos == find_entry("seed_edit").repos
    assert len(names["seed_edit"].repos) == 3


def test_models_that_are_not_there_name_the_download_that_fetches_them() -> None:
    released = {entry.folder.name: entry.name for entry in catalog() if entry.kind == "model" and entry.shape}
    assert released == DOWNLOADS
    assert how_to_fetch(Path("models/BAGEL-7B-MoT")) == "`sigma download bagel` fetches it"
    assert how_to_fetch(Path("/a b/OmniGen2")) == "`sigma download omnigen2 --out '/a b/OmniGen2'` fetches it"
    assert how_to_fetch(Path("bagel")).startswith("`sigma download bagel` fetches it to models/BAGEL-7B-MoT")
    assert how_to_fetch(Path("mine")) == "check the path, or fetch a model: `sigma download` lists them"
    refused = sigma("generate", "a", "--model", "models/OmniGen2")
    assert (
        refused.stderr == "sigma: models/OmniGen2: no such directory of a model: `sigma download omnigen2` fetches it\n"
    )


def test_of_a_corpus_beside_others_in_a_repository_only_its_own_files_are_fetched(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["models/UCSC-VLAA/gpt-image-edit-training"] = {"training_json/a.json": b"[]", "weights.safetensors": b"w"}
    planned = plan(hub, tmp_path, find_entry("gpt_image_edit_json"))
    assert [file.path for part in planned.parts for file in part.missing] == ["training_json/a.json"]
    assert find_entry("relation252k_raw").repos == ("handsomeWilliam/Relation252K",), "the other is held out"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("sigma", "no weights"),
        ("bagle", "did you mean bagel"),
        ("BAGEL", "did you mean bagel"),
        ("Seed-Edit", "did you mean seed_edit"),
        ("qqq", "lists the"),
        (
            "llava_json",
            r"is a layout of files .* lmms-lab/LLaVA-OneVision-Data \(raw uploads\), and `sigma sources llava_json`",
        ),
        ("pico_banana", "apple/pico-banana-400k on GitHub, and `sigma sources pico_banana`"),
        ("world", "nothing to fetch"),
        ("release", "`sigma download sigma-dataset`"),
        ("geneval", "a benchmark of `sigma eval`"),
    ],
)
def test_a_name_without_a_repository_says_what_to_do(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        find_entry(name)


def test_every_name_that_sigma_reads_by_is_fetched_or_says_in_a_sentence_why_not() -> None:
    fetched = {entry.name for entry in catalog()}
    for name in (*names(), *NAMES):
        if name in fetched:
            continue
        with pytest.raises(ConfigError) as raised:
            find_entry(name)
        assert "nothing of that name" not in str(raised.value)
        assert "unknown" not in str(raised.value)


def test_lines_fit_a_terminal(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = sigma("download").stdout
    long = [line for line in listed.splitlines() if len(line) > 80]
    assert not long, long
    for entry in catalog():
        assert f"  {entry.name} " in listed
        assert all(repo in listed for repo in entry.repos)
    shown = plan(hub, Path("models/Model")).show()
    assert max(map(len, shown.splitlines())) <= 80


def test_where_the_card_says_no_license_that_of_the_list_is_shown(hub: FakeHub, tmp_path: Path) -> None:
    entry = Entry("data", "dataset", ("Owner/Data",), "", license="cc-by-nc-4.0")
    assert "license  apache-2.0\n" in plan(hub, tmp_path, entry).show()
    hub.license = None
    found = plan(hub, tmp_path, entry)
    assert "license  cc-by-nc-4.0 (says `sigma sources`; the card says none)" in found.show()
    assert found.as_dict()["repositories"][0]["license"] == "cc-by-nc-4.0"
    assert find_entry("hq_edit").license == "cc-by-nc-4.0"
    assert find_entry("imgedit").license is None


@pytest.mark.parametrize(
    ("path", "status", "message", "said"),
    [
        (
            "Owner/Model",
            401,
            "Invalid credentials in Authorization header",
            "answers 401: the token is missing or not accepted: log in",
        ),
        ("Owner/Model", 403, None, "answers 403: this account may not read it: log in"),
        ("model.safetensors", 401, "Invalid credentials in Authorization header", "answers 401: the token is missing"),
    ],
)
def test_a_token_that_is_wrong_or_may_not_read_is_one_sentence(
    hub: FakeHub,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    status: int,
    message: str | None,
    said: str,
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    hub.statuses = {path: [status] * 9}
    hub.refusal = message
    with pytest.raises(SigmaError, match=said) as raised:
        fetch(hub, tmp_path)
    assert "\n" not in str(raised.value)
    assert "hf_wrong" not in str(raised.value)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
def test_a_disk_that_fills_up_is_one_sentence_and_what_was_fetched_stays(hub: FakeHub, tmp_path: Path) -> None:
    found = plan(hub, tmp_path)
    (large,) = [file for file in found.parts[0].missing if file.path == "model.safetensors"]
    partial_path(tmp_path, large).symlink_to("/dev/full")
    with pytest.raises(
        SigmaError, match="the disk is full: free some space, then run the same command again"
    ) as raised:
        download(found, endpoint=hub.endpoint, streams=1)
    assert "\n" not in str(raised.value)
    assert "model.safetensors" not in there(tmp_path)
    assert unfinished(tmp_path) is not None
    partial_path(tmp_path, large).unlink()
    fetch(hub, tmp_path)
    assert unfinished(tmp_path) is None
    assert there(tmp_path)["model.safetensors"] == LARGE


def test_two_downloads_of_the_same_thing_at_once(hub: FakeHub, tmp_path: Path) -> None:
    first, second = plan(hub, tmp_path), plan(hub, tmp_path)
    hub.hold.clear()  # the first waits in the middle of its files
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(download, first, endpoint=hub.endpoint)
        while not hub.requests:
            pass
        with pytest.raises(SigmaError, match="a download is running there.*choose another --out"):
            download(second, endpoint=hub.endpoint)
        hub.hold.set()
        running.result()
    assert there(tmp_path)["model.safetensors"] == LARGE
    assert plan(hub, tmp_path).missing == 0


def test_two_repositories_go_to_a_folder_each(hub: FakeHub, tmp_path: Path) -> None:
    hub.repos["datasets/Owner/More"] = {"m.txt": b"m"}
    hub.statuses["m.txt"] = [404]
    both = Entry("both", "dataset", ("Owner/Data", "Owner/More"), "")
    with pytest.raises(SourceError):
        fetch(hub, tmp_path, entry=both)
    assert unfinished(tmp_path) is not None, "the first is whole, and the source is not"
    fetch(hub, tmp_path, entry=both)
    assert unfinished(tmp_path) is None
    assert set(there(tmp_path)) == {"Data/a[b],c/part-0.parquet", "More/m.txt"}


def test_the_command_asks_before_it_fetches(hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.endpoint)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)  # what HF_ENDPOINT sets when the client is imported
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    out = tmp_path / "m"
    refused = sigma("download", "Owner/Model", "--out", out)
    assert refused.returncode == 2
    assert "apache-2.0" in refused.stderr
    assert "--yes" in refused.stderr
    assert not out.exists()
    shown = sigma("download", "Owner/Model", "--out", out, "--dry-run", "--json")
    assert json.loads(shown.stdout)["missing_bytes"] == sum(
        len(data) for name, data in FILES.items() if name not in ("model.bin", "code.py")
    )
    hub.repos["datasets/Owner/Data"]["chartqa(cauldron,llava_format)/part-0.parquet"] = b"y"
    data = ("download", "Owner/Data", "--dataset", "--out", tmp_path / "d", "--dry-run", "--json")
    for part, count in (
        ("chartqa(cauldron,llava_format)", 1),
        ("a[b],c", 1),
        ("nothing,chartqa(cauldron,llava_format),a[b],c/part-0.parquet,a*", 2),
    ):
        assert len(json.loads(sigma(*data, "--include", part).stdout)["repositories"][0]["missing"]) == count
    done = sigma("download", "Owner/Model", "--out", out, "--yes")
    assert done.returncode == 0, done.stderr
    assert f"{out}: 4 files of" in done.stdout
    assert "bagel" in sigma("download").stdout


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on_and_ends_with_the_same_bytes(tmp_path: Path) -> None:
    data = random.Random(1).randbytes(40_000_000)
    with serve(FakeHub({"datasets/Owner/Big": {"big.bin": data}})) as hub:
        command = [sys.executable, "-m", "cli", "download", "Owner/Big", "--dataset", "--yes", "--out", str(tmp_path)]
        environment = {**os.environ, "HF_ENDPOINT": hub.endpoint, "HF_HUB_OFFLINE": "0"}
        process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        while process.poll() is None and not any(path.stat().st_size for path in tmp_path.glob(".big.bin.*.part")):
            pass
        process.send_signal(signal.SIGKILL)
        process.communicate()
        begun = sum(path.stat().st_size for path in tmp_path.glob(".big.bin.*.part"))
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        assert (tmp_path / "big.bin").read_bytes() == data
        if begun:
            assert hub.requests[-1][1] == f"bytes={begun}-"
    assert not list(tmp_path.glob("*.part"))
