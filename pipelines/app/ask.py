"""What somebody asks for in the app, as the settings and the command line of `sigma generate`."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from pipelines.app.config import MAX_IMAGE_BYTES, MAX_IMAGES
from pipelines.common.inference_config import OF_IMAGES, OF_TEXT, parse_size
from pipelines.common.settings import load_settings
from pipelines.generate.config import GenerateConfig
from sigma_data.errors import ConfigError
from sigma_data.images.decode import ImageFault, probe
from sigma_model.omnigen2.files import is_omnigen2
from sigma_model.omnigen2.settings import Omnigen2Sampling
from sigma_model.sampling.prompt_check import check_prompt

CACHES = tuple(str(one) for one in getattr(GenerateConfig.model_fields.get("cache"), "annotation", None) or ())
"""What leaves the network out of some steps, by the names of `--cache`."""

SAMPLING = ("steps", "text_scale", "image_scale", "group_mask", "size", "seed", "max_tokens", "temperature",
            *(("cache",) if CACHES else ()))  # fmt: skip
"""Settings that the page has."""


@dataclass(frozen=True)
class Ask:
    """One request: `images` are files, `names` what they were called, `models` one, or several to compare."""

    prompt: str
    images: tuple[str, ...] = ()
    names: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    text: bool = False
    settings: Mapping[str, Any] | None = None

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Ask:
        """Of JSON. Raises ValueError, TypeError or LookupError for what is none."""
        settings = {name: value for name, value in (found["settings"] or {}).items() if name in SAMPLING}
        lists = {name: tuple(map(str, found[name])) for name in ("images", "names", "models")}
        return cls(str(found["prompt"]), **lists, text=bool(found["text"]), settings=settings)

    def with_images(self, images: Sequence[str]) -> Ask:
        """The same with its images elsewhere."""
        return replace(self, images=tuple(images))

    @property
    def size(self) -> tuple[int, int] | None:
        """The size that is asked for. Raises ValueError for what is no size."""
        found: tuple[int, int] | None = parse_size((self.settings or {}).get("size"))
        return found

    def config(self, model: str, loading: Mapping[str, Any]) -> GenerateConfig:
        """As `sigma generate` takes it. Raises ConfigError for a setting that cannot be."""
        given = {**loading, **changed(self.settings or {}, model)}
        return load_settings(
            GenerateConfig, None, (), typed={}, prompt=self.prompt, model=model, text=self.text or None, **given
        )

    def command(self, model: str, loading: Mapping[str, Any]) -> str:
        """The command that makes the same, as one types it."""
        words = ["sigma", "generate", self.prompt]
        for image in self.images:
            words += ["--image", image]
        words += ["--model", model]
        other = OF_IMAGES if self.text else OF_TEXT
        chosen = {name: value for name, value in changed(self.settings or {}, model).items() if name not in other}
        for name, value in {**loading, **chosen}.items():
            if isinstance(value, bool):
                words.append(f"--{'' if value else 'no-'}{name.replace('_', '-')}")
            else:
                words += [f"--{name.replace('_', '-')}", str(value)]
        words += ["--text"] if self.text else ["--out", "out.png"]
        return shlex.join(words)

    def check(self) -> None:
        """Raise ConfigError for a prompt or an image that cannot be used; takes one decode an image."""
        if len(self.images) > MAX_IMAGES:
            raise ConfigError(f"{len(self.images)} images: at most {MAX_IMAGES} are taken; remove some")
        if not self.models:
            raise ConfigError("choose a model")
        check_prompt(self.prompt, len(self.images))
        for image, name in zip(self.images, self.names, strict=True):
            check_image(Path(image), name)


def check_image(path: Path, name: str) -> None:
    """Raise ConfigError, with the image's name, where it is too large or cannot be decoded."""
    try:
        if path.stat().st_size > MAX_IMAGE_BYTES:
            raise ConfigError(f"{name}: has more than {MAX_IMAGE_BYTES // 2**20} MiB: make it smaller")
        probe(path.read_bytes())
    except ImageFault as fault:
        raise ConfigError(f"{name}: {fault.message}") from None
    except OSError as error:
        raise ConfigError(f"{name}: cannot be read ({error.strerror or error}): upload it again") from None


def defaults_of(model: str) -> dict[str, Any]:
    """The page's settings as a model has them by default."""
    found = {name: GenerateConfig.model_fields[name].default for name in SAMPLING}
    if is_omnigen2(Path(model)):
        sampling = Omnigen2Sampling()
        found |= {"steps": sampling.steps, "text_scale": sampling.text_scale, "image_scale": sampling.image_scale}
    return found


def changed(settings: Mapping[str, Any], model: str) -> dict[str, Any]:
    """Those of the settings that are not the model's defaults; the seed always."""
    usual = defaults_of(model)
    return {
        name: value
        for name, value in settings.items()
        if value is not None and (name == "seed" or value != usual.get(name))
    }
