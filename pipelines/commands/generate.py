"""`sigma generate`: arguments in, one call, a result printed; as light to import as `cli`."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.common_options import Json
from pipelines.commands.model_options import DeviceMap, Quantize
from pipelines.commands.path_options import model_option, path_option


def generate(
    prompt: Annotated[
        str,
        typer.Argument(
            help="What to make, as in 'Put <subject> the cup <image_1> into the style of <style> <image_2>'.",
            show_default=False,
        ),
    ],
    image: Annotated[
        list[Path] | None, path_option("--image", "-i", help="A reference: the first is <image_1>, and so on.")
    ] = None,
    out: Annotated[Path, path_option("--out", "-o", help="The PNG to write.")] = Path("out.png"),
    model: Annotated[
        str, model_option("--model", "-m", help="A directory in the released layout, or a preset.")
    ] = "tiny",
    base: Annotated[
        str | None, model_option(help="Where to find files that MODEL lacks, as SIGMA's weights alone do.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Seeds the noise.")] = 0,
    size: Annotated[
        str | None,
        typer.Option(
            help="WIDTHxHEIGHT, brought to one the model makes; by default the last reference's, or the largest square."
        ),
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Pictures to make, with seeds counting on.")] = 1,
    steps: Annotated[int, typer.Option(min=2, help="Noise levels of the sampler.")] = 50,
    text_scale: Annotated[float, typer.Option(help="Guidance towards the text; 1 or less switches it off.")] = 4.0,
    image_scale: Annotated[
        float, typer.Option(help="Guidance towards the references; 1 or less switches it off.")
    ] = 2.0,
    interval: Annotated[
        tuple[float, float], typer.Option(help="Noise levels, lower first, between which there is guidance.")
    ] = (0.0, 1.0),
    rescale: Annotated[
        str, typer.Option(help="How guidance is kept from overshooting: text_channel, channel or global.")
    ] = "text_channel",
    rescale_min: Annotated[float, typer.Option(min=0, max=1, help="The least factor of rescaling.")] = 0.0,
    timestep_shift: Annotated[float, typer.Option(help="More than 1 spends more steps on much noise.")] = 3.0,
    group_mask: Annotated[
        bool, typer.Option("--group-mask/--no-group-mask", help="Attribute tokens see their own reference only.")
    ] = True,
    understanding: Annotated[
        bool, typer.Option("--understanding/--no-understanding", help="Show references to the vision encoder, too.")
    ] = True,
    text: Annotated[bool, typer.Option("--text", help="Answer in words, on standard output.")] = False,
    max_tokens: Annotated[int, typer.Option(min=1, help="The longest answer in words.")] = 512,
    temperature: Annotated[float, typer.Option(min=0, help="Of an answer in words; 0 takes the likeliest.")] = 0.0,
    dtype: Annotated[str, typer.Option(help="auto, float32 or bfloat16.")] = "auto",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1 ...")] = "auto",
    device_map: DeviceMap = None,
    quantize: Quantize = None,
    as_json: Json = False,
) -> None:
    """Make a picture (or an answer in words) from a prompt and reference pictures."""
    from pipelines.generate.run import GenerateOptions, run_generate

    options = GenerateOptions(
        prompt=prompt, images=tuple(image or ()), out=out, model=model, base=base, seed=seed, size=size, count=count,
        steps=steps,
        text_scale=text_scale, image_scale=image_scale, interval=interval, rescale=rescale, rescale_min=rescale_min,
        timestep_shift=timestep_shift, group_mask=group_mask, understanding=understanding, text=text,
        max_tokens=max_tokens, temperature=temperature, dtype=dtype, device=device, quiet=as_json,
        device_map=device_map, quantize=quantize,
    )  # fmt: skip
    result = run_generate(options)
    if as_json:
        from sigma_data.storage.files import finite

        sys.stdout.write(json.dumps(finite(result), indent=1, ensure_ascii=False, default=str) + "\n")
    else:
        sys.stdout.write("".join(f"{line}\n" for line in result.get("files") or result["texts"]))
