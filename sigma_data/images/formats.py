"""Accepted image formats, recognised by their first bytes, and guesses for other bytes."""

from __future__ import annotations

from sigma_data.storage.files import LFS_MESSAGE

EXTENSIONS: dict[str, str] = {
    "JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp", "GIF": "gif", "BMP": "bmp", "TIFF": "tif",
    "AVIF": "avif",
}  # fmt: skip
"""Accepted formats -> their file extension in a shard."""

MEMBER_EXTENSIONS = frozenset(EXTENSIONS.values())

_MAGIC: tuple[tuple[bytes, str], ...] = (
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
    (b"II+\x00", "TIFF"),  # BigTIFF
    (b"MM\x00+", "TIFF"),
)

_FOREIGN: tuple[tuple[bytes, str], ...] = (
    (b"<!doctype", "an HTML page"),
    (b"<html", "an HTML page"),
    (b"<?xml", "an XML or SVG file"),
    (b"<svg", "an SVG drawing"),
    (b"{", "JSON text"),
    (b"%pdf", "a PDF"),
    (b"pk\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
    (b"par1", "a parquet file"),
    (b"version https://", LFS_MESSAGE),
    (b"8bps", "a Photoshop file"),
)

_AVIF = frozenset({b"avif", b"avis"})
_HEIC = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"})
_CONTAINERS = frozenset({b"mif1", b"msf1", b"miaf"})
"""Major brands of images without a codec, which the compatible brands name."""


class ImageFault(Exception):
    """An image that cannot be used: `code` is the check's code, `message` says why."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code
        self.message = message

    def __reduce__(self) -> tuple[type[ImageFault], tuple[str, str]]:
        return type(self), (self.code, self.message)  # faults travel between processes


def sniff(data: bytes | None) -> str:
    """The Pillow format that the first bytes announce.

    Raises ImageFault `empty`, `wrong_type` with a guess of what the bytes are, or `undecodable` for an AVIF that the
    installed Pillow cannot decode.
    """
    if not data:
        raise ImageFault("empty", "the image has no bytes")
    for magic, name in _MAGIC:
        if data.startswith(magic):
            return name
    if data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        return "WEBP"
    guess: str | None
    if data[4:8] == b"ftyp":
        guess = _container(data)
        if guess == "AVIF":
            _need_avif()
            return guess
    else:
        head = bytes(data[:16]).lstrip().lower()
        guess = next((what for magic, what in _FOREIGN if head.startswith(magic)), None)
    known = ", ".join(sorted(set(EXTENSIONS) - {"MPO"}))
    raise ImageFault("wrong_type", f"not an image but {guess or 'unknown bytes'} (accepted formats: {known})")


def _container(data: bytes) -> str:
    """AVIF, or a description of another ISO base media file, by the brands in its `ftyp` box."""
    end = min(int.from_bytes(data[:4], "big"), 256)
    major = bytes(data[8:12])
    brands = {bytes(data[place : place + 4]) for place in range(16, end - 3, 4)}
    if major in _AVIF or (major in _CONTAINERS and brands & _AVIF):
        return "AVIF"
    if major in _HEIC or (major in _CONTAINERS and brands & _HEIC):
        return "a HEIC image, which Pillow reads only with a plugin: convert it to JPEG, PNG or AVIF (pillow-heif)"
    return "a video or another file in ISO boxes"


def _need_avif() -> None:
    from PIL import features

    if not features.check("avif"):
        raise ImageFault(
            "undecodable",
            "an AVIF image, which the installed Pillow is built without: install a wheel of pillow 11.3 or later",
        )
