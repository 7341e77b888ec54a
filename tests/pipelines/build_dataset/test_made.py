"""Samples made from others: right by their rules, in one split with their parents, the same to the byte, however built."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import polars as pl
import pytest
from support import corpora
from support.image_files import image_bytes

from pipelines.build_dataset.image_words import read_image_words
from pipelines.validate.run import validate_corpus
from sigma_data.corpus.corpus import Corpus, open_corpus
from sigma_data.errors import ConfigError
from sigma_data.images.fingerprint import near
from sigma_data.instruction import parse
from sigma_data.sample import Family, Sample

MADE = {"made": {"selective": True, "relation": True}}
SPLITS = {"splits": {"train": 0.6, "test": 0.4}}
EDITS = ("Turn it into a watercolor painting.", "Make it snowy", "Remove the dog on the left")


def row(family: str, seeds: list[int], text: str, *, width: int = 96) -> dict[str, object]:
    return {
        "image_list": [image_bytes("jpeg", seed, width=width, height=80) for seed in seeds],
        "instruction_list": [[text]],
        "data_prep_method": family,
    }


def rows(count: int) -> list[dict[str, object]]:
    """Compositions that name their things, edits of three kinds, and a composition that does not say whose is what."""
    made = []
    for number in range(count):
        seeds = [10_000 + 10 * number + image for image in range(3)]
        text = f"Put the red toy from the first image on the sofa of the second image, number {number}"
        made.append(row("compositional", seeds, text))
        made.append(row("stylization", [20_000 + 2 * number, 20_001 + 2 * number], EDITS[number % 3]))
    made.append(row("compositional", [1, 2, 3], "Put both things side by side"))
    return made


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "release"
    everything = rows(24)
    for file in range(4):
        corpora.write_parquet(folder / "seedxedit_multi" / f"chunk_{file}.parquet", everything[file::4])
    return folder


@pytest.fixture(scope="module")
def corpus(release: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    out = tmp_path_factory.mktemp("made") / "corpus"
    return corpora.build(out, f"release:{release}", shard_samples=7, **SPLITS, **MADE).corpus


def made_of(corpus: Corpus) -> list[tuple[Sample, dict[str, object]]]:
    notes = [(one, json.loads(one.provenance or "{}").get("made")) for one in corpus]
    return [(one, note) for one, note in notes if note]


@pytest.mark.slow
def test_a_corpus_with_made_samples_is_sound_and_adds_up(corpus: Corpus) -> None:
    sums = corpus.sums
    assert sums["read"] + sums["made"] == sums["written"] + sums["quarantined"] + sums["duplicates"] + sums["filtered"]
    assert sums["made"] == len(made_of(corpus)) > 40
    assert not validate_corpus(corpus.path, deep=True, workers=0).problems


def test_a_reversed_sample_takes_the_thing_of_a_reference_out_of_the_target(corpus: Corpus) -> None:
    samples = {one.id: one for one in corpus}
    found = [(one, note) for one, note in made_of(corpus) if one.family is Family.SELECTIVE]
    assert len(found) == 2 * 24
    for one, note in found:
        (parent,) = (samples[name] for name in note["from"])  # type: ignore[attr-defined]
        data = {image.number: image.data for image in parent.images}
        number = one.source.row
        assert (one.images[0].data, one.images[1].data) == (data[parent.targets[0]], data[number])
        text = parse(one.turns[0].instruction)
        assert text.placeholders == (1,) and text.attributes == ("select",)
        assert ("the red toy", "the sofa")[number - 1] in text.plain


def test_a_relation_sample_has_two_pairs_of_one_edit_and_four_different_images(corpus: Corpus) -> None:
    samples = {one.id: one for one in corpus}
    signatures = {
        image["sha256"]: image["signature"] for row in corpus.manifest.iter_rows(named=True) for image in row["images"]
    }
    uses: dict[str, int] = {}
    found = [(one, note) for one, note in made_of(corpus) if one.family is Family.RELATION]
    assert found
    for one, note in found:
        pairs = [samples[name] for name in note["from"]]  # type: ignore[attr-defined]
        assert len({pair.turns[0].instruction for pair in pairs}) == 1
        assert "dog" not in pairs[0].turns[0].instruction
        assert [image.data for image in one.images] == [image.data for pair in pairs for image in pair.images]
        for pair in pairs:
            uses[pair.id] = uses.get(pair.id, 0) + 1
    assert max(uses.values()) <= 2
    assert len(signatures) > 100 and not near(*list(signatures.values())[:2])


def test_no_image_of_a_made_sample_lies_in_another_split(corpus: Corpus) -> None:
    images = corpus.manifest.select(
        "split", pl.col("images").list.eval(pl.element().struct.field("sha256")).alias("sha")
    )
    splits = images.explode("sha").group_by("sha").agg(pl.col("split").n_unique())
    assert splits["split"].max() == 1
    assert set(corpus.manifest.filter(pl.col("made").is_not_null())["split"]) == {"train", "test"}


def test_the_manifest_tells_rule_and_parents_and_a_merged_license(corpus: Corpus) -> None:
    told = corpus.manifest.filter(pl.col("made").is_not_null())
    assert set(told["made"].str.extract("^([a-z]+): ")) == {"selective", "relation"}
    assert set(told["source"]) == {"release"}


def test_without_the_setting_nothing_is_made_and_the_others_keep_their_splits(
    release: Path, corpus: Corpus, tmp_path: Path
) -> None:
    plain = corpora.build(tmp_path / "plain", f"release:{release}", shard_samples=7, **SPLITS).corpus
    assert plain.sums["made"] == 0 and "made" not in pl.read_parquet_schema(plain.path / "manifest.parquet")
    both = plain.manifest.join(corpus.manifest, on="id", how="left")
    assert both["split"].equals(both["split_right"])


@pytest.mark.slow
def test_quotas_count_made_samples_behind_those_that_were_read(release: Path, tmp_path: Path) -> None:
    quotas = {"selective": 5, "compositional": 8}
    sums = corpora.build(tmp_path / "out", f"release:{release}", quotas=quotas, **SPLITS, **MADE).corpus.sums
    assert sums["families"]["selective"] == 5 and sums["families"]["compositional"] == 8


@pytest.mark.slow
def test_a_corpus_that_is_built_again_has_its_made_samples_once(corpus: Corpus, tmp_path: Path) -> None:
    again = corpora.build(tmp_path / "again", f"webdataset:{corpus.path}", **SPLITS, **MADE).corpus
    assert again.sums["made"] == 0 and again.sums["written"] == corpus.sums["written"]
    assert set(again.manifest["made"].drop_nulls()) == set(corpus.manifest["made"].drop_nulls())


@pytest.mark.slow
def test_a_pair_is_used_no_more_often_and_an_edit_no_more_than_the_settings_say(release: Path, tmp_path: Path) -> None:
    def relations(number: int, **made: int) -> int:
        settings = {"made": {"relation": True, **made}, "splits": {"train": 1}}
        out = tmp_path / str(number)
        return int(corpora.build(out, f"release:{release}", **settings).corpus.sums["families"].get("relation", 0))

    assert relations(1) == 16  # two edits of eight pairs each
    assert relations(2, relations_an_edit=3) == 6
    assert relations(3, relations_a_pair=4) == 32


@pytest.mark.slow
def test_three_workers_give_the_same_bytes(release: Path, corpus: Corpus, tmp_path: Path) -> None:
    corpora.build(tmp_path / "three", f"release:{release}", workers=3, shard_samples=7, **SPLITS, **MADE)
    assert corpora.files_below(tmp_path / "three") == corpora.files_below(corpus.path)


_KILLER = """
import os, pathlib, signal
from pipelines.build_dataset import write, write_made
place, many = {place!r}, {many}
count = 0
def killing(call):
    def wrapped(*args, **kwargs):
        global count
        count += 1
        if count > many:
            os.kill(os.getpid(), signal.SIGKILL)
        return call(*args, **kwargs)
    return wrapped
