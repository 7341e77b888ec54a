"""How much arithmetic a training step is: exact counts of tokens and visible pairs, and formulas over them.

All work is linear in a few counts of a batch, so the network is walked through once, on shapes alone, and a
step costs a dozen multiplications. A utilisation (MFU) from these figures counts what the mask shows, not N x N.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import cache

import torch

from pipelines.train.config import FreezeSettings, LoraSettings
from pipelines.train.freeze import apply_freeze
from pipelines.train.lora import add_lora
from pipelines.train.token_rows import add_token_rows
from sigma_data.instruction import ATTRIBUTES
from sigma_data.loading.batch import PackedBatch
from sigma_model.attention_mask import visible_pairs
from sigma_model.config import ModelConfig, VaeConfig, VisionConfig
from sigma_model.model import SigmaModel

_PEAKS = (
    (r"(NVIDIA )?A[18]00-(SXM4|PCIE)-[48]0GB|NVIDIA A[18]00 80GB PCIe", 312.0),
    (r"NVIDIA A30", 165.0),
    (r"NVIDIA A40", 149.7),
    (r"NVIDIA RTX A6000", 154.8),
    (r"NVIDIA H[18]00 80GB HBM3", 989.4),
    (r"NVIDIA H[18]00 PCIe", 756.5),
    (r"NVIDIA H[12]00 NVL", 835.5),
    (r"NVIDIA H200", 989.4),
    (r"NVIDIA GH200 (480GB|96GB HBM3|144G HBM3e)", 989.4),
    (r"NVIDIA H20", 148.0),
    (r"NVIDIA B200", 2250.0),
    (r"NVIDIA GB200", 2500.0),
    (r"NVIDIA L40", 181.05),
    (r"NVIDIA L40S", 362.05),
    (r"NVIDIA L4", 121.0),
    (r"NVIDIA RTX 6000 Ada Generation", 364.2),
    (r"NVIDIA GeForce RTX 3090", 71.0),
    (r"NVIDIA GeForce RTX 4090", 165.2),
    (r"NVIDIA GeForce RTX 5090", 209.5),
    (r"AMD Instinct MI300X( OAM)?", 1307.4),
    (r"AMD Instinct MI325X( OAM)?", 1307.4),
    (r"AMD Instinct MI350X( OAM)?", 2306.9),
    (r"AMD Instinct MI355X( OAM)?", 2516.6),
)
"""Names as `torch.cuda.get_device_name` gives them -> 10^12 operations a second, from the vendors' data sheets.

