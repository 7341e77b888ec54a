"""What was fitted for a model's TeaCache: `tea_cache.json` beside its weights, written by `tools/fit_tea_cache.py`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from sigma_data.errors import ConfigError, reason_of
from sigma_model.sampling.settings import StepCaching

TEA_FILE = "tea_cache.json"


def fitted(caching: StepCaching, places: Sequence[Path]) -> StepCaching:
    """The polynomial, and the threshold that goes with it, of the first place that has the file, if any.

    Raises ConfigError naming a file that cannot be read.
    """
    for place in places:
        path = place / TEA_FILE
        if not path.is_file():
            continue
        try:
            said = json.loads(path.read_text("utf-8"))
            numbers = [float(value) for value in (*said["polynomial"], said["threshold"])]
            if not said["polynomial"] or not all(map(math.isfinite, numbers)):
                raise ValueError("not all are numbers")
        except (OSError, ValueError, LookupError, TypeError) as error:
            raise ConfigError(f"{path}: cannot be read ({reason_of(error)}): fit it again, or remove it") from None
        return replace(caching, polynomial=tuple(numbers[:-1]), threshold=numbers[-1])
    return caching
