"""Corpus layouts: one module a layout, named after it, with its `Reader` class in `READER`.

A source is written `name:path?option=value&option=value`, as in `release:data?license=cc-by-4.0`.
Adding a layout is adding a file here, or `register` from a module of your own.
"""

from sigma_data.sources.base import (
    Fragment,
    Reader,
    ReaderOptions,
    has_options,
    names,
    open_source,
    register,
    source_spec,
)

__all__ = ["Fragment", "Reader", "ReaderOptions", "has_options", "names", "open_source", "register", "source_spec"]
