"""A model from Python: the same images as the command makes, references in every form, mistakes told in words."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.image_files import image_bytes
from support.places import ROOT

import sigma_model
from sigma_data.errors import ConfigError, SigmaError
from sigma_model import Guidance, Model, SamplingSettings, load

PROMPT = "Put <subject>the thing <image_1> on <background>the ground <image_2>"
QUICK = SamplingSettings(steps=3, guidance=Guidance(text=2.0, image=1.0))


@pytest.fixture(scope="module")
def model() -> Model:
    return load("tiny", seed=3, device="cpu")


def references() -> list[bytes]:
    return [image_bytes("png", seed=1, width=64, height=64), image_bytes("png", seed=2, width=64, height=64)]


def test_the_public_names_are_there() -> None:
    assert all(getattr(sigma_model, name) is not None for name in sigma_model.__all__)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sigma_model.nothing


@pytest.mark.slow
def test_it_makes_the_image_of_the_command(tmp_path: Path) -> None:
    files = [tmp_path / "a.png", tmp_path / "b.png"]
    for file, data in zip(files, references(), strict=True):
        file.write_bytes(data)
    out = tmp_path / "out.png"
    command = [
        sys.executable,
        "-m",
        "cli",
        "generate",
        PROMPT,
        "--model",
        "tiny",
        "--out",
        str(out),
        "--seed",
        "5",
        "--steps",
        "3",
    ]
    command += ["--text-scale", "2", "--image-scale", "1"] + [f"--image={file}" for file in files]
    subprocess.run(command, check=True, capture_output=True, cwd=ROOT)
    made = load("tiny").generate(PROMPT, files, seed=5, settings=QUICK)
    assert np.array_equal(np.asarray(made), np.asarray(Image.open(out)))


def test_references_are_bytes_paths_or_images(model: Model, tmp_path: Path) -> None:
    data = references()
    (tmp_path / "a.png").write_bytes(data[0])
    forms = [data, [str(tmp_path / "a.png"), data[1]], [Image.open(io.BytesIO(one)) for one in data]]
    made = [np.asarray(model.generate(PROMPT, images, settings=QUICK)) for images in forms]
    assert made[0].shape == (64, 64, 3)
    assert all(np.array_equal(one, made[0]) for one in made[1:])
    assert not np.array_equal(np.asarray(model.generate(PROMPT, data, seed=1, settings=QUICK)), made[0])


def test_progress_size_and_answers(model: Model) -> None:
    steps: list[tuple[int, int]] = []
    wide = model.generate("a wall", size=(64, 32), settings=QUICK, progress=lambda *step: steps.append(step))
    assert wide.size == (64, 32) and steps == [(1, 2), (2, 2)]
    question = ("What is in <image_1>?", references()[:1])
    assert model.answer(*question, max_tokens=4) == model.answer(*question, max_tokens=4)


def test_mistakes_are_told_in_words(model: Model, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean <style>"):
        model.generate("a <styl>house")
    with pytest.raises(SigmaError, match="the text names"):
        model.generate("<image_1> and <image_2>", references()[:1], settings=QUICK)
    with pytest.raises(ConfigError, match=r"nothing\.png: cannot be read \(No such file"):
        model.generate("<image_1>", [tmp_path / "nothing.png"])
    with pytest.raises(ConfigError, match="give a list of images"):
        model.generate("<image_1>", references()[0])
    with pytest.raises(ConfigError, match="no such directory"):
        load(tmp_path / "nothing")
