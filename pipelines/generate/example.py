"""Drawn references with an instruction, of the kind that the embedded model was trained on: something to begin with."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from sigma_data.sample import Family
from sigma_data.storage.files import disk_error, write_atomic
from sigma_data.synthetic import draw_sample

MODEL = "tiny-base"
SAMPLING: Mapping[str, float] = {"steps": 9, "text_scale": 2.0, "image_scale": 1.2}
"""Noise levels and guidance that this model was measured best with (configs/quickstart.yaml)."""
_FAMILIES = (Family.COMPOSITIONAL, Family.RELATION, Family.STYLIZATION, Family.EDITING)


def draw_example(number: int) -> tuple[str, list[bytes]]:
    """The instruction, and its references as PNG files; each `number` from 0 on is another one."""
    family = _FAMILIES[number % len(_FAMILIES)]
    sample = draw_sample(seed=11, size=256, format="png", family=family, index=number // len(_FAMILIES))
    return sample.instruction, list(sample.images[:-1])


def write_example(out: Path, number: int = 0) -> tuple[str, list[Path]]:
    """Its instruction, and its references as OUT-reference-1.png and so on. Raises BuildError."""
    instruction, images = draw_example(number)
    paths = [out.with_name(f"{out.stem}-reference-{place}.png") for place in range(1, len(images) + 1)]
    try:
        for path, data in zip(paths, images, strict=True):
            write_atomic(path, data)
    except OSError as error:
        raise disk_error(error, out) from None
    return instruction, paths
