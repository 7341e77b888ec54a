"""What each stage of a quickstart does, where it leaves its output, and its result.

A stage is what its own command runs, and goes on by itself where it was stopped.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import yaml

from pipelines.common.bundled_configs import CONFIGS
from pipelines.quickstart.journal import StageResult
from sigma_data.errors import ConfigError, CorpusError
from sigma_data.storage.files import disk_error, write_atomic

if TYPE_CHECKING:
    from pipelines.evaluate.generate import Generation
    from pipelines.train.config import TrainConfig

CONFIG = CONFIGS / "quickstart.yaml"
SPLITS = {"train": 88.0, "val": 2.5, "test": 9.5}
"""More test samples than usual: of 2,000 there are 20 of each family and more, which is what intervals need."""
SIZE = 64
"""Pixels of the world's images."""
EXAMPLE = "stylization"
"""The family of which a question is laid out to play with: it speaks of two references."""


@dataclass(frozen=True)
class QuickstartOptions:
    """Options of a quickstart. `steps` None is the configuration's; `workers` build the corpus, `nproc` evaluate.

    `recipe` is sigma or sgt.
    """

    out: Path
    samples: int
    limit: int
    steps: int | None = None
    workers: int = 1
    nproc: int = 1
    recipe: str = "sigma"


@dataclass(frozen=True)
class Stage:
    """A part of the whole: `leaves` is there once it is done. `speaks`: it shows progress of its own.

    `stale` is what must not outlive anything before it being made anew: the stage would go on from what is there.
    """

    name: str
    leaves: Path
    act: Callable[[], StageResult]
    speaks: bool = False
    stale: Path | None = None

    def clear(self) -> None:
        """Remove what is stale. Raises BuildError where it cannot be removed."""
        if self.stale is not None:
            _remove(self.stale)


