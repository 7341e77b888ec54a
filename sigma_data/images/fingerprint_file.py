"""A file of image fingerprints, by which a build keeps the images of a benchmark out of a corpus.

Text, a line an image: SHA-256 of its bytes, perceptual signature (`sigma_data.images.fingerprint`), name, separated by
tabs. It holds no image, so it may be shared where the benchmark may not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from sigma_data.errors import ConfigError
from sigma_data.images.fingerprint import SIGNATURE_BYTES, near_matches
from sigma_data.storage.files import write_atomic

_HEAD = "# sigma fingerprints 1: sha256, signature, name"
_LINE = re.compile(rf"([0-9a-f]{{64}})\t([0-9a-f]{{{2 * SIGNATURE_BYTES}}})\t([^\t\n]*)")
_LONGEST_NAME = 200
_MOST_BYTES = 2**30
_ROWS = 2**18


@dataclass(frozen=True)
class Fingerprint:
    """An image by the SHA-256 of its bytes (hex) and its signature (86 bytes); `name` says which one it is."""

    sha256: str
    signature: bytes
    name: str = ""


@dataclass(frozen=True)
class KnownImages:
    """Images to be recognised, in the order of their SHA-256."""

    prints: tuple[Fingerprint, ...] = ()

    def match(
        self, high: NDArray[np.uint64], low: NDArray[np.uint64], signatures: NDArray[np.uint8]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """For [N] images the index of the known image that each is, exactly or nearly, or -1; and whether exactly.

        An image is given by the first 16 bytes of its SHA-256, as two numbers, and its signature, [N, 86].
        """
        known = np.frombuffer(b"".join(one.signature for one in self.prints), dtype=np.uint8)
        found = np.empty(len(high), dtype=np.int64)
        for start in range(0, len(high), _ROWS):
            part = slice(start, start + _ROWS)
            found[part] = near_matches(signatures[part], known.reshape(-1, SIGNATURE_BYTES))
        exact = {(int(one.sha256[:16], 16), int(one.sha256[16:32], 16)): index for index, one in enumerate(self.prints)}
        same = np.isin(high, np.array([first for first, _ in exact], dtype=np.uint64))
        for place in np.flatnonzero(same).tolist():
            index = exact.get((int(high[place]), int(low[place])))
            same[place] = index is not None
            found[place] = found[place] if index is None else index
        return found, same


def write_fingerprints(path: Path, prints: Iterable[Fingerprint]) -> int:
    """Write a file, each image once, sorted by its SHA-256: equal images give equal bytes. Returns the lines."""
    first: dict[str, Fingerprint] = {}
    for one in sorted(prints, key=lambda one: (one.sha256, one.name)):
        first.setdefault(one.sha256, one)
    lines = [f"{one.sha256}\t{one.signature.hex()}\t{_clean(one.name)}\n" for one in first.values()]
    write_atomic(path, "".join([f"{_HEAD}\n", *lines]))
    return len(lines)


def read_fingerprints(paths: Sequence[Path]) -> KnownImages:
    """The images of several files. Raises ConfigError for what `sigma fingerprints` did not write."""
    found: dict[str, Fingerprint] = {}
    for path in paths:
        for number, line in enumerate(_lines(path), start=2):
            match = _LINE.fullmatch(line)
            if match is None:
                raise ConfigError(
                    f"{path}:{number}: is not a fingerprint; write the file again with sigma fingerprints"
                )
            found.setdefault(match[1], Fingerprint(match[1], bytes.fromhex(match[2]), match[3]))
    return KnownImages(tuple(found[key] for key in sorted(found)))


def _lines(path: Path) -> list[str]:
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise ConfigError(f"{path}: is larger than a file of fingerprints can be; write it with sigma fingerprints")
        head, *lines = path.read_text("utf-8").rstrip("\n").split("\n")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error}); sigma fingerprints writes it") from None
    except ValueError:
        head, lines = "", []
    if head != _HEAD:
        raise ConfigError(
            f"{path}: is not a file of fingerprints; write one with sigma fingerprints BENCHMARK --out FILE"
        )
    return lines


def _clean(name: str) -> str:
    return re.sub(r"\s+", " ", name.encode("utf-8", "replace").decode())[-_LONGEST_NAME:].strip()
