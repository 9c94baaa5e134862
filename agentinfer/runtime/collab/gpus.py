"""The GPUs of this machine and what is free on them, asked in a process of its own, so that none is held here."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from agentinfer.errors import ConfigError

# A machine without any of these has no GPU that an engine could use, and torch need not be imported to know it.
_DEVICE_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")

_QUESTION = """
import json, torch
count = torch.cuda.device_count() if torch.cuda.is_available() else 0
print("GPUS" + json.dumps([torch.cuda.mem_get_info(index) for index in range(count)]))
"""


@dataclass(frozen=True, slots=True)
class Gpu:
    free_bytes: int
    total_bytes: int


def find_gpus(device_files: Sequence[str] = _DEVICE_FILES, timeout_s: float = 120.0) -> tuple[Gpu, ...]:
    """The GPUs that torch can use, in its order; none on a machine without. Takes seconds where there are any.

    Raises ConfigError where they cannot be asked.
    """
    if not any(Path(file).exists() for file in device_files):
        return ()
    try:
        done = subprocess.run(
            [sys.executable, "-c", _QUESTION], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise ConfigError(f"torch did not say within {timeout_s:.0f} s which GPUs there are: see nvidia-smi") from None
    answers = [line.removeprefix("GPUS") for line in done.stdout.splitlines() if line.startswith("GPUS")]
    if not answers:
        reason = (done.stderr.strip().splitlines() or ["no reason given"])[-1]
        raise ConfigError(f"torch could not say which GPUs there are: {reason}")
    return tuple(Gpu(int(free), int(total)) for free, total in json.loads(answers[0]))
