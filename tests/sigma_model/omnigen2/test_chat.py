"""Chat: the language model answers in words, or says `<|img|>` first, and then an image is drawn, on the route `both`."""

from __future__ import annotations

import copy
import io
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import cli
from sigma_data.errors import ConfigError
from sigma_model import Model, Omnigen2Generation, Omnigen2Sampling, load
from sigma_model.omnigen2.chat import draw_token
from sigma_model.omnigen2.conditioning import hidden_states
from sigma_model.omnigen2.loading import LoadedOmnigen2
from sigma_model.omnigen2.prompts import DRAW, IM_END, Route, chat_text
from sigma_model.sampling.generate import Request

pytestmark = pytest.mark.slow
QUICK = Omnigen2Generation(Omnigen2Sampling(steps=2))
PROMPT = "Draw a cup"


def parts(model: Model) -> LoadedOmnigen2:
    assert isinstance(model.parts, LoadedOmnigen2)
    return model.parts


def last_state(loaded: LoadedOmnigen2, prompt: str, *images: bytes) -> torch.Tensor:
    """What the first token of the answer is told by."""
    shown = [Image.open(io.BytesIO(data)) for data in images]
    patches, grids, counts = loaded.conditioner.patches(shown)
    ids = loaded.conditioner.token_ids(chat_text(prompt, len(images)), iter(counts))
    return hidden_states(loaded.conditioner.mllm, loaded.conditioner.padded([ids], patches, grids))[0, -1]


def that_says(model: Model, token: str, prompt: str, *images: bytes, not_after: str | None = None) -> Model:
    """The same model, whose likeliest token after this prompt is `token`: its row points where the state does.

    And where that of the prompt `not_after` does not.
    """
    loaded = copy.deepcopy(parts(model))
    with torch.no_grad():
        state = last_state(loaded, prompt, *images)
        if not_after is not None:
            other = last_state(loaded, not_after)
            state = state - other * (state @ other) / (other @ other)
        head = loaded.conditioner.mllm.lm_head
        head.weight = torch.nn.Parameter(head.weight.clone())  # tied to the embeddings, which must stay as they are
        head.weight[loaded.conditioner.tokenizer.get_vocab()[token]] = 10_000 * state
    return Model(loaded)


def png(colour: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (48, 32), colour).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_model_that_says_the_image_token_draws_what_the_route_both_draws(model: Model) -> None:
    drawing = that_says(model, DRAW, PROMPT, png("red"))
    reply = drawing.chat(PROMPT, [png("red")], seed=3, settings=QUICK)
    assert reply.text == ""
    assert reply.image is not None
    expected = model.generate(PROMPT, [png("red")], seed=3, settings=replace(QUICK, route=Route.BOTH))
    assert reply.image.tobytes() == expected.tobytes()
    assert reply.image.tobytes() != model.generate(PROMPT, [png("red")], seed=3, settings=QUICK).tobytes()


def test_a_model_that_does_not_say_it_answers_in_words_and_draws_nothing(model: Model) -> None:
    reply = that_says(model, "a", PROMPT).chat(PROMPT, settings=QUICK, max_tokens=4)
    assert reply.image is None
    assert reply.text.startswith("a")
    silent = that_says(model, IM_END, PROMPT).chat(PROMPT, settings=QUICK)
    assert (silent.text, silent.image) == ("", None)


def test_each_of_several_requests_gets_its_own(model: Model) -> None:
    from sigma_model.omnigen2.chat import chat

    drawing = parts(that_says(model, DRAW, PROMPT, not_after="What is it?"))
    requests = [Request("What is it?", seed=1), Request(PROMPT, size=(32, 32), seed=2)]
    words, drawn = chat(drawing, requests, QUICK, max_tokens=3)
    assert words.image is None
    assert drawn.image is not None and drawn.image.size == (32, 32)


def test_a_tokenizer_without_the_token_and_what_does_not_go_with_chat_are_refused(model: Model, tmp_path: Path) -> None:
    loaded = copy.copy(parts(model))
    conditioner = copy.copy(loaded.conditioner)
    conditioner.tokenizer = type("Plain", (), {"get_vocab": lambda _: {"a": 0}})()
    with pytest.raises(ConfigError, match="no <|img|>"):
        draw_token(replace(loaded, conditioner=conditioner))
    with pytest.raises(ConfigError, match="at most 5"):
        model.chat(PROMPT, [png("red")] * 6)
    with pytest.raises(ConfigError, match="control token"):
        model.chat(f"{DRAW} a cup")
    with pytest.raises(ConfigError, match="chat is for OmniGen2"):
        load("tiny", device="cpu").chat(PROMPT)


def test_the_command_prints_words_or_writes_the_image(
    directory: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["generate", PROMPT, "-m", str(directory), "--device", "cpu", "--chat", "--steps", "2", "--size", "32x32",
             "--max-tokens", "3", "-o", str(tmp_path / "out.png")]  # fmt: skip
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.exception
    assert not (tmp_path / "out.png").exists()
    drawing = parts(that_says(model, DRAW, PROMPT))
    monkeypatch.setattr("pipelines.common.answerer.load_omnigen2", lambda *_, **__: drawing)
    result = CliRunner().invoke(cli.app, words)
    assert result.exit_code == 0, result.exception
    assert result.stdout.strip() == str(tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as made:
        assert made.size == (32, 32)
        assert '"route": "both"' in made.text["sigma"]


@pytest.mark.parametrize(
    ("more", "told"),
    [
        (["--text"], "leave --text out"),
        (["--route", "vae"], "not by vae"),
        (["-m", "tiny"], "for OmniGen2 models alone"),
    ],
)
def test_options_that_do_not_go_with_chat(directory: Path, more: list[str], told: str, tmp_path: Path) -> None:
    given = ["generate", PROMPT, "-m", str(directory), "--chat", "-o", str(tmp_path / "out.png"), *more]
    result = CliRunner().invoke(cli.app, given)
    assert isinstance(result.exception, ConfigError)
    assert told in str(result.exception)
