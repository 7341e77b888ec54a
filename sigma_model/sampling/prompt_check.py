"""What is refused of a prompt before any model is loaded; needs no torch."""

from __future__ import annotations

import difflib

from sigma_data.errors import ConfigError
from sigma_data.instruction import ATTRIBUTES, parse


def check_prompt(prompt: str, images: int) -> None:
    """Raises ConfigError for what would reach the model as nonsense."""
    if not prompt.strip():
        raise ConfigError("the prompt is empty: say what to make")
    found = parse(prompt, references=images)
    if found.unknown:
        word = found.unknown[0].strip("<>/ ").lower()
        close = difflib.get_close_matches(word, [*ATTRIBUTES, "identity", "image"], 1)
        meant = f": did you mean <{close[0]}>?" if close else f"; those are {', '.join(f'<{a}>' for a in ATTRIBUTES)}"
        raise ConfigError(f"{found.unknown[0]} in the prompt is no attribute token{meant}")
    if found.control:
        raise ConfigError(f"{found.control[0]} in the prompt is a control token of the tokenizer: leave it out")
