"""The training script of the tiny preset's autoencoder: it learns, and writes what the model can read."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from sigma_model.config import VaeConfig
from sigma_model.vae import Vae
from tools import train_tiny_vae

SMALL = VaeConfig(ch=8, mult=(1, 2, 2), num_res_blocks=1, z_channels=4, scale_factor=1.0, shift_factor=0.0)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.slow
def test_training_lowers_the_loss_and_depends_on_the_seed_alone() -> None:
    vae, losses = train_tiny_vae.train(SMALL, steps=16, seed=3, batch=1, pictures=8)
    again, same = train_tiny_vae.train(SMALL, steps=16, seed=3, batch=1, pictures=8)
    assert np.mean(losses[-4:]) < 0.9 * np.mean(losses[:4])
    assert losses == same
    assert all(torch.equal(a, b) for a, b in zip(vae.parameters(), again.parameters(), strict=True))
    assert not vae.training and not any(parameter.requires_grad for parameter in vae.parameters())


@pytest.mark.slow
def test_the_command_writes_a_float16_file_and_a_description_that_load(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["--steps", "2", "--batch", "2", "--pictures", "8", "--measured", "4", "--threads", "1"]
    arguments += ["--out", str(tmp_path)]
    assert train_tiny_vae.main(arguments) == 0
    said = json.loads((tmp_path / "sigma.json").read_text())
    config = VaeConfig(**said["vae"])
    vae = Vae.load(tmp_path / "ae.safetensors", config, torch.float16)
    assert all(parameter.dtype == torch.float16 for parameter in vae.parameters())
    spread = torch.stack(
        Vae.load(tmp_path / "ae.safetensors", config).encode(
            [
                train_tiny_vae.to_pixels([picture])[0]
                for picture in train_tiny_vae.world_pictures(4, 64, train_tiny_vae.TRAIN_SEED)
            ]
        )
    )
    assert abs(spread.mean()) < 0.02 and abs(spread.std() - 1) < 0.02
    assert "held out, 64 px" in capsys.readouterr().out
    assert train_tiny_vae.main([*arguments, "--start", str(tmp_path / "ae.safetensors")]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--steps", "0"], "--steps 0: must be at least 1"),
        (
            ["--steps", "1", "--pictures", "2", "--threads", "1", "--start", "nowhere.safetensors"],
            "nowhere.safetensors: no such file",
        ),
    ],
)
def test_a_mistake_ends_in_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert train_tiny_vae.main(["--out", str(tmp_path), *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and said in error and error.count("\n") == 1


@pytest.mark.slow
def test_standard_latents_decode_to_the_same_pictures() -> None:
    torch.manual_seed(0)
    vae = Vae(SMALL)
    pictures = train_tiny_vae.world_pictures(6, 64, 5)
    pixels = [train_tiny_vae.to_pixels([picture])[0] for picture in pictures]
    before = vae.decode(vae.encode(pixels))
    train_tiny_vae.standardise(vae, pictures)
    deviation = torch.cat([latent.flatten(1) for latent in vae.encode(pixels)], dim=1).std(dim=1)
    assert torch.allclose(deviation, torch.ones(4), atol=1e-3)
    for old, new in zip(before, vae.decode(vae.encode(pixels)), strict=True):
        assert torch.allclose(old, new, atol=1e-4)


def test_pictures_of_the_world_do_not_change_with_how_many_are_drawn() -> None:
    few, more = train_tiny_vae.world_pictures(3, 64, 5), train_tiny_vae.world_pictures(7, 64, 5)
    assert len(few) == 3 and len(more) == 7
    assert all(np.array_equal(a, b) for a, b in zip(few, more, strict=False))


def test_the_figures_of_a_picture_given_back_exactly_are_perfect() -> None:
    class Exact(Vae):
        def encode(self, pictures):  # type: ignore[no-untyped-def]
            return list(pictures)

        def decode(self, latents):  # type: ignore[no-untyped-def]
            return list(latents)

    with torch.device("meta"):
        vae = Exact(SMALL)
    found = train_tiny_vae.figures(vae, train_tiny_vae.world_pictures(2, 64, 5))
    assert (found.psnr, found.l1) == (100.0, 0.0)
    assert found.ssim == pytest.approx(1.0, abs=1e-4)
    assert len(found.latent_mean) == len(found.latent_std) == 3
