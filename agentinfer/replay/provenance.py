"""Where a result comes from: machine, versions, command, seed and trace, without which a figure says nothing."""

from __future__ import annotations

import os
import platform
import shlex
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from agentinfer.clock import Clock
from agentinfer.replay.server_side import Server
from agentinfer.replay.traces import Trace


def describe(trace: Trace, server: Server, seed: int, command: Sequence[str], clock: Clock) -> dict[str, Any]:
    """Facts of the client's side, and the server's own word for its side (`server` may be another machine)."""
    return {
        "started_unix_s": clock.unix_s(),
        "command": shlex.join(command),
        "seed": seed,
        "trace": {"name": trace.name, "format": trace.format, "sha256": trace.sha256},
        "client": {
            "platform": platform.platform(),
            "cpu": _cpu_model(),
            "cpu_count": os.cpu_count(),
            "python": platform.python_version(),
            "agentinfer": _version("agentinfer"),
            "aiohttp": _version("aiohttp"),
        },
        "server": {"url": server.url, "model": server.model, "context_tokens": server.context_tokens, **server.info},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    named = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.processor() or platform.machine())
