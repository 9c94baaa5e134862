"""The offline benchmark on made-up sessions, its counts by hand, and the page that is made from its results."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from agentinfer.commands.compress.tokens import PromptTokens
from agentinfer.compress.distiller import Assignment
from agentinfer.compress.extractive import ExtractiveDistiller
from agentinfer.compress.memory import Observation
from agentinfer.compress.note import Line, Note
from agentinfer.compress.offline import Exchange
from agentinfer.compress.settings import Settings
from benchmarks.compress import document
from benchmarks.compress.__main__ import main
from benchmarks.compress.facts import Facts, SessionFacts, invented
from benchmarks.compress.measure import counted, measure
from benchmarks.compress.sample import sample_session
from benchmarks.compress.summary import summary
from benchmarks.compress.variants import VARIANTS, SentTurn

ESTIMATE = PromptTokens(None)


def user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def tool(text: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": "c", "content": text}


def size(*messages: dict[str, Any]) -> int:
    return ESTIMATE.prompt(messages)


@pytest.fixture(scope="module")
def measured() -> Any:
    return measure(sample_session("made up", 30, 0), ExtractiveDistiller().note, Settings(), ESTIMATE)


def test_every_variant_is_measured_on_every_turn(measured: Any) -> None:
    assert measured.work.keys() == VARIANTS.keys()
    assert {each.turns for each in measured.work.values()} == {31}
    assert measured.invented == 0
    assert measured.note_anchors > 20


def test_what_the_variants_promise(measured: Any) -> None:
    work = measured.work
    none, ours = work["none"], work["ours"]
    assert ours.swaps >= 2
    assert ours.last < 0.6 * none.last
    assert ours.computed <= none.computed, "no swap computes on the agent's path what it would not have without"
    assert ours.background > 0
    assert (ours.waits, ours.facts.lost) == (0, 0)
    assert ours.facts.retrievable + ours.facts.present >= 1
    assert work["synchronous"].waits == work["synchronous"].swaps
    assert work["synchronous"].background == 0
    assert work["synchronous"].computed > none.computed
    assert work["clear_results"].facts.lost > 0, "names that only cleared results have"
    assert work["clear_results"].facts.retrievable == 0
    assert work["truncate"].last <= ours.last + (none.last - ours.last) // 2
    assert work["without_note"].last < ours.last
    assert work["without_reasoning"].last < ours.last
    assert work["without_reasoning"].background < ours.background


def test_work_is_counted_against_an_ideal_prefix_cache() -> None:
    task, first, result, second = user("task " * 20), said("first"), tool("result " * 90), said("second " * 3)
    short = tool("[o2]")
    exchanges = [Exchange((task,), first), Exchange((task, first, result), second), Exchange((), said("end"))]
    turns = [
        SentTurn((task,)),
        SentTurn((task, first, result), prefilled=((task, first, short, second),)),
        SentTurn((task, first, short, second), is_swap=True),
    ]
    found = counted(turns, exchanges, ESTIMATE, ())
    assert found.carried == size(task) + size(task, first, result) + size(task, first, short, second)
    assert found.last == size(task, first, short, second)
    assert found.computed == size(task) + size(result)
    assert found.background == size(short, second)
    assert (found.swaps, found.at_swaps, found.warm_shares) == (1, 0, [1.0])
    cold = counted([turns[0], SentTurn((task, first, result)), turns[2]], exchanges, ESTIMATE, ())
    assert cold.at_swaps == size(short, second)
    assert cold.warm_shares == [1 - size(short, second) / size(task, first, short, second)]


def test_waiting_counts_what_is_read_and_computed_meanwhile() -> None:
    observation = Observation(1, "read", "", "text " * 70)
    assignment = Assignment("the task", "", (observation,), 50, 0.3)
    turn = SentTurn((user("task"),), is_swap=True, waited=True, distilled=assignment)
    found = counted([turn], [Exchange((user("task"),), said("x"))], ESTIMATE, ())
    assert found.distil == ESTIMATE.text("the task") + ESTIMATE.text("text " * 70)
    assert (found.waits, found.waited) == (1, found.distil + size(user("task")))


def test_facts_are_present_retrievable_or_lost() -> None:
    prompt = (
        user("look for load_a"),
        said("I will read conf_x.py."),
        tool("port 8417, host db_main, file src/one.py"),
        said("go on"),
    )
    reply = said("It is 8417 on db_main, see src/one.py and conf_x.py, for load_a and new_name.")

    def judged(sent: Sequence[dict[str, Any]], recallable: tuple[Observation, ...] = ()) -> Facts:
        return SessionFacts([prompt], [reply]).judge(0, SentTurn(tuple(sent), recallable=recallable))

    taken = Observation(2, "read", "", str(prompt[2]["content"]))
    assert judged(prompt) == Facts()
    copies = [dict(each) for each in prompt]
    assert judged(copies) == Facts(), "an equal copy is still there"
    composed = [prompt[0], prompt[1], tool("[o2]"), said("[o2] port 8417"), prompt[3]]
    assert judged(composed, (taken,)) == Facts(present=1, retrievable=2)
    assert judged(composed) == Facts(present=1, lost=2)
    assert judged([prompt[0], prompt[3]]) == Facts(lost=3, own_words_lost=1)


def test_an_invented_number_is_found() -> None:
    observation = Observation(3, "read", "", "port 8417")
    assignment = Assignment("", "", (observation,), 50, 0.3)
    assert invented([(Note((Line("port 8417", 3),)), assignment)]) == (1, 0)
    assert invented([(Note((Line("port 8418", 3),)), assignment)]) == (1, 1)
    assert invented([(Note((Line("port 8417", 5),)), assignment)]) == (1, 1), "of another source"


def test_it_runs_without_recorded_sessions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AGENTINFER_TRACES", raising=False)
    out = tmp_path / "result.json"
    assert main(["--json", str(out)]) == 0
    result = json.loads(out.read_text())
    assert {group["trace"] for group in result["groups"]} == {"sample"}
    assert {row["variant"] for row in result["groups"][0]["rows"]} == VARIANTS.keys()
    assert str(tmp_path) not in out.read_text()
    assert "made up" in document.section(result, None)


def test_the_page_has_a_row_a_variant(measured: Any) -> None:
    group = {"trace": "sample", "sha256": None, "kind": "all", **summary([measured])}
    result = {
        "groups": [group],
        "token_counts": "estimate",
        "long_tokens": 30_000,
        "variants": VARIANTS,
        "command": "measure",
        "seconds": 1.0,
    }
    text = document.section(result, None)
    for name in VARIANTS:
        assert f"| `{name}`" in text
    live_row = {
        "variant": "on",
        "completion_mean_s": 12.0,
        "worst_turn_s": 1.5,
        "prompt_tokens": 5000.0,
        "prompt_tokens_computed": 700.0,
        "warmed_tokens": 900,
        "saved_over_all": 0.4,
        "saved_at_the_end": 0.5,
        "swap_turns": 3,
        "swap_cached_shares": [0.99, 0.95, 0.97],
        "slower_turns_share": 0.01,
        "latency_ratio": {"median": 0.9, "q1": 0.8, "q3": 1.0},
    }
    live = {
        "rows": [live_row, {key: live_row[key] for key in list(live_row)[:6]} | {"variant": "off"}],
        "sessions": ["a"],
        "trace": {"name": "t.jsonl"},
        "model": "m",
        "dtype": "bfloat16",
        "live_sessions": 1,
        "gap_s": 1.0,
        "command": "play",
    }
    shown = document.section(result, live)
    assert (
        "| `on` | 12.0 | 1.50 | 5,000 | 40.0% | 50.0% | 700 | 900 | 3 | 97.0%, 95.0% | 0.90 (0.80 to 1.00) | 1.0% |"
        in shown
    )
    assert "| `off` | 12.0 | 1.50 | 5,000 |  |  | 700 | 900 |" in shown


def test_committed_page_is_made_from_the_committed_results() -> None:
    text = document.DOCUMENT.read_text(encoding="utf-8")
    made = document.section(document.load("compress_offline.json"), document.load_if_there("compress_live.json"))
    assert text == document.with_section(text, made), "run: python -m benchmarks.compress.document"


def test_the_result_file_names_no_folder_of_the_machine() -> None:
    text = (document.RESULTS / "compress_offline.json").read_text(encoding="utf-8")
    assert '"/' not in text
    assert " /" not in text
