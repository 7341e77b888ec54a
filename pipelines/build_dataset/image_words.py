"""What others, e.g. a captioning model, say of images: a file of JSON lines that made samples take their words from."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from sigma_data.errors import ConfigError, SigmaError
from sigma_data.instruction import parse

_LONGEST = 2_000
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MOST_BYTES = 2**30


@dataclass(frozen=True)
class ImageWords:
    """Captions of images and names of the one thing that each shows, by the SHA-256 of the image's bytes.

    `digest` is that of the file, "" without one.
    """

    captions: Mapping[str, str] = field(default_factory=dict)
    things: Mapping[str, str] = field(default_factory=dict)
    digest: str = ""


NO_WORDS = ImageWords()


def read_image_words(path: Path | None) -> ImageWords:
    """Read lines `{"sha256": ..., "caption": ..., "thing": ...}`, each with one of both or both.

    Raises ConfigError with the number of a line that cannot be used.
    """
    if path is None:
        return NO_WORDS
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"made.words: {path} has more than {_MOST_BYTES:,} bytes")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"made.words: {path} cannot be read ({error.strerror or error})") from None
    captions: dict[str, str] = {}
    things: dict[str, str] = {}
    for number, line in enumerate(data.splitlines(), 1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            raise ConfigError(f"made.words: {path}, line {number} is not JSON") from None
        sha256 = row.get("sha256") if isinstance(row, dict) else None
        if not isinstance(sha256, str) or not _SHA256.fullmatch(sha256):
            raise ConfigError(f"made.words: {path}, line {number} has no sha256 of 64 hexadecimal digits")
        for name, texts in (("caption", captions), ("thing", things)):
            text = row.get(name)
            if text is not None and not isinstance(text, str):
                raise ConfigError(f"made.words: {path}, line {number}: {name} is not text")
            if text and (plain := _plain(text)):
                texts[sha256] = plain
    return ImageWords(captions, things, hashlib.sha256(data).hexdigest())


def _plain(text: str) -> str:
    """Text in one line, "" for what is too long or reads as tokens: a file from elsewhere is not trusted with these."""
    words = " ".join(text.split())
    try:
        words.encode()
        found = parse(words)
    except (UnicodeEncodeError, SigmaError):
        return ""
    special = found.attributes or found.placeholders or found.unknown or found.control
    return "" if special or len(words) > _LONGEST else words
