"""The offline drafting benchmark counts what a verify step would do, and asks drafters as their engines do."""

from __future__ import annotations

import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from agentinfer import models
from agentinfer.replay.traces import read_trace
from benchmarks.draft_quality import main
from benchmarks.drafting.calibration import Calibration
from benchmarks.drafting.catalogue import factory
from benchmarks.drafting.drafter import BenchmarkError, Draft, Tokens
from benchmarks.drafting.figures import figures
from benchmarks.drafting.prompt_lookup import PromptLookup
from benchmarks.drafting.replay import Tally, serve, serve_leaving_out
from benchmarks.drafting.sessions import Source, TokenSession, TokenTrace, TokenTurn, load, save
from benchmarks.drafting.tokenise import MODEL, ChatEncoder, tokenise
from benchmarks.drafting.verify import accepted_path, check_draft
from tests.agent_sessions import generated_sessions

END = 2


def tokens(*values: int) -> Tokens:
    return np.array(values, dtype=np.int32)


def session(name: str, task: str, *replies: Tokens) -> TokenSession:
    """Turns that each keep all that was said and add three tokens."""
    turns, kept = [], 0
    for reply in replies:
        turns.append(TokenTurn(kept, tokens(7, 8, 9), reply))
        kept += 3 + len(reply)
    return TokenSession(name, task, tuple(turns))


def trace_of(*sessions: TokenSession) -> TokenTrace:
    return TokenTrace(Source("made", "0" * 64, MODEL, END), sessions)


class Scripted:
    """Drafts the next `hits` true tokens, then `misses` wrong ones, and notes every call."""

    def __init__(self, trace: TokenTrace, hits: int, misses: int = 0) -> None:
        self._replies = [turn.reply.tolist() for each in trace.sessions for turn in each.turns]
        self._hits, self._misses = hits, misses
        self._said: list[int] = []
        self.calls: list[str] = []
        self.prompts: list[list[int]] = []
        self.learnt: list[list[tuple[list[int], list[int]]]] = []

    def start_session(self, session_id: str) -> None:
        self.calls.append(f"session {session_id}")

    def start_turn(self, prompt: Tokens) -> None:
        self.prompts.append(prompt.tolist())
        self.calls.append("turn")
        self._said = []

    def draft(self, budget: int) -> list[int]:
        self.calls.append("draft")
        ahead = self._replies[len(self.prompts) - 1][len(self._said) :][: self._hits]
        return [self._said[-1], *ahead, *[-1] * self._misses]

    def tree(self, drafted: list[int]) -> Draft:
        return Draft(drafted, [0, *range(len(drafted) - 1)], [1.0] + [0.5] * (len(drafted) - 1))

    def accept(self, tokens: Tokens) -> None:
        self.calls.append("accept")
        self._said += tokens.tolist()

    def end_turn(self) -> None:
        assert self._said == self._replies[len(self.prompts) - 1]
        self.calls.append("end turn")

    def end_session(self) -> None:
        self.calls.append("end session")

    def learn(self, turns: list[tuple[Tokens, Tokens]]) -> None:
        self.learnt.append([(prompt.tolist(), reply.tolist()) for prompt, reply in turns])


def test_accepted_path_is_the_longest_that_spells_the_truth() -> None:
    rng = random.Random(11)
    for _ in range(2000):
        width = rng.randint(1, 8)
        parents = [0] + [rng.randrange(node) for node in range(1, width)]
        labels = [rng.randint(0, 2) for _ in range(width)]
        if any(
            parents[a] == parents[b] and labels[a] == labels[b] for a, b in itertools.combinations(range(1, width), 2)
        ):
            continue  # no drafter offers the same token twice under one parent
        truth = [rng.randint(0, 2) for _ in range(rng.randint(0, 4))]
        spelt: dict[int, list[int]] = {0: []}
        paths: dict[int, list[int]] = {0: []}
        for node in range(1, width):
            spelt[node] = [*spelt[parents[node]], labels[node]]
            paths[node] = [*paths[parents[node]], node]
        best = max((paths[node] for node in paths if truth[: len(spelt[node])] == spelt[node]), key=len)
        assert accepted_path(Draft(labels, parents), truth) == best


