"""Checks of a run's settings against each other, the machine and the data, before any work is done.

Impossible settings are errors that name both settings and what to change; unlikely ones are warnings, which a dry run
and the first lines of a run print. docs/training.md lists all of them.
"""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from pipelines.train.config import ModelSettings, TrainConfig
from pipelines.train.estimate.flops import Parameters
from pipelines.train.optimizer import learning_rate
from sigma_data.corpus.corpus import COMMIT
from sigma_data.errors import ConfigError
from sigma_data.sample import Family
from sigma_data.sequence.layout import Kind
from sigma_data.text_format import counted
from sigma_model.quantization import Quantization, converter, is_quantised
from sigma_model.run_directory import RUN_CONFIG

Tokens = Mapping[Family, Mapping[Kind, int]]

_LOSSES = {"image": Kind.TARGET, "text": Kind.ANSWER}
_SLOW = 1e-9
"""A learning rate below this moves a float32 weight of usual size by less than its rounding in any run."""


@dataclass(frozen=True)
class EpochContent:
    """What an epoch shows a run. `tokens`: as `Planner.kinds` has them, `left_out`: samples that no pack holds."""

    tokens: Tokens
    samples: int
    packs: int
    left_out: int = 0


def check_settings(config: TrainConfig) -> None:
    """Raise ConfigError, naming both, for settings that exclude or contradict one another whatever the data is."""
    optimizer, schedule, loss = config.optimizer, config.schedule, config.loss
    if not loss.image and not loss.text:
        raise ConfigError("loss.image and loss.text are both 0, so nothing can be trained: give one of them a weight")
    if schedule.kind != "constant" and schedule.min_lr > optimizer.lr:
        raise ConfigError(
            f"schedule.min_lr {schedule.min_lr:g} is above optimizer.lr {optimizer.lr:g}, so the rate would rise where "
            f"schedule.kind={schedule.kind} lets it fall: lower schedule.min_lr, or raise optimizer.lr"
        )
    if optimizer.kind == "muon" and config.freeze.llm:
        raise ConfigError(
            "optimizer.kind=muon steps the matrices of the language model's layers, and freeze.llm leaves none "
            "trainable: set optimizer.kind=adamw, or freeze less"
        )
    model = config.model
    if model.quantize is not None and config.lora is None:
        raise ConfigError(
            f"model.quantize={model.quantize} keeps weights in too few bits to be trained, and without lora they "
            "would have to be: add lora, or leave model.quantize out"
        )
    if model.quantize is not None and config.parallel.offload:
        raise ConfigError(
            f"model.quantize={model.quantize} keeps its weights on the GPU, and parallel.offload would have them in "
            "the memory of the CPU: leave one of them out"
        )
    if model.from_run is not None and (model.path != ModelSettings().path or model.base is not None):
        raise ConfigError(
            f"model.from_run and model.{'base' if model.path == ModelSettings().path else 'path'} both say where to "
            "start: leave one of them out"
        )
    if model.from_run is not None and model.adapter is not None:
        raise ConfigError("model.from_run and model.adapter both make what a run starts from: leave one of them out")
    if model.from_run is None and model.from_weights != "auto":
        raise ConfigError(
            f"model.from_weights={model.from_weights} belongs to model.from_run: set that, or leave it out"
        )
    out = _real(str(config.out))
    places: list[tuple[str, str | None]] = [
        ("data.corpora", corpus.path) for corpus in config.data.corpora if "://" not in corpus.path
    ]
    places += [("model.path", model.path), ("model.base", model.base), ("model.from_run", model.from_run)]
    places += [("model.adapter", None if model.adapter is None else str(model.adapter))]
    for name, place in places:
        there = _real(place.partition("@")[0]) if place is not None else None
        if there == out:
            raise ConfigError(f"out and {name} both name {place}: a run has a folder of its own, change out")
        if there is not None and there in out.parents and _is_whole(there):
            raise ConfigError(f"out lies in {place}, which {name} names: a run has a folder of its own, change out")


def check_machine(config: TrainConfig, *, on_gpu: bool, flash: bool) -> None:
    """Raise ConfigError for settings that this machine cannot carry out. `flash`: flash-attn is there and loads."""
    attention = config.model.attention
    if attention == "flash" and not on_gpu:
        raise ConfigError("model.attention=flash needs a GPU, and this machine has none: set model.attention=auto")
    if attention == "flash" and not flash:
        raise ConfigError(
            "model.attention=flash needs the flash-attn package, which is not there or does not load: install it, or "
            "set model.attention=auto"
        )
    if attention == "flash" and config.model.dtype == "float32":
        raise ConfigError(
            "model.attention=flash computes in half precision, and model.dtype is float32: set model.dtype=bfloat16, "
            "or model.attention=auto"
        )
    if attention == "flex" and not on_gpu:
        raise ConfigError(
            "model.attention=flex has no backward pass on a CPU, and this machine has no GPU: set model.attention=auto"
        )
    for name, wanted in (("offload", config.parallel.offload), ("compile", config.parallel.compile)):
        if wanted and not on_gpu:
            raise ConfigError(f"parallel.{name} needs a GPU, and this run has none: leave it out")
    if config.model.quantize is not None:
        converter(Quantization(config.model.quantize), setting="model.quantize")  # names a library that is not there
    if config.log.wandb is not None and importlib.util.find_spec("wandb") is None:
        raise ConfigError("log.wandb: the wandb package is not installed: run `pip install wandb`, or set it to null")


