"""Writes docs/configuration.md from the options: ``python -m agentinfer.config.document > docs/configuration.md``."""

from __future__ import annotations

import sys

from agentinfer.config import FEATURES, OTHER_VARIABLES
from agentinfer.config.options import Feature, Option

_HEAD = """\
# Configuration

<!-- Made by `python -m agentinfer.config.document`; a test compares. Change the features instead. -->

Every option can be given as a flag of `python -m agentinfer.launch_server`, as an environment variable, or as a key of
the YAML file that `--config` names, among SGLang's own: the flag without its `--`. The first of these that is there
wins, in this order; then the default. A value that cannot be taken stops the launcher with a message that names its
source.

The first option of each feature switches it. A feature that is off registers nothing: the server then behaves as stock
SGLang does. With sessions on, the launcher adds `--enable-metrics` and `--enable-cache-report` to SGLang's flags, since
our metrics are on SGLang's `/metrics` route and a session reports how much of its prompt was cached; a `--config` file
that sets one of them to false keeps it off.

Without `--model-path` the launcher serves an embedded model; `embedded:NAME` works wherever SGLang takes a path. An
embedded model comes with `--tool-call-parser` and `--served-model-name`, unless you give your own.
"""


def documentation() -> str:
    """The whole page."""
    parts = [_HEAD, *(_feature_section(each) for each in FEATURES.values()), _other_variables()]
    return "\n".join(parts)


def _feature_section(feature: type[Feature]) -> str:
    lines = [f"## {feature.feature}", "", feature.summary]
    if feature.requires:
        lines.append(f"Needs {', '.join(f'`{each}`' for each in feature.requires)}.")
    lines += ["", "| Flag | Variable | Default | Takes | Meaning |", "|---|---|---|---|---|"]
    return "\n".join([*lines, *(_row(each) for each in feature.options()), ""])


def _row(option: Option) -> str:
    flag = f"`{option.flag}`, `--no-{option.flag[2:]}`" if option.kind is bool else f"`{option.flag}`"
    default = "none" if option.default is None else f"`{str(option.default).lower()}`"
    cells = (flag, f"`{option.variable}`", default, option.expected, option.help)
    return f"| {' | '.join(cells)} |"


def _other_variables() -> str:
    rows = [f"| `{name}` | {meaning} |" for name, meaning in OTHER_VARIABLES.items()]
    head = "Any other variable that begins with `AGENTINFER_` is refused, since a typo must not quietly change a run."
    return "\n".join(["## Other variables", "", head, "", "| Variable | Meaning |", "|---|---|", *rows, ""])


if __name__ == "__main__":
    sys.stdout.write(documentation())
