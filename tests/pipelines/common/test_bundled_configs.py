"""A configuration by name: a file of the user's first, ours where there is none."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.common.bundled_configs import CONFIGS, config_file
from sigma_data.errors import ConfigError


@pytest.mark.parametrize("name", ["quickstart", "configs/quickstart.yaml"])
def test_a_name_means_ours_also_beside_a_folder_of_that_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_file(Path(name)) == CONFIGS / "quickstart.yaml"
    Path(name).mkdir(parents=True)
    assert config_file(Path(name)) == CONFIGS / "quickstart.yaml"


def test_a_file_of_that_name_comes_before_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("quickstart").write_text("steps: 3\n", "utf-8")
    assert config_file(Path("quickstart")) == Path("quickstart")


@pytest.mark.parametrize(
    ("name", "build", "other"), [("corpus-sgt", True, "build-dataset"), ("sigma-lora", False, "train")]
)
def test_ours_of_another_command_is_refused_and_not_among_the_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, build: bool, other: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert config_file(Path(name), build=build) == CONFIGS / f"{name}.yaml"
    with pytest.raises(ConfigError, match=rf"^{name}: is a configuration of sigma {other}: ") as caught:
        config_file(Path(name), build=not build)
    assert name not in str(caught.value).partition("(")[2]


def test_what_is_neither_a_file_nor_ours_is_refused_with_the_names_there_are(tmp_path: Path) -> None:
    for path, wrong in ((tmp_path / "quickstart.yaml", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(
            ConfigError, match=rf"{path}: {wrong}: .*bundled configuration \(.*quickstart, .*sigma-lora"
        ):
            config_file(path)
