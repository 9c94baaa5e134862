"""The hooks that every enabled feature stands on: schedulers prove themselves to the launcher, and a death is named."""

from __future__ import annotations

import functools
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from agentinfer.config import AgentInferConfig
from agentinfer.runtime.proof import Proof, collect_proof, require_proofs
from agentinfer.runtime.seams import CORE, Seam

PROOF_FOLDER_VARIABLE = "AGENTINFER_PROOF_DIR"

# In the information that a scheduler sends when it is ready.
_PROOF_KEY = "agentinfer_proof"

_INIT_INFO = "sglang.srt.managers.scheduler.Scheduler.get_init_info"
_SCHEDULER_INIT = "sglang.srt.managers.scheduler.Scheduler.__init__"
_EVENT_LOOP = "sglang.srt.managers.scheduler.Scheduler.run_event_loop"
_LAUNCH_SCHEDULERS = "sglang.srt.entrypoints.engine.Engine._launch_scheduler_processes"
_CHECK_PROCESSES = "sglang.srt.utils.watchdog.SubprocessWatchdog._check_processes"

_in_scheduler = functools.partial(Seam, feature=CORE, processes=("scheduler",))
_in_launcher = functools.partial(Seam, feature=CORE, processes=("launcher",))

SEAMS = (
    _in_scheduler(
        target=_INIT_INFO,
        parameters=("self",),
        caller="sglang.srt.managers.scheduler.run_scheduler_process",
        reason="carries the scheduler's proof to the launcher; no registry reaches the handshake",
        door="hook",
    ),
    _in_launcher(
        target=_LAUNCH_SCHEDULERS,
        parameters=("cls", "server_args", "port_args", "run_scheduler_process_func", "placement_group"),
        caller="sglang.srt.entrypoints.engine.Engine._launch_subprocesses",
        reason="the schedulers' proofs are checked here on every node, before a request can arrive",
        door="hook",
    ),
    _in_launcher(
        target="sglang.srt.entrypoints.engine.SchedulerInitResult.wait_for_ready",
        parameters=None,
        caller="sglang.srt.entrypoints.engine.Engine._launch_subprocesses",
        reason="after it the schedulers' information is there; we wrap it on the instance",
        door="read",
    ),
    _in_launcher(
        target="sglang.srt.entrypoints.engine.SchedulerInitResult.scheduler_infos",
        parameters=None,
        caller="sglang.srt.entrypoints.engine.Engine._launch_scheduler_processes",
        reason="one entry a scheduler; with data parallelism one, without the proofs, from the controller",
        door="read",
    ),
    _in_launcher(
        target="sglang.srt.managers.data_parallel_controller.SCHEDULER_PIDS_ARG",
        parameters=None,
        caller="sglang.srt.managers.data_parallel_controller.run_data_parallel_controller_process",
        reason="the schedulers behind a data-parallel controller, whose proofs come as files",
        door="read",
    ),
    _in_scheduler(
        target=_SCHEDULER_INIT,
        parameters=("self", "server_args", "port_args"),
        caller="sglang.srt.managers.scheduler.run_scheduler_process",
        reason="names a scheduler that fails while it is built: the signal it sends carries no name",
        door="hook",
    ),
    _in_scheduler(
        target=_EVENT_LOOP,
        parameters=("self",),
        caller="sglang.srt.managers.scheduler.run_scheduler_process",
        reason="names a scheduler that fails while serving",
        door="hook",
    ),
    _in_launcher(
        target=_CHECK_PROCESSES,
        parameters=("self",),
        caller="sglang.srt.utils.watchdog.SubprocessWatchdog._monitor_loop",
        reason="names a child process that was killed, before the process tree is taken down",
        door="hook",
    ),
    *(
        _in_launcher(
            target=f"sglang.srt.utils.watchdog.SubprocessWatchdog.{attribute}",
            parameters=None,
            caller=_CHECK_PROCESSES,
            reason="the watched processes and their names",
            door="read",
        )
        for attribute in ("_processes", "_names")
    ),
)


def install(config: AgentInferConfig, hook: Callable[..., None]) -> None:
    """Registers these hooks through `hook`."""
    launching = _Launching(config)
    hook(_INIT_INFO, _attach_proof, "after")
    hook(_LAUNCH_SCHEDULERS, launching.launch_schedulers, "around")
    hook(_SCHEDULER_INIT, _name_failure("while it was built"), "around")
    hook(_EVENT_LOOP, _name_failure("while serving"), "around")
    hook(_CHECK_PROCESSES, _name_dead_processes, "around")


