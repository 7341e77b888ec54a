"""Latents of images that a rank has met before: the VAE is frozen, so encoding one once is enough.

They are found by the pixels of an image, and lie in the memory of the CPU, as images do when they are read:
to look one up, nothing waits for a device.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace

from torch import Tensor

from sigma_data.loading.batch import PackedBatch
from sigma_model.vae import Vae


class LatentCache:
    """At most `limit` bytes of latents; images whose latents find no room are encoded each time."""

    def __init__(self, vae: Vae, limit: int) -> None:
        self._vae, self._room = vae, limit
        self._known: dict[bytes, Tensor] = {}

    def encoded(self, batch: PackedBatch) -> PackedBatch:
        """A batch on the CPU with latents in place of its images, as the VAE gives them, on the CPU too."""
        if not batch.pictures:
            return batch
        keys = [_digest(image) for image in batch.pictures]
        unknown = {key: image for key, image in zip(keys, batch.pictures, strict=True) if key not in self._known}
        encoded = self._vae.encode(list(unknown.values()))
        fresh = {key: latent.cpu() for key, latent in zip(unknown, encoded, strict=True)}
        latents = tuple(fresh[key] if key in fresh else self._known[key] for key in keys)
        for key, latent in fresh.items():
            # What is there stays for good. To let the oldest go would be of no use: an epoch shows each image about
            # once, in an order of its own, so in less room than an epoch takes hardly any would be met again in time.
            if latent.nbytes <= self._room:
                self._known[key] = latent
                self._room -= latent.nbytes
        return replace(batch, pictures=(), known_latents=latents)


def _digest(image: Tensor) -> bytes:
    """SHA-256 of an image [3, h, w]; images that are read lie [h, w, 3] and are not copied."""
    pixels = image.movedim(0, -1).contiguous()
    digest = hashlib.sha256(f"{pixels.dtype} {tuple(pixels.shape)} ".encode())
    digest.update(pixels.numpy().data)
    return digest.digest()
