"""A bar chart as SVG. It is a dozen rectangles, so it needs no plotting library."""

from collections.abc import Mapping
from html import escape
from pathlib import Path

_WIDTH, _ROW, _LABEL, _TOP = 760, 34, 150, 56


def bars(path: Path, title: str, values: Mapping[str, float]) -> None:
    """Write horizontal bars, longest first, with their values rounded to whole numbers."""
    longest = max(values.values())
    rows = sorted(values.items(), key=lambda row: -row[1])
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_TOP + _ROW * len(rows)}" '
        f'role="img" aria-label="{escape(title)}" font-family="system-ui, sans-serif" font-size="15">',
        '<rect width="100%" height="100%" fill="#fff"/>',
        f'<text x="16" y="32" font-weight="600">{escape(title)}</text>',
    ]
    for number, (name, value) in enumerate(rows):
        y = _TOP + _ROW * number
        width = max(2.0, (_WIDTH - _LABEL - 110) * value / longest)
        colour = "#0f766e" if name == "muster" else "#94a3b8"
        parts.append(f'<text x="{_LABEL - 10}" y="{y + 16}" text-anchor="end">{escape(name)}</text>')
        parts.append(f'<rect x="{_LABEL}" y="{y}" width="{width:.1f}" height="22" rx="3" fill="{colour}"/>')
        parts.append(f'<text x="{_LABEL + width + 8:.1f}" y="{y + 16}">{value:,.0f}</text>')
    path.write_text("\n".join([*parts, "</svg>"]) + "\n")
