"""From settings to images or texts: everything a user can get wrong is checked before the weights are read."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.common.omnigen2_settings import refuse_omnigen2_settings
from pipelines.common.progress import ProgressBar
from pipelines.generate.config import GenerateConfig
from pipelines.generate.omnigen2 import run_omnigen2
from sigma_data.errors import ConfigError
from sigma_data.sequence.layout import Geometry
from sigma_data.sequence.tokenizer import Tokenizer
from sigma_data.storage.files import disk_error
from sigma_model.sampling.generate import (
    Request,
    check_prompt,
    generate_images,
    generate_texts,
    lay_out,
    write_image,
)

logger = logging.getLogger(__name__)


def run_generate(config: GenerateConfig) -> dict[str, Any]:
    """Generate; returns the files written, or the texts. Raises SigmaError."""
    settings = config.sampling
    references = read_images(config.images)
    if not config.omnigen2:
        check_prompt(config.prompt, len(references))
        refuse_omnigen2_settings(config)
    files = _outputs(config)
    names = [str(path) for path in config.images]
    requests = [
        Request(config.prompt, references, names, config.size, config.seed + index) for index in range(config.count)
    ]
    if config.omnigen2:
        return run_omnigen2(config, requests, files)

    def check(tokenizer: Tokenizer, geometry: Geometry) -> None:
        lay_out(requests[0], tokenizer, geometry, answer=not config.text)  # they differ in their seeds alone

    model = config.load(check)
    if config.text:
        texts = generate_texts(
            model,
            requests,
            max_tokens=config.max_tokens,
            temperature=config.temperature,
            group_mask=config.group_mask,
        )
        result = {"texts": texts, "trained": model.trained}
    else:
        with ProgressBar("sample", config.steps - 1, "steps") as progress:
            images = generate_images(model, requests, settings, progress=lambda _done, _all: progress.add())
        for image, path, request in zip(images, files, requests, strict=True):
            write_image(image, path, model, request, settings)
        size = images[0].size
        if config.size not in (None, size):
            requested = "x".join(map(str, config.size or ()))
            logger.info("sigma: --size %s is not a size of %s: made %dx%d", requested, model.name, *size)
        result = {"files": [str(path) for path in files], "size": list(size), "trained": model.trained}
    if not model.trained:
        logger.info("sigma: %s has no trained weights, so this is noise", model.name)
    return result


def _outputs(config: GenerateConfig) -> list[Path]:
    """Where the images go: OUT, or OUT-0, OUT-1 ... Raises ConfigError before any work is done."""
    out = config.out
    if config.text:
        return []
    if out.suffix.lower() != ".png":
        raise ConfigError(f"--out {out}: name a .png file, which also keeps how the image was made")
    files = [out]
    if config.count > 1:
        files = [out.with_name(f"{out.stem}-{index}{out.suffix}") for index in range(config.count)]
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


def read_images(paths: Sequence[Path]) -> list[bytes]:
    """The bytes of image files. Raises ConfigError naming the file."""
    found = []
    for path in paths:
        try:
            found.append(path.read_bytes())
        except OSError as error:
            raise ConfigError(f"{path}: the image cannot be read ({error.strerror or error})") from None
    return found
