"""``python -m agentinfer.launch_server``: SGLang's server with every flag of its own, and ours."""

from __future__ import annotations

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Serves until stopped; returns an exit status (1 failed, 2 refused its arguments, 3 SGLang is not as expected)."""
    # Imported here: each spawned engine process imports this module again as its main module.
    from agentinfer.runtime.launch import serve

    return serve(sys.argv[1:] if argv is None else argv)


if __name__ == "__main__":
    sys.exit(main())
