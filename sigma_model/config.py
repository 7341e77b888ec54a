"""What a model is made of, read from a released directory's own JSON files.

A directory in the released layout has `llm_config.json` and `vit_config.json`; what those do not say
(latent grid, VAE scale, resize rules) stands in our `sigma.json`, else follows from the shapes of the
tensors that lie there, else is BAGEL's. A preset is such a directory inside the package.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError, model_validator

from sigma_data.errors import ConfigError
from sigma_data.images.resize_rule import VAE_RULE, VIT_RULE, VQA_RULE, ResizeRule
from sigma_data.settings_base import StrictModel
from sigma_data.storage.paths import no_folder
from sigma_model.config_keys import language_values, vision_values
from sigma_model.model_files import LLM_FILE, VIT_FILE, how_to_fetch, read_json, released_shapes
from sigma_model.model_files import SIGMA_FILE as SIGMA_FILE
from sigma_model.model_files import VAE_FILE as VAE_FILE
from sigma_model.model_files import WEIGHT_FILES as WEIGHT_FILES
from sigma_model.model_files import find_file as find_file
from sigma_model.model_files import header_shapes as header_shapes
from sigma_model.model_files import refuse_shadow as refuse_shadow
from sigma_model.model_files import weight_files as weight_files

PRESETS = ("tiny", "tiny-base", "bagel-7b-mot")
"""Models by name. `tiny-base` has weights, for post-training (`tools/train_tiny_base.py`); the others are drawn."""

Positive = Annotated[int, Field(gt=0)]
Small = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Shapes = Mapping[str, Sequence[int]]


def _listed(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


def _prefixes(ours: Mapping[str, Any]) -> tuple[str, ...]:
    """`strip_prefix` of sigma.json before that is validated: names decide what else the configuration is."""
    said = _listed(ours.get("strip_prefix", ()))
    return tuple(said) if isinstance(said, list | tuple) and all(isinstance(one, str) for one in said) else ()


class LanguageConfig(StrictModel):
    """The language model: a Qwen2 with query and key norms, twice (one expert for each kind of token)."""

    vocab_size: Positive
    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    num_key_value_heads: Positive
    rms_norm_eps: Small = 1e-6
    rope_theta: Small = 1e6
    max_position_embeddings: Positive = 32768
    """The most tokens that one sample's sequence may have."""
    tie_word_embeddings: bool = False
    """Weights that hold no text head take the embeddings for it; one that they hold is used."""

    @property
    def head_dim(self) -> int:
        """Width of one head."""
        return self.hidden_size // self.num_attention_heads

    @model_validator(mode="after")
    def _divides(self) -> LanguageConfig:
        if self.hidden_size % self.num_attention_heads or self.num_attention_heads % self.num_key_value_heads:
            raise ValueError("heads must divide the hidden size, and key/value heads the heads")
        return self


class VisionConfig(StrictModel):
    """The SigLIP encoder; `num_hidden_layers` counts the layers in use (the release counts one more)."""

    hidden_size: Positive
    intermediate_size: Positive
    num_hidden_layers: Positive
    num_attention_heads: Positive
    patch_size: Positive
    grid: Positive
    """Patches a side of the learned position table."""
    layer_norm_eps: Small = 1e-6

    @model_validator(mode="after")
    def _divides(self) -> VisionConfig:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError("the ViT's heads must divide its hidden size")
        return self


class LatentConfig(StrictModel):
    """How images enter the language model as latents."""

    channels: Positive = 16
    patch_size: Positive = 2
    grid: Positive = 64
    """Latent patches a side of the position table (`max_latent_size`)."""
    downsample: Positive = 8

    @property
    def features(self) -> int:
        """Numbers a latent token: patch * patch * channels."""
        return self.patch_size**2 * self.channels

    @property
    def stride(self) -> int:
        """Pixels a latent token covers on a side."""
        return self.patch_size * self.downsample


