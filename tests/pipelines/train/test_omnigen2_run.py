"""`sigma train` on OmniGen2: what is planned is what is read, any ranks are one, a resumed run is the whole one."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support import corpora, image_files, ranks
from support.commands import sigma
from support.training_runs import apart, lines, run, same, saved, settings_of

from pipelines.common.planner import open_planner
from pipelines.train.config import Omnigen2Settings, TrainConfig
from pipelines.train.estimate.dry_run import dry_run
from pipelines.train.export import export_run
from pipelines.train.omnigen2.batch import Omnigen2Batch
from pipelines.train.omnigen2.build import dataset_of
from pipelines.train.omnigen2.description import describe_omnigen2
from pipelines.train.omnigen2.export import Layout
from sigma_data.errors import ConfigError
from sigma_data.planning.plan import PlanSettings
from sigma_data.sample import Family
from sigma_model.api import load
from sigma_model.dtypes import DType
from sigma_model.omnigen2.attribute_tokens import attribute_ids
from sigma_model.omnigen2.loading import load_omnigen2
from sigma_model.omnigen2.lora import LORA_FILE, load_adapter, merge_adapter
from sigma_model.omnigen2.settings import Omnigen2Generation, Omnigen2Sampling

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


@pytest.mark.parametrize(("route", "parallel"), [("vae", {"checkpointing": "full"}), ("mllm", {"shard": 1})])
def test_two_ranks_are_one_process_with_twice_the_packs(
    tmp_path: Path, corpus: Path, route: str, parallel: dict[str, Any]
) -> None:
    """Both losses, the language model trained, packs of images alone and of answers alone among them."""
    changes = {"steps": 3, "omnigen2": {"route": route}, "data": {"budget": 500}}
    one = settings(tmp_path / "one", corpus, accumulate=2, **changes)
    two = settings(tmp_path / "two", corpus, parallel=parallel, **changes)
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


@pytest.fixture(scope="module")
def finished(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps that trains all, keeps an average and has attribute tokens."""
    out = tmp_path_factory.mktemp("finished") / "run"
    run(settings(out, corpus, steps=2, omnigen2={"train_mllm": True, "attribute_tokens": True}))
    return out


def test_an_export_is_a_whole_model_with_the_average_that_was_kept(finished: Path, tmp_path: Path) -> None:
    """The reference never writes its averages. The files bear the released names."""
    made = export_run(finished, tmp_path / "model")
    averages = {name.removeprefix("ema/transformer."): one for name, one in saved(finished).items()}
    written = load_file(made / "transformer" / "diffusion_pytorch_model.safetensors")
    assert all(torch.equal(tensor, averages[name]) for name, tensor in written.items())
    names = load_file(made / "mllm" / "model.safetensors").keys()
    assert {name.partition(".")[0] for name in names} == {"model", "visual"}
    model = load(made)
    image = model.generate(
        "Put <style>the cat <image_1> there", [image_files.image_bytes("png", 7)],
        settings=Omnigen2Generation(Omnigen2Sampling(steps=1, text_scale=1.0)),
    )  # fmt: skip
    assert min(image.size) >= 8
    own = attribute_ids(model.parts.conditioner.tokenizer)
    rows = saved(finished)["ema/mllm.model.language_model.embed_tokens.rows"]
    table = model.parts.conditioner.mllm.model.language_model.embed_tokens.weight
    assert torch.equal(table[list(own.values())], rows)


