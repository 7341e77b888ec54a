"""A small corpus of plain captions with a field map: what injection works on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from support import image_files

_MAP = """\
corpus: Captions
hub: tests/captions
families: [editing, compositional]
license: mit
certainty: A
size: a few rows
files: DIR/rows.jsonl and its images
format: jsonl
rows: ["rows.jsonl"]
fields: {instruction: caption, references: inputs, target: output}
images: {from: tree, folders: ["."]}
injected: INJECTED
family:
  by: family
  map: {editing: editing, compositional: compositional, stylization: stylization, relation: relation, layout: layout}
  default: editing
"""


def captioned_source(folder: Path, rows: list[tuple[str, str, int]], *, injected: bool = False) -> str:
    """The source string of a corpus with a row for each (family, caption, references)."""
    root = folder / "images"
    root.mkdir(parents=True, exist_ok=True)
    lines: list[dict[str, Any]] = []
    for number, (family, caption, count) in enumerate(rows):
        names = [f"{number:03d}_{place}.png" for place in range(count + 1)]
        for place, name in enumerate(names):
            (root / name).write_bytes(image_files.image_bytes("png", 100 * number + place))
        lines.append({"caption": caption, "family": family, "inputs": names[:-1], "output": names[-1]})
    (root / "rows.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    file = folder / "captions.yaml"
    file.write_text(_MAP.replace("INJECTED", str(injected).lower()))
    return f"map:{file}?root={root}"
