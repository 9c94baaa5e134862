"""AgentSched is one thing under two names: SGLang's --schedule-policy agent, and our flag; and what it goes with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from agentinfer.config import AgentInferConfig, SchedulingConfig
from agentinfer.errors import ConfigError
from agentinfer.runtime.arguments import CommandLine, completing_flags, engine_command_line, split_command_line

ON = AgentInferConfig(scheduling=SchedulingConfig(scheduling=True))


def split(*argv: str, **environ: str) -> CommandLine:
    return split_command_line(argv, environ)


def flags(**given: Any) -> list[str]:
    return completing_flags({"model_path": "m", **given}, ON, lambda path, dtype: path)[0]


@pytest.mark.parametrize(
    "argv",
    [
        ("--schedule-policy", "agent"),
        ("--schedule-policy=agent",),
        ("--schedule-pol", "Agent"),
        ("--agentinfer-scheduling",),
    ],
    ids=["flag", "joined", "abbreviated", "ours"],
)
def test_either_flag_switches_scheduling_on_and_sglang_sees_neither(argv: tuple[str, ...]) -> None:
    line = split(*argv, "--port", "1")
    assert line.resolved.config.scheduling.enabled
    assert line.engine_argv == ("--port", "1")


@pytest.mark.parametrize(
    "argv",
    [
        (),
        ("--schedule-policy", "lpm"),
        ("--schedule-policy", "agent", "--schedule-policy", "lpm"),
        ("--model-path", "agent"),
        ("--schedule-conservativeness", "agent"),
    ],
    ids=["nothing", "another", "the last one counts", "a model of that name", "another flag"],
)
def test_scheduling_stays_off_where_nobody_asks_for_it(argv: tuple[str, ...]) -> None:
    line = split(*argv)
    assert not line.resolved.config.scheduling.enabled
    assert line.engine_argv == argv


def test_both_named_features_at_once() -> None:
    config = split("--schedule-policy", "agent", "--speculative-algorithm", "AGENT_SAM").resolved.config
    assert config.scheduling.enabled
    assert config.speculation.enabled


def test_configuration_file_may_name_the_policy(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("schedule-policy: agent\nport: 1\n")
    line = split("--config", str(file))
    assert line.resolved.config.scheduling.enabled
    assert line.engine_file == {"port": 1}
    with engine_command_line(line, ["--host", "h"]) as argv:
        assert Path(argv[1]).read_text() == "port: 1\n"


@pytest.mark.parametrize(
    "argv", [("--schedule-policy", "agent"), ("--speculative-algorithm", "AGENT_SAM")], ids=lambda argv: argv[0]
)
def test_name_that_is_taken_out_needs_no_configuration_file(argv: tuple[str, ...]) -> None:
    """Bug: a copy of a configuration file was asked for where there was none."""
    line = split(*argv, AGENTINFER_DISABLE="scheduling,speculation")
    with engine_command_line(line, ["--port", "1"]) as engine_argv:
        assert engine_argv == ["--port", "1"]


def test_disabling_the_feature_leaves_sglangs_own_policy() -> None:
    line = split("--port", "1", "--schedule-policy", "agent", AGENTINFER_DISABLE="scheduling")
    assert not line.resolved.config.scheduling.enabled
    assert line.engine_argv == ("--port", "1")


def test_settings_that_disagree_are_refused() -> None:
    with pytest.raises(ConfigError, match="--agentinfer-scheduling turns scheduling off"):
        split("--schedule-policy", "agent", "--no-agentinfer-scheduling")
    with pytest.raises(ConfigError, match="needs sessions"):
        split("--schedule-policy", "agent", "--no-agentinfer-sessions")


def test_sglang_is_started_with_our_cache_over_its_plainest_policy() -> None:
    chosen = flags()
    assert chosen[chosen.index("--schedule-policy") + 1] == "fcfs"
    assert chosen[chosen.index("--radix-cache-backend") + 1] == "agentinfer"
    assert "--radix-cache-backend" not in flags(radix_cache_backend="agentinfer")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"schedule_policy": "lpm"}, "--schedule-policy lpm was given together with --agentinfer-scheduling"),
        ({"radix_cache_backend": "flexkv"}, "--radix-cache-backend flexkv cannot be combined"),
        ({"disable_radix_cache": True}, "--disable-radix-cache cannot be combined"),
        ({"enable_session_radix_cache": True}, "--enable-session-radix-cache cannot be combined"),
        ({"enable_lmcache": True}, "--enable-lmcache cannot be combined"),
        ({"disaggregation_mode": "decode"}, "--disaggregation-mode decode cannot be combined"),
        ({"pp_size": 2}, "--pp-size 2 cannot be combined"),
        ({"dp_size": 2}, "--dp-size 2 cannot be combined"),
        ({"enable_dp_attention": True}, "--enable-dp-attention cannot be combined"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_it_cannot_be_combined_with_is_refused(given: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        flags(**given)


def test_what_it_goes_with_is_left_alone() -> None:
    flags(
        tp_size=2,
        pp_size=1,
        dp_size=1,
        disaggregation_mode="null",
        enable_priority_scheduling=True,
        enable_hierarchical_cache=True,
        chunked_prefill_size=64,
        disable_radix_cache=False,
    )