def test_an_export_in_shards_is_the_same_model_to_generate_with_and_to_train_from(
    finished: Path, corpus: Path, tmp_path: Path
) -> None:
    whole = export_run(finished, tmp_path / "whole", dtype=DType.FLOAT32)
    done = sigma("export", finished, "--out", tmp_path / "shards", "--dtype", "float32", "--max-shard-size", "300KB")
    assert done.returncode == 0, done.stderr
    parts = sorted((tmp_path / "shards" / "transformer").glob("*.safetensors"))
    index = json.loads(next((tmp_path / "shards" / "transformer").glob("*.index.json")).read_text())
    assert len(parts) > 2 and set(index["weight_map"].values()) == {path.name for path in parts}
    tensors = {name: tensor for path in parts for name, tensor in load_file(path).items()}
    [one] = (whole / "transformer").glob("*.safetensors")
    expected = load_file(one)
    assert tensors.keys() == expected.keys() == index["weight_map"].keys()
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
    images = []
    for model in (whole, tmp_path / "shards"):
        words = ("generate", "a red circle", "--model", model, "--steps", "2", "--size", "64x64", "--out")
        made = sigma(*words, tmp_path / f"{model.name}.png")
        assert made.returncode == 0, made.stderr
        with Image.open(tmp_path / f"{model.name}.png") as image:
            images.append(image.tobytes())
    assert images[0] == images[1]
    for model in (whole, tmp_path / "shards"):
        run(settings(tmp_path / f"{model.name}-run", corpus, steps=1, model={"path": str(model)}))
    assert same(saved(tmp_path / "whole-run"), saved(tmp_path / "shards-run"))


def test_sgt_gen2s_layout_is_what_was_trained_and_takes_the_rest_from_its_base(finished: Path, tmp_path: Path) -> None:
    base = export_run(finished, tmp_path / "model", ema=False)
    made = export_run(finished, tmp_path / "sgt", ema=False, layout=Layout.SGT)
    assert sorted(path.name for path in (made / "transformer").iterdir()) == [
        "processor",
        "text_encoder",
        "transformer",
    ]
    found = load(made, base=base)
    same_state = found.parts.conditioner.mllm.state_dict()
    for name, tensor in load(base).parts.conditioner.mllm.state_dict().items():
        assert torch.equal(tensor, same_state[name])


def test_lora_is_exported_in_its_file_format_and_merged_alike(corpus: Path, tmp_path: Path) -> None:
    changes = {"lora": {"rank": 2, "alpha": 4.0}, "omnigen2": {"train_mllm": False}, "steps": 2}
    run(settings(tmp_path / "run", corpus, **{**changes, "data": {"corpora": only_images(corpus)}}))
    adapter = export_run(tmp_path / "run", tmp_path / "adapter", adapter=True)
    assert all(name.startswith("transformer.") for name in load_file(adapter / LORA_FILE))
    merged = load(export_run(tmp_path / "run", tmp_path / "merged")).parts.transformer
    again = load_omnigen2(NAME).transformer
    load_adapter(again, adapter)
    merge_adapter(again)
    for name, tensor in again.state_dict().items():
        torch.testing.assert_close(tensor, merged.state_dict()[name], rtol=0, atol=1e-6, msg=name)


def test_a_dry_run_counts_what_training_counts_and_refuses_what_it_refuses(corpus: Path, tmp_path: Path) -> None:
    config = TrainConfig.model_validate(settings(tmp_path / "run", corpus))
    seen = dry_run(config)
    assert sum(whole for whole, _ in seen.estimate.parameters.values()) == 1_253_712 + 292_880
    assert seen.weights is None and seen.epoch.packs > 0 and "omnigen2-tiny" in seen.show()
    for changes, message in (
        ({"omnigen2": {"train_mllm": False}}, "understanding samples are answered in words"),
        ({"model": {"vision": False}}, "model.vision has no meaning with an OmniGen2"),
        ({"freeze": {"und": True}}, "freeze.und has no meaning"),
        ({"lora": {"rank": 2}}, "lora gives adapters to the transformer alone"),
        ({"model": {"path": "tiny"}}, "omnigen2.train_mllm: tiny is not an OmniGen2"),
    ):
        with pytest.raises(ConfigError, match=message):
            dry_run(TrainConfig.model_validate(settings(tmp_path / "run", corpus, **changes)))