class VaeConfig(StrictModel):
    """The autoencoder of the latents; `mult` are channel multiples of `ch` a resolution."""

    ch: Positive = 128
    mult: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 4, 4)
    num_res_blocks: Positive = 2
    z_channels: Positive = 16
    scale_factor: Annotated[float, Field(gt=0)] = 0.3611
    shift_factor: float = 0.1159

    @property
    def downsample(self) -> int:
        """Pixels a latent covers on a side."""
        return int(2 ** (len(self.mult) - 1))

    @classmethod
    def from_shapes(cls, shapes: Shapes) -> VaeConfig:
        """The widths that follow from the released names and shapes; scale and shift are the defaults.

        Raises ConfigError naming the tensor that is missing or of no such shape.
        """
        levels = {name for name in shapes if re.fullmatch(r"encoder\.down\.\d+\.block\.0\.conv1\.weight", name)}
        blocks = {name for name in shapes if re.fullmatch(r"encoder\.down\.0\.block\.\d+\.conv1\.weight", name)}
        try:
            ch = shapes["encoder.conv_in.weight"][0]
            widths = [shapes[f"encoder.down.{level}.block.0.conv1.weight"][0] for level in range(max(1, len(levels)))]
            z_channels = shapes["decoder.conv_in.weight"][1]
        except KeyError as error:
            missing = error.args[0]
            found = next((name for name in shapes if name.endswith(f".{missing}")), None)
            instead = f", but {found}: rename its tensors without {found.removesuffix(missing)!r}" if found else ""
            raise ConfigError(f"not an autoencoder with the released names: no tensor {missing}{instead}") from None
        except IndexError:
            raise ConfigError(
                "not an autoencoder with the released names: its convolutions have no such shape"
            ) from None
        if not ch or any(width % ch for width in widths):
            raise ConfigError(f"not an autoencoder as released: widths {widths} are not multiples of {ch}")
        return cls(
            ch=ch, mult=tuple(width // ch for width in widths), num_res_blocks=len(blocks), z_channels=z_channels
        )


Row = Annotated[int, Field(ge=0)]


class AttributeRows(StrictModel):
    """The row of the embedding table, and so the id, of each attribute token; one number is the first of 15 in turn."""

    style: Row
    subject: Row
    id: Row
    icon: Row
    text: Row
    pose: Row
    layout: Row
    perspective: Row
    lighting: Row
    background: Row
    environment: Row
    emotion: Row
    clothing: Row
    texture: Row
    select: Row

    @model_validator(mode="before")
    @classmethod
    def _in_turn(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {name: value + place for place, name in enumerate(cls.model_fields)}
        return value

    @model_validator(mode="after")
    def _differ(self) -> AttributeRows:
        if len(set(self.model_dump().values())) < len(self.model_dump()):
            raise ValueError("two attribute tokens have one row")
        return self


class ModelConfig(StrictModel):
    """A whole model. `vision` is None for weights that only generate."""

    language: LanguageConfig
    vision: VisionConfig | None
    latent: LatentConfig = LatentConfig()
    vae: VaeConfig = VaeConfig()
    vae_rule: ResizeRule = VAE_RULE
    vit_rule: ResizeRule = VIT_RULE
    vqa_rule: ResizeRule = VQA_RULE
    """For questions that are answered in words."""
    attribute_projection: bool = False
    """Add W tau to the image tokens an attribute token tau speaks of (SIGMA's paper; not in its release)."""
    attribute_rows: AttributeRows | None = None
    """Where the weights have the attribute tokens; None: behind Qwen2.5's own tokens, or as the tokenizer says."""
    strip_prefix: Annotated[tuple[str, ...], BeforeValidator(_listed)] = ()
    """What wrappers put into the names of the weights, as `module.`, to be read without it."""

    @property
    def rows(self) -> dict[str, int] | None:
        """`attribute_rows` by name."""
        return None if self.attribute_rows is None else self.attribute_rows.model_dump()

    def with_rows(self, rows: Mapping[str, int]) -> ModelConfig:
        """The same model, saying where its weights have the attribute tokens."""
        return self.model_copy(update={"attribute_rows": AttributeRows(**rows)})

    def with_grid(self, side: int) -> ModelConfig:
        """The same model for images as large as `side` latent patches a side, more than it was released for.

        The longest side that images are brought to grows with the grid, and the most pixels with its square; the
        vision encoder, whose positions are learnt, sees them at the sizes it knows. Raises ConfigError for fewer.
        """
        old, rule = self.latent.grid, self.vae_rule
        if side < old:
            raise ConfigError(
                f"model.max_latent_size {side} is below the model's own {old}: leave it out; smaller images need no "
                "smaller grid"
            )
        longest = rule.max_size * side // old // rule.stride * rule.stride
        larger = replace(rule, max_size=longest, max_pixels=round(rule.max_pixels * (side / old) ** 2))
        return self.model_copy(
            update={"latent": self.latent.model_copy(update={"grid": side}), "vae_rule": larger if side > old else rule}
        )

    def to_dict(self) -> dict[str, Any]:
        """All of it by name: what peft asks the `config` of a model for."""
        return self.model_dump(mode="json")

    @model_validator(mode="after")
    def _fits(self) -> ModelConfig:
        if self.vae_rule.stride != self.latent.stride:
            raise ValueError(f"vae_rule.stride must be patch_size * downsample of the latents, {self.latent.stride}")
        if self.vae_rule.max_size > self.latent.grid * self.latent.stride:
            raise ValueError("vae_rule.max_size must be at most latent.grid * stride: positions end there")
        if self.latent.downsample != self.vae.downsample:
            raise ValueError(f"latent.downsample must be the autoencoder's, {self.vae.downsample}")
        if self.vision is not None:
            for name, rule in (("vit_rule", self.vit_rule), ("vqa_rule", self.vqa_rule)):
                if rule.stride != self.vision.patch_size:
                    raise ValueError(f"{name}.stride must be the patch_size of the ViT, {self.vision.patch_size}")
                if rule.max_size > self.vision.grid * self.vision.patch_size:
                    raise ValueError(
                        f"{name}.max_size must be at most the ViT's grid * patch_size: positions end there"
                    )
        return self

    @classmethod
    def from_directory(cls, directory: str | Path, *, base: str | Path | None = None) -> ModelConfig:
        """Read a directory in the released layout. Raises ConfigError naming the file at fault.

        SIGMA's own directories hold weights alone: `base` is the one they were trained from, where
        files are taken that `directory` lacks.
        """
        root = Path(directory)
        places = [root] if base is None else [root, Path(base)]
        for place in places:
            if not place.is_dir():
                raise ConfigError(f"{no_folder(place, 'directory of a model')}: {how_to_fetch(place)}")
        llm = find_file(LLM_FILE, *places)
        language = language_values(read_json(llm), llm)
        sigma, vit, ae = (find_file(name, *places) for name in (SIGMA_FILE, VIT_FILE, VAE_FILE))
        ours = read_json(sigma) if sigma.exists() else {}
        shapes = released_shapes(root, strip=_prefixes(ours))
        try:
            values: dict[str, Any] = {"language": LanguageConfig(**language), "vision": None}
            if values["language"].tie_word_embeddings and not shapes:
                raise ValueError("tied embeddings are those of weights, and there are none")
            if shapes:
                values |= _latent_from(shapes)
            vit_used = not shapes or any(name.startswith("vit_model.") for name in shapes)
            if vit.exists() and vit_used:
                values["vision"] = _vision(vision_values(read_json(vit), vit), shapes)
            if ae.exists():
                values["vae"] = ours["vae"] = vae = _vae(ae, ours.get("vae", {}))
                values["latent"] = values.get("latent", LatentConfig()).model_copy(
                    update={"downsample": vae.downsample}
                )
            latent = values.get("latent", LatentConfig())
            values["vae_rule"] = _fitted(VAE_RULE, latent.stride, latent.grid)
            if isinstance(vision := values["vision"], VisionConfig):
                values["vit_rule"] = _fitted(VIT_RULE, vision.patch_size, vision.grid)
                values["vqa_rule"] = _fitted(VQA_RULE, vision.patch_size, vision.grid)
            return cls(**{**values, **ours})
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"{root}: its configuration does not fit a model: {where}: {first['msg']}") from None
        except (KeyError, IndexError, TypeError, ValueError, ArithmeticError) as error:
            raise ConfigError(f"{root}: its configuration does not fit a model ({error!r})") from None

    def write(self, directory: str | Path) -> None:
        """Write the three JSON files of the released layout."""
        from sigma_data.storage.files import dump_json, write_atomic

        root = Path(directory)
        root.mkdir(parents=True, exist_ok=True)
        # Weights are written with a text head of their own, tied or not.
        llm = {**self.language.model_dump(), "hidden_act": "silu", "tie_word_embeddings": False, "qk_norm": True}
        write_atomic(root / LLM_FILE, dump_json({**llm, "layer_module": "Qwen2MoTDecoderLayer"}))
        if self.vision is not None:
            vit = self.vision.model_dump(exclude={"grid"})
            vit |= {"num_hidden_layers": self.vision.num_hidden_layers + 1, "num_channels": 3}
            vit |= {"image_size": self.vision.grid * self.vision.patch_size, "hidden_act": "gelu_pytorch_tanh"}
            write_atomic(root / VIT_FILE, dump_json(vit))
        ours = self.model_dump(mode="json", exclude={"language", "vision", "strip_prefix"})
        write_atomic(root / SIGMA_FILE, dump_json(ours))


def preset_directory(name: str) -> Path:
    """The directory of a preset. Raises ConfigError for an unknown name."""
    if name not in PRESETS:
        raise ConfigError(f"{name!r} is no preset: choose one of {', '.join(PRESETS)}, or name a directory")
    return Path(__file__).parent / "presets" / name


def preset(name: str) -> ModelConfig:
    """The configuration of a preset. Raises ConfigError for an unknown name."""
    return ModelConfig.from_directory(preset_directory(name))


def _fitted(rule: ResizeRule, stride: int, grid: int) -> ResizeRule:
    """A rule for tokens of another size, or fewer of them, than BAGEL's."""
    most = min(rule.max_size, grid * stride)
    return replace(rule, stride=stride, max_size=most, min_size=min(rule.min_size, most // 2))


def _latent_from(shapes: Shapes) -> dict[str, Any]:
    """The latent geometry that follows from tensor shapes, with patches of 2 x 2 as in every release."""
    found: dict[str, int] = {}
    if "latent_pos_embed.pos_embed" in shapes:
        found["grid"] = round(shapes["latent_pos_embed.pos_embed"][0] ** 0.5)
    if "vae2llm.weight" in shapes:
        found["channels"] = shapes["vae2llm.weight"][1] // 4
    return {"latent": LatentConfig(**found)}


def _vae(path: Path, said: Any) -> VaeConfig:
    """The autoencoder as sigma.json describes it; what that leaves out, as the shapes of its tensors say."""
    if not isinstance(said, dict):
        raise ConfigError(f"{SIGMA_FILE} beside {path}: vae must be a JSON object")
    found: dict[str, Any] = {}
    if not {"ch", "mult", "num_res_blocks", "z_channels"} <= set(said):
        try:
            found = VaeConfig.from_shapes(header_shapes(path)).model_dump(exclude={"scale_factor", "shift_factor"})
        except ConfigError as error:
            raise ConfigError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    return VaeConfig(**{**found, **said})


def _vision(vit: Mapping[str, Any], shapes: Shapes) -> VisionConfig:
    known = {name: value for name, value in vit.items() if name in VisionConfig.model_fields}
    grid = int(vit["image_size"]) // int(vit["patch_size"])
    table = shapes.get("vit_model.vision_model.embeddings.position_embedding.weight")
    if table:
        grid = round(table[0] ** 0.5)
    return VisionConfig(**{**known, "num_hidden_layers": int(vit["num_hidden_layers"]) - 1, "grid": grid})
