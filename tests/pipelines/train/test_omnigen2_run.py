"""`sigma train` on OmniGen2: what is planned is what is read, any ranks are one, a resumed run is the whole one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from support import corpora, ranks
from support.training_runs import apart, lines, run, same, saved, settings_of

from pipelines.common.planner import open_planner
from pipelines.train.config import Omnigen2Settings, TrainConfig
from pipelines.train.omnigen2.batch import Omnigen2Batch
from pipelines.train.omnigen2.build import dataset_of
from pipelines.train.omnigen2.description import describe_omnigen2
from sigma_data.planning.plan import PlanSettings
from sigma_data.sample import Family

pytestmark = pytest.mark.slow
NAME = "omnigen2-tiny"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Samples of all families, some with several references and attribute tokens, some answered in words."""
    folder = tmp_path_factory.mktemp("omnigen2")
    corpora.build(
        folder / "corpus",
        "world:18?size=64",
        "world:12?size=64&families=segmentation:2,understanding:1&seed=3&name=second",
        splits={"train": 80, "val": 20},
    )
    return folder / "corpus"


def settings(out: Path, corpus: Path, **changes: Any) -> dict[str, Any]:
    """A run on everything, both losses, the language model trained."""
    values: dict[str, Any] = settings_of(out, corpus, steps=3, model={"path": NAME}, omnigen2={"train_mllm": True})
    values["data"] = {"corpora": [{"path": str(corpus)}], "budget": 900, "dropout": {"text": 0.3, "latent": 0.5}}
    for name, change in changes.items():
        old = values.get(name)
        values[name] = {**old, **change} if isinstance(old, dict) and isinstance(change, dict) else change
    return values


IMAGES = {
    "omnigen2": {"train_mllm": False},
    "data": {"dropout": {"text": 0.3, "latent": 0.5}},
}


def only_images(corpus: Path) -> list[dict[str, Any]]:
    families = [family.value for family in Family if family is not Family.UNDERSTANDING]
    return [{"path": str(corpus), "families": families}]


@pytest.mark.parametrize("route", ["vae", "mllm", "both"])
def test_every_sample_is_read_as_long_as_it_was_planned(corpus: Path, route: str) -> None:
    """`read_sample` refuses another length than the plan's; here no sample is left out, and dropout shortens some."""
    chosen = Omnigen2Settings.model_validate({"route": route, "attribute_tokens": route == "both"})
    description = describe_omnigen2(NAME, chosen)
    plan_settings = PlanSettings.model_validate(
        {"corpora": [{"path": str(corpus)}], "budget": 900, "dropout": {"text": 0.5, "latent": 0.5}}
    )
    planner = open_planner(plan_settings, description)
    config = TrainConfig.model_validate({"out": "x", "steps": 1, "data": plan_settings, "model": {"path": NAME}})
    dataset = dataset_of(config, description, planner)
    assert not planner.unfit
    plan, seen, bound = planner.plan(0), 0, 0
    for pack in range(len(plan)):
        loaded = dataset[plan.ticket(pack)]
        batch = loaded.batch
        assert isinstance(batch, Omnigen2Batch)
        assert not loaded.skips
        seen += len(batch.names)
        bound += sum(map(len, batch.bound))
        assert len(batch.image_rows) + len(batch.answer_rows) == len(batch.names)
        if route == "mllm":
            assert not any(batch.references)
    assert seen == len(plan.draws.row)
    assert bool(bound) is (route == "both")


@pytest.mark.parametrize("route", ["vae", "mllm"])
def test_two_ranks_are_one_process_with_twice_the_packs(tmp_path: Path, corpus: Path, route: str) -> None:
    """Both losses, the language model trained, packs of images alone and of answers alone among them."""
    changes = {"steps": 3, "omnigen2": {"route": route}, "data": {"budget": 500}}
    one = settings(tmp_path / "one", corpus, accumulate=2, **changes)
    two = settings(tmp_path / "two", corpus, **changes)
    run(one)
    ranks.run(run, 2, two, timeout_s=300)
    seen: set[str] = set()
    for mine, theirs in zip(lines(tmp_path / "one"), lines(tmp_path / "two"), strict=True):
        for name in {"loss", "image", "text", "norm"} & mine.keys():
            assert theirs[name] == pytest.approx(mine[name], rel=1e-5), name
            seen.add(name)
    assert seen == {"loss", "image", "text", "norm"}
    assert apart(saved(tmp_path / "one"), saved(tmp_path / "two"), "model") < 1e-5


@pytest.mark.parametrize("lora", [False, True])
def test_a_resumed_run_is_the_whole_one_to_the_bit(tmp_path: Path, corpus: Path, lora: bool) -> None:
    more: dict[str, Any] = {"checkpoint": {"every": 2}, "validation": {"every": 2, "packs": 1, "images": 0}}
    if lora:
        more |= {"lora": {"rank": 2, "alpha": 2.0}, **IMAGES}
        more["data"] = {**more["data"], "corpora": only_images(corpus)}
    more["schedule"] = {"kind": "constant"}
    run(settings(tmp_path / "whole", corpus, steps=4, **more))
    cut = settings(tmp_path / "cut", corpus, steps=2, **more)
    run(cut)
    run({**cut, "steps": 4})
    assert same(saved(tmp_path / "whole"), saved(tmp_path / "cut"))
    assert [json.dumps(line) for line in lines(tmp_path / "whole")] == [
        json.dumps(line) for line in lines(tmp_path / "cut")
    ]
