"""`sigma quickstart`."""

from __future__ import annotations

import shlex
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.commands.options import Json, path_option, print_json, print_result


class Recipe(StrEnum):
    """What a quickstart trains."""

    SIGMA = "sigma"
    SGT = "sgt"


def quickstart(
    out: Annotated[Path, path_option("--out", "-o", help="Folder of everything.")] = Path("quickstart"),
    recipe: Annotated[
        Recipe, typer.Option(help="sigma: interleaved references; sgt: colour maps and questions together.")
    ] = Recipe.SIGMA,
    samples: Annotated[
        int | None, typer.Option(min=60, help="Samples to draw; by default 2,000, of sgt 3,000.", show_default=False)
    ] = None,
    steps: Annotated[
        int | None, typer.Option(min=1, help="Training steps; by default those of the recipe's configuration.")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many test items, families taking turns.")] = 120,
    workers: Annotated[int | None, typer.Option(min=1, help="Processes that draw; by default one per core.")] = None,
    nproc: Annotated[int, typer.Option(min=1, help="Processes that generate the images to be scored.")] = 1,
    as_json: Json = False,
) -> None:
    """Build, train and evaluate, all in minutes.

    Builds a small corpus, post-trains and exports a tiny model, evaluates it before and after; run again to continue.
    """
    from pipelines.common.process_pool import default_workers
    from pipelines.quickstart.run import RECIPES
    from pipelines.quickstart.run import quickstart as run
    from pipelines.quickstart.stages import QuickstartOptions

    result = run(
        QuickstartOptions(
            out=out, samples=samples or RECIPES[recipe].samples, limit=limit, steps=steps,
            workers=workers or default_workers(), nproc=nproc, recipe=recipe,
        )
    )  # fmt: skip
    if as_json:
        print_json(result)
    else:
        print_result(quickstart_summary(result))


def quickstart_summary(result: dict[str, Any]) -> str:
    """The result as a table, where to look, and what to do next."""
    following = _next_sgt() if _is_sgt(result) else _next()
    return "\n".join(["", *_table(result), "", *_places(result), "", *following]) + "\n"


def _table(result: dict[str, Any]) -> list[str]:
    """The main metric of each family before and after training, and the accuracy."""
    from sigma_data.text_format import aligned

    rows = [("", "base", "post-trained")]
    rows += [
        (f"{family}, {of['base']['metric']}", _cell(of["base"]), _cell(of["trained"]))
        for family, of in result["families"].items()
    ]
    accuracy = result["accuracy"]
    sgt = _is_sgt(result)
    name = "mean of the kinds of questions" if sgt else "all, accuracy (higher is better)"
    rows.append((name, f"{accuracy['base']:.3f}", f"{accuracy['trained']:.3f}"))
    return [_SGT_METRICS if sgt else _METRICS, *aligned(rows).splitlines()]


_METRICS = "world-error and world-change: colour distance to the exact answer (lower is better), with 95 % intervals"
_SGT_METRICS = "overlap of instances, and exact answers by kind of question (higher is better), with 95 % intervals"


def _is_sgt(result: dict[str, Any]) -> bool:
    return result.get("recipe") == Recipe.SGT


def _cell(cell: dict[str, Any] | None) -> str:
    from pipelines.evaluate.aggregate import Estimate
    from pipelines.evaluate.report.tables import figure, interval

    if cell is None:
        return figure(None)
    estimate = Estimate(cell["mean"], cell["low"], cell["high"])
    return f"{figure(estimate.mean)} {interval(estimate)}".rstrip()


def _places(result: dict[str, Any]) -> list[str]:
    from sigma_data.text_format import aligned

    run = Path(result["run"])
    rows = [
        ("report", f"{result['report']}: both models side by side, every image"),
        ("images", f"{run / 'images'}: what it generated during training (references, answer, generated)"),
        ("corpus", f"{Path(result['corpus']) / 'report.html'}: what it was trained on"),
    ]
    if "answers" in result:
        rows.insert(1, ("answers", f"{result['answers']}: both models' answers to every question"))
    if (run / "tensorboard").is_dir():
        rows.append(("curves", f"tensorboard --logdir {shlex.quote(str(run / 'tensorboard'))}"))
    return aligned([*rows, ("to play", result["example"])]).splitlines()


def _shown(name: str) -> str:
    """A configuration as a command would name it from here."""
    from pipelines.common.bundled_configs import CONFIGS

    config = CONFIGS / name
    return shlex.quote(str(config.relative_to(Path.cwd()) if config.is_relative_to(Path.cwd()) else config))


def _next_sgt() -> list[str]:
    """The same with real data."""
    shown = _shown("sgt-bagel.yaml")
    return [
        "With real data:",
        "  sigma download bagel",
        "  sigma download sam_sgt",
        "  sigma download llava_onevision",
        "  sigma download cv-bench",
        "  sigma build-dataset --config corpus-sgt --out data/sgt",
        f"  sigma train {shown} --dry-run --ranks 8",
        f"  sigma train {shown} --nproc 8",
        "  sigma export runs/sgt-bagel --out runs/model",
        "  sigma eval segmentation:data/sgt --model runs/model --out runs/maps",
        "  sigma eval cv-bench:data/cv-bench --model runs/model --out runs/cv-bench",
    ]


def _next() -> list[str]:
    """The same with real data. The paths are those that the configuration names."""
    shown = _shown("sigma-bagel-7b.yaml")
    return [
        "With real data:",
        "  sigma download bagel",
        "  sigma download sigma-dataset",
        "  sigma build-dataset release:data/sigma-dataset --out data/corpus",
        f"  sigma doctor {shown}",
        f"  sigma train {shown} --dry-run --ranks 8",
        f"  sigma train {shown} --nproc 8",
        "  sigma export runs/sigma-bagel-7b --out runs/model",
        "  sigma eval sigma:data/corpus --model runs/model --out runs/evaluation",
    ]
