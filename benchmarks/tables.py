"""Tables and figures of the measurements page, in the forms that all its sections share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


def table(heads: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    lines = [f"| {' | '.join(heads)} |", "|" + "---|" * len(heads)]
    lines += [f"| {' | '.join(str(cell) for cell in row)} |" for row in rows]
    return "\n".join(lines) + "\n"


def quartiles(figure: dict[str, float]) -> str:
    """Median and quartiles."""
    return f"{figure['median']:.2f} ({figure['q1']:.2f} to {figure['q3']:.2f})"


def spread(figure: dict[str, Any]) -> str:
    """Median, least and most."""
    return f"{figure['median']:.0f} ({min(figure['samples']):.0f} to {max(figure['samples']):.0f})"


def sessions(run: dict[str, Any]) -> str:
    """How many recorded sessions were played, and of which trace."""
    count = len(run["sessions"])
    return f"{count} recorded session{'' if count == 1 else 's'} of `{run['trace']['name']}`"


def conditions(run: dict[str, Any]) -> str:
    """What else the machine did, in brackets; empty where nothing is known."""
    return f" ({run['conditions']})" if run.get("conditions") else ""
