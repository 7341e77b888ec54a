"""Samples, layouts, items and models small enough for a test to reckon with token by token.

Words have one id each, pictures become at most 4 x 4 latents, weights are large enough that every part of
the network shows in its output.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor

from sigma_data.images.resize_rule import ResizeRule
from sigma_data.instruction import ATTRIBUTES, Attribute, Part, Placeholder, Text
from sigma_data.loading.batch import Item, PackedBatch
from sigma_data.loading.collate import collate
from sigma_data.sample import Family, Image, Sample, Source, Turn
from sigma_data.sequence.layout import Geometry, Kind, Segment, Size, layout
from sigma_model.checkpoint_io import init_model
from sigma_model.config import LanguageConfig, LatentConfig, ModelConfig, VaeConfig, VisionConfig
from sigma_model.model import SigmaModel, geometry, widths


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On tensors this small a second thread costs more than it brings: ten times the run on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


WORDS = tuple(
    [
        "a",
        "b",
        "c",
        "red",
        "green",
        "cat",
        "dog",
        "paint",
        "the",
        "man",
        "from",
        "in",
        "style.",
        "next",
        "to",
        "make",
        "it",
        "old",
        ",",
        "what",
        "is",
        "3",
        "é",
    ]
)


@dataclass(frozen=True)
class Words:
    """The four delimiters."""

    bos: int = 1
    eos: int = 2
    image_start: int = 3
    image_end: int = 4


SPECIALS = Words()
FIRST_WORD, FIRST_ATTRIBUTE, VOCABULARY = 20, 100, 128


@dataclass(frozen=True)
class Encoded:
    ids: tuple[int, ...]
    attributes: tuple[tuple[int, int], ...]


class WordEncoder:
    """A tokenizer of whole words, all of them in `WORDS`; white space leaves no trace."""

    def encode_parts(self, parts: Sequence[Part]) -> Encoded:
        ids: list[int] = []
        attributes: list[tuple[int, int]] = []
        for part in parts:
            match part:
                case Text(text):
                    ids += [FIRST_WORD + WORDS.index(word) for word in text.split()]
                case Attribute(name):
                    attributes.append((len(ids), len(attributes)))
                    ids.append(attribute_id(name))
                case Placeholder():
                    raise ValueError("a placeholder is no text")
        return Encoded(tuple(ids), tuple(attributes))


class LetterEncoder(WordEncoder):
    """A tokenizer of single characters, white space included: an id is the code point, or 1000 and on."""

    def encode_parts(self, parts: Sequence[Part]) -> Encoded:
        ids: list[int] = []
        attributes: list[tuple[int, int]] = []
        for part in parts:
            if isinstance(part, Attribute):
                attributes.append((len(ids), len(attributes)))
                ids.append(1000 + ATTRIBUTES.index(part.name))
            elif isinstance(part, Text):
                ids += map(ord, part.text)
        return Encoded(tuple(ids), tuple(attributes))


def attribute_id(name: str) -> int:
    return FIRST_ATTRIBUTE + ATTRIBUTES.index(name)


def word_ids(text: str) -> tuple[int, ...]:
    return WordEncoder().encode_parts([Text(text)]).ids


# Models ---------------------------------------------------------------------------------------------


def tiny_config(*, vision: bool = True, attribute_projection: bool = False) -> ModelConfig:
    """Two layers of width 32; a latent token covers 4 pixels, a ViT patch 2, at most 4 x 4 and 5 x 5 of them."""
    return ModelConfig(
        language=LanguageConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=4096,
        ),
        vision=VisionConfig(
            hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, patch_size=2, grid=6
        )
        if vision
        else None,
        latent=LatentConfig(channels=2, patch_size=2, grid=5, downsample=2),
        vae=VaeConfig(ch=8, mult=(1, 1), num_res_blocks=1, z_channels=2),
        vae_rule=ResizeRule(max_size=16, min_size=4, stride=4),
        vit_rule=ResizeRule(max_size=10, min_size=2, stride=2),
        vqa_rule=ResizeRule(max_size=10, min_size=2, stride=2),
        attribute_projection=attribute_projection,
    )


def tiny_geometry(*, vision: bool = True) -> Geometry:
    return geometry(tiny_config(vision=vision))


def tiny_model(
    *, vision: bool = True, attribute_projection: bool = False, seed: int = 0, dtype: torch.dtype = torch.float32
) -> SigmaModel:
    """Random weights at a scale where every layer matters; the attribute projection stays zero."""
    model = init_model(tiny_config(vision=vision, attribute_projection=attribute_projection), seed=seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name == "attribute_projection.weight":
                continue
            fresh = torch.randn(parameter.shape, generator=generator("weights", seed, name))
            if parameter.ndim == 2 and "embed" not in name.rpartition(".")[0].rpartition(".")[2]:
                fresh /= math.sqrt(parameter.shape[1])
            elif parameter.ndim == 1:
                fresh *= 0.2
                fresh += name.endswith("weight")  # norms around one, biases around zero
            parameter.copy_(fresh)
    return model.to(dtype)


def generator(*key: object) -> torch.Generator:
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:6], "little"))


# Samples --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    """A sample with the sizes of its pictures."""

    sample: Sample
    sizes: Mapping[int, Size]

    def layout(self, *, vision: bool = True, dropped: Sequence[int] = ()) -> tuple[Segment, ...]:
        return layout(self.sample.turns, self.sizes, WordEncoder(), tiny_geometry(vision=vision), dropped=dropped)


def case(*turns: Turn | str, pictures: int, sizes: Mapping[int, Size] | None = None) -> Case:
    """A sample of these turns; a turn that is only text produces the last picture."""
    made = tuple(turn if isinstance(turn, Turn) else Turn(turn, target=pictures) for turn in turns)
    images = tuple(Image(number, None) for number in range(1, pictures + 1))
    sample = Sample("0" * 20, Family.COMPOSITIONAL, images, made, Source("test", "here", 0))
    default = {number: (8 + 4 * (number % 3), 12 - 4 * (number % 2)) for number in range(1, pictures + 1)}
    return Case(sample, default | dict(sizes or {}))


_spaces = st.sampled_from(["", " ", "  ", "\n", " \t"])
_phrases = st.lists(st.sampled_from(WORDS), max_size=4).map(" ".join)
_sizes = st.tuples(st.integers(3, 40), st.integers(3, 40))


@st.composite
def cases(draw: st.DrawFn, *, attributes: bool = True, max_turns: int = 3, max_references: int = 3) -> Case:
    """Random conversations: references named in any order, again, later, or never; pictures and texts to produce."""
    turn_count = draw(st.integers(1, max_turns))
    pictured = draw(st.lists(st.booleans(), min_size=turn_count, max_size=turn_count))
    count = draw(st.integers(0, max_references)) + sum(pictured)
    numbers = draw(st.permutations(range(1, count + 1)))
    targets, references = list(numbers[: sum(pictured)]), list(numbers[sum(pictured) :])
    turns, visible = [], list(references)
    for has_picture in pictured:
        instruction, bindings = draw(_instructions(tuple(visible), attributes))
        if has_picture:
            visible.append(targets[0])
            turns.append(Turn(instruction, target=targets.pop(0), bindings=bindings))
        else:
            turns.append(Turn(instruction, response=draw(_spaces) + draw(_phrases), bindings=bindings))
    return case(*turns, pictures=count, sizes={number: draw(_sizes) for number in range(1, count + 1)})


@st.composite
def _instructions(
    draw: st.DrawFn, allowed: tuple[int, ...], attributes: bool
) -> tuple[str, tuple[tuple[int, int], ...]]:
    kinds = ["words"] + ["picture"] * bool(allowed) + ["attribute"] * attributes
    text, tokens = "", 0
    for kind in draw(st.lists(st.sampled_from(kinds), max_size=7)):
        if kind == "words":
            text += draw(_spaces) + " " + draw(_phrases) + " " + draw(_spaces)
        elif kind == "picture":
            text += f"<image_{draw(st.sampled_from(allowed))}>"
        else:
            text += f"<{draw(st.sampled_from(ATTRIBUTES))}>"
            tokens += 1
    bound = {}
    if tokens and allowed and draw(st.booleans()):
        bound = draw(st.dictionaries(st.integers(0, tokens - 1), st.sampled_from(allowed), max_size=2))
    return text, tuple(sorted(bound.items()))


def spoken_of(turn: Turn, shown: Sequence[int]) -> list[int]:
    """The picture of each attribute token, read off the text by eye; `shown` stand before it. 0: none."""
    tags = re.findall(r"<(?:image_(\d+)|([a-z]+))>", turn.instruction)
    found = []
    for place, (number, name) in enumerate(tags):
        if name:
            after = [int(other) for other, _ in tags[place + 1 :] if other]
            before = [int(other) for other, _ in tags[:place] if other]
            found.append((after[:1] or before[-1:] or list(shown)[-1:] or [0])[0])
        assert bool(number) != bool(name)
    for index, number in turn.bindings:
        found[index] = number
    return found


# Content --------------------------------------------------------------------------------------------


def item(segments: Sequence[Segment], config: ModelConfig, *, seed: object = 0, as_pictures: bool = False) -> Item:
    """Random content for segments; a picture's depends on the seed and its number alone."""
    latents, pictures, patches, noise, u = {}, {}, {}, {}, {}
    for segment in segments:
        number, (rows, columns) = segment.image, segment.grid
        if segment.kind.latent:
            side, channels = config.latent.patch_size, config.latent.channels
            shape = (channels, rows * side, columns * side)
            latents[number] = torch.randn(shape, generator=generator(seed, "latent", number))
            width, height = segment.size
            pictures[number] = torch.rand((3, height, width), generator=generator(seed, "picture", number)) * 2 - 1
        if segment.kind is Kind.PATCH:
            assert config.vision is not None
            shape = (rows * columns, 3 * config.vision.patch_size**2)
            patches[number] = torch.randn(shape, generator=generator(seed, "patch", number))
        if segment.kind is Kind.TARGET:
            shape = (rows * columns, config.latent.features)
            noise[number] = torch.randn(shape, generator=generator(seed, "noise", number))
            u[number] = float(torch.randn(1, generator=generator(seed, "u", number)))
    content: dict[str, dict[int, Tensor]] = {"images": pictures} if as_pictures else {"latents": latents}
    return Item(segments, **content, patches=patches, noise=noise, u=u, name=f"sample {seed}")


def pack(cases: Sequence[Case], *, vision: bool = True, seed: object = 0) -> PackedBatch:
    """Laid out, filled and collated, in this order; sample i draws from (seed, i)."""
    config = tiny_config(vision=vision)
    items = [item(one.layout(vision=vision), config, seed=(seed, i)) for i, one in enumerate(cases)]
    return collate(items, SPECIALS, widths(config))


def sequence_order(batch: PackedBatch) -> Tensor:
    """[N] where in the batch each token of the samples' sequences, one behind another, stands."""
    keys = list(zip(batch.tags.sample.tolist(), batch.tags.place.tolist(), strict=True))
    return torch.tensor(sorted(range(batch.tokens), key=keys.__getitem__), dtype=torch.long)
