"""A loss is an average over tokens, whatever pack, rank or step they were in, and by what they belong to."""

from __future__ import annotations

import math
from collections import defaultdict

import pytest
import torch
from support.sequences import FIRST_ATTRIBUTE, case, generator, one_thread, pack  # noqa: F401

from pipelines.train.losses import BINS, LossTable, LossWeights
from sigma_data.instruction import ATTRIBUTES
from sigma_data.loading.batch import PackedBatch
from sigma_data.sample import Family, Turn
from sigma_model.model import Output

IDS = {name: FIRST_ATTRIBUTE + number for number, name in enumerate(ATTRIBUTES)}
PAINTED = case("paint <subject> the cat from <image_1> in <style> in <subject>", pictures=2)
OLD = case("paint the old man", pictures=1)
TOLD = case(Turn("what <style> is in <image_1>", response="a red cat"), pictures=1)
SHORT = case(Turn("what is it", response="dog"), pictures=0)
TWICE = case(Turn("paint a cat", target=1), Turn("next <pose> the dog", target=2), pictures=2)


def output(batch: PackedBatch, *key: object) -> Output:
    """Losses and levels drawn from a seed."""
    targets, answers = len(batch.target_slots), len(batch.answer_slots)
    mse = torch.rand(targets, batch.noise.shape[1], generator=generator("mse", *key))
    level = torch.rand(len(batch.u), generator=generator("level", *key))
    ce = torch.rand(answers, generator=generator("ce", *key))
    return Output(mse, ce, level, mse, ce, mse)


def expected_losses(batch: PackedBatch, out: Output, families: list[Family]) -> dict[str, float]:
    """The same averages, token by token."""
    found: dict[str, list[float]] = defaultdict(list)
    spoken = defaultdict(set)
    for slot, token in zip(batch.text_slots.tolist(), batch.text_ids.tolist(), strict=True):
        for name, number in IDS.items():
            if token == number:
                spoken[int(batch.tags.sample[slot])].add(name)
    for row, slot in enumerate(batch.target_slots.tolist()):
        loss, sample = float(out.mse[row].mean()), int(batch.tags.sample[batch.n_und + slot])
        image = batch.target_images.tolist().index(int(batch.latent_image[slot]))
        level = min(int(float(out.level[image]) * BINS), BINS - 1) / BINS
        for name in ("", f"/{families[sample]}", f"/level_{level:.1f}", *(f"/token_{a}" for a in spoken[sample])):
            found[f"image{name}"].append(loss)
    for row, slot in enumerate(batch.answer_slots.tolist()):
        for name in ("text", f"text/{families[int(batch.tags.sample[slot])]}"):
            found[name].append(float(out.ce[row]))
    return {name: sum(values) / len(values) for name, values in found.items()}


def close(found: dict[str, float], expected: dict[str, float]) -> bool:
    return found == {name: pytest.approx(value, rel=1e-6) for name, value in expected.items()}


CASES = [PAINTED, TOLD, TWICE, OLD, SHORT]
FAMILIES = [Family.EDITING, Family.UNDERSTANDING, Family.EDITING, Family.STYLIZATION, Family.UNDERSTANDING]


def test_averages_are_those_computed_token_by_token() -> None:
    batch = pack(CASES)
    out = output(batch)
    table = LossTable("cpu")
    table.add(batch, out, FAMILIES, IDS)
    expected = expected_losses(batch, out, FAMILIES)
    assert {"image/token_style", "image/token_pose", "text/understanding", "image/editing"} <= expected.keys()
    assert "image/token_text" not in expected
    assert close(table.averages(), expected)


def test_packs_and_ranks_add_up_to_one_average_over_tokens() -> None:
    whole, parts = LossTable("cpu"), [LossTable("cpu"), LossTable("cpu")]
    for number, some in enumerate(([PAINTED, TOLD], [OLD], [SHORT, TWICE])):
        batch, families = pack(some, seed=number), FAMILIES[: len(some)]
        for table in (whole, parts[number % 2]):
            table.add(batch, output(batch, number), families, IDS)
    parts[0].table += parts[1].table
    assert close(parts[0].averages(), whole.averages())
    average = (whole.averages(), parts[1].averages())
    assert average[0]["image"] != average[1]["image"]


@pytest.mark.parametrize("some", [[], [SHORT], [OLD]], ids=["nothing", "text", "image"])
def test_what_a_pack_does_not_have_adds_nothing(some: list[object]) -> None:
    batch = pack(some)  # type: ignore[arg-type]
    table = LossTable("cpu")
    table.add(batch, output(batch), [Family.LAYOUT] * len(some), IDS)
    assert close(table.averages(), expected_losses(batch, output(batch), [Family.LAYOUT] * len(some)))
    table.clear()
    assert table.averages() == {}


def test_the_highest_noise_level_is_in_the_last_bin() -> None:
    batch = pack([OLD])
    out = output(batch)
    out.level.fill_(1.0)
    table = LossTable("cpu")
    table.add(batch, out, [Family.LAYOUT], IDS)
    assert "image/level_0.9" in table.averages()


def test_weights_are_one_a_target_token_and_an_answer_s_length_to_the_minus_one_half() -> None:
    batch = pack(CASES)
    weights = LossWeights.of(batch, reweight_text=True)
    lengths = [4, 4, 4, 4, 2, 2]  # three words and the end, one word and the end
    assert torch.equal(weights.image, torch.ones(len(batch.target_slots)))
    torch.testing.assert_close(weights.text, torch.tensor([length**-0.5 for length in lengths]))
    assert weights.sums.tolist() == pytest.approx([len(batch.target_slots), 4 / math.sqrt(4) + 2 / math.sqrt(2)])
    plain = LossWeights.of(batch, reweight_text=False)
    assert plain.sums.tolist() == [len(batch.target_slots), 6]
