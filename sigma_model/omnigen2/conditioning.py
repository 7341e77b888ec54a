"""Prompts and images -> text states: Qwen2.5-VL by transformers, its last hidden state after the final norm."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sigma_data.errors import ConfigError
from sigma_data.images.decode import to_rgb
from sigma_data.instruction import ATTRIBUTES
from sigma_model.omnigen2.prompts import IM_END, INFERENCE_TOKENS, Route, text_of
from sigma_model.quiet_imports import quiet_imports

IGNORED = -100
"""Label of a token that is not to be learnt."""


@dataclass(frozen=True)
class MllmInputs:
    """What Qwen2.5-VL takes: `ids`, `mask` and `kinds` [B, L] (1 at image tokens), and the patches of all images.

    `kinds` are transformers' `mm_token_type_ids`: without them version 5 silently gives images positions of text.
    """

    ids: Tensor
    mask: Tensor
    kinds: Tensor
    pixels: Tensor | None = None
    """[patches of all images, channels * frames * patch * patch]"""
    grids: Tensor | None = None
    """[images, 3]: frames, rows, columns in patches."""

    def to(self, device: torch.device | str) -> MllmInputs:
        """The same elsewhere."""
        moved = (one if one is None else one.to(device) for one in (self.pixels, self.grids))
        return MllmInputs(self.ids.to(device), self.mask.to(device), self.kinds.to(device), *moved)

    def arguments(self, model: Any) -> dict[str, Any]:
        """As keywords of transformers' model. Raises ConfigError where images come without their token kinds."""
        if self.pixels is not None and self.kinds.shape != self.ids.shape:
            raise ConfigError("images reach the language model without the kinds of its tokens")
        found: dict[str, Any] = {"input_ids": self.ids, "attention_mask": self.mask}
        if "mm_token_type_ids" in inspect.signature(model.forward).parameters:
            found["mm_token_type_ids"] = self.kinds
        if self.pixels is not None:
            found |= {"pixel_values": self.pixels, "image_grid_thw": self.grids}
        return found


def hidden_states(mllm: Any, inputs: MllmInputs) -> Tensor:
    """[B, L, F]; rows of padding are 0."""
    model = mllm.model if hasattr(mllm, "lm_head") else mllm
    states: Tensor = model(**inputs.arguments(model), use_cache=False).last_hidden_state
    return states * inputs.mask[..., None].to(states.dtype)


def text_states(mllm: Any, inputs: MllmInputs, *, keep_image_states: bool) -> list[Tensor]:
    """The valid states [T, F] of each row, wherever the padding lies; those at image tokens only where kept."""
    states = hidden_states(mllm, inputs)
    valid = inputs.mask.bool()
    if not keep_image_states:
        valid = valid & (inputs.kinds == 0)
    return [row[keep] for row, keep in zip(states, valid, strict=True)]


def answer_loss(mllm: Any, inputs: MllmInputs, labels: Tensor) -> tuple[Tensor, int]:
    """Sum of the cross entropy over labelled tokens [B, L], and how many there are.

    A sum, for the mean is over all ranks and packs of a step. Only rows before a label go through the text head.
    """
    states = hidden_states(mllm, inputs)[:, :-1]
    following = labels[:, 1:]
    wanted = following != IGNORED
    logits = mllm.lm_head(states[wanted]).float()
    return F.cross_entropy(logits, following[wanted], reduction="sum"), int(wanted.sum())


@dataclass(frozen=True)
class Prompt:
    """An instruction with the images that the language model sees."""

    instruction: str
    images: tuple[Image.Image, ...] = ()


