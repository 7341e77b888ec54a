"""What resizing needs of torch and has no public name, as sigma_model/torch_compat.py has for the rest."""

from __future__ import annotations

import torch
from torch import Tensor


def resize_into(pixels: Tensor, out: Tensor, *, scale_h: float, scale_w: float) -> None:
    """Bicubic with antialias from [1, c, h, w] into `out` [1, c, H, W], whose memory may be laid out in any way.

    The operator behind torch.nn.functional.interpolate, which takes no `out`. Scales are sizes out over in, of what
    is to be seen of `pixels`.
    """
    torch.ops.aten._upsample_bicubic2d_aa.out(
        pixels, out.shape[-2:], align_corners=False, scales_h=scale_h, scales_w=scale_w, out=out
    )
