"""`sigma generate`: a prompt and its pictures in, a picture or a text out.

Requests of different sizes and different numbers of references run as one batch. Every request draws
from a generator of its own, so its picture does not depend on what else is asked for.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypeVar

import torch
from PIL import Image as Pillow
from PIL import PngImagePlugin
from torch import Tensor

from pipelines.bundle import Bundle, DType, load_bundle
from pipelines.progress import Pass
from sigma_data.batch import Item
from sigma_data.content import decode_content
from sigma_data.errors import ConfigError, SigmaError
from sigma_data.files import disk_error, with_temporary
from sigma_data.images import ImageFault, probe
from sigma_data.instruction import ATTRIBUTES, parse
from sigma_data.sample import Family, Image, Sample, Source, Turn
from sigma_data.sequence import Segment, layout, without_references, without_text
from sigma_model.generate import Context, decode_text, sample_latents
from sigma_model.guidance import Guidance, Rescale
from sigma_model.latents import from_tokens

METADATA_KEY = "sigma"
"""The PNG text chunk that says how a picture was made, as JSON."""


@dataclass(frozen=True)
class Request:
    """What to make: a prompt with <image_1> ... for `pictures`, encoded; `names` are for errors.

    `size` (width, height) is brought to the nearest that the model makes; None takes the last
    picture's, or a square as large as the model makes where there is none. The noise is drawn from
    (`seed`, `name`).
    """

    prompt: str
    pictures: Sequence[bytes] = ()
    names: Sequence[str] = ()
    size: tuple[int, int] | None = None
    seed: int = 0
    name: str = ""


@dataclass(frozen=True)
class Settings:
    """How to sample. The defaults are SIGMA's (arXiv 2602.07564)."""

    steps: int = 50
    timestep_shift: float = 3.0
    guidance: Guidance = field(default_factory=Guidance)
    group_mask: bool = True

    def check(self) -> None:
        """Raises ConfigError for values that make no sense."""
        low, high = self.guidance.interval
        if self.steps < 2:
            raise ConfigError(f"{self.steps} steps: at least 2 are needed, for they count noise levels")
        if not self.timestep_shift > 0:
            raise ConfigError(f"a timestep shift of {self.timestep_shift}: it must be greater than 0")
        if not 0 <= low <= high <= 1:
            raise ConfigError(f"a guidance interval from {low} to {high}: it must lie in 0 to 1, the lower one first")


def make_pictures(
    bundle: Bundle,
    requests: Sequence[Request],
    settings: Settings,
    *,
    progress: Callable[[int, int], None] | None = None,
) -> list[Pillow.Image]:
    """A picture for each request.

    Raises SigmaError for a prompt or a picture that cannot be used, before anything is computed.
    """
    settings.check()
    samples = [_sample(request, bundle, answer=True) for request in requests]
    branches, noise = [], []
    for request, (segments, data) in zip(requests, samples, strict=True):
        item = _item(segments, data, bundle)
        views = (tuple(segments), without_text(segments), without_references(segments))
        branches.append([Context(view, item) for view in views])
        generator = torch.Generator().manual_seed(noise_seed(request.seed, request.name))
        shape = (segments[-1].length - 2, bundle.model.config.latent.features)
        noise.append(torch.randn(shape, generator=generator))
    tokens = sample_latents(
        bundle.model,
        branches,
        noise,
        bundle.encoder,
        steps=settings.steps,
        timestep_shift=settings.timestep_shift,
        guidance=settings.guidance,
        group_mask=settings.group_mask,
        progress=progress,
    )
    patch = bundle.model.config.latent.patch_size
    grids = [segments[-1].grid for segments, _ in samples]
    latents = [from_tokens(one, *grid, patch) for one, grid in zip(tokens, grids, strict=True)]
    return [_to_picture(pixels) for pixels in bundle.vae.decode(latents)]


def answer_in_words(
    bundle: Bundle,
    requests: Sequence[Request],
    *,
    max_tokens: int = 512,
    temperature: float = 0.0,
    group_mask: bool = True,
) -> list[str]:
    """A text for each request; `size` is not used. Raises SigmaError as `make_pictures` does."""
    if max_tokens < 1 or temperature < 0:
        raise ConfigError("an answer needs at least one token and a temperature of 0 or more")
    contexts = []
    for request in requests:
        segments, data = _sample(request, bundle, answer=False)
        contexts.append(Context(segments, _item(segments, data, bundle)))
    found = decode_text(
        bundle.model,
        contexts,
        bundle.encoder,
        max_tokens=max_tokens,
        temperature=temperature,
        seeds=[noise_seed(request.seed, request.name) for request in requests],
        group_mask=group_mask,
    )
    return [bundle.encoder.decode(ids).strip() for ids in found]


