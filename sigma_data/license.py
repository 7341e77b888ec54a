"""Names of licenses: one spelling for each, and whether a license forbids derivatives.

Publishers write `CC BY-NC 4.0`, `cc_by_nc_4.0` or the address of the text; a build compares the spelling of the hub and
of SPDX in lower case, `cc-by-nc-4.0`. `unknown` is a value like any other.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import lru_cache

UNKNOWN = "unknown"

_CREATIVE_COMMONS = re.compile(r"(?:https?://)?(?:www\.)?creativecommons\.org/licenses/([a-z-]+)/([\d.]+)?.*")
_PUBLIC_DOMAIN = re.compile(r"(?:https?://)?(?:www\.)?creativecommons\.org/publicdomain/zero/([\d.]+)?.*")
_WORDS = (
    (r"creative-commons-?", "cc-"), (r"attribution", "by"), (r"non-?commercial", "nc"), (r"share-?alike", "sa"),
    (r"no-?deriv(?:ative|s)?s?(?:-works)?", "nd"), (r"(?:international|unported|generic|licen[cs]ed?|the)", ""),
    (r"version-?(?=\d)", ""), (r"(?<![a-z])v(?=\d)", ""),
)  # fmt: skip
_SPELLINGS = {
    "": UNKNOWN, "none": UNKNOWN, "null": UNKNOWN, "n-a": UNKNOWN, "na": UNKNOWN, "not-found": UNKNOWN,
    "apache": "apache-2.0", "apache2": "apache-2.0", "apache-2": "apache-2.0", "apache2.0": "apache-2.0",
    "expat": "mit", "cc0": "cc0-1.0", "cc-zero": "cc0-1.0", "cc-0": "cc0-1.0", "cc-0-1.0": "cc0-1.0",
    "cc-zero-1.0": "cc0-1.0",
}  # fmt: skip


@lru_cache(maxsize=4096)
def normalize_license(name: str) -> str:
    """The license in one spelling: lower case, words joined by hyphens, e.g. `cc-by-nc-4.0`; no name is `unknown`."""
    text = name.strip().lower()
    if found := _CREATIVE_COMMONS.fullmatch(text):
        return "-".join(part for part in ("cc", found[1], found[2]) if part)
    if found := _PUBLIC_DOMAIN.fullmatch(text):
        return f"cc0-{found[1] or '1.0'}"
    text = _hyphens(text)
    for pattern, word in _WORDS:
        text = re.sub(pattern, word, text)
    text = re.sub(r"(?<=cc)(?=by|nc|nd|sa)", "-", _hyphens(text))
    return _SPELLINGS.get(text, text)


def forbids_derivatives(name: str) -> bool:
    """Whether a license has a no-derivatives clause: one of its words is `nd`."""
    return "nd" in re.split(r"[^a-z0-9]+", normalize_license(name))


def matches_license(name: str, patterns: Sequence[str]) -> bool:
    """Whether a license is one of these; in a pattern `*` stands for any text, e.g. `cc-by-nc*`."""
    known = normalize_license(name)
    return any(fnmatchcase(known, normalize_pattern(pattern)) for pattern in patterns)


def normalize_pattern(pattern: str) -> str:
    """A license that may hold `*`, in one spelling."""
    if "*" not in pattern:
        return normalize_license(pattern)
    return _hyphens(pattern.strip().lower(), keep="*")


def _hyphens(text: str, keep: str = "") -> str:
    return re.sub(rf"[^a-z0-9.+{keep}]+", "-", text).strip("-")
