"""The seam table against the installed wheel, and the proof that hooks took effect, against every way they may not."""

from __future__ import annotations

import ast
import dataclasses
import importlib
import json
import os
import pkgutil
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import pytest

import agentinfer.runtime
from agentinfer.config import (
    AgentInferConfig,
    CompressionConfig,
    ForcedReplayConfig,
    PrefillConfig,
    SchedulingConfig,
    SpeculationConfig,
)
from agentinfer.errors import SeamError
from agentinfer.runtime import proof
from agentinfer.runtime.lifecycle import take_proofs
from agentinfer.runtime.proof import Proof, hooked_targets, plugin_obstacle, require_proofs
from agentinfer.runtime.seams import PROCESSES, HookLedger, Seam, seams
from agentinfer.runtime.source_check import SourceTree, check_source

pytestmark = pytest.mark.sglang

ALL_ON = AgentInferConfig(
    forced_replay=ForcedReplayConfig(True),
    speculation=SpeculationConfig(True),
    scheduling=SchedulingConfig(True),
    compress=CompressionConfig(True),
    prefill_route=PrefillConfig(True),
)

# Runs in a process of its own, since hooks cannot be taken back. argv: the kind of process; stdin: what to do before
# plugins are loaded. Prints the proof, then for each hook what the proof says once that hook is undone in either way.
PROBE = """
import dataclasses, json, os, pkgutil, sys
from agentinfer.runtime.seams import ledger
ledger().process = sys.argv[1]
exec(sys.stdin.read())
from sglang.srt.plugins import load_plugins
from sglang.srt.plugins.hook_registry import HookRegistry
load_plugins()
from agentinfer.runtime.proof import collect_proof, _layers
undone, unapplied = {}, {}
proof = collect_proof()
for hooked in ledger().hooked:
    target = hooked.seam.target
    if target not in proof.hooks:
        continue
    owner = pkgutil.resolve_name(target.rpartition(".")[0])
    bound = vars(owner)[hooked.seam.attribute]
    original = list(_layers(getattr(bound, "__func__", bound)))[-1]
    setattr(owner, hooked.seam.attribute, original)
    undone[target] = list(collect_proof().problems)
    setattr(owner, hooked.seam.attribute, bound)
    HookRegistry._patched.discard(target)
    unapplied[target] = list(collect_proof().problems)
    HookRegistry._patched.add(target)
print("PROBE" + json.dumps({"proof": proof.to_wire(), "undone": undone, "unapplied": unapplied}))
"""


def probe(process: str, before: str = "", **environ: str) -> dict[str, Any]:
    environment = {**os.environ, "AGENTINFER_CONFIG": ALL_ON.to_json(), "SGLANG_USE_CPU_ENGINE": "1", **environ}
    done = subprocess.run(
        [sys.executable, "-c", PROBE, process],
        input=before,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("PROBE")]
    assert lines, done.stderr[-3000:]
    result: dict[str, Any] = json.loads(lines[0].removeprefix("PROBE"))
    return result


def stopped_by(result: dict[str, Any], process: str) -> str:
    with pytest.raises(SeamError) as stopped:
        require_proofs([Proof.from_wire(result["proof"])], process, ALL_ON)
    return str(stopped.value)


@pytest.mark.parametrize("row", seams(), ids=lambda row: f"{row.feature}-{row.target}")
def test_row_agrees_with_the_installed_wheel(row: Seam) -> None:
    assert check_source([row]) == []
    assert row.reason
    assert set(row.processes) <= set(PROCESSES)


GOOD = next(row for row in seams() if row.target.endswith("Scheduler.get_init_info"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"target": "sglang.srt.managers.scheduler.Scheduler.get_init_infos"}, "does not exist"),
        ({"target": "sglang.srt.managers.schedulers.Scheduler.get_init_info"}, "does not exist"),
        ({"parameters": ("self", "more")}, "takes (self), expected (self, more)"),
        ({"parameters": ()}, "takes (self), expected ()"),
        ({"target": "sglang.srt.managers.scheduler.logger"}, "cannot be called"),
        ({"caller": "sglang.srt.managers.scheduler.run_scheduler_processes"}, "does not exist; it is to reach"),
        ({"caller": "sglang.srt.managers.scheduler.configure_scheduler_process"}, "does not mention get_init_info"),
    ],
    ids=["method gone", "module gone", "parameter gone", "parameter new", "no function", "caller gone", "not called"],
)
def test_row_that_upstream_does_not_bear_out_is_caught(changes: dict[str, Any], said: str) -> None:
    problems = check_source([dataclasses.replace(GOOD, **changes)])
    assert len(problems) == 1
    assert said in problems[0]


