"""What a training run is: one typed model for the YAML in `configs/` and the overrides behind it."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from sigma_data.loading.loader import LoaderSettings
from sigma_data.planning.plan import PlanSettings
from sigma_data.settings_base import StrictModel
from sigma_data.storage.path_settings import LocalPath, ModelPath
from sigma_model.omnigen2.prompts import TRAINING_TOKENS, Route
from sigma_model.omnigen2.settings import TimeShift
from sigma_model.sampling.settings import Guidance

START = "start"
"""Folder, in that of a run, of the model that `from_run` was exported to."""
Below1 = Annotated[float, Field(ge=0, lt=1)]
_PASSES = 64
"""Packs whose gradients may add up in bfloat16: a summand of 1/64 of the sum still has three of its eight bits."""
Positive = Annotated[int, Field(ge=1)]


class ModelSettings(StrictModel):
    """Where the run starts from."""

    path: ModelPath = "tiny"
    """A directory in the released layout (BAGEL's, SIGMA's, OmniGen2's, SGT-Gen2's), or a preset: `tiny-base` has
    pretrained weights, others (`tiny`, `omnigen2-tiny`) start from random ones."""
    from_run: ModelPath | None = None
    """Start from the weights of another run, instead of `path`: its folder, or FOLDER@STEP for an older checkpoint.
    Optimiser, schedule and data begin anew. It is exported to OUT/start first, and may be removed afterwards."""
    from_weights: Literal["auto", "ema", "raw"] = "auto"
    """Of `from_run`: the averaged weights, or those of the step; auto is the average, if that run keeps one."""
    base: ModelPath | None = None
    """Where to find files that `path` lacks, as fine-tuned weights alone do."""
    adapter: LocalPath | None = None
    """A LoRA adapter in peft's files, merged into `path` before a run: the sum is written to OUT/start and may be
    removed afterwards, as with `from_run`. With `lora` a new adapter is trained on top."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the forward and backward pass; auto is bfloat16 on a GPU and float32 on a CPU."""
    master: Literal["float32", "bfloat16"] = "float32"
    """Of the trainable parameters; bfloat16 is rounded at random by a step, so that small steps are not lost. With LoRA
    they are float32. Frozen ones are kept in `dtype`."""
    quantize: Literal["nf4", "int8", "fp8"] | None = None
    """Keep the frozen weights of both experts' linear layers in 4 or 8 bits, under LoRA (QLoRA). They are turned into
    `dtype`, one at a time, to compute with; needs bitsandbytes, or for fp8 torchao."""
    vision: bool = True
    """Show references to the vision encoder, too; without, the run and its export have none, even if `path` has."""
    attribute_projection: bool = False
    """Train the paper's projection of attribute tokens (not in its release)."""
    group_mask: bool = True
    """Hide the images of other references from attribute tokens (SIGMA's paper, section 3); without, BAGEL's mask."""
    token_init: Literal["keep", "words"] = "keep"
    """What the rows of the fifteen attribute tokens start from in a new run: as they are in the weights, or the mean of
    the rows of their words, `style` for `<style>`. A resumed run has its own."""
    max_latent_size: int | None = Field(None, ge=1)
    """Latent patches a side of the largest image, e.g. 128 for 2048 pixels; by default the model's own (64 for BAGEL:
    1024 pixels). Positions past the released table follow from its formula; an export has the larger table."""
    attention: Literal["auto", "flex", "sdpa", "flash"] = "auto"
    """Implementation; auto is flex attention on a GPU and sdpa on a CPU."""
    seed: int = 0
    """Draws the weights of a preset that has none."""


class OptimizerSettings(StrictModel):
    """The optimiser and what is done to gradients before it."""

    kind: Literal["adamw", "muon"] = "adamw"
    """muon: steps of the layers' matrices are made orthogonal, the rest is AdamW's; trains random weights in
    about half the steps, and runs on one process."""
    lr: float = Field(2e-5, gt=0, allow_inf_nan=False)
    """Learning rate after the warm-up."""
    betas: tuple[Below1, Below1] = (0.9, 0.95)
    """Decay of AdamW's two moments per step."""
    eps: float = Field(1e-15, gt=0, allow_inf_nan=False)
    """Added to the root of the second moment."""
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False)
    """Not for norms, biases and embeddings."""
    states: Literal["float32", "8bit"] = "float32"
    """Of AdamW's two moments. 8bit: in blocks of 256 numbers, rounded at random; those of vectors stay float32."""
    offload: bool = False
    """Keep AdamW's moments in the memory of the CPU; a step streams them through the GPU."""
    clip: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Largest norm of the gradient; a longer one is scaled down."""
    spike: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Skip a step whose gradient norm, before clipping, is above this."""
    max_bad_steps: Positive = 10
    """Skipped steps in a row after which the run stops."""


