"""`sigma sources`: every shipped map in the list, and how to lay out its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from sigma_data.errors import ConfigError
from sigma_data.sources.base import field_maps


def run(*arguments: str) -> str:
    done = CliRunner().invoke(cli.app, ["sources", *arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


@pytest.mark.slow
def test_the_list_names_every_map_with_its_license_and_how_sure_it_is() -> None:
    listed = json.loads(run("--json"))
    assert [row["name"] for row in listed] == field_maps()
    assert all(row["license"] and row["certainty"] and row["hub"] and row["families"] for row in listed)
    assert all(name in run() for name in field_maps())


@pytest.mark.parametrize("name", field_maps())
def test_a_name_says_how_to_lay_out_the_files(name: str) -> None:
    told = run(name)
    assert f"{name}:DIR" in told
    assert "rows" in told
    assert json.loads(run(name, "--json"))["corpus"] in told


def test_a_map_of_ones_own_can_be_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("{corpus: Mine, families: [editing], format: json, rows: a.json, family: editing}")
    assert "map:" in run(str(file))


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean omniedit"):
        run("omniedt")
