"""`sigma build-dataset`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipelines.commands.options import (
    BUDGET_REACHED,
    Address,
    Config,
    EngineOption,
    Json,
    Overwrite,
    PrintConfig,
    TaskResources,
    Workers,
    listed,
    pairs,
    path_option,
    place,
    print_json,
    print_result,
    refuse_given,
    split_settings,
)
from pipelines.commands.upload import PushToHub, Yes, check_push, push
from sigma_data.errors import ConfigError
from sigma_data.storage.paths import is_uri

if TYPE_CHECKING:
    from sigma_data.corpus.corpus import Corpus


def build_dataset(
    context: typer.Context,
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            help="Sources, e.g. release:DIR, world:3000?size=256, webdataset:CORPUS; and settings as name=value.",
            show_default=False,
        ),
    ] = None,
    out: Annotated[
        str, typer.Option("--out", "-o", parser=place, metavar="PATH", help="The corpus: a folder, or s3://... .")
    ] = "corpus",
    work: Annotated[
        Path | None,
        path_option(help="Where it is built before it is uploaded, if --out is a store.", show_default=False),
    ] = None,
    config: Config = None,
    workers: Workers = None,
    engine: EngineOption = "local",
    address: Address = None,
    task_resources: TaskResources = None,
    seed: Annotated[int | None, typer.Option(help="Seed of splits and order.")] = None,
    quota: Annotated[list[str] | None, typer.Option(help="Most samples of a family, e.g. editing=1000.")] = None,
    check: Annotated[
        list[str] | None, typer.Option(help="Severity of a check, e.g. too_small=warning (see `sigma checks`).")
    ] = None,
    allow_unknown_tokens: Annotated[
        bool, typer.Option("--allow-unknown-tokens", help="Keep samples with <tokens> that are not attribute tokens.")
    ] = False,
    drop_near_duplicates: Annotated[
        bool, typer.Option("--drop-near-duplicates", help="Drop samples with like text and nearly equal images.")
    ] = False,
    license_allow: Annotated[
        list[str] | None, typer.Option(help="Take only samples of these licenses, e.g. mit,cc-by-*,unknown.")
    ] = None,
    license_deny: Annotated[
        list[str] | None, typer.Option(help="Take no samples of these licenses, e.g. unknown,cc-by-nc*.")
    ] = None,
    exclude: Annotated[
        list[str] | None,
        typer.Option(metavar="FILE", help="Leave out samples with these images (written by `sigma fingerprints`)."),
    ] = None,
    max_side: Annotated[int | None, typer.Option(help="Scale larger images down to this many pixels a side.")] = None,
    store: Annotated[
        str | None,
        typer.Option(help="Images that readers decode differently: original, shown, or auto (deep ones as shown)."),
    ] = None,
    overwrite: Overwrite = False,
    strict_files: Annotated[
        bool, typer.Option("--strict-files", help="A source file that cannot be used at all is an error.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what each source would yield, from metadata alone, and stop.")
    ] = False,
    rate: Annotated[
        float | None,
        typer.Option(min=0.001, help="For --dry-run: MB a second that a worker builds.", show_default=False),
    ] = None,
    push_to_hub: PushToHub = None,
    yes: Yes = False,
    print_config: PrintConfig = False,
    as_json: Json = False,
) -> None:
    """Build a checked, deduplicated corpus.

    Writes webdataset shards, splits without leaks between them, and a report; run again to resume.
    """
    from pipelines.build_dataset.config import BuildConfig
    from pipelines.build_dataset.run import build
    from pipelines.common.bundled_configs import CONFIGS, config_file
    from pipelines.common.engine import open_engine
    from pipelines.common.process_pool import default_workers
    from pipelines.common.settings import dump_settings, load_settings

    if not is_uri(out):
        refuse_given(context, ("work",), "is for an --out in a store: leave it out, this is built where --out says")
    if not dry_run:
        refuse_given(context, ("rate",), "belongs to --dry-run: add that, or leave this out")
    places, overrides = split_settings(sources)
    for one in places:
        if ":" not in one and (one.endswith((".yaml", ".yml")) or (CONFIGS / f"{one}.yaml").is_file()):
            raise ConfigError(f"source {one!r}: {one} is a configuration: write --config {one}")
    checks = pairs("--check", check)
    licenses = {"allow": listed(license_allow), "deny": listed(license_deny)}
    if allow_unknown_tokens:
        checks["unknown_token"] = "warning"
    settings = load_settings(
        BuildConfig,
        None if config is None else config_file(config, build=True),
        overrides,
        sources=places or None,
        seed=seed,
        quotas=pairs("--quota", quota),
        checks=checks,
        licenses={name: list(names) for name, names in licenses.items() if names},
        exclude=exclude or None,
        near_duplicates="drop" if drop_near_duplicates else None,
        max_side=max_side,
        store=store,
        typed={"sources": "SOURCES", "quotas": "--quota", "checks": "--check", "licenses": "--license"},
    )
    if print_config:
        print_result(dump_settings(settings))
        return
    if dry_run:
        from pipelines.build_dataset import dry_run as survey

        told = survey.dry_run(settings, workers=workers or default_workers(), rate=rate or survey.MEGABYTES_PER_SECOND)
        if as_json:
            print_json(told.as_dict())
        else:
            print_result(told.text())
        return
    if push_to_hub is not None and is_uri(out):
        raise typer.BadParameter("uploads a folder of this machine: build it here", param_hint="--push-to-hub")
    check_push(push_to_hub, yes=yes)
    running = open_engine(engine, workers, address=address, resources=task_resources)
    result = build(settings, out, engine=running, staging=work, overwrite=overwrite, strict_files=strict_files)
    if as_json:
        refused = [vars(file) for file in result.corpus.refused]
        print_json({"corpus": str(out), "fresh": result.fresh, "peak_worker_bytes": result.peak_worker_bytes,
                    **result.corpus.sums, "warnings": result.corpus.warnings,
                    "refused_files": refused,
                    "asked": None if result.asked is None else result.asked.as_dict()})  # fmt: skip
    else:
        print_result(build_summary(result.corpus, fresh=result.fresh))
    if result.asked is not None:
        from pipelines.inject.lines import asked_lines

        if not as_json:
            print_result("\n".join(asked_lines(result.asked)) + "\n")
        if result.asked.reached is not None:
            raise typer.Exit(BUDGET_REACHED)
    push(Path(out), push_to_hub, yes=yes)


def build_summary(corpus: Corpus, *, fresh: bool) -> str:
    """What a build has done, with the sum that must hold, and where to look."""
    from sigma_data.corpus.corpus import REPORT
    from sigma_data.corpus.refused_files import refused_lines
    from sigma_data.sample import FAMILY_RULES, Family
    from sigma_data.text_format import counted

    sums, shards = corpus.sums, counted(len(corpus.shards), "shard")
    again = "; --overwrite looks again for images that were missing" if sums["codes"].get("missing_picture") else ""
    lines = ["" if fresh else f"this corpus was complete already{again}"]
    lines += [
        f"read         {sums['read']:>10,}",
        *([f"+ made       {sums['made']:>10,}   from samples of the corpus"] if sums["made"] else []),
        f"= written    {sums['written']:>10,}   {_counts(sums['splits'])}",
        f"+ filtered   {sums['filtered']:>10,}   {_counts(sums['filters'])}",
        f"+ quarantine {sums['quarantined']:>10,}   {_counts(sums['codes'])}",
        f"+ duplicates {sums['duplicates']:>10,}",
        "",
    ]
    if warnings := dict(corpus.warnings):
        lines[-1:] = [f"warnings, of samples written: {_counts(warnings)} (sigma checks says what they mean)", ""]
    if refused := refused_lines(corpus.refused):
        lines += [*refused, "(--strict-files makes this an error)", ""]
    for name, count in sums["families"].items():
        goal = FAMILY_RULES[Family(name)].goal
        share = f"  {100 * count / goal:5.1f} % of SIGMA's {goal:,}" if goal else ""
        lines.append(f"{name:<14} {count:>8,}{share}")
    lines += [
        "",
        f"{counted(sums['images'], 'image')}, {sums['bytes'] / 1e6:,.1f} MB in {shards}: {corpus.place}",
        f"report: {corpus.place.rstrip('/')}/{REPORT}",
    ]
    return "\n".join(lines).lstrip("\n") + "\n"


def _counts(counts: dict[str, int]) -> str:
    return ", ".join(f"{name} {count:,}" for name, count in counts.items())
