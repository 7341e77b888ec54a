"""Whether NeMo Automodel loads an export: `python -m tools.check_nemo_automodel DIRECTORY`.

Needs `pip install --no-deps nemo-automodel einops`, and a directory with `ema.safetensors` (no `--max-shard-size`).
Its own BAGEL class is built from the directory's `config.json` and filled by its own loader, both stages' weights,
strictly; then every tensor of the file must stand in the model, bit for bit. The exit code is 1 otherwise.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor


def main() -> int:
    """Load and compare."""
    directory = Path(sys.argv[1])
    bagel: Any = importlib.import_module("nemo_automodel.components.models.bagel.model")
    model = bagel.BagelForUnifiedMultimodal.from_pretrained(str(directory), stage=2, strict=True)
    theirs: dict[torch.Size, list[Tensor]] = defaultdict(list)
    for tensor in model.state_dict().values():
        theirs[tensor.shape].append(tensor)
    ours = load_file(directory / "ema.safetensors")
    lost = [
        name
        for name, tensor in ours.items()
        if not any(torch.equal(tensor, other.to(tensor.dtype)) for other in theirs[tensor.shape])
    ]
    version = importlib.metadata.version("nemo-automodel")
    print(f"NeMo Automodel {version}: {len(ours) - len(lost)} of {len(ours)} tensors loaded as they are", *lost[:5])
    return int(bool(lost))


if __name__ == "__main__":
    sys.exit(main())
