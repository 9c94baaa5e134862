"""The calibration plot: what a drafter expects of its drafts against what was accepted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from agentinfer.replay.svg import Drawing, colour_of, ticks

_SIDE = 330
_TOP = 96
_LEFTS = (70, 490)
_SIZE = (860, _TOP + _SIDE + 62)


def draw(calibrations: Mapping[str, dict[str, Any]]) -> str:
    """SVG source. A dot is a bin of drafted nodes (left) or verify steps (right), larger with more of them."""
    drawing = Drawing(*_SIZE, "Expected against accepted draft tokens")
    x = 20.0
    for index, name in enumerate(calibrations):
        drawing.dot(x + 5, 30, 5, colour_of(index))
        drawing.text(x + 16, 34, name)
        x += 60 + 7.2 * len(name)
    nodes = {name: [_node(bin_) for bin_ in each["nodes"]] for name, each in calibrations.items()}
    _panel(drawing, _LEFTS[0], ("Drafted nodes", "estimated chance of acceptance", "accepted"), nodes, 0.0, 1.0)
    steps = {name: [_step(bin_) for bin_ in each["steps"]] for name, each in calibrations.items()}
    most = max((max(x, y) for points in steps.values() for _, x, y in points), default=2.0)
    _panel(drawing, _LEFTS[1], ("Verify steps", "expected tokens", "emitted tokens"), steps, 0.0, math.ceil(most))
    return drawing.source()


def _node(bin_: Mapping[str, float]) -> tuple[float, float, float]:
    return bin_["drafted"], bin_["expected"], bin_["accepted"]


def _step(bin_: Mapping[str, float]) -> tuple[float, float, float]:
    return bin_["steps"], bin_["expected_tokens"], bin_["tokens"]


def _panel(
    drawing: Drawing,
    left: float,
    labels: tuple[str, str, str],
    series: Mapping[str, Sequence[tuple[float, float, float]]],
    low: float,
    high: float,
) -> None:
    """One square plot of (weight, x, y) points with the diagonal on which estimates come true."""
    title, x_label, y_label = labels
    bottom = _TOP + _SIDE
    across: Callable[[float], float] = lambda value: left + (value - low) / (high - low) * _SIDE  # noqa: E731
    up: Callable[[float], float] = lambda value: bottom - (value - low) / (high - low) * _SIDE  # noqa: E731
    drawing.text(left, _TOP - 28, title, kind="title")
    drawing.text(left, _TOP - 10, y_label, kind="small")
    for tick in ticks(low, high):
        drawing.line(across(tick), _TOP, across(tick), bottom, kind="grid")
        drawing.line(left, up(tick), left + _SIDE, up(tick), kind="grid")
        drawing.text(across(tick), bottom + 18, f"{tick:g}", "middle", "small")
        drawing.text(left - 8, up(tick) + 4, f"{tick:g}", "end", "small")
    drawing.text(left + _SIDE / 2, bottom + 40, x_label, "middle", "small")
    drawing.line(across(low), up(low), across(high), up(high))
    for index, (name, points) in enumerate(series.items()):
        total = sum(weight for weight, _, _ in points)
        for weight, x, y in points:
            radius = round(2.5 + 12 * math.sqrt(weight / total), 1)
            tip = f"{name}: expected {x:.3f}, seen {y:.3f} ({weight:.0f})"
            drawing.dot(across(x), up(y), radius, colour_of(index), tip)
