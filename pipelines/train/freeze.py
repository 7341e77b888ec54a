"""Which parameters are trainable: the model's own parts, then patterns over names.

A pattern is searched for in our name of a parameter and in its released name, so that either may be written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from pipelines.train.config import FreezeSettings
from sigma_data.errors import ConfigError
from sigma_model.checkpoint_io import released_name
from sigma_model.model import SigmaModel


def apply_freeze(model: SigmaModel, settings: FreezeSettings) -> None:
    """Freeze parts of a model as the settings say; the rest stays trainable.

    To be called before `add_lora`; the attribute tokens' own rows come after both (`choose_trainable`).
    Raises ConfigError for a pattern that is not a regular expression or matches no parameter, and if nothing is
    left trainable.
    """
    model.freeze(und=settings.und, vit=settings.vit, llm=settings.llm)
    parameters = dict(model.named_parameters())
    for pattern in settings.patterns:
        for name in matching(parameters, pattern, setting="freeze.patterns"):
            parameters[name].requires_grad_(False)
    left = any(parameter.requires_grad for parameter in parameters.values())
    if not (left or settings.except_attribute_tokens):
        raise ConfigError("freeze: leaves no trainable parameter; freeze less")


def matching(parameters: Iterable[str], pattern: str, *, setting: str, suffix: str = "") -> list[str]:
    """The names of parameters, ours, in which a pattern is found; without `suffix`, which all must end with.

    `setting` is where the user wrote the pattern. Raises ConfigError where it is not a regular expression or
    is found in none.
    """
    known = {name: (name.removesuffix(suffix), released_name(name).removesuffix(suffix)) for name in parameters}
    return _matching(known, pattern, setting, "backbone.layers.0.gen.q")


def matching_names(parameters: Iterable[str], pattern: str, *, setting: str, example: str) -> list[str]:
    """The same for names that have no others; `example` is one of them."""
    return _matching({name: (name,) for name in parameters}, pattern, setting, example)


def _matching(known: Mapping[str, Iterable[str]], pattern: str, setting: str, example: str) -> list[str]:
    try:
        found = [name for name, spellings in known.items() if any(re.search(pattern, one) for one in spellings)]
    except re.error as error:
        raise ConfigError(f"{setting}: {pattern!r} is not a regular expression ({error})") from None
    if not found:
        raise ConfigError(f"{setting}: {pattern!r} matches nothing in the model; names are e.g. {example}")
    return found
