"""`sigma eval`: arguments in, one call, a result printed; as light to import as `cli`."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.commands.common_options import Json
from pipelines.commands.model_options import DeviceMap, Quantize
from pipelines.commands.path_options import model_option, path_option


class Layout(StrEnum):
    """Where reference pictures stand, by the names of `sigma_model.sampling.generate.Order`."""

    INTERLEAVED = "interleaved"
    TEXT_FIRST = "text-first"


class Numbers(StrEnum):
    """What the network computes in, by the names of `sigma_model.loading.DType`."""

    AUTO = "auto"
    FLOAT32 = "float32"
    BFLOAT16 = "bfloat16"


class OneStage(StrEnum):
    """The stages, by the names of `pipelines.evaluate.runner.Stage`."""

    GENERATE = "generate"
    SCORE = "score"
    REPORT = "report"


def evaluate(
    benchmark: Annotated[
        str,
        typer.Argument(
            help="sigma:, world:, geneval: or cv-bench: and a path, as in world:corpus.", show_default=False
        ),
    ],
    out: Annotated[Path, path_option("--out", "-o", help="Folder of pictures, scores and report.", show_default=False)],
    model: Annotated[
        str | None, model_option("--model", "-m", help="A directory in the released layout, or a preset (tiny).")
    ] = None,
    base: Annotated[
        str | None, model_option(help="Where to find files that MODEL lacks, as SIGMA's weights alone do.")
    ] = None,
    name: Annotated[str | None, typer.Option(help="What the report calls the run; by default the model's.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Of a corpus, which split to ask; by default test.", show_default=False)
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many items, families taking turns; by default all.")
    ] = None,
    size: Annotated[
        str | None,
        typer.Option(help="Output size of every item, e.g. 1024x768; by default each item's own.", show_default=False),
    ] = None,
    images_per_prompt: Annotated[
        int | None,
        typer.Option(min=1, help="Images of each prompt, each from its own noise.", show_default=False),
    ] = None,
    metrics: Annotated[
        str | None,
        typer.Option(help="General metrics, as in CLIP,DINO,AES; by default those usual for the benchmark."),
    ] = None,
    metric_model: Annotated[
        list[str] | None, typer.Option(help="A metric's backbone, as in clip=DIR or dino=HUB/NAME (can be repeated).")
    ] = None,
    layout: Annotated[
        Layout, typer.Option(help="References at their placeholders, as in training, or behind all text.")
    ] = Layout.INTERLEAVED,
    seed: Annotated[int, typer.Option(help="Seeds the noise, with the item's id.")] = 0,
    steps: Annotated[int, typer.Option(min=2, help="Noise levels of the sampler.")] = 50,
    text_scale: Annotated[float, typer.Option(help="Guidance towards the text; 1 or less switches it off.")] = 4.0,
    image_scale: Annotated[
        float, typer.Option(help="Guidance towards the references; 1 or less switches it off.")
    ] = 2.0,
    interval: Annotated[
        tuple[float, float], typer.Option(help="Noise levels, lower first, between which there is guidance.")
    ] = (0.0, 1.0),
    group_mask: Annotated[
        bool, typer.Option("--group-mask/--no-group-mask", help="Attribute tokens see their own reference only.")
    ] = True,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer, where answers are words.")] = 128,
    batch: Annotated[int, typer.Option(min=1, help="Items computed together.")] = 8,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Processes that generate; by default one a GPU, or one.")
    ] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    dtype: Annotated[
        Numbers, typer.Option(help="What the network computes in; auto is bfloat16 on a GPU or for a large model.")
    ] = Numbers.AUTO,
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    compare: Annotated[
        list[Path] | None,
        path_option(help="Folder of another evaluation to compare with, the first as the baseline (can be repeated)."),
    ] = None,
    stage: Annotated[
        OneStage | None,
        typer.Option(
            help="Only this stage; score and report go by what OUT says about generation.", show_default=False
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Generate a benchmark's answers, score them, report; run again to continue or to add metrics."""
    from pipelines.evaluate.generate import Generation
    from pipelines.evaluate.runner import EvalOptions, Stage
    from pipelines.evaluate.runner import evaluate as run
    from pipelines.generate.run import parse_size
    from pipelines.train.launch import default_nproc
    from sigma_data.storage.files import dump_json
    from sigma_model.loading import DType
    from sigma_model.quantization import Quantization
    from sigma_model.sampling.settings import Guidance, Order, SamplingSettings

    guidance = Guidance(text=text_scale, image=image_scale, interval=interval)
    settings = SamplingSettings(steps=steps, guidance=guidance, group_mask=group_mask)
    told = run(
        EvalOptions(
            benchmark=benchmark, out=out, model=model, base=base, name=name,
            split=split, limit=limit, size=parse_size(size), images=images_per_prompt,
            metrics=None if metrics is None else tuple(filter(None, map(str.strip, metrics.split(",")))),
            models=_pairs(metric_model or []),
            generation=Generation(
                seed=seed, batch=batch, order=Order(layout), settings=settings, max_tokens=max_tokens
            ),
            nproc=nproc or (default_nproc() if device_map is None else 1), device=device, dtype=DType(dtype),
            device_map=device_map, quantization=None if quantize is None else Quantization(quantize),
            compare=tuple(compare or ()),
            stage=None if stage is None else Stage(stage), quiet=as_json,
        )
    )  # fmt: skip
    sys.stdout.write(dump_json(told) if as_json else _words(told))


def _pairs(values: list[str]) -> dict[str, str]:
    pairs = {}
    for value in values:
        key, equals, model = value.partition("=")
        if not equals:
            raise typer.BadParameter(f"{value!r}: write MODEL=DIR", param_hint="--metric-model")
        pairs[key] = model
    return pairs


def _words(told: dict[str, Any]) -> str:
    """The result as lines: counts, the main numbers, what is missing and why, where to look."""
    from pipelines.evaluate.aggregate import Estimate
    from pipelines.evaluate.report.tables import figure, interval

    failed = told["failed"]
    lines = [f"{told['name']} on {told['benchmark']}: {told['items']:,} items, {len(failed):,} failed"]
    lines += [f"  failed: {item}: {reason}" for item, reason in list(failed.items())[:5]]
    if len(failed) > 5:
        lines.append(f"  and {len(failed) - 5:,} more, which --json lists")
    for family, cell in told.get("families", {}).items():
        estimate = Estimate(cell["mean"], cell["low"], cell["high"])
        lines.append(f"  {family:<16} {cell['metric']:<18} {figure(estimate.mean)} {interval(estimate)}".rstrip())
    lines += [f"  {name}: {figure(value)}" for name, value in told.get("summary", {}).items()]
    lines += [f"  skipped {name}: {reason}" for name, reason in told.get("skipped", {}).items()]
    if "report" in told:
        lines.append(f"report: {told['report']}")
    return "\n".join(lines) + "\n"
