"""What OmniGen2's own training code does by mistake, and ours must not: docs/parity.md lists each with its test."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from support import corpora, image_files
from support.places import ROOT

from pipelines.common.planner import open_planner
from pipelines.train.config import Omnigen2Settings, TrainConfig
from pipelines.train.omnigen2.batch import Omnigen2Batch
from pipelines.train.omnigen2.build import dataset_of
from pipelines.train.omnigen2.dataset import Omnigen2Dataset
from pipelines.train.omnigen2.description import Omnigen2Description, describe_omnigen2
from sigma_data.loading.shard_reader import ShardReader
from sigma_data.planning.plan import Planner, PlanSettings
from sigma_model.omnigen2.prompts import OPENINGS, generation_text, without_opening

NAME = "omnigen2-tiny"
ROW = re.compile(r"^\| .* \| `(?P<file>[\w/]+\.py)`: `(?P<test>test_\w+)` \|$", re.MULTILINE)


def test_every_slip_of_the_list_names_a_test_that_exists() -> None:
    found = ROW.findall((ROOT / "docs" / "parity.md").read_text("utf-8"))
    assert len(found) >= 28
    for file, test in found:
        assert f"def {test}(" in (ROOT / file).read_text("utf-8"), f"{file}: {test}"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """48 samples of six families, eight each."""
    folder = tmp_path_factory.mktemp("slips") / "corpus"
    corpora.build(folder, "world:48?size=64", splits={"train": 1.0})
    return folder


def planned(
    path: Path, chosen: Omnigen2Settings | None = None, **data: Any
) -> tuple[Omnigen2Description, Planner, Omnigen2Dataset]:
    description = describe_omnigen2(NAME, chosen or Omnigen2Settings())
    settings = PlanSettings.model_validate({"corpora": [{"path": str(path)}], "budget": 900, **data})
    planner = open_planner(settings, description)
    config = TrainConfig.model_validate({"out": "x", "steps": 1, "data": settings, "model": {"path": NAME}})
    return description, planner, dataset_of(config, description, planner)


@pytest.mark.slow
def test_ratios_of_a_mixture_decide_how_often_each_part_is_shown(corpus: Path) -> None:
    """There 9 : 1 and 1 : 1 give the same rows, all of them."""
    for ratio in ((9, 1), (1, 1)):
        shares = {"editing": ratio[0], "layout": ratio[1]}
        _, planner, dataset = planned(corpus, mixture={"by": "family", "shares": shares, "size": 40})
        plan = planner.plan(0)
        shown = Counter(family.value for pack in range(len(plan)) for family in dataset[plan.ticket(pack)].families)
        assert shown["editing"] == 40 * ratio[0] // sum(ratio)
        assert shown["layout"] == 40 * ratio[1] // sum(ratio)


@pytest.mark.slow
def test_a_broken_sample_is_skipped_by_name_and_no_other_takes_its_place(
    corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There a random sample is shown instead, up to twelve times over, and nobody is told."""
    _, planner, dataset = planned(corpus)
    plan = planner.plan(0)
    ticket = plan.ticket(0)
    whole = dataset[ticket]
    index = planner.indexes[0]
    broken = ticket.entries[1].row
    real = ShardReader.images

    def spoilt(self: ShardReader, row: int, numbers: Any) -> dict[int, bytes]:
        found = real(self, row, numbers)
        return {number: data[: len(data) // 2] if row == broken else data for number, data in found.items()}

    monkeypatch.setattr(ShardReader, "images", spoilt)
    found = dataset[ticket]
    (skip,) = found.skips
    name = index.ids[broken].decode()
    assert (skip.sample, skip.code) == (name, "truncated")
    assert found.batch.names == tuple(one for one in whole.batch.names if one != name)
    assert len(whole.batch.names) == len(found.batch.names) + 1
    assert found.samples == whole.samples == len(ticket.entries)
    again = dataset[ticket]
    assert again.batch.names == found.batch.names


@pytest.mark.parametrize("opening", OPENINGS)
def test_an_opening_is_taken_from_the_beginning_alone_and_never_leaves_nothing(opening: str) -> None:
    assert without_opening(f"{opening}a red cup.") == "a red cup."
    assert without_opening(f"A sign. {opening}a red cup.") == f"A sign. {opening}a red cup."
    assert without_opening(opening) == opening
    assert without_opening("a red cup") == "a red cup"


@pytest.mark.slow
def test_half_of_the_captions_without_references_lose_their_opening_and_others_keep_theirs(tmp_path: Path) -> None:
    """The choice is a sample's own, and changes from epoch to epoch; what is planned stays what is read."""
    captions = 40
    rows = [
        corpora.release_row(seed)
        | {
            "image_list": [image_files.image_bytes("jpeg", seed)],
            "instruction_list": [[f"The image shows a cup, number {seed}"]],
        }
        for seed in range(captions)
    ]
    rows += [
        corpora.release_row(seed) | {"instruction_list": [[f"The image shows <image_1> in red, number {seed}"]]}
        for seed in range(captions, captions + 6)
    ]
    source = corpora.write_parquet(tmp_path / "rows.parquet", rows)
    corpora.build(tmp_path / "corpus", f"release:{source}", splits={"train": 1.0}, checks={"no_reference": "off"})
    lost: list[set[str]] = []
    for chosen in (Omnigen2Settings(), Omnigen2Settings(drop_openings=0.0)):
        description, planner, dataset = planned(tmp_path / "corpus", chosen, dropout={"text": 0.0, "latent": 0.0})
        decode = description.tokenizer.tokenizer.decode
        for epoch in (0, 1):
            plan = planner.plan(epoch)
            texts: list[str] = []
            for pack in range(len(plan)):
                batch = dataset[plan.ticket(pack)].batch
                assert isinstance(batch, Omnigen2Batch)
                texts += [decode(ids) for ids in batch.prompt_ids]
            assert len(texts) == captions + 6
            assert sum("The image shows the image" in text for text in texts) == 6
            without = {text for text in texts if "The image shows" not in text}
            for text in without:
                number = re.findall(r"number (\d+)", text)[0]
                assert text == generation_text(f"a cup, number {number}")
            lost.append(without)
    assert all(captions / 4 < len(one) < 3 * captions / 4 for one in lost[:2])
    assert lost[0] != lost[1]
    assert lost[2] == lost[3] == set()