def test_every_module_that_touches_upstream_is_in_the_table() -> None:
    names = {each.name for each in pkgutil.walk_packages(agentinfer.runtime.__path__, "agentinfer.runtime.")}
    listed = set(seams())
    for name in sorted(names):
        if ".cpu." in name and not name.endswith(".hooks"):
            continue  # stand-ins for whole modules; importing them is left to the platform
        for row in getattr(importlib.import_module(name), "SEAMS", ()):
            assert row in listed, f"{name} is missing from seams._SEAM_MODULES"


def test_table_is_read_without_importing_sglang() -> None:
    code = "import sys; from agentinfer.runtime.seams import seams; assert seams(); sys.exit('sglang' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_source_is_read_from_the_installed_package() -> None:
    tree = SourceTree.installed()
    assert tree is not None
    assert tree.find("sglang.launch_server.run_server") is not None
    assert SourceTree.installed("no_such_package") is None


@pytest.mark.parametrize("process", PROCESSES)
def test_hooks_are_proved_and_every_lost_one_is_noticed(process: Any) -> None:
    result = probe(process)
    require_proofs([Proof.from_wire(result["proof"])], process, ALL_ON)
    wanted = hooked_targets(process, ALL_ON)
    assert wanted
    assert set(wanted) <= set(result["proof"]["hooks"])
    for target, problems in result["undone"].items():
        # Once for each of our hooks on it.
        assert len(set(problems)) == 1
        assert target in problems[0]
        assert "replaced after we hooked it" in problems[0]
    for target, problems in result["unapplied"].items():
        assert len(set(problems)) == 1
        assert f"the hook on {target} was not applied" in problems[0]
    assert set(result["undone"]) == set(result["unapplied"]) == set(result["proof"]["hooks"])


def test_upstream_that_changed_stops_the_server_with_one_message() -> None:
    before = """
from sglang.srt.utils.watchdog import SubprocessWatchdog
from sglang.srt.managers.tokenizer_manager import TokenizerManager
del SubprocessWatchdog._check_processes
TokenizerManager.generate_request = lambda self, obj, request, later=None: None
"""
    message = stopped_by(probe("launcher", before), "launcher")
    assert "the hook on sglang.srt.utils.watchdog.SubprocessWatchdog._check_processes was not applied" in message
    assert "TokenizerManager.generate_request takes ('self', 'obj', 'request', 'later')" in message
    assert "sglang 0.5.21; tested: 0.5.21" in message
    assert "AGENTINFER_DISABLE=all" in message


def test_swallowed_plugin_error_stops_the_server_naming_the_feature() -> None:
    before = """
import agentinfer.runtime.forced as forced
def broken(config, hook): raise KeyError("what went wrong")
forced.install = broken
"""
    message = stopped_by(probe("scheduler", before), "scheduler")
    assert "our plugin failed: agentinfer.runtime.forced: KeyError: 'what went wrong'" in message
    assert "AGENTINFER_DISABLE=forced_replay" in message


def test_stale_binding_of_a_hooked_function_is_noticed() -> None:
    # A default argument is captured when its function is defined: SGLang's rewriting of bindings does not reach it.
    before = """
import types
import sglang.srt.utils.network as network
late = types.ModuleType("sglang.late")
exec("def use(probe=probe): return probe(1)", vars(late) | {"probe": network.is_port_available}, out := {})
late.use = out["use"]
late.use.__module__ = "sglang.late"
sys.modules["sglang.late"] = late
import agentinfer.runtime.seams as table
row = table.Seam("sglang.srt.utils.network.is_port_available", ("port",), None, "a test", "core", "hook", ("launcher",))
ledger()._rows = lambda rows=ledger()._rows: (*rows(), row)
table.hook(row.target, lambda result, *args: None, "after")
"""
    problems = probe("launcher", before)["proof"]["problems"]
    assert any("sglang.late.use still refers to the original of" in each for each in problems), problems


def test_plugin_that_sglang_skips_stops_the_server_saying_why() -> None:
    # The platform stays, which the variable filters too, or the engine could not be imported without a GPU.
    message = stopped_by(probe("launcher", SGLANG_PLUGINS="agentinfer_cpu"), "launcher")
    assert "our plugin did not run: SGLANG_PLUGINS=agentinfer_cpu leaves us out: add agentinfer or unset it" in message
    assert "AGENTINFER_DISABLE=all" in message


