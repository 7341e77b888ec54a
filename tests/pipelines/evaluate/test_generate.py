"""Generating: the same images however the work is shared, each made once, failures written down, both orders."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from support import eval_runs, image_files, sequences
from support.sequences import SPECIALS, Case, WordEncoder, cases, tiny_config, tiny_geometry

from pipelines.common.answerer import answerer_of
from pipelines.evaluate.benchmarks import samples
from pipelines.evaluate.benchmarks.samples import items_of
from pipelines.evaluate.generate import Generation, batches, clean, generate, missing, request_of, results, shares
from pipelines.evaluate.item import Item
from sigma_data.errors import ConfigError, SigmaError
from sigma_data.loading.collate import collate
from sigma_data.sample import Turn
from sigma_data.sequence.layout import Kind, Segment
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_model.attention_mask import dense_mask
from sigma_model.loading import LoadedModel, load_for_inference
from sigma_model.model import widths
from sigma_model.sampling import generate as sampling
from sigma_model.sampling.generate import Request, generate_images, lay_out
from sigma_model.sampling.settings import CacheMethod, Order, SamplingSettings, StepCaching

FEW = Generation(batch=2, settings=SamplingSettings(steps=4))


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    return load_for_inference(str(eval_runs.save_model(tmp_path_factory.mktemp("model") / "tiny")))


def drawn_image(seed: int, width: int = 48, height: int = 32) -> bytes:
    return image_files.image_bytes("png", seed, width=width, height=height)


@pytest.fixture(scope="module")
def items() -> list[Item]:
    texts = ["Put <subject>the thing <image_1> into <style>the style of <image_2>", "Paint <image_1> green", "a square"]
    return [
        Item(
            f"item-{number}",
            "compositional",
            texts[number % 3],
            tuple(drawn_image(10 * number + k, 32 + 16 * (number % 2)) for k in range(2 - number % 3)),
            size=(48, 32),
        )
        for number in range(5)
    ]


def run(loaded: LoadedModel, items: Sequence[Item], folder: Path, generation: Generation = FEW, world: int = 1) -> None:
    for share in reversed(shares(missing(folder, items, generation.batch), world)):  # any order of ranks will do
        generate(answerer_of(loaded, generation), share, folder, generation)


class Counting:
    """`generate_images` that counts what was asked of it, and stops at a call where the test wants it to."""

    def __init__(self, stop_at: int = 0) -> None:
        self.names: Counter[str] = Counter()
        self.calls = 0
        self.stop_at = stop_at

    def __call__(
        self, loaded: LoadedModel, requests: Sequence[Request], settings: SamplingSettings, **_: Any
    ) -> list[Image.Image]:
        self.calls += 1
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.names.update(request.name for request in requests)
        return generate_images(loaded, requests, settings)


@given(st.sets(st.integers(0, 300), max_size=60), st.integers(1, 9))
def test_every_missing_batch_is_in_exactly_one_share_and_no_share_is_empty(numbers: set[int], world: int) -> None:
    dealt = shares({number: [] for number in numbers}, world)
    assert sorted(number for share in dealt for number in share) == sorted(numbers)
    assert len(dealt) == min(world, len(numbers))
    sizes = [len(share) for share in dealt] or [0]
    assert max(sizes) - min(sizes) <= 1


@pytest.mark.slow
@pytest.mark.parametrize("cache", CacheMethod)
def test_one_and_three_shares_give_the_same_bytes(
    loaded: LoadedModel, items: list[Item], tmp_path: Path, cache: CacheMethod
) -> None:
    caching = StepCaching(cache, every=2, threshold=0.3)
    generation = replace(FEW, settings=SamplingSettings(steps=5, cache=caching))
    run(loaded, items, tmp_path / "one", generation)
    run(loaded, items, tmp_path / "three", generation, world=3)
    made = eval_runs.generated(tmp_path / "one")
    assert made == eval_runs.generated(tmp_path / "three")
    assert len([name for name in made if name.endswith(".png")]) == len(items)


@pytest.mark.slow
def test_after_an_interrupt_nothing_is_half_written_and_no_sample_of_a_finished_batch_is_made_twice(
    loaded: LoadedModel, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(loaded, items, tmp_path / "whole")
    stopped = Counting(stop_at=3)
    monkeypatch.setattr(sampling, "generate_images", stopped)
    with pytest.raises(KeyboardInterrupt):
        run(loaded, items, tmp_path / "out")
    done = {item.id for some in batches(items, FEW.batch)[:2] for item in some}
    assert set(stopped.names) == done
    assert {name.split("/")[0] for name in eval_runs.generated(tmp_path / "out")} == {"batch-000000", "batch-000001"}

    again = Counting()
    monkeypatch.setattr(sampling, "generate_images", again)
    run(loaded, items, tmp_path / "out")
    assert stopped.names + again.names == Counter(item.id for item in items)
    assert eval_runs.generated(tmp_path / "out") == eval_runs.generated(tmp_path / "whole")


@pytest.mark.slow
def test_what_a_killed_process_left_unfinished_is_removed_and_made_again(
    loaded: LoadedModel, items: list[Item], tmp_path: Path
) -> None:
    run(loaded, items, tmp_path / "whole")
    litter = tmp_path / "out" / "generated" / ".batch-000000.123.tmp"
    litter.mkdir(parents=True)
    (litter / "0000.png").write_bytes(b"half")
    clean(tmp_path / "out")
    run(loaded, items, tmp_path / "out")
    assert eval_runs.generated(tmp_path / "out") == eval_runs.generated(tmp_path / "whole")


def test_a_batch_that_lost_its_index_is_removed_and_made_again(
    loaded: LoadedModel, items: list[Item], tmp_path: Path
) -> None:
    run(loaded, items, tmp_path)
    whole = eval_runs.generated(tmp_path)
    (tmp_path / "generated" / "batch-000000" / "batch.json").unlink()
    clean(tmp_path)
    run(loaded, items, tmp_path)
    assert eval_runs.generated(tmp_path) == whole


def test_failures_are_kept_beside_answers_and_removed_where_there_are_no_others(
    loaded: LoadedModel, items: list[Item], tmp_path: Path
) -> None:
    one = Generation(batch=1, settings=SamplingSettings(steps=4))
    asked = [Item(f"broken {number}", "editing", "Paint <image_1>", (b"no image",)) for number in range(2)]
    run(loaded, [*asked, items[2]], tmp_path / "mixed", one)
    clean(tmp_path / "mixed")
    assert missing(tmp_path / "mixed", [*asked, items[2]], 1) == {}
    run(loaded, asked, tmp_path / "failed", one)
    clean(tmp_path / "failed")
    assert list(missing(tmp_path / "failed", asked, 1)) == [0, 1]


def test_an_item_that_cannot_be_answered_is_recorded_with_the_reason_beside_the_others(
    loaded: LoadedModel, items: list[Item], tmp_path: Path
) -> None:
    bad = [
        Item("broken", "editing", "Paint <image_1>", (b"no image",)),
        Item("token", "editing", "Paint <sbject>the thing <image_1>", (drawn_image(1),)),
        Item("absent", "editing", "Paint <image_3>", (drawn_image(1),)),
    ]
    asked = [items[0], *bad, items[1]]
    generation = Generation(batch=5, settings=SamplingSettings(steps=4))
    run(loaded, asked, tmp_path, generation)
    found = {result.item.id: result for result in results(tmp_path, asked, 5)}
    assert list(found) == [item.id for item in asked]
    assert all(found[item.id].image and not found[item.id].failure for item in items[:2])
    words = {"broken": "reference 1", "token": "did you mean <subject>", "absent": "image 3"}
    for name, word in words.items():
        assert found[name].image is None
        assert word in (found[name].failure or "")
    assert missing(tmp_path, asked, 5) == {}, "a failure is an answer: it is not tried for ever"


def test_one_that_fails_while_sampling_does_not_take_its_batch_with_it(
    loaded: LoadedModel, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fragile(
        loaded: LoadedModel, requests: Sequence[Request], settings: SamplingSettings, **_: Any
    ) -> list[Image.Image]:
        if any(request.name == "item-1" for request in requests):
            raise ConfigError("the sampler ended in numbers that are not finite")
        return generate_images(loaded, requests, settings)

    monkeypatch.setattr(sampling, "generate_images", fragile)
    run(loaded, items[:3], tmp_path, Generation(batch=3, settings=SamplingSettings(steps=4)))
    found = list(results(tmp_path, items[:3], 3))
    assert [bool(result.image) for result in found] == [True, False, True]
    assert "not finite" in (found[1].failure or "")


def test_results_of_other_items_or_with_gaps_or_damaged_are_refused(
    loaded: LoadedModel, items: list[Item], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="batch-000000: is not generated yet"):
        list(results(tmp_path, items, 2))
    run(loaded, items[:2], tmp_path)
    with pytest.raises(ConfigError, match="answers to other items"):
        list(results(tmp_path, items[1:3], 2))
    place = tmp_path / "generated" / "batch-000000"
    (place / "0000.png").unlink()
    with pytest.raises(ConfigError, match=r"0000\.png: is missing"):
        list(results(tmp_path, items[:2], 2))
    (place / "batch.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        list(results(tmp_path, items[:2], 2))


def test_questions_are_answered_with_text(loaded: LoadedModel, items: list[Item], tmp_path: Path) -> None:
    run(loaded, items[:3], tmp_path, Generation(batch=2, text=True, max_tokens=4))
    found = list(results(tmp_path, items[:3], 2))
    assert all(isinstance(result.text, str) and result.image is None and not result.failure for result in found)


def laid_out(loaded: LoadedModel, prompt: str, images: int, order: Order) -> tuple[Segment, ...]:
    request = Request(prompt, [drawn_image(seed) for seed in range(images)], order=order)
    return lay_out(request, loaded.tokenizer, loaded.geometry, answer=True)


def test_text_first_lays_all_text_before_all_references_and_the_answer_last(loaded: LoadedModel) -> None:
    prompt = "Put <subject>the thing <image_1> into <style>the style of <image_2> now"
    usual, released = (laid_out(loaded, prompt, 2, order) for order in (Order.INTERLEAVED, Order.TEXT_FIRST))
    shown = [Kind.LATENT, Kind.PATCH]
    assert [one.kind for one in usual] == [Kind.TEXT, *shown, Kind.TEXT, *shown, Kind.TEXT, Kind.TARGET]
    assert [one.kind for one in released] == [Kind.TEXT] * 3 + shown * 2 + [Kind.TARGET]
    assert [one.image for one in released if one.group] == [1, 1, 2, 2]
    assert [one.ids for one in released[:3]] == [one.ids for one in usual if one.kind is Kind.TEXT]
    assert [one.bound for one in released[:3]] == [one.bound for one in usual if one.kind is Kind.TEXT]
    assert {(one.kind, one.image): one.attributes for one in released} == {
        (one.kind, one.image): one.attributes for one in usual
    }
    ends = [0, *(one.end for one in released)]
    assert [one.position for one in released] == ends[:-1], "positions count on without a gap"
    assert sum(one.length for one in released) == sum(one.length for one in usual)


@pytest.mark.parametrize(("prompt", "images"), [("Paint the <subject>thing in <image_1>", 1), ("a square", 0)])
def test_text_first_is_the_interleaved_order_where_one_text_stands_before_one_image(
    loaded: LoadedModel, prompt: str, images: int
) -> None:
    assert laid_out(loaded, prompt, images, Order.INTERLEAVED) == laid_out(loaded, prompt, images, Order.TEXT_FIRST)


def test_the_order_reaches_the_images(loaded: LoadedModel, items: list[Item], tmp_path: Path) -> None:
    one_text = Item("one", "editing", "Paint the <subject>thing in <image_1>", (drawn_image(3),))
    made = {}
    for order in Order:
        generation = Generation(batch=1, order=order, settings=SamplingSettings(steps=4))
        run(loaded, [items[0], one_text], tmp_path / order, generation)
        made[order] = [result.image for result in results(tmp_path / order, [items[0], one_text], 1)]
    usual, released = made[Order.INTERLEAVED], made[Order.TEXT_FIRST]
    assert usual[0] != released[0]
    assert usual[1] == released[1]


def test_a_disk_that_refuses_ends_it_with_a_sentence(
    loaded: LoadedModel, items: list[Item], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(SigmaError, match="the disk is full"):
        run(loaded, items[:1], tmp_path)
    assert eval_runs.generated(tmp_path) == {}


def test_a_binding_to_an_image_that_only_a_later_turn_shows_is_left_out() -> None:
    first = Turn("take <style>this <image_2>", target=3, bindings=((0, 1),))
    one = sequences.case(first, Turn("and <image_1>", target=4), pictures=4)
    images = tuple(replace(i, data=drawn_image(i.number, *one.sizes[i.number])) for i in one.sample.images)
    early, late = items_of(replace(one.sample, images=images))
    assert (early.instruction, early.bindings) == ("take <style>this <image_1>", ())
    assert late.before[0].bindings == ((0, 1),)


@pytest.mark.slow
@given(cases(), st.booleans())
@settings(max_examples=40, deadline=None)
def test_a_sample_has_the_same_segments_and_mask_in_training_and_in_evaluation(one: Case, vision: bool) -> None:
    assume(all(turn.instruction.strip() for turn in one.sample.turns))  # a prompt must not be empty
    for index, turn in enumerate(one.sample.turns):  # a binding to what only a later turn shows is left out
        assume({number for _, number in turn.bindings} <= set(samples._context(one.sample, index)))
    sizes, tokenizer, geometry = one.sizes, WordEncoder(), tiny_geometry(vision=vision)
    images = tuple(replace(i, data=drawn_image(i.number, *sizes[i.number])) for i in one.sample.images)
    targets = [target for turn in one.sample.turns if (target := turn.target) is not None]
    asked = list(items_of(replace(one.sample, images=images)))
    assert len(asked) == len(targets)
    for item, target in zip(asked, targets, strict=True):
        trained = one.layout(vision=vision)
        trained = trained[: 1 + next(i for i, s in enumerate(trained) if (s.kind, s.image) == (Kind.TARGET, target))]
        request = request_of(replace(item, size=sizes[target]))
        found = lay_out(request, cast(Tokenizer, tokenizer), geometry, answer=True)
        place = {data: number for number, data in enumerate((*item.references, item.answer), 1)}
        numbers = {image.number: place[image.data] for image in images if image.data in place} | {0: 0}
        assert found == tuple(
            replace(
                segment,
                image=numbers[segment.image],
                bound=tuple((token, numbers[group]) for token, group in segment.bound),
            )
            for segment in trained
        )
        masks = []
        for segments in (trained, found):
            batch = collate([sequences.item(segments, tiny_config(vision=vision))], SPECIALS, widths(tiny_config()))
            masks.append(dense_mask(batch.tags, group_mask=True))
        assert torch.equal(*masks)
