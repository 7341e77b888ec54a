"""Depth by a local model: shape, range, direction and determinism; what cannot be used is said before any work."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.depth_models import write_depth_model
from support.image_files import smooth

from sigma_data.conditions.depth import BlankDepthError, check_depth_model, depth_map, levels_of, revision
from sigma_data.errors import ConfigError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_depth_model(tmp_path_factory.mktemp("depth") / "dpt")


@pytest.mark.slow
def test_depth_has_the_size_of_the_image_all_levels_and_the_same_bytes_each_time(model: Path) -> None:
    image = smooth(2, 90, 61)
    first = depth_map(image, model)
    assert (first.shape, first.dtype) == ((61, 90), np.uint8)
    assert (first.min(), first.max()) == (0, 255)
    assert np.array_equal(first, depth_map(image, model))
    assert not np.array_equal(first, depth_map(image, model, percentile=True))


def test_near_is_bright_whether_the_model_gives_metres_or_inverse_depth() -> None:
    metres = np.array([[1.0, 2.0], [4.0, 8.0]])
    assert levels_of(metres, metres=True)[0, 0] == 255 and levels_of(metres, metres=True)[1, 1] == 0
    assert np.array_equal(levels_of(1 / metres, metres=False), levels_of(metres, metres=True))


def test_the_percentiles_keep_an_outlier_from_taking_all_levels() -> None:
    depth = np.linspace(0, 1, 1000).reshape(20, 50)
    depth[0, 0] = 1e6
    assert np.ptp(levels_of(depth, metres=False).ravel()[1:]) == 0
    assert np.ptp(levels_of(depth, metres=False, percentile=True).ravel()[1:]) == 255


@pytest.mark.parametrize("depth", [np.full((3, 4), 2.5), np.array([[1.0, np.nan]]), np.array([[1.0, np.inf]])])
def test_a_depth_that_shows_nothing_is_blank(depth: np.ndarray) -> None:
    with pytest.raises(BlankDepthError):
        levels_of(depth, metres=False)


def test_a_folder_that_cannot_give_depth_is_refused_in_one_sentence(model: Path, tmp_path: Path) -> None:
    check_depth_model(model)
    other = tmp_path / "other"
    other.mkdir()
    found = []
    for write in (None, {"model_type": "bert"}, {"model_type": "dpt"}):
        if write is not None:
            (other / "config.json").write_text(json.dumps(write))
        with pytest.raises(ConfigError) as error:
            check_depth_model(other)
        found.append(str(error.value))
    with pytest.raises(ConfigError, match=r"conditions\.depth_model"):
        check_depth_model(None)
    assert ["config.json" in found[0], "'bert'" in found[1], "safetensors" in found[2]] == [True] * 3
    assert all("\n" not in message for message in found)


def test_a_revision_changes_with_the_weights(model: Path, tmp_path: Path) -> None:
    other = write_depth_model(tmp_path / "dpt", seed=1)
    assert revision(model) != revision(other)
