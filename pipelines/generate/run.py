"""From settings to images or texts: everything a user can get wrong is checked before the weights are read."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipelines.common.answerer import Answerer, answering_of, load_answerer
from pipelines.common.made_size import size_told
from pipelines.common.progress import ProgressBar
from pipelines.generate.config import GenerateConfig
from sigma_data.errors import ConfigError
from sigma_data.storage.files import disk_error
from sigma_model.omnigen2.prompts import Route
from sigma_model.sampling.generate import Request
from sigma_model.sampling.prompt_check import check_prompt

logger = logging.getLogger(__name__)


def run_generate(config: GenerateConfig) -> dict[str, Any]:
    """Generate; returns the files written, or the texts. Raises SigmaError."""
    references = read_images(config.images)
    answering_of(config, text=config.text)  # raises for values that make no sense
    if config.chat:
        config = _for_chat(config)
    if not config.omnigen2:
        check_prompt(config.prompt, len(references))
    files = _outputs(config)
    names = [str(path) for path in config.images]
    requests = [
        Request(config.prompt, references, names, config.size, config.seed + index) for index in range(config.count)
    ]
    model = load_answerer(config, text=config.text, first=requests[0])  # they differ in their seeds alone
    result: dict[str, Any]
    if config.chat:
        result = {**_chat(model, requests, files), "trained": model.trained}
    elif config.text:
        result = {"texts": [*model.texts(requests)], "trained": model.trained}
    else:
        with ProgressBar("sample", model.steps, "steps") as progress:
            images = model.images(requests, lambda _done, _all: progress.add())
        for image, path, request in zip(images, files, requests, strict=True):
            model.write(image, path, request)
        size = images[0].size
        if told := size_told(model.name, config.size or size, size):
            logger.info("sigma: --size %s", told)
        result = {"files": [str(path) for path in files], "size": list(size), "trained": model.trained}
    if model.caveat:
        logger.info("sigma: %s %s", model.name, model.caveat)
    return result


def _for_chat(config: GenerateConfig) -> GenerateConfig:
    """The settings with the route that chat has. Raises ConfigError for settings that do not go with it."""
    if not config.omnigen2:
        raise ConfigError("--chat is for OmniGen2 models alone: ask for an image, or for words with --text")
    if config.text:
        raise ConfigError("--chat answers in words or with an image, as the model chooses: leave --text out")
    if config.route not in (None, Route.BOTH):
        raise ConfigError(f"--chat shows images to the language model and to the transformer, not by {config.route}")
    return config.model_copy(update={"route": Route.BOTH})


def _chat(model: Answerer, requests: Sequence[Request], files: Sequence[Path]) -> dict[str, Any]:
    """Words, and the images that the model chose to draw, each in its file; the text of these is empty."""
    replies = model.replies(requests)
    written = []
    for reply, path, request in zip(replies, files, requests, strict=True):
        if reply.image is not None:
            model.write(reply.image, path, request)
            written.append(str(path))
    return {"files": written, "texts": [reply.text for reply in replies]}


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