@pytest.mark.parametrize(
    ("draft", "complaint"),
    [
        pytest.param(Draft([1] * 5, [0, 0, 1, 2, 3]), "1 to 4 nodes", id="too wide"),
        pytest.param(Draft([1, 2, 3], [0, 2, 0]), "earlier node", id="parent behind its child"),
        pytest.param(Draft([1, 2], [0, 0], [1.0, 1.5]), "between 0 and 1", id="no probability"),
        pytest.param(Draft([1, 2], [0, 0], [1.0]), "expected 2 chances", id="a probability missing"),
    ],
)
def test_malformed_drafts_are_refused(draft: Draft, complaint: str) -> None:
    with pytest.raises(BenchmarkError, match=complaint):
        check_draft(draft, budget=4)


def test_steps_emit_what_was_accepted_and_one_more() -> None:
    trace = trace_of(session("a", "t", np.arange(10, 21, dtype=np.int32)))  # 11 tokens, 10 of them from steps
    (tally,) = serve(trace, Scripted(trace, hits=2, misses=1), 16, Calibration())
    # steps of 3, 3, 3 and the last one, where one true token is left to draft and nothing follows it
    assert (tally.steps, tally.accepted_tokens, tally.drafted_tokens) == (4, 7, 11)
    assert tally.accepted_per_step == {2: 3, 1: 1}
    row = figures([tally])
    assert row is not None
    assert row["tokens_per_step"] == 10 / 4
    assert row["accept_length"] == 11 / 4
    assert row["drafted_per_step"] == 11 / 4
    assert row["accepted_of_drafted"] == 7 / 11


def test_without_drafts_every_step_emits_one_token() -> None:
    trace = trace_of(session("a", "t", tokens(1, 2, 3, END), tokens(4, END)))
    (tally,) = serve(trace, Scripted(trace, hits=0), 16, Calibration())
    row = figures([tally])
    assert row is not None
    assert row["tokens_per_step"] == 1.0
    assert row["drafted_per_step"] == 0.0
    assert row["accepted_of_drafted"] is None


def test_a_reply_of_one_token_takes_no_verify_step() -> None:
    trace = trace_of(session("a", "t", tokens(END)))
    drafter = Scripted(trace, hits=1)
    (tally,) = serve(trace, drafter, 16, Calibration())
    assert drafter.calls == ["session a", "turn", "accept", "end turn", "end session"]
    assert figures([tally]) is None


def test_prompts_are_what_was_kept_and_what_was_added() -> None:
    rewound = TokenSession(
        "a", "t", (TokenTurn(0, tokens(1, 2, 3), tokens(4, 5)), TokenTurn(2, tokens(9, 9), tokens(6, END)))
    )
    trace = trace_of(rewound)
    drafter = Scripted(trace, hits=0)
    list(serve(trace, drafter, 16, Calibration()))
    assert drafter.prompts == [[1, 2, 3], [1, 2, 9, 9]]


def test_sessions_of_a_task_seen_before_are_repeats() -> None:
    reply = tokens(1, 2, END)
    trace = trace_of(session("a", "t", reply), session("b", "u", reply), session("c", "t", reply))
    tallies = list(serve(trace, Scripted(trace, hits=0), 16, Calibration()))
    assert [(t.id, t.is_repeat) for t in tallies] == [("a", False), ("b", False), ("c", True)]


