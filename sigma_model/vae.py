"""Images <-> latents: the frozen autoencoder (FLUX's, in the released names) and the patching of latents.

Every image goes through the network alone and at its own size, so its latents do not depend on what
else is in the batch; an image of more pixels than a tile has is worked on in overlapping tiles.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from sigma_data.errors import ConfigError, reason_of
from sigma_data.loading.batch import unit_range
from sigma_model.autoencoder import Autoencoder
from sigma_model.config import VaeConfig
from sigma_model.vae_state_dict_adapter import is_pointwise, released_to_diffusers

TILE = 1024
"""Side of a tile in pixels; an image of at most TILE * TILE pixels is not tiled."""


class Vae(nn.Module):
    """The autoencoder, in eval mode and without gradients.

    Weights are random until `load`. `tile` is the side of a tile in pixels, a multiple of the stride.
    """

    def __init__(self, config: VaeConfig, *, tile: int = TILE) -> None:
        super().__init__()
        if tile % config.downsample or tile < 4 * config.downsample:
            raise ConfigError(f"tile {tile}: must be a multiple of {config.downsample}, and at least four times that")
        self.config = config
        self.tile = tile
        self.autoencoder = Autoencoder(
            [config.ch * multiple for multiple in config.mult],
            depth=config.num_res_blocks,
            latent=config.z_channels,
            groups=norm_groups(config),
        )
        self.eval().requires_grad_(False)

    @property
    def names(self) -> dict[str, str]:
        """Released name -> name in `autoencoder`, of every tensor."""
        return released_to_diffusers(self.config, self.autoencoder.state_dict())

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Released name -> released shape."""
        state = self.autoencoder.state_dict()
        return {
            name: tuple(state[theirs].shape) + ((1, 1) if is_pointwise(name) else ())
            for name, theirs in self.names.items()
        }

    @classmethod
    def load(
        cls,
        path: Path,
        config: VaeConfig,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        *,
        tile: int = TILE,
    ) -> Vae:
        """Read released weights, whatever float type they are stored in, to compute in `dtype`.

        One tensor is in memory twice at a time. Raises ConfigError naming the file and the tensor that is
        missing, unknown, of another shape, or not of floats.
        """
        from safetensors import SafetensorError, safe_open

        with torch.device("meta"):
            vae = cls(config, tile=tile)
        expected = vae.shapes()
        names = vae.names
        state: dict[str, Tensor] = {}
        try:
            with safe_open(path, framework="pt") as file:
                _same_names(path, set(expected), set(file.keys()))
                for name, shape in expected.items():
                    found = tuple(file.get_slice(name).get_shape())
                    if found != shape:
                        raise ConfigError(f"{path}: {name} has the shape {list(found)}, the model's is {list(shape)}")
                    tensor = file.get_tensor(name)
                    if not tensor.is_floating_point():
                        raise ConfigError(f"{path}: {name} holds {tensor.dtype}, not floating point numbers")
                    tensor = tensor.flatten(1) if is_pointwise(name) else tensor
                    state[names[name]] = tensor.to(device=device, dtype=dtype)
        except FileNotFoundError:
            raise ConfigError(f"{path}: no such file; it holds the autoencoder of the released directory") from None
        except (OSError, SafetensorError) as error:
            raise ConfigError(f"{path}: cannot be read as safetensors ({reason_of(error)})") from None
        vae.autoencoder.load_state_dict(state, assign=True)
        return vae.eval().requires_grad_(False)

    def save(self, path: Path) -> None:
        """Write the weights as they are, under the released names and shapes."""
        from safetensors.torch import save

        from sigma_data.storage.files import write_atomic

        state = self.autoencoder.state_dict()
        shapes = self.shapes()
        tensors = {
            name: state[theirs].detach().cpu().reshape(shapes[name]).contiguous() for name, theirs in self.names.items()
        }
        write_atomic(path, save(tensors))  # safetensors' own writer makes a file that only its owner can read

    @torch.no_grad()
    def encode(self, images: Sequence[Tensor]) -> list[Tensor]:
        """Images [3, h, w] -> latents [z, h/f, w/f]: (mean of the posterior - shift) * scale.

        Images are bytes, or floats in [-1, 1]; sizes may differ. Raises ConfigError for an image that is not
        [3, h, w] with sides divisible by f.
        """
        stride = self.config.downsample
        for number, image in enumerate(images):
            if image.ndim != 3 or image.shape[0] != 3:
                raise ConfigError(f"image {number}: must be [3, height, width], is {list(image.shape)}")
            height, width = image.shape[1:]
            if not height or not width or height % stride or width % stride:
                raise ConfigError(
                    f"image {number} has {width} x {height} pixels; the autoencoder takes multiples of {stride},"
                    " as the resize rule makes them"
                )
        # One by one: a batch is not bitwise equal to its images alone. Golden weights, torch 2.13 CPU, batches
        # of 2 to 8, 16 to 256 pixels: latents differ by 2e-6 to 4e-6 in float32, 1e-3 in float16, 8e-3 in bfloat16.
        return [self._whole_or_tiled(image, self._encode_one, zoom=1 / stride) for image in images]

    @torch.no_grad()
    def decode(self, latents: Sequence[Tensor]) -> list[Tensor]:
        """Latents [z, h, w] as `encode` gives them -> images [3, h * f, w * f], about [-1, 1], not clamped."""
        channels = self.config.z_channels
        for number, latent in enumerate(latents):
            if latent.ndim != 3 or latent.shape[0] != channels or not latent.numel():
                raise ConfigError(f"latent {number}: must be [{channels}, height, width], is {list(latent.shape)}")
        return [self._whole_or_tiled(latent, self._decode_one, zoom=self.config.downsample) for latent in latents]

    def _encode_one(self, image: Tensor) -> Tensor:
        moments: Tensor = self.autoencoder.encoder(image[None])[0]  # [2z, h/f, w/f]: means, then log variances
        return (moments[: self.config.z_channels] - self.config.shift_factor) * self.config.scale_factor

    def _decode_one(self, latent: Tensor) -> Tensor:
        image: Tensor = self.autoencoder.decoder((latent / self.config.scale_factor + self.config.shift_factor)[None])
        return image[0]

    def _taken(self, source: Tensor) -> Tensor:
        """Bytes or floats as the network computes; bytes travel to its device as they are."""
        weight = self.autoencoder.decoder.conv_in.weight
        return unit_range(source.to(weight.device)).to(weight)

    def _whole_or_tiled(self, source: Tensor, apply: Callable[[Tensor], Tensor], *, zoom: float) -> Tensor:
        """`apply` to [C, h, w] at once, or by tiles where it has more pixels than a tile; zoom: out size / in size."""
        weight = self.autoencoder.decoder.conv_in.weight
        stride = self.config.downsample
        tile, unit = (self.tile, stride) if zoom < 1 else (self.tile // stride, 1)
        height, width = source.shape[1:]
        if height * width <= tile * tile:
            return apply(self._taken(source))
        overlap = tile // 4 // unit * unit
        rows = _spans(height, tile, overlap, unit)
        columns = _spans(width, tile, overlap, unit)
        ramp = round(overlap * zoom)
        total: Tensor | None = None
        for top, bottom in rows:
            for left, right in columns:
                part = apply(self._taken(source[:, top:bottom, left:right])).float()
                if total is None:
                    shape = (len(part), round(height * zoom), round(width * zoom))
                    total = part.new_zeros(shape)
                    share = part.new_zeros(shape[1:])
                y, x = round(top * zoom), round(left * zoom)
                blend = _ramp(part.shape[1], ramp, part)[:, None] * _ramp(part.shape[2], ramp, part)
                total[:, y : y + part.shape[1], x : x + part.shape[2]] += part * blend
                share[y : y + part.shape[1], x : x + part.shape[2]] += blend
        assert total is not None
        return (total / share).to(weight)


def to_tokens(latent: Tensor, patch: int) -> Tensor:
    """[z, h*p, w*p] -> [h*w, p*p*z]: patches row by row; in a patch row, column, then channel (innermost)."""
    channels, height, width = latent.shape
    if height % patch or width % patch:
        raise ConfigError(f"a latent of {width} x {height} does not divide into patches of {patch} x {patch}")
    rows, columns = height // patch, width // patch
    grid = latent.reshape(channels, rows, patch, columns, patch)
    return grid.permute(1, 3, 2, 4, 0).reshape(rows * columns, patch * patch * channels)


def from_tokens(tokens: Tensor, rows: int, columns: int, patch: int) -> Tensor:
    """The inverse of `to_tokens`: [rows*columns, p*p*z] -> [z, rows*p, columns*p]."""
    if tokens.ndim != 2 or len(tokens) != rows * columns or tokens.shape[1] % patch**2:
        raise ConfigError(f"tokens {list(tokens.shape)} are no {rows} x {columns} patches of {patch} x {patch}")
    grid = tokens.reshape(rows, columns, patch, patch, -1)
    return grid.permute(4, 0, 2, 1, 3).reshape(-1, rows * patch, columns * patch)


def _same_names(path: Path, expected: set[str], found: set[str]) -> None:
    for what, names in (("lacks", expected - found), ("holds the unknown", found - expected)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise ConfigError(
                f"{path}: {what} tensor {min(names)}{more}: not the weights of the autoencoder configured"
            )


def norm_groups(config: VaeConfig) -> int:
    """Groups of the norms: FLUX's 32, or for narrow models the most that divide every width and 32.

    With 32 channels in 32 groups a norm erases each channel's mean, and with it the colour of a plain image:
    so the tiny preset is 24 channels wide, in 8 groups.
    """
    return math.gcd(32, *(config.ch * multiple for multiple in config.mult))


def _spans(length: int, tile: int, overlap: int, unit: int) -> list[tuple[int, int]]:
    """Spans of `tile` that cover 0..length, evenly placed, overlapping by at least `overlap`, starts on `unit`."""
    if length <= tile:
        return [(0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    starts = [(length - tile) * number // (count - 1) // unit * unit for number in range(count)]
    return [(start, start + tile) for start in starts]


def _ramp(length: int, ramp: int, like: Tensor) -> Tensor:
    """Weights of a tile along one side: rising over `ramp` steps, flat, falling; never 0."""
    steps = torch.arange(1, length + 1, device=like.device, dtype=like.dtype)
    return torch.minimum(steps, steps.flip(0)).clamp(max=max(ramp, 1))
