"""Properties of an image, as one decode finds them."""

from __future__ import annotations

from dataclasses import dataclass

from sigma_data.images.fingerprint import similar_colours
from sigma_data.images.formats import EXTENSIONS
from sigma_data.images.near_blank import NearBlank
from sigma_data.images.value_range import ValueRange


@dataclass(frozen=True)
class ImageInfo:
    """What `decode.probe` finds out about an image.

    `width` and `height` are those of the upright image (EXIF orientation applied), `size` is in bytes; `sha256` is of
    the encoded bytes, `signature` the perceptual one of `sigma_data.images.fingerprint`, `coarse` a checksum of the
    pixels as decoded for it. `orientation` is the EXIF one, 1..8. `value_range` is how a deep image becomes 8 bits,
    `transparent` whether any pixel is, `large_metadata` whether Pillow refuses the file for its texts or profile.
    """

    format: str
    mode: str
    width: int
    height: int
    size: int
    sha256: str
    signature: bytes
    coarse: int
    orientation: int
    value_range: ValueRange | None = None
    near_blank: NearBlank | None = None
    transparent: bool = False
    large_metadata: bool = False

    @property
    def extension(self) -> str:
        """File extension in a shard."""
        return EXTENSIONS[self.format]

    def may_equal(self, other: ImageInfo) -> bool:
        """Whether two images could have the same pixels: a cheap necessary condition."""
        if (self.width, self.height) != (other.width, other.height):
            return False
        if (self.format, self.mode, self.orientation) == (other.format, other.mode, other.orientation):
            return self.coarse == other.coarse  # one decoder gives equal pixels for equal files
        return similar_colours(self.signature, other.signature)
