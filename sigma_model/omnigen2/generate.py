"""Images and answers of an OmniGen2 model for the requests that BAGEL's generation takes, too."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image as Pillow
from torch import Tensor

from sigma_data.errors import ConfigError
from sigma_data.instruction import Attribute, Placeholder, parse
from sigma_data.version import sigma_version
from sigma_model.omnigen2.answers import SYSTEM as ANSWER_SYSTEM
from sigma_model.omnigen2.attribute_tokens import among_states, attribute_ids, bound_tokens
from sigma_model.omnigen2.conditioning import Prompt
from sigma_model.omnigen2.config import MAX_REFERENCES
from sigma_model.omnigen2.images import open_image, output_sizes, pixels
from sigma_model.omnigen2.loading import LoadedOmnigen2
from sigma_model.omnigen2.pack import Bound
from sigma_model.omnigen2.prompts import IM_END, IM_START, VISION
from sigma_model.omnigen2.sampler import SamplingRequest, Step, sample
from sigma_model.omnigen2.settings import Omnigen2Generation
from sigma_model.sampling.generate import Preview, Request, noise_seed, to_image
from sigma_model.sampling.settings import MAX_TOKENS, TEMPERATURE

_ORDINALS = ("first", "second", "third", "fourth", "fifth")


def plain_prompt(text: str, references: int | Sequence[int], *, attributes: bool = False) -> str:
    """A prompt in the words that OmniGen2 knows: `<image_2>` is "the second image", of one reference "the image".

    `references` are their numbers in order, or how many there are, numbered from 1. Attribute tokens are left out
    unless `attributes`. Raises ConfigError for an empty prompt and for an image that is not there.
    """
    numbers = list(range(1, references + 1)) if isinstance(references, int) else list(references)
    words = []
    for part in parse(text, references=len(numbers)).parts:
        if isinstance(part, Attribute):
            words += [f"<{part.name}>"] if attributes else []
        elif isinstance(part, Placeholder):
            if part.number not in numbers:
                raise ConfigError(f"<image_{part.number}> in the prompt: there are {len(numbers)} references")
            place = numbers.index(part.number)
            if place >= len(_ORDINALS):
                raise ConfigError(f"{len(numbers)} reference images: OmniGen2 takes at most {MAX_REFERENCES}")
            words.append("the image" if len(numbers) == 1 else f"the {_ORDINALS[place]} image")
        else:
            words.append(part.text)
    found = "".join(words) if len(words) == 1 else " ".join(" ".join(words).split())
    if not found.strip():
        raise ConfigError("the prompt is empty: say what to make")
    return found


def check_request(request: Request) -> None:
    """Raises ConfigError for what cannot be computed, before a model is loaded."""
    if len(request.images) > MAX_REFERENCES:
        raise ConfigError(f"{len(request.images)} reference images: OmniGen2 takes at most {MAX_REFERENCES}")
    if request.before:
        raise ConfigError("OmniGen2 makes an image of one instruction: earlier turns are not taken")
    plain_prompt(request.prompt, len(request.images))


@torch.no_grad()
def generate_images(
    loaded: LoadedOmnigen2,
    requests: Sequence[Request],
    settings: Omnigen2Generation | None = None,
    *,
    progress: Callable[[int, int], None] | None = None,
    preview: Preview | None = None,
) -> list[Pillow.Image]:
    """An image for each request; sizes and numbers of references may differ. A preview shows the noisy latents.

    The noise is drawn from a request's seed and name, and references are encoded as the means of their posteriors: so
    the seed alone decides. Raises SigmaError for what cannot be used, before anything is computed.
    """
    settings = settings or Omnigen2Generation()
    sampling = replace(
        settings.sampling, dynamic_time_shift=settings.sampling.dynamic_time_shift and loaded.dynamic_time_shift
    )
    sampling.check()
    for request in requests:
        check_request(request)
    shown = [[open_image(data, name) for data, name in named_images(request)] for request in requests]
    route, rule = settings.route, loaded.rule
    sizes = [
        output_sizes(request.size, [rule.size(*image.size) for image in images], rule=rule)
        for request, images in zip(requests, shown, strict=True)
    ]
    own = attribute_ids(loaded.conditioner.tokenizer)
    prompts = [
        Prompt(plain_prompt(request.prompt, len(images), attributes=bool(own)), tuple(images))
        for request, images in zip(requests, shown, strict=True)
    ]
    # One by one: a prompt's states do not depend on the padding of others' then, to the last bit.
    states = [loaded.conditioner.encode([prompt], route)[0] for prompt in prompts]
    negative = loaded.conditioner.encode([Prompt(settings.negative)], route)[0]
    made = []
    for request, prompt, images, text, (size, _) in zip(requests, prompts, shown, states, sizes, strict=True):
        views = [pixels(image, rule, colour_map=number in request.masks) for number, image in enumerate(images, 1)]
        references = tuple(loaded.vae.encode(views)) if route.has_latents else ()
        generator = torch.Generator().manual_seed(noise_seed(request.seed, request.name))
        stride = loaded.vae.config.downsample
        shape = (loaded.transformer.config.in_channels, size[1] // stride, size[0] // stride)
        bound: Bound = ()
        if own and settings.group_mask:
            ids = loaded.conditioner.inputs([prompt], route).ids[0].tolist()
            numbers = range(1, len(images) + 1)
            bound = bound_tokens(ids, own, request.prompt, numbers, dict(request.bindings))
            bound = among_states(bound, ids, loaded.conditioner.image_token, route)
        made.append(SamplingRequest(text, negative, torch.randn(shape, generator=generator), references, bound))

    def decode(latents: Sequence[Tensor]) -> list[Pillow.Image]:
        decoded = loaded.vae.decode(latents)
        return [to_image(_stretched(one, final)) for one, (_, final) in zip(decoded, sizes, strict=True)]

    def watch(step: Step) -> None:
        if preview is not None:
            preview(lambda: decode(step.latents))
        if progress is not None:
            progress(step.number + 1, sampling.steps)

    latents = sample(loaded.transformer, made, sampling, watch=watch)
    if not all(bool(one.isfinite().all()) for one in latents):
        raise ConfigError(
            f"{loaded.name}: the sampler ended in numbers that are not finite: use weaker guidance, --dtype float32, "
            "or other weights"
        )
    return decode(latents)


@torch.no_grad()
def generate_texts(
    loaded: LoadedOmnigen2,
    requests: Sequence[Request],
    *,
    max_tokens: int = MAX_TOKENS,
    temperature: float = TEMPERATURE,
) -> list[str]:
    """An answer to each question, by the language model alone; images stand before the question.

    Raises SigmaError for what cannot be used.
    """
    if max_tokens < 1 or temperature < 0:
        raise ConfigError("an answer needs at least one token and a temperature of 0 or more")
    return [_answer(loaded, request, max_tokens, temperature) for request in requests]


def _answer(loaded: LoadedOmnigen2, request: Request, max_tokens: int, temperature: float) -> str:
    conditioner = loaded.conditioner
    images = [open_image(data, name) for data, name in named_images(request)]
    question = plain_prompt(request.prompt, len(images))
    conditioner.refuse_control(question)
    before = "".join(
        f"{IM_START}user\n{turn.instruction}{IM_END}\n{IM_START}assistant\n{turn.response or ''}{IM_END}\n"
        for turn in request.before
    )
    text = (
        f"{IM_START}system\n{ANSWER_SYSTEM}{IM_END}\n{before}{IM_START}user\n{VISION * len(images)}{question}{IM_END}\n"
        f"{IM_START}assistant\n"
    )
    ids = said(loaded, request, text, images, stops=(IM_END,), max_tokens=max_tokens, temperature=temperature)
    found: str = conditioner.tokenizer.decode(ids, skip_special_tokens=True)
    return found.strip()


def said(
    loaded: LoadedOmnigen2,
    request: Request,
    text: str,
    images: Sequence[Pillow.Image],
    *,
    stops: Sequence[str],
    max_tokens: int,
    temperature: float,
) -> list[int]:
    """Ids that the language model goes on with after `text`, up to and with one of the tokens `stops`.

    What is drawn at a temperature above 0 is decided by the request's seed and name.
    """
    conditioner = loaded.conditioner
    patches, grids, counts = conditioner.patches(images)
    inputs = conditioner.padded([conditioner.token_ids(text, iter(counts))], patches, grids).to(loaded.device)
    tokenizer = conditioner.tokenizer
    vocabulary = tokenizer.get_vocab()
    with torch.random.fork_rng():
        torch.manual_seed(noise_seed(request.seed, request.name))
        ids: Tensor = conditioner.mllm.generate(
            **inputs.arguments(conditioner.mllm),
            max_new_tokens=max_tokens,
            do_sample=temperature > 0,
            **({"temperature": temperature} if temperature > 0 else {}),
            eos_token_id=[vocabulary[one] for one in stops if one in vocabulary],
            pad_token_id=tokenizer.pad_token_id or 0,
        )
    found: list[int] = ids[0, inputs.ids.shape[1] :].tolist()
    return found


def describe(
    loaded: LoadedOmnigen2, request: Request, settings: Omnigen2Generation, size: tuple[int, int]
) -> dict[str, Any]:
    """All that an image was made from; references by name and hash, never by path."""
    return {
        "prompt": request.prompt,
        "pictures": [
            {"name": Path(name).name, "sha256": hashlib.sha256(data).hexdigest()}
            for data, name in named_images(request)
        ],
        "size": list(size),
        "seed": request.seed,
        "name": request.name,
        **settings.sampling.recorded,
        "negative": settings.negative,
        "route": settings.route.value,
        "model": loaded.name,
        "trained": loaded.trained,
        "dtype": loaded.numbers,
        "device": loaded.device.type,
        "torch": torch.__version__,
        "sigma": sigma_version(),
    }


def named_images(request: Request) -> Iterator[tuple[bytes, str]]:
    """A request's images, with what error messages call them."""
    names = request.names or [f"image {number}" for number in range(1, len(request.images) + 1)]
    return zip(request.images, names, strict=True)


def _stretched(image: Tensor, size: tuple[int, int]) -> Tensor:
    """[3, h, w] -> the same at (width, height), bilinear."""
    if image.shape[1:] == size[::-1]:
        return image
    return F.interpolate(image[None].float(), size=size[::-1], mode="bilinear", align_corners=False)[0]
