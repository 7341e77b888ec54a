"""Former names of settings are read as ever."""

from __future__ import annotations

from typing import ClassVar

import pytest
from pydantic import ValidationError

from sigma_data.settings_base import StrictModel


class Loss(StrictModel):
    former_names: ClassVar[dict[str, str]] = {"picture": "image"}

    image: float = 1.0


class Run(StrictModel):
    loss: Loss = Loss()
    seed: int = 0


def test_a_former_name_gives_the_setting_of_today() -> None:
    assert Loss.model_validate({"picture": 0.5}) == Loss(image=0.5)
    found = Run.model_validate({"seed": 3, "loss": {"picture": "0.5"}})
    assert found.model_dump() == {"seed": 3, "loss": {"image": 0.5}}


def test_the_former_name_of_one_group_is_none_of_another() -> None:
    with pytest.raises(ValidationError, match="picture"):
        Run.model_validate({"picture": 1})


def test_a_setting_given_by_both_names_keeps_the_one_of_today() -> None:
    assert Loss.model_validate({"picture": 0.5, "image": 0.25}).image == 0.25