class _Launching:
    """The launcher's side of the handshake."""

    def __init__(self, config: AgentInferConfig) -> None:
        self._config = config

    def launch_schedulers(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Around `_launch_scheduler_processes`: when the schedulers are ready, each must have proved itself."""
        folder = tempfile.TemporaryDirectory(prefix="agentinfer-proofs-", ignore_cleanup_errors=True)
        os.environ[PROOF_FOLDER_VARIABLE] = folder.name
        result = original(*args, **kwargs)
        started = result[0]
        wait_for_ready = started.wait_for_ready

        def wait_and_check() -> None:
            wait_for_ready()
            with folder:
                proofs = take_proofs(started.scheduler_infos, Path(folder.name))
            require_proofs(proofs, "scheduler", self._config)

        started.wait_for_ready = wait_and_check
        return result


def take_proofs(infos: list[dict[str, Any]], folder: Path) -> list[Proof]:
    """The proofs of all schedulers. Takes them out of `infos`, which upstream shows to clients as it is.

    A data-parallel controller passes on no more than its schedulers' process ids: their proofs are files in `folder`.
    A scheduler without a proof yields one whose problem says so.
    """
    from sglang.srt.managers.data_parallel_controller import SCHEDULER_PIDS_ARG

    proofs: list[Proof] = []
    for info in infos:
        if SCHEDULER_PIDS_ARG in info:
            proofs += [_proof_from_file(folder, pid) for pid in info[SCHEDULER_PIDS_ARG]]
        else:
            proofs.append(_proof_or_silence(info.pop(_PROOF_KEY, None), 0))
    return proofs


def _attach_proof(info: dict[str, Any], scheduler: Any) -> dict[str, Any]:
    proof = collect_proof().to_wire()
    folder = os.environ.get(PROOF_FOLDER_VARIABLE)
    if folder and Path(folder).is_dir():
        # Written whole before it gets its name: the launcher never reads half a file.
        partial = Path(folder, f"{os.getpid()}.partial")
        partial.write_text(json.dumps(proof), encoding="utf-8")
        partial.rename(_proof_path(Path(folder), os.getpid()))
    return {**info, _PROOF_KEY: proof}


def _proof_from_file(folder: Path, pid: int) -> Proof:
    try:
        data = json.loads(_proof_path(folder, pid).read_text(encoding="utf-8"))
    except FileNotFoundError:
        data = None
    return _proof_or_silence(data, pid)


def _proof_path(folder: Path, pid: int) -> Path:
    return folder / f"{pid}.json"


def _proof_or_silence(data: Mapping[str, Any] | None, pid: int) -> Proof:
    if data is None:
        return Proof("scheduler", pid, (), ("reported no proof: our plugin did not run there, or its hooks failed",))
    return Proof.from_wire(data)


def _name_failure(when: str) -> Callable[..., Any]:
    def around(original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return original(*args, **kwargs)
        except Exception as error:
            _announce(f"scheduler (pid {os.getpid()}) failed {when}: {type(error).__name__}: {error}")
            raise

    return around


def _name_dead_processes(original: Callable[..., bool], watchdog: Any) -> bool:
    # Same test as upstream's, made first: what follows it ends this process.
    for process, name in zip(watchdog._processes, watchdog._names, strict=True):
        if not process.is_alive() and process.exitcode:
            _announce(f"{name} (pid {process.pid}) died: {describe_exit(process.exitcode)}")
    return original(watchdog)


def describe_exit(exitcode: int) -> str:
    """An exit code of `multiprocessing` in words; negative ones are signals."""
    if exitcode >= 0:
        return f"exit code {exitcode}"
    try:
        name = signal.Signals(-exitcode).name
    except ValueError:
        name = f"signal {-exitcode}"
    hint = ", often the kernel's out-of-memory killer: see dmesg" if name == "SIGKILL" else ""
    return f"killed by {name}{hint}"


def _announce(what: str) -> None:
    # Not logging: the process is about to be killed, and this one line must be out before.
    print(f"agentinfer: {what}. The server stops.", file=sys.stderr, flush=True)  # noqa: T201
