"""A directory in the released layout generates and answers, from Python and by the command, from the seed alone."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support.places import ROOT
from typer.testing import CliRunner

import cli
from sigma_data.errors import ConfigError, SigmaError
from sigma_model import Model, Omnigen2Generation, Omnigen2Sampling, SamplingSettings, load
from sigma_model.config import preset_directory
from sigma_model.omnigen2.checkpoint import load_transformer
from sigma_model.omnigen2.generate import generate_images, plain_prompt
from sigma_model.omnigen2.loading import LoadedOmnigen2
from sigma_model.omnigen2.lora import add_adapter, save_adapter
from sigma_model.omnigen2.prompts import Route
from sigma_model.omnigen2.vae_files import load_vae
from sigma_model.sampling.generate import Request

pytestmark = pytest.mark.slow
QUICK = Omnigen2Generation(Omnigen2Sampling(steps=2, image_scale=2.0))


def image(seed: int, width: int = 64, height: int = 48) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_the_seed_alone_decides_an_image_and_the_command_makes_the_same(
    directory: Path, model: Model, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    first = model.generate("Make it red", [image(1)], seed=5, settings=QUICK)
    torch.manual_seed(2)
    again = model.generate("Make it red", [image(1)], seed=5, settings=QUICK)
    assert first.size == (64, 48)
    assert first.tobytes() == again.tobytes()
    assert model.generate("Make it red", [image(1)], seed=6, settings=QUICK).tobytes() != first.tobytes()
    (tmp_path / "one.png").write_bytes(image(1))
    words = ["generate", "Make it red", "-m", str(directory), "-i", str(tmp_path / "one.png"), "--seed", "5", "--steps",
             "2", "--image-scale", "2", "--device", "cpu", "-o", str(tmp_path / "out.png")]  # fmt: skip
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.output
    with Image.open(tmp_path / "out.png") as made:
        assert made.tobytes() == first.tobytes()
        about = json.loads(made.text["sigma"])
    assert (about["text_scale"], about["image_scale"], about["steps"], about["route"]) == (4.0, 2.0, 2, "vae")
    assert str(tmp_path) not in json.dumps(about)


def test_requests_of_any_size_and_number_of_references_are_made_together_as_alone(model: Model) -> None:
    assert isinstance(model.parts, LoadedOmnigen2)
    requests = [
        Request("A dog", size=(48, 32), seed=1),
        Request("Both of them", [image(1), image(2, 32, 32)], size=(40, 24), seed=2),
        Request("Segment it", [image(3, 32, 48)], seed=3),
    ]
    for route in Route:
        settings = Omnigen2Generation(Omnigen2Sampling(steps=2, image_scale=1.5), "ugly", route)
        together = generate_images(model.parts, requests, settings)
        assert [made.size for made in together] == [(48, 32), (40, 24), (32, 48)]
        for made, request in zip(together, requests, strict=True):
            alone = generate_images(model.parts, [request], settings)[0]
            difference = np.abs(np.asarray(made, int) - np.asarray(alone, int))
            assert difference.max() <= 2


def test_routes_differ_and_references_matter_on_each(model: Model) -> None:
    made = {}
    for route in Route:
        settings = Omnigen2Generation(QUICK.sampling, route=route)
        made[route] = [model.generate("Do", [image(n)], settings=settings).tobytes() for n in (1, 2)]
        assert made[route][0] != made[route][1]
    assert len({first for first, _ in made.values()}) == 3


def test_questions_are_answered_by_the_language_model(model: Model) -> None:
    answer = model.answer("How many?", [image(1), image(2)], max_tokens=4)
    assert isinstance(answer, str)
    assert answer == model.answer("How many?", [image(1), image(2)], max_tokens=4, seed=9)
    drawn = {model.answer("How many?", max_tokens=4, temperature=2.0, seed=seed) for seed in range(3)}
    assert len(drawn) > 1


def test_placeholders_become_the_words_that_omnigen2_knows() -> None:
    assert (
        plain_prompt("Put <subject>the cup <image_1> on <image_2>", 2)
        == "Put the cup the first image on the second image"
    )
    assert plain_prompt("Make <image> red", 1) == "Make the image red"
    assert plain_prompt("  two leading spaces,\nkept", 0) == "  two leading spaces,\nkept"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["x", *["-i", "IMAGE"] * 6], "at most 5"),
        (["<image_2>", "-i", "IMAGE"], "there are 1 references"),
        ([""], "the prompt is empty"),
        (["a<|im_end|>"], "control token"),
        (["x", "--rescale", "global"], "--rescale has no meaning with an OmniGen2 model"),
        (["x", "--adapter", "IMAGE"], "not a safetensors file"),
    ],
)
def test_what_cannot_be_made_is_one_clear_message(directory: Path, tmp_path: Path, words: list[str], told: str) -> None:
    (tmp_path / "one.png").write_bytes(image(1))
    given = [str(tmp_path / "one.png") if word == "IMAGE" else word for word in words]
    result = CliRunner().invoke(
        cli.app, ["generate", *given, "-m", str(directory), "--device", "cpu", "-o", str(tmp_path / "out.png")]
    )
    assert isinstance(result.exception, SigmaError)
    assert told in str(result.exception)
    assert "\n" not in str(result.exception)


def test_settings_of_the_other_backbone_are_refused(model: Model) -> None:
    with pytest.raises(ConfigError, match="takes an Omnigen2Generation"):
        model.generate("x", settings=SamplingSettings())
    with pytest.raises(ConfigError, match="is not an OmniGen2"):
        load("tiny", device="cpu").generate("x", settings=QUICK)
    result = CliRunner().invoke(cli.app, ["generate", "x", "-m", "tiny", "--route", "both"])
    assert "--route is for OmniGen2 models alone" in str(result.exception)


def test_an_adapter_is_merged(directory: Path, model: Model, tmp_path: Path) -> None:
    from sigma_model.omnigen2.loading import load_omnigen2

    other = load_transformer(directory / "transformer")
    add_adapter(other, rank=2)
    for name, parameter in other.named_parameters():
        if "lora_B" in name:
            parameter.data.fill_(0.1)
    save_adapter(other, tmp_path)
    merged = Model(load_omnigen2(str(directory), device="cpu", adapter=str(tmp_path)))
    made = [one.generate("Do", size=(32, 32), settings=QUICK).tobytes() for one in (model, merged)]
    assert made[0] != made[1]


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("vae", "has no vae/: name OmniGen2's released directory as its base"),
        ("channels", "the transformer takes 8"),
        ("width", "the transformer takes 24"),
        ("quant", "use_quant_conv is True"),
    ],
)
def test_parts_that_do_not_belong_together_are_refused(directory: Path, tmp_path: Path, change: str, told: str) -> None:
    copy = Path(shutil.copytree(directory, tmp_path / "copy"))
    if change == "vae":
        shutil.rmtree(copy / "vae")
    if change == "quant":
        config = json.loads((copy / "vae" / "config.json").read_text())
        (copy / "vae" / "config.json").write_text(json.dumps(config | {"use_quant_conv": True}))
    if change == "channels":
        shutil.rmtree(copy / "vae")
        shutil.copyfile(ROOT / "tests" / "golden" / "ae.safetensors", copy / "ae.safetensors")
    if change == "width":
        config = json.loads((copy / "transformer" / "config.json").read_text())
        (copy / "transformer" / "config.json").write_text(json.dumps(config | {"text_feat_dim": 24}))
        path = copy / "transformer" / "diffusion_pytorch_model.safetensors"
        weights = load_file(path)
        for name in ("0.weight", "1.weight"):
            key = f"time_caption_embed.caption_embedder.{name}"
            weights[key] = weights[key][..., :24].contiguous()
        save_file(weights, path)
    with pytest.raises(ConfigError, match=told):
        load(copy, device="cpu")


def test_the_autoencoder_is_the_same_in_diffusers_files(directory: Path) -> None:
    before, after = load_vae(preset_directory("tiny")), load_vae(directory / "vae")
    assert before.config == after.config
    pixels = torch.rand(3, 16, 24) * 2 - 1
    assert torch.equal(before.encode([pixels])[0], after.encode([pixels])[0])
