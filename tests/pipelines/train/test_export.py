"""An export holds the checkpoint's weights to the bit, loads as a release does and generates; or there is none."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image as Pillow
from support import ranks, training_runs
from support.commands import sigma
from support.sequences import generator, one_thread  # noqa: F401
from torch import Tensor

from pipelines.common.settings import dump_settings, load_settings
from pipelines.train import export
from pipelines.train.checkpoint import Checkpointer
from pipelines.train.config import TrainConfig
from pipelines.train.distributed.process_group import ProcessGroup, start_process_group, stop_process_group
from pipelines.train.ema import Ema
from pipelines.train.export import export_run
from pipelines.train.freeze import apply_freeze
from pipelines.train.lora import add_lora, is_lora, merge_lora
from pipelines.train.optimizer import make_optimizer
from pipelines.train.run import build_model
from sigma_data.errors import BuildError, ConfigError
from sigma_data.sequence.tokenizer_reader import TOKENIZER_FILES
from sigma_model.checkpoint_io import Checkpoint, export_model, init_model, load_model
from sigma_model.config import ModelConfig, preset, preset_directory
from sigma_model.loading import DType, describe_model, load_for_inference
from sigma_model.sampling.generate import Request, generate_images
from sigma_model.sampling.settings import SamplingSettings

ALONE = ProcessGroup.single()
LORA = {"rank": 4, "train": ["^llm2vae"]}


class Trained:
    """A run's folder, with checkpoints of steps 3 and 7, and what they hold."""

    def __init__(self, folder: Path, **settings: Any) -> None:
        self.folder = folder
        data = {"corpora": [{"path": "nowhere"}]}
        values = {"out": folder, "steps": 7, "data": data, "ema": {"decay": 0.5}, **settings}
        self.config = TrainConfig.model_validate(values)
        folder.mkdir()
        (folder / "config.yaml").write_text(dump_settings(self.config))
        start = self.config.model.path
        self.model = (
            init_model(preset(start), seed=self.config.model.seed)
            if start == "tiny"
            else load_model(Path(start), dtype=torch.float32)
        )
        apply_freeze(self.model, self.config.freeze)
        if self.config.lora is not None:
            add_lora(self.model, self.config.lora, seed=self.config.model.seed)
        self.ema = Ema(self.model.named_parameters(), 0.5) if self.config.ema else None
        self.averages: dict[int, dict[str, Tensor]] = {}
        self.weights: dict[int, dict[str, Tensor]] = {}
        for step in (3, 7):
            self._learn_and_save(step)

    def _learn_and_save(self, step: int) -> None:
        trainable = {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}
        for name, parameter in trainable.items():
            parameter += torch.randn(parameter.shape, generator=generator(step, name)) * 0.02
        state: dict[str, dict[str, Any]] = {"model": trainable, "optimizer": {"a": torch.zeros(3)}}
        if self.ema is not None:
            self.ema.update()
            state["ema"] = self.ema.state_dict()
        checkpointer = Checkpointer(self.folder / "checkpoints", ALONE, self.config.checkpoint)
        checkpointer.save(step, state, {"step": step})
        checkpointer.finish()
        whole = {name: tensor.clone() for name, tensor in self.model.state_dict().items()}
        self.weights[step] = whole
        averages = state.get("ema", {})
        self.averages[step] = {name: averages.get(name, tensor).clone() for name, tensor in whole.items()}


def stored(directory: Path) -> dict[str, Tensor]:
    return load_model(directory, dtype=torch.float32).state_dict()


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("runs") / "run", freeze={"und": True})


@pytest.fixture(scope="module")
def lora_run(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return Trained(tmp_path_factory.mktemp("runs") / "lora", lora=LORA)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "step", "file"),
    [
        ({}, 7, "ema.safetensors"),
        ({"ema": False}, 7, "model.safetensors"),
        ({"step": 3}, 3, "ema.safetensors"),
        ({"step": 3, "ema": False}, 3, "model.safetensors"),
    ],
)
def test_weights_are_those_of_the_checkpoint_to_the_bit(
    run: Trained, tmp_path: Path, options: dict[str, Any], step: int, file: str
) -> None:
    out = export_run(run.folder, tmp_path / "new" / "out", **options)
    assert out == tmp_path / "new" / "out"
    expected = (run.averages if options.get("ema", True) else run.weights)[step]
    assert same(stored(out), expected)
    assert not same(run.averages[step], run.weights[step])
    config = ModelConfig.from_directory(out)
    assert config == preset("tiny")
    names = {path.name for path in out.iterdir()}
    there = {name for name in TOKENIZER_FILES if (preset_directory("tiny") / name).exists()}
    configs = {"config.json", "generation_config.json", "preprocessor_config.json", "training.json"}
    assert names == {file, "ae.safetensors", "llm_config.json", "vit_config.json", "sigma.json", *configs, *there}
    assert [path.name for path in out.parent.iterdir()] == ["out"], "no litter"


