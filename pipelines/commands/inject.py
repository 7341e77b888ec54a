"""`sigma inject`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from pipelines.commands.options import (
    BUDGET_REACHED,
    Config,
    Json,
    PrintConfig,
    path_argument,
    path_option,
    print_json,
    print_result,
    split_settings,
)


def inject(
    captions: Annotated[Path, path_argument(help="JSON Lines with caption, family, references.")],
    settings: Annotated[
        list[str] | None, typer.Argument(help="Settings as name=value, e.g. by=model.", show_default=False)
    ] = None,
    out: Annotated[Path | None, path_option("--out", "-o", help="JSON Lines with the instructions.")] = None,
    config: Config = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show what would be asked and what it costs; ask nobody.")
    ] = False,
    print_config: PrintConfig = False,
    as_json: Json = False,
) -> None:
    """Try attribute-token injection on captions.

    By the rules, or by=model with model.name and endpoint.base_url; see docs/injection.md.
    """
    from pipelines.common.settings import dump_settings, load_settings
    from pipelines.inject.config import InjectionSettings

    others, overrides = split_settings(settings)
    if others:
        raise typer.BadParameter(f"{others[0]!r}: write settings as name=value", param_hint="SETTINGS")
    if config is None and not any(one.startswith("by=") for one in overrides):
        overrides = ["by=rules", *overrides]
    loaded = load_settings(InjectionSettings, config, overrides)
    if print_config:
        print_result(dump_settings(loaded))
        return
    from pipelines.inject.lines import estimate_lines, shown
    from pipelines.inject.run import estimate_file, inject_file

    if dry_run:
        found = estimate_file(captions, loaded)
        if as_json:
            print_json(vars(found))
        else:
            print_result(estimate_lines(found, loaded))
        return
    result = inject_file(captions, out, loaded)
    if as_json:
        print_json(result.as_dict())
    else:
        print_result(shown(result))
    if result.asked is not None and result.asked.reached is not None:
        raise typer.Exit(BUDGET_REACHED)
