"""OmniGen2's samples batched the padded way: texts, references, targets and sequences each as long as the longest.

The layers are the model's own; what differs from a pack is that rows of padding are computed, and masked in attention.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from sigma_model.omnigen2.pack import DiffusionSample, Layout, image_tokens, lay_out, layout_of
from sigma_model.omnigen2.transformer import Omnigen2Transformer, rotary, times_of
from sigma_model.vae import from_tokens


@dataclass(frozen=True)
class Padded:
    """Sequences of several lengths as rows of one table."""

    mask: Tensor
    """[B, L]"""

    @classmethod
    def of(cls, lengths: Sequence[int], *, left: bool) -> Padded:
        """Padding on the right, or on the left."""
        longest = max(lengths)
        places = torch.arange(longest)
        counts = torch.tensor(lengths)[:, None]
        return cls(places >= longest - counts if left else places < counts)

    def fill(self, packed: Tensor) -> Tensor:
        """[sum of lengths, ...] -> [B * L, ...], zeros where nothing is."""
        rows = self.mask.flatten().nonzero()[:, 0]
        return packed.new_zeros(self.mask.numel(), *packed.shape[1:]).index_copy(0, rows, packed)

    def take(self, padded: Tensor) -> Tensor:
        """The inverse."""
        return padded[self.mask.flatten()]

    def owner(self, of_row: Sequence[int]) -> Tensor:
        """[B * L] the sample of each token, from that of each row."""
        return torch.tensor(of_row).repeat_interleave(self.mask.shape[1])

    def __call__(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """Attention inside each row, over valid tokens alone."""
        rows = len(self.mask)
        q, k, v = (x.unflatten(0, (rows, -1)).transpose(1, 2) for x in (q, k, v))
        # Numbers, not booleans: these take a quarter longer on a CPU.
        bias = torch.zeros(self.mask.shape).masked_fill_(~self.mask, float("-inf"))[:, None, None]
        bias = bias.expand(-1, 1, q.shape[2], -1)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=bias, enable_gqa=True)
        return out.transpose(1, 2).flatten(0, 1)


def padded_velocities(
    model: Omnigen2Transformer, samples: Sequence[DiffusionSample], *, left: bool = False
) -> list[Tensor]:
    """What `model(samples)` gives, by padding."""
    layouts = [layout_of(one, model.config) for one in samples]
    pack = lay_out(layouts, model.config)
    widths = model.config.axes_dim_rope
    owners = list(range(len(samples)))
    time = model.embed_time(times_of(samples, model.device))

    text_rows = Padded.of(pack.text_lengths, left=left)
    turn = tuple(text_rows.fill(one) for one in rotary(pack.text_positions, widths))
    text = model.time_caption_embed.caption_embedder(text_rows.fill(torch.cat([one.text for one in samples])))
    for block in model.context_refiner:
        text = block(text, turn, text_rows)

    references = image_tokens([one for each in samples for one in each.references], model.config, text)
    found = references.new_zeros(0, text.shape[1])
    if len(references):
        rows = Padded.of(pack.reference_lengths, left=left)
        which = [number for number, layout in enumerate(layouts) for _ in layout.references]
        turn = tuple(rows.fill(one) for one in rotary(pack.reference_positions, widths))
        x = model.ref_image_patch_embedder(rows.fill(references))
        x = x + rows.fill(model.image_index_embedding[pack.reference_indices])
        for block in model.ref_image_refiner:
            x = block(x, turn, rows, time, rows.owner(which))
        found = rows.take(x)

    target_rows = Padded.of(pack.target_lengths, left=left)
    turn = tuple(target_rows.fill(one) for one in rotary(pack.target_positions, widths))
    y = model.x_embedder(target_rows.fill(image_tokens([one.latent for one in samples], model.config, text)))
    for block in model.noise_refiner:
        y = block(y, turn, target_rows, time, target_rows.owner(owners))

    joint_rows = Padded.of(pack.lengths, left=left)
    positions = pack.joint_of(pack.text_positions, pack.reference_positions, pack.target_positions)
    turn = tuple(joint_rows.fill(one) for one in rotary(positions, widths))
    joint = joint_rows.fill(pack.joint_of(text_rows.take(text), found, target_rows.take(y)))
    owner = joint_rows.owner(owners)
    for block in model.layers:
        joint = block(joint, turn, joint_rows, time, owner)
    out = model.norm_out(joint, time, owner)
    return _latents(joint_rows.take(out)[pack.joint_targets], layouts, model.config.patch_size)


def _latents(tokens: Tensor, layouts: Sequence[Layout], patch: int) -> list[Tensor]:
    counts = [layout.target[0] * layout.target[1] for layout in layouts]
    parts = tokens.split(counts)
    return [from_tokens(part, *layout.target, patch).float() for part, layout in zip(parts, layouts, strict=True)]