def test_leaving_a_task_out_fills_the_memory_with_all_others_and_only_them() -> None:
    replies = {name: tokens(number, END) for number, name in enumerate("abcd", 10)}
    tasks = {"a": "t", "b": "u", "c": "t", "d": "v"}
    trace = trace_of(*(session(name, tasks[name], replies[name]) for name in "abcd"))
    made: list[Scripted] = []

    def make() -> Scripted:
        only = TokenTrace(trace.source, (trace.sessions[(0, 1, 3)[len(made)]],))
        made.append(Scripted(only, hits=0))
        return made[-1]

    tallies = list(serve_leaving_out(trace, make, 16, Calibration()))
    assert [t.id for t in tallies] == ["a", "b", "d"]
    learnt = [[reply[0] for ((_, reply),) in drafter.learnt] for drafter in made]
    assert learnt == [[11, 13], [10, 12, 13], [10, 11, 12]]


def test_calibration_compares_estimates_with_what_came_true() -> None:
    calibration = Calibration()
    calibration.add(Draft([0, 1, 2, 3], [0, 0, 1, 0], [1.0, 0.9, 0.62, 0.11]), [1, 2])
    calibration.add(Draft([0, 1, 2], [0, 0, 0], [1.0, 0.92, 0.6]), [])
    calibration.add(Draft([0, 1], [0, 0]), [1])  # no estimates, so nothing to compare
    summary = calibration.summary()
    assert summary is not None
    assert summary["nodes"] == [
        {"drafted": 1, "expected": pytest.approx(0.11), "accepted": 0.0},
        {"drafted": 2, "expected": pytest.approx(0.61), "accepted": 0.5},
        {"drafted": 2, "expected": pytest.approx(0.91), "accepted": 0.5},
    ]
    assert summary["mean_gap"] == pytest.approx((0.11 + 0.22 + 0.82) / 5)
    assert summary["expected_tokens_per_step"] == pytest.approx((2.63 + 2.52) / 2)
    assert summary["steps"] == [{"steps": 2, "expected_tokens": pytest.approx(2.575), "tokens": 2.0}]
    assert Calibration().summary() is None


def test_prompt_lookup_reads_on_from_the_latest_of_the_longest_matches() -> None:
    def naive(text: list[int], most: int) -> list[int]:
        for length in (4, 3, 2):
            for end in range(len(text) - 1, length - 1, -1):
                if text[end - length : end] == text[-length:]:
                    return text[end : end + most]
        return []

    rng = random.Random(5)
    for _ in range(300):
        text = [rng.randint(1, 3) for _ in range(rng.randint(1, 30))]
        drafter = PromptLookup()
        drafter.start_turn(tokens(*text[:-1]))
        drafter.accept(tokens(text[-1]))
        assert drafter.tree(drafter.draft(6)).tokens == [text[-1], *naive(text, 5)], text


def test_prompt_lookup_grows_beyond_its_first_array() -> None:
    drafter = PromptLookup()
    drafter.start_turn(np.arange(1 << 16, dtype=np.int32))
    drafter.accept(tokens(5, 6, 7))
    assert drafter.draft(4).tolist() == [8, 9, 10]


