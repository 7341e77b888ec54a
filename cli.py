"""The `sigma` command: arguments in, one pipeline call, a result printed. No logic here.

Heavy imports stand inside the commands, so that `sigma --help` answers at once.
"""

from __future__ import annotations

import json
import re
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from pipelines.commands.command import Command
from pipelines.commands.common_options import Json
from pipelines.commands.evaluate import evaluate
from pipelines.commands.generate import generate
from pipelines.commands.path_options import model_option, path_argument, path_option
from pipelines.commands.quickstart import quickstart
from pipelines.commands.train import INTERRUPTED, export, train
from sigma_data.storage.paths import one_line

app = typer.Typer(
    name="sigma",
    help="Public image corpora -> one checked interleaved corpus -> post-training -> a measured model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

Workers = Annotated[int | None, typer.Option(min=1, help="Worker processes; by default one a core.")]
CorpusPath = Annotated[Path, path_argument(help="A corpus: the folder with corpus.json.")]


class Layout(StrEnum):
    """What `sigma shard` writes."""

    CORPUS = "corpus"
    RELEASE = "release"


_OVERRIDE = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*=")


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="Show the whole traceback of an error.")] = False,
) -> None:
    """Global options; `main` looks for --debug itself."""
    import logging

    from pipelines.common.console import show_messages

    show_messages(logging.INFO)


