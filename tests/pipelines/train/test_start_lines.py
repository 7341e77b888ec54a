"""A run says what it is about to do in a few calm lines, and what came of it in one."""

from __future__ import annotations

from dataclasses import replace

from pipelines.train.start_lines import Start, result_line, start_lines

START = Start(
    model="BAGEL-7B-MoT",
    trained=True,
    parameters=14_691_079_811,
    trainable=7_070_000_000,
    corpora={"corpus": 700_000, "extra": 1},
    packs=210_000,
    budget=30_000,
    held_out=16,
    steps=50_000,
    step=0,
    accumulate=2,
    ranks=4,
    device="NVIDIA H100 80GB HBM3",
    out="runs/sigma",
)
RESULT = {
    "out": "runs/sigma", "steps": 300, "of": 300, "new": 300, "skipped": 0, "stopped": False, "checkpoint": 300,
}  # fmt: skip


def test_a_start_names_model_data_length_ranks_and_place_in_four_lines() -> None:
    assert start_lines(START).splitlines() == [
        "model      BAGEL-7B-MoT, weights as they are stored; 14,691,079,811 parameters, 7,070,000,000 trainable",
        "data       corpus (700,000 samples), extra (1 sample); an epoch is 210,000 packs of at most 30,000 tokens; "
        "16 packs held out",
        "run        50,000 steps of 8 packs, on 4 ranks (NVIDIA H100 80GB HBM3)",
        "writes to  runs/sigma; Ctrl-C saves and stops, and the same command goes on",
    ]


def test_a_run_that_goes_on_says_from_which_step() -> None:
    assert "resuming" not in start_lines(START)
    assert start_lines(replace(START, step=1200)).splitlines()[-1] == "resuming   from step 1,200"


def test_what_is_not_as_usual_is_said() -> None:
    text = start_lines(replace(START, trained=False, trainable=START.parameters, held_out=0, ranks=1, accumulate=1))
    for words in ("random weights", "parameters, all trainable", "no validation", "steps of 1 pack, on 1 rank ("):
        assert words in text


def test_a_result_tells_the_next_command_and_of_a_stop_where_it_was_saved() -> None:
    assert result_line(RESULT) == (
        "runs/sigma: 300 of 300 steps; `sigma export runs/sigma --out DIR` writes a model that "
        "`sigma generate --model DIR` takes\n"
    )
    stopped = {**RESULT, "steps": 120, "stopped": True, "checkpoint": 120, "skipped": 3}
    assert result_line(stopped) == (
        "runs/sigma: 120 of 300 steps, 3 of them skipped; saved at step 120, where the same command goes on\n"
    )
