"""`sigma upload`, and the option `--push-to-hub` of the commands that make what it uploads."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands.options import Json, need_terminal, path_argument, path_option, print_json, print_result

if TYPE_CHECKING:
    from pipelines.upload.run import Plan

PushToHub = Annotated[
    str | None,
    typer.Option(
        "--push-to-hub", metavar="OWNER/NAME", help="Then upload it, as `sigma upload` does, private.",
        show_default=False,
    ),
]  # fmt: skip
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask before uploading.")]


def upload(
    place: Annotated[Path, path_argument(help="A corpus, or a model: what `sigma export` wrote, or an adapter.")],
    name: Annotated[str, typer.Argument(metavar="OWNER/NAME", help="The repository on the hub.", show_default=False)],
    public: Annotated[bool, typer.Option("--public", help="For everybody to see; by default it is private.")] = False,
    replace: Annotated[
        bool, typer.Option("--replace", help="Remove files from the repository that are not here.")
    ] = False,
    license: Annotated[
        str | None,
        typer.Option(help="Of a model, e.g. apache-2.0; by default that of its base.", show_default=False),
    ] = None,
    evaluations: Annotated[
        list[Path] | None,
        path_option("--eval", help="An evaluation of the model, for its card; by default those beside it."),
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List files and sizes; send nothing.")] = False,
    yes: Yes = False,
    as_json: Json = False,
) -> None:
    """Upload a corpus or a model to the hub.

    Private unless --public says otherwise, with a card; what is there already is not sent again, and an upload that
    was cut off goes on. HF_TOKEN or `hf auth login` chooses the account, HF_ENDPOINT a hub.
    """
    from pipelines.upload.run import plan_upload

    plan = plan_upload(
        place, name, public=public, replace=replace, license_=license, evaluations=evaluations or None, dry=dry_run
    )
    if dry_run:
        if as_json:
            print_json(plan.as_dict())
        else:
            print_result(plan.show(every=True) + "\n")
        return
    from pipelines.upload.run import uploaded

    result = _send(plan, yes=yes)
    if as_json:
        print_json(result)
    else:
        print_result(uploaded(result))


def check_push(name: str | None, *, yes: bool) -> None:
    """Before the work that `--push-to-hub` follows: raises what would make the upload fail at once afterwards."""
    if name is None:
        return
    from pipelines.upload.repository import HubRepository
    from pipelines.upload.run import check_target

    check_target(name)
    if not yes:
        need_terminal("the upload has")
    HubRepository(name, "model").check_account()


def push(place: Path, name: str | None, *, yes: bool) -> None:
    """What `--push-to-hub` does with what was made; its result goes to standard error, below the command's own."""
    if name is None:
        return
    from pipelines.upload.run import plan_upload, uploaded

    sys.stderr.write(uploaded(_send(plan_upload(place, name), yes=yes)))


def _send(plan: Plan, *, yes: bool) -> dict[str, Any]:
    """Upload, after a question unless there is nothing to send or `yes`."""
    from pipelines.upload.run import upload as send

    if not yes and (plan.missing or plan.others):
        sys.stderr.write(plan.show() + "\n")
        need_terminal("the upload has")
        typer.confirm("Upload?", abort=True, err=True)
    return send(plan)
