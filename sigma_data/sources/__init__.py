"""Corpus layouts: one module a layout, named after it, with its `Reader` class in `READER`.

A source is written `name:path?option=value&option=value`, e.g. `release:data?license=cc-by-4.0`.
To add a layout, add a module here, or call `register` from a module of your own.
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
