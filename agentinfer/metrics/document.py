"""The table of docs/metrics.md.

python -m agentinfer.metrics.document
"""

from __future__ import annotations

import sys

from agentinfer.metrics import collab, compression, prefill, ranking, scheduling, speculation, turns


def markdown_table() -> str:
    """The metrics as the Markdown table of docs/metrics.md, which a test holds equal to this."""
    lines = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    modules = (turns, ranking, scheduling, compression, prefill, collab, speculation)
    for spec in [each for module in modules for each in module.METRICS]:
        labels = ", ".join(f"`{label}`" for label in spec.labels) or "–"
        lines.append(f"| `{spec.name}` | {spec.kind} | {labels} | {spec.help} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.stdout.write(markdown_table())