def check_trainable(config: TrainConfig, trainable: Collection[str], tokens: Tokens) -> None:
    """Raise ConfigError where no loss that has a weight and samples reaches any trainable parameter.

    `trainable`: names of the trainable parameters, as `SigmaModel` has them. `tokens`: as `Planner.kinds` has them.
    """
    weights = {name: getattr(config.loss, name) for name in _LOSSES}
    held = {name: sum(kinds.get(kind, 0) for kinds in tokens.values()) for name, kind in _LOSSES.items()}
    answers = {"image": "with an image", "text": "in words"}
    active = [name for name in _LOSSES if weights[name] and held[name]]
    if not active:
        missing, other = ("text", "image") if weights["text"] else ("image", "text")
        raise ConfigError(
            f"loss.{other}=0 leaves the {missing} loss, and no sample of data.corpora is answered {answers[missing]}, "
            f"so nothing can be trained: give loss.{other} a weight, or train on samples that are"
        )
    if not any(_reached(name, loss, tokens) for name in trainable for loss in active):
        only = " and ".join(f"loss.{name}" for name in active)
        where = "lora.targets and freeze" if config.lora is not None else "freeze"
        raise ConfigError(
            f"{only} reaches no trainable parameter ({sorted(trainable)[0]} and {len(trainable) - 1:,} more get no "
            f"gradient from it), so nothing can be trained: change {where}, or give the other loss a weight and samples"
        )


def check_quantized(config: TrainConfig, trainable: Collection[str]) -> None:
    """Raise ConfigError where a weight that is kept in few bits would have to be trained; `trainable` as above."""
    if config.model.quantize is not None and (both := sorted(name for name in trainable if is_quantised(name))):
        raise ConfigError(
            f"lora.train matches {both[0]}, which model.quantize={config.model.quantize} keeps in too few bits to be "
            "trained: narrow the pattern, or give the layer an adapter by lora.targets"
        )


def check_projection(config: TrainConfig, trainable: Collection[str], *, released: bool) -> None:
    """Raise ConfigError where an attribute projection that is not `released`, so zero, is not trainable."""
    if config.model.attribute_projection and not released and not any("attribute_projection" in n for n in trainable):
        why = "lora trains adapters alone" if config.lora is not None else "freeze.patterns holds it"
        more = "add lora.train=['attribute_projection']" if config.lora is not None else "freeze less"
        raise ConfigError(
            f"model.attribute_projection starts at zero and must be trained, but {why}: {more}, or leave it out"
        )


def warnings(config: TrainConfig, epoch: EpochContent, *, steps: int, ranks: int) -> list[str]:
    """What is possible and hardly meant, a line each; `steps` are the whole run's."""
    return [*_of_data(config, epoch, steps, ranks), *_of_schedule(config, steps), *_of_conditions(config, epoch)]


def model_warnings(config: TrainConfig, parameters: Parameters, *, trained: bool) -> list[str]:
    """What is possible of the model's parameters and hardly meant, a line each.

    `trained`: there are weights to start from; otherwise they are random.
    """
    found = []
    shapes, suffix = parameters.shapes, ".lora_A.weight"
    own = {name: shape for name, shape in shapes.items() if ".lora_" not in name}
    held = sum(math.prod(shape) for name, shape in own.items() if name not in parameters.trainable)
    if not trained and held:
        every = sum(math.prod(shape) for shape in own.values())
        found.append(
            f"{'lora' if config.lora is not None else 'freeze'}: {held:,} of {every:,} parameters stay random, for "
            f"model.path {config.model.path} has no weights: start from trained weights, or train all"
        )
    sides = [
        (min(shape[1], shapes[f"{name.removesuffix(suffix)}.lora_B.weight"][0]), name.removesuffix(suffix))
        for name, shape in shapes.items()
        if name.endswith(suffix)
    ]
    if config.lora is not None and sides and config.lora.rank >= min(sides)[0]:
        side, name = min(sides)
        found.append(
            f"lora.rank {config.lora.rank:,} is not below the smaller side of {name}, {side:,}: LoRA then has more "
            "parameters than the weight itself: lower lora.rank, or train without LoRA"
        )
    if config.freeze.vit and not config.model.vision:
        found.append("freeze.vit: the run has no vision encoder, for model.vision is false")
    return found


