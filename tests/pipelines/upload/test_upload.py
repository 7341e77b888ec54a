"""Uploads to a hub on loopback: what goes and in which order, cards, going on after a cut, every refusal in a sentence."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from huggingface_hub import constants
from safetensors.torch import save_file
from support.commands import Ended, sigma
from support.hub_server import FakeHub, serve
from support.hub_uploads import TOKEN

from pipelines.download.catalog import find_entry
from pipelines.download.run import download, plan_download
from pipelines.evaluate.model_facts import model_facts
from pipelines.train.provenance import TRAINING
from pipelines.upload import run
from pipelines.upload.run import Plan, plan_upload
from pipelines.upload.run import upload as send
from sigma_data.corpus.corpus import COMMIT
from sigma_data.errors import ConfigError, SigmaError, SourceError
from sigma_model.config import preset_directory

RECORD = {
    "sigma": "0.1.0", "run": "sigma-lora", "step": 1200, "weights": "EMA", "base": "models/BAGEL-7B-MoT",
    "base_license": "apache-2.0", "lora": True,
    "corpora": [{"name": "drawn|scenes", "split": "train", "manifest": "ab" * 32, "samples": 30,
                 "families": {"editing": 10, "layout": 20}, "licenses": {"cc0-1.0": 25, "mit": 5}}],
    "settings": {"optimizer": {"lr": 0.0001}, "steps": 1200},
}  # fmt: skip


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serve(FakeHub({})) as served:
        yield served


@pytest.fixture(autouse=True)
def _client(hub: FakeHub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Its own protocol for large files needs a server of its own; without it the client speaks LFS."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, hub.endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)  # as HF_ENDPOINT does before the client is imported
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr(time, "sleep", lambda _seconds: None)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "here" / "model"
    shutil.copytree(preset_directory("tiny-base"), folder)
    (folder / TRAINING).write_text(json.dumps(RECORD))
    (folder / ".sigma-download.json").write_text("{}")
    return folder


@pytest.fixture
def corpus(small_corpus: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(small_corpus, tmp_path / "corpus"))


def plan(hub: FakeHub, place: Path, name: str = "Owner/Thing", **changes: Any) -> Plan:
    return plan_upload(place, name, endpoint=hub.endpoint, **changes)


def here(place: Path) -> dict[str, bytes]:
    return {
        path.relative_to(place).as_posix(): path.read_bytes()
        for path in place.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(place).parts)
    }


def there(hub: FakeHub, repo: str) -> dict[str, bytes]:
    return {path: data for path, data in hub.repos[repo].items() if path != ".gitattributes"}


def head_of(card: bytes) -> Any:
    return yaml.safe_load(card.decode().split("---\n")[1])


@pytest.mark.slow
def test_a_corpus_arrives_whole_and_private_and_comes_back_the_same(hub: FakeHub, corpus: Path, tmp_path: Path) -> None:
    result = send(plan(hub, corpus))
    assert there(hub, "datasets/Owner/Thing") == here(corpus)
    assert "datasets/Owner/Thing" in hub.uploads.private and not result["public"]
    head = head_of(hub.repos["datasets/Owner/Thing"]["README.md"])
    assert {one["config_name"] for one in head["configs"]} > {"default", "editing"}, "families and splits"
    assert head["dataset_info"][0]["features"] and head["license"]
    download(plan_download(find_entry("Owner/Thing", "dataset"), tmp_path / "back", endpoint=hub.endpoint),
             endpoint=hub.endpoint)  # fmt: skip
    assert here(tmp_path / "back") == here(corpus)
    assert sigma("validate", tmp_path / "back", "--deep").returncode == 0


@pytest.mark.slow
def test_what_says_that_a_corpus_is_whole_goes_last(
    hub: FakeHub, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_COMMIT_FILES", 4)
    send(plan(hub, corpus))
    assert len(hub.uploads.commits) > 2
    first = {name for _, added, _ in hub.uploads.commits[:-1] for name in added}
    assert not first & {COMMIT, "README.md"} and {COMMIT, "README.md"} <= set(hub.uploads.commits[-1][1])
    assert all(len(added) <= 6 for _, added, _ in hub.uploads.commits)


def test_a_model_gets_a_card_of_what_its_run_recorded(hub: FakeHub, model: Path) -> None:
    send(plan(hub, model, public=True))
    repo = there(hub, "models/Owner/Thing")
    card = repo.pop("README.md")
    assert repo == here(model) and not (model / "README.md").exists()
    assert "models/Owner/Thing" not in hub.uploads.private
    head = head_of(card)
    assert head["base_model"] == "ByteDance-Seed/BAGEL-7B-MoT" and head["license"] == "apache-2.0"
    assert head["base_model_relation"] == "finetune" and "lora" in head["tags"]
    text = card.decode()
    for told in ("1,200 steps", "EMA", "ab" * 32, "drawn\\|scenes", "editing 10, layout 20", "cc0-1.0 25, mit 5",
                 "lr: 0.0001", "sigma download Owner/Thing"):  # fmt: skip
        assert told in text, told
    assert "## Evaluation" not in text


def results(model: Path, *, weights: str | None = None) -> dict[str, Any]:
    cell = {"mean": 0.5791, "low": 0.55, "high": 0.61, "scored": 120, "failed": 0}
    none = {"mean": None, "low": None, "high": None, "scored": 0, "failed": 0}
    family = {"family": "editing", "metrics": {"accuracy": cell, "PSNR": none}}
    of = weights or model_facts(str(model), base=None).digest
    return {"benchmark": "world", "runs": [{"settings": {"weights": of, "steps": 4}, "families": [family]}]}


@pytest.mark.slow
def test_an_evaluation_beside_the_model_is_in_its_card_and_one_of_other_weights_is_not(
    hub: FakeHub, model: Path
) -> None:
    for name, weights in (("evaluation", None), ("other", "0" * 16)):
        (model.parent / name).mkdir()
        (model.parent / name / "results.json").write_text(json.dumps(results(model, weights=weights)))
    (model.parent / "broken").mkdir()
    (model.parent / "broken" / "results.json").write_text("[1]")
    send(plan(hub, model))
    card = hub.repos["models/Owner/Thing"]["README.md"]
    [index] = head_of(card)["model-index"]
    [of] = index["results"]
    assert of["metrics"] == [{"type": "accuracy", "name": "accuracy", "value": 0.5791}]
    assert card.decode().count("| world | editing | accuracy | 0.5791 | 0.55 to 0.61 | 120 |") == 1
    with pytest.raises(ConfigError, match="is of other weights"):
        plan(hub, model, evaluations=[model.parent / "other"])
    with pytest.raises(ConfigError, match="has no results.json of `sigma eval`"):
        plan(hub, model, evaluations=[model.parent / "broken"])


def test_a_card_that_is_there_is_taken_as_it_is(hub: FakeHub, model: Path) -> None:
    (model / "README.md").write_text("---\nlicense: mit\n---\nmine\n")
    made = plan(hub, model)
    assert made.content.license == "mit"
    send(made)
    assert hub.repos["models/Owner/Thing"]["README.md"] == b"---\nlicense: mit\n---\nmine\n"
    with pytest.raises(ConfigError, match="is the card already"):
        plan(hub, model, license_="apache-2.0")


@pytest.mark.slow
def test_a_second_upload_sends_only_what_lacks(hub: FakeHub, model: Path) -> None:
    send(plan(hub, model))
    sent = len(hub.uploads.sent)
    again = plan(hub, model)
    assert again.missing == () and send(again)["sent"] == 0
    assert len(hub.uploads.commits) == 1 and len(hub.uploads.sent) == sent
    (model / "sigma.json").write_bytes((model / "sigma.json").read_bytes() + b"\n")
    assert [file.path for file in plan(hub, model).missing] == ["sigma.json"]
    send(plan(hub, model))
    assert there(hub, "models/Owner/Thing")["sigma.json"] == (model / "sigma.json").read_bytes()
    assert hub.uploads.commits[-1][1] == ["sigma.json"]


def test_cut_off_in_a_large_file_it_goes_on_with_what_lacks(hub: FakeHub, model: Path) -> None:
    hub.uploads.cut = [None, *[1000] * 100]
    with pytest.raises(SourceError, match="cannot be reached .* run the same command again to go on"):
        send(plan(hub, model))
    arrived = set(hub.uploads.large)
    assert arrived and not hub.uploads.commits, "one large file is there, and no commit"
    hub.uploads.cut, before = [], len(hub.uploads.sent)
    send(plan(hub, model))
    assert {path: data for path, data in there(hub, "models/Owner/Thing").items() if path != "README.md"} == here(model)
    assert not arrived & set(hub.uploads.sent[before:]), "what had arrived is not sent again"


@pytest.mark.slow
def test_cut_off_between_two_commits_it_goes_on_after_the_first(
    hub: FakeHub, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_COMMIT_FILES", 4)
    hub.uploads.commit_statuses = [200, 500]
    asked = plan(hub, corpus)
    with pytest.raises(SourceError, match="answers 500"):
        send(asked)
    [(_, first, _)] = hub.uploads.commits
    assert COMMIT not in there(hub, "datasets/Owner/Thing"), "half a corpus does not look like one"
    left = plan(hub, corpus)
    assert len(left.missing) == len(asked.missing) - len(first)
    send(left)
    assert there(hub, "datasets/Owner/Thing") == here(corpus)
    names = [name for _, added, _ in hub.uploads.commits for name in added]
    assert len(names) == len(set(names)), "no file in two commits"


def test_a_large_file_in_parts(hub: FakeHub, model: Path) -> None:
    hub.uploads.chunk = 1_000_000
    send(plan(hub, model))
    assert there(hub, "models/Owner/Thing")["ema.safetensors"] == (model / "ema.safetensors").read_bytes()


def test_what_is_there_and_not_here_is_removed_only_when_asked(hub: FakeHub, corpus: Path) -> None:
    hub.repos["datasets/Owner/Thing"] = {"train/editing-00009.tar": b"old", ".gitattributes": b""}
    hub.uploads.private.add("datasets/Owner/Thing")
    with pytest.raises(ConfigError, match=r"holds 1 file that .* does not \(train/editing-00009.tar\): add --replace"):
        plan(hub, corpus)
    made = plan(hub, corpus, replace=True)
    assert "train/editing-00009.tar: is removed there" in made.show()
    send(made)
    assert there(hub, "datasets/Owner/Thing") == here(corpus)
    assert ".gitattributes" in hub.repos["datasets/Owner/Thing"]


def test_nothing_private_becomes_public_unseen(hub: FakeHub, model: Path) -> None:
    hub.repos["models/Owner/Thing"] = {}
    with pytest.raises(ConfigError, match="is public: add --public"):
        plan(hub, model)
    assert plan(hub, model, public=True).public


@pytest.mark.parametrize(
    ("token", "name", "said"),
    [
        ("", "Owner/Thing", "uploading needs an account on .*: log in with `hf auth login`, or set HF_TOKEN"),
        ("hf_wrong", "Owner/Thing", "answers 401: the token is not valid: log in"),
        (TOKEN, "Other/Thing", "answers 403: this account may not write there"),
        (TOKEN, "Other/Hidden", "is taken, by a repository that this account cannot see: choose another name"),
        (TOKEN, "Thing", "is no name on the hub: write OWNER/NAME"),
        (TOKEN, "Owner/a..b", "Owner/a..b: "),
    ],
)
def test_who_may_not_upload_is_told_why(
    hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch, token: str, name: str, said: str
) -> None:
    if token:
        monkeypatch.setenv("HF_TOKEN", token)
    else:
        monkeypatch.delenv("HF_TOKEN")
    hub.repos["models/Other/Hidden"] = {"secret": b"x"}
    hub.uploads.hidden.add("models/Other/Hidden")
    with pytest.raises(SigmaError, match=said) as error:
        send(plan(hub, model, name))
    assert "\n" not in str(error.value)
    assert hub.repos["models/Other/Hidden"] == {"secret": b"x"} and not hub.uploads.commits


@pytest.mark.parametrize(
    ("where", "status", "said"),
    [
        ("/api/repos/create", 402, "no room left for private repositories"),
        ("/preupload/", 403, "may not write there"),
        ("/commit/", 412, "has changed the repository meanwhile: run the same command again"),
        ("/commit/", 413, "a file is too large for the hub"),
        ("/commit/", 500, "answers 500: run the same command later to go on"),
    ],
)
def test_what_the_hub_refuses_is_one_sentence(hub: FakeHub, model: Path, where: str, status: int, said: str) -> None:
    hub.uploads.statuses = {where: [status]}
    with pytest.raises(SourceError, match=said) as error:
        send(plan(hub, model))
    assert "\n" not in str(error.value)
    send(plan(hub, model))
    assert "README.md" in there(hub, "models/Owner/Thing"), "and the next run goes on"


def test_two_at_once_do_not_mix(hub: FakeHub, model: Path) -> None:
    hub.repos["models/Owner/Thing"] = {}
    hub.uploads.private.add("models/Owner/Thing")
    hub.uploads.racing = True
    with pytest.raises(SourceError, match="somebody else has changed the repository meanwhile"):
        send(plan(hub, model))
    assert there(hub, "models/Owner/Thing") == {}


def test_other_bytes_on_the_hub_are_found(hub: FakeHub, model: Path) -> None:
    made = plan(hub, model)
    hub.uploads.large[made.content.files[[f.path for f in made.content.files].index("ema.safetensors")].sha256()] = b"?"
    with pytest.raises(SourceError, match=r"ema.safetensors is not there as it is here"):
        send(made)


def test_no_network(model: Path) -> None:
    with pytest.raises(SourceError, match="cannot be reached"):
        plan_upload(model, "Owner/Thing", endpoint="http://127.0.0.1:9")


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda folder: None, "is neither a corpus"),
        (lambda folder: (folder / "config.yaml").write_text("a: 1") and (folder / "checkpoints").mkdir(), "export it"),
        (lambda folder: (folder / COMMIT).write_text("{}"), "corpus.json"),
        (lambda folder: (folder / "ema.safetensors").symlink_to("/etc/hostname"), "is a link, or no file"),
    ],
)
def test_what_is_nothing_to_upload_is_told(hub: FakeHub, tmp_path: Path, make: Any, said: str) -> None:
    folder = tmp_path / "place"
    folder.mkdir()
    make(folder)
    with pytest.raises(SigmaError, match=said):
        plan(hub, folder)


def test_a_damaged_corpus_is_not_uploaded(hub: FakeHub, corpus: Path) -> None:
    shard = next(corpus.glob("train/*.tar"))
    shard.write_bytes(shard.read_bytes()[:-512])
    with pytest.raises(ConfigError, match="is not as it was built: `sigma validate"):
        plan(hub, corpus)
    shard.unlink()
    with pytest.raises(ConfigError, match="is missing: `sigma validate"):
        plan(hub, corpus)


def test_an_adapter_goes_with_its_base(hub: FakeHub, tmp_path: Path) -> None:
    import torch

    folder = tmp_path / "adapter"
    folder.mkdir()
    save_file({"a": torch.zeros(2)}, folder / "adapter_model.safetensors")
    (folder / "adapter_config.json").write_text("{}")
    (folder / TRAINING).write_text(json.dumps(RECORD))
    send(plan(hub, folder, license_="mit"))
    head = head_of(hub.repos["models/Owner/Thing"]["README.md"])
    assert head["library_name"] == "peft" and head["base_model_relation"] == "adapter" and head["license"] == "mit"


def spoken(*words: str | Path) -> Ended:
    return sigma("upload", *words)


@pytest.mark.slow
def test_the_command_lists_and_asks_before_it_sends(hub: FakeHub, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dry = spoken(model, "Owner/Thing", "--dry-run")
    assert dry.returncode == 0 and "ema.safetensors" in dry.stdout and "private" in dry.stdout and not hub.repos
    listed = json.loads(spoken(model, "Owner/Thing", "--dry-run", "--json").stdout)
    sizes = {one["path"]: one["bytes"] for one in listed["files"]}
    assert sizes["ema.safetensors"] == (model / "ema.safetensors").stat().st_size and not listed["public"]
    refused = spoken(model, "Owner/Thing")
    assert refused.returncode == 2 and not hub.repos
    assert refused.stderr.splitlines()[-1] == (
        "sigma: the upload has to be agreed to, and there is no terminal to ask in: add --yes if you agree"
    )
    done = spoken(model, "Owner/Thing", "--yes")
    assert done.returncode == 0 and "hashes as here; private" in done.stdout
    monkeypatch.delenv("HF_TOKEN")
    dry = spoken(model, "Owner/Thing", "--dry-run")
    assert dry.returncode == 0 and "not logged in" in dry.stdout
    refused = spoken(model, "Owner/Thing", "--yes")
    assert refused.returncode == 2 and refused.stderr.startswith("sigma: Owner/Thing: uploading needs an account")


@pytest.mark.slow
def test_a_build_is_pushed_and_refuses_before_it_builds(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ("build-dataset", "world:12?size=64", "--out", tmp_path / "made", "--push-to-hub", "Owner/Made")
    refused = sigma(*words)
    assert refused.returncode == 2 and "--yes" in refused.stderr and not (tmp_path / "made").exists()
    done = sigma(*words, "--yes")
    assert done.returncode == 0 and "hashes as here; private" in done.stderr
    assert there(hub, "datasets/Owner/Made") == here(tmp_path / "made")
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    refused = sigma(*words[:3], tmp_path / "other", *words[4:], "--yes")
    assert refused.returncode == 2 and "401" in refused.stderr and not (tmp_path / "other").exists()
