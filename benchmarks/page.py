"""A report as one HTML page that needs nothing else: no network, no other file; readable in light and in dark.

Knows HTML. Refuses to know how a figure came about.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --line: color-mix(in srgb, currentColor 25%, transparent); }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem;
       background: Canvas; color: CanvasText; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .6rem; text-align: right; border-bottom: 1px solid var(--line); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
img { max-width: 100%; background: white; border-radius: 4px; }
.remark { border-left: 3px solid currentColor; padding-left: .8rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; font-size: .8rem; }
"""

Shown = tuple[str, Sequence[str], Sequence[Sequence[str]]]
"""Title, header and rows of a table, as text."""


def html(
    document: Mapping[str, Any], remarks: Sequence[str], tables: Sequence[Shown], images: Mapping[str, str]
) -> str:
    """The page.

    Args:
        document: the report as JSON has it; put at the end of the page, whole.
        remarks: sentences to be read before the tables.
        tables: in order.
        images: name to PNG in base64.
    """
    title = f"editable: {document['benchmark']}, {document['made']}"
    parts = [
        f"<h1>{escape(title)}</h1>",
        *(f'<p class="remark">{escape(remark)}</p>' for remark in remarks),
        *(_picture(name, image) for name, image in images.items()),
        *(_table(*table) for table in tables),
        _table("Options", ("option", "value"), _pairs(document["options"])),
        _table("Machine", ("", ""), _pairs(document["machine"])),
        f"<details><summary>JSON</summary><pre>{escape(json.dumps(document, ensure_ascii=False))}</pre></details>",
    ]
    head = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>"
    )
    return "\n".join([head, "<body>", *parts, "</body></html>", ""])


def _picture(name: str, image: str) -> str:
    return f'<p><img alt="{escape(name)}" src="data:image/png;base64,{image}"></p>'


def _table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [_row("th", header)] * any(header) + [_row("td", row) for row in rows]
    return f'<h2>{escape(title)}</h2>\n<div class="wide"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _row(tag: str, cells: Sequence[str]) -> str:
    return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"


def _pairs(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    return [(name, str(value)) for name, value in values.items()]
