"""What OmniGen2's language model reads: templates, and where the images stand in them. No tensors here."""

from __future__ import annotations

from enum import StrEnum

SYSTEM = "You are a helpful assistant that generates high-quality images based on user instructions."
SYSTEM_DROPPED = "You are a helpful assistant that generates images."
"""Of a prompt that was dropped in training."""

DEFAULT_NEGATIVE = (
    "(((deformed))), blurry, over saturation, bad anatomy, disfigured, poorly drawn face, mutation, mutated, "
    "(extra_limb), (ugly), (poorly drawn hands), fused fingers, messy drawing, broken legs censor, censored, censor_bar"
)
"""The negative prompt of the released command line; the library's is empty."""

IM_START, IM_END, IMAGE_PAD, DRAW, END = "<|im_start|>", "<|im_end|>", "<|image_pad|>", "<|img|>", "<|endoftext|>"
VISION = f"<|vision_start|>{IMAGE_PAD}<|vision_end|>"
"""Where an image's states go; the processor repeats the pad as often as the image has tokens."""

OPENINGS = (
    "The image portrays ", "The image depicts ", "The image captures ", "The image highlights ", "The image shows ",
    "这张图片展示了",
)  # fmt: skip
"""How captions begin that a model wrote; nobody asks for an image like that."""

TRAINING_TOKENS, INFERENCE_TOKENS = 888, 1024
"""The most text tokens."""


class Route(StrEnum):
    """Where reference images go. The same in training and in inference, or the model sees what it has not learnt."""

    VAE = "vae"
    """As latents to the transformer; the language model reads text alone. OmniGen2's training."""
    MLLM = "mllm"
    """To the language model, whose states at image tokens are kept. SGT's segmentation."""
    BOTH = "both"
    """To both; the states at image tokens are left out. OmniGen2's chat."""

    @property
    def shows_images(self) -> bool:
        """Whether the language model sees images."""
        return self is not Route.VAE

    @property
    def has_latents(self) -> bool:
        """Whether the transformer gets references as latents."""
        return self is not Route.MLLM

    @property
    def keeps_image_states(self) -> bool:
        """Whether the language model's states at image tokens are part of the text."""
        return self is Route.MLLM


def _turn(role: str, text: str) -> str:
    return f"{IM_START}{role}\n{text}{IM_END}\n"


def generation_text(instruction: str) -> str:
    """The generation route: no images, no assistant's turn. A negative prompt reads the same."""
    return _turn("system", SYSTEM) + _turn("user", instruction)


def dropped_text(*, as_negative: bool = True) -> str:
    """A prompt dropped in training. OmniGen2's has a system text of its own, which its negative prompts lack.

    `as_negative`: as guidance will ask for it, with the system text of an empty prompt.
    """
    return generation_text("") if as_negative else _turn("system", SYSTEM_DROPPED) + _turn("user", "")


def without_opening(caption: str) -> str:
    """A caption without its opening, if it has one of `OPENINGS` and more than that."""
    opening = next((one for one in OPENINGS if caption.startswith(one)), "")
    return caption[len(opening) :] if caption[len(opening) :].strip() else caption


def chat_text(instruction: str, images: int = 0) -> str:
    """The chat route: images named and shown before the instruction, then the assistant's turn is opened."""
    shown = "".join(f"<img{number}>: {VISION}" for number in range(1, images + 1))
    return f"{_turn('system', SYSTEM)}{_turn('user', shown + instruction)}{IM_START}assistant\n"


def text_of(instruction: str, images: int, route: Route) -> str:
    """The text of a prompt with so many images on a route."""
    return chat_text(instruction, images) if route.shows_images else generation_text(instruction)