Of 16-bit floats with 32-bit sums; dense: most sheets print twice that, for sparse matrices. Whole names, for a
laptop's, a slice (MIG) of a GPU or another variant has fewer units and the same words in its name.
"""


def peak_flops(device_name: str, dtype: torch.dtype) -> float | None:
    """Most dense operations a second of a device by its name; None where we do not know, so that no MFU is shown.

    Known for bfloat16 and float16 alone: what float32 reaches depends on whether it may be rounded to TF32.
    """
    if dtype not in (torch.bfloat16, torch.float16):
        return None
    return next((peak * 1e12 for pattern, peak in _PEAKS if re.fullmatch(pattern, device_name)), None)


@dataclass(frozen=True)
class Work:
    """What the arithmetic of batches depends on; sums of batches are batches' sums.

    Tokens: `text` with all delimiters, ViT `patch`, clean `latent`, `target`, and `answer` (text tokens that predict
    one). `images` as latents, `hints` (attribute tokens that refer to an image). `pairs`: (query, key) that
    attention computes; `patch_pairs`: the same inside the ViT. `pixels` that the VAE encodes, and
    `pixel_pairs`, the sum of their squares an image.
    """

    text: int = 0
    patch: int = 0
    latent: int = 0
    target: int = 0
    answer: int = 0
    images: int = 0
    hints: int = 0
    pairs: int = 0
    patch_pairs: int = 0
    pixels: int = 0
    pixel_pairs: int = 0

    @property
    def und_tokens(self) -> int:
        """Tokens of the understanding expert."""
        return self.text + self.patch

    @property
    def gen_tokens(self) -> int:
        """Tokens of the generation expert."""
        return self.latent + self.target

    @property
    def tokens(self) -> int:
        """All of them."""
        return self.und_tokens + self.gen_tokens

    def __add__(self, other: Work) -> Work:
        mine, theirs = asdict(self), asdict(other)
        return Work(**{name: mine[name] + theirs[name] for name in mine})


def work_of(batch: PackedBatch, *, group_mask: bool) -> Work:
    """The work that a batch is, from its shapes; no tensor is read."""
    patch_counts = [rows * columns for rows, columns in batch.patch_grids]
    pixels = [image.shape[-2] * image.shape[-1] for image in batch.images]
    target = len(batch.target_slots)
    return Work(
        text=len(batch.text_slots),
        patch=sum(patch_counts),
        latent=batch.n_gen - target,
        target=target,
        answer=len(batch.answer_slots),
        images=len(batch.latent_grids),
        hints=len(batch.hint_ids),
        pairs=visible_pairs(batch.runs, group_mask=group_mask),
        patch_pairs=sum(count**2 for count in patch_counts),
        pixels=sum(pixels),
        pixel_pairs=sum(count**2 for count in pixels),
    )


@dataclass(frozen=True)
class Parameters:
    """The network's parameters by name, LoRA adapters included, and which of them are trainable."""

    shapes: Mapping[str, tuple[int, ...]]
    trainable: frozenset[str]

    def trains(self, module: str) -> bool:
        """Whether a module has trainable parameters."""
        return any(name.startswith(f"{module}.") for name in self.trainable)


@cache
def parameters_of(config: ModelConfig, frozen: FreezeSettings, lora: LoraSettings | None) -> Parameters:
    """The parameters of a run, from a network without numbers. Raises ConfigError as training does."""
    with torch.device("meta"):
        model = SigmaModel(config)
    apply_freeze(model, frozen)
    if lora is not None:
        add_lora(model, lora, seed=0)
    if frozen.except_attribute_tokens:
        add_token_rows(model, range(len(ATTRIBUTES)))
    parameters = dict(model.named_parameters())
    trainable = frozenset(name for name, parameter in parameters.items() if parameter.requires_grad)
    return Parameters({name: tuple(parameter.shape) for name, parameter in parameters.items()}, trainable)


def training_flops(
    config: ModelConfig, work: Work, *, frozen: FreezeSettings, lora: LoraSettings | None, checkpointing: str
) -> tuple[float, float]:
    """(model, hardware): operations of the forward and backward pass; with what checkpointing computes again.

    A product of [m, k] and [k, n] is 2 m k n operations. A linear layer's forward pass is one such product; its
    backward pass one more where its weight is trainable, and one more where its input needs a gradient. Attention is
    4 D operations a visible pair of tokens (D = heads x head width), and 8 D backward where anything before it
    learns. The last layer's output and MLP are those of the answers' and targets' tokens alone. In the ViT, pairs
    are those inside an image. LoRA of rank r adds a product through r. Lookups, norms, activation functions and
    positions are not counted, nor is the VAE (`vae_flops`).

    Hardware: in layers that checkpointing computes again, the forward pass counts twice, but for the last product,
    before which recomputation stops. FLOPs of a utilisation (MFU) are the model's.
    """
    once, again = _rates(config, frozen, lora, checkpointing)
    model = sum(_by_module(once, work).values())
    return model, model + sum(_by_module(again, work).values())


def training_flops_by_module(
    config: ModelConfig, work: Work, *, frozen: FreezeSettings, lora: LoraSettings | None, checkpointing: str
) -> dict[str, float]:
    """The hardware's operations of `training_flops` by kind of module, and what is computed again; largest first."""
    once, again = _rates(config, frozen, lora, checkpointing)
    found = _by_module(once, work) | {"computed again": sum(_by_module(again, work).values())}
    return dict(sorted(((name, count) for name, count in found.items() if count), key=lambda pair: -pair[1]))


