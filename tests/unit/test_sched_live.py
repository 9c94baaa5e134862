"""`benchmarks.sched_live`: how sessions are cut, and what its figures mean."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit

from agentinfer.errors import TraceError
from agentinfer.replay.client import Exchange
from agentinfer.replay.driver import SessionResult, TurnResult
from agentinfer.replay.session import Session, SessionBuilder
from agentinfer.replay.traces import Trace
from benchmarks.sched_live import figures, parity, workload
from benchmarks.sched_live.playing import Played

CUT = workload.Cut(turns=2, first_tokens=6, output_tokens=4, reply_tokens=3, gap_s=5.0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    """A word a token."""
    made = Tokenizer(WordLevel({"?": 0}, unk_token="?"))
    made.pre_tokenizer = WhitespaceSplit()
    return made


def recorded(name: str, task: str, turns: int = 3) -> Session:
    builder = SessionBuilder(name)
    builder.add({"role": "system", "content": "be brief"}, 0.0)
    builder.add({"role": "user", "content": "a b c d e f g h i j"}, 0.0)
    for turn in range(turns):
        call = {"id": f"c{turn}", "function": {"name": "bash", "arguments": '{"command": "ls"}'}}
        builder.add({"role": "assistant", "content": "I look at the files", "tool_calls": [call]}, 10.0 * turn)
        builder.add(
            {"role": "tool", "content": "1 2 3 4 5 6 7 8", "tool_call_id": f"c{turn}"}, 10.0 * turn + 1 + turn * 7
        )
    return Session(name, task, "", "test", builder.turns())


def played(name: str, *turns: tuple[int, int, int]) -> SessionResult:
    """Turns as (prompt, cached, output) tokens, a second each."""
    result = SessionResult(
        recorded(name, name, len(turns)), name, False, 0.0, ended_s=float(len(turns)), is_complete=True
    )
    for index, (prompt, cached, output) in enumerate(turns):
        exchange = Exchange(1.0, 0.5, 1.0, prompt_tokens=prompt, cached_tokens=cached, completion_tokens=output)
        result.turns.append(TurnResult(index, float(index), exchange, is_as_recorded=True))
    return result


def cell(policy: str, completion_s: float, repeat: int = 0, **other: Any) -> dict[str, Any]:
    samples = {"sessions": [{"session": "a", "completion_s": completion_s}]}
    measured = figures.cell(Played([played("a", (10, 0, 2), (20, 10, 2))], [], []))
    where = {"policy": policy, "repeat": repeat, "oversubscription": 2.0, "kv_tokens": 100}
    return {**measured, **where, "completion_mean_s": completion_s, "samples": samples, **other}


def test_a_session_keeps_its_turns_tools_and_gaps_but_not_its_length(tokenizer: Tokenizer) -> None:
    short = workload.shorten(recorded("s", "t"), tokenizer, CUT)
    assert [turn.tools for turn in short.turns] == [("bash",), ("bash",)]
    assert [m["content"] for m in short.turns[1].prompt] == [
        "be brief",
        "a b c\n[...]\nh i j",
        "I look at",
        "1 2\n[...]\n7 8",
    ]
    assert short.turns[1].reply == {"role": "assistant", "content": "I look at"}
    assert [turn.gap_s for turn in short.turns] == [1.0, 5.0]  # 8 s were recorded
    # Messages are shared between turns as they were, or a turn would not extend the one before.
    assert short.turns[1].prompt[2] is short.turns[0].reply


def test_context_counts_template_and_reply_and_sizes_the_cache(tokenizer: Tokenizer) -> None:
    work = workload.make(
        Trace("x", "0", "test", tuple(recorded(f"s{i}", f"t{i}") for i in range(3))), tokenizer, CUT, 2, seed=1
    )
    # Prompt: 2 + 7 words, 2 x 5 for the template, 3 to begin the reply; then the reply (3 + 5) and the output (5 + 5).
    assert workload.turn_tokens(work.sessions[0], tokenizer) == [(22, 8), (40, 8)]
    assert (work.context_tokens, work.longest_tokens) == (39.0, 48)
    assert work.kv_tokens(live_sessions=20, oversubscription=4.0) == 195
    with pytest.raises(SystemExit, match="one turn takes 48"):
        work.kv_tokens(live_sessions=2, oversubscription=4.0)


def test_no_task_is_played_twice(tokenizer: Tokenizer) -> None:
    trace = Trace(
        "x", "0", "test", tuple(recorded(f"s{task}{run}", f"t{task}") for task in range(4) for run in range(3))
    )
    work = workload.make(trace, tokenizer, CUT, 4, seed=0)
    assert len({session.task for session in work.sessions}) == 4
    assert not {session.id for session in work.sessions} & {session.id for session in work.spare}
    with pytest.raises(TraceError, match="4 tasks have sessions of 2 turns, 5 are asked for"):
        workload.make(trace, tokenizer, CUT, 5, seed=0)


def test_questions_are_alike_for_a_seed_and_never_the_same_twice(tokenizer: Tokenizer) -> None:
    builder = SessionBuilder("long")
    builder.add({"role": "user", "content": "go"})
    builder.add({"role": "assistant", "content": "one two three four five"})
    builder.add({"role": "tool", "content": " ".join(f"w{i}" for i in range(9000)), "tool_call_id": "c"})
    builder.add({"role": "assistant", "content": "done"})
    source = [Session("long", "long", "", "test", builder.turns())]
    first, again = (list(itertools.islice(workload.questions(source, tokenizer, 3, 7), 20)) for _ in range(2))
    assert first == again
    texts = [question.turns[0].prompt[0]["content"] for question in first]
    assert len(set(texts)) == 20
    assert all(300 <= sum(word.startswith("w") for word in text.split()) <= 620 for text in texts)


def test_recomputed_counts_what_the_session_had_computed_before() -> None:
    # 100 + 10 were computed in turn 0; of them 60 are found in turn 1, and in turn 2 all of 150 + 10.
    assert figures.recomputed_tokens(played("s", (100, 30, 10), (150, 60, 10), (200, 160, 10))) == 50


def test_a_prompt_shorter_than_the_context_recomputes_no_more_than_itself() -> None:
    assert figures.recomputed_tokens(played("s", (100, 0, 10), (40, 0, 5))) == 40


def test_a_cell_counts_hits_after_the_first_turn_and_questions_apart() -> None:
    sessions = [played("a", (100, 90, 10), (200, 150, 10)), played("b", (100, 0, 10))]
    made = figures.cell(Played(sessions, [played("q", (50, 5, 3))], []))
    assert made["hit_rate"] == 150 / 200
    assert made["call_hit_rate"] == (90 + 150 + 0 + 5) / (100 + 200 + 100 + 50)
    assert (made["questions"], made["sessions_complete"], made["turns"]) == (1, 2, 3)
    assert made["sessions_per_hour"] == 2 * 3600 / 2.0


def test_rows_name_the_best_stock_policy_and_pair_sessions_by_repeat() -> None:
    cells = [cell("fcfs", 8.0), cell("lpm", 6.0), cell("agent", 3.0), cell("fcfs", 8.0, 1), cell("lpm", 6.0, 1)]
    cells += [cell("agent", 2.0, 1)]
    (row,) = figures.rows(cells, ("agent",))
    assert row["best_stock"] == "lpm"
    assert math.isclose(row["completion_of_best_stock_by"]["agent"]["of_means"], 12.0 / 5.0)
    assert row["completion_of_best_stock_by"]["agent"]["median"] == 2.5
    assert row["policies"]["agent"]["completion_mean_s"] == {"mean": 2.5, "least": 2.0, "most": 3.0}


def test_mixed_rows_are_relative_to_the_same_repeat_of_fcfs() -> None:
    other = {"call_hit_rate": 0.5, "question_mean_s": 1.0, "question_p95_s": 2.0}
    cells = [cell("fcfs", 8.0, 0, call_mean_s=2.0, **other), cell("agent", 2.0, 0, call_mean_s=1.0, **other)]
    cells += [cell("fcfs", 4.0, 1, call_mean_s=2.0, **other), cell("agent", 3.0, 1, call_mean_s=0.5, **other)]
    base, ours = figures.mixed_rows(cells)
    assert (base["policy"], base["call_latency"], base["end_to_end"]) == ("fcfs", 1.0, 1.0)
    assert (ours["call_latency"], ours["end_to_end"]) == ((0.5 + 0.25) / 2, (0.25 + 0.75) / 2)


def test_parity_names_the_first_token_that_differs() -> None:
    stock = {("s", 0): ([1, 2, 3], 0), ("s", 1): ([4, 5], 0), ("s", 2): ([6], 0)}
    ours = {("s", 0): ([1, 2, 3], 64), ("s", 1): ([4, 9], 0), ("s", 2): ([6, 7], 0)}
    found = parity.compare(stock, ours)
    assert (found["requests"], found["tokens"], found["requests_with_other_cached_tokens"]) == (3, 6, 1)
    assert found["different"] == [
        {"session": "s", "turn": 1, "first_different_token": 1},
        {"session": "s", "turn": 2, "first_different_token": 1},
    ]
