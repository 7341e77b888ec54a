"""SGT on BAGEL: maps and answers in one step, every answer to its end, each task by its own route, all of it trained."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.places import ROOT
from support.sequences import one_thread  # noqa: F401
from support.training_data import dataset_of, index_of, planned, tiny

from pipelines.train.config import FreezeSettings
from pipelines.train.freeze import apply_freeze
from pipelines.train.losses import LossTable
from sigma_data import open_corpus
from sigma_data.instruction import ATTRIBUTES
from sigma_data.loading.loader import Loaded
from sigma_data.sample import Family, Sample
from sigma_data.sequence.layout import Kind, Segment, layout
from sigma_data.synthetic.instances import BACKGROUND, COLOURS
from sigma_model.checkpoint_io import init_model
from sigma_model.config import preset
from sigma_model.model import Output, SigmaModel, geometry
from sigma_model.sampling.generate import Request, lay_out
from sigma_model.vae import Vae

pytestmark = pytest.mark.slow
NOTHING = {"text": 0.0, "latent": 0.0, "patch": 0.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from pipelines.build_dataset.config import BuildConfig
    from pipelines.build_dataset.run import build

    place = tmp_path_factory.mktemp("sgt") / "corpus"
    source = "world:36?size=64&families=segmentation:2,understanding:1"
    build(BuildConfig(sources=(source,), splits={"train": 100, "val": 0, "test": 0}), place, workers=0)
    return place


@pytest.fixture(scope="module")
def samples(corpus: Path) -> list[Sample]:
    return list(open_corpus(corpus))


@pytest.fixture(scope="module")
def loaded(corpus: Path) -> Loaded:
    """All samples as one pack."""
    planner = planned(index_of(corpus), budget=12_000, dropout=NOTHING)
    plan = planner.plan(0)
    assert len(plan) == 1
    return dataset_of(planner)[plan.ticket(0)]


@pytest.fixture(scope="module")
def model() -> SigmaModel:
    return init_model(preset("tiny"), seed=0, dtype=torch.float32)


def forward(model: SigmaModel, loaded: Loaded) -> Output:
    batch = loaded.batch
    vae = Vae.load(ROOT / "sigma_model" / "presets" / "tiny" / "ae.safetensors", preset("tiny").vae)
    with torch.no_grad():
        latents = vae.encode(batch.images)
    found: Output = model(batch, model.clean_latents(batch, latents))
    return found


def laid_out(sample: Sample) -> tuple[Segment, ...]:
    encoder, shape, _ = tiny()
    return layout(sample.turns, {image.number: (64, 64) for image in sample.images}, encoder, shape)


def test_one_pack_has_both_losses_and_each_is_counted_under_its_family(model: SigmaModel, loaded: Loaded) -> None:
    assert set(loaded.families) == {Family.SEGMENTATION, Family.UNDERSTANDING}
    with torch.no_grad():
        found = forward(model, loaded)
    table = LossTable("cpu")
    ids = {name: 1005 + number for number, name in enumerate(ATTRIBUTES)}
    table.add(loaded.batch, found, loaded.families, ids)
    averages = table.averages()
    assert averages["image"] == averages["image/segmentation"] > 0
    assert averages["text"] == averages["text/understanding"] > 0
    assert "image/understanding" not in averages and "text/segmentation" not in averages


def test_every_answer_of_a_conversation_is_learnt_and_its_end_too(samples: list[Sample], loaded: Loaded) -> None:
    encoder, _, _ = tiny()
    end = encoder.eos
    assert encoder.encode("<|im_end|>") != (end,), "a text cannot write it"
    wanted = sorted(
        (*segment.ids, end) for sample in samples for segment in laid_out(sample) if segment.kind is Kind.ANSWER
    )
    turns = [turn for sample in samples for turn in sample.turns if turn.response is not None]
    assert len(wanted) == len(turns) > len([one for one in samples if one.family is Family.UNDERSTANDING])
    labels = loaded.batch.labels.tolist()
    found: list[tuple[int, ...]] = []
    begin = 0
    for place, label in enumerate(labels, start=1):
        if label == end:
            found.append(tuple(labels[begin:place]))
            begin = place
    assert begin == len(labels) and sorted(found) == wanted
    assert {encoder.decode(ids[:-1]).strip() for ids in found} == {turn.response for turn in turns}


def test_each_task_goes_by_its_route(samples: list[Sample]) -> None:
    """Maps: latents and patches of the image, then the target. Questions: patches alone. Words alone: no image."""
    seen = set()
    for sample in samples:
        kinds = [segment.kind for segment in laid_out(sample)]
        if sample.family is Family.SEGMENTATION:
            assert kinds.count(Kind.LATENT) == kinds.count(Kind.PATCH) == kinds.count(Kind.TARGET) == 1
            assert kinds.index(Kind.PATCH) == kinds.index(Kind.LATENT) + 1 and kinds[-1] is Kind.TARGET
        else:
            assert kinds.count(Kind.PATCH) == len(sample.images) and Kind.LATENT not in kinds
            assert kinds.count(Kind.ANSWER) == len(sample.turns) and kinds[-1] is Kind.ANSWER
        seen.add((sample.family, len(sample.images)))
    assert seen == {(Family.SEGMENTATION, 2), (Family.UNDERSTANDING, 1), (Family.UNDERSTANDING, 0)}


def test_questions_show_their_image_at_the_size_of_vqa_and_maps_at_that_of_generation(samples: list[Sample]) -> None:
    encoder, _, _ = tiny()
    shape = geometry(preset("bagel-7b-mot"))
    sides = {}
    for sample in samples:
        sizes = {image.number: (1200, 1200) for image in sample.images}
        for segment in layout(sample.turns, sizes, encoder, shape):
            if segment.kind is Kind.PATCH:
                sides[sample.family] = segment.size[0]
    assert sides == {Family.SEGMENTATION: 518, Family.UNDERSTANDING: 980}


def test_an_answer_is_generated_after_the_same_segments_as_it_was_trained(samples: list[Sample]) -> None:
    encoder, shape, _ = tiny()
    for sample in samples:
        trained = laid_out(sample)
        images = [image.data or b"" for image in sample.images if image.number not in sample.targets]
        for index, turn in enumerate(sample.turns):
            request = Request(turn.instruction, images, before=sample.turns[:index], size=(64, 64))
            asked = lay_out(request, encoder, shape, answer=turn.target is not None)
            until = [segment for segment in trained if segment.turn <= index]
            assert list(asked) == (until if turn.target is not None else until[:-1])


def test_the_target_map_is_encoded_in_its_own_colours(loaded: Loaded) -> None:
    known = {BACKGROUND, *COLOURS}
    maps = 0
    for image in loaded.batch.images:
        pixels = image.numpy() if image.dtype == torch.uint8 else np.round((image.numpy() + 1) * 127.5)
        colours = {tuple(int(value) for value in colour) for colour in np.unique(pixels.reshape(3, -1).T, axis=0)}
        maps += colours <= known
    assert maps == loaded.families.count(Family.SEGMENTATION)


def test_both_losses_reach_the_vision_encoder_and_answers_leave_the_generation_expert_alone(
    model: SigmaModel, loaded: Loaded
) -> None:
    def reached(loss: torch.Tensor) -> dict[str, float]:
        model.zero_grad()
        loss.backward(retain_graph=True)
        return {
            name: 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
            for name, parameter in model.named_parameters()
        }

    found = forward(model, loaded)
    image, text = reached(found.mse.mean()), reached(found.ce.mean())
    model.zero_grad()
    for parts in (image, text):
        assert all(parts[name] > 0 for name in parts if name.startswith("vision.") and name.endswith(".q.weight"))
        assert parts["connector.fc1.weight"] > 0 and parts["backbone.layers.0.und.q.weight"] > 0
    assert image["backbone.layers.0.gen.q.weight"] > 0 and image["latent_out.weight"] > 0
    assert all(value == 0 for name, value in text.items() if ".gen." in name or name.startswith("latent_"))
    assert text["lm_head.weight"] > 0 and image["lm_head.weight"] == 0


@pytest.mark.parametrize(
    ("settings", "frozen"),
    [
        ({}, ()),
        ({"vit": True}, ("vision.",)),
        ({"und": True}, ("vision.", "connector.", "backbone.embed", "backbone.norm_und", ".und.")),
        ({"llm": True}, ("backbone.", "lm_head.")),
    ],
)
def test_freezing_is_as_stated(settings: dict[str, bool], frozen: tuple[str, ...]) -> None:
    model = init_model(preset("tiny"), seed=0, dtype=torch.float32)
    apply_freeze(model, FreezeSettings(**settings))
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad is not any(part in name for part in frozen), name


def test_nothing_of_the_autoencoder_is_trained(model: SigmaModel) -> None:
    assert not any(name.startswith(("vae", "encoder", "decoder")) for name, _ in model.named_parameters())
