"""The installed command `sigma`: finds our `pipelines`, or says which other one comes before it on the Python path.

It is here, and not in `pipelines`, because a foreign package of that name hides all of ours.
"""

from __future__ import annotations

import sys
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path


def main() -> None:
    """Run the command; exit code 2 if another `pipelines` would be imported in place of ours."""
    ours = Path(__file__).resolve().parents[1] / "pipelines"
    spec = find_spec("pipelines")
    found = [Path(place).resolve() for place in spec.submodule_search_locations or ()] if spec is not None else []
    if ours not in found:
        other = found[0] if found else Path(spec.origin) if spec is not None and spec.origin else ours
        sys.stderr.write(
            f"sigma: {other} hides the package `pipelines` of sigma ({ours}): "
            f"remove {other.parent} from PYTHONPATH, or run sigma in another environment\n"
        )
        sys.exit(2)
    import_module("pipelines.commands.app").main()
