"""A model from Python: `load(path)`, then `.generate(...)` and `.answer(...)`."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from PIL import Image as Pillow

from sigma_data.errors import ConfigError
from sigma_data.storage.paths import model_path
from sigma_model.dtypes import DType, Quantization
from sigma_model.loading import LoadedModel, load_for_inference
from sigma_model.omnigen2 import generate as omnigen2
from sigma_model.omnigen2.chat import CHAT_TOKENS, Reply, chat
from sigma_model.omnigen2.files import is_omnigen2
from sigma_model.omnigen2.loading import LoadedOmnigen2, load_omnigen2
from sigma_model.omnigen2.settings import Omnigen2Generation
from sigma_model.sampling.generate import Request, generate_images, generate_texts
from sigma_model.sampling.prompt_check import check_prompt
from sigma_model.sampling.settings import Order, SamplingSettings

Reference = bytes | str | PathLike[str] | Pillow.Image
"""A reference image: an encoded file's bytes, its path, or an image of Pillow."""


@dataclass(frozen=True)
class Model:
    """A loaded model of either backbone. Made by `load`; `parts` are its network, VAE and tokenizer."""

    parts: LoadedModel | LoadedOmnigen2

    def generate(
        self,
        prompt: str,
        images: Sequence[Reference] = (),
        *,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        settings: SamplingSettings | Omnigen2Generation | None = None,
        order: Order | str = Order.INTERLEAVED,
        progress: Callable[[int, int], None] | None = None,
    ) -> Pillow.Image:
        """An RGB image for a prompt, e.g. `"Put <subject>the cup <image_1> on <background>the table <image_2>"`.

        `<image_N>` is the Nth of `images`. `size` is (width, height) in pixels, brought to the nearest that the model
        makes; by default that of the last image, or the largest square. The noise is drawn from `seed`: on one machine
        the same arguments give the same image to the bit, and the one that `sigma generate` gives. `settings` default
        to SIGMA's 50 steps; an OmniGen2 model takes an `Omnigen2Generation`, its library's by default. `progress` is
        called with (step, steps). Raises SigmaError for a prompt or an image that cannot be used, before anything is
        computed.
        """
        request = self._request(prompt, images, size=size, seed=seed, order=order)
        if isinstance(self.parts, LoadedOmnigen2):
            if isinstance(settings, SamplingSettings):
                raise ConfigError("settings: an OmniGen2 model takes an Omnigen2Generation")
            return omnigen2.generate_images(self.parts, [request], settings, progress=progress)[0]
        if isinstance(settings, Omnigen2Generation):
            raise ConfigError("settings: this model is not an OmniGen2 and takes SamplingSettings")
        return generate_images(self.parts, [request], settings or SamplingSettings(), progress=progress)[0]

    def answer(
        self,
        prompt: str,
        images: Sequence[Reference] = (),
        *,
        max_tokens: int = 512,
        temperature: float = 0.0,
        seed: int = 0,
        group_mask: bool = True,
    ) -> str:
        """A text for a prompt; at temperature 0 each token is the likeliest. Raises SigmaError as `generate` does."""
        request = self._request(prompt, images, size=None, seed=seed, order=Order.INTERLEAVED)
        if isinstance(self.parts, LoadedOmnigen2):
            return omnigen2.generate_texts(self.parts, [request], max_tokens=max_tokens, temperature=temperature)[0]
        return generate_texts(
            self.parts, [request], max_tokens=max_tokens, temperature=temperature, group_mask=group_mask
        )[0]

    def chat(
        self,
        prompt: str,
        images: Sequence[Reference] = (),
        *,
        size: tuple[int, int] | None = None,
        seed: int = 0,
        settings: Omnigen2Generation | None = None,
        max_tokens: int = CHAT_TOKENS,
        temperature: float = 0.0,
    ) -> Reply:
        """Words, or an image where an OmniGen2 model says that it draws one. Raises SigmaError as `generate` does."""
        if not isinstance(self.parts, LoadedOmnigen2):
            raise ConfigError("chat is for OmniGen2 models alone: use generate or answer")
        request = self._request(prompt, images, size=size, seed=seed, order=Order.INTERLEAVED)
        return chat(self.parts, [request], settings, max_tokens=max_tokens, temperature=temperature)[0]

    def _request(
        self,
        prompt: str,
        images: Sequence[Reference],
        *,
        size: tuple[int, int] | None,
        seed: int,
        order: Order | str,
    ) -> Request:
        if isinstance(images, str | bytes | PathLike | Pillow.Image):
            raise ConfigError("images: give a list of images, also for a single one")
        if isinstance(self.parts, LoadedModel):
            check_prompt(prompt, len(images))
        return Request(
            prompt,
            tuple(_encoded(image) for image in images),
            tuple(_name(image, number) for number, image in enumerate(images, 1)),
            size=size,
            seed=seed,
            order=Order(order),
        )


def load(
    path: str | PathLike[str],
    *,
    base: str | PathLike[str] | None = None,
    dtype: DType | str = DType.AUTO,
    device: str = "auto",
    device_map: str | None = None,
    quantize: Quantization | str | None = None,
    vision: bool = True,
    seed: int = 0,
    adapter: str | PathLike[str] | None = None,
) -> Model:
    """Load a model: a directory in the released layout, e.g. an export of `sigma export`, or a preset by name.

    Files that the directory lacks (SIGMA's release holds weights alone) are taken from `base`. `dtype` and `device`
    "auto" follow the machine. `device_map` spreads the layers over devices and `quantize` stores their weights in 4
    or 8 bits, as `sigma generate` does. Without `vision` the vision encoder is left out. A preset without weights is
    random, drawn from `seed`. A LoRA `adapter` in peft's files is merged. A directory of OmniGen2 or SGT-Gen2 is told
    by its files; it has no use for `device_map`, `quantize`, `vision` and `seed`. Raises ConfigError for a directory
    that is not a whole model.
    """
    where = Path(model_path(str(path)))
    if is_omnigen2(where):
        if device_map is not None or quantize is not None:
            raise ConfigError("device_map and quantize are not for OmniGen2")
        parts = load_omnigen2(
            str(where),
            base=None if base is None else model_path(str(base)),
            dtype=DType(dtype),
            device=device,
            adapter=None if adapter is None else str(adapter),
        )
        return Model(parts)
    return Model(
        load_for_inference(
            model_path(str(path)),
            base=None if base is None else model_path(str(base)),
            dtype=DType(dtype),
            device=device,
            seed=seed,
            vision=vision,
            device_map=device_map,
            quantization=None if quantize is None else Quantization(quantize),
            adapter=None if adapter is None else Path(adapter),
        )
    )


def _encoded(image: Reference) -> bytes:
    """The bytes of an image file; an image of Pillow as PNG."""
    if isinstance(image, bytes):
        return image
    if isinstance(image, Pillow.Image):
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        return buffer.getvalue()
    try:
        return Path(image).expanduser().read_bytes()
    except OSError as error:
        raise ConfigError(f"{image}: cannot be read ({error.strerror or error})") from None


def _name(image: Reference, number: int) -> str:
    """What error messages call an image."""
    return str(image) if isinstance(image, str | PathLike) else f"image {number}"