def _by_module(rates: Mapping[_Key, float], work: Work) -> dict[str, float]:
    counts = asdict(work) | {"und": work.und_tokens, "gen": work.gen_tokens}
    found: dict[str, float] = defaultdict(float)
    for (module, tokens), rate in rates.items():
        found[module] += rate * counts[tokens]
    return dict(found)


def gradients_enter(config: ModelConfig, parameters: Parameters, frozen: FreezeSettings) -> tuple[bool, bool]:
    """Whether gradients are wanted of what enters the first layer, of the understanding and the generation expert."""
    return _Walk(parameters, freeze_und=not frozen.und_recorded, checkpointing="none").embed(config)


def vae_flops(config: VaeConfig, work: Work) -> float:
    """Operations of encoding the images: its convolutions a pixel, and attention between all latents of one."""
    width = config.ch
    pixel = 2.0 * 9 * 3 * width
    share = 1.0  # of the pixels at this level
    for level, multiple in enumerate(config.mult):
        out = config.ch * multiple
        for _ in range(config.num_res_blocks):
            pixel += share * 2 * (9 * width * out + 9 * out * out + (width != out) * width * out)
            width = out
        if level < len(config.mult) - 1:
            share /= 4
            pixel += share * 2 * 9 * out * out
    pixel += share * 2 * (4 * 9 * width * width + 4 * width * width + 9 * width * 2 * config.z_channels)
    return pixel * work.pixels + 4 * width * work.pixel_pairs / config.downsample**4


_Key = tuple[str, str]
"""A kind of module, and the count of `Work` that its operations grow with."""


@cache
def _rates(
    config: ModelConfig, frozen: FreezeSettings, lora: LoraSettings | None, checkpointing: str
) -> tuple[Mapping[_Key, float], Mapping[_Key, float]]:
    """Operations for each unit of a count of `Work`, or of und and gen tokens: the model's, and those done again."""
    walk = _Walk(parameters_of(config, frozen, lora), freeze_und=not frozen.und_recorded, checkpointing=checkpointing)
    und, gen = walk.embed(config)
    layers = config.language.num_hidden_layers
    for number in range(layers):
        with walk.checkpointed(number):
            und, gen = walk.layer(f"backbone.layers.{number}", und, gen, last=number == layers - 1)
    walk.linear("latent_out", "target", gen or walk.trains("backbone.norm_gen"))
    walk.linear("lm_head", "answer", frozen.und_recorded and (und or walk.trains("backbone.norm_und")))
    return walk.forward + walk.backward, walk.again


