"""`sigma generate`: a prompt and its images in, an image or a text out.

Requests of different sizes and different numbers of references run as one batch. Every request draws
from a generator of its own, so its image depends on what else is asked for by rounding alone.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image as Pillow
from PIL import PngImagePlugin
from torch import Tensor

from sigma_data.errors import ConfigError, SigmaError
from sigma_data.images.decode import ImageFault, probe
from sigma_data.loading.batch import Item
from sigma_data.loading.decode_sample import decode_content
from sigma_data.sample import Turn
from sigma_data.sequence.guidance_layouts import text_first, without_references, without_text
from sigma_data.sequence.layout import Geometry, Segment, layout
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_data.storage.files import disk_error, with_temporary
from sigma_data.version import sigma_version
from sigma_model.loading import LoadedModel
from sigma_model.sampling.context import Context
from sigma_model.sampling.prompt_check import check_prompt
from sigma_model.sampling.sampler import sample_latents
from sigma_model.sampling.settings import MAX_TOKENS, TEMPERATURE, Order, SamplingSettings
from sigma_model.sampling.text_decoder import decode_text
from sigma_model.vae import from_tokens

METADATA_KEY = "sigma"
"""The PNG text chunk that says how an image was made, as JSON."""

Preview = Callable[[Callable[[], list[Pillow.Image]]], None]
"""Called after every step with a function that decodes the images as they are estimated then (a pass of the VAE)."""


@dataclass(frozen=True)
class Request:
    """What to make: a prompt with <image_1> ... for `images`, encoded; `names` are for errors.

    `bindings` are as in `Turn`. `before` are the turns that came before, each with its answer; the images that they
    produced are among `images`. `masks` are the numbers of the images that are maps of labels.
    `size` (width, height) is brought to the nearest that the model makes; None takes the last
    image's, or a square as large as the model makes where there is none. The noise is drawn from
    (`seed`, `name`).
    """

    prompt: str
    images: Sequence[bytes] = ()
    names: Sequence[str] = ()
    size: tuple[int, int] | None = None
    seed: int = 0
    name: str = ""
    order: Order = Order.INTERLEAVED
    bindings: tuple[tuple[int, int], ...] = ()
    before: tuple[Turn, ...] = ()
    masks: frozenset[int] = frozenset()


def generate_images(
    bundle: LoadedModel,
    requests: Sequence[Request],
    settings: SamplingSettings,
    *,
    progress: Callable[[int, int], None] | None = None,
    preview: Preview | None = None,
) -> list[Pillow.Image]:
    """An image for each request.

    What `progress(done, all)` and `preview` raise ends the sampling. Raises SigmaError for a prompt or an image that
    cannot be used, before anything is computed.
    """
    settings.check()
    laid_out = [lay_out(request, bundle.tokenizer, bundle.geometry, answer=True) for request in requests]
    branches, noise = [], []
    for request, segments in zip(requests, laid_out, strict=True):
        item = _item(segments, request, bundle)
        views = (tuple(segments), without_text(segments), without_references(segments))
        branches.append([Context(view, item) for view in views])
        generator = torch.Generator().manual_seed(noise_seed(request.seed, request.name))
        shape = (segments[-1].inner, bundle.model.config.latent.features)
        noise.append(torch.randn(shape, generator=generator))
    patch = bundle.model.config.latent.patch_size
    grids = [segments[-1].grid for segments in laid_out]

    def decode(tokens: Sequence[Tensor]) -> list[Pillow.Image]:
        latents = [from_tokens(one, *grid, patch) for one, grid in zip(tokens, grids, strict=True)]
        return [to_image(pixels) for pixels in bundle.vae.decode(latents)]

    tokens = sample_latents(
        bundle.model,
        branches,
        noise,
        bundle.tokenizer,
        steps=settings.steps,
        timestep_shift=settings.timestep_shift,
        guidance=settings.guidance,
        group_mask=settings.group_mask,
        progress=progress,
        watch=None if preview is None else lambda estimate: preview(lambda: decode(estimate)),
        solver=settings.sampler,
        cache=settings.cache,
        guidance_threshold=settings.guidance_threshold,
    )
    if not all(bool(one.isfinite().all()) for one in tokens):
        raise ConfigError(
            f"{bundle.name}: the sampler ended in numbers that are not finite: use weaker guidance, "
            "--dtype float32, or other weights"
        )
    return decode(tokens)


def generate_texts(
    bundle: LoadedModel,
    requests: Sequence[Request],
    *,
    max_tokens: int = MAX_TOKENS,
    temperature: float = TEMPERATURE,
    group_mask: bool = True,
    progress: Callable[[int, int], None] | None = None,
) -> list[str]:
    """A text for each request; `size` is not used. `progress(done, most)` counts tokens.

    Raises SigmaError as `generate_images` does.
    """
    if max_tokens < 1 or temperature < 0:
        raise ConfigError("an answer needs at least one token and a temperature of 0 or more")
    contexts = []
    most = bundle.geometry.max_tokens
    for request in requests:
        segments = lay_out(request, bundle.tokenizer, bundle.geometry, answer=False)
        length = sum(segment.length for segment in segments)
        if length + max_tokens > most:
            raise ConfigError(
                f"the question takes {length:,} tokens and the answer up to {max_tokens:,}, and the model takes "
                f"{most:,} in all: use a smaller --max-tokens, or a shorter question"
            )
        contexts.append(Context(segments, _item(segments, request, bundle)))
    found = decode_text(
        bundle.model,
        contexts,
        bundle.tokenizer,
        max_tokens=max_tokens,
        temperature=temperature,
        seeds=[noise_seed(request.seed, request.name) for request in requests],
        group_mask=group_mask,
        progress=progress,
    )
    return [bundle.tokenizer.decode(ids).strip() for ids in found]


def noise_seed(seed: int, name: str) -> int:
    """The seed of one request's generator: the first 63 bits of SHA-256 over both."""
    digest = hashlib.sha256(f"{seed}\x1f{name}".encode("utf-8", "surrogatepass")).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def write_image(
    image: Pillow.Image, out: Path, bundle: LoadedModel, request: Request, settings: SamplingSettings
) -> None:
    """Write a PNG that says how it was made. Raises BuildError where the disk refuses."""
    write_png(image, out, describe(bundle, request, settings, image.size))


