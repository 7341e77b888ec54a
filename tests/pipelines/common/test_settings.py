"""Settings: YAML, overrides and values from the command line, and one sentence for every mistake."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.build_dataset.config import BuildConfig
from pipelines.common.settings import dump_settings, load_settings
from pipelines.train.config import TrainConfig
from sigma_data.corpus.check_limits import Severity
from sigma_data.corpus.checks import RULES
from sigma_data.errors import ConfigError
from sigma_data.sample import Family


def written(folder: Path, text: str | bytes) -> Path:
    file = folder / "build.yaml"
    file.write_bytes(text.encode() if isinstance(text, str) else text)
    return file


def sentence(*overrides: str, file: Path | None = None, **given: object) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(BuildConfig, file, overrides, **given)
    text = str(caught.value)
    assert "\n" not in text
    assert len(text) < 400
    return text


def test_without_a_word_the_defaults_hold() -> None:
    assert load_settings(BuildConfig, None, ()) == BuildConfig()


def test_a_file_sets_what_it_names(tmp_path: Path) -> None:
    file = written(tmp_path, "seed: 7\nlimits:\n  min_side: 64\nquotas: {editing: 5}\nchecks:\n  too_small: warning\n")
    config = load_settings(BuildConfig, file, ())
    assert (config.seed, config.limits.min_side, config.limits.max_references) == (7, 64, 10)
    assert config.quotas == {Family.EDITING: 5}
    assert config.checks == {"too_small": Severity.WARNING}


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n", "null\n", "{}\n"])
def test_an_empty_file_sets_nothing(tmp_path: Path, text: str) -> None:
    assert load_settings(BuildConfig, written(tmp_path, text), ()) == BuildConfig()


def test_overrides_win_over_the_file_and_values_over_both(tmp_path: Path) -> None:
    file = written(tmp_path, "seed: 1\ntitle: one\nlimits: {min_side: 40, max_aspect: 3}\n")
    config = load_settings(BuildConfig, file, ["seed=2", "limits.min_side=50"], title="three", max_side=None)
    assert (config.seed, config.title, config.max_side) == (2, "three", None)
    assert (config.limits.min_side, config.limits.max_aspect) == (50, 3)
    assert load_settings(BuildConfig, file, ["seed=2", "seed=3"], seed=4).seed == 4
    merged = load_settings(BuildConfig, file, ["checks.too_small=off"], checks={"no_reference": "warning"})
    assert merged.checks == {"too_small": Severity.OFF, "no_reference": Severity.WARNING}


def test_overrides_are_read_as_yaml() -> None:
    config = load_settings(
        BuildConfig, None, ["splits={train: 90, test: 10}", "title=a = b", "max_side=null", "sources=['world:5']"]
    )
    assert config.splits == {"train": 90, "test": 10}
    assert (config.title, config.max_side, config.sources) == ("a = b", None, ("world:5",))


def test_yaml_s_off_is_the_severity_off(tmp_path: Path) -> None:
    for config in (
        load_settings(BuildConfig, written(tmp_path, "checks: {too_small: off}"), ()),
        load_settings(BuildConfig, None, ["checks.too_small=off"]),
    ):
        assert config.checks == {"too_small": Severity.OFF}


def test_an_empty_section_is_one_with_nothing_set(tmp_path: Path) -> None:
    file = written(tmp_path, "checks:\n")
    config = load_settings(BuildConfig, file, ["checks.too_small=warning"], checks={"no_reference": "warning"})
    assert config.checks == {"too_small": Severity.WARNING, "no_reference": Severity.WARNING}


# Mistakes -------------------------------------------------------------------------------------------


def test_unknown_settings_are_named_with_those_that_exist(tmp_path: Path) -> None:
    assert "sed" in sentence("sed=1")
    assert "seed" in sentence("sed=1")
    text = sentence("limits.min_sid=1")
    assert "limits.min_sid" in text
    assert "min_side" in text
    file = written(tmp_path, "shard_byte: 3\n")
    assert str(file) in sentence(file=file)
    assert "shard_byte" in sentence(file=file)
    assert "limits.max_tokens.a" in sentence("limits.max_tokens.a=3") or "max_tokens" in sentence(
        "limits.max_tokens.a=3"
    )


@pytest.mark.slow
@pytest.mark.parametrize(
    ("override", "word"),
    [
        ("seed=many", "seed"),
        ("shard_bytes=0", "shard_bytes"),
        ("limits.min_side=0", "limits.min_side"),
        ("limits=3", "limits"),
        ("splits={}", "splits"),
        ("splits={train: 0, test: 0}", "splits"),
        ("splits={train: -1, test: 2}", "splits"),
        ("splits={train: .nan}", "splits"),
        ("splits={train: .inf}", "splits"),
        ("splits={../up: 1}", "splits"),
        ("splits={'a b': 1}", "splits"),
        ("quotas={editing: -1}", "quotas"),
        ("quotas.edit=5", "quotas"),
        ("checks.too_smal=off", "too_smal"),
        ("checks.too_small=maybe", "too_small"),
        ("near_duplicates=maybe", "near_duplicates"),
        ("order=backwards", "order"),
        ("title=[", "title=["),
        ("seed", "name=value"),
        ("=5", "name=value"),
        ("", "name=value"),
        ("seed.deep=5", "seed"),
        ("limits..min_side=5", "limits"),
        (".=5", "setting"),
        ("title=" + "[" * 5_000, "title"),
        ("title=!!python/object/apply:os.getcwd []", "title"),
    ],
)
def test_a_mistake_is_one_sentence_that_names_the_setting(override: str, word: str) -> None:
    assert word in sentence(override)


@pytest.mark.parametrize("code", [code for code, check in RULES.items() if check.fixed])
def test_a_check_that_cannot_be_relaxed_says_so(code: str) -> None:
    assert code in sentence(f"checks.{code}=warning")
    assert load_settings(BuildConfig, None, [f"checks.{code}={RULES[code].severity}"]).checks


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["seed: [1", "- a\n- b\n", "just words", "5", b"\xff\xfe\x00", "a: b: c", "\t- x", "seed: 2024-13-45",
     "!!python/object/apply:os.system ['true']", "title: \x00", "1: 2", "? [a]\n: 3", "[" * 5_000, "seed: 1\nlimits: 3\n"],
)  # fmt: skip
def test_a_file_that_does_not_hold_settings_is_one_sentence_that_names_it(tmp_path: Path, text: str | bytes) -> None:
    file = written(tmp_path, text)
    assert str(file) in sentence(file=file)


def test_a_file_that_cannot_be_read_is_one_sentence_that_names_it(tmp_path: Path) -> None:
    assert "nowhere.yaml" in sentence(file=tmp_path / "nowhere.yaml")
    assert tmp_path.name in sentence(file=tmp_path)


@pytest.mark.parametrize("text", ["checks: 3\n", "checks: [a]\n", "checks: words\n"])
def test_values_that_meet_no_section_are_one_sentence(tmp_path: Path, text: str) -> None:
    assert "checks" in sentence(file=written(tmp_path, text), checks={"too_small": "off"})
    assert "checks" in sentence("checks.too_small=off", file=written(tmp_path, text))


@pytest.mark.slow
@settings(deadline=None, max_examples=200)
@given(st.lists(st.one_of(st.text(max_size=12), st.builds("{}={}".format, st.text(max_size=8), st.text(max_size=8)))))
def test_any_words_are_settings_or_one_sentence(overrides: list[str]) -> None:
    try:
        load_settings(BuildConfig, None, overrides)
    except ConfigError as error:
        assert str(error)


# There and back -------------------------------------------------------------------------------------


def test_printed_settings_read_back_as_they_were(tmp_path: Path) -> None:
    config = BuildConfig(
        sources=("release:a b?license=c",), title="größer: [1]", seed=9, splits={"train": 1, "test": 2.5},
        quotas={Family.EDITING: 3}, checks={"too_small": Severity.OFF}, max_side=99,
    )  # fmt: skip
    again = load_settings(BuildConfig, written(tmp_path, dump_settings(config)), ())
    assert again == config
    assert again.digest() == config.digest()
    assert dump_settings(again) == dump_settings(config)


def test_the_digest_changes_with_every_setting() -> None:
    changes: list[dict[str, object]] = [
        {}, {"seed": 1}, {"title": "x"}, {"splits": {"train": 1}}, {"max_component": 5}, {"quotas": {"editing": 1}},
        {"near_duplicates": "drop"}, {"order": "source"}, {"shard_bytes": 5}, {"shard_samples": 5}, {"max_side": 64},
        {"checks": {"too_small": "off"}}, {"limits": {"min_side": 33}}, {"sources": ("world:5",)},
    ]  # fmt: skip
    digests = [BuildConfig.model_validate(change).digest() for change in changes]
    assert len(set(digests)) == len(changes)
    scans = [BuildConfig.model_validate(change).scan_digest() for change in changes]
    assert len(set(scans)) == 4  # only max_side, checks and limits shape a scan


# Types of YAML 1.2 ----------------------------------------------------------------------------------

RUN = ("out=run", "data.corpora=corpus")


def run_settings(*overrides: str, steps: str = "steps=3") -> TrainConfig:
    return load_settings(TrainConfig, None, [*RUN, steps, *overrides])


def refusal(*overrides: str, file: Path | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        load_settings(TrainConfig, file, overrides if file else [*RUN, *overrides])
    text = str(caught.value)
    assert "\n" not in text
    for jargon in ("Input should", "pathlib", "Settings", "dictionary", "pydantic", "http", "tuple", "Field required"):
        assert jargon not in text
    return text


@pytest.mark.parametrize(
    ("text", "number"),
    [("010", 10), ("1e3", 1000), ("1E3", 1000), ("1_000", 1000), ("1000.0", 1000), ("0x10", 16), ("0o10", 8),
     ("+7", 7), ("'7'", 7), ("00", None), ("true", None), ("yes", None), ("on", None), ("1:30", None), ("1.5", None),
     ("1,000", None), ("2024-01-01", None), ("1e400", None), ("3k", None), ("[3]", None)],
)  # fmt: skip
def test_a_whole_number_is_decimal_in_words_and_in_files_or_is_refused(
    tmp_path: Path, text: str, number: int | None
) -> None:
    file = written(tmp_path, f"out: run\ndata: {{corpora: corpus}}\nsteps: {text}\n")
    if number is None:
        assert refusal(f"steps={text}").startswith(f"steps={text}: ")
        assert refusal(file=file).startswith(f"{file}:3: steps: ")
        return
    assert run_settings(steps=f"steps={text}").steps == number
    assert load_settings(TrainConfig, file, []).steps == number


@pytest.mark.parametrize("override", ["optimizer.lr=true", "data.budget=false", "optimizer.betas=[0.9, false]"])
def test_true_and_false_are_no_numbers(override: str) -> None:
    assert "needs a number, not" in refusal("steps=3", override)
    assert "needs a number, not true" in sentence("quotas.editing=true")
    assert "needs a number, not true" in sentence(splits={"train": True})


@pytest.mark.parametrize(
    "text", ["010", "1e3", "1_000", "no", "on", "true", "1:30", "2024-01-01", "2024-13-45", "=", "007", "0x10", "1.0"]
)
def test_text_is_taken_as_it_was_written(tmp_path: Path, text: str) -> None:
    config = run_settings(f"log.wandb={text}", f"out={text}", f"data.corpora=[{{path: {text}, split: {text}}}]")
    assert (config.log.wandb, config.out, config.data.corpora[0].path) == (text, Path(text), text)
    assert config.data.corpora[0].split == text
    file = written(tmp_path, f"out: {text}\nlog:\n  wandb: {text}\ndata:\n  corpora: {text}\nsteps: 1\n")
    again = load_settings(TrainConfig, file, [])
    assert (again.log.wandb, again.out, again.data.corpora[0].path) == (text, Path(text), text)
    round_trip = load_settings(TrainConfig, written(tmp_path, dump_settings(config)), [])
    assert round_trip == config
    assert yaml.safe_load(dump_settings(config))["log"]["wandb"] == text, "readers of YAML 1.1 take it as text, too"


@pytest.mark.parametrize("text", ["a: b", "#1", "a #b", "@x", "*", "%d", "- a"])
def test_a_word_on_the_command_line_needs_no_quotes_of_yaml(text: str) -> None:
    assert load_settings(BuildConfig, None, [f"title={text}"]).title == text


def test_names_of_settings_are_text(tmp_path: Path) -> None:
    assert load_settings(BuildConfig, None, ["splits={on: 1, no: 2}"]).splits == {"on": 1, "no": 2}
    with pytest.raises(ConfigError, match=r"build\.yaml:2: not valid YAML \('seed' stands twice\)"):
        load_settings(BuildConfig, written(tmp_path, "seed: 1\nseed: 2\n"), [])
    merged = written(tmp_path, "limits: &l {min_side: 40}\ntitle: x\n")
    assert load_settings(BuildConfig, merged, []).limits.min_side == 40


@pytest.mark.parametrize("text", ["0.9,0.95", "0.9, 0.95", "0.9 0.95", "[0.9,0.95]"])
def test_a_pair_may_be_written_with_commas_or_spaces(tmp_path: Path, text: str) -> None:
    assert run_settings(f"optimizer.betas={text}").optimizer.betas == (0.9, 0.95)
    file = written(tmp_path, f"steps: 1\nout: run\ndata: {{corpora: c}}\noptimizer:\n  betas: {text}\n")
    assert load_settings(TrainConfig, file, []).optimizer.betas == (0.9, 0.95)


def test_a_list_of_one_needs_no_brackets_and_keeps_its_commas() -> None:
    assert run_settings(r"freeze.patterns=layers\.\d{1,2}\.").freeze.patterns == (r"layers\.\d{1,2}\.",)
    corpus = run_settings("data.corpora=[{path: x, families: 'editing, layout'}]").data.corpora[0]
    assert corpus.families == (Family.EDITING, Family.LAYOUT)
    assert load_settings(BuildConfig, None, ["sources=world:5?families=a,b"]).sources == ("world:5?families=a,b",)


# Where a mistake was made, in words -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("optimizer.lr=abc", "optimizer.lr=abc: needs a number, not 'abc'"),
        ("optimizer.lr=-1", "optimizer.lr=-1: must be more than 0, not -1"),
        ("optimizer.betas=0.9", "optimizer.betas=0.9: needs 2 values, not 1"),
        ("optimizer.betas=.9,.95,.99", "optimizer.betas=.9,.95,.99: needs 2 values, not 3"),
        ("ema=false", "ema=false: is a section (decay): set what is in it, not false; null for none"),
        ("out=", "out=: needs a path, not null"),
        ("data.shuffle=maybe", "data.shuffle=maybe: needs true or false, not 'maybe'"),
        ("schedule.kind=cosin", "did you mean cosine? (there are: constant, cosine, linear)"),
        ("optimzer.lr=1", "there is no such setting: did you mean optimizer? (there are: "),
        ("lr=1e-4", "there is no such setting: did you mean optimizer.lr?"),
        ("data.corpora=[{paht: x}]", "data.corpora[0].paht: there is no such setting: did you mean data.corpora[0].path?"),
        ("data.corpora=[]", "data.corpora=[]: must not be empty"),
    ],
)  # fmt: skip
def test_a_mistake_on_the_command_line_is_told_by_its_word_even_where_there_is_a_file(
    tmp_path: Path, override: str, told: str
) -> None:
    file = written(tmp_path, "out: run\nsteps: 3\ndata: {corpora: c}\n")
    assert told in refusal("steps=3", override)
    text = refusal(override, file=file)
    assert told in text
    assert str(file) not in text


def test_a_mistake_in_a_file_is_told_by_its_line(tmp_path: Path) -> None:
    file = written(tmp_path, "out: run\nsteps: 3\ndata:\n  corpora:\n    - path: c\n      splt: y\n")
    told = "data.corpora[0].splt: there is no such setting: did you mean data.corpora[0].split?"
    assert refusal(file=file).startswith(f"{file}:6: {told}")
    file.write_text("out: run\nsteps: 3\n")
    assert refusal(file=file) == f"{file}: data: must be set"
    file.write_text("out: run\nsteps: [3\n")
    assert refusal(file=file).startswith(f"{file}:3: not valid YAML (")


def test_a_mistake_in_an_option_is_told_by_the_option() -> None:
    typed = {"quotas": "--quota", "data.budget=0": "budget=0"}
    for options, told in (
        ({"quotas": {"edit": "3"}}, "--quota edit=3: quotas: there is no 'edit': did you mean editing?"),
        ({"max_side": 3}, "--max-side 3: must be at least 16, not 3"),
    ):
        with pytest.raises(ConfigError, match="^" + re.escape(told)):
            load_settings(BuildConfig, None, (), typed=typed, **options)
    with pytest.raises(ConfigError, match="^budget=0: data.budget: must be at least 1"):
        load_settings(TrainConfig, None, ("data.budget=0", *RUN, "steps=1"), typed=typed)
    assert load_settings(BuildConfig, None, (), quotas={"editing": "1e3"}).quotas == {Family.EDITING: 1000}
