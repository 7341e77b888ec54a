"""What one must know of a model's answers; needs no torch."""

from __future__ import annotations

UNTRAINED = "has no trained weights, so this is noise"
BLIND = "has no vision encoder, which text answers are trained with, so its text is most likely noise"


def caveat_of(*, trained: bool, sees: bool, text: bool) -> str:
    """What one must know of a model's answers, to be said after its name; nothing where they are what it has learnt.

    `sees`: it has a vision encoder. `text`: it is asked for text.
    """
    if not trained:
        return UNTRAINED
    return BLIND if text and not sees else ""
