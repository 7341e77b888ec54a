"""Settings of `sigma eval`, as a YAML file or the command's options have them."""

from __future__ import annotations

from typing import Self

from pydantic import Field

from pipelines.common.answerer import answering_of
from pipelines.common.engine import EngineName
from pipelines.common.inference_config import InferenceConfig
from pipelines.common.model_copy import local_model
from pipelines.evaluate.defaults import BATCH, MAX_TOKENS, Stage
from pipelines.evaluate.generate import Generation
from pipelines.evaluate.runner import EvalOptions
from sigma_data.storage.path_settings import LocalPath, PathOrUri
from sigma_model.sampling.settings import Order


class EvalConfig(InferenceConfig):
    """A benchmark, a model, and how it answers."""

    benchmark: str
    """`sigma:`, `world:`, `segmentation:`, `questions:`, `geneval:` or `cv-bench:` and a path (of a corpus: or URI)."""
    model: PathOrUri | None = None
    """A directory in the released layout, a preset, or the URI of a directory, which is copied to the cache."""
    base: PathOrUri | None = None
    """Directory of files that the model's lacks."""
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
    engine: EngineName = "local"
    """Where results are scored: `local`, in this process, or `ray`."""
    address: str | None = None
    """The Ray cluster that scores: auto, or HOST:PORT."""
    task_resources: str | None = None
    """What Ray sets aside for a task, e.g. `CPU=2,memory=4GB`; null is one CPU."""

    def located(self) -> Self:
        """With the model on this machine. Raises SourceError and BuildError where it cannot be copied here."""
        places = {name: local_model(place) for name in ("model", "base") if (place := getattr(self, name)) is not None}
        return self.model_copy(update=places)

    def options(self) -> EvalOptions:
        """What the pipeline takes. Raises ConfigError for sampler settings that make no sense."""
        from pipelines.train.launch import default_nproc

        generation = Generation(
            **vars(answering_of(self, text=False)),
            seed=self.seed,
            batch=self.batch,
            order=self.layout,
            understanding=self.understanding,
        )
        return EvalOptions(
            benchmark=self.benchmark, out=self.out, model=self.model, base=self.base, name=self.name,
            split=self.split, limit=self.limit, size=self.size, images=self.images_per_prompt,
            metrics=self.metrics, models=self.metric_model, generation=generation, refuse_unused=True,
            nproc=self.nproc or (default_nproc() if self.device_map is None else 1), device=self.device,
            dtype=self.dtype, device_map=self.device_map, quantization=self.quantize, adapter=self.adapter,
            compare=self.compare,
            stage=self.stage, engine=self.engine, address=self.address,
            task_resources=self.task_resources,
        )  # fmt: skip
