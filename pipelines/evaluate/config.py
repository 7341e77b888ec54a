"""Settings of `sigma eval`, as a YAML file or the command's options have them."""

from __future__ import annotations

from pydantic import Field

from pipelines.common.inference_config import InferenceConfig
from pipelines.common.omnigen2_settings import omnigen2_settings, refuse_omnigen2_settings
from pipelines.evaluate.defaults import BATCH, MAX_TOKENS, Stage
from pipelines.evaluate.generate import Generation
from pipelines.evaluate.runner import EvalOptions
from sigma_data.storage.path_settings import LocalPath
from sigma_model.sampling.settings import Order


class EvalConfig(InferenceConfig):
    """A benchmark, a model, and how it answers."""

    benchmark: str
    """`sigma:`, `world:`, `segmentation:`, `questions:`, `geneval:` or `cv-bench:` and a path."""
    out: LocalPath
    """Folder of images, scores and report."""
    name: str | None = None
    """What the report calls the run; null is the model's name."""
    split: str | None = None
    """Of a corpus; null is `test`."""
    limit: int | None = Field(None, ge=1)
    """At most so many items, families taking turns."""
    images_per_prompt: int | None = Field(None, ge=1)
    metrics: tuple[str, ...] | None = None
    """General metrics; null are those usual for the benchmark."""
    metric_model: dict[str, str] = Field(default_factory=dict)
    """Backbone of a metric -> hub name or directory."""
    layout: Order = Order.INTERLEAVED
    max_tokens: int = MAX_TOKENS
    batch: int = Field(BATCH, ge=1)
    nproc: int | None = Field(None, ge=1)
    """Processes that generate; null is one per GPU, or one."""
    compare: tuple[LocalPath, ...] = ()
    """Other evaluations for the report, the first as the baseline."""
    stage: Stage | None = None
    """Only this stage; null is all of them."""

    def options(self) -> EvalOptions:
        """What the pipeline takes. Raises ConfigError for sampler settings that make no sense."""
        from pipelines.train.launch import default_nproc

        if not self.omnigen2:
            refuse_omnigen2_settings(self)
        generation = Generation(
            seed=self.seed,
            batch=self.batch,
            order=self.layout,
            settings=self.sampling,
            max_tokens=self.max_tokens,
            temperature=self.temperature,
            understanding=self.understanding,
            omnigen2=omnigen2_settings(self) if self.omnigen2 else None,
        )
        return EvalOptions(
            benchmark=self.benchmark, out=self.out, model=self.model, base=self.base, name=self.name,
            split=self.split, limit=self.limit, size=self.size, images=self.images_per_prompt,
            metrics=self.metrics, models=self.metric_model, generation=generation,
            nproc=self.nproc or (default_nproc() if self.device_map is None else 1), device=self.device,
            dtype=self.dtype, device_map=self.device_map, quantization=self.quantize, adapter=self.adapter,
            compare=self.compare,
            stage=self.stage,
        )  # fmt: skip
