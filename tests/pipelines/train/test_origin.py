"""A checkpoint goes on only with the model that it was trained from."""

from __future__ import annotations

import pytest

from pipelines.bundle import read_blueprint
from pipelines.train.assemble import check_origin, origin_of
from pipelines.train.config import TrainConfig
from sigma_data.errors import ConfigError

SETTINGS = {"out": "run", "steps": 1, "data": {"corpora": "corpus"}}


def origin(**settings: object) -> dict[str, str]:
    config = TrainConfig.model_validate({**SETTINGS, **settings})
    return origin_of(config, read_blueprint(config.model.path))


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"model": {"seed": 7}}, "model.path was random, seed 0 and is random, seed 7"),
        ({"model": {"group_mask": False}}, "model.group_mask was True and is False"),
        ({"lora": {"alpha": 8}}, "lora was none and is"),
        ({"freeze": {"und": True}}, "freeze was"),
    ],
)
def test_what_a_checkpoint_does_not_hold_is_compared_by_name(changed: dict[str, object], named: str) -> None:
    check_origin(origin(), origin(optimizer={"lr": 1.0}))
    with pytest.raises(ConfigError, match=named):
        check_origin(origin(), origin(**changed))
