"""Servers shared by the tests that only need one, and a factory for those that need their own flags.

A start takes longer than most tests, so a test that does not change a server for others uses a shared one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.groups import group_of
from tests.live_server import COMMON_FLAGS, SHORT_FLAGS, LiveServer
from tests.stock_behaviour import Behaviour, exact_server, observe

PROBES = Path(__file__).parent / "probes"

# By group: the server of the whole run, and the tests that are still to come.
_shared: dict[str, LiveServer] = {}
_to_come: Counter[str] = Counter()


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """Stops a server of the whole run behind the last test of its group, for the memory it holds."""
    if not _to_come:
        _to_come.update(group_of(each.nodeid) for each in item.session.items)
    group = group_of(item.nodeid)
    _to_come[group] -= 1
    if not _to_come[group] and group in _shared:
        _shared.pop(group).stop()


@pytest.fixture(scope="session")
def record_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("record") / "turns.jsonl"


@pytest.fixture(scope="session")
def arrivals_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the shared server's scheduler writes a line for each request that reaches it; see `probes`."""
    return tmp_path_factory.mktemp("arrivals") / "requests.jsonl"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, record_file: Path, arrivals_file: Path) -> Iterator[LiveServer]:
    """Every feature on, the embedded model, no --model-path: what a stranger gets, plus forced replay and a record."""
    flags = (*COMMON_FLAGS, "--agentinfer-forced-replay", "--agentinfer-record", str(record_file))
    env = {"PYTHONPATH": str(PROBES), "REQUEST_PROBE_FILE": str(arrivals_file)}
    with LiveServer(log=tmp_path_factory.mktemp("server") / "log", flags=flags, env=env) as live:
        _shared["embedded"] = live
        yield live


@pytest.fixture(scope="session")
def observed_stock_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LiveServer, Behaviour]]:
    """SGLang's own launcher with exact arithmetic, and how it behaved when it was new."""
    with exact_server("sglang.launch_server", (), tmp_path_factory.mktemp("stock")) as live:
        _shared["stock"] = live
        yield live, observe(live)


@pytest.fixture(scope="session")
def stock_server(observed_stock_server: tuple[LiveServer, Behaviour]) -> LiveServer:
    return observed_stock_server[0]


@pytest.fixture(scope="session")
def stock(observed_stock_server: tuple[LiveServer, Behaviour]) -> Behaviour:
    return observed_stock_server[1]


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., LiveServer]]:
    """`launch(*flags, module=..., env=...)` starts a server that the test owns; all are stopped when it ends."""
    with ExitStack() as stack:

        def start(*flags: str, **options: object) -> LiveServer:
            live = LiveServer(
                log=tmp_path / f"server-{len(list(tmp_path.iterdir()))}.log", flags=(*SHORT_FLAGS, *flags), **options
            )
            stack.callback(live.stop)
            return live.start()

        yield start
