"""The contact sheet of a batch: a page with every prompt and its answer, failures first."""

from __future__ import annotations

import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sigma_data.storage.files import write_atomic

SHEET = "index.html"
_STYLE = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { margin: 2rem auto; max-width: 80rem; padding: 0 1rem; }
ol { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.5rem; }
ol { list-style: none; padding: 0; }
img { width: 100%; height: auto; border-radius: .4rem; }
pre { white-space: pre-wrap; } .failed { color: #b3261e; } small { opacity: .7; }
"""


def write_sheet(out: Path, title: str, rows: Sequence[dict[str, Any]]) -> Path:
    """Write the page beside the answers, which it shows from their files. Raises OSError."""
    failed = [row for row in rows if "failure" in row]
    parts = [
        '<!doctype html><html lang="en"><meta charset="utf-8">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        f"<title>{html.escape(title)}</title><style>{_STYLE}</style><body><h1>{html.escape(title)}</h1>",
    ]
    if failed:
        parts.append(f'<h2 class="failed">{len(failed):,} failed</h2><ul>')
        parts += [f"<li>{_head(row)}: {html.escape(row['failure'])}</li>" for row in failed]
        parts.append("</ul>")
    parts.append("<ol>")
    parts += [f"<li>{_body(row)}<p>{_head(row)}</p></li>" for row in rows if "failure" not in row]
    parts.append("</ol></body></html>\n")
    write_atomic(out / SHEET, "\n".join(parts))
    return out / SHEET


def _head(row: dict[str, Any]) -> str:
    return f"<small>{row['index']} {html.escape(row['id'])}</small> {html.escape(row['prompt'])}"


def _body(row: dict[str, Any]) -> str:
    if "file" in row:
        url, words = quote(row["file"]), html.escape(row["prompt"])
        return f'<a href="{url}"><img loading="lazy" src="{url}" alt="{words}"></a>'
    return f"<pre>{html.escape(row['text'])}</pre>"
