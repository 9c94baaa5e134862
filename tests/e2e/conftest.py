"""One shared server for the tests that only need one, and a factory for those that need their own flags."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.live_server import COMMON_FLAGS, LiveServer


@pytest.fixture(scope="session")
def record_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("record") / "turns.jsonl"


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory, record_file: Path) -> Iterator[LiveServer]:
    """Every feature on, the embedded model, no --model-path: what a stranger gets, plus forced replay and a record."""
    flags = (*COMMON_FLAGS, "--agentinfer-forced-replay", "--agentinfer-record", str(record_file))
    with LiveServer(log=tmp_path_factory.mktemp("server") / "log", flags=flags) as live:
        yield live


@pytest.fixture
def launch(tmp_path: Path) -> Iterator[Callable[..., LiveServer]]:
    """`launch(*flags, module=..., env=...)` starts a server that the test owns; all are stopped when it ends."""
    with ExitStack() as stack:

        def start(*flags: str, **options: object) -> LiveServer:
            live = LiveServer(
                log=tmp_path / f"server-{len(list(tmp_path.iterdir()))}.log", flags=(*COMMON_FLAGS, *flags), **options
            )
            stack.callback(live.stop)
            return live.start()

        yield start
