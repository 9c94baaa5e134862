"""Several servers' metrics as one text: each sample with a label that says whose it is.

Prometheus's text format wants all samples of a metric together, under one HELP and one TYPE line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Family:
    """One metric: its comment lines by kind, and its samples."""

    comments: dict[str, str] = field(default_factory=dict)
    samples: list[str] = field(default_factory=list)


def merged(texts: Mapping[str, str], label: str) -> str:
    """The texts, by the label's value, as one."""
    families: dict[str, _Family] = {}
    for value, text in texts.items():
        current = ""
        for line in text.splitlines():
            if line.startswith("#"):
                kind, _, rest = line[1:].strip().partition(" ")
                name = rest.partition(" ")[0]
                if kind in ("HELP", "TYPE") and name:
                    current = name
                    families.setdefault(current, _Family()).comments.setdefault(kind, line)
            elif line.strip():
                sample_name = line.partition("{")[0].partition(" ")[0]
                family = current if current and sample_name.startswith(current) else sample_name
                families.setdefault(family, _Family()).samples.append(labelled(line, label, value))
    lines: list[str] = []
    for family_of in families.values():
        lines += (*family_of.comments.values(), *family_of.samples)
    return "\n".join(lines) + "\n" if lines else ""


def labelled(sample: str, label: str, value: str) -> str:
    """A sample line with one label more, before its others."""
    name, brace, rest = sample.partition("{")
    # A brace in the value of no label: a sample without labels has none at all.
    if not brace:
        name, _, rest = sample.partition(" ")
        return f'{name}{{{label}="{value}"}} {rest}'
    separator = "" if rest.startswith("}") else ","
    return f'{name}{{{label}="{value}"{separator}{rest}'