class ScheduleSettings(StrictModel):
    """Learning rate over the steps, as a factor of `lr`."""

    kind: Literal["constant", "cosine", "linear"] = "cosine"
    """How the rate falls after the warm-up."""
    warmup: int = Field(0, ge=0)
    """Steps over which the rate rises from zero."""
    min_lr: float = Field(1e-7, ge=0, allow_inf_nan=False)
    """Where cosine and linear end."""


class LossSettings(StrictModel):
    """How the two losses add up; each is an average over all tokens of an optimiser step, on all ranks."""

    former_names: ClassVar[dict[str, str]] = {"picture": "image"}

    image: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Weight of the squared error of the velocity of target images."""
    text: float = Field(0.25, ge=0, allow_inf_nan=False)
    """Weight of the cross entropy of answers in words."""
    reweight_text: bool = True
    """Weight a text's tokens by length^-1/2, as BAGEL does."""
    timestep_shift: float = Field(1.0, gt=0, allow_inf_nan=False)
    """Above 1 more noise levels are drawn near pure noise."""


class Omnigen2Settings(StrictModel):
    """What OmniGen2 alone has; another model must have all of it as it is by default.

    Its dropout is `data.dropout.text`, how often a prompt is left out, and `data.dropout.latent`, how often a sample
    without its prompt loses all references, too.
    """

    route: Route = Route.VAE
    """Where references go: `vae` (latents to the transformer, OmniGen2's training), `mllm` (to the language model,
    whose states at image tokens are kept: SGT's), `both` (the states at image tokens left out: OmniGen2's chat)."""
    train_mllm: bool = False
    """Train the language model with the transformer, as SGT does; it is needed to learn answers in words."""
    time_shift: TimeShift = TimeShift.V1
    """How a target's size moves times towards noise; v1 is OmniGen2's training, v2 that of its sampler."""
    static_shift: bool = False
    """Move the times of all targets as those of 4,096 tokens."""
    max_pixels: int = Field(1_048_576, ge=1024)
    """Of a target, and of one or two references; of three references 9/16 of it each, of four or five a quarter."""
    text_tokens: int = Field(TRAINING_TOKENS, ge=64)
    """Of a prompt in its template, images not counted; longer ones are cut."""
    drop_openings: float = Field(0.5, ge=0, le=1)
    """How often a caption of a sample without references loses an opening as "The image shows", as in OmniGen2's
    training."""
    attribute_tokens: bool = False
    """Keep attribute tokens in prompts, as tokens of the language model's vocabulary (the release leaves them out);
    their rows are trained. With `model.group_mask` each sees its own reference alone among the latents."""


class FreezeSettings(StrictModel):
    """Which parameters are frozen."""

    und: bool = False
    """The understanding expert, with embeddings and vision encoder: SIGMA's generation-only recipe."""
    vit: bool = False
    """The vision encoder."""
    llm: bool = False
    """Both experts, embeddings and the text head."""
    except_attribute_tokens: bool = False
    """Train the rows of the fifteen attribute tokens although the embeddings are frozen, and nothing else of them.
    Gradients then pass through the frozen understanding expert, which takes memory and work."""
    patterns: tuple[str, ...] = ()
    """Regular expressions for names of parameters, e.g. 'layers\\.[0-9]\\.'."""

    @property
    def und_recorded(self) -> bool:
        """Whether gradients pass through the understanding expert's hidden states, be its weights frozen or not."""
        return self.except_attribute_tokens or not self.und


class LoraSettings(StrictModel):
    """Train LoRA adapters on linear layers instead of the weights."""

    rank: Positive = 16
    """Rank of the two matrices of an adapter."""
    alpha: float = Field(32.0, gt=0, allow_inf_nan=False)
    """An adapter's output is scaled by alpha / rank."""
    dropout: Literal[0] = 0
    """Not supported: a resumed run must repeat itself to the bit."""
    targets: tuple[str, ...] = (r"layers\.\d+\.gen\.(q|k|v|o|mlp\.(gate|up|down))$",)
    """Regular expressions for the linear layers."""
    train: tuple[str, ...] = ()
    """Regular expressions for parameters that are trained in full beside them."""


class EmaSettings(StrictModel):
    """An exponential moving average (EMA) of the trainable parameters, in float32."""

    decay: float = Field(0.9999, gt=0, lt=1)
    """Share of the average that a step keeps."""


