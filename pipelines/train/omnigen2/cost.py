"""How much arithmetic OmniGen2's training takes: counts of tokens and pairs, and operations for each.

A product of [m, k] and [k, n] is 2 m k n operations. A linear layer's backward pass is one such product for its input's
gradient and one for its weight's. Attention is 4 D operations a pair of tokens forward and 8 D backward. Norms,
lookups, positions and activation functions are not counted, nor is the autoencoder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from pipelines.train.estimate.flops import Work
from pipelines.train.omnigen2.batch import Omnigen2Batch
from pipelines.train.omnigen2.description import Omnigen2Description
from sigma_model.omnigen2.config import TransformerConfig


@dataclass(frozen=True)
class Counts:
    """What the arithmetic depends on; sums of batches are batches' sums.

    Tokens: `text` of prompts as the transformer takes them, `latent` of references, `target`; `pairs` of all three in
    a sample, and inside each stage. `asked`: tokens of the language model, `asked_pairs` what they see of one another
    (all of their row), `padding` behind them, `learnt` answer tokens. `patches` and `patch_pairs` of its vision
    encoder. `pixels` and `pixel_pairs` that the autoencoder encodes.
    """

    samples: int = 0
    text: int = 0
    latent: int = 0
    target: int = 0
    pairs: int = 0
    text_pairs: int = 0
    latent_pairs: int = 0
    target_pairs: int = 0
    asked: int = 0
    asked_pairs: int = 0
    padding: int = 0
    learnt: int = 0
    patches: int = 0
    patch_pairs: int = 0
    pixels: int = 0
    pixel_pairs: int = 0
    images: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(**{one.name: getattr(self, one.name) + getattr(other, one.name) for one in fields(self)})

    def scaled(self, factor: float) -> Counts:
        """So many times as much, rounded."""
        return Counts(**{one.name: round(getattr(self, one.name) * factor) for one in fields(self)})

    @property
    def planned(self) -> int:
        """Tokens as packs count them."""
        return self.asked + self.latent + self.target

    @property
    def work(self) -> Work:
        """The same as a log's kinds of tokens: `text` and `patch` are what the language model takes."""
        merged = max(0, self.asked - self.patches // 4)
        return Work(
            text=merged,
            patch=self.patches // 4,
            latent=self.latent,
            target=self.target,
            answer=self.learnt,
            images=self.images,
            pairs=self.pairs,
            patch_pairs=self.patch_pairs,
            pixels=self.pixels,
            pixel_pairs=self.pixel_pairs,
        )

    @property
    def joint(self) -> int:
        """Tokens of the main layers."""
        return self.text + self.latent + self.target


def sample_counts(
    text: int, references: Sequence[int], target: int, *, asked: int, patches: Sequence[int], stride: int
) -> Counts:
    """Of one image to be made: tokens of its text, references and target; `patches` of images in the language model."""
    latent = sum(references)
    pixels = [tokens * stride**2 for tokens in (*references, target)]
    return Counts(
        samples=1,
        text=text,
        latent=latent,
        target=target,
        pairs=(text + latent + target) ** 2,
        text_pairs=text**2,
        latent_pairs=sum(one**2 for one in references),
        target_pairs=target**2,
        asked=asked,
        asked_pairs=asked**2,
        patches=sum(patches),
        patch_pairs=sum(one**2 for one in patches),
        pixels=sum(pixels),
        pixel_pairs=sum(one**2 for one in pixels),
        images=len(pixels),
    )


def answer_counts(asked: int, learnt: int, patches: Sequence[int]) -> Counts:
    """Of one conversation."""
    return Counts(
        asked=asked,
        asked_pairs=asked**2,
        learnt=learnt,
        patches=sum(patches),
        patch_pairs=sum(one**2 for one in patches),
    )


def padding_of(prompts: Sequence[int], answers: Sequence[int]) -> Counts:
    """The padding of a pack whose rows have these lengths: each kind to its longest, with the idle row of each."""
    return Counts(padding=sum((len(rows) + 1) * max(rows, default=0) - sum(rows) for rows in (prompts, answers)))


def counts_of(batch: Omnigen2Batch, description: Omnigen2Description) -> Counts:
    """Of a batch, from its shapes."""
    shapes, image_token = description.geometry, description.tokenizer.ids("<|image_pad|>", [1])[0]
    sides = [latent.shape[-2:] for latent in batch.known_latents] or [image.shape[-2:] for image in batch.images]
    unit = shapes.stride if batch.images else description.config.patch_size
    tokens = [int(side[0]) * int(side[1]) // unit**2 for side in sides]
    found = Counts()
    patches = iter([int(grid.prod()) for grids in batch.prompt_grids for grid in grids])
    shown = shapes.route.shows_images
    for references, target, ids in zip(batch.references, batch.targets, batch.prompt_ids, strict=True):
        pads = int((ids == image_token).sum()) if shown else 0
        mine = _taken(patches, 4 * pads)
        text = len(ids) if shapes.route.keeps_image_states else len(ids) - pads
        found += sample_counts(
            text, [tokens[one] for one in references], tokens[target],
            asked=len(ids), patches=mine, stride=shapes.stride,
        )  # fmt: skip
    patches = iter([int(grid.prod()) for grids in batch.answer_grids for grid in grids])
    for ids, labels in zip(batch.answer_ids, batch.answer_labels, strict=True):
        mine = _taken(patches, 4 * int((ids == image_token).sum()))
        found += answer_counts(len(ids), int((labels[1:] >= 0).sum()), mine)
    return found + padding_of([len(ids) for ids in batch.prompt_ids], [len(ids) for ids in batch.answer_ids])


def _taken(patches: object, total: int) -> list[int]:
    """The next images, of so many patches in all."""
    found: list[int] = []
    while sum(found) < total:
        found.append(next(patches))  # type: ignore[call-overload]
    return found


@dataclass(frozen=True)
class Rates:
    """Operations for each unit of `Counts`, forward and backward. `trained`: what learns of the transformer."""

    forward: Mapping[str, float]
    backward: Mapping[str, float]
    again: float
    """Share of the transformer's and a trained language model's forward pass that checkpointing computes again."""

    def flops(self, counts: Counts) -> float:
        """Of the forward and backward pass."""
        return self._sum(self.forward, counts) + self._sum(self.backward, counts)

    def hardware(self, counts: Counts) -> float:
        """With what checkpointing computes again, wherever there is a backward pass."""
        again = {name: rate for name, rate in self.forward.items() if self.backward.get(name)}
        return self.flops(counts) + self.again * self._sum(again, counts)

    @staticmethod
    def _sum(rates: Mapping[str, float], counts: Counts) -> float:
        return sum(rate * (counts.joint if name == "joint" else getattr(counts, name)) for name, rate in rates.items())


def rates_of(
    config: TransformerConfig, mllm: Mapping[str, object], *, lora: int | None, trains_mllm: bool, checkpointing: str
) -> Rates:
    """The rates of a model. `mllm` is its `config.json`; `lora` a rank, where adapters alone are trained."""
    width, heads = config.hidden_size, config.num_kv_heads * config.head_dim
    attention = 2 * width * (2 * width + 2 * heads)
    block = attention + 2 * 3 * width * config.inner_width
    modulation = 2 * 4 * config.time_width * width
    layers, refiners = config.num_layers, config.num_refiner_layers
    forward: dict[str, float] = {
        "text": refiners * block + 2 * config.text_feat_dim * width,
        "latent": refiners * block + 2 * config.features * width,
        "target": refiners * block + 2 * config.features * width + 2 * width * config.out_features,
        "joint": layers * block,
        "pairs": layers * 4 * width,
        **{f"{name}_pairs": refiners * 4 * width for name in ("text", "latent", "target")},
        "samples": (layers + 2 * refiners) * modulation + 2 * config.time_width * (256 + config.time_width + width),
    }
    adapters = 0.0 if lora is None else 2.0 * lora * (6 * width + 2 * heads)
    backward: dict[str, float] = {name: 2 * rate for name, rate in forward.items()}
    if lora is not None:
        # Weights get no gradient, their inputs do; adapters are two thin layers beside four of a block.
        backward = {name: rate if "pairs" not in name else 2 * rate for name, rate in forward.items()}
        backward["samples"] = 0
        for name in ("text", "latent", "target"):
            forward[name] += refiners * adapters
            backward[name] += 2 * refiners * adapters
        forward["joint"] += layers * adapters
        backward["joint"] += 2 * layers * adapters
    language = _mllm_rates(mllm)
    forward |= language
    if trains_mllm:
        backward |= {name: 2 * rate for name, rate in language.items()}
    return Rates(forward, backward, {"none": 0.0, "selective": 0.5, "full": 1.0}[checkpointing])


def _mllm_rates(config: Mapping[str, object]) -> dict[str, float]:
    text = config.get("text_config") or config
    vision = config["vision_config"]
    assert isinstance(text, Mapping)
    assert isinstance(vision, Mapping)
    width, inner, layers = (int(text[name]) for name in ("hidden_size", "intermediate_size", "num_hidden_layers"))
    head = width // int(text["num_attention_heads"])
    block = 2 * width * (2 * width + 2 * head * int(text["num_key_value_heads"])) + 2 * 3 * width * inner
    wide, deep = int(vision["hidden_size"]), int(vision["depth"])
    inside = 2 * 4 * wide**2 + 2 * 3 * wide * int(vision["intermediate_size"])
    merged = 4 * wide
    whole = len(vision.get("fullatt_block_indexes", ()))
    return {
        "asked": layers * block,
        "asked_pairs": layers * 4 * width / 2,
        "learnt": 2 * width * int(text["vocab_size"]),
        "patches": deep * inside + 2 * (merged**2 + merged * width) / 4,
        "patch_pairs": whole * 4 * wide,
    }
