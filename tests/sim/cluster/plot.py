"""The picture of docs/scaling.md: two charts with logarithmic axes, as SVG, in a few lines of our own."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor, log10
from typing import NamedTuple

PAPER = [(10.0, 0.18e6), (100.0, 1.8e6), (1000.0, 18e6)]
"""Ray (OSDI 2018): 1.8 M empty tasks/s with 100 machines, and that line drawn on."""
WIDTH, HEIGHT = 430, 330
LEFT, RIGHT, TOP, BOTTOM = 64, 14, 40, 46


class Line(NamedTuple):
    """One curve; `dashed`: not simulated."""

    title: str
    points: Sequence[tuple[float, float]]
    colour: str
    dashed: bool = False


def draw(rows: dict[str, list[dict[str, float]]]) -> str:
    """The whole picture, from the rows of the scenarios."""
    fast = [(row["machines"], row["tasks_per_s"]) for row in rows["throughput"]]
    told = [(row["machines"], row["heartbeat_core"]) for row in rows["steady"]]
    told_all = [(row["machines"], row["heartbeat_core"]) for row in rows["steady, told to all"]]
    charts = [
        _chart("empty tasks per virtual second", [Line("dpool, simulated", fast, "#1f5fa8"),
                                                  Line("Ray's paper, 18,000 per machine", PAPER, "#999", True)]),
        _chart("heartbeats: cores per machine", [Line("to 32 in turn", told, "#1f5fa8"),
                                                 Line("to all, each time", told_all, "#c0392b", True)]),
    ]  # fmt: skip
    moved = "".join(f'<g transform="translate({n * WIDTH} 0)">{chart}</g>' for n, chart in enumerate(charts))
    size = f'width="{WIDTH * len(charts)}" height="{HEIGHT}" viewBox="0 0 {WIDTH * len(charts)} {HEIGHT}"'
    style = 'font-family="sans-serif" font-size="12" fill="#333"'
    return f'<svg xmlns="http://www.w3.org/2000/svg" {size} {style}>\n<rect {size} fill="white"/>\n{moved}\n</svg>\n'


def _chart(title: str, lines: Sequence[Line]) -> str:
    points = [point for line in lines for point in line.points]
    across = _decades([x for x, _ in points])
    up = _decades([y for _, y in points])

    def at(x: float, y: float) -> tuple[float, float]:
        right = (log10(x) - across[0]) / (across[-1] - across[0])
        high = (log10(y) - up[0]) / (up[-1] - up[0])
        return LEFT + right * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - high * (HEIGHT - TOP - BOTTOM)

    parts = [f'<text x="{LEFT}" y="20" font-size="14">{title}</text>']
    for power in across:
        x, y = at(10.0**power, 10.0 ** up[0])
        parts.append(f'<path d="M{x:.1f} {TOP}V{y:.1f}" stroke="#ddd"/>')
        parts.append(f'<text x="{x:.1f}" y="{y + 16:.1f}" text-anchor="middle">{10**power:,.0f}</text>')
    for power in up:
        x, y = at(10.0 ** across[0], 10.0**power)
        parts.append(f'<path d="M{x:.1f} {y:.1f}H{WIDTH - RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{x - 6:.1f}" y="{y + 4:.1f}" text-anchor="end">{_short(power)}</text>')
    parts.append(f'<text x="{WIDTH / 2}" y="{HEIGHT - 10}" text-anchor="middle">machines</text>')
    for number, line in enumerate(lines):
        path = " ".join("{:.1f},{:.1f}".format(*at(*point)) for point in line.points)
        dash = ' stroke-dasharray="6 4"' if line.dashed else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2"{dash}/>')
        for point in line.points:
            x, y = at(*point)
            parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{line.colour}"/>')
        parts.append(f'<text x="{LEFT + 10}" y="{TOP + 14 + 16 * number}" fill="{line.colour}">{line.title}</text>')
    return "\n".join(parts)


def _decades(values: Sequence[float]) -> range:
    low, high = floor(log10(min(values))), ceil(log10(max(values)))
    return range(low, max(high, low + 1) + 1)


def _short(power: int) -> str:
    if power < 0:
        return f"{10.0**power:g}"
    return f"{10 ** (power % 3)}{('', ' k', ' M', ' G')[power // 3]}"