class ParallelSettings(StrictModel):
    """How the work is spread over ranks."""

    shard: int | None = Field(None, ge=1)
    """Ranks that share one copy of the parameters (FSDP); by default all. Fewer give copies (HSDP)."""
    checkpointing: Literal["none", "selective", "full"] = "none"
    """Layers to compute again in the backward pass: none, every other, all."""
    compile: bool = False
    """Compile layer by layer (flex attention on a GPU)."""
    offload: bool = False
    """Keep parameters and optimiser states in the memory of the CPU (needs a GPU)."""
    threads: int | None = Field(None, ge=1)
    """Threads that a rank computes with on the CPU; by default as many as torch takes: OMP_NUM_THREADS, or all cores.
    With 1, sums are rounded alike however many cores a machine has; and threads that share cores with other work
    wait for one another, so that fewer may be faster."""


class CheckpointSettings(StrictModel):
    """When the state is saved."""

    every: int = Field(500, ge=0)
    """Steps; 0 saves at the end alone."""
    keep: Positive = 3
    """Newest checkpoints that stay on disk."""
    asynchronous: bool = True
    """Write to disk while training continues."""


class ValidationSettings(StrictModel):
    """Losses and generated images on held-out samples."""

    former_names: ClassVar[dict[str, str]] = {"pictures": "images", "picture_steps": "image_steps"}

    every: int = Field(500, ge=0)
    """Steps; 0 never."""
    split: str = "val"
    """Split of the corpora that is held out."""
    packs: Positive = 16
    """Packs over which losses are averaged."""
    seed: int = 0
    """Draws the noise, the same each time."""
    images: int = Field(4, ge=0)
    """Samples to generate each time."""
    image_steps: int = Field(20, ge=2)
    """Noise levels of the sampler."""
    text_scale: float = Field(Guidance.text, allow_inf_nan=False)
    """Guidance scale towards the text; 1 or less is no guidance, e.g. for a model that is hardly trained yet."""
    image_scale: float = Field(Guidance.image, allow_inf_nan=False)
    """The same towards the references."""


class LogSettings(StrictModel):
    """Where figures go. JSON lines are always written."""

    every: Positive = 1
    """Steps between lines of figures."""
    tensorboard: bool = True
    """Write TensorBoard's files, too."""
    wandb: str | None = None
    """Project name; needs the wandb package."""


class TrainConfig(StrictModel):
    """A whole run."""

    out: LocalPath
    """Folder of the run: checkpoints, logs, images."""
    steps: int | None = Field(None, ge=1)
    """Optimiser steps; this or `epochs`."""
    epochs: float | None = Field(None, gt=0, allow_inf_nan=False)
    """Length of the run in epochs; this or `steps`."""
    accumulate: Positive = 1
    """Packs a rank works on before each optimiser step."""
    model: ModelSettings = ModelSettings()
    data: PlanSettings
    loader: LoaderSettings = LoaderSettings()
    optimizer: OptimizerSettings = OptimizerSettings()
    schedule: ScheduleSettings = ScheduleSettings()
    loss: LossSettings = LossSettings()
    omnigen2: Omnigen2Settings = Omnigen2Settings()
    freeze: FreezeSettings = FreezeSettings()
    lora: LoraSettings | None = None
    ema: EmaSettings | None = EmaSettings()
    parallel: ParallelSettings = ParallelSettings()
    checkpoint: CheckpointSettings = CheckpointSettings()
    validation: ValidationSettings = ValidationSettings()
    log: LogSettings = LogSettings()

    @property
    def start(self) -> str:
        """The directory, or preset, whose weights the run starts from."""
        return str(self.out / START) if self.model.from_run is not None or self.model.adapter else self.model.path

    @model_validator(mode="after")
    def _one_length(self) -> TrainConfig:
        if (self.steps is None) == (self.epochs is None):
            said = "both set: leave one out, or set it to null" if self.steps is not None else "neither set: set one"
            raise ValueError(f"steps and epochs are {said}")
        return self

    @model_validator(mode="after")
    def _trainable_in_one_dtype(self) -> TrainConfig:
        if self.lora is not None and self.lora.train and self.model.master != "float32":
            raise ValueError("lora.train: needs model.master float32, for LoRA adapters are float32 as well")
        return self

    @model_validator(mode="after")
    def _keeps_what_is_added_up(self) -> TrainConfig:
        narrow = self.model.master == "bfloat16" and self.lora is None
        if self.optimizer.kind == "muon":
            for wrong, setting in (
                (narrow, "model.master bfloat16"),
                (self.optimizer.states != "float32", "optimizer.states 8bit"),
                (self.optimizer.offload, "optimizer.offload"),
            ):
                if wrong:
                    raise ValueError(f"{setting}: is for optimizer.kind adamw; muon works in float32 alone")
        if narrow and self.accumulate > _PASSES:
            raise ValueError(
                f"accumulate: gradients of {self.accumulate} packs would add up in bfloat16, where the last of more "
                f"than {_PASSES} are lost: set model.master to float32, or raise data.budget"
            )
        return self