@pytest.mark.slow
def test_an_export_loads_as_a_release_does_and_generates(run: Trained, tmp_path: Path) -> None:
    parts = load_for_inference(str(export_run(run.folder, tmp_path / "out")))
    assert parts.trained
    request = Request("a red circle", [], [], (32, 32))
    picture, untrained = (
        generate_images(each, [request], SamplingSettings(steps=3))[0].tobytes()
        for each in (parts, load_for_inference("tiny"))
    )
    assert picture != untrained


@pytest.mark.slow
def test_an_export_says_where_the_attribute_tokens_are_and_plain_transformers_finds_them_there(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    start = preset("tiny").model_copy(update={"attribute_rows": None})  # a release does not say
    export_model(init_model(start, seed=8), tmp_path / "start")
    for name in ("ae.safetensors", "tokenizer.json", "tokenizer_config.json"):
        shutil.copy(preset_directory("tiny") / name, tmp_path / "start")
    out = export_run(Trained(tmp_path / "run", model={"path": str(tmp_path / "start")}).folder, tmp_path / "out")
    rows = dict(describe_model("tiny").tokenizer.attribute_ids)
    assert ModelConfig.from_directory(out).rows == rows
    tokenizer = AutoTokenizer.from_pretrained(str(out), local_files_only=True)
    assert {name: tokenizer.encode(f"<{name}>") for name in rows} == {name: [row] for name, row in rows.items()}


def test_numbers_of_half_precision_are_the_weights_rounded_once(run: Trained, tmp_path: Path) -> None:
    out = export_run(run.folder, tmp_path / "out", dtype=DType.BFLOAT16)
    assert same(stored(out), {name: tensor.bfloat16().float() for name, tensor in run.averages[7].items()})
    assert (out / "ema.safetensors").stat().st_size < 2.1 * sum(t.numel() for t in run.averages[7].values())


@pytest.mark.slow
def test_what_does_not_learn_is_taken_from_the_starting_weights_and_their_type_is_kept(tmp_path: Path) -> None:
    start = init_model(preset("tiny"), seed=8, dtype=torch.bfloat16)
    export_run(Trained(tmp_path / "before").folder, tmp_path / "start")  # for the other files
    (tmp_path / "start" / "ema.safetensors").unlink()
    export_model(start, tmp_path / "start")
    run = Trained(tmp_path / "run", model={"path": str(tmp_path / "start")}, freeze={"und": True, "llm": True})
    out = export_run(run.folder, tmp_path / "out", ema=False)
    assert same(
        load_model(out, dtype=torch.bfloat16).state_dict(), {n: t.bfloat16() for n, t in run.weights[7].items()}
    )
    assert {tensor.dtype for tensor in Checkpoint(out).tensors.values()} == {"BF16"}
    frozen = [name for name, parameter in run.model.named_parameters() if not parameter.requires_grad]
    assert "backbone.embed.weight" in frozen
    assert all(torch.equal(stored(out)[name], start.state_dict()[name].float()) for name in frozen)
    wide = export_run(run.folder, tmp_path / "wide", ema=False, dtype=DType.FLOAT32)
    assert same(stored(wide), run.weights[7])


@pytest.mark.slow
@pytest.mark.parametrize("ema", [True, False])
def test_lora_is_merged_into_a_plain_model_that_computes_the_same(lora_run: Trained, tmp_path: Path, ema: bool) -> None:
    plain = stored(export_run(lora_run.folder, tmp_path / "out", ema=ema))
    expected = init_model(preset("tiny"), seed=0)
    apply_freeze(expected, lora_run.config.freeze)
    add_lora(expected, lora_run.config.lora, seed=0)
    expected.load_state_dict((lora_run.averages if ema else lora_run.weights)[7])
    x = torch.randn(5, preset("tiny").language.hidden_size, generator=generator("x"))
    for path in ("backbone.layers.0.gen.q", "backbone.layers.1.gen.mlp.up"):
        layer = expected.get_submodule(path)
        merged = torch.nn.functional.linear(x, plain[f"{path}.weight"], plain.get(f"{path}.bias"))
        torch.testing.assert_close(merged, layer(x), rtol=0, atol=1e-5)
        assert not torch.equal(plain[f"{path}.weight"], layer.weight)
    merge_lora(expected)
    assert same(plain, expected.state_dict())


@pytest.mark.slow
def test_an_adapter_on_the_starting_weights_gives_the_merged_weights(lora_run: Trained, tmp_path: Path) -> None:
    from peft import PeftModel

    out = export_run(lora_run.folder, tmp_path / "adapter", adapter=True)
    files = {"adapter_config.json", "adapter_model.safetensors", "training.json"}
    assert {path.name for path in out.iterdir()} == files
    additions = sum(
        t.numel() for name, t in lora_run.weights[7].items() if is_lora(name) or name.startswith("latent_out")
    )
    assert (out / "adapter_model.safetensors").stat().st_size < 4 * additions + 10_000
    adapted = PeftModel.from_pretrained(init_model(preset("tiny"), seed=0), str(out)).get_base_model()
    merged = stored(export_run(lora_run.folder, tmp_path / "merged"))
    x = torch.randn(5, preset("tiny").language.hidden_size, generator=generator("x"))
    for path in ("backbone.layers.0.gen.q", "backbone.layers.1.gen.mlp.up", "latent_out", "lm_head"):
        found = adapted.get_submodule(path)(x)
        expected = torch.nn.functional.linear(x, merged[f"{path}.weight"], merged.get(f"{path}.bias"))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_an_adapter_is_generated_with_exported_and_trained_from_as_its_merged_weights(
    lora_run: Trained, tmp_path: Path, training_corpus: Path
) -> None:
    adapter = export_run(lora_run.folder, tmp_path / "adapter", adapter=True)
    merged = export_run(lora_run.folder, tmp_path / "merged")
    words = ("a red circle", "--steps", "3", "--size", "32x32", "--out")
    # The base has no weights: it is drawn by its seed in training, so a directory with them stands for it.
    base = tmp_path / "base"
    shutil.copytree(preset_directory("tiny"), base)
    export_model(init_model(preset("tiny"), seed=0), base, dtype=torch.float32, name="ema.safetensors")
    for name, model in (("one", (str(merged),)), ("two", (str(base), "--adapter", str(adapter)))):
        done = sigma("generate", *words, tmp_path / f"{name}.png", "--model", *model)
        assert done.returncode == 0, done.stderr
    with Pillow.open(tmp_path / "one.png") as one, Pillow.open(tmp_path / "two.png") as two:
        assert one.tobytes() == two.tobytes()
        assert json.loads(two.info["sigma"])["model"] == "base+adapter"
    done = sigma("export", adapter, "--out", tmp_path / "sum", f"model.path={base}")
    assert done.returncode == 0, done.stderr
    assert same(stored(tmp_path / "sum"), stored(merged))

    start = {"path": str(base), "adapter": adapter}
    settings = training_runs.settings_of(
        tmp_path / "run", training_corpus, steps=1, model=start, optimizer={"lr": 1e-12}, schedule={"kind": "constant"}
    )
    training_runs.run(settings)
    assert same(stored(tmp_path / "run" / "start"), stored(merged))
    after, wanted = stored(export_run(tmp_path / "run", tmp_path / "after", ema=False)), stored(merged)
    assert all(torch.allclose(after[name], wanted[name], rtol=0, atol=1e-7) for name in wanted)
    training_runs.run({**settings, "steps": 2})
    with pytest.raises(ConfigError, match="was made from .* choose another `out`"):
        training_runs.run({**settings, "steps": 3, "model": {**start, "adapter": merged}})
    refused = sigma("generate", *words, tmp_path / "no.png", "--model", base, "--adapter", adapter, "--quantize", "nf4")
    assert refused.returncode == 2 and "--adapter and --quantize exclude each other" in refused.stderr


@pytest.mark.slow
def test_a_sharded_export_is_generated_with_and_trained_from(
    run: Trained, tmp_path: Path, training_corpus: Path
) -> None:
    whole = export_run(run.folder, tmp_path / "whole")
    done = sigma("export", run.folder, "--out", tmp_path / "shards", "--max-shard-size", "1MB")
    assert done.returncode == 0, done.stderr
    assert len(list((tmp_path / "shards").glob("model-*.safetensors"))) > 2
    images = []
    for model in (whole, tmp_path / "shards"):
        out = tmp_path / f"{model.name}.png"
        words = ("a red circle", "--steps", "3", "--size", "32x32", "--model", model, "--out", out)
        made = sigma("generate", *words)
        assert made.returncode == 0, made.stderr
        with Pillow.open(out) as image:
            images.append(image.tobytes())
        settings = training_runs.settings_of(
            tmp_path / f"{model.name}-run", training_corpus, steps=1, model={"path": str(model)}
        )
        training_runs.run(settings)
    assert images[0] == images[1]
    first, second = (training_runs.saved(tmp_path / f"{name}-run") for name in ("whole", "shards"))
    assert training_runs.same(first, second)
    again = export_run(tmp_path / "shards-run", tmp_path / "again")
    assert same(stored(again), stored(export_run(tmp_path / "whole-run", tmp_path / "once")))


def learn_on_ranks(folder: Path) -> None:
    config = load_settings(TrainConfig, folder / "config.yaml", ())
    group = start_process_group(config.parallel, device="cpu", timeout_s=60)
    description = describe_model("tiny")
    model = build_model(config, description, description.config, group)
    ema = Ema(model.named_parameters(), 0.5)
    optimizer = make_optimizer(model, config.optimizer)
    for _ in range(2):
        trainable = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
        for parameter in trainable.values():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
        ema.update()
    checkpointer = Checkpointer(folder / "checkpoints", group, config.checkpoint)
    checkpointer.save(2, {"model": trainable, "ema": ema.state_dict()}, {})
    checkpointer.finish()
    stop_process_group()


@pytest.mark.slow
def test_a_run_on_two_ranks_draws_averages_and_exports_the_same_bits_as_on_one(tmp_path: Path) -> None:
    data = {"corpora": [{"path": "nowhere"}]}
    found = []
    for size in (1, 2):
        folder = tmp_path / f"run-{size}"
        folder.mkdir()
        config = TrainConfig.model_validate(
            {"out": folder, "steps": 2, "data": data, "lora": LORA, "optimizer": {"lr": 0.01}}
        )
        (folder / "config.yaml").write_text(dump_settings(config))
        ranks.run(learn_on_ranks, size, folder)
        outs = [export_run(folder, tmp_path / f"out-{size}-{ema}", ema=ema) for ema in (True, False)]
        found.append([stored(out) for out in outs])
    for one, two in zip(*found, strict=True):
        assert same(one, two)
    assert not same(*found[1])


def test_a_folder_that_is_taken_is_left_alone(run: Trained, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    export_run(run.folder, tmp_path / "out")
    before = (tmp_path / "out" / "sigma.json").stat().st_mtime_ns
    with pytest.raises(ConfigError, match="is there already"):
        export_run(run.folder, tmp_path / "out")
    assert (tmp_path / "out" / "sigma.json").stat().st_mtime_ns == before
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is there already"):
        export_run(run.folder, tmp_path / "file")
    with pytest.raises(BuildError, match="a part of that path is a file"):
        export_run(run.folder, tmp_path / "file" / "out")


def test_nothing_appears_where_an_export_is_cut_off(
    run: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cut_off(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(export.shutil, "copyfile", cut_off)  # the weights are written by then
    with pytest.raises(BuildError, match="the disk is full"):
        export_run(run.folder, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "options", "words"),
    [
        ({"ema": None}, {}, "keeps no averages .* --raw"),
        ({}, {"adapter": True}, "trains no LoRA"),
        ({}, {"step": 5}, "no complete checkpoint of step 5; there are .*7"),
    ],
)
def test_what_a_run_does_not_have_is_said_in_a_sentence(
    tmp_path: Path, settings: dict[str, Any], options: dict[str, Any], words: str
) -> None:
    run = Trained(tmp_path / "run", **settings)
    with pytest.raises(ConfigError, match=words):
        export_run(run.folder, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()


def test_a_folder_that_is_no_run_is_said_in_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"is no run of `sigma train`"):
        export_run(tmp_path, tmp_path / "out")
    with pytest.raises(ConfigError, match=r"none: no such folder: name that of a run"):
        export_run(tmp_path / "none", tmp_path / "out")
    with pytest.raises(ConfigError, match=r"test_export.py: is a file and no folder: name that of a run"):
        export_run(Path(__file__), tmp_path / "out")


@pytest.mark.slow
def test_the_command_writes_a_directory_that_generate_takes(run: Trained, tmp_path: Path) -> None:
    out = tmp_path / "out"
    options = ("--raw", "--step", "3", "--dtype", "bfloat16", "--max-shard-size", "1MB")
    exported = sigma("export", str(run.folder), "--out", str(out), *options)
    assert (exported.returncode, exported.stdout) == (0, f"{out}\n"), exported.stderr
    assert (out / "model.safetensors.index.json").is_file()
    shards = list(out.glob("model-*-of-*.safetensors"))
    assert len(shards) > 1 and max(path.stat().st_size for path in shards) <= 1_010_000
    picture = tmp_path / "a.png"
    made = sigma("generate", "a cat", "--model", str(out), "--out", str(picture), "--steps", "3")
    assert made.returncode == 0, made.stderr
    assert picture.stat().st_size > 100
    again = sigma("export", str(run.folder), "--out", str(out))
    assert again.returncode == 2 and len(again.stderr.splitlines()) == 1