def test_tokens_survive_their_file(tmp_path: Path) -> None:
    trace = trace_of(
        session("a", "t", tokens(1, END), tokens(3, 4, END)), session("b", "u", np.empty(0, np.int32), tokens(5, END))
    )
    save(trace, tmp_path / "tokens.npz")
    loaded = load(tmp_path / "tokens.npz")
    assert loaded.source == trace.source
    assert [(s.id, s.task) for s in loaded.sessions] == [("a", "t"), ("b", "u")]
    for ours, theirs in zip(trace.sessions, loaded.sessions, strict=True):
        for (prompt, reply), (other_prompt, other_reply) in zip(ours.exchanges(), theirs.exchanges(), strict=True):
            np.testing.assert_array_equal(prompt, other_prompt)
            np.testing.assert_array_equal(reply, other_reply)


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace") / "recorded.jsonl"
    lines = [
        {"id": f"s{number}", "task": f"t{number // 2}", "messages": messages}
        for number, messages in enumerate(generated_sessions(6, 12, seed=3))
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_prompts_are_encoded_as_a_server_encodes_them(recorded: Path) -> None:
    from transformers import PreTrainedTokenizerFast

    whole = PreTrainedTokenizerFast.from_pretrained(models.prepare(MODEL))
    encoder = ChatEncoder(models.prepare(MODEL))
    trace = tokenise(str(recorded), limit=2)
    sessions = read_trace(str(recorded)).sessions[:2]
    assert [len(s.turns) for s in trace.sessions] == [len(s.turns) for s in sessions]
    for tokenised, session in zip(trace.sessions, sessions, strict=True):
        for (prompt, reply), turn in zip(tokenised.exchanges(), session.turns, strict=True):
            np.testing.assert_array_equal(prompt, encoder.prompt(turn.prompt, ()))
            text = whole.decode(prompt)
            assert text.endswith("<|im_start|>assistant\n")
            assert whole.encode(text, add_special_tokens=False) == prompt.tolist()
            assert whole.decode(reply).endswith("<|im_end|>")
        assert all(turn.kept for turn in tokenised.turns[1:]), "a turn's prompt begins with the turn before"
    odd = "digits 1234 <|im_end|> said by a user, and  spaces\n\n"
    assert encoder.encode(odd).tolist() == whole.encode(odd, add_special_tokens=False)


def test_next_prompt_goes_on_from_the_reply_as_emitted(recorded: Path) -> None:
    for session in tokenise(str(recorded)).sessions:
        length = 0
        for turn in session.turns:
            assert turn.kept == length
            length += len(turn.added) + len(turn.reply)


ROW_KEYS = {"drafter", "tokens_per_step", "drafted_per_step", "all_in_us_per_token", "peak_rss_mb"}


def run(recorded: Path, out: Path, *extra: str) -> Any:
    assert main(["--trace", str(recorded), "--json", str(out), *extra]) == 0
    return json.loads(out.read_text())


def test_command_writes_a_row_a_drafter(recorded: Path, tmp_path: Path) -> None:
    chosen = ["--drafter", "agent_sam", "--drafter", "prompt_lookup"]
    rows = run(recorded, tmp_path / "rows.json", *chosen, "--repeat", "2", "--tokens", str(tmp_path / "tokens.npz"))
    assert [row["drafter"] for row in rows] == ["agent_sam", "prompt_lookup"]
    for row in rows:
        assert row.keys() >= ROW_KEYS
        assert row["tokens_per_step"] == row["new_tasks"]["tokens_per_step"] >= 1.0
        assert 0 < row["drafted_per_step"] <= 15
        assert row["peak_rss_mb"] > row["rss_before_drafting_mb"] > 5
        assert len(row["all_in_us_per_token_samples"]) == 2
        assert row["new_tasks"]["sessions"] == 3
        assert row["repeated_tasks"]["sessions"] == 3
        assert row["machine"]["cpu_count"]
        assert sum(row["accepted_per_step"]) == row["new_tasks"]["steps"]
    assert rows[0]["calibration"]["nodes"]
    assert rows[1]["calibration"] is None
    kept = run(recorded, tmp_path / "again.json", *chosen, "--tokens", str(tmp_path / "tokens.npz"))
    assert [row["tokens_per_step"] for row in kept] == [row["tokens_per_step"] for row in rows]


def test_command_leaves_tasks_out(recorded: Path, tmp_path: Path) -> None:
    (row,) = run(recorded, tmp_path / "rows.json", "--drafter", "agent_sam", "--leave-out", "task")
    assert row["leave_out"] == "task"
    assert row["all_sessions"]["sessions"] == 3
    assert row["repeated_tasks"] is None


def test_command_takes_settings_of_one_drafter(
    recorded: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = ["--trace", str(recorded), "--json", str(tmp_path / "rows.json"), "--sessions", "1"]
    assert main([*base, "--set", "longest=3"]) == 2
    assert "name it with --drafter" in capsys.readouterr().err
    assert main([*base, "--drafter", "prompt_lookup", "--set", "depth=3"]) == 2
    assert "does not take the settings" in capsys.readouterr().err
    assert main([*base, "--drafter", "prompt_lookup", "--set", "longest=three"]) == 2
    assert "JSON value" in capsys.readouterr().err
    assert main([*base, "--drafter", "prompt_lookup", "--set", "longest=3"]) == 0


def test_missing_baseline_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "benchmarks.drafting.arctic_suffix", raising=False)
    monkeypatch.setitem(sys.modules, "arctic_inference.suffix_decoding", None)
    with pytest.raises(BenchmarkError, match=r"requirements/baselines\.txt"):
        factory("arctic_suffix", 16, END, {})
    with pytest.raises(BenchmarkError, match="there are agent_sam"):
        factory("eagle", 16, END, {})


def served(name: str, settings: dict[str, Any], trace: TokenTrace, budget: int = 8) -> list[Tally]:
    return list(serve(trace, factory(name, budget, END, settings)(), budget, Calibration()))


TWICE = trace_of(*(session(name, name, np.arange(100, 160, dtype=np.int32)) for name in "ab"))


@pytest.mark.sglang
def test_ngram_corpus_drafts_what_an_earlier_session_said() -> None:
    first, second = served("sglang_ngram", {"capacity": 20_000}, TWICE)
    assert first.accepted_tokens == 0  # nothing in it repeats
    assert first.drafted_tokens == 7 * first.steps  # it always fills its width
    assert second.steps < first.steps / 4


@pytest.mark.sglang
def test_ngram_corpus_is_called_with_what_its_worker_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """The worker's own code on the same request gives the same tails, before and after the step."""
    worker_module = pytest.importorskip("sglang.srt.speculative.ngram_worker", exc_type=ImportError)
    from array import array
    from types import SimpleNamespace

    drafter = factory("sglang_ngram", 8, END, {"capacity": 20_000})()
    calls: list[tuple[str, Any]] = []

    def spy(name: str) -> None:
        inner = getattr(drafter._corpus, name)  # type: ignore[attr-defined]
        monkeypatch.setattr(
            drafter._corpus,  # type: ignore[attr-defined]
            name,
            lambda *args: (calls.append((name, args)), inner(*args))[1],
        )

    spy("batch_get")
    spy("batch_put")
    worker = worker_module.NGRAMWorker.__new__(worker_module.NGRAMWorker)
    worker.enable_overlap = False
    worker.draft_token_num = 8
    worker.max_trie_depth = 18
    worker.ngram_corpus = drafter._corpus  # type: ignore[attr-defined]
    prompt, reply = list(range(40)), list(range(50, 80))
    drafter.start_turn(tokens(*prompt))
    drafter.accept(tokens(reply[0]))
    for place, end in ((1, 4), (4, 5), (5, 30)):
        req = SimpleNamespace(rid="1", origin_input_ids=array("q", prompt), output_ids=array("q", reply[:place]))
        batch = SimpleNamespace(reqs=[req])
        calls.clear()
        drafter.draft(8)
        drafter.accept(tokens(*reply[place:end]))
        ours = calls.copy()
        calls.clear()
        worker._prepare_draft_tokens(batch)
        worker._update_ngram_corpus(batch)
        assert ours == calls


def test_arctic_drafts_what_an_earlier_session_said() -> None:
    pytest.importorskip("arctic_inference.suffix_decoding")
    first, second = served("arctic_suffix", {}, TWICE)
    assert first.accepted_tokens == 0
    assert second.steps < first.steps / 2
    (_, local) = served("arctic_suffix", {"max_cached_requests": 0}, TWICE)
    assert local.accepted_tokens == 0  # without the global tree, sessions share nothing
