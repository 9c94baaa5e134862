"""With every feature off the server is stock SGLang; with every feature on the answers are still stock's."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.stock_behaviour import Behaviour, exact_server, observe

pytestmark = pytest.mark.e2e


def test_features_off_is_stock(stock: Behaviour, tmp_path: Path) -> None:
    with exact_server("agentinfer.launch_server", ("--no-agentinfer-sessions",), tmp_path) as live:
        assert observe(live) == stock


def test_features_on_change_no_answer(stock: Behaviour, tmp_path: Path) -> None:
    record = ("--agentinfer-record", str(tmp_path / "r.jsonl"))
    flags = (
        "--agentinfer-forced-replay",
        "--agentinfer-scheduling",
        "--enable-compress",
        "--agentinfer-compress-recall",
        *record,
    )
    with exact_server("agentinfer.launch_server", flags, tmp_path) as live:
        ours = observe(live)
        assert live.terminate() == 0
    assert "agentinfer: error" not in live.log.read_text()
    assert ours.token_ids == stock.token_ids
    assert ours.chat == stock.chat
    assert ours.models == stock.models
    assert ours.metric_names > stock.metric_names
    assert all(name.startswith("agentinfer_") for name in ours.metric_names - stock.metric_names)
    assert all(path.startswith("/agentinfer/") for path in ours.openapi_paths - stock.openapi_paths)
