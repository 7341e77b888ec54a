"""Layout samples of captions and images: the condition is that of the stored target, and the build the same to the byte."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from support.corpora import adds_up, build, files_below
from support.depth_models import write_depth_model
from support.image_files import encoded, image_bytes, plain, smooth
from support.listed_source import listed, sample

from pipelines.build_dataset.conditions import Conditions, add_condition
from pipelines.validate.run import validate_corpus
from sigma_data.conditions.canny import canny
from sigma_data.conditions.maps import grey_of, read_edges
from sigma_data.corpus.corpus import Corpus, open_corpus
from sigma_data.errors import ConfigError
from sigma_data.images.decode import load
from sigma_data.sample import Family, Image, Rejection, Sample, Turn


def caption(row: int, data: bytes | None = None, text: str = "a painted hill number {row}") -> Sample:
    data = image_bytes("jpeg", row, width=200, height=150) if data is None else data
    return sample(row, Family.LAYOUT, [Image(1, data)], [Turn(text.format(row=row), target=1)])


def drawing(seed: int) -> bytes:
    """Flat boxes of strong colours: edges that no threshold misses."""
    pixels = np.asarray(smooth(seed, 200, 150)).copy() // 8
    dice = np.random.default_rng(seed)
    for _ in range(6):
        x, y = dice.integers(0, 150), dice.integers(0, 100)
        pixels[y : y + 40, x : x + 40] = dice.integers(120, 256, 3)
    return encoded(pixels)


def pairs(corpus: Corpus) -> list[tuple[Image, Image, Sample]]:
    return [(one.images[0], one.images[1], one) for one in corpus]


@pytest.mark.parametrize("max_side", [None, 96])
def test_an_edge_map_is_that_of_the_target_as_the_corpus_holds_it(tmp_path: Path, max_side: int | None) -> None:
    spec = listed("drawings", [caption(row, drawing(row)) for row in range(5)])
    corpus = build(tmp_path / "out", spec, conditions={"shares": {"canny": 1}}, max_side=max_side).corpus
    assert corpus.sums["families"] == {"layout": 5}
    for condition, target, one in pairs(corpus):
        grey = grey_of(load(target.data))
        assert max(grey.shape) == (max_side or 200)
        assert np.array_equal(read_edges(condition.data or b"").edges, canny(grey, 100, 200))
        assert condition.kind == "canny" and one.targets == (2,)
        note = json.loads(one.provenance or "")["condition"]
        assert (note["kind"], note["low"], note["high"]) == ("canny", 100, 200)
    assert not validate_corpus(corpus.path, deep=True, workers=0).problems


def test_a_condition_that_shows_nothing_and_a_broken_target_go_to_quarantine(tmp_path: Path) -> None:
    spec = listed("mixed", [caption(0, drawing(0)), caption(1, plain(200, 150)), caption(2, drawing(2)[:300])])
    corpus = build(tmp_path / "with", spec, conditions={"shares": {"canny": 1}}).corpus
    assert corpus.sums["codes"] == {"blank_condition": 1, "truncated": 1}
    assert corpus.sums["written"] == 1 and adds_up(corpus.sums)


@pytest.mark.slow
def test_depth_maps_are_those_of_the_scan_in_the_shards_and_the_cache_is_gone(tmp_path: Path) -> None:
    model = write_depth_model(tmp_path / "dpt")
    spec = listed("depths", [caption(row) for row in range(4)])
    settings = {"conditions": {"shares": {"depth": 1}, "depth_model": str(model)}}
    first = build(tmp_path / "a", spec, **settings).corpus
    assert {condition.kind for condition, _, _ in pairs(first)} == {"depth"}
    note = json.loads(pairs(first)[0][2].provenance or "")["condition"]
    assert note["model"] == "dpt" and len(note["revision"]) == 16 and note["device"] == "cpu"
    assert files_below(first.path) == files_below(build(tmp_path / "b", spec, **settings).corpus.path)
    assert not (first.path / ".sigma").exists()


def test_a_missing_depth_model_is_said_before_any_work(tmp_path: Path) -> None:
    spec = listed("nothing", [caption(0)])
    for settings in ({}, {"depth_model": str(tmp_path / "absent")}):
        with pytest.raises(ConfigError, match=r"conditions\.depth_model"):
            build(tmp_path / "out", spec, conditions={"shares": {"depth": 1}, **settings})
    assert not (tmp_path / "out").exists()


def test_shares_divide_the_rows_by_their_ids_alone() -> None:
    settings = Conditions(shares={"canny": 3, "depth": 1})
    kinds = [settings.kind_of(caption(row, b"")) for row in range(400)]
    assert 260 < kinds.count("canny") < 340 and kinds.count("canny") + kinds.count("depth") == 400
    assert kinds == [settings.kind_of(caption(row, b"")) for row in range(400)]


def test_a_source_becomes_layout_as_a_whole_if_it_is_named() -> None:
    edit = sample(
        1, Family.EDITING, [Image(1, drawing(1)), Image(2, drawing(2))], [Turn("Boxes as in <image_1>", target=2)]
    )
    options = {"max_side": None, "store": "auto", "max_pixels": 10**6}
    assert add_condition(edit, Conditions(shares={"canny": 1}), **options) is edit  # type: ignore[arg-type]
    named = Conditions(shares={"canny": 1}, sources=("listed",))
    found = add_condition(edit, named, **options)  # type: ignore[arg-type]
    assert not isinstance(found, Rejection)
    assert (found.family, found.turns[0].instruction) == (Family.LAYOUT, "Boxes as in")
    assert [image.number for image in found.images] == [1, 2] and found.images[1].data == drawing(2)


def test_an_open_corpus_tells_the_kind(tmp_path: Path) -> None:
    build(tmp_path / "out", listed("one", [caption(3, drawing(3))]), conditions={"shares": {"canny": 1}})
    (one,) = open_corpus(tmp_path / "out")
    assert [image.kind for image in one.images] == ["canny", None]
