"""`sigma generate`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import (
    DEFAULTS,
    Adapter,
    Base,
    CacheEvery,
    CacheOption,
    CacheOrder,
    CacheThreshold,
    Device,
    DeviceMap,
    Dtype,
    GroupMask,
    GuidanceRescale,
    GuidanceThreshold,
    ImageScale,
    Interval,
    Json,
    MaxTokens,
    ModelPath,
    Negative,
    Quantize,
    ReferenceRoute,
    RescaleMin,
    SamplerOption,
    Seed,
    StepCache,
    Steps,
    Temperature,
    TextScale,
    TimestepShift,
    Understanding,
    path_option,
    print_json,
    print_result,
    refuse_given,
    typed,
)
from pipelines.evaluate.defaults import BATCH
from sigma_model.dtypes import DType
from sigma_model.sampling.settings import MAX_TOKENS, TEMPERATURE


def generate(
    context: typer.Context,
    prompt: Annotated[
        str | None,
        typer.Argument(
            help="What to make, e.g. 'Put <subject> the cup <image_1> into the style of <style> <image_2>'.",
            show_default=False,
        ),
    ] = None,
    images: Annotated[
        list[Path] | None, path_option("--image", "-i", help="A reference: the first is <image_1>, and so on.")
    ] = None,
    source: Annotated[
        Path | None,
        path_option("--from", help="Many prompts: JSON lines or a folder of them, the release's parquet, or a corpus."),
    ] = None,
    example: Annotated[
        bool,
        typer.Option("--example", help="Compose drawn references, written beside OUT, with the embedded tiny-base."),
    ] = False,
    out: Annotated[
        Path, path_option("--out", "-o", help="The PNG to write; with --from the folder, by default `generated`.")
    ] = Path("out.png"),
    model: ModelPath = "tiny-base",
    base: Base = None,
    seed: Seed = 0,
    size: Annotated[
        str | None,
        typer.Option(
            help="WIDTHxHEIGHT, brought to one the model makes; by default the last reference's, or the largest square."
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Images to make, with seeds counting up.")] = 1,
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
    text: Annotated[bool, typer.Option("--text", help="Answer with text, on standard output.")] = False,
    chat: Annotated[
        bool, typer.Option("--chat", help="OmniGen2: answer with text, or an image where the model says so.")
    ] = False,
    max_tokens: MaxTokens = MAX_TOKENS,
    temperature: Temperature = TEMPERATURE,
    dtype: Dtype = DType.AUTO,
    device: Device = "auto",
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    negative: Negative = None,
    route: ReferenceRoute = None,
    step_cache: StepCache = None,
    adapter: Adapter = None,
    split: Annotated[str | None, typer.Option(help="Of a corpus with --from.", show_default="test")] = None,
    start: Annotated[int, typer.Option(min=0, help="Prompts of --from to leave out first.")] = 0,
    limit: Annotated[int | None, typer.Option(min=1, help="Prompts of --from at most.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Prompts of --from that are answered together.")] = BATCH,
    nproc: Annotated[int, typer.Option(min=1, help="Processes for --from, each with a model of its own.")] = 1,
    as_json: Json = False,
) -> None:
    """Generate an image or text from a prompt.

    With references, images that the prompt names as <image_1>, <image_2> and so on. With --from many prompts are
    answered into a folder: run it again to go on, failures are listed and tried again; exit code 1 where some failed.
    """
    from pipelines.common.inference_config import OF_IMAGES, OF_TEXT
    from pipelines.common.settings import load_settings

    if example:
        refuse_given(context, ("prompt", "images", "source", "text"), "--example has a prompt and images of its own")
    if text:
        refuse_given(context, OF_IMAGES, "is of images: leave it out with --text")
    elif not chat:
        refuse_given(context, OF_TEXT, "is of text answers: add --text, or leave it out")
    if source is not None:
        from pipelines.generate.batch import BatchConfig, batch_summary, failures_told, run_batch

        refuse_given(context, ("prompt", "images", "count"), "with --from prompts and images come from the source")
        refuse_given(context, ("chat",), "answers one prompt: leave it out with --from")
        answered = run_batch(load_settings(BatchConfig, None, (), typed={}, **typed(context, BatchConfig)))
        if as_json:
            print_json(answered)
        else:
            print_result(batch_summary(answered))
        _tell_model(context, as_json)
        if (told := failures_told(answered)) is not None:
            typer.echo(f"sigma: {told}", err=True)
            raise typer.Exit(1)
        return
    refuse_given(context, ("split", "start", "limit", "batch", "nproc"), "belongs to --from")
    if prompt is None and not example:
        raise typer.BadParameter("write what to make, or give a file of prompts with --from", param_hint="PROMPT")
    from pipelines.generate.config import GenerateConfig
    from pipelines.generate.run import run_generate

    given = typed(context, GenerateConfig)
    if example:
        from pipelines.generate.example import MODEL, SAMPLING, write_example

        instruction, paths = write_example(out)
        typer.echo(f"sigma: {instruction}", err=True)
        given = {"model": MODEL, **SAMPLING, **given, "prompt": instruction, "images": paths}
    result = run_generate(load_settings(GenerateConfig, None, (), typed={"images": "--image"}, **given))
    if as_json:
        print_json(result)
    else:
        shown = [*result.get("files", ()), *filter(None, result.get("texts", ()))]
        print_result("".join(f"{line}\n" for line in shown))
    if not example:
        _tell_model(context, as_json)


def _tell_model(context: typer.Context, as_json: bool) -> None:
    """Say which model answered where none was named."""
    origin = context.get_parameter_source("model")
    if not as_json and origin is not None and origin.name == "DEFAULT":
        told = f"{context.params['model']} answered, which knows drawn scenes of 64 pixels alone"
        typer.echo(f"sigma: {told}: name another with --model", err=True)
