"""Latents of images that a rank has met before: the VAE is frozen, so encoding an image once is enough.

They are kept in the memory of the CPU, like images when they are read: a lookup never waits for a device.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any, TypeVar, cast

from torch import Tensor

from sigma_data.loading.batch import Batch, ImageKey
from sigma_model.vae import Vae

AnyBatch = TypeVar("AnyBatch", bound=Batch)


class LatentCache:
    """At most `limit` bytes of latents; images whose latents find no room are encoded each time."""

    def __init__(self, vae: Vae, limit: int) -> None:
        self._vae, self._room = vae, limit
        self._known: dict[ImageKey, Tensor] = {}

    def encoded(self, batch: AnyBatch) -> AnyBatch:
        """A batch on the CPU with latents in place of its images, as the VAE gives them, on the CPU too."""
        if not batch.images:
            return batch
        keys = batch.image_keys
        unknown = {key: image for key, image in zip(keys, batch.images, strict=True) if key not in self._known}
        encoded = self._vae.encode(list(unknown.values()))
        new = {key: latent.cpu() for key, latent in zip(unknown, encoded, strict=True)}
        latents = tuple(new[key] if key in new else self._known[key] for key in keys)
        for key, latent in new.items():
            # What is there stays. Evicting the oldest would not help: an epoch shows each image about once, in an order
            # of its own, so with less room than an epoch takes hardly any would be met again in time.
            if latent.nbytes <= self._room:
                self._known[key] = latent
                self._room -= latent.nbytes
        return cast(AnyBatch, replace(cast(Any, batch), images=(), known_latents=latents))
