"""The configurations that sigma brings along: `configs/` of a checkout, a folder of this package once installed."""

from __future__ import annotations

from pathlib import Path

from sigma_data.errors import ConfigError

CONFIGS = (Path(__file__).resolve().parents[1] / "configs").resolve()


def config_file(path: Path, *, build: bool = False) -> Path:
    """The file of this path or, if there is none, ours of that name: `sigma-lora` or `configs/sigma-lora.yaml`.

    `build`: of ours one of a build is meant, not of a training run. Raises ConfigError where there is neither.
    """
    if path.exists() and not path.is_dir():
        return path
    wrong = "is a folder" if path.is_dir() else "no such file"
    if path.parent in (Path(), Path("configs")):
        ours = CONFIGS / f"{path.name.removesuffix('.yaml')}.yaml"
        if ours.is_file():
            if _is_build(ours) == build:
                return ours
            wrong = f"is a configuration of sigma {'train' if build else 'build-dataset'}"
    names = ", ".join(sorted(one.stem for one in CONFIGS.glob("*.yaml") if _is_build(one) == build))
    raise ConfigError(f"{path}: {wrong}: give a YAML file, or the name of a bundled configuration ({names})")


def _is_build(config: Path) -> bool:
    return config.name.startswith("corpus-")
