"""The comparison as a picture: ratios with their intervals above, every session's completion in both runs below."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from agentinfer.replay import table
from agentinfer.replay.report import Comparison, Report
from agentinfer.replay.svg import Drawing, colour_of, shorten, ticks

_WIDTH = 860
_LEFT = 250
_RIGHT = 110
_PLOT = _WIDTH - _LEFT - _RIGHT
_RATIO_ROW = 22
_SESSION_ROW = 18
_MOST_SESSIONS = 40


def draw(reports: Sequence[Report]) -> str:
    """SVG source for one or more runs, all against the same base. Raises nothing that `compare` let pass."""
    metrics = list(dict.fromkeys(c.metric for r in reports for c in r.comparisons if c.ratio is not None))
    shown, left_out = _shown_sessions(reports)
    legend = _legend([base := reports[0].base.name, *(r.run.name for r in reports)])
    ratio_y = legend[-1][1] + 50
    session_y = ratio_y + len(metrics) * (len(reports) * _RATIO_ROW + 10) + 84
    height = session_y + len(shown) * _SESSION_ROW + 60
    drawing = Drawing(_WIDTH, height, f"Replays compared with {base}")
    drawing.text(20, 28, f"Replays of the same sessions, against {shorten(base, 48)}", kind="title")
    for index, (x, y, label) in enumerate(legend):
        drawing.dot(x + 5, y - 4, 5, colour_of(index))
        drawing.text(x + 16, y, label)
    _ratios(drawing, reports, metrics, ratio_y)
    drawing.text(20, session_y - 28, "Task completion a session, seconds", kind="title")
    if left_out:
        drawing.text(_WIDTH - 20, session_y - 28, f"every {left_out}th session, by base time", "end", "small")
    _sessions(drawing, reports, shown, session_y)
    return drawing.source()


def _legend(names: Sequence[str]) -> list[tuple[float, float, str]]:
    """Place and label of each run's entry, wrapped into the width by a guess of the letters' size."""
    x, y = 20.0, 56.0
    entries = []
    for name in names:
        label = shorten(name, 48)
        width = 16 + 7.2 * len(label)
        if x > 20.0 and x + width > _WIDTH - 20:
            x, y = 20.0, y + 20
        entries.append((x, y, label))
        x += width + 28
    return entries


def _ratios(drawing: Drawing, reports: Sequence[Report], metrics: Sequence[str], top: float) -> None:
    """Bars from 1.0: to the left is faster. The whisker is the 95% interval."""
    found = [c for r in reports for c in r.comparisons if c.ratio is not None]
    edges = [e for c in found for e in (c.low, c.high, c.ratio) if e is not None]
    low, high = min([0.9, *edges]), max([1.1, *edges])
    margin = 0.06 * (high - low)
    low, high = low - margin, high + margin

    def at(value: float) -> float:
        return _LEFT + (value - low) / (high - low) * _PLOT

    bottom = top + len(metrics) * (len(reports) * _RATIO_ROW + 10)
    drawing.text(_LEFT - 14, top - 12, "ratio of means, 95% interval", "end", "small")
    for tick in ticks(low, high):
        drawing.line(at(tick), top - 4, at(tick), bottom, kind="grid")
        drawing.text(at(tick), bottom + 16, f"{tick:g}", "middle", "small")
    drawing.line(at(1.0), top - 8, at(1.0), bottom)
    drawing.text(at(1.0) - 8, top - 12, "faster ←", "end", "small")
    drawing.text(at(1.0) + 8, top - 12, "→ slower", "start", "small")
    drawing.text(_WIDTH - _RIGHT + 12, top - 12, "ratio (pairs)", kind="small")
    y = top + 4
    for metric in metrics:
        drawing.text(_LEFT - 14, y + len(reports) * _RATIO_ROW / 2 + 2, metric, "end")
        for index, report in enumerate(reports, 1):
            comparison = next((c for c in report.comparisons if c.metric == metric), None)
            if comparison is not None:
                _ratio_bar(drawing, comparison, at, y, colour_of(index))
            y += _RATIO_ROW
        y += 10


def _ratio_bar(drawing: Drawing, comparison: Comparison, at: Callable[[float], float], y: float, colour: str) -> None:
    if comparison.ratio is None or comparison.low is None or comparison.high is None:
        return
    one, end = at(1.0), at(comparison.ratio)
    middle = y + 7
    drawing.bar(min(one, end), y, abs(end - one), 14, colour)
    low, high = at(comparison.low), at(comparison.high)
    drawing.line(low, middle, high, middle, width=1.5)
    for edge in (low, high):
        drawing.line(edge, middle - 4, edge, middle + 4, width=1.5)
    drawing.text(_WIDTH - _RIGHT + 12, y + 11, f"{comparison.ratio:.3f}  ({comparison.num_pairs})", kind="small")


def _sessions(drawing: Drawing, reports: Sequence[Report], shown: Sequence[str], top: float) -> None:
    values = [v for r in reports for name in shown for v in r.session_pairs.get(name, ())]
    high = max(values, default=1.0) * 1.04 or 1.0

    def at(value: float) -> float:
        return _LEFT + value / high * _PLOT

    bottom = top + len(shown) * _SESSION_ROW
    for tick in ticks(0.0, high):
        drawing.line(at(tick), top - 8, at(tick), bottom, kind="grid")
        drawing.text(at(tick), bottom + 16, table.figure(tick), "middle", "small")
    for row, name in enumerate(shown):
        y = top + row * _SESSION_ROW + 4
        drawing.text(_LEFT - 14, y + 4, shorten(name, 34), "end", "small")
        pairs = [(i, r.session_pairs[name]) for i, r in enumerate(reports, 1) if name in r.session_pairs]
        ends = [at(v) for _, pair in pairs for v in pair]
        drawing.line(min(ends), y, max(ends), y, kind="grid", width=3)
        drawing.dot(at(pairs[0][1][0]), y, 4.5, colour_of(0), f"{name}: {table.figure(pairs[0][1][0])} s")
        for index, (_, seconds) in pairs:
            drawing.dot(at(seconds), y, 4.5, colour_of(index), f"{name}: {table.figure(seconds)} s")


def _shown_sessions(reports: Sequence[Report]) -> tuple[list[str], int]:
    """Sessions by base time, thinned out evenly where there are too many, and the step of that (0: all shown)."""
    seconds: dict[str, float] = {}
    for report in reports:
        seconds |= {name: pair[0] for name, pair in report.session_pairs.items()}
    names = sorted(seconds, key=lambda name: (-seconds[name], name))
    step = -(-len(names) // _MOST_SESSIONS)
    return names[::step], step if step > 1 else 0
