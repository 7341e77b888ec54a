"""Train the tiny preset's autoencoder on pictures of the world: `python -m tools.train_tiny_vae --out DIR`.

Minutes on two CPU threads. Writes `ae.safetensors` (float16, released names) and a `sigma.json` whose
scale and shift give latents of zero mean and unit deviation; the figures come from pictures never trained on.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional

from sigma_data.errors import ConfigError, SigmaError
from sigma_data.sample import Sample
from sigma_data.sources import open_source
from sigma_data.storage.files import disk_error, dump_json, write_atomic
from sigma_model.config import SIGMA_FILE, VAE_FILE, VaeConfig, preset_directory
from sigma_model.vae import Vae

TRAIN_SEED, HELD_OUT_SEED = 1_000, 2_000
"""Seeds of the world for training and for the figures: two corpora without a sample in common."""

CROPS = ((64, (64, 64)), (96, (80, 48)), (96, (48, 80)), (128, (64, 64)))
"""Drawn size and crop (height, width) of the batches, taken in turn with the weights below."""
KL_WEIGHT = 2e-4
_TURNS = (0, 1, 0, 2, 0, 3)

Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Figures:
    """Held-out reconstruction: PSNR in dB and SSIM are means over pictures, `l1` is on the scale 0..1."""

    psnr: float
    psnr_worst: float
    ssim: float
    l1: float
    latent_mean: list[float]
    latent_std: list[float]


def world_pictures(count: int, size: int, seed: int) -> list[Pixels]:
    """`count` pictures [size, size, 3] of the world, references, maps and targets of all six families."""
    pictures: list[Pixels] = []
    reader = open_source(f"world:{count}?size={size}&seed={seed}")
    for fragment in reader.fragments():
        for sample in reader.read(fragment):
            assert isinstance(sample, Sample), "the world draws no broken sample"
            for image in sample.images:
                pictures.append(np.asarray(Image.open(io.BytesIO(image.data or b"")).convert("RGB")))
                if len(pictures) == count:
                    return pictures
    return pictures


def to_pixels(pictures: Sequence[Pixels] | Pixels) -> Tensor:
    """uint8 [B, h, w, 3] -> float32 [B, 3, h, w] in [-1, 1]."""
    return torch.from_numpy(np.stack(list(pictures))).permute(0, 3, 1, 2).float() / 127.5 - 1


def batches(pools: dict[int, list[Pixels]], batch: int, seed: int) -> Iterator[Tensor]:
    """Endless batches [B, 3, h, w] of random crops, mirrored half of the time; one size a batch."""
    dice = np.random.default_rng(seed)
    step = 0
    while True:
        size, (height, width) = CROPS[_TURNS[step % len(_TURNS)]]
        crops = []
        for number in dice.integers(len(pools[size]), size=batch):
            top, left = (int(dice.integers(size - side + 1)) for side in (height, width))
            crop = pools[size][number][top : top + height, left : left + width]
            crops.append(crop[:, ::-1] if dice.random() < 0.5 else crop)
        yield to_pixels(crops)
        step += 1


def loss_of(vae: Vae, pixels: Tensor, noise: torch.Generator, *, guide: float = 0.0) -> Tensor:
    """What training lowers, for pixels [B, 3, h, w].

    L1, squared error, L1 of the gradients and of the means over a latent's square, a little KL of the
    posterior to N(0, 1), and `guide` times the distance of the latents to `_coarse`.
    """
    mean, logvar = vae.autoencoder.encoder(pixels).chunk(2, dim=1)
    logvar = logvar.clamp(-20, 10)
    latent = mean + torch.exp(logvar / 2) * torch.randn(mean.shape, generator=noise)
    error = vae.autoencoder.decoder(latent) - pixels
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    means = functional.avg_pool2d(error, vae.config.downsample).abs().mean()
    kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    loss: Tensor = error.abs().mean() + 2 * error.square().mean() + 0.25 * edges + means + KL_WEIGHT * kl
    if guide:
        coarse = _coarse(pixels, vae.config.downsample)[:, : mean.shape[1]]
        loss = loss + guide * (mean[:, : coarse.shape[1]] - coarse).abs().mean()
    return loss


def _coarse(pixels: Tensor, factor: int) -> Tensor:
    """The small picture in opponent colours (light, red - blue, green - purple), each about unit deviation.

    Early latents are drawn to it: from random weights, training otherwise settles for latents that hold
    two colour axes of three, and never finds the third.
    """
    red, green, blue = functional.avg_pool2d(pixels, factor).unbind(1)
    return torch.stack([(red + green + blue) * 0.7, (red - blue) * 2, (green - (red + blue) / 2) * 4], dim=1)


def train(
    config: VaeConfig, *, steps: int, seed: int, batch: int = 8, pictures: int = 4_000,
    learning_rate: float = 2e-3, report_every: float = 15.0, start: Path | None = None,
) -> tuple[Vae, list[float]]:  # fmt: skip
    """Train from random weights, or go on from those in `start`; returns the autoencoder and each step's loss.

    `pictures` are drawn at 64 pixels, half as many at 96 and a quarter at 128.
    """
    started = time.monotonic()
    counts = {64: pictures, 96: pictures // 2, 128: pictures // 4}
    pools = {size: world_pictures(max(count, 1), size, TRAIN_SEED + seed) for size, count in counts.items()}
    _say(f"{sum(map(len, pools.values())):,} pictures drawn in {time.monotonic() - started:.0f} s")
    torch.manual_seed(seed)
    vae = Vae.load(start, config) if start else Vae(config)
    vae.train().requires_grad_(True)
    noise = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(vae.parameters(), lr=learning_rate, betas=(0.9, 0.99), weight_decay=1e-4, fused=True)
    warmup = min(100, steps // 10 + 1)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: min((step + 1) / warmup, 0.5 + 0.5 * math.cos(math.pi * step / steps))
    )
    losses: list[float] = []
    said = time.monotonic()
    for pixels, step in zip(batches(pools, batch, seed), range(1, steps + 1), strict=False):
        loss = loss_of(vae, pixels, noise, guide=max(0.0, 1 - 2 * step / steps))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise ConfigError(f"the loss is {losses[-1]} at step {step}: use a smaller --learning-rate")
        if time.monotonic() - said > report_every or step == steps:
            said = time.monotonic()
            recent = losses[-50:]
            _say(f"step {step:,} of {steps:,}: loss {sum(recent) / len(recent):.4f}, {said - started:.0f} s")
    return vae.eval().requires_grad_(False), losses


@torch.no_grad()
def standardise(vae: Vae, pictures: Sequence[Pixels]) -> VaeConfig:
    """Give the latents of `pictures` unit deviation in every channel, and their config its shift and scale.

    The channels' scales go into the last layer of the encoder and the first of the decoder, exactly; a
    shift of one channel could not (the decoder pads with zeros), so one shift serves all.
    """
    channels = vae.config.z_channels
    means = torch.cat([vae.autoencoder.encoder(to_pixels([one]))[0, :channels].flatten(1) for one in pictures], dim=1)
    deviation = means.std(dim=1)  # [z]
    last, first = vae.autoencoder.encoder.conv_out, vae.autoencoder.decoder.conv_in
    assert last.bias is not None
    last.weight[:channels] /= deviation[:, None, None, None]
    last.bias[:channels] /= deviation
    last.bias[channels:] -= 2 * deviation.log()  # the log variances speak of the same noise in the new scale
    first.weight *= deviation[:, None, None]
    means /= deviation[:, None]
    return vae.config.model_copy(
        update={"scale_factor": round(1 / means.std().item(), 4), "shift_factor": round(means.mean().item(), 4)}
    )


def figures(vae: Vae, pictures: Sequence[Pixels]) -> Figures:
    """How well the autoencoder gives the pictures back, as 8-bit pictures, and how their latents are spread."""
    psnr, ssim, l1, latents = [], [], [], []
    for picture in pictures:
        pixels = to_pixels([picture])[0]
        latent = vae.encode([pixels])[0]
        given = ((vae.decode([latent])[0].float().clamp(-1, 1) + 1) * 127.5).round() / 255
        wanted = (pixels + 1) / 2
        error = given - wanted
        psnr.append(-10 * math.log10(max(error.square().mean().item(), 1e-10)))
        ssim.append(_ssim(given, wanted))
        l1.append(error.abs().mean().item())
        latents.append(latent.float().flatten(1))
    spread = torch.cat(latents, dim=1)
    return Figures(
        psnr=round(_mean(psnr), 2), psnr_worst=round(min(psnr), 2), ssim=round(_mean(ssim), 4), l1=round(_mean(l1), 5),
        latent_mean=[round(value, 3) for value in spread.mean(dim=1).tolist()],
        latent_std=[round(value, 3) for value in spread.std(dim=1).tolist()],
    )  # fmt: skip


def write(out: Path, vae: Vae, config: VaeConfig) -> None:
    """Write `ae.safetensors` and a `sigma.json`: the one that lies there, else the preset's, with this VAE."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        described = out / SIGMA_FILE
        source = described if described.exists() else preset_directory("tiny") / SIGMA_FILE
        vae.save(out / VAE_FILE)
        write_atomic(described, dump_json({**json.loads(source.read_text()), "vae": config.model_dump(mode="json")}))
    except OSError as error:
        raise disk_error(error, out) from None
    except ValueError as error:
        raise ConfigError(f"{source}: is not JSON ({error})") from None


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit code."""
    from sigma_model.config import preset

    parser = argparse.ArgumentParser(prog="python -m tools.train_tiny_vae", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True, help="directory to write ae.safetensors and sigma.json into")
    parser.add_argument("--steps", type=int, default=3_200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--batch", type=int, default=8, help="pictures a step")
    parser.add_argument("--pictures", type=int, default=4_000, help="pictures drawn at 64 px (fewer of larger ones)")
    parser.add_argument("--measured", type=int, default=120, help="pictures a size for the figures, and for the scale")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--start", type=Path, help="an ae.safetensors to go on from, instead of random weights")
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args(arguments)
    try:
        for name in ("steps", "batch", "pictures", "measured", "threads"):
            if getattr(given, name) < 1:
                raise ConfigError(f"--{name} {getattr(given, name)}: must be at least 1")
        torch.set_num_threads(given.threads)
        config = preset("tiny").vae.model_copy(update={"scale_factor": 1.0, "shift_factor": 0.0})
        vae, _ = train(
            config, steps=given.steps, seed=given.seed, batch=given.batch, pictures=given.pictures,
            learning_rate=given.learning_rate, start=given.start,
        )  # fmt: skip
        config = standardise(vae, world_pictures(given.measured, 64, TRAIN_SEED + given.seed))
        write(given.out, vae.half(), config)
        written = Vae.load(given.out / VAE_FILE, config)
        for size in (64, 96, 128):
            found = figures(written, world_pictures(given.measured, size, HELD_OUT_SEED))
            _say(f"held out, {size} px: {json.dumps(asdict(found))}")
        _say(f"{given.out / VAE_FILE}: {(given.out / VAE_FILE).stat().st_size / 1e6:.2f} MB")
    except SigmaError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0


def _ssim(first: Tensor, second: Tensor) -> float:
    """Structural similarity of two pictures [3, h, w] in 0..1, over 7 x 7 windows (Wang et al. 2004)."""

    def local(values: Tensor) -> Tensor:
        return functional.avg_pool2d(values[None], 7, stride=1)[0]

    one, two = local(first), local(second)
    variance_one, variance_two = local(first * first) - one * one, local(second * second) - two * two
    covariance = local(first * second) - one * two
    likeness = (2 * one * two + 1e-4) * (2 * covariance + 9e-4)
    return (likeness / ((one * one + two * two + 1e-4) * (variance_one + variance_two + 9e-4))).mean().item()


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
