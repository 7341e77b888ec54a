"""The tools that train the tiny base: their network is the product's, and their start reads references."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from sigma_data.loading.batch import Item
from sigma_data.loading.collate import collate
from sigma_data.sample import Sample
from sigma_data.sequence.layout import layout
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_data.sources import open_source
from sigma_model.checkpoint_io import init_model, load_model
from sigma_model.config import VAE_FILE, preset_directory
from sigma_model.model import geometry, widths
from sigma_model.vae import Vae, from_tokens
from tools import tiny_base_data, train_tiny_base
from tools.tiny_base_data import TASK, Corpus, Maker, Words, draw, load, task_sample
from tools.tiny_base_network import Network
from tools.tiny_base_start import prepare
from tools.train_tiny_base import Options, Training, config

COUNT = 12


@pytest.fixture(scope="module")
def encoder() -> Tokenizer:
    return Tokenizer.load(preset_directory("tiny"), vocab_size=config().language.vocab_size, rows=config().rows)


@pytest.fixture(scope="module")
def corpus(encoder: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder: Path = tmp_path_factory.mktemp("drawn")
    vae = Vae.load(preset_directory("tiny") / VAE_FILE, config().vae)
    draw(folder, encoder, vae, seed=3, count=COUNT, tasks=10, attributes=True)
    return load(folder)


def maker(encoder: Tokenizer, **changes: object) -> Maker:
    return Maker(encoder, random.Random(0), torch.Generator().manual_seed(0), **changes)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("group_mask", [True, False])
def test_the_fast_network_computes_what_the_model_computes(
    encoder: Tokenizer, corpus: Corpus, *, group_mask: bool
) -> None:
    model = init_model(config(), seed=0, dtype=torch.float32, device="cpu").requires_grad_(False)
    network = Network(model, dtype=torch.float32, compiled=False)
    reader = open_source(f"world:{COUNT}?size=64&seed=3")
    samples = [sample for fragment in reader.fragments() for sample in reader.read(fragment)]
    asked = maker(encoder, group_mask=group_mask)
    for number, sample in enumerate(samples):
        assert isinstance(sample, Sample)
        (group,) = asked.batch(corpus, [number])
        (mine,) = network.errors([group])
        images = len(sample.images)
        segments = layout(sample.turns, dict.fromkeys(range(1, images + 1), (64, 64)), encoder, geometry(config()))
        kept = corpus.samples[number]
        stored = corpus.latents[kept.first : kept.first + images].float()
        latents = {one + 1: from_tokens(stored[one], 8, 8, 2) for one in range(images)}
        item = Item(
            segments, latents=latents, noise={images: group.noise[0]}, u={images: float(torch.logit(group.level[0]))}
        )
        batch = collate([item], encoder, widths(config()))
        out = model(batch, model.clean_latents(batch, batch.known_latents), group_mask=group_mask)
        torch.testing.assert_close(mine[0], out.mse, atol=1e-4, rtol=1e-4)


def test_an_untrained_base_copies_a_single_reference_where_a_plain_start_does_not(
    encoder: Tokenizer, corpus: Corpus
) -> None:
    edits = [number for number, one in enumerate(corpus.samples[:COUNT]) if one.images == 2]
    shown = [corpus.samples[number]._replace(parts=(*corpus.samples[number].parts[:-1], 1)) for number in edits]
    copies = Corpus(shown, corpus.latents)
    errors = []
    for prepared in (False, True):
        model = init_model(config(), seed=0, dtype=torch.float32, device="cpu").requires_grad_(False)
        if prepared:
            prepare(model)
        network = Network(model, dtype=torch.float32, compiled=False)
        groups = maker(encoder).batch(copies, range(len(shown)), level=0.95)
        errors.append(float(torch.cat([error.flatten() for error in network.errors(groups)]).mean()))
    plain, start = errors
    assert start < 0.35 < 0.8 < plain


def test_every_reference_can_be_asked_for_and_is_then_the_answer(encoder: Tokenizer, corpus: Corpus) -> None:
    asked = maker(encoder, copy=1.0)
    for group in asked.batch(corpus, range(COUNT)):
        for latents in group.latents:
            assert any(torch.equal(reference, latents[-1]) for reference in latents[:-1])
        assert set(group.families) == {"copy"}


def test_attribute_tokens_are_bound_to_the_images_of_the_sample(corpus: Corpus) -> None:
    bound = [
        (group, sample.images)
        for sample in corpus.samples
        for part in sample.parts
        if isinstance(part, Words)
        for _, group in part.bound
    ]
    assert bound
    assert all(0 < group < images for group, images in bound)


def test_simple_tasks_ask_in_plain_words_for_one_thing_each(corpus: Corpus) -> None:
    samples = [task_sample(5, index) for index in range(10)]
    assert all("<image_" in sample.turns[0].instruction for sample in samples if len(sample.images) > 1)
    assert not any(word in sample.turns[0].instruction for sample in samples for word in ("<subject>", "<layout>", "["))
    assert {len(sample.images) for sample in samples} == {1, 2, 3}
    assert samples == [task_sample(5, index) for index in range(10)]
    drawn = [sample for sample in corpus.samples if sample.family == TASK]
    assert len(drawn) == 10
    assert not any(part.bound for sample in drawn for part in sample.parts if isinstance(part, Words))


@pytest.mark.slow
def test_training_repeats_itself_to_the_bit_and_goes_on_from_a_checkpoint(
    encoder: Tokenizer, corpus: Corpus, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(train_tiny_base, "HELD_OUT", 0)

    def training() -> Training:
        return Training(Options(batch=2), encoder, corpus, compiled=False)

    whole = training()
    losses = [float(whole.one_step()) for _ in range(4)]
    first = training()
    again = [float(first.one_step()) for _ in range(2)]
    second = training()
    second.load(first.state())
    again += [float(second.one_step()) for _ in range(2)]
    assert losses == again
    for mine, other in zip(whole.averages, second.averages, strict=True):
        assert torch.equal(mine, other)


def test_training_goes_on_from_the_shipped_weights(encoder: Tokenizer, corpus: Corpus) -> None:
    training = Training(Options(start="tiny-base"), encoder, corpus, compiled=False)
    shipped = load_model(preset_directory("tiny-base"), dtype=torch.float32)
    for name, one in training.model.state_dict().items():
        assert torch.equal(one, shipped.state_dict()[name]), name


def test_parts_share_the_drawing_and_new_samples_come_beside_those_held_out(
    encoder: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_base_data, "SHARD", 4)
    vae = Vae.load(preset_directory("tiny") / VAE_FILE, config().vae)
    wanted: dict[str, int] = {"seed": 3, "count": 6, "tasks": 3, "maps": 5, "first": 8}
    for part in (0, 1):
        draw(tmp_path, encoder, vae, part=(part, 2), **wanted)
    names = [f"maps-3-{n:07d}.pt" for n in (8, 12)] + ["tasks-3-0000008.pt"]
    names += [f"world-3-{n:07d}.pt" for n in (0, 8, 12)]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    samples = load(tmp_path).samples
    assert len(samples) == 4 + 6 + 3 + 5
    assert [one.family for one in samples[-5:]] == ["segmentation"] * 5
    for one in samples[-5:]:
        assert one.images == 2
        assert [part for part in one.parts if isinstance(part, int)] == [1, 2]
