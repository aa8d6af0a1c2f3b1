"""One self-contained page of HTML: no network, whatever the names in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from .pictures import NARROW, Picture, svg_of

_HERE = Path(__file__).parent
# Nothing may be loaded, whatever a record says.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:"


def page(title: str, headline: str, below: str, body: Sequence[str]) -> str:
    """Return a whole page.

    Args:
        title: of the window.
        headline: what the page has to say, in a sentence.
        below: what it is about.
        body: elements of HTML; all other arguments are text.
    """
    style, script = ((_HERE / f"page.{end}").read_text("utf-8") for end in ("css", "js"))
    return "\n".join(
        [
            '<!doctype html>\n<html lang="en">\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{_POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title>",
            f"<style>\n{style}</style>",
            f'<main>\n<h1>{escape(headline)}</h1>\n<p class="sub">{escape(below)}</p>',
            *body,
            f"</main>\n<script>\n{script}</script>\n</html>\n",
        ]
    )


def cards(found: Sequence[tuple[str, str, str]]) -> str:
    """Return figures with a name above and a remark below each."""
    each = [
        f'<div class="card"><span>{escape(name)}</span><b>{escape(value)}</b>'
        f"<span>{escape(remark)}</span></div>"
        for name, value, remark in found
    ]
    return f'<div class="cards">{"".join(each)}</div>'


def figure(picture: Picture, readings: Sequence[str]) -> str:
    """Return a picture under its title, in two widths of which the screen takes one."""
    both = svg_of(picture, readings) + svg_of(picture, readings, NARROW)
    return (
        f"<h2>{escape(picture.title)}</h2>\n<p>{escape(picture.text)}</p>\n"
        f'<figure>{both}<figcaption aria-live="polite"></figcaption></figure>'
    )


def table(
    head: Sequence[str],
    rows: Sequence[Sequence[str]],
    *,
    marks: Mapping[int, tuple[str, str]] = {},
    indices: Sequence[int] | None = None,
    text_columns: Sequence[int] = (),
) -> str:
    """Return a table.

    Args:
        head: titles of the columns.
        rows: cells of each row.
        marks: by row, a CSS class and a remark beside the first cell.
        indices: which validation each row is; None: none.
        text_columns: those that hold sentences.
    """
    lines = []
    for i, row in enumerate(rows):
        css, remark = marks.get(i, ("", ""))
        cells = [
            f'<td class="text">{escape(cell)}</td>'
            if j in text_columns
            else f"<td>{escape(cell)}</td>"
            for j, cell in enumerate(row)
        ]
        if remark:
            cells[0] = cells[0].replace("</td>", f" <em>{escape(remark)}</em></td>")
        at = "" if indices is None else f' data-i="{indices[i]}"'
        lines.append(
            f'<tr class="{css}"{at}>{"".join(cells)}</tr>'
            if css
            else f"<tr{at}>{''.join(cells)}</tr>"
        )
    kinds = [' class="text"' if j in text_columns else "" for j in range(len(head))]
    titles = "".join(
        f'<th scope="col"{kind}>{escape(cell)}</th>' for kind, cell in zip(kinds, head, strict=True)
    )
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{titles}</tr></thead>\n'
        f"<tbody>{chr(10).join(lines)}</tbody></table></div>"
    )


def bullets(sentences: Sequence[str]) -> str:
    """Return a list of sentences."""
    return f"<ul>{''.join(f'<li>{escape(s)}</li>' for s in sentences)}</ul>"


def section(title: str, *parts: str) -> str:
    """Return parts under a title."""
    return "\n".join([f"<h2>{escape(title)}</h2>", *parts])


def small_print(title: str, *parts: str) -> str:
    """Return parts that are shown when asked for."""
    return f"<details><summary>{escape(title)}</summary>\n{chr(10).join(parts)}\n</details>"
