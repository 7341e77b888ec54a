"""A model whose layers lie elsewhere makes the same images to the bit, and only one streamed layer is in memory."""

from __future__ import annotations

import shutil
from typing import Any

import pytest
import torch
from support.sequences import one_thread  # noqa: F401

from sigma_data.errors import ConfigError
from sigma_model.checkpoint_io import export_model, init_model
from sigma_model.config import preset, preset_directory
from sigma_model.loading import LoadedModel, load_for_inference
from sigma_model.placement import fill, parse_places, spread
from sigma_model.sampling.generate import Request, generate_images, generate_texts
from sigma_model.sampling.settings import SamplingSettings

LAYERS = preset("tiny").language.num_hidden_layers


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("placed") / "tiny"
    shutil.copytree(preset_directory("tiny"), folder)
    export_model(init_model(preset("tiny"), seed=5), folder)
    return str(folder)


def image(bundle: LoadedModel, encoded: bytes) -> bytes:
    request = Request("the <style>style of <image_1>", [encoded], ["a"], (32, 32))
    return generate_images(bundle, [request], SamplingSettings(steps=3))[0].tobytes()


@pytest.fixture(scope="module")
def reference() -> bytes:
    from support import image_files

    return image_files.image_bytes("png", 3)


@pytest.mark.slow
@pytest.mark.parametrize("device_map", ["cpu", "disk", "cpu,disk", "cpu:0,cpu", "cpu:0,disk,cpu"])
def test_images_and_answers_are_the_same_to_the_bit_wherever_the_layers_lie(
    weights: str, reference: bytes, device_map: str
) -> None:
    """`cpu:0` is another device by name, so that the way over devices is taken on a machine that has one."""
    plain, placed = load_for_inference(weights), load_for_inference(weights, device_map=device_map)
    assert image(placed, reference) == image(plain, reference)
    asked = Request("what is in <image_1>", [reference], ["a"])
    assert generate_texts(placed, [asked], max_tokens=5) == generate_texts(plain, [asked], max_tokens=5)


def test_of_streamed_layers_one_at_a_time_is_in_memory(
    weights: str, reference: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = load_for_inference(weights, device_map="disk")
    layers = bundle.model.backbone.layers

    def resident() -> int:
        return sum(any(not p.is_meta for p in layer.parameters()) for layer in layers)

    seen: list[int] = []
    for layer in layers:
        project = layer.gen.project
        monkeypatch.setattr(layer.gen, "project", lambda *a, p=project: (seen.append(resident()), p(*a))[1])
    assert resident() == 0
    image(bundle, reference)
    assert set(seen) == {1}
    assert resident() == 0


def test_a_layer_that_fails_leaves_no_weights_behind(weights: str, reference: bytes) -> None:
    bundle = load_for_inference(weights, device_map="disk")
    layers = bundle.model.backbone.layers

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    layers[1].gen.mlp.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        image(bundle, reference)
    assert all(p.is_meta for layer in layers for p in layer.parameters())


def test_layers_are_spread_in_equal_runs() -> None:
    assert spread(["a", "b"], 5) == ["a", "a", "a", "b", "b"]
    assert spread(["a", "b", "c"], 2) == ["a", "b"]


def test_devices_are_filled_in_turn_and_the_cpu_takes_what_is_left() -> None:
    free = {"cuda:0": 100, "cuda:1": 100}
    assert fill(free, layers=10, layer_bytes=20, rest_bytes=30) == ["cuda:0"] * 2 + ["cuda:1"] * 4 + ["cpu"] * 4
    assert fill(free, layers=3, layer_bytes=1, rest_bytes=30) == ["cuda:0"] * 3
    assert fill({"cuda:0": 10}, layers=2, layer_bytes=20, rest_bytes=30) == ["cpu", "cpu"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("balanced", "finds no GPU"), ("auto", "finds no GPU"), ("cuda:7", "'cuda:7' is no place"),
        ("meta", "'meta' is no place"), ("cpu,", "'' is no place"), ("floppy", "'floppy' is no place"),
    ],
)  # fmt: skip
def test_a_place_that_is_none_is_named(text: str, words: str) -> None:
    if torch.cuda.is_available():
        pytest.skip("is about machines without a GPU")
    with pytest.raises(ConfigError, match=words):
        parse_places(text, config=preset("tiny"), dtype=torch.float32, device="cpu")


def test_a_random_model_is_not_spread() -> None:
    with pytest.raises(ConfigError, match="--device-map: tiny has no weights"):
        load_for_inference("tiny", device_map="disk")
