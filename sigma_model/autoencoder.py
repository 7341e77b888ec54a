"""The network of FLUX's autoencoder: a convolutional encoder and its mirror image, with attention in the middle.

Modules are called as in diffusers' AutoencoderKL, whose numbers it gives to the bit; importing that takes seconds,
for it imports every other model and all libraries for quantisation. Images are [B, 3, h, w] in [-1, 1]; a level
other than the last halves both sides, so f = 2 ** (levels - 1).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional as F

_EPS = 1e-6


class Autoencoder(nn.Module):
    """Encoder and decoder. `widths`: channels of each level, from the image inwards; `depth`: blocks of a level."""

    def __init__(self, widths: Sequence[int], *, depth: int, latent: int, groups: int) -> None:
        super().__init__()
        self.encoder = Encoder(widths, depth=depth, latent=latent, groups=groups)
        self.decoder = Decoder(widths, depth=depth, latent=latent, groups=groups)


class Encoder(nn.Module):
    """[B, 3, h, w] -> [B, 2z, h/f, w/f]: the means of the posterior, then its log variances."""

    def __init__(self, widths: Sequence[int], *, depth: int, latent: int, groups: int) -> None:
        super().__init__()
        self.conv_in = _conv3(3, widths[0])
        self.down_blocks = nn.ModuleList()
        for level, width in enumerate(widths):
            into = widths[max(level - 1, 0)]
            self.down_blocks.append(_Level(into, width, depth, groups, down=level < len(widths) - 1))
        self.mid_block = _Middle(widths[-1], groups)
        self.conv_norm_out = nn.GroupNorm(groups, widths[-1], _EPS)
        self.conv_out = _conv3(widths[-1], 2 * latent)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.conv_in(images)
        for level in self.down_blocks:
            found = level(found)
        found = self.conv_norm_out(self.mid_block(found))
        return self.conv_out(F.silu(found))  # type: ignore[no-any-return]


class Decoder(nn.Module):
    """[B, z, h/f, w/f] -> [B, 3, h, w]; each level has a block more than the encoder's."""

    def __init__(self, widths: Sequence[int], *, depth: int, latent: int, groups: int) -> None:
        super().__init__()
        self.conv_in = _conv3(latent, widths[-1])
        self.up_blocks = nn.ModuleList()
        self.mid_block = _Middle(widths[-1], groups)
        inwards = widths[::-1]
        for level, width in enumerate(inwards):
            into = inwards[max(level - 1, 0)]
            self.up_blocks.append(_Level(into, width, depth + 1, groups, up=level < len(widths) - 1))
        self.conv_norm_out = nn.GroupNorm(groups, widths[0], _EPS)
        self.conv_out = _conv3(widths[0], 3)

    def forward(self, latents: Tensor) -> Tensor:
        found: Tensor = self.mid_block(self.conv_in(latents))
        for level in self.up_blocks:
            found = level(found)
        return self.conv_out(F.silu(self.conv_norm_out(found)))  # type: ignore[no-any-return]


class _Level(nn.Module):
    """Blocks at one size of the image, then a change of the size, if any."""

    def __init__(self, into: int, width: int, depth: int, groups: int, *, down: bool = False, up: bool = False) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_Block(width if number else into, width, groups) for number in range(depth))
        if down:
            self.downsamplers = nn.ModuleList([_Halve(width)])
        if up:
            self.upsamplers = nn.ModuleList([_Double(width)])

    def forward(self, x: Tensor) -> Tensor:
        for part in self.children():
            for block in part.children():
                x = block(x)
        return x


class _Middle(nn.Module):
    """Block, attention, block."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        # Made in the order in which diffusers draws their random weights, registered in the order of its names.
        first, attention, second = _Block(width, width, groups), _Attention(width, groups), _Block(width, width, groups)
        self.attentions = nn.ModuleList([attention])
        self.resnets = nn.ModuleList([first, second])

    def forward(self, x: Tensor) -> Tensor:
        return self.resnets[1](self.attentions[0](self.resnets[0](x)))  # type: ignore[no-any-return]


class _Block(nn.Module):
    """Two convolutions, each after a norm, beside a shortcut."""

    def __init__(self, into: int, width: int, groups: int) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, into, _EPS)
        self.conv1 = _conv3(into, width)
        self.norm2 = nn.GroupNorm(groups, width, _EPS)
        self.conv2 = _conv3(width, width)
        self.conv_shortcut = nn.Conv2d(into, width, 1) if into != width else None

    def forward(self, x: Tensor) -> Tensor:
        found = self.conv1(F.silu(self.norm1(x)))
        found = self.conv2(F.silu(self.norm2(found)))
        return (x if self.conv_shortcut is None else self.conv_shortcut(x)) + found  # type: ignore[no-any-return]


class _Attention(nn.Module):
    """One head over all places of the image, beside a shortcut."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.group_norm = nn.GroupNorm(groups, width, _EPS)
        self.to_q = nn.Linear(width, width)
        self.to_k = nn.Linear(width, width)
        self.to_v = nn.Linear(width, width)
        self.to_out = nn.ModuleList([nn.Linear(width, width)])

    def forward(self, x: Tensor) -> Tensor:
        flat = self.group_norm(x.flatten(2)).transpose(1, 2)  # [B, N, D]
        q, k, v = (of(flat)[:, None] for of in (self.to_q, self.to_k, self.to_v))  # [B, 1, N, D]
        found = self.to_out[0](F.scaled_dot_product_attention(q, k, v)[:, 0])
        return found.transpose(1, 2).reshape(x.shape) + x  # type: ignore[no-any-return]


class _Halve(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))  # type: ignore[no-any-return]


class _Double(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = _conv3(width, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))  # type: ignore[no-any-return]


def _conv3(into: int, out: int) -> nn.Conv2d:
    return nn.Conv2d(into, out, 3, padding=1)