class Conditioner:
    """A language model with its tokenizer and image processor."""

    def __init__(self, mllm: Any, tokenizer: Any, image_processor: Any) -> None:
        self.mllm = mllm
        self.tokenizer = tokenizer
        self.image_processor = image_processor
        self.image_token = int(mllm.config.image_token_id)
        self.width = int(mllm.config.get_text_config().hidden_size)

    @classmethod
    def load(
        cls, mllm: Path, processor: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Conditioner:
        """Read both directories. Raises ConfigError for files that do not fit a Qwen2.5-VL."""
        tokenizer, images = load_tokenizer(processor), load_image_processor(processor)
        return cls(load_mllm(mllm, dtype=dtype, device=device), tokenizer, images)

    @torch.no_grad()
    def encode(
        self, prompts: Sequence[Prompt], route: Route, *, max_tokens: int = INFERENCE_TOKENS, trainable: bool = False
    ) -> list[Tensor]:
        """Text states [T, F] of each prompt. With `trainable` gradients flow into the language model."""
        inputs = self.inputs(prompts, route, max_tokens=max_tokens).to(self.mllm.device)
        with torch.set_grad_enabled(trainable):
            return text_states(self.mllm, inputs, keep_image_states=route.keeps_image_states)

    def inputs(self, prompts: Sequence[Prompt], route: Route, *, max_tokens: int = INFERENCE_TOKENS) -> MllmInputs:
        """Prompts as the language model takes them, padded on the right.

        An instruction that is too long loses its end and keeps the closing of its turn. Raises ConfigError for an empty
        list.
        """
        if not prompts:
            raise ConfigError("no prompts: at least one is needed")
        for prompt in prompts:
            self.refuse_control(prompt.instruction)
        shown = [prompt.images if route.shows_images else () for prompt in prompts]
        pixels, grids, counts = self.patches([image for images in shown for image in images])
        at = iter(counts)
        rows = []
        for prompt, images in zip(prompts, shown, strict=True):
            text = text_of(prompt.instruction, len(images), route)
            rows.append(self.token_ids(text, iter([next(at) for _ in images]), max_tokens=max_tokens))
        return self.padded(rows, pixels, grids)

    def padded(self, rows: Sequence[Sequence[int]], pixels: Tensor | None, grids: Tensor | None) -> MllmInputs:
        """Rows of ids, padded on the right to the longest."""
        length = max(map(len, rows))
        filler = self.tokenizer.pad_token_id or 0
        ids = torch.tensor([[*row, *[filler] * (length - len(row))] for row in rows])
        mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
        return MllmInputs(ids, mask, ((ids == self.image_token) & mask.bool()).long(), pixels, grids)

    def patches(self, images: Sequence[Image.Image]) -> tuple[Tensor | None, Tensor | None, list[int]]:
        """Patches and grids of images, and how many tokens each has."""
        if not images:
            return None, None, []
        rgb = [image if image.mode == "RGB" else to_rgb(image) for image in images]
        found: Mapping[str, Tensor] = self.image_processor(images=rgb, return_tensors="pt")
        grids = found["image_grid_thw"]
        merged = int(self.image_processor.merge_size) ** 2
        return found["pixel_values"], grids, [int(grid.prod()) // merged for grid in grids]

    def token_ids(self, text: str, image_tokens: Iterator[int], *, max_tokens: int | None = None) -> list[int]:
        """Ids of a text, each image's pad as often as `image_tokens` says.

        Beyond `max_tokens`, images not counted, what stands before the last `<|im_end|>` is cut.
        """
        ids: list[int] = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        if max_tokens is not None and len(ids) > max_tokens:
            closing = 1 + ids[::-1].index(self.tokenizer.convert_tokens_to_ids(IM_END))
            ids = ids[: max_tokens - closing] + ids[-closing:]
        row: list[int] = []
        for one in ids:
            row += [one] * next(image_tokens) if one == self.image_token else [one]
        return row

    def refuse_control(self, text: str) -> None:
        """Raise ConfigError where a user's text holds a control token of the tokenizer, which would act as one."""
        names = {f"<{name}>" for name in ATTRIBUTES}
        refuse_control(text, [one for one in self.tokenizer.all_special_tokens if one not in names])


def refuse_control(text: str, control: Sequence[str]) -> None:
    """Raise ConfigError where a user's text holds one of these control tokens, or what looks like one."""
    found = next((one for one in control if one in text), None)
    if found is None and (match := re.search(r"<\|\w+\|>", text)):
        found = match[0]
    if found is not None:
        raise ConfigError(f"{found} in the prompt is a control token of the tokenizer: leave it out")


def _library() -> Any:
    """The library with the language model's class, which imports libraries for quantisation, too."""
    with quiet_imports():
        import transformers

        library: Any = transformers
        assert library.Qwen2_5_VLForConditionalGeneration
    return library


def load_tokenizer(processor: Path) -> Any:
    """The tokenizer of a processor's directory, offline. Raises ConfigError."""
    with quiet_imports():
        from transformers import AutoTokenizer
    return _read(processor, AutoTokenizer.from_pretrained)


def load_image_processor(processor: Path) -> Any:
    """The image processor of a directory, offline. Raises ConfigError."""
    with quiet_imports():
        from transformers import AutoImageProcessor
    return _read(processor, AutoImageProcessor.from_pretrained)


def _read(processor: Path, load: Any) -> Any:
    try:
        return load(processor, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"{processor}: is no processor of Qwen2.5-VL ({str(error).splitlines()[0]})") from None


def init_mllm(directory: Path, *, seed: int, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Any:
    """A Qwen2.5-VL of the sizes in a directory's `config.json` with random weights, drawn from `seed`."""
    library = _library()
    config = library.AutoConfig.from_pretrained(directory, local_files_only=True)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        mllm = library.Qwen2_5_VLForConditionalGeneration(config)
    return mllm.to(device=device, dtype=dtype).eval().requires_grad_(False)


def empty_mllm(directory: Path) -> Any:
    """The same on the meta device: names and shapes, no memory. Raises ConfigError without a `config.json`."""
    library = _library()
    if not (directory / "config.json").is_file():
        raise ConfigError(f"{directory}: has no config.json: it should hold a Qwen2.5-VL")
    config = library.AutoConfig.from_pretrained(directory, local_files_only=True)
    with torch.device("meta"):
        return library.Qwen2_5_VLForConditionalGeneration(config)


def save_mllm(mllm: Any, directory: Path) -> None:
    """Write a language model under its released names. Raises OSError."""
    library = _library()
    logging = library.utils.logging
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        mllm.save_pretrained(directory)
    finally:
        if bars:
            logging.enable_progress_bar()


def load_mllm(directory: Path, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu") -> Any:
    """Qwen2.5-VL from a directory, strictly: no tensor may be missing, left over or of another shape.

    Raises ConfigError.
    """
    library = _library()
    logging = library.utils.logging
    if not (directory / "config.json").is_file():
        raise ConfigError(f"{directory}: has no config.json: it should hold a Qwen2.5-VL")
    bars = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        mllm, info = library.Qwen2_5_VLForConditionalGeneration.from_pretrained(
            directory, dtype=dtype, local_files_only=True, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{directory}: cannot be read as Qwen2.5-VL ({str(error).splitlines()[0]})") from None
    finally:
        if bars:
            logging.enable_progress_bar()
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if names := sorted(map(str, info.get(kind, ()))):
            raise ConfigError(
                f"{directory}: does not fit Qwen2.5-VL: {len(names)} {kind.replace('_', ' ')}, first {names[0]}"
            )
    return mllm.to(device).eval().requires_grad_(False)
