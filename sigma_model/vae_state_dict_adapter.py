"""The names of the autoencoder's tensors: as released (FLUX, BAGEL) and as our network, like diffusers, has them.

One table of modules gives both directions. Two things differ beside the names: the release counts the
decoder's levels from the image inwards, diffusers from the latent outwards; and the attention's
projections are 1 x 1 convolutions in the release, linear layers in diffusers.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from sigma_model.config import VaeConfig

_SIDE = (
    ("conv_in", "conv_in"),
    ("mid.block_1", "mid_block.resnets.0"),
    ("mid.attn_1", "mid_block.attentions.0"),
    ("mid.block_2", "mid_block.resnets.1"),
    ("norm_out", "conv_norm_out"),
    ("conv_out", "conv_out"),
)
_BLOCK = (
    ("norm1", "norm1"),
    ("conv1", "conv1"),
    ("norm2", "norm2"),
    ("conv2", "conv2"),
    ("nin_shortcut", "conv_shortcut"),
)
_ATTENTION = (
    ("norm", "group_norm"),
    ("q", "to_q"),
    ("k", "to_k"),
    ("v", "to_v"),
    ("proj_out", "to_out.0"),
)


def released_to_diffusers(config: VaeConfig, present: Mapping[str, object]) -> dict[str, str]:
    """Released name -> diffusers' name of every tensor.

    `present` holds diffusers' names: a block has a shortcut only where its width changes, and the last
    level neither shrinks nor grows, so the table's rows without a tensor fall away.
    """
    table = {
        f"{released}.{kind}": f"{theirs}.{kind}"
        for released, theirs in _modules(config)
        for kind in ("weight", "bias")
        if f"{theirs}.{kind}" in present
    }
    assert set(table.values()) == set(present), "diffusers has tensors that the table does not name"
    return table


def is_pointwise(released: str) -> bool:
    """Whether the release stores this weight as [C, C, 1, 1] and diffusers as [C, C]."""
    return ".attn_1." in released and not released.endswith(".bias") and ".norm." not in released


def _modules(config: VaeConfig) -> Iterator[tuple[str, str]]:
    """(released, diffusers) of every module that may hold a tensor."""
    for side in ("encoder", "decoder"):
        for ours, theirs in _SIDE:
            yield from _parts(f"{side}.{ours}", f"{side}.{theirs}")
    last = len(config.mult) - 1
    for level in range(last + 1):
        down, down_theirs = f"encoder.down.{level}", f"encoder.down_blocks.{level}"
        for block in range(config.num_res_blocks):
            yield from _parts(f"{down}.block.{block}", f"{down_theirs}.resnets.{block}")
        yield f"{down}.downsample.conv", f"{down_theirs}.downsamplers.0.conv"
        up, up_theirs = f"decoder.up.{level}", f"decoder.up_blocks.{last - level}"
        for block in range(config.num_res_blocks + 1):
            yield from _parts(f"{up}.block.{block}", f"{up_theirs}.resnets.{block}")
        yield f"{up}.upsample.conv", f"{up_theirs}.upsamplers.0.conv"


def _parts(released: str, theirs: str) -> Iterator[tuple[str, str]]:
    """The modules inside a block or an attention; a convolution or a norm is itself."""
    table: tuple[tuple[str, str], ...] = ()
    if ".attn_" in released:
        table = _ATTENTION
    elif ".block" in released:
        table = _BLOCK
    if not table:
        yield released, theirs
    for ours, part in table:
        yield f"{released}.{ours}", f"{theirs}.{part}"