class Stages:
    """The stages of a recipe, SIGMA's, and where each of them lies."""

    recipe: ClassVar[str] = "sigma"
    samples: ClassVar[int] = 2000
    """How many samples are drawn unless the user says otherwise."""
    config_file: ClassVar[Path] = CONFIG
    source: ClassVar[str] = f"world:{{}}?size={SIZE}"
    example_of: ClassVar[str] = "world"
    """The benchmark whose question is laid out to play with."""

    def __init__(self, options: QuickstartOptions) -> None:
        self._options = options
        out = options.out
        self.corpus, self.run, self.model = out / "corpus", out / "run", out / "model"
        self.base, self.trained, self.example = out / "base", out / "trained", out / "example"

    @cached_property
    def _file(self) -> dict[str, Any]:
        """The configuration as it stands in its file; checked only where it is needed, for that takes seconds."""
        try:
            settings: dict[str, Any] = yaml.safe_load(self.config_file.read_text("utf-8"))
        except OSError as error:
            raise ConfigError(f"{self.config_file}: cannot be read ({error.strerror}): install sigma anew") from None
        return settings

    @property
    def _steps(self) -> int:
        steps: int = self._options.steps or self._file["steps"]
        return steps

    def settings(self) -> dict[str, Any]:
        """All that decides what comes out, by the name that a user knows it by."""
        digest = hashlib.sha256(json.dumps(self._file, sort_keys=True).encode()).hexdigest()[:16]
        return {
            "--recipe": self.recipe,
            "--samples": self._options.samples,
            "--steps": self._steps,
            "--limit": self._options.limit,
            self.config_file.name: digest,
        }

    def stages(self) -> list[Stage]:
        """All stages in their order."""
        from pipelines.evaluate.report.report import REPORT
        from sigma_data.corpus.corpus import COMMIT
        from sigma_model.config import WEIGHT_FILES

        averages, raw = WEIGHT_FILES
        weights = self.model / (averages if self._file.get("ema") else raw)
        return [
            Stage("corpus", self.corpus / COMMIT, self._build),
            Stage("validate", self.corpus / COMMIT, self._validate),
            Stage("train", self.run / "checkpoints", self._train, speaks=True),
            Stage("export", weights, self._export, stale=self.model),
            Stage("base", self.base / REPORT, self._evaluate_base, stale=self.base),
            Stage("trained", self.trained / REPORT, self._evaluate_trained, stale=self.trained),
        ]

    def result(self, stages: Mapping[str, StageResult]) -> dict[str, Any]:
        """The results of all stages."""
        from pipelines.evaluate.report.report import REPORT

        before, after = stages["base"], stages["trained"]
        return {
            "out": str(self._options.out),
            "corpus": str(self.corpus),
            "run": str(self.run),
            "model": str(self.model),
            "report": str(self.trained / REPORT),
            "example": self._example_command(after["example"]),
            "families": {
                family: {"base": cell, "trained": after["families"].get(family)}
                for family, cell in before["families"].items()
            },
            "accuracy": {"base": before["accuracy"], "trained": after["accuracy"]},
            "stages": {name: {"told": result["told"], "seconds": result["seconds"]} for name, result in stages.items()},
        }

    def _build(self) -> StageResult:
        from pipelines.build_dataset.config import BuildConfig
        from pipelines.build_dataset.run import build
        from pipelines.common.console import warnings_only

        config = BuildConfig(sources=(self.source.format(self._options.samples),), splits=SPLITS)
        with warnings_only():
            sums = build(config, self.corpus, workers=self._options.workers).corpus.sums
        counts = ", ".join(f"{count:,} {name}" for name, count in sums["splits"].items())
        return {"told": f"{sums['written']:,} samples ({counts}), {sums['images']:,} images"}

    def _validate(self) -> StageResult:
        from pipelines.common.console import warnings_only
        from pipelines.validate.run import validate_corpus
        from sigma_data.text_format import counted

        with warnings_only():
            result = validate_corpus(self.corpus, deep=True, workers=self._options.workers)
        if result.problems:
            first = result.problems[0]
            raise CorpusError(
                f"{self.corpus}: is not sound any more ({first.where}: {first.message}): remove that folder, then run "
                "the same command again"
            )
        return {"told": f"sound: every byte of {counted(result.shards, 'shard')}, every image, every rule"}

    @cached_property
    def _config(self) -> TrainConfig:
        """The configuration for this folder; a run of other length is saved and looked at as often."""
        from pipelines.common.settings import load_settings
        from pipelines.train.config import TrainConfig

        file, steps = self._file, self._steps
        often = {
            section: {"every": max(1, file[section]["every"] * steps // file["steps"])}
            for section in ("checkpoint", "validation")
        }
        corpora = [{**corpus, "path": str(self.corpus)} for corpus in file["data"]["corpora"]]
        given: dict[str, Any] = {**often, **self._changes()}
        return load_settings(
            TrainConfig, self.config_file, (), out=str(self.run), steps=steps, data={"corpora": corpora}, **given
        )

    def _changes(self) -> dict[str, Any]:
        """What else of the configuration depends on the folder."""
        return {}

    def _train(self) -> StageResult:
        from pipelines.train.launch import Launch, launch
        from pipelines.train.logs import METRICS
        from sigma_data.text_format import counted

        result = launch(self._config, Launch(nproc=1))
        if result is None or result["stopped"]:
            raise KeyboardInterrupt
        lines = map(json.loads, filter(None, (self.run / METRICS).read_text("utf-8").split("\n")))
        losses = (line.get("val_ema/image", line.get("val_ema/picture")) for line in lines)  # the latter until 0.2
        held_out = [float(loss) for loss in losses if loss is not None]
        course = f"; held-out loss {held_out[0]:.2f} -> {held_out[-1]:.2f}" if len(held_out) > 1 else ""
        return {"told": f"{counted(result['steps'], 'step')}{course}"}

    def _export(self) -> StageResult:
        from pipelines.train.export import export_run

        _remove(self.model)  # of another training, perhaps, or not all there any more
        export_run(self.run, self.model, ema=self._config.ema is not None)
        size = sum(path.stat().st_size for path in self.model.iterdir())
        return {"told": f"{size / 1e6:,.1f} MB in the released layout"}

    def _evaluate_base(self) -> StageResult:
        return self._evaluate(self._config.model.path, self.base)

    def _evaluate_trained(self) -> StageResult:
        return {**self._evaluate(str(self.model), self.trained, self.base), "example": self._lay_out_example()}

    def _evaluate(self, model: str, out: Path, *compare: Path) -> StageResult:
        from pipelines.evaluate.runner import EvalOptions, evaluate
        from sigma_data.text_format import counted

        result = evaluate(
            EvalOptions(
                benchmark=f"world:{self.corpus}", out=out, model=model, name=out.name, limit=self._options.limit,
                generation=self._generation(), nproc=self._options.nproc, compare=compare,
            )
        )  # fmt: skip
        accuracy = result["summary"]["accuracy"]
        failed = f", {len(result['failed']):,} failed" if result["failed"] else ""
        return {
            "told": f"{counted(result['items'], 'image')} generated and scored{failed}; accuracy {accuracy:.3f}",
            "families": result["families"],
            "accuracy": accuracy,
        }

    def _generation(self) -> Generation:
        """Images are made as those that a validation shows."""
        from pipelines.evaluate.generate import Generation
        from sigma_model.sampling.settings import Guidance, SamplingSettings

        validation = self._config.validation
        return Generation(
            settings=SamplingSettings(
                steps=validation.image_steps,
                guidance=Guidance(text=validation.text_scale, image=validation.image_scale),
                group_mask=self._config.model.group_mask,
            )
        )

    def _lay_out_example(self) -> StageResult:
        """Write a question's references as files; returns what asks it, but for the places, which may be moved."""
        from pipelines.evaluate.benchmarks import open_benchmark
        from pipelines.evaluate.stored import bytes_of
        from sigma_data.images.decode import probe

        items = open_benchmark(f"{self.example_of}:{self.corpus}").items()
        item = next((item for item in items if item.family == EXAMPLE), items[0])
        references = [bytes_of(data) for data in item.references]
        images = {f"image-{n}.{probe(data).extension}": data for n, data in enumerate(references, 1)}
        try:
            self.example.mkdir(exist_ok=True)
            for name, data in images.items():
                write_atomic(self.example / name, data)
        except OSError as error:
            raise disk_error(error, self.example) from None
        validation = self._config.validation
        return {
            "instruction": item.instruction,
            "pictures": list(images),
            "settings": [
                "--steps", str(validation.image_steps),
                "--text-scale", f"{validation.text_scale:g}", "--image-scale", f"{validation.image_scale:g}",
            ],
        }  # fmt: skip

    def _example_command(self, example: StageResult) -> str:
        """The command that asks the question, whose images are laid out again where they are not there."""
        images = [self.example / name for name in example["pictures"]]
        if not all(image.exists() for image in images):
            self._lay_out_example()
        command = ["sigma", "generate", example["instruction"]]
        for image in images:
            command += ["--image", str(image)]
        command += ["--model", str(self.model), "--out", str(self.example / "made.png"), *example["settings"]]
        return shlex.join(command)


def _remove(folder: Path) -> None:
    """Remove a folder, or the link to one, if it is there."""
    try:
        if folder.is_symlink():
            folder.unlink()
        elif folder.exists():
            shutil.rmtree(folder)
    except OSError as error:
        raise disk_error(error, folder) from None
