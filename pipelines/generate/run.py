"""The command `sigma generate`: what was typed, checked before the weights are read, run, written."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

from pipelines.common.progress import ProgressBar
from sigma_data.errors import ConfigError
from sigma_data.sequence.layout import Geometry
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_data.storage.files import disk_error
from sigma_model.loading import DType, LoadedModel, load_bundle
from sigma_model.quantization import Quantization
from sigma_model.sampling.generate import Request, answer_in_words, check_prompt, lay_out, make_pictures, write_picture
from sigma_model.sampling.settings import Guidance, Rescale, SamplingSettings


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
    device_map: str | None = None
    quantize: str | None = None


def run_generate(options: GenerateOptions) -> dict[str, Any]:
    """Do what was asked on the command line; returns the files written, or the answers.

    Everything a user can get wrong is checked before the weights are read.
    """
    settings = SamplingSettings(
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

    def check(encoder: Tokenizer, geometry: Geometry) -> None:
        lay_out(requests[0], encoder, geometry, answer=not options.text)  # they differ in their seeds alone

    bundle = load_bundle(
        options.model,
        base=options.base,
        dtype=dtype,
        device=options.device,
        vision=options.understanding,
        device_map=options.device_map,
        quantization=None if options.quantize is None else Quantization(options.quantize),
        check=check,
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
        return {"texts": texts, "trained": bundle.trained}
    with ProgressBar("sample", options.steps - 1, "steps", quiet=options.quiet) as shown:
        made = make_pictures(bundle, requests, settings, progress=lambda _done, _all: shown.add())
    for picture, path, request in zip(made, files, requests, strict=True):
        write_picture(picture, path, bundle, request, settings)
    _warn_untrained(bundle, options)
    if size is not None and made[0].size != size and not options.quiet:
        width, height = made[0].size
        sys.stderr.write(f"sigma: --size {options.size} is no size of {bundle.name}: made {width}x{height}\n")
    return {"files": [str(path) for path in files], "size": list(made[0].size), "trained": bundle.trained}


def _warn_untrained(bundle: LoadedModel, options: GenerateOptions) -> None:
    if not bundle.trained and not options.quiet:
        sys.stderr.write(f"sigma: {bundle.name} has no trained weights, so this is noise\n")


def _outputs(options: GenerateOptions) -> list[Path]:
    """Where the pictures go: OUT, or OUT-0, OUT-1 ... Raises ConfigError before any work is done."""
    out = options.out
    if options.text:
        return []
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: name a .png file, which also keeps how the picture was made")
    files = [out]
    if options.count > 1:
        files = [out.with_name(f"{out.stem}-{index}{out.suffix}") for index in range(options.count)]
    try:
        if not out.parent.is_dir():
            raise ConfigError(f"--out {out}: there is no folder {out.parent}; make it first")
        for path in files:
            if path.is_dir():
                raise ConfigError(f"--out {path}: is a folder; name a .png file in it")
            _try_to_write(path)
    except OSError as error:
        raise disk_error(error, out) from None
    return files


def _try_to_write(path: Path) -> None:
    """Make and remove a file of a name as long beside it, so that no work is done in vain. Raises OSError."""
    probe = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with probe.open("xb"):
        pass
    with contextlib.suppress(FileNotFoundError):
        probe.unlink()


Choice = TypeVar("Choice", bound=StrEnum)


def _one_of(kind: type[Choice], text: str, option: str) -> Choice:
    try:
        return kind(text)
    except ValueError:
        raise ConfigError(f"{option} {text}: choose one of {', '.join(kind)}") from None


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
    found = [part.strip() for part in re.split("[x×,]", text.lower())]
    sides = [int(side) for side in found if side.isdecimal() and len(side) < 10]
    if len(found) != 2 or len(sides) < 2 or not all(sides):
        raise ConfigError(f"--size {text[:40]}: write WIDTHxHEIGHT in pixels, as in 1024x768")
    return sides[0], sides[1]
