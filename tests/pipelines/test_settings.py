"""Settings: YAML, overrides and values from the command line, and one sentence for every mistake."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipelines.build.config import BuildConfig
from pipelines.settings import dump_settings, load_settings
from sigma_data.checks import RULES
from sigma_data.errors import ConfigError
from sigma_data.limits import Severity
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
        ("title=2024-13-45", "title"),
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
        sources=("release:a b?licence=c",), title="größer: [1]", seed=9, splits={"train": 1, "test": 2.5},
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
