"""Samples, instructions, images and corpora. Imports no model code.

The public names are here: `open_corpus(path)` opens a prepared corpus, `corpus[i]` is a `Sample`, and
`corpus.to_datasets()` makes an HF data set of it.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sigma_data.corpus.corpus import Corpus as Corpus
    from sigma_data.corpus.corpus import open_corpus as open_corpus
    from sigma_data.errors import SigmaError as SigmaError
    from sigma_data.sample import Family as Family
    from sigma_data.sample import Image as Image
    from sigma_data.sample import Sample as Sample
    from sigma_data.sample import Source as Source
    from sigma_data.sample import Turn as Turn

_HOMES = {
    "Corpus": "sigma_data.corpus.corpus", "open_corpus": "sigma_data.corpus.corpus",
    "SigmaError": "sigma_data.errors",
    "Family": "sigma_data.sample", "Image": "sigma_data.sample", "Sample": "sigma_data.sample",
    "Source": "sigma_data.sample", "Turn": "sigma_data.sample",
}  # fmt: skip
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """The public names, imported at their first use: `sigma --help` needs none of them."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
