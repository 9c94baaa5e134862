"""Which tests run in one process, one after another, and which of these groups begin first.

`make test` runs the tests in two processes (pytest-xdist). Each takes a whole group at a time: the files that share a
server, which so is started once, or the compiled core, else one file. Tests of one file never run beside each other.
"""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest
    from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).parents[1]

# The servers of the whole run, each with the fixtures of `e2e/conftest.py` that stand for it.
SHARED_SERVERS = {
    "embedded": {"server"},
    "stock": {"stock", "stock_server", "observed_stock_server"},
}

# Files that compile the core with sanitisers, once for both.
SANITISED = {"tests/native/test_automaton_native.py", "tests/native/test_drafting_boundary.py"}

# The groups that take longest, so that both processes end at about the same time; all other files follow.
FIRST = (
    "embedded",
    "stock",
    "tests/e2e/test_collab_programs_live.py",
    "tests/e2e/test_collab_supervisor_live.py",
    "tests/e2e/test_collab_live.py",
    "tests/e2e/test_spec_live.py",
    "tests/e2e/test_compress_live.py",
    "tests/e2e/test_sched_live.py",
    "tests/e2e/test_launcher.py",
    "tests/e2e/test_prefill_live.py",
    "tests/e2e/test_sched_latency_live.py",
    "tests/e2e/test_spec_store_live.py",
    "tests/e2e/test_compress_recall_live.py",
    "tests/e2e/test_models_convert.py",
    "sanitisers",
    "tests/contract/test_seams.py",
    "tests/contract/test_sched_cache.py",
    "tests/unit/test_kernels_triton.py",
    "tests/unit/test_cpu_activate.py",
)


def group_of(node_id: str) -> str:
    return _group_of_file(node_id.partition("::")[0])


@cache
def _group_of_file(file: str) -> str:
    """The server of the whole run whose fixture the test file takes, else the file; a path from the project's root."""
    if file in SANITISED:
        return "sanitisers"
    if not file.startswith("tests/e2e/"):
        return file
    functions = [node for node in ast.walk(ast.parse((ROOT / file).read_text())) if isinstance(node, ast.FunctionDef)]
    asking = [each for each in functions if each.name.startswith("test_") or each.decorator_list]
    # A file's own fixture hides a shared one of the same name.
    taken = {each.arg for function in asking for each in function.args.args} - {each.name for each in functions}
    return next((server for server, fixtures in SHARED_SERVERS.items() if taken & fixtures), file)


def in_order(items: list[pytest.Item]) -> list[pytest.Item]:
    """The collected tests, those of the groups that begin first before all others."""
    places = {group: place for place, group in enumerate(FIRST)}
    return sorted(items, key=lambda item: places.get(group_of(item.nodeid), len(FIRST)))


def scheduler(config: pytest.Config, log: Any) -> LoadScopeScheduling:
    """Gives the processes whole groups, in the order in which these were collected."""
    from xdist.scheduler import LoadScopeScheduling

    class ByGroup(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid)

    config.option.loadscopereorder = False
    return ByGroup(config, log)