def _of_data(config: TrainConfig, epoch: EpochContent, steps: int, ranks: int) -> list[str]:
    found = []
    for name, kind in _LOSSES.items():
        silent = sorted(family.value for family, kinds in epoch.tokens.items() if kinds.get(kind))
        if silent and not getattr(config.loss, name):
            found.append(f"loss.{name}=0: {', '.join(silent)} samples that need it teach nothing, or only in part")
    if epoch.left_out:
        found.append(
            f"data.budget {config.data.budget:,}: {counted(epoch.left_out, 'sample')} of "
            f"{epoch.left_out + epoch.samples:,} fit into no pack and are left out"
        )
    a_step = ranks * config.accumulate
    if a_step > epoch.packs:
        found.append(f"a step takes {counted(a_step, 'pack')}, and an epoch has {epoch.packs:,}: lower accumulate")
    if config.loader.latent_cache and steps * a_step <= epoch.packs:
        found.append("loader.latent_cache: the run is over within an epoch, in which no image comes twice")
    return found


def _of_schedule(config: TrainConfig, steps: int) -> list[str]:
    found = []
    optimizer, schedule = config.optimizer, config.schedule
    if schedule.warmup and schedule.warmup >= steps:
        most = learning_rate(max(0, steps - 1), steps, optimizer, schedule)
        found.append(
            f"schedule.warmup {schedule.warmup:,} is not over within {counted(steps, 'step')}: the rate ends at "
            f"{most:.3g} and never reaches optimizer.lr {optimizer.lr:g}, so little is trained: shorten the warm-up"
        )
    if optimizer.lr < _SLOW:
        found.append(f"optimizer.lr {optimizer.lr:g} is so small that hardly any weight will change")
    if optimizer.spike is not None and optimizer.spike < optimizer.clip:
        found.append(
            f"optimizer.spike {optimizer.spike:g} is below optimizer.clip {optimizer.clip:g}: steps that would be "
            "clipped are skipped"
        )
    if config.ema is not None and (start := config.ema.decay**steps) > 0.5:
        found.append(
            f"ema.decay {config.ema.decay} over {counted(steps, 'step')}: {100 * start:.0f} % of the average is "
            "still what it started from, and `sigma export` takes the average: lower ema.decay, or export --raw"
        )
    if config.validation.every > steps:
        found.append(f"validation.every {config.validation.every:,}: only once, for there are {steps:,} steps")
    if config.checkpoint.every > steps:
        found.append(f"checkpoint.every {config.checkpoint.every:,}: only at the end, for there {_are(steps)}")
    if config.log.every > steps:
        found.append(f"log.every {config.log.every:,}: only the last step, for there {_are(steps)}")
    return found


def _of_conditions(config: TrainConfig, epoch: EpochContent) -> list[str]:
    shown = {"text": "instructions", "latent": "references as latents", "patch": "references as ViT patches"}
    found = [
        f"data.dropout.{name}=1: no {what} are ever shown"
        for name, what in shown.items()
        if getattr(config.data.dropout, name) == 1 and (name != "patch" or config.model.vision)
    ]
    asked = sorted(family.value for family, kinds in epoch.tokens.items() if kinds.get(Kind.ANSWER))
    if asked and not config.model.vision:
        found.append(
            f"model.vision=false: {', '.join(asked)} samples are answered in words without their images, which the "
            "vision encoder alone is shown"
        )
    return found


def _reached(name: str, loss: str, tokens: Tokens) -> bool:
    """Whether a loss gives a parameter a gradient. An image's passes through all but the text head.

    A text's passes through the head, through the understanding expert and what feeds it; through the generation
    expert only where a sample has latents.
    """
    if loss == "image":
        return not name.startswith("lm_head")
    generating = name.startswith(("latent_in", "latent_out", "time_embedder")) or ".gen." in name or "norm_gen" in name
    latents = any(kinds.get(Kind.ANSWER) and kinds.get(Kind.LATENT) for kinds in tokens.values())
    return not generating or (latents and not name.startswith("latent_out"))


def _are(steps: int) -> str:
    return f"{'is' if steps == 1 else 'are'} {counted(steps, 'step')}"


def _real(path: str) -> Path:
    """A folder by its one name: without `..`, links and a slash at the end."""
    return Path(os.path.realpath(Path(path).expanduser()))


def _is_whole(folder: Path) -> bool:
    """Whether a folder is a corpus, a model or a run; another may hold all of them side by side."""
    return any((folder / name).exists() for name in (COMMIT, "llm_config.json", RUN_CONFIG))
