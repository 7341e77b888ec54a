"""Post-training: `train(config)` runs what `sigma train` runs."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.train.config import TrainConfig


def train(
    config: TrainConfig | str | PathLike[str] | Mapping[str, Any], *, nproc: int | None = None, **settings: Any
) -> dict[str, Any] | None:
    """Train, or go on where the run in `out` stopped.

    `config` is a YAML file, its content as a mapping, or a `TrainConfig`; `settings` replace settings of it, those of
    a part in a mapping, e.g. `train("configs/quickstart.yaml", out="run", steps=20, optimizer={"lr": 1e-4})`. `nproc`
    is the number of processes on this machine, by default one a GPU, or one; under a launcher such as torchrun this
    process is one of its ranks. A script that starts several must do so under `if __name__ == "__main__"`.

    Returns `out`, `steps` (trained in all), `new` (trained now), `of` (wanted), `skipped` samples, `stopped` (whether
    it was told to stop) and the step of the newest `checkpoint`; None in a rank other than the first. Raises
    SigmaError for what a user can mend.
    """
    from pipelines.common.bundled_configs import config_file
    from pipelines.common.settings import load_settings, merge_settings
    from pipelines.train.config import TrainConfig
    from pipelines.train.launch import Launch, default_nproc, launch
    from pipelines.train.settings_checks import check_settings
    from sigma_data.storage.paths import local_path

    if isinstance(config, str | PathLike):
        chosen = load_settings(
            TrainConfig, config_file(local_path(str(config))), (), typed={name: name for name in settings}, **settings
        )
    else:
        chosen = merge_settings(TrainConfig, config, settings)
    check_settings(chosen)
    return launch(chosen, Launch(nproc=nproc or default_nproc(), chosen=nproc is not None))