def noise_seed(seed: int, name: str) -> int:
    """The seed of one request's generator: the first 63 bits of SHA-256 over both."""
    digest = hashlib.sha256(f"{seed}\x1f{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def write_picture(picture: Pillow.Image, out: Path, bundle: Bundle, request: Request, settings: Settings) -> None:
    """Write a PNG that says how it was made. Raises BuildError where the disk refuses."""
    info = PngImagePlugin.PngInfo()
    about = json.dumps(describe(bundle, request, settings, picture.size), ensure_ascii=False)
    info.add_itxt(METADATA_KEY, about)

    def save(temporary: Path) -> None:
        picture.save(temporary, "PNG", pnginfo=info)

    try:
        with_temporary(out, save)
    except OSError as error:
        raise disk_error(error, out) from None


def describe(bundle: Bundle, request: Request, settings: Settings, size: tuple[int, int]) -> dict[str, Any]:
    """All that a picture was made from; pictures by name and hash, never by path."""
    return {
        "prompt": request.prompt,
        "pictures": [
            {"name": Path(name).name, "sha256": hashlib.sha256(data).hexdigest()}
            for name, data in zip(request.names or [""] * len(request.pictures), request.pictures, strict=True)
        ],
        "size": list(size),
        "seed": request.seed,
        "name": request.name,
        **asdict(settings),
        "understanding": bundle.geometry.vit is not None,
        "model": bundle.name,
        "trained": bundle.trained,
        "dtype": str(bundle.model.dtype).removeprefix("torch."),
        "device": bundle.device.type,
        "torch": torch.__version__,
        "sigma": _version(),
    }


def read_pictures(paths: Sequence[Path]) -> list[bytes]:
    """The bytes of picture files. Raises ConfigError naming the file."""
    found = []
    for path in paths:
        try:
            found.append(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: the picture cannot be read ({error.strerror or error})") from None
    return found


def parse_size(text: str | None) -> tuple[int, int] | None:
    """'1024x768' -> (1024, 768). Raises ConfigError."""
    if text is None:
        return None
    width, cross, height = text.lower().partition("x")
    if not cross or not width.isdecimal() or not height.isdecimal() or not int(width) or not int(height):
        raise ConfigError(f"--size {text}: write WIDTHxHEIGHT in pixels, as in 1024x768")
    return int(width), int(height)


def check_prompt(prompt: str, pictures: int) -> None:
    """Raises ConfigError for what would reach the model as nonsense."""
    if not prompt.strip():
        raise ConfigError("the prompt is empty: say what to make")
    found = parse(prompt, pictures=pictures)
    if found.unknown:
        word = found.unknown[0].strip("<>/ ").lower()
        close = difflib.get_close_matches(word, [*ATTRIBUTES, "identity", "image"], 1)
        meant = f": did you mean <{close[0]}>?" if close else f"; those are {', '.join(f'<{a}>' for a in ATTRIBUTES)}"
        raise ConfigError(f"{found.unknown[0]} in the prompt is no attribute token{meant}")
    if found.control:
        raise ConfigError(f"{found.control[0]} in the prompt is a control token of the tokenizer: leave it out")


def _sample(request: Request, bundle: Bundle, *, answer: bool) -> tuple[tuple[Segment, ...], dict[int, bytes | None]]:
    """The layout of a request, with the picture to be made last (`answer`), and its pictures' bytes."""
    check_prompt(request.prompt, len(request.pictures))
    sizes = {}
    for number, data in enumerate(request.pictures, 1):
        try:
            facts = probe(data)
        except ImageFault as fault:
            name = request.names[number - 1] if request.names else f"picture {number}"
            raise ConfigError(f"{name}: {fault.message}") from None
        sizes[number] = (facts.width, facts.height)
    target = len(sizes) + 1 if answer else None
    if target is not None:
        side = bundle.geometry.vae.max_size
        sizes[target] = request.size or sizes.get(len(request.pictures)) or (side, side)
    images = tuple(Image(number, None) for number in sizes)
    turn = Turn(request.prompt, target=target)
    sample = Sample("request", Family.COMPOSITIONAL, images, (turn,), Source("request", "", 0))
    try:
        segments = layout(sample, sizes, bundle.encoder, bundle.geometry)
    except SigmaError as error:
        raise ConfigError(f"{request.name}: {error}" if request.name else str(error)) from None
    return segments, dict(enumerate(request.pictures, 1))


def _item(segments: Sequence[Segment], data: dict[int, bytes | None], bundle: Bundle) -> Item:
    vision = bundle.model.config.vision
    content = decode_content(segments, data, patch=vision.patch_size if vision is not None else 0)
    numbers = list(content.pictures)
    pictures = [torch.from_numpy(content.pictures[number]).to(bundle.device) for number in numbers]
    latents = bundle.vae.encode(pictures)
    return Item(
        segments,
        latents=dict(zip(numbers, latents, strict=True)),
        patches={number: torch.from_numpy(patches) for number, patches in content.patches.items()},
    )


def _to_picture(pixels: Tensor) -> Pillow.Image:
    """[3, h, w] in [-1, 1] -> a picture."""
    levels = (pixels.float().clamp(-1, 1) * 127.5 + 127.5).round().to(torch.uint8)
    return Pillow.fromarray(levels.permute(1, 2, 0).cpu().numpy())


def _version() -> str:
    try:
        return version("sigma-multimodal")
    except PackageNotFoundError:
        return "unknown"


@dataclass(frozen=True)
class GenerateOptions:
    """The options of `sigma generate`, as they were typed."""

    prompt: str
    images: tuple[Path, ...]
    out: Path
    model: str
    base: str | None
    seed: int
    size: str | None
    count: int
    steps: int
    text_scale: float
    image_scale: float
    interval: tuple[float, float]
    rescale: str
    rescale_min: float
    timestep_shift: float
    group_mask: bool
    understanding: bool
    text: bool
    max_tokens: int
    temperature: float
    dtype: str
    device: str
    quiet: bool


def run_generate(options: GenerateOptions) -> dict[str, Any]:
    """Do what was asked on the command line; returns the files written, or the answers.

    Everything a user can get wrong is checked before the weights are read.
    """
    settings = Settings(
        steps=options.steps,
        timestep_shift=options.timestep_shift,
        guidance=Guidance(
            text=options.text_scale,
            image=options.image_scale,
            interval=options.interval,
            rescale=_one_of(Rescale, options.rescale, "--rescale"),
            rescale_min=options.rescale_min,
        ),
        group_mask=options.group_mask,
    )
    settings.check()
    dtype = _one_of(DType, options.dtype, "--dtype")
    pictures = read_pictures(options.images)
    size = parse_size(options.size)
    check_prompt(options.prompt, len(pictures))
    files = _outputs(options)
    requests = [
        Request(options.prompt, pictures, [str(path) for path in options.images], size, options.seed + index)
        for index in range(options.count)
    ]
    bundle = load_bundle(
        options.model, base=options.base, dtype=dtype, device=options.device, vision=options.understanding
    )
    if options.text:
        texts = answer_in_words(
            bundle,
            requests,
            max_tokens=options.max_tokens,
            temperature=options.temperature,
            group_mask=options.group_mask,
        )
        _warn_untrained(bundle, options)
        return {"texts": texts}
    with Pass("sample", options.steps - 1, "steps", quiet=options.quiet) as shown:
        made = make_pictures(bundle, requests, settings, progress=lambda _done, _all: shown.add())
    for picture, path, request in zip(made, files, requests, strict=True):
        write_picture(picture, path, bundle, request, settings)
    _warn_untrained(bundle, options)
    return {"files": [str(path) for path in files], "size": list(made[0].size)}


def _warn_untrained(bundle: Bundle, options: GenerateOptions) -> None:
    if not bundle.trained and not options.quiet:
        sys.stderr.write(f"sigma: {bundle.name} has no trained weights, so this is noise\n")


def _outputs(options: GenerateOptions) -> list[Path]:
    """Where the pictures go: OUT, or OUT-0, OUT-1 ... Raises ConfigError before any work is done."""
    out = options.out
    if options.text:
        return []
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: name a .png file, which also keeps how the picture was made")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}; make it first")
    if out.is_dir():
        raise ConfigError(f"--out {out}: is a folder; name a .png file in it")
    if options.count == 1:
        return [out]
    return [out.with_name(f"{out.stem}-{index}{out.suffix}") for index in range(options.count)]


Choice = TypeVar("Choice", bound=StrEnum)


def _one_of(kind: type[Choice], text: str, option: str) -> Choice:
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{option} {text}: choose one of {', '.join(kind)}") from None