def write_png(image: Pillow.Image, out: Path, about: dict[str, Any]) -> None:
    """Write a PNG with what is known `about` it. Raises BuildError where the disk refuses."""
    info = PngImagePlugin.PngInfo()
    info.add_itxt(METADATA_KEY, json.dumps(about))  # ASCII: a name may be no Unicode

    def save(temporary: Path) -> None:
        image.save(temporary, "PNG", pnginfo=info)

    try:
        with_temporary(out, save)
    except OSError as error:
        raise disk_error(error, out) from None


def describe(
    bundle: LoadedModel, request: Request, settings: SamplingSettings, size: tuple[int, int]
) -> dict[str, Any]:
    """All that an image was made from; images by name and hash, never by path."""
    return {
        "prompt": request.prompt,
        "pictures": [
            {"name": Path(name).name, "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in zip(request.names or [""] * len(request.images), request.images, strict=True)
        ],
        "size": list(size),
        "seed": request.seed,
        "name": request.name,
        "order": request.order.value,
        **settings.recorded,
        "understanding": bundle.geometry.vit is not None,
        "model": bundle.name,
        "trained": bundle.trained,
        "dtype": bundle.numbers,
        "device": bundle.device.type,
        "torch": torch.__version__,
        "sigma": sigma_version(),
    }


def lay_out(request: Request, tokenizer: Tokenizer, geometry: Geometry, *, answer: bool) -> tuple[Segment, ...]:
    """The layout of a request, the image to be made last (`answer`).

    Raises SigmaError for a prompt or an image that cannot be used.
    """
    check_prompt(request.prompt, len(request.images))
    sizes = {}
    for number, data in enumerate(request.images, 1):
        try:
            facts = probe(data)
        except ImageFault as fault:
            name = request.names[number - 1] if request.names else f"image {number}"
            raise ConfigError(f"{name}: {fault.message}") from None
        sizes[number] = (facts.width, facts.height)
    target = len(sizes) + 1 if answer else None
    if target is not None:
        side = geometry.vae.max_size
        sizes[target] = request.size or sizes.get(len(request.images)) or (side, side)
    turn = Turn(request.prompt, target=target, bindings=request.bindings)
    try:
        segments = layout((*request.before, turn), sizes, tokenizer, geometry)
        return text_first(segments) if request.order is Order.TEXT_FIRST else segments
    except SigmaError as error:
        raise ConfigError(f"{request.name}: {error}" if request.name else str(error)) from None


def _item(segments: Sequence[Segment], request: Request, bundle: LoadedModel) -> Item:
    vision = bundle.model.config.vision
    data: dict[int, bytes | None] = dict(enumerate(request.images, 1))
    patch = vision.patch_size if vision is not None else 0
    content = decode_content(segments, data, patch=patch, masks=request.masks)
    numbers = list(content.images)
    images = [torch.from_numpy(content.images[number]).to(bundle.device) for number in numbers]
    latents = bundle.vae.encode(images)
    return Item(
        segments,
        latents=dict(zip(numbers, latents, strict=True)),
        patches={number: torch.from_numpy(patches) for number, patches in content.patches.items()},
    )


def to_image(pixels: Tensor) -> Pillow.Image:
    """[3, h, w] in [-1, 1] -> an image."""
    levels = (pixels.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    return Pillow.fromarray(levels.permute(1, 2, 0).cpu().numpy())
