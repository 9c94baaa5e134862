"""A small SVG writer: text, lines, dots and bars on a transparent ground, legible on light and dark pages."""

from __future__ import annotations

import math
from html import escape

# A grey with 4.8:1 contrast on white and 4:1 on near-black, for viewers that ignore the media rule; others get more.
_STYLE = """
text{font-family:system-ui,-apple-system,'Segoe UI','DejaVu Sans',sans-serif;font-size:12px;fill:#6b7280}
.title{font-size:15px;font-weight:600}.small{font-size:11px}
.grid{stroke:#9ca3af;stroke-opacity:.35}.axis{stroke:#6b7280}
@media (prefers-color-scheme:light){text{fill:#4b5563}.title{fill:#1f2937}}
@media (prefers-color-scheme:dark){text{fill:#b6bdc8}.title{fill:#e5e7eb}.axis{stroke:#b6bdc8}}
"""
# Blue for the base, then orange, green, purple, red: told apart by colour-blind readers, readable on both grounds.
COLOURS = ("#4c83c3", "#d97b29", "#3f9b6d", "#9a6cc8", "#cc5a5a")


class Drawing:
    """Collects shapes; coordinates are pixels from the top left."""

    def __init__(self, width: float, height: float, label: str) -> None:
        self._size = (width, height)
        self._label = label
        self._parts: list[str] = []

    def text(self, x: float, y: float, content: str, anchor: str = "start", kind: str = "") -> None:
        name = f' class="{kind}"' if kind else ""
        self._parts.append(f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{name}>{escape(content)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "axis", width: float = 1) -> None:
        place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
        self._parts.append(f'<line {place} class="{kind}" stroke-width="{width}"/>')

    def dot(self, x: float, y: float, radius: float, colour: str, tip: str = "") -> None:
        title = f"<title>{escape(tip)}</title>" if tip else ""
        self._parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}">{title}</circle>')

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        self._parts.append(
            f'<rect x="{x:.1f}" y="{y:.1f}" width="{max(width, 0.5):.1f}" height="{height:.1f}" rx="2" '
            f'fill="{colour}" fill-opacity=".75"/>'
        )

    def source(self) -> str:
        """The picture as an XML document."""
        width, height = self._size
        head = (
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
            f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" aria-label="{escape(self._label)}">'
        )
        return "\n".join([head, f"<style>{_STYLE}</style>", *self._parts, "</svg>", ""])


def ticks(low: float, high: float, about: int = 5) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from `low` to `high`, about as many as asked for."""
    if high <= low:
        return [low]
    wanted = (high - low) / about
    power = 10.0 ** math.floor(math.log10(wanted))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(s - wanted))
    return [round(n * step, 12) for n in range(math.ceil(low / step), math.floor(high / step) + 1)]


def shorten(text: str, limit: int) -> str:
    """The end of a long id says more than its start: cut the middle."""
    if len(text) <= limit:
        return text
    tail = limit * 2 // 3
    return f"{text[: limit - tail - 1]}…{text[-tail:]}"


def colour_of(index: int) -> str:
    return COLOURS[index % len(COLOURS)]