if place == "copy":
    write_made._read = killing(write_made._read)
elif place == "marker":
    write_made.write_atomic = killing(write_made.write_atomic)
else:
    pathlib.Path.rename = killing(pathlib.Path.rename)
write_made._STRETCH = 16
from support import corpora
corpora.build(pathlib.Path({out!r}), {spec!r}, shard_samples=7, **{settings!r})
"""


@pytest.mark.slow
@pytest.mark.parametrize(("place", "many"), [("copy", 0), ("copy", 61), ("marker", 1), ("rename", 3)])
def test_a_build_that_is_killed_while_samples_are_made_ends_in_the_same_bytes(
    place: str, many: int, release: Path, corpus: Corpus, tmp_path: Path
) -> None:
    out, spec = tmp_path / "out", f"release:{release}"
    program = _KILLER.format(place=place, many=many, out=str(out), spec=spec, settings={**SPLITS, **MADE})
    tests = Path(__file__).parents[2]
    path = os.pathsep.join([str(tests), str(tests.parent), os.environ.get("PYTHONPATH", "")])
    killed = subprocess.run([sys.executable, "-c", program], env={**os.environ, "PYTHONPATH": path})
    assert killed.returncode == -signal.SIGKILL
    assert not (out / "corpus.json").exists()
    corpora.build(out, spec, shard_samples=7, **SPLITS, **MADE)
    assert corpora.files_below(out) == corpora.files_below(corpus.path)


def test_the_made_samples_open_as_any_other(corpus: Corpus) -> None:
    one, _ = made_of(corpus)[0]
    assert open_corpus(corpus.path)[one.id] == one


def words_file(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_captions_of_references_make_dense_samples_and_name_things(tmp_path: Path) -> None:
    portrait, thing, place = (image_bytes("jpeg", seed, width=96, height=80) for seed in (1, 2, 3))
    sources = [
        row("editing", [1, 7], "Make her smile"),
        row("compositional", [2, 3, 9], "Put both together nicely"),
    ]
    corpora.write_parquet(tmp_path / "release/seedxedit_multi/chunk_0.parquet", sources)
    digest = [hashlib.sha256(data).hexdigest() for data in (portrait, thing, place)]
    words = words_file(tmp_path / "words.jsonl", [
        {"sha256": digest[0], "caption": "A young woman in a red dress stands in a garden"},
        {"sha256": digest[1], "thing": "small blue lamp on the left"},
        {"sha256": digest[2], "thing": "background"},  # is none
        {"sha256": "0" * 64, "caption": "of an image that is not there"},
    ])  # fmt: skip
    made = {"made": {"dense": True, "selective": True, "words": words}}
    corpus = corpora.build(tmp_path / "out", f"release:{tmp_path / 'release'}", **made).corpus
    found = {note["rule"]: one for one, note in made_of(corpus)}
    assert set(found) == {"dense", "selective"}
    assert parse(found["dense"].turns[0].instruction).attributes == ("id", "clothing", "background")
    assert found["dense"].turns[0].caption == "Make her smile"
    assert found["dense"].images[0].data == portrait
    assert "<select>the small blue lamp on the left" in found["selective"].turns[0].instruction
    assert found["selective"].images[1].data == thing
    assert str(tmp_path) not in json.dumps(corpus.commit["config"]["made"])
    words_file(tmp_path / "words.jsonl", [{"sha256": digest[0], "caption": "something else"}])
    with pytest.raises(ConfigError, match=r"its sources have changed"):
        corpora.build(tmp_path / "out", f"release:{tmp_path / 'release'}", **made)


@pytest.mark.parametrize("line", ["{", "[]", '{"sha256": "x"}', '{"sha256": "' + "0" * 64 + '", "caption": 5}'])
def test_a_file_of_words_that_cannot_be_used_is_one_line(tmp_path: Path, line: str) -> None:
    (tmp_path / "words.jsonl").write_text(f"\n{line}\n")
    with pytest.raises(ConfigError, match=r"words.jsonl, line 2"):
        read_image_words(tmp_path / "words.jsonl")


def test_words_that_read_as_tokens_are_not_taken(tmp_path: Path) -> None:
    row = {"sha256": "0" * 64, "caption": "a <style> dog", "thing": "<image_1>"}
    words_file(tmp_path / "words.jsonl", [row])
    found = read_image_words(tmp_path / "words.jsonl")
    assert not found.captions
    assert not found.things
