"""`sigma eval`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.commands.options import (
    DEFAULTS,
    Adapter,
    Address,
    BasePlace,
    CacheEvery,
    CacheOption,
    CacheOrder,
    CacheThreshold,
    Config,
    Device,
    DeviceMap,
    Dtype,
    EngineOption,
    GroupMask,
    GuidanceRescale,
    GuidanceThreshold,
    ImageScale,
    Interval,
    Json,
    Layout,
    MaxTokens,
    ModelPlace,
    Negative,
    PrintConfig,
    Quantize,
    ReferenceRoute,
    RescaleMin,
    SamplerOption,
    Seed,
    StepCache,
    Steps,
    TaskResources,
    Temperature,
    TextScale,
    TimestepShift,
    Understanding,
    listed,
    pairs,
    path_option,
    print_json,
    print_result,
    typed,
)
from pipelines.evaluate.defaults import BATCH, MAX_TOKENS, Stage
from sigma_data.errors import ConfigError
from sigma_data.text_format import counted
from sigma_model.dtypes import DType
from sigma_model.sampling.settings import TEMPERATURE, Order


def evaluate(
    context: typer.Context,
    benchmark: Annotated[
        str | None,
        typer.Argument(
            help="sigma:, world:, segmentation:, questions:, geneval: or cv-bench: and a path.", show_default=False
        ),
    ] = None,
    out: Annotated[
        Path | None, path_option("--out", "-o", help="Folder of images, scores and report.", show_default=False)
    ] = None,
    config: Config = None,
    model: ModelPlace = None,
    base: BasePlace = None,
    name: Annotated[str | None, typer.Option(help="Name of the run in the report; by default the model's.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of a corpus to ask; by default test.", show_default=False)
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
        typer.Option(help="General metrics, e.g. CLIP,DINO,AES; by default those usual for the benchmark."),
    ] = None,
    metric_model: Annotated[
        list[str] | None, typer.Option(help="A metric's backbone, e.g. clip=DIR or dino=HUB/NAME (can be repeated).")
    ] = None,
    layout: Layout = Order.INTERLEAVED,
    seed: Seed = 0,
    steps: Steps = DEFAULTS.steps,
    text_scale: TextScale = DEFAULTS.guidance.text,
    image_scale: ImageScale = DEFAULTS.guidance.image,
    interval: Interval = DEFAULTS.guidance.interval,
    rescale: GuidanceRescale = DEFAULTS.guidance.rescale,
    rescale_min: RescaleMin = DEFAULTS.guidance.rescale_min,
    timestep_shift: TimestepShift = DEFAULTS.timestep_shift,
    group_mask: GroupMask = DEFAULTS.group_mask,
    sampler: SamplerOption = DEFAULTS.sampler,
    cache: CacheOption = DEFAULTS.cache.method,
    cache_every: CacheEvery = DEFAULTS.cache.every,
    cache_order: CacheOrder = DEFAULTS.cache.order,
    cache_threshold: CacheThreshold = None,
    guidance_threshold: GuidanceThreshold = DEFAULTS.guidance_threshold,
    understanding: Understanding = True,
    max_tokens: MaxTokens = MAX_TOKENS,
    temperature: Temperature = TEMPERATURE,
    negative: Negative = None,
    route: ReferenceRoute = None,
    step_cache: StepCache = None,
    adapter: Adapter = None,
    batch: Annotated[int, typer.Option(min=1, help="Items computed together.")] = BATCH,
    nproc: Annotated[
        int | None, typer.Option(min=1, help="Processes that generate; by default one per GPU, or one.")
    ] = None,
    device: Device = "auto",
    dtype: Dtype = DType.AUTO,
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    compare: Annotated[
        list[Path] | None,
        path_option(help="Folder of another evaluation to compare with, the first as the baseline (can be repeated)."),
    ] = None,
    stage: Annotated[
        Stage | None,
        typer.Option(help="Only this stage; score and report take the settings that OUT holds.", show_default=False),
    ] = None,
    engine: EngineOption = "local",
    address: Address = None,
    task_resources: TaskResources = None,
    print_config: PrintConfig = False,
    as_json: Json = False,
) -> None:
    """Evaluate a model on a benchmark.

    Generates the answers, scores them and writes a report; run again to continue or to add metrics.
    """
    from pipelines.common.settings import dump_settings, load_settings
    from pipelines.evaluate.config import EvalConfig
    from pipelines.evaluate.runner import evaluate as run

    if benchmark is None and config is None:
        raise ConfigError(
            "say what to ask, such as `sigma eval world:CORPUS --model MODEL --out DIR`, or give --config"
        )
    given = typed(context, EvalConfig)
    if metrics is not None:
        given["metrics"] = listed([metrics])
    if metric_model is not None:
        given["metric_model"] = pairs("--metric-model", metric_model, "MODEL=DIR")
    settings = load_settings(EvalConfig, config, (), typed={"benchmark": "BENCHMARK"}, **given)
    if print_config:
        from pipelines.common.omnigen2_settings import with_own_defaults

        print_result(dump_settings(with_own_defaults(settings)))
        return
    result = run(settings.located().options())
    if as_json:
        print_json(result)
    else:
        print_result(eval_summary(result))


def eval_summary(result: dict[str, Any]) -> str:
    """Counts, the main numbers, what is missing and why, where the report is."""
    from pipelines.evaluate.aggregate import Estimate
    from pipelines.evaluate.report.tables import figure, interval

    failed = result["failed"]
    lines = [f"{result['name']} on {result['benchmark']}: {counted(result['items'], 'item')}, {len(failed):,} failed"]
    lines += [f"  failed: {item}: {reason}" for item, reason in list(failed.items())[:5]]
    if len(failed) > 5:
        lines.append(f"  and {len(failed) - 5:,} more, which --json lists")
    for family, cell in result.get("families", {}).items():
        estimate = Estimate(cell["mean"], cell["low"], cell["high"])
        lines.append(f"  {family:<16} {cell['metric']:<18} {figure(estimate.mean)} {interval(estimate)}".rstrip())
    lines += [f"  {name}: {figure(value)}" for name, value in result.get("summary", {}).items()]
    lines += [f"  skipped {name}: {reason}" for name, reason in result.get("skipped", {}).items()]
    if "report" in result:
        lines.append(f"report: {result['report']}")
    return "\n".join(lines) + "\n"