@app.command("build-dataset")
def build_dataset(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Sources such as release:DIR, world:3000?size=256, webdataset:CORPUS; and settings as name=value.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[Path, path_option("--out", "-o", help="Folder of the corpus.")] = Path("corpus"),
    config: Annotated[Path | None, path_option(help="YAML file with settings (see --print-config).")] = None,
    workers: Workers = None,
    seed: Annotated[int | None, typer.Option(help="Seeds splits and order.")] = None,
    quota: Annotated[list[str] | None, typer.Option(help="Most samples of a family, as in editing=1000.")] = None,
    check: Annotated[
        list[str] | None, typer.Option(help="How a check counts, as in too_small=warning (see `sigma checks`).")
    ] = None,
    allow_unknown_tokens: Annotated[
        bool, typer.Option("--allow-unknown-tokens", help="Keep samples with <tokens> that are no attribute tokens.")
    ] = False,
    drop_near_duplicates: Annotated[
        bool, typer.Option("--drop-near-duplicates", help="Drop samples alike in text and nearly alike in pictures.")
    ] = False,
    max_side: Annotated[int | None, typer.Option(help="Scale longer pictures down to this many pixels.")] = None,
    store: Annotated[
        str | None,
        typer.Option(help="Images that others read differently: original, shown, or auto (deep ones as shown)."),
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the corpus that lies there first.")] = False,
    strict_files: Annotated[
        bool, typer.Option("--strict-files", help="A source file that cannot be used at all is an error.")
    ] = False,
    print_config: Annotated[bool, typer.Option("--print-config", help="Print all settings and stop.")] = False,
    as_json: Json = False,
) -> None:
    """Build a checked, deduplicated, leak-free corpus of webdataset shards; run again to resume."""
    from pipelines.build_dataset.config import BuildConfig
    from pipelines.build_dataset.run import build
    from pipelines.common.process_pool import default_workers
    from pipelines.common.settings import dump_settings, load_settings

    words = sources or []
    checks = _pairs("--check", check)
    if allow_unknown_tokens:
        checks["unknown_token"] = "warning"
    settings = load_settings(
        BuildConfig,
        config,
        [word for word in words if _OVERRIDE.match(word)],
        sources=[word for word in words if not _OVERRIDE.match(word)] or None,
        seed=seed,
        quotas=_pairs("--quota", quota),
        checks=checks,
        near_duplicates="drop" if drop_near_duplicates else None,
        max_side=max_side,
        store=store,
        typed={"sources": "SOURCES", "quotas": "--quota", "checks": "--check"},
    )
    if print_config:
        _print(dump_settings(settings))
        return
    result = build(
        settings, out, workers=workers or default_workers(), overwrite=overwrite, strict_files=strict_files,
        quiet=as_json,
    )  # fmt: skip
    if as_json:
        from sigma_data.corpus.refused_files import refused_files

        refused = [vars(file) for file in refused_files(result.corpus.quarantine)]
        _print_json({"corpus": str(out), "fresh": result.fresh, "peak_worker_bytes": result.peak_worker_bytes,
                     **result.corpus.sums, "warnings": result.corpus.warnings,
                     "refused_files": refused})  # fmt: skip
    else:
        from pipelines.show import build_summary

        _print(build_summary(result.corpus, fresh=result.fresh))


@app.command()
def validate(
    corpus: CorpusPath,
    deep: Annotated[
        bool, typer.Option("--deep/--fast", help="Hash every byte, decode every picture, check every rule.")
    ] = False,
    workers: Workers = None,
    as_json: Json = False,
) -> None:
    """Check a corpus against its commit; exit code 1 and a table where something is wrong."""
    from pipelines.common.process_pool import default_workers
    from pipelines.validate.run import validate_corpus

    result = validate_corpus(corpus, deep=deep, workers=workers or default_workers(), quiet=as_json)
    if as_json:
        _print_json(result.as_dict())
    else:
        from pipelines.show import validation_summary

        _print(validation_summary(result))
    if result.problems:
        raise typer.Exit(1)


@app.command()
def shard(
    corpus: CorpusPath,
    out: Annotated[Path, path_option("--out", "-o", help="Folder to write to.", show_default=False)],
    family: Annotated[list[str] | None, typer.Option(help="Only this family (can be repeated).")] = None,
    split: Annotated[list[str] | None, typer.Option(help="Only this split (can be repeated).")] = None,
    where: Annotated[
        str | None, typer.Option(help='Only samples for which this SQL expression holds, as in "tokens < 8000".')
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Only the first samples.")] = None,
    shard_bytes: Annotated[int, typer.Option(min=1, help="Most bytes in a shard.")] = 512 * 2**20,
    shard_samples: Annotated[int, typer.Option(min=1, help="Most samples in a shard.")] = 10_000,
    to: Annotated[Layout, typer.Option(help="A corpus, or the release's parquet in a folder a split.")] = Layout.CORPUS,
    workers: Workers = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Remove the corpus that lies there first.")] = False,
    as_json: Json = False,
) -> None:
    """Shard a corpus anew, take a part of it, or export it to the release's parquet."""
    from pipelines.common.process_pool import default_workers
    from pipelines.shard.run import Selection, export_release, reshard

    selection = Selection(_listed(family), _listed(split), where, limit)
    if to is Layout.RELEASE:
        if overwrite:
            raise typer.BadParameter("an export replaces nothing; remove the folder first", param_hint="--overwrite")
        counts = export_release(corpus, out, selection)
    else:
        counts = reshard(
            corpus, out, selection, shard_bytes=shard_bytes, shard_samples=shard_samples,
            workers=workers or default_workers(), overwrite=overwrite, quiet=as_json,
        )  # fmt: skip
    if as_json:
        _print_json({"out": str(out), **counts})
    else:
        from pipelines.show import shard_summary

        _print(shard_summary(out, counts))


@app.command()
def inspect(
    corpus: CorpusPath,
    sample: Annotated[
        str | None, typer.Argument(help="A sample: its id, the start of it, or its row in the manifest.")
    ] = None,
    out: Annotated[Path | None, path_option("--out", "-o", help="Draw the sample into this PNG.")] = None,
    as_json: Json = False,
) -> None:
    """Show a corpus as a table, or one sample in words and as a picture."""
    from pipelines.inspect.run import inspect_corpus, inspect_sample

    if sample is None:
        if out is not None:
            raise typer.BadParameter("name the sample to draw, by its id or row", param_hint="--out")
        summary = inspect_corpus(corpus)
        if as_json:
            _print_json(summary.as_dict())
        else:
            summary.show()
        return
    seen = inspect_sample(corpus, sample, out)
    if as_json:
        _print_json(seen.as_dict())
    else:
        seen.show()


@app.command()
def checks(as_json: Json = False) -> None:
    """List the checks: code, severity, which families, what they find."""
    from pipelines.show import checks_table

    _print_json(checks_table()) if as_json else _print(
        "\n".join(
            f"{row['code']:<28} {row['severity'] + (' (fixed)' if row['fixed'] else ''):<15} {row['summary']}"
            + (f" [{row['families']}]" if row["families"] != "all" else "")
            for row in checks_table()
        )
        + "\n"
    )


@app.command()
def plan(
    corpora: Annotated[
        list[str] | None,
        typer.Argument(
            help="Corpora, folders or fsspec URIs; and settings as name=value.", show_default=False, metavar="CORPUS..."
        ),
    ] = None,
    config: Annotated[
        Path | None, path_option(help="YAML of a training run: its data, model and accumulate are used.")
    ] = None,
    model: Annotated[
        str | None, model_option("--model", "-m", help="A directory in the released layout, or a preset (tiny).")
    ] = None,
    base: Annotated[str | None, model_option(help="Where to find files that MODEL lacks.")] = None,
    ranks: Annotated[int, typer.Option(min=1, help="Processes that train side by side.")] = 1,
    accumulate: Annotated[int | None, typer.Option(min=1, help="Packs a rank works on before each step.")] = None,
    epochs: Annotated[int, typer.Option(min=1, help="Epochs to plan.")] = 1,
    as_json: Json = False,
) -> None:
    """Plan an epoch of training: packs, tokens by family and kind, steps, samples that are too long."""
    from pipelines.plan.run import PlanOptions, plan_summary, run_plan

    words = corpora or []
    result = run_plan(
        PlanOptions(
            corpora=tuple(word for word in words if not _OVERRIDE.match(word)),
            overrides=tuple(word for word in words if _OVERRIDE.match(word)),
            config=config, model=model, base=base, ranks=ranks, accumulate=accumulate, epochs=epochs, quiet=as_json,
        )
    )  # fmt: skip
    _print_json(result) if as_json else _print(plan_summary(result))


app.command()(generate)
app.command()(train)
app.command()(export)
app.command("eval")(evaluate)
app.command()(quickstart)
for _command in app.registered_commands:
    _command.cls = Command


def main() -> None:
    """Run the command; a user's mistake ends with one sentence and exit code 2."""
    debug = "--debug" in sys.argv[1:]
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    try:
        app(args=arguments, standalone_mode=True)
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and stop.code != INTERRUPTED:
            raise
        after = (
            "nothing was written"
            if arguments[:1] in (["generate"], ["export"])
            else "run the same command again to continue"
        )
        sys.stderr.write(f"interrupted; {after}\n")
        sys.exit(INTERRUPTED)
    except Exception as error:
        from sigma_data.errors import SigmaError

        if debug or not isinstance(error, SigmaError):
            raise
        sys.stderr.write(f"sigma: {one_line(str(error))}\n")
        sys.exit(2)


def _listed(values: list[str] | None) -> tuple[str, ...]:
    """Values of an option that may be repeated, or list them with commas."""
    return tuple(part.strip() for value in values or [] for part in value.split(",") if part.strip())


def _pairs(option: str, values: list[str] | None) -> dict[str, str]:
    pairs = {}
    for value in _listed(values):
        name, equals, setting = value.partition("=")
        if not equals:
            raise typer.BadParameter(f"{value!r}: write NAME=VALUE", param_hint=option)
        pairs[name] = setting
    return pairs


def _print(text: str) -> None:
    sys.stdout.write(text)


def _print_json(value: Any) -> None:
    from sigma_data.storage.files import finite

    sys.stdout.write(json.dumps(finite(value), indent=1, ensure_ascii=False, default=str) + "\n")


if __name__ == "__main__":
    main()
