"""What one decode tells about an image."""

from __future__ import annotations

from dataclasses import dataclass

from sigma_data.images.fingerprint import alike
from sigma_data.images.formats import EXTENSIONS
from sigma_data.images.near_blank import Tone
from sigma_data.images.value_range import ValueRange


@dataclass(frozen=True)
class ImageInfo:
    """What one decode tells about a picture.

    `width` and `height` are those of the upright picture (EXIF orientation applied); `sha256` is of
    the encoded bytes; `signature` is the perceptual one of `sigma_data.images.fingerprint`; `coarse` is a
    checksum of the pixels as decoded for it, and `orientation` the EXIF one. `value_range` is what a deep image
    is shown by, `tone` says of one that shows next to nothing, `transparent` whether the background shows through,
    `large_metadata` whether Pillow refuses the file for its texts or profile.
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
    tone: Tone | None = None
    transparent: bool = False
    large_metadata: bool = False

    @property
    def extension(self) -> str:
        """The extension these bytes carry in a shard."""
        return EXTENSIONS[self.format]

    def may_equal(self, other: ImageInfo) -> bool:
        """Whether two pictures could show the same pixels: a cheap necessary condition."""
        if (self.width, self.height) != (other.width, other.height):
            return False
        if (self.format, self.mode, self.orientation) == (other.format, other.mode, other.orientation):
            return self.coarse == other.coarse  # equal pixels come out of one scaled decoding equal
        return alike(self.signature, other.signature)
