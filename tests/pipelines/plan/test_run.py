"""`sigma plan`: an epoch in figures, from a corpus or a training run's configuration, without weights or pictures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.commands import sigma
from support.planning import mixed_corpus

from pipelines.commands.options import split_settings
from pipelines.commands.plan import plan_summary
from pipelines.plan.config import plan_config
from pipelines.plan.run import run_plan
from sigma_data.errors import ConfigError
from sigma_data.text_format import counted


def planned(*words: str, ranks: int = 1, epochs: int = 1, **given: Any) -> dict[str, Any]:
    corpora, overrides = split_settings(words)
    return run_plan(plan_config(corpora, overrides, **given), ranks=ranks, epochs=epochs)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return mixed_corpus(tmp_path_factory.mktemp("command") / "one")


def test_the_figures_add_up(corpus: Path) -> None:
    result = planned(str(corpus), "budget=500", ranks=2, accumulate=3, epochs=2)
    assert [epoch["epoch"] for epoch in result["epochs"]] == [0, 1]
    for epoch in result["epochs"]:
        assert epoch["samples"] == {"one": {"compositional": 60, "editing": 25, "understanding": 40}}
        tokens = sum(sum(kinds.values()) for kinds in epoch["tokens"].values())
        assert epoch["fill"] == pytest.approx(tokens / (500 * epoch["packs"]), abs=1e-5)
        assert epoch["steps"] == epoch["packs"] // 6
        assert set(epoch["tokens"]["understanding"]) <= {"text", "patch", "answer"}
    assert result["epochs"][0]["tokens"] != result["epochs"][1]["tokens"]
    assert result["left_out"] == []


def test_words_and_json_say_the_same(corpus: Path) -> None:
    arguments = ("plan", str(corpus), "budget=500", "dropout.text=0", "--ranks", "2")
    words, machine = sigma(*arguments), sigma(*arguments, "--json")
    assert (words.returncode, machine.returncode) == (0, 0), words.stderr + machine.stderr
    epoch = json.loads(machine.stdout)["epochs"][0]
    assert f"epoch 0: 125 samples in {epoch['packs']:,} packs of at most 500 tokens, " in words.stdout
    assert f"{100 * epoch['fill']:.2f} % full" in words.stdout
    assert f"{epoch['steps']:,} steps of 2 ranks x 1 pack;" in words.stdout
    for family, kinds in epoch["tokens"].items():
        line = next(line for line in words.stdout.split("tokens   ")[1].splitlines() if line.startswith(family))
        assert line.split()[-1] == f"{sum(kinds.values()):,}"


def test_samples_that_are_too_long_are_listed_with_their_reason(corpus: Path) -> None:
    result = planned(str(corpus), "budget=60")
    left_out = result["left_out"]
    assert len(left_out) > 20
    assert all("60 are the most" in one["reason"] and one["tokens"] > 60 for one in left_out)
    text = plan_summary(result)
    assert f"{counted(len(left_out), 'sample')} in no pack:" in text
    assert text.count("are the most") == 20
    assert left_out[19]["sample"] in text
    assert f"and {len(left_out) - 20:,} more (--json lists all)" in text
    assert sum(sum(counts.values()) for counts in result["epochs"][0]["samples"].values()) == 125 - len(left_out)


def test_several_corpora_are_counted_apart(corpus: Path, tmp_path: Path) -> None:
    other = mixed_corpus(tmp_path / "two", seed=1)
    result = planned(str(corpus), str(other), "mixture.by=corpus", "mixture.shares={one: 1, two: 3}", "mixture.size=80")
    samples = result["epochs"][0]["samples"]
    assert abs(sum(samples["one"].values()) - 20) <= 1
    assert abs(sum(samples["two"].values()) - 60) <= 1


def write_config(tmp_path: Path, corpus: Path) -> Path:
    (tmp_path / "run.yaml").write_text(
        "out: run\nsteps: 100\naccumulate: 4\nmodel: {path: tiny, vision: false, dtype: float32}\n"
        f"data: {{corpora: [{{path: {corpus}, repeat: 2}}], budget: 700, seed: 3}}\noptimizer: {{lr: 1.0e-3}}\n"
    )
    return tmp_path / "run.yaml"


def test_the_configuration_of_a_training_run_is_read_as_it_is(corpus: Path, tmp_path: Path) -> None:
    result = planned(config=write_config(tmp_path, corpus))
    assert (result["budget"], result["accumulate"], result["model"]) == (700, 4, "tiny")
    assert sum(result["epochs"][0]["samples"]["one"].values()) == 250
    assert not any("patch" in kinds for kinds in result["epochs"][0]["tokens"].values()), "vision is off"


def test_what_is_typed_wins_over_the_configuration(corpus: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, corpus)
    typed = planned(str(corpus), "budget=800", config=config, accumulate=2)
    assert (typed["budget"], typed["accumulate"]) == (800, 2)
    assert sum(typed["epochs"][0]["samples"]["one"].values()) == 125
    same = planned("data.budget=800", config=config)
    assert same["budget"] == 800


def test_only_configuration_and_tokenizer_of_a_model_are_read(corpus: Path, tmp_path: Path) -> None:
    import shutil

    from sigma_model.config import preset_directory

    model, base = tmp_path / "weights", tmp_path / "base"
    shutil.copytree(preset_directory("tiny"), base, ignore=shutil.ignore_patterns("*.safetensors"))
    model.mkdir()
    result = planned(str(corpus), model=str(model), base=str(base))
    assert result["model"] == "weights"
    assert result["digest"] == planned(str(corpus))["digest"]
    with pytest.raises(ConfigError, match=r"weights: has no llm_config\.json"):
        planned(str(corpus), model=str(model))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "name a corpus"),
        (["nowhere"], "no such folder"),
        (["CORPUS", "bugdet=3"], "there is no such setting"),
        (["CORPUS", "budget=none"], "data.budget"),
        (["CORPUS", "budget=2"], "none of 125 samples fits"),
        (["CORPUS", "mixture.shares={layout: 1}"], "'layout' has no samples"),
        (["CORPUS", "CORPUS"], "two corpora are called 'one'"),
        (["CORPUS", "--model", "nowhere"], "no such directory of a model"),
        (["--config", "nowhere.yaml"], "nowhere.yaml: no such file: give a YAML file"),
    ],
)
def test_a_mistake_ends_with_one_sentence_and_exit_code_two(words: list[str], message: str, corpus: Path) -> None:
    result = sigma("plan", *(str(corpus) if word == "CORPUS" else word for word in words))
    assert result.returncode == 2, result.stderr
    assert message in result.stderr
    assert len([line for line in result.stderr.splitlines() if not line.startswith("index:")]) == 1
