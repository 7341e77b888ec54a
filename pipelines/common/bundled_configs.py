"""The configurations that sigma brings along: `configs/` of a checkout, a folder of this package once installed."""

from __future__ import annotations

from pathlib import Path

CONFIGS = (Path(__file__).resolve().parents[1] / "configs").resolve()


def config_file(path: Path) -> Path:
    """The file of this path or, if there is none, ours of that name: `sigma-lora` or `configs/sigma-lora.yaml`."""
    if (path.exists() and not path.is_dir()) or path.parent not in (Path(), Path("configs")):
        return path
    ours = CONFIGS / f"{path.name.removesuffix('.yaml')}.yaml"
    return ours if ours.is_file() else path
