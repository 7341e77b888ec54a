"""`sigma sources`: every shipped map in the list, and how to lay out its files."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

import cli
from pipelines.download.catalog import catalog, find_entry
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
    told = run()
    assert all(name in told for name in field_maps())
    assert all(row["license"] in told and row["hub"][0] in told for row in listed)
    assert max(map(len, told.splitlines())) < 80


@pytest.mark.parametrize("name", field_maps())
def test_a_name_says_how_to_lay_out_the_files(name: str) -> None:
    told = run(name)
    assert f"{name}:DIR" in told
    assert "rows" in told
    assert json.loads(run(name, "--json"))["corpus"] in " ".join(told.split())
    commands = [line.split() for line in told.replace("\\\n", "").splitlines() if line.startswith("sigma ")]
    assert all(words[1:] == ["download", words[2], "--out", "DIR"] and find_entry(words[2]) for words in commands)
    assert (commands[:1] == [["sigma", "download", name, "--out", "DIR"]]) == (name in {one.name for one in catalog()})
    wide = [line for line in told.splitlines() if len(line) > 79]
    assert all(len(line.split()) <= 2 for line in wide), wide  # a word is never cut, so that it can be copied


def test_a_map_of_ones_own_can_be_looked_at(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("{corpus: Mine, families: [editing], format: json, rows: a.json, family: editing}")
    assert "map:" in run(str(file))


def test_an_unknown_name_is_answered_with_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean omniedit"):
        run("omniedt")
