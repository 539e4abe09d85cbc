"""One HTML file about a trained captioner: numbers, losses, and pictures with the place that each word looked at."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from PIL import Image
from torch import Tensor

from fastfuse.data.tokenizer import SPECIAL_TOKENS
from fastfuse.training.heatmap import overlay

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #657085; --line: #dfe4ec; --card: #fff; --ground: #f5f7fa;
  --good: #15803d; --bad: #c2410c; --accent: #3457d5; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #97a1b3; --line: #2d3543; --card: #1a202b;
  --ground: #11151d; --good: #4ade80; --bad: #fb923c; --accent: #8fa8ff; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 40px 24px 80px; background: var(--ground); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 28px; margin: 0 0 4px; }
h2 { font-size: 19px; margin: 44px 0 6px; }
p { margin: 0 0 14px; }
.soft { color: var(--soft); }
.numbers { display: flex; flex-wrap: wrap; gap: 12px; margin: 22px 0; }
.number, table, .card, .gallery figure { background: var(--card); border: 1px solid var(--line); border-radius: 10px; }
.number { padding: 12px 18px; min-width: 118px; }
.number b { display: block; font-size: 23px; font-variant-numeric: tabular-nums; }
.number.main b { color: var(--accent); }
table { border-spacing: 0; padding: 4px 0; }
td, th { padding: 6px 18px; text-align: right; font-variant-numeric: tabular-nums; }
td:first-child, th:first-child { text-align: left; white-space: pre; }
th { color: var(--soft); font-weight: 500; }
.card { padding: 14px; margin: 14px 0; }
.caption { font-size: 16px; font-weight: 600; margin-bottom: 10px; }
.card .soft { margin: -6px 0 10px; }
.good::before { content: "\\2713  "; color: var(--good); }
.bad::before { content: "\\2717  "; color: var(--bad); }
.words { display: flex; flex-wrap: wrap; gap: 8px; }
figure { margin: 0; text-align: center; }
figure img { display: block; border-radius: 6px; width: 104px; height: 104px; }
figcaption { font-size: 13px; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(166px, 1fr)); gap: 12px; }
.gallery figure { padding: 10px; }
.gallery img { margin: 0 auto 6px; width: 96px; height: 96px; }
.plot { max-width: 100%; background: #fff; border-radius: 10px; }
"""


@dataclass(frozen=True)
class Shown:
    """A picture in the report."""

    image: Image.Image
    caption: str  # what the model said
    right: bool  # whether that is a valid caption
    truth: str  # a valid caption
    words: Sequence[str] = ()  # tokens as text, S
    maps: Tensor | None = None  # (S, grid, grid); None: the picture stands in the gallery only


def write_report(
    path: Path,
    *,
    title: str,
    lead: str,
    numbers: Mapping[str, str],
    table: Sequence[Sequence[str]] = (),
    table_note: str = "",
    plot: Path | None = None,
    plot_note: str = "",
    pictures: Sequence[Shown],
) -> None:
    """Write the report; every picture is inside the file, no server and no network are needed to read it.

    Args:
        path: of the HTML file.
        title, lead: heading and the sentence under it.
        numbers: name to value, the most important one first.
        table, table_note: rows of a table, its head first, and the sentence before it.
        plot, plot_note: a PNG file, and the sentence before it.
        pictures: those with maps are shown large with one map a word, all of them in a gallery.
    """
    parts = [f"<h1>{escape(title)}</h1><p class='soft'>{escape(lead)}</p>", _numbers(numbers)]
    if table:
        parts.append(f"<h2>Cost</h2><p class='soft'>{escape(table_note)}</p>{_table(table)}")
    if plot is not None:
        parts.append(f"<h2>Losses</h2><p class='soft'>{escape(plot_note)}</p>")
        parts.append(f"<img class='plot' alt='losses' src='{_data_uri(plot.read_bytes())}'>")
    parts.append("<h2>Where each word looked</h2><p class='soft'>Attention of the words to the picture, averaged over ")
    parts.append("the heads and the upper text layers; bright is much.</p>")
    parts += [_card(shown) for shown in pictures if shown.maps is not None]
    parts.append("<h2>All captions</h2><div class='gallery'>")
    parts += [_thumbnail(shown) for shown in pictures]
    parts.append("</div>")
    head = f"<meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>{escape(title)}</title>"
    path.parent.mkdir(parents=True, exist_ok=True)
    body = "".join(parts)
    page = f"<!doctype html><html lang='en'><head>{head}<style>{_STYLE}</style></head><body>{body}</body></html>"
    path.write_text(page, encoding="utf-8")


def _numbers(numbers: Mapping[str, str]) -> str:
    boxes: list[str] = []
    for name, value in numbers.items():
        emphasis = "" if boxes else " main"
        inside = f"<b>{escape(value)}</b><span class='soft'>{escape(name)}</span>"
        boxes.append(f"<div class='number{emphasis}'>{inside}</div>")
    return f"<div class='numbers'>{''.join(boxes)}</div>"


def _table(rows: Sequence[Sequence[str]]) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    return f"<table>{row(rows[0], 'th')}{''.join(row(cells, 'td') for cells in rows[1:])}</table>"


def _card(shown: Shown) -> str:
    assert shown.maps is not None
    figures = [_figure(shown.image.resize((128, 128), Image.Resampling.BICUBIC), "picture")]
    for word, where in zip(shown.words, shown.maps, strict=True):
        if word not in SPECIAL_TOKENS:
            figures.append(_figure(overlay(shown.image, where), word))
    truth = "" if shown.right else f"<p class='soft'>valid: {escape(shown.truth)}</p>"
    return f"<div class='card'>{_said(shown)}{truth}<div class='words'>{''.join(figures)}</div></div>"


def _thumbnail(shown: Shown) -> str:
    truth = "" if shown.right else f"<br><span class='soft'>valid: {escape(shown.truth)}</span>"
    mark = "good" if shown.right else "bad"
    picture = f"<img alt='' src='{_png(shown.image)}'>"
    return f"<figure>{picture}<figcaption class='{mark}'>{escape(shown.caption)}{truth}</figcaption></figure>"


def _said(shown: Shown) -> str:
    return f"<div class='caption {'good' if shown.right else 'bad'}'>{escape(shown.caption)}</div>"


def _figure(image: Image.Image, text: str) -> str:
    return f"<figure><img alt='{escape(text)}' src='{_png(image)}'><figcaption>{escape(text)}</figcaption></figure>"


def _png(image: Image.Image) -> str:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return _data_uri(buffer.getvalue())


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()
