"""Settings that OmniGen2 has no use for, and data that it cannot learn, refused before any work is done."""

from __future__ import annotations

from collections.abc import Mapping

from pipelines.train.config import FreezeSettings, LossSettings, ModelSettings, TrainConfig
from sigma_data.errors import ConfigError
from sigma_data.sample import Family
from sigma_data.sequence.layout import Kind

_OF_MODEL = ("quantize", "vision", "attribute_projection", "token_init", "max_latent_size")
_OF_FREEZE = ("und", "llm", "except_attribute_tokens")


def check_for_omnigen2(model: ModelSettings) -> None:
    """Raise ConfigError for a setting of the model that OmniGen2 has not."""
    _refuse("model", model, ModelSettings(), _OF_MODEL)
    if model.attention == "flex":
        raise ConfigError("model.attention=flex is not for OmniGen2, whose samples need no mask: set it to auto")


def check_run(config: TrainConfig) -> None:
    """Raise ConfigError for settings of a run that OmniGen2 has not, or that contradict one another there."""
    check_for_omnigen2(config.model)
    _refuse("freeze", config.freeze, FreezeSettings(), _OF_FREEZE)
    _refuse("loss", config.loss, LossSettings(), ("timestep_shift",))
    if config.freeze.vit and not config.omnigen2.train_mllm:
        raise ConfigError(
            "freeze.vit: the language model is frozen with its vision encoder unless omnigen2.train_mllm is true: "
            "leave it out"
        )
    if config.lora is not None and config.lora.train:
        raise ConfigError("lora.train: OmniGen2 trains adapters alone: leave it out")
    if config.lora is not None and config.omnigen2.train_mllm:
        raise ConfigError(
            "lora gives adapters to the transformer alone, and omnigen2.train_mllm would train the whole language "
            "model beside them: leave one of them out"
        )


def check_learns(config: TrainConfig, tokens: Mapping[Family, Mapping[Kind, int]]) -> None:
    """Raise ConfigError where samples are answered in words and the language model is frozen, or nothing is learnt.

    `tokens`: as `Planner.kinds` has them.
    """
    told = sorted(family.value for family, kinds in tokens.items() if kinds.get(Kind.ANSWER))
    if told and not config.omnigen2.train_mllm:
        raise ConfigError(
            f"{', '.join(told)} samples are answered in words, which OmniGen2's language model alone learns: set "
            "omnigen2.train_mllm=true, or choose other families with data.corpora"
        )
    held = {"image": Kind.TARGET, "text": Kind.ANSWER}
    weights = {name: getattr(config.loss, name) for name in held}
    if not any(weights[name] and any(kinds.get(kind) for kinds in tokens.values()) for name, kind in held.items()):
        missing = "text" if weights["text"] else "image"
        raise ConfigError(
            f"loss.{missing} is the only loss with a weight, and no sample of data.corpora has it, so nothing can be "
            "trained: give the other loss a weight, or train on samples that have it"
        )


def unlikely(config: TrainConfig, *, trained: bool) -> list[str]:
    """What is possible and hardly meant, a line each. `trained`: there are weights to start from."""
    found = []
    if not trained and config.lora is not None:
        found.append(
            f"lora: all other parameters stay random, for model.path {config.model.path} has no weights: start from "
            "trained weights, or train all"
        )
    if config.omnigen2.attribute_tokens and not config.model.group_mask:
        found.append("model.group_mask=false: attribute tokens see the latents of all references")
    return found


def _refuse(section: str, values: object, usual: object, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(values, name) != getattr(usual, name):
            raise ConfigError(f"{section}.{name} has no meaning with an OmniGen2 model: leave it out")
