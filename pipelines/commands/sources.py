"""`sigma sources`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from pipelines.commands.options import Json, print_json, print_result

if TYPE_CHECKING:
    from sigma_data.sources.field_map.schema import FieldMap, RowLayout


def sources(
    name: Annotated[
        str | None, typer.Argument(help="A corpus of the list, or the YAML file of a map.", show_default=False)
    ] = None,
    as_json: Json = False,
) -> None:
    """List public corpora that can be sources.

    For each its families, its license, how sure the facts are (A: the publisher's own code or card, B: the code of
    others who use it, C: knowledge without a source, G: guessed), where it is to be had and its size. With a name: how
    to lay out its files, and how they are read.
    """
    if name is None:
        rows = sources_table()
        if as_json:
            print_json(rows)
        else:
            print_result(_list(rows))
        return
    found = _map(name)
    if as_json:
        print_json(found.model_dump(mode="json", by_alias=True, exclude_defaults=True))
    else:
        print_result(describe(name, found))


def sources_table() -> list[dict[str, Any]]:
    """The corpora as rows."""
    from sigma_data.sources.base import field_maps
    from sigma_data.sources.field_map.load import load_shipped

    return [
        {
            "name": name,
            "corpus": found.corpus,
            "families": [family.value for family in found.families],
            "license": found.license,
            "certainty": found.certainty,
            "hub": list(found.hub),
            "size": found.size,
        }
        for name in field_maps()
        for found in [load_shipped(name)]
    ]


def describe(name: str, found: FieldMap) -> str:
    """How to lay out the files of a corpus, and how they are read, as text."""
    from sigma_data.text_format import described

    spec = f"map:{name}?root=DIR" if name.endswith((".yaml", ".yml")) else f"{name}:DIR"
    facts = (
        ("families", ", ".join(found.families)), ("license", found.license), ("facts", found.certainty),
        ("size", found.size),
    )  # fmt: skip
    files = found.files.strip() or "The map does not say how to lay out the files."
    lines = [
        _wrapped(f"{found.corpus} ({', '.join(found.hub) or 'of your own'})"),
        described(facts),
        "",
        *map(_wrapped, files.splitlines()),
        "",
    ]
    for layout in found.layouts:
        lines += [_layout(layout), ""]
    lines.append(f"$ sigma build-dataset '{spec}' --out CORPUS")
    return "\n".join(lines) + "\n"


def _wrapped(line: str) -> str:
    """A line in lines for a terminal of 80 columns, with its indentation; a command stays one that can be copied."""
    import textwrap

    command = line.startswith("sigma ")
    indent = "    " if command else " " * (len(line) - len(line.lstrip()))
    parts = textwrap.wrap(line, 77, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)
    return (" \\\n" if command else "\n").join(parts)


def _layout(layout: RowLayout) -> str:
    """How the rows of a layout are read."""
    from sigma_data.text_format import described

    fields, images = layout.fields, layout.images
    where = {"bytes": "in the rows", "tree": "files", "archive": "in archives, or unpacked"}[images.origin]
    told = {
        "rows": f"{', '.join(layout.rows)} ({layout.format})",
        "left out": ", ".join(layout.skip),
        "images": where,
        "instruction": " or ".join(fields.instruction),
        "references": ", ".join(field.field for field in fields.references),
        "target": fields.target.field if fields.target else "",
        "turns": layout.conversation.field if layout.conversation else "",
        "side by side": layout.composite.field.field if layout.composite else "",
    }
    rows = [(word, text) for word, text in told.items() if text]
    rows += [("filter" if number == 0 else "", _filter(rule)) for number, rule in enumerate(layout.filters)]
    return (f"{layout.name}:\n" if layout.name else "") + described(rows)


def _filter(rule: Any) -> str:
    """A filter in short."""
    name = "|".join(rule.field)
    if rule.min is not None or rule.sum_min is not None:
        least = f"sum of {name} >= {rule.sum_min:g}" if rule.sum_min is not None else f"{name} >= {rule.min:g}"
    else:
        values = [*rule.drop, *rule.keep]
        least = f"{name} is {'not ' * bool(rule.drop)}{' or '.join(str(value).lower() for value in values)}"
        if rule.matches is not None:
            least = f"{name} has {rule.matches}"
    when = " and ".join(f"{field} is {' or '.join(values)}" for field, values in rule.when.items())
    return f"{least}{f', where {when}' if when else ''} (missing: {rule.missing})"


def _map(name: str) -> FieldMap:
    from sigma_data.errors import ConfigError
    from sigma_data.sources.base import field_maps
    from sigma_data.sources.field_map.load import load_map, load_shipped

    if name in field_maps():
        return load_shipped(name)
    if name.endswith((".yaml", ".yml")):
        return load_map(name)
    import difflib

    near = difflib.get_close_matches(name.casefold().replace("-", "_"), field_maps(), 1)
    raise ConfigError(f"there is no corpus {name}; {f'did you mean {near[0]}?' if near else 'see sigma sources'}")


def _list(rows: list[dict[str, Any]]) -> str:
    """All corpora, in lines for a terminal of 80 columns."""
    from sigma_data.text_format import described

    told = []
    for row in rows:
        facts = (f"license {row['license']}", f"facts {row['certainty']}", row["size"], _first(row["hub"]))
        told.append((row["name"], "; ".join([", ".join(row["families"]), *facts])))
    return (
        described(told)
        + "\n\n`sigma sources NAME` says how to lay out the files."
        + "\nhf:OWNER/NAME streams a hub data set; map:FILE.yaml?root=DIR reads any other"
        + "\ncorpus by a map of your own (docs/sources.md).\n"
    )


def _first(hub: list[str]) -> str:
    return f"{hub[0]} +{len(hub) - 1}" if len(hub) > 1 else "".join(hub)
