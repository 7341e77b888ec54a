"""The network: one visibility rule, two experts, released weights computed exactly.

The public names are here: `load(path)` loads a model, `.generate(...)` makes an image, `.answer(...)` a text.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sigma_model.api import Model as Model
    from sigma_model.api import load as load
    from sigma_model.omnigen2.settings import Omnigen2Generation as Omnigen2Generation
    from sigma_model.omnigen2.settings import Omnigen2Sampling as Omnigen2Sampling
    from sigma_model.sampling.settings import Guidance as Guidance
    from sigma_model.sampling.settings import SamplingSettings as SamplingSettings

_HOMES = {
    "Model": "sigma_model.api", "load": "sigma_model.api",
    "Omnigen2Generation": "sigma_model.omnigen2.settings", "Omnigen2Sampling": "sigma_model.omnigen2.settings",
    "Guidance": "sigma_model.sampling.settings", "SamplingSettings": "sigma_model.sampling.settings",
}  # fmt: skip
__all__ = list(_HOMES)


def __getattr__(name: str) -> Any:
    """The public names, imported at their first use: `sigma --help` needs no torch."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
