"""The picture of simulated scheduling: throughput over load, and the frontier of throughput against the worst wait."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from agentinfer.replay.svg import Drawing, colour_of, ticks

SHOWN = ("agent", "fcfs", "lpm", "hrrn", "spf")
_WIDTH, _HEIGHT = 330, 260
_TOP = 96
_LEFTS = (64, 490)
_SIZE = (870, _TOP + _HEIGHT + 62)
_Point = tuple[float, float, str]


def draw(result: Mapping[str, Any]) -> str:
    """SVG source. Left: sessions an hour by live sessions. Right: by worst wait, at 32 live; rings have a host tier."""
    drawing = Drawing(*_SIZE, "Sessions an hour against live sessions and against the worst wait")
    x = 20.0
    for index, name in enumerate(SHOWN):
        drawing.dot(x + 5, 30, 5, colour_of(index))
        drawing.text(x + 16, 34, name)
        x += 46 + 7.2 * len(name)
    highest = max(row["sessions_per_hour"] for part in _parts(result) for row in part)
    by_load = {name: [_by_load(row) for row in result["swe_dev"] if row["policy"] == name] for name in SHOWN}
    loads = sorted({row["live_sessions"] for row in result["swe_dev"]})
    labels = ("Load", "live sessions", "sessions an hour")
    across = _log_scale(_LEFTS[0], loads[0] / 1.3, loads[-1] * 1.3)
    _panel(drawing, _LEFTS[0], labels, across, loads, highest)
    _lines(drawing, by_load, across, highest)
    frontier = [_by_wait(row) for row in result["frontier"]]
    with_host = [_by_wait(row) for row in result["frontier_host"]]
    others = {
        name: [_by_wait(row) for row in result["swe_dev"] if row["policy"] == name and row["live_sessions"] == 32]
        for name in SHOWN[1:]
    }
    waits = [wait for points in (frontier, with_host, *others.values()) for wait, _, _ in points]
    low, high = min(waits) / 1.3, max(waits) * 1.3
    marks = [mark for mark in (10, 30, 100, 300, 1000, 3000, 10_000) if low <= mark <= high]
    across = _log_scale(_LEFTS[1], low, high)
    labels = ("Frontier at 32 live sessions", "worst wait for the engine, seconds", "sessions an hour")
    _panel(drawing, _LEFTS[1], labels, across, marks, highest)
    _lines(drawing, {"agent": frontier, **others}, across, highest)
    for wait, rate, tip in with_host:
        place = across(wait), _up(rate, highest)
        drawing.dot(*place, 5, colour_of(0), tip + ", host tier")
        drawing.dot(*place, 2.5, "#ffffff")
    return drawing.source()


def _parts(result: Mapping[str, Any]) -> Iterable[Sequence[dict[str, Any]]]:
    return (result["swe_dev"], result["frontier"], result["frontier_host"])


def _by_load(row: Mapping[str, Any]) -> _Point:
    return row["live_sessions"], row["sessions_per_hour"], _tip(row)


def _by_wait(row: Mapping[str, Any]) -> _Point:
    return max(row["worst_wait_s"], 1.0), row["sessions_per_hour"], _tip(row)


def _tip(row: Mapping[str, Any]) -> str:
    bound = row["max_wait_s"]
    asked = "" if bound is None else f", bound {bound:g} s"
    return f"{row['policy']}{asked}: {row['sessions_per_hour']:.1f} an hour, worst wait {row['worst_wait_s']:.0f} s"


def _log_scale(left: float, low: float, high: float) -> Callable[[float], float]:
    return lambda value: left + (math.log(value) - math.log(low)) / (math.log(high) - math.log(low)) * _WIDTH


def _up(rate: float, highest: float) -> float:
    return _TOP + _HEIGHT - rate / (1.08 * highest) * _HEIGHT


def _panel(
    drawing: Drawing,
    left: float,
    labels: tuple[str, str, str],
    across: Callable[[float], float],
    marks: Sequence[float],
    highest: float,
) -> None:
    title, x_label, y_label = labels
    bottom = _TOP + _HEIGHT
    drawing.text(left, _TOP - 28, title, kind="title")
    drawing.text(left, _TOP - 10, y_label, kind="small")
    for mark in marks:
        drawing.line(across(mark), _TOP, across(mark), bottom, kind="grid")
        drawing.text(across(mark), bottom + 18, f"{mark:,.0f}", "middle", "small")
    for tick in ticks(0.0, highest):
        drawing.line(left, _up(tick, highest), left + _WIDTH, _up(tick, highest), kind="grid")
        drawing.text(left - 8, _up(tick, highest) + 4, f"{tick:g}", "end", "small")
    drawing.line(left, bottom, left + _WIDTH, bottom)
    drawing.text(left + _WIDTH / 2, bottom + 40, x_label, "middle", "small")


def _lines(
    drawing: Drawing,
    series: Mapping[str, Sequence[_Point]],
    across: Callable[[float], float],
    highest: float,
) -> None:
    for name, points in series.items():
        for x, y, tip in points:
            drawing.dot(across(x), _up(y, highest), 5, colour_of(SHOWN.index(name)), tip)
