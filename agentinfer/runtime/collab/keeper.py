"""Keeps one engine: whatever dies, the supervisor, the engine or a part of it, nothing of the engine is left over.

    supervisor -> keeper -> launcher -> scheduler, detokenizer, ...

``python -m agentinfer.runtime.collab.keeper SUPERVISOR COMMAND...`` runs COMMAND and ends with its status (128 + the
signal that killed it) when COMMAND and every process that came of it are gone. SIGTERM is passed on to COMMAND;
`AT_ONCE` kills all, and is what the kernel sends when the process SUPERVISOR dies, however it dies. SGLang's processes
end with their parent by themselves; the keeper is there for those that do not, since it inherits every orphan below it.
Linux only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

AT_ONCE = signal.SIGUSR1

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_OBEYED = (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, AT_ONCE)
# A process in the kernel's hands, freeing a GPU's memory, may take this long to go.
_SWEEP_S = 60.0


def main(argv: Sequence[str]) -> int:
    supervisor, command = int(argv[0]), list(argv[1:])
    # Blocked signals wait for `sigwait`; none can interrupt the sweep.
    signal.pthread_sigmask(signal.SIG_BLOCK, _OBEYED)
    _prctl(_PR_SET_CHILD_SUBREAPER, 1)
    _prctl(_PR_SET_PDEATHSIG, AT_ONCE)
    if os.getppid() != supervisor:  # it died before the kernel was told
        return 128 + AT_ONCE
    status = _watch(_start(command))
    sweep(_SWEEP_S)
    return status


def descendants(pid: int) -> set[int]:
    """The processes that came of `pid` and whose line of parents to it is whole."""
    parents: dict[int, int] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                stat = Path("/proc", entry, "stat").read_text(encoding="ascii", errors="replace")
            except OSError:  # it ended meanwhile
                continue
            parents[int(entry)] = int(stat.rpartition(")")[2].split()[1])
    found = {pid}
    while new := {child for child, parent in parents.items() if parent in found} - found:
        found |= new
    return found - {pid}


def sweep(timeout_s: float) -> bool:
    """Kills and reaps all that came of this process. False where some is still there after `timeout_s`."""
    deadline_s = time.monotonic() + timeout_s
    while time.monotonic() < deadline_s:
        for pid in descendants(os.getpid()):
            try:
                os.kill(pid, signal.SIGKILL)
            except OSError:
                continue
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return True
        time.sleep(0.02)
    return False


def _start(command: Sequence[str]) -> int:
    keeper = os.getpid()

    def bind_to_keeper() -> None:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _OBEYED)
        _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != keeper:
            os._exit(128 + signal.SIGKILL)

    # There is one thread here, so that code between fork and exec is safe.
    return subprocess.Popen(command, preexec_fn=bind_to_keeper).pid


def _watch(engine: int) -> int:
    """The engine's exit status, once it has ended or all has to."""
    while True:
        received = signal.sigwait(_OBEYED)
        if received == AT_ONCE:
            return 128 + signal.SIGKILL
        if received in (signal.SIGTERM, signal.SIGINT):
            os.kill(engine, signal.SIGTERM)
            continue
        try:
            while True:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == engine:
                    code = os.waitstatus_to_exitcode(status)
                    return code if code >= 0 else 128 - code
                if pid == 0:
                    break
        except ChildProcessError:  # somebody else reaped it
            return 1


def _prctl(option: int, value: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(option, ctypes.c_ulong(value), 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"prctl({option}, {value}): {os.strerror(number)}")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
