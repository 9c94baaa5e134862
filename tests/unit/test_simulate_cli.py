"""`agentinfer simulate` and what it reads: small traces written here, counted by hand."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from agentinfer.cli import main
from agentinfer.commands.simulate import TokenCount, parse_policies, read_workload
from agentinfer.commands.simulate.policies import settings_for
from agentinfer.errors import TraceError
from agentinfer.radix_ext.simulator import EngineCosts, SimulationError
from agentinfer.radix_ext.simulator import costs as engine_costs
from agentinfer.replay.tokens import estimate

ESTIMATE = TokenCount(model=None)


def tokens(text: str) -> int:
    return estimate(text) + 8  # with what a template puts around a message


def line(name: str, task: str, *said: tuple[str, str, float | None]) -> dict[str, Any]:
    messages = []
    for role, content, seconds in said:
        messages.append({"role": role, "content": content} | ({} if seconds is None else {"t": seconds}))
    return {"id": name, "task": task, "messages": messages}


def two_turns(name: str, task: str) -> dict[str, Any]:
    return line(
        name,
        task,
        ("system", "You are an agent." * 10, None),
        ("user", f"Solve {task}." * 20, None),
        ("assistant", f"{name} looks around." * 5, 10.0),
        ("tool", "a file " * 30, 12.5),
        ("assistant", "Done.", 20.0),
    )


def written(path: Path, *lines: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in lines))
    return str(path)


@pytest.fixture
def trace(tmp_path: Path) -> str:
    return written(tmp_path / "trace.jsonl", two_turns("a", "x"), two_turns("b", "x"), two_turns("c", "y"))


def run_json(tmp_path: Path, *arguments: str) -> Any:
    out = tmp_path / "out.json"
    assert main(["simulate", *arguments, "--json", str(out)]) == 0
    return json.loads(out.read_text())


def test_recorded_turns_become_kept_new_and_said_tokens(trace: str) -> None:
    found = read_workload(trace, ESTIMATE)
    first, second = found.sessions[0].turns
    system, asked = tokens("You are an agent." * 10), tokens("Solve x." * 20)
    assert [segment.num_tokens for segment in found.sessions[0].shared] == [system, asked]
    # All of the first prompt is shared; one token is computed in any case.
    assert (first.kept_tokens, first.new_tokens) == (system + asked, 1)
    assert first.output_tokens == tokens("a looks around." * 5)
    assert first.gap_s == 2.5
    assert second.kept_tokens == first.context_tokens
    assert (second.new_tokens, second.output_tokens) == (tokens("a file " * 30), tokens("Done."))
    assert second.gap_s == 0.0


def test_runs_of_one_task_share_its_start_and_others_only_the_instructions(trace: str) -> None:
    a, b, c = (session.shared for session in read_workload(trace, ESTIMATE).sessions)
    assert a == b
    assert a[0] == c[0]
    assert a[1] != c[1]


def test_gaps_are_cut_and_filled_in(tmp_path: Path, trace: str) -> None:
    assert read_workload(trace, ESTIMATE, max_gap_s=1.0).sessions[0].turns[0].gap_s == 1.0
    timeless = two_turns("a", "x")
    for message in timeless["messages"]:
        message.pop("t", None)
    name = written(tmp_path / "timeless.jsonl", timeless)
    turns = read_workload(name, ESTIMATE, default_gap_s=7.0).sessions[0].turns
    assert [turn.gap_s for turn in turns] == [7.0, 0.0]


def test_the_record_has_the_figures_and_where_they_come_from(tmp_path: Path, trace: str) -> None:
    record = run_json(
        tmp_path, "--trace", trace, "--policy", "fcfs", "--live-sessions", "2", "--kv-tokens", "5000", "--sessions", "7"
    )
    wanted = (
        "sessions_per_hour",
        "completion_mean_s",
        "completion_p95_s",
        "worst_turn_s",
        "recomputed_share",
        "hit_rate",
    )
    assert all(isinstance(record[key], float) for key in wanted)
    assert (record["sessions"], record["turns"], record["too_long"]) == (7, 14, 0)
    assert record["trace"]["name"] == "trace.jsonl"
    assert len(record["trace"]["sha256"]) == 64
    assert record["costs"] == engine_costs.to_json(EngineCosts())
    assert record["hit_rate"] > 0.5  # each second turn, and the start of all but the first two sessions


def test_several_policies_give_a_list_in_their_order(tmp_path: Path, trace: str) -> None:
    names = ["agent", "lpm+tlru", "spf", "ttl", "hrrn"]
    records = run_json(
        tmp_path, "--trace", trace, "--policy", ",".join(names), "--live-sessions", "2", "--kv-tokens", "5000"
    )
    assert [record["policy"] for record in records] == names
    assert {record["turns"] for record in records} == {6}


def test_settings_reach_the_agent_policy(tmp_path: Path, trace: str) -> None:
    record = run_json(
        tmp_path,
        *("--trace", trace, "--policy", "agent", "--live-sessions", "2", "--kv-tokens", "5000"),
        *(
            "--max-wait-s",
            "33",
            "--set",
            "join-share=0.5",
            "--replicas",
            "2",
            "--host-kv-tokens",
            "1000",
            "--seed",
            "3",
        ),
    )
    assert record["settings"]["max_wait_s"] == 33
    assert record["settings"]["join_share"] == 0.5
    assert len(record["policy_says"]) == record["replicas"] == 2


def test_sessions_that_fit_into_no_cache_are_left_out_and_counted(tmp_path: Path, capsys) -> None:
    long = two_turns("long", "z")
    long["messages"][3]["content"] *= 100
    name = written(tmp_path / "trace.jsonl", two_turns("a", "x"), long)
    arguments = ("--trace", name, "--policy", "fcfs", "--live-sessions", "2", "--kv-tokens", "1000", "--sessions", "4")
    record = run_json(tmp_path, *arguments)
    assert (record["sessions"], record["too_long"]) == (2, 2)
    assert "2 sessions left out" in capsys.readouterr().out


def test_another_process_finds_the_same(tmp_path: Path, trace: str) -> None:
    """Sets of names iterate in another order there."""
    found = []
    for seed in ("1", "2"):
        out = tmp_path / f"{seed}.json"
        command = [sys.executable, "-m", "agentinfer", "simulate", "--trace", trace, "--policy", "agent,lpm+tlru"]
        command += ["--live-sessions", "12", "--kv-tokens", "700", "--host-kv-tokens", "300", "--replicas", "2"]
        command += ["--sessions", "40", "--json", str(out)]
        subprocess.run(command, check=True, capture_output=True, env={**os.environ, "PYTHONHASHSEED": seed})
        records = json.loads(out.read_text())
        found.append([{key: each[key] for key in each if key not in ("wall_s", "command")} for each in records])
    assert found[0] == found[1]
    assert found[0][1]["host_hit_rate"] > 0, "the host tier takes no part"


def request(prompt: int, out: int, shared_blocks: int, **extra: Any) -> dict[str, Any]:
    return {"t": 0.0, "type": "n", "in": prompt, "out": out, "pfx": shared_blocks, **extra}


def test_a_trace_of_token_counts_only(tmp_path: Path) -> None:
    requests = [
        request(1000, 50, 0, think_time=0.0, stop="tool_use"),
        request(1300, 0, 15, think_time=9.0, stop="end_turn"),
        {"type": "subagent", "t": 5.0, "n": 2},
        request(200, 5, 0, think_time=0.0, stop="tool_use", d=1),
        request(300, 5, 3, think_time=1.0, d=1),
        request(700, 9, 30, t=100.0),
    ]
    requests[1] |= {"t": 40.0, "api_time": 10.0}
    name = written(tmp_path / "timing.jsonl", {"id": "s", "block_size": 64, "requests": requests})
    found = read_workload(name)
    assert found.token_counts == "as recorded"
    first, second, third = found.sessions[0].turns
    assert (first.kept_tokens, first.new_tokens, first.output_tokens) == (0, 1000, 50)
    assert (first.gap_s, first.tool) == (9.0, "tool")
    # 15 blocks of 64; a reply of 0 tokens counts as one; a gap that is not recorded is what the times leave: 100 - 50.
    assert (second.kept_tokens, second.new_tokens, second.output_tokens) == (960, 340, 1)
    assert (second.gap_s, second.tool) == (50.0, None)
    # 30 blocks are more than the prompt: all but its last token.
    assert (third.kept_tokens, third.new_tokens, third.gap_s) == (699, 1, 0.0)
    (child,) = second.children
    assert [turn.prompt_tokens for turn in child.turns] == [200, 300]
    assert (child.id, child.turns[1].kept_tokens, child.turns[0].gap_s) == ("s/1", 192, 1.0)


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        ({"in": 0}, r"requests\[0\]\.in: expected a whole number from 1, got 0"),
        ({"pfx": None}, r"requests\[0\]\.pfx: expected a whole number"),
        ({"think_time": -1.0}, r"requests\[0\]\.think_time: expected seconds"),
        ({"type": "subagent", "n": 3}, r"requests\[0\]\.n: expected the number of requests after it, got 3"),
    ],
)
def test_a_broken_trace_of_token_counts_is_named(tmp_path: Path, broken: dict[str, Any], complaint: str) -> None:
    name = written(tmp_path / "timing.jsonl", {"id": "s", "requests": [request(10, 1, 0) | broken]})
    with pytest.raises(TraceError, match=complaint):
        read_workload(name)


ARGUMENTS = ("--live-sessions", "2", "--kv-tokens", "5000")


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--policy", "fastest", *ARGUMENTS), "policy 'fastest': expected agent, fcfs"),
        (("--policy", "agent+lru", *ARGUMENTS), "policy 'agent+lru'"),
        (("--policy", "fcfs,fcfs", *ARGUMENTS), "fcfs: named twice"),
        (("--policy", "fcfs", *ARGUMENTS, "--costs", "h100"), "costs h100: no preset (reference) and no file"),
        (
            ("--policy", "agent", *ARGUMENTS, "--set", "join_shar=1"),
            "join_shar: there is none of that name. Did you mean",
        ),
        (("--policy", "agent", *ARGUMENTS, "--set", "join_share"), "expected NAME=VALUE"),
        (("--policy", "fcfs", "--live-sessions", "2", "--kv-tokens", "50"), "none of its sessions fits into 50"),
        (("--policy", "fcfs", *ARGUMENTS, "--json", "nowhere/out.json"), "its folder does not exist"),
    ],
)
def test_bad_input_is_named(trace: str, arguments: tuple[str, ...], complaint: str, capsys) -> None:
    assert main(["simulate", "--trace", trace, *arguments]) == 1
    assert complaint in capsys.readouterr().err


def test_a_missing_trace_is_named(capsys) -> None:
    assert main(["simulate", "--trace", "missing.jsonl", "--policy", "fcfs", *ARGUMENTS]) == 1
    assert "missing.jsonl: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize("flag", ["--live-sessions", "--kv-tokens"])
def test_numbers_are_checked(flag: str, trace: str, capsys) -> None:
    with pytest.raises(SystemExit):
        main(["simulate", "--trace", trace, "--policy", "fcfs", *ARGUMENTS, flag, "0"])
    assert "expected a whole number from" in capsys.readouterr().err


def test_costs_come_back_from_their_file(tmp_path: Path) -> None:
    costs = EngineCosts(step_s=0.5, is_mixed=False)
    path = tmp_path / "costs.json"
    path.write_text(json.dumps({"costs": engine_costs.to_json(costs)}))
    assert engine_costs.load(str(path)) == costs
    path.write_text(json.dumps({"costs": {"step": 1}}))
    with pytest.raises(SimulationError, match="costs: unknown step"):
        engine_costs.load(str(path))
    path.write_text("[]")
    with pytest.raises(SimulationError, match="expected an object with 'costs'"):
        engine_costs.load(str(path))


def test_the_agent_policy_gets_the_engines_speed() -> None:
    settings = settings_for(EngineCosts(prefill_tokens_per_s=700.0), None, {"max_wait_s": "none"})
    assert (settings.prefill_tokens_per_s, settings.max_wait_s) == (700.0, None)


def test_policies_of_one_name_are_told_apart_by_eviction() -> None:
    assert [(each.order, each.eviction) for each in parse_policies("fcfs, ttl,spf+tlru")] == [
        ("fcfs", "lru"),
        ("fcfs", "ttl"),
        ("shortest-prefill-first", "tlru"),
    ]