@pytest.mark.parametrize(("is_needed", "said"), [(True, "add agentinfer_cpu or unset it"), (False, None)])
def test_platform_plugin_may_be_left_out_where_another_platform_serves(is_needed, said, monkeypatch) -> None:
    monkeypatch.setattr(proof, "_our_platform_is_needed", lambda: is_needed)
    obstacle = plugin_obstacle({"SGLANG_PLUGINS": "agentinfer"})
    assert (obstacle is None) if said is None else (said in str(obstacle))


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({"SGLANG_PLUGINS": "a, b"}, "SGLANG_PLUGINS=a, b leaves us out: add agentinfer,agentinfer_cpu"),
        ({"SGLANG_PLUGINS": "a,agentinfer_cpu"}, "add agentinfer or unset it"),
        ({"SGLANG_PLUGINS": "a,agentinfer, agentinfer_cpu"}, None),
        ({"SGLANG_PLATFORM": "other"}, "SGLANG_PLATFORM=other excludes packages that bring another platform"),
        ({"SGLANG_PLATFORM": "agentinfer_cpu"}, None),
        ({}, None),
    ],
)
def test_plugin_obstacle_is_known_before_sglang_is_imported(environ: dict[str, str], said: str | None) -> None:
    obstacle = plugin_obstacle(environ)
    assert (obstacle is None) if said is None else (said in str(obstacle))


@pytest.fixture
def stock_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one upstream constant that `take_proofs` reads, with the value of the wheel, without importing the engine."""
    name = "sglang.srt.managers.data_parallel_controller"
    found = SourceTree.installed().find(f"{name}.SCHEDULER_PIDS_ARG")  # type: ignore[union-attr]
    assert isinstance(found.node, ast.Assign)  # type: ignore[union-attr]
    value = ast.literal_eval(found.node.value)  # type: ignore[union-attr]
    monkeypatch.setitem(sys.modules, name, SimpleNamespace(SCHEDULER_PIDS_ARG=value))  # type: ignore[arg-type]


def good_proof(pid: int = 7) -> Proof:
    return Proof("scheduler", pid, hooked_targets("scheduler", ALL_ON), ())


def test_scheduler_without_a_proof_stops_the_server(stock_names: None) -> None:
    infos = [{"status": "ready", "agentinfer_proof": good_proof().to_wire()}, {"status": "ready"}]
    with pytest.raises(SeamError, match="reported no proof"):
        require_proofs(take_proofs(infos, folder=None), "scheduler", ALL_ON)  # type: ignore[arg-type]


def test_no_scheduler_at_all_is_no_proof() -> None:
    with pytest.raises(SeamError, match="no scheduler process reported"):
        require_proofs([], "scheduler", ALL_ON)


def test_proofs_are_taken_out_of_what_clients_are_shown(stock_names: None) -> None:
    infos = [{"status": "ready", "agentinfer_proof": good_proof().to_wire()}]
    assert take_proofs(infos, folder=None) == [good_proof()]  # type: ignore[arg-type]
    assert infos == [{"status": "ready"}]


def test_schedulers_behind_a_data_parallel_controller_prove_themselves_by_files(tmp_path, stock_names) -> None:
    (tmp_path / "7.json").write_text(json.dumps(good_proof().to_wire()))
    proofs = take_proofs([{"status": "ready", "scheduler_pids": [7, 8]}], tmp_path)
    assert proofs[0] == good_proof()
    with pytest.raises(SeamError, match=r"scheduler \(pid 8\): reported no proof"):
        require_proofs(proofs, "scheduler", ALL_ON)


def test_hook_that_is_missing_from_an_otherwise_good_proof_stops_the_server() -> None:
    *some, last = hooked_targets("scheduler", ALL_ON)
    with pytest.raises(SeamError, match=f"{last} is not hooked"):
        require_proofs([Proof("scheduler", 7, tuple(some), ())], "scheduler", ALL_ON)


def test_nothing_is_wanted_when_every_feature_is_off() -> None:
    off = AgentInferConfig(sessions=ALL_ON.sessions.disabled())
    assert hooked_targets("scheduler", off) == ()


def test_target_without_a_row_is_refused() -> None:
    ledger = HookLedger("launcher", lambda: (GOOD,), lambda *args: None)
    with pytest.raises(SeamError, match="no row of door 'hook'"):
        ledger.hook("sglang.srt.managers.scheduler.Scheduler.other", print, "after")


def test_hook_is_registered_only_in_the_processes_of_its_row() -> None:
    registered: list[tuple[Any, ...]] = []
    for process in PROCESSES:
        ledger = HookLedger(process, lambda: (GOOD,), lambda *args: registered.append(args))
        ledger.hook(GOOD.target, print, "after")
        assert bool(ledger.hooked) == (process in GOOD.processes)
    assert registered == [(GOOD.target, print, "after")]
