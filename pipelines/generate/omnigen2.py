"""`sigma generate` with an OmniGen2 directory."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipelines.common.omnigen2_settings import omnigen2_settings
from pipelines.common.progress import ProgressBar
from pipelines.generate.config import GenerateConfig

if TYPE_CHECKING:
    from sigma_model.sampling.generate import Request


def run_omnigen2(config: GenerateConfig, requests: Sequence[Request], files: Sequence[Path]) -> dict[str, Any]:
    """Generate; returns the files written, or the texts. Raises SigmaError."""
    from sigma_model.omnigen2.generate import check_request, describe, generate_images, generate_texts
    from sigma_model.omnigen2.loading import load_omnigen2
    from sigma_model.sampling.generate import write_png

    settings = omnigen2_settings(config)
    check_request(requests[0])  # they differ in their seeds alone
    model = load_omnigen2(
        config.model,
        base=config.base,
        dtype=config.dtype,
        device=config.device,
        adapter=None if config.adapter is None else str(config.adapter),
    )
    if config.text:
        texts = generate_texts(model, requests, max_tokens=config.max_tokens, temperature=config.temperature)
        return {"texts": texts, "trained": model.trained}
    with ProgressBar("sample", settings.sampling.steps, "steps") as progress:
        images = generate_images(model, requests, settings, progress=lambda _done, _all: progress.add())
    for image, path, request in zip(images, files, requests, strict=True):
        write_png(image, path, describe(model, request, settings, image.size))
    return {"files": [str(path) for path in files], "size": list(images[0].size), "trained": model.trained}
