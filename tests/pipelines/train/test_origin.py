"""A checkpoint goes on only with the model that it was trained from."""

from __future__ import annotations

import pytest

from pipelines.train.config import TrainConfig
from pipelines.train.origin import check_origin, origin_of
from sigma_data.errors import ConfigError
from sigma_model.loading import describe_model

SETTINGS = {"out": "run", "steps": 1, "data": {"corpora": "corpus"}}


def origin(**settings: object) -> dict[str, str]:
    config = TrainConfig.model_validate({**SETTINGS, **settings})
    return origin_of(config, describe_model(config.model.path))


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


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"optimizer": {"kind": "muon"}}, "optimizer.kind was adamw and is muon"),
        ({"ema": None}, "ema was kept and is none"),
        ({"freeze": {"und": True}}, "freeze was nothing and is und"),
        ({"lora": {"rank": 8}}, "lora was none and is rank 8, alpha 32.0, targets layers"),
    ],
)
def test_an_optimizer_or_average_that_differs_is_named_in_words(changed: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_origin(origin(), origin(**changed))
    assert named in str(error.value) and "{" not in str(error.value)
    older = {name: value for name, value in origin().items() if name not in ("optimizer.kind", "ema", "model.master")}
    check_origin(older, origin())


def test_other_weights_are_said_without_their_digests() -> None:
    with pytest.raises(ConfigError, match="the weights at model.path are other ones than the run started from"):
        check_origin(origin() | {"model.path": "0123456789abcdef"}, origin() | {"model.path": "fedcba9876543210"})