class _Walk:
    """One pass through the network on shapes: what each product takes, and whether gradients flow there.

    Truth values are whether a tensor needs a gradient.
    """

    def __init__(self, parameters: Parameters, *, freeze_und: bool, checkpointing: str) -> None:
        self.parameters = parameters
        self.trains = parameters.trains
        self._freeze_und = freeze_und
        self._every = {"none": 0, "selective": 2, "full": 1}[checkpointing]  # as `parallel.parallelize` does
        self.forward: Counter[_Key] = Counter()
        self.backward: Counter[_Key] = Counter()
        self.again: Counter[_Key] = Counter()
        self._ending = (("", "gen"), 0)  # the last product so far: of what, over which tokens; operations for each

    @contextmanager
    def checkpointed(self, number: int) -> Iterator[None]:
        """A layer, computed again where its number says so and a gradient goes through it, but for its last product."""
        forward, backward = Counter(self.forward), Counter(self.backward)
        yield
        if self._every and number % self._every == 0 and self.backward != backward:
            self.again += self.forward - forward
            key, rate = self._ending
            self.again[key] -= rate

    def linear(self, name: str, tokens: str, needs: bool, *, recorded: bool = True) -> bool:
        """A linear layer over a count of tokens; `needs`: its input's gradient is wanted."""
        weight = f"{name}.weight"
        rate = 2 * math.prod(self.parameters.shapes[weight])
        key = _module_of(name), tokens
        self.forward[key] += rate
        self._ending = key, rate
        if recorded:
            self.backward[key] += rate * ((weight in self.parameters.trainable) + needs)
        if f"{name}.lora_A.weight" in self.parameters.shapes:
            inner = self.linear(f"{name}.lora_A", tokens, needs, recorded=recorded)
            self.linear(f"{name}.lora_B", tokens, inner, recorded=recorded)
        return recorded and (needs or self.trains(name))

    def attention(self, pairs: str, width: int, needs: bool) -> bool:
        """Scores and weighted sums: a product each forward, two each backward."""
        key = "attention" if pairs == "pairs" else _VISION, pairs
        self.forward[key] += 4 * width
        self.backward[key] += 8 * width * needs
        return needs

    def embed(self, config: ModelConfig) -> tuple[bool, bool]:
        """What enters the first layer, of either expert."""
        und, gen = self.trains("backbone.embed"), self.linear("latent_in", "gen", False)
        gen |= self.linear("time_embedder.fc2", "images", self.linear("time_embedder.fc1", "images", False))
        if config.attribute_projection:
            hints = self.linear("attribute_projection", "hints", und)
            und, gen = und or hints, gen or hints
        if config.vision is not None:
            und |= self._vision(config.vision, config.language.num_hidden_layers)
        return und and not self._freeze_und, gen

    def _vision(self, config: VisionConfig, first: int) -> bool:
        """The encoder and the connector; its layers count on from number `first`."""
        x = self.linear("vision.patch_embedding", "patch", False) or self.trains("vision.position_embedding")
        for number in range(config.num_hidden_layers):
            with self.checkpointed(first + number):
                x = self._vision_layer(f"vision.layers.{number}", x, config.hidden_size)
        x |= self.trains("vision.norm")
        return self.linear("connector.fc2", "patch", self.linear("connector.fc1", "patch", x))

    def _vision_layer(self, name: str, x: bool, width: int) -> bool:
        normed = x or self.trains(f"{name}.norm1")
        qkv = [self.linear(f"{name}.{part}", "patch", normed) for part in "qkv"]
        x |= self.linear(f"{name}.out", "patch", self.attention("patch_pairs", width, any(qkv)))
        inner = self.linear(f"{name}.fc1", "patch", x or self.trains(f"{name}.norm2"))
        return self.linear(f"{name}.fc2", "patch", inner) or x

    def layer(self, name: str, und: bool, gen: bool, *, last: bool) -> tuple[bool, bool]:
        """Both experts around one attention; after the last layer's, the tokens with a loss alone."""
        grads = {"und": und, "gen": gen}
        attended = False
        for expert, x in grads.items():
            recorded = not (expert == "und" and self._freeze_und)
            normed = x or self.trains(f"{name}.{expert}.input_norm")
            for part in "qkv":
                needs = self.linear(f"{name}.{expert}.{part}", expert, normed, recorded=recorded)
                attended |= needs or (recorded and part != "v" and self.trains(f"{name}.{expert}.{part}_norm"))
        width = self.parameters.shapes[f"{name}.gen.q.weight"][0]
        self.attention("pairs", width, attended)
        for expert, x in grads.items():
            recorded = not (expert == "und" and self._freeze_und)
            tokens = {"und": "answer", "gen": "target"}[expert] if last else expert
            x |= self.linear(f"{name}.{expert}.o", tokens, attended, recorded=recorded)
            normed = x or self.trains(f"{name}.{expert}.post_norm")
            gate, up = (
                self.linear(f"{name}.{expert}.mlp.{part}", tokens, normed, recorded=recorded) for part in ("gate", "up")
            )
            down = self.linear(f"{name}.{expert}.mlp.down", tokens, gate or up, recorded=recorded)
            grads[expert] = recorded and (x or down)
        return grads["und"], grads["gen"]


_VISION = "vision encoder"


def _module_of(name: str) -> str:
    """The kind of module that a linear layer belongs to."""
    if name.startswith(("vision.", "connector.")):
        return _VISION
    if name.startswith("backbone.layers."):
        return "experts' MLPs" if ".mlp." in name else "experts' projections"
    return "everything else"
