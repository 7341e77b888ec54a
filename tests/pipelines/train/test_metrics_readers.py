"""Whatever reads JSON lines reads metrics.jsonl, wherever figures were no finite numbers."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
from support.training_runs import run, settings_of

from pipelines.train.config import LogSettings
from pipelines.train.logs import METRICS, TENSORBOARD, TEXTS, RunLog
from pipelines.train.losses import loss_names
from sigma_data.sample import Family
from sigma_data.storage.files import dump_json, dump_line

COLUMNS = ("loss", "norm", "lr", "skipped", "epoch", "memory", "image", "val/image")
STEPS = 8


def written(folder: Path, bad: set[int], value: float = math.nan, *, tensorboard: bool = False) -> Path:
    """The metrics of a run of 8 steps of which some are skipped, with a validation at the start and in the middle."""
    settings = LogSettings(tensorboard=tensorboard)
    log = RunLog(folder, settings, total=STEPS, resumed=-1, columns=COLUMNS)
    for step in range(STEPS + 1):
        if step:
            taken = {} if step in bad else {"image": 1.0}
            loss = value if step in bad else 2.0  # whole on purpose: it must not be read as an integer
            figures = {"loss": loss, "norm": loss, "lr": 1e-3, "skipped": len(bad), "epoch": 0, "memory": 2**31}
            log.step(step, {**figures, **taken})
        if step % 4 == 0:
            log.step(step, {"val/image": value if 0 in bad else 0.5})
    log.close()
    return folder / METRICS


def columns_by_reader(path: Path, cache: Path) -> dict[str, dict[str, list[Any]]]:
    """The file as each reader gives it: column -> values, with None for those that are missing."""
    found: dict[str, dict[str, list[Any]]] = {}
    polars = pytest.importorskip("polars")
    arrow = pytest.importorskip("pyarrow.json")
    datasets = pytest.importorskip("datasets")
    frame = polars.read_ndjson(path)
    assert frame.schema["loss"] == polars.Float64 and frame.schema["skipped"] == polars.Int64
    found["polars"] = frame.to_dict(as_series=False)
    table = arrow.read_json(path)
    assert str(table.schema.field("loss").type) == "double" and str(table.schema.field("step").type) == "int64"
    found["pyarrow"] = table.to_pydict()
    loaded = datasets.load_dataset("json", data_files=str(path), split="train", cache_dir=str(cache))
    assert loaded.features["loss"].dtype == "float64"
    found["datasets"] = loaded.to_dict()
    try:
        import pandas
    except ImportError:
        return found
    read = pandas.read_json(path, lines=True)
    assert read["loss"].dtype == "float64" and read["step"].dtype == "int64"
    found["pandas"] = {name: [None if value != value else value for value in read[name]] for name in read}
    return found


@pytest.mark.parametrize(
    ("bad", "value"),
    [({1}, math.nan), ({5}, math.inf), ({STEPS}, -math.inf), (set(range(0, STEPS, 2)), math.nan), (set(), math.nan)],
)
def test_pandas_polars_pyarrow_and_datasets_read_the_same_after_nan_at_any_line(
    tmp_path: Path, bad: set[int], value: float
) -> None:
    path = written(tmp_path / "run", bad, value)
    lines = [json.loads(line, parse_constant=pytest.fail) for line in path.read_text().splitlines()]
    assert {tuple(line) for line in lines} == {("step", "non_finite", *COLUMNS)}
    expected = {name: [line[name] for line in lines] for name in lines[0]}
    for reader, found in columns_by_reader(path, tmp_path / "cache").items():
        assert found == expected, reader
    steps = [line for line in lines if line["lr"] is not None]
    assert [line["loss"] is None for line in steps] == [step in bad for step in range(1, STEPS + 1)]
    assert [line["non_finite"] for line in steps] == [
        f"loss {value}, norm {value}" if step in bad else "" for step in range(1, STEPS + 1)
    ]


def test_metrics_of_an_older_version_become_readable_when_the_run_goes_on(tmp_path: Path) -> None:
    old = [{"step": 1, "loss": "nan", "norm": "inf"}, {"step": 1, "val/text": 3.0}, {"step": 2, "loss": 1.5, "norm": 2}]
    (tmp_path / METRICS).write_text("".join(json.dumps(line) + "\n" for line in old))
    log = RunLog(tmp_path, LogSettings(tensorboard=False), total=9, resumed=2, columns=("loss", "norm"))
    log.step(3, {"loss": 1.0, "new": 4.0})
    log.close()
    log = RunLog(tmp_path, LogSettings(tensorboard=False), total=9, resumed=3, columns=("loss", "norm"))
    log.close()
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert lines[0] == {
        "step": 1, "non_finite": "loss nan, norm inf", "loss": None, "norm": None, "val/text": None, "new": None,
    }  # fmt: skip
    assert [line["val/text"] for line in lines] == [None, 3.0, None, None]
    assert {tuple(line) for line in lines} == {tuple(lines[0])}


def test_tensorboard_has_every_step_where_some_are_not_finite(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    written(tmp_path, {1, 3}, tensorboard=True)
    events = accumulator.EventAccumulator(str(tmp_path / TENSORBOARD))
    events.Reload()
    values = {event.step: event.value for event in events.Scalars("loss")}
    assert set(values) == set(range(1, STEPS + 1))
    assert {step for step, value in values.items() if math.isnan(value)} == {1, 3}


def test_a_column_stands_for_each_loss_that_the_corpora_can_give() -> None:
    names = loss_names([Family.EDITING, Family.LAYOUT])
    assert {"image", "text", "image/editing", "text/layout", "image/level_0.0"} < set(names)
    assert not [name for name in names if name.endswith(f"/{Family.STYLIZATION}")]


@pytest.mark.slow
def test_every_line_of_a_run_has_the_same_columns(tmp_path: Path, training_corpus: Path) -> None:
    run(settings_of(tmp_path, training_corpus, steps=2, validation={"every": 1, "packs": 1, "images": 0}))
    lines = [json.loads(line) for line in (tmp_path / METRICS).read_text().splitlines()]
    assert len(lines) == 5 and len({tuple(line) for line in lines}) == 1


def test_json_that_is_written_is_json_whatever_the_numbers() -> None:
    value = {"a": [1.5, math.nan, {"b": math.inf}], "c": (-math.inf, "x\u2028y")}
    read = json.loads(dump_json(value), parse_constant=pytest.fail)
    assert read == {"a": [1.5, None, {"b": None}], "c": [None, "x\u2028y"]}
    assert json.loads(dump_line(value)) == read and len(dump_line(value).splitlines()) == 1


def test_texts_of_a_run_are_one_line_each_for_every_reader(tmp_path: Path) -> None:
    log = RunLog(tmp_path, LogSettings(tensorboard=False), total=1)
    log.text(1, "answer", "one\u2028two\x85three\nfour")
    log.close()
    text = (tmp_path / TEXTS).read_text()
    assert len(text.splitlines()) == 1 and json.loads(text)["text"] == "one\u2028two\x85three\nfour"
