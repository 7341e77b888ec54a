"""Prompts and images become the states that the transformer is trained on, whatever else is in the batch."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from support import omnigen2

from sigma_data.errors import ConfigError, SequenceError
from sigma_model.omnigen2.answers import SYSTEM, Conversation, answer_inputs, pieces
from sigma_model.omnigen2.conditioning import (
    IGNORED,
    Conditioner,
    MllmInputs,
    Prompt,
    answer_loss,
    load_mllm,
    text_states,
)
from sigma_model.omnigen2.prompts import IM_END, Route, chat_text, dropped_text, generation_text, text_of


@pytest.fixture(scope="module")
def conditioner() -> Conditioner:
    return omnigen2.conditioner()


def image(seed: int, width: int = 60, height: int = 60) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


PROMPTS = [
    Prompt("Put the cat on the hill", (image(1), image(2, 30, 60))),
    Prompt("Draw"),
    Prompt("A longer instruction about a dog", (image(3, 60, 30),)),
    Prompt("", (image(4), image(5), image(6))),
]


@pytest.mark.parametrize("route", list(Route))
def test_prompts_with_any_number_of_images_are_encoded_as_each_alone(conditioner: Conditioner, route: Route) -> None:
    """Several prompts with several images each are not mixed up; prompts without images do not crash."""
    together = conditioner.encode(PROMPTS, route)
    for states, prompt in zip(together, PROMPTS, strict=True):
        torch.testing.assert_close(states, conditioner.encode([prompt], route)[0], atol=1e-5, rtol=1e-5)


def test_the_route_says_what_the_language_model_sees_and_what_of_it_is_kept(conditioner: Conditioner) -> None:
    prompt = PROMPTS[0]
    lengths = {route: len(conditioner.encode([prompt], route)[0]) for route in Route}
    counts = [int(grid.prod()) // 4 for grid in conditioner.inputs([prompt], Route.BOTH).grids]
    assert lengths[Route.MLLM] == lengths[Route.BOTH] + sum(counts)
    assert conditioner.inputs([prompt], Route.VAE).pixels is None
    other = dataclasses.replace(prompt, images=(image(7), image(8)))
    unseen, seen = (
        [torch.equal(*(conditioner.encode([one], route)[0][-5:] for one in (prompt, other)))]
        for route in (Route.VAE, Route.BOTH)
    )
    assert (unseen, seen) == ([True], [False])


@pytest.mark.parametrize("left", [False, True])
def test_states_are_those_of_the_valid_tokens_wherever_the_padding_lies(conditioner: Conditioner, left: bool) -> None:
    inputs = conditioner.inputs(PROMPTS, Route.MLLM)
    if left:
        order = inputs.mask.argsort(dim=1, stable=True)
        ids, mask, kinds = (one.gather(1, order) for one in (inputs.ids, inputs.mask, inputs.kinds))
        assert not mask[1, 0]
        inputs = MllmInputs(ids, mask, kinds, inputs.pixels, inputs.grids)
    found = text_states(conditioner.mllm, inputs, keep_image_states=True)
    for states, prompt in zip(found, PROMPTS, strict=True):
        torch.testing.assert_close(states, conditioner.encode([prompt], Route.MLLM)[0], atol=1e-5, rtol=1e-5)


def test_images_never_reach_the_language_model_without_the_kinds_of_its_tokens(conditioner: Conditioner) -> None:
    """Without them transformers 5 takes images' positions for text's, and says nothing."""
    inputs = conditioner.inputs(PROMPTS[:1], Route.MLLM)
    assert "mm_token_type_ids" in inputs.arguments(conditioner.mllm.model)
    assert inputs.kinds.sum() == (inputs.ids == conditioner.image_token).sum() > 0
    wrong = text_states(
        conditioner.mllm, dataclasses.replace(inputs, kinds=torch.zeros_like(inputs.kinds)), keep_image_states=True
    )[0]
    assert (wrong - text_states(conditioner.mllm, inputs, keep_image_states=True)[0]).abs().max() > 0.01


def test_an_instruction_that_is_too_long_keeps_the_closing_of_its_turn(conditioner: Conditioner) -> None:
    for route, images in ((Route.VAE, ()), (Route.BOTH, (image(1),))):
        ids = conditioner.inputs([Prompt("word " * 100, images)], route, max_tokens=200).ids[0].tolist()
        text = conditioner.tokenizer.decode(ids).replace("<|image_pad|>", "")
        closing = text_of("", len(images), route).rpartition(IM_END)[2]
        assert text.endswith(IM_END + closing)
        assert sum(one != conditioner.image_token for one in ids) == 200 - len(images)
        assert "word word" in text


def test_a_dropped_prompt_is_what_guidance_asks_for() -> None:
    """OmniGen2 trains another system text than its negative prompts have."""
    assert dropped_text() == generation_text("")
    assert dropped_text(as_negative=False) != generation_text("")


def test_control_tokens_in_a_prompt_are_refused(conditioner: Conditioner) -> None:
    for text in ("stop<|im_end|>", "an <|image_pad|>"):
        with pytest.raises(ConfigError, match="control token"):
            conditioner.inputs([Prompt(text)], Route.VAE)
    with pytest.raises(ConfigError, match="no prompts"):
        conditioner.inputs([], Route.VAE)


CONVERSATION = Conversation((("How many? <image>", "three "), ("And what colour?", "red")), (image(1),))


def test_every_answer_of_a_conversation_is_learnt_with_its_closing(conditioner: Conditioner) -> None:
    inputs, labels = answer_inputs(conditioner, [CONVERSATION, Conversation((("Why?", "so"),))])
    learnt = [conditioner.tokenizer.decode(row[row != IGNORED]) for row in labels]
    assert learnt == ["three<|im_end|>red<|im_end|>", "so<|im_end|>"]
    assert torch.equal(labels[labels != IGNORED], inputs.ids[labels != IGNORED])
    assert (inputs.ids[0] == conditioner.image_token).sum() > 0


def test_questions_have_the_system_text_of_questions() -> None:
    text = "".join(part for part, _ in pieces(CONVERSATION))
    assert SYSTEM in text
    assert chat_text("").split(IM_END)[0] not in text


def test_the_loss_of_answers_is_a_sum_that_batches_add_up_to(conditioner: Conditioner) -> None:
    both = [CONVERSATION, Conversation((("Why?", "so it is"),))]
    total, count = answer_loss(conditioner.mllm, *answer_inputs(conditioner, both))
    alone = [answer_loss(conditioner.mllm, *answer_inputs(conditioner, [one])) for one in both]
    assert count == sum(number for _, number in alone)
    torch.testing.assert_close(total, sum(one for one, _ in alone), atol=1e-4, rtol=1e-5)


def test_conversations_that_cannot_be_learnt_are_one_message(conditioner: Conditioner) -> None:
    with pytest.raises(SequenceError, match="at most 20"):
        answer_inputs(conditioner, [CONVERSATION], max_tokens=20)
    with pytest.raises(ConfigError, match="an answer to each"):
        answer_inputs(conditioner, [Conversation((("Why?", " "),))])
    with pytest.raises(ConfigError, match="name 1 images"):
        answer_inputs(conditioner, [Conversation((("<image>?", "a"),))])


@pytest.mark.parametrize("change", ["missing", "unexpected", "mismatched"])
def test_a_language_model_that_does_not_fit_is_not_loaded(tmp_path: Path, change: str) -> None:
    """A conversion that matches no name must not leave stock or random weights in place."""
    copy = Path(shutil.copytree(omnigen2.GOLDEN / "mllm", tmp_path / "mllm"))
    weights = load_file(copy / "model.safetensors")
    if change != "unexpected":
        norm = weights.pop("model.norm.weight")
    if change != "missing":
        weights["model.norm.weight" if change == "mismatched" else "model.norm.scale"] = torch.ones(7)
    save_file(weights, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(ConfigError, match=f"{change}|cannot be read|size mismatch"):
        load_mllm(copy)
    assert change == "unexpected" or len(norm) == 32
