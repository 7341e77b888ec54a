"""The quickstart of SGT: colour maps and questions, learnt together by the tiny base with a fresh vision encoder."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from pipelines.common.bundled_configs import CONFIGS
from pipelines.quickstart.journal import StageResult
from pipelines.quickstart.stages import SIZE, Stage, Stages

if TYPE_CHECKING:
    from pipelines.evaluate.generate import Generation

BASE, VISION = "tiny-base", "tiny"
"""Presets: the weights to start from, and the one whose vision encoder has the sizes of the new one."""
MAPS, ANSWERS = "maps", "answers"
_BENCHMARKS = {MAPS: "segmentation", ANSWERS: "questions"}


class SgtStages(Stages):
    """The stages of SGT. `base` and `trained` hold an evaluation of colour maps and one of questions each."""

    recipe: ClassVar[str] = "sgt"
    samples: ClassVar[int] = 3000
    config_file: ClassVar[Path] = CONFIGS / "quickstart-sgt.yaml"
    source: ClassVar[str] = f"world:{{}}?size={SIZE}&families=segmentation:2,understanding:1"
    example_of: ClassVar[str] = "segmentation"

    @property
    def start(self) -> Path:
        """The model that training starts from."""
        return self._options.out / "start"

    def stages(self) -> list[Stage]:
        from pipelines.evaluate.report.report import REPORT
        from sigma_model.config import WEIGHT_FILES

        corpus, validate, train, export, *_ = super().stages()
        return [
            corpus,
            validate,
            Stage("start", self.start / WEIGHT_FILES[0], self._start),
            train,
            export,
            Stage("base", self.base / ANSWERS / REPORT, self._evaluate_base, stale=self.base),
            Stage("trained", self.trained / ANSWERS / REPORT, self._evaluate_trained, stale=self.trained),
        ]

    def result(self, stages: Mapping[str, StageResult]) -> dict[str, Any]:
        from pipelines.evaluate.report.report import REPORT

        return {
            **super().result(stages),
            "recipe": self.recipe,
            "report": str(self.trained / MAPS / REPORT),
            "answers": str(self.trained / ANSWERS / REPORT),
        }

    def _changes(self) -> dict[str, Any]:
        return {"model": {"path": str(self.start)}}

    def _start(self) -> StageResult:
        from sigma_model.new_vision import add_vision

        add_vision(BASE, VISION, self.start)
        return {"told": f"{BASE} with a fresh vision encoder, which questions need"}

    def _evaluate_base(self) -> StageResult:
        return self._evaluate(str(self.start), self.base)

    def _evaluate(self, model: str, out: Path, *compare: Path) -> StageResult:
        """Colour maps, then questions."""
        from pipelines.evaluate.runner import EvalOptions, evaluate
        from sigma_data.text_format import counted

        families: dict[str, Any] = {}
        summary: dict[str, float] = {}
        told, failed = [], 0
        for name, benchmark in _BENCHMARKS.items():
            result = evaluate(
                EvalOptions(
                    benchmark=f"{benchmark}:{self.corpus}", out=out / name, model=model, name=out.name,
                    limit=self._options.limit, generation=self._generation(), nproc=self._options.nproc,
                    compare=tuple(other / name for other in compare),
                )
            )  # fmt: skip
            families |= result["families"]
            failed += len(result["failed"])
            summary |= result["summary"]
            told.append(counted(result["items"], "map" if name == MAPS else "question"))
        families.pop("all", None)
        shown = f"IoU {summary['iou']:.3f}, accuracy {summary['accuracy']:.3f}"
        broken = f", {failed:,} failed" if failed else ""
        return {
            "told": f"{' and '.join(told)}{broken}; {shown}",
            "families": families,
            "accuracy": summary["accuracy"],
        }

    def _generation(self) -> Generation:
        from dataclasses import replace

        return replace(super()._generation(), max_tokens=16)
