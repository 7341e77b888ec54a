"""A cache of probed images: many samples of a corpus share an image, which is decoded once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict

from sigma_data.images.decode import ImageFault, probe
from sigma_data.images.image_info import ImageInfo


class ProbeCache:
    """`sigma_data.images.decode.probe` with an LRU cache by SHA-256; an entry takes about a kilobyte."""

    def __init__(self, *, max_pixels: int, capacity: int = 4_096) -> None:
        self.max_pixels = max_pixels
        self.capacity = capacity
        self._known: OrderedDict[bytes, ImageInfo | ImageFault] = OrderedDict()

    def __call__(self, data: bytes | None) -> ImageInfo:
        """As `probe`. Raises ImageFault."""
        if not data:
            return probe(data, max_pixels=self.max_pixels)
        digest = hashlib.sha256(data)
        found = self._known.get(digest.digest())
        if found is None:
            try:
                found = probe(data, max_pixels=self.max_pixels, sha256=digest.hexdigest())
            except ImageFault as fault:
                found = fault
            self._known[digest.digest()] = found
            if len(self._known) > self.capacity:
                self._known.popitem(last=False)
        if isinstance(found, ImageFault):
            raise ImageFault(found.code, found.message)
        return found
