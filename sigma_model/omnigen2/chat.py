"""OmniGen2's chat: the language model answers in words, or says `<|img|>`, upon which an image is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from PIL import Image as Pillow

from sigma_data.errors import ConfigError
from sigma_model.omnigen2.generate import check_request, generate_images, named_images, plain_prompt, said
from sigma_model.omnigen2.images import open_image
from sigma_model.omnigen2.loading import LoadedOmnigen2
from sigma_model.omnigen2.prompts import DRAW, END, IM_END, Route, chat_text
from sigma_model.omnigen2.settings import Omnigen2Generation
from sigma_model.sampling.generate import Preview, Request
from sigma_model.sampling.settings import TEMPERATURE

CHAT_TOKENS = 256
"""The most tokens of an answer, as released."""


@dataclass(frozen=True)
class Reply:
    """What a request got: an image where the model chose to draw, otherwise `text`."""

    text: str
    image: Pillow.Image | None = None


@torch.no_grad()
def chat(
    loaded: LoadedOmnigen2,
    requests: Sequence[Request],
    settings: Omnigen2Generation | None = None,
    *,
    max_tokens: int = CHAT_TOKENS,
    temperature: float = TEMPERATURE,
    preview: Preview | None = None,
) -> list[Reply]:
    """Ask, and draw for each request whose answer begins with `<|img|>`, as the release does.

    Images go to the language model, and as latents to the transformer: the route is `both`, whatever `settings` say.
    Raises SigmaError for what cannot be used, ConfigError for a tokenizer without that token.
    """
    if max_tokens < 1 or temperature < 0:
        raise ConfigError("an answer needs at least one token and a temperature of 0 or more")
    for request in requests:
        check_request(request)
    draw = draw_token(loaded)
    answers = [_answer(loaded, request, max_tokens, temperature) for request in requests]
    drawn = [number for number, ids in enumerate(answers) if ids[:1] == [draw]]
    routed = replace(settings or Omnigen2Generation(), route=Route.BOTH)
    made = generate_images(loaded, [requests[number] for number in drawn], routed, preview=preview) if drawn else []
    images = dict(zip(drawn, made, strict=True))
    decode = loaded.conditioner.tokenizer.decode
    return [
        Reply("" if number in images else decode(ids, skip_special_tokens=True).strip(), images.get(number))
        for number, ids in enumerate(answers)
    ]


def draw_token(loaded: LoadedOmnigen2) -> int:
    """The id of `<|img|>`. Raises ConfigError for a tokenizer without it, e.g. that of plain Qwen2.5-VL."""
    found = loaded.conditioner.tokenizer.get_vocab().get(DRAW)
    if found is None:
        raise ConfigError(
            f"{loaded.name}: its tokenizer has no {DRAW}, by which the model says that it draws: leave out --chat, or "
            "use the processor of OmniGen2's release"
        )
    return int(found)


def _answer(loaded: LoadedOmnigen2, request: Request, max_tokens: int, temperature: float) -> list[int]:
    images = [open_image(data, name) for data, name in named_images(request)]
    prompt = plain_prompt(request.prompt, len(images))
    loaded.conditioner.refuse_control(prompt)
    text = chat_text(prompt, len(images))
    stops = (IM_END, DRAW, END)
    return said(loaded, request, text, images, stops=stops, max_tokens=max_tokens, temperature=temperature)
