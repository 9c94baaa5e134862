"""``python -m agentinfer``: the same as the `agentinfer` command."""

from __future__ import annotations

import sys

from agentinfer.cli import main

if __name__ == "__main__":
    sys.exit(main())
