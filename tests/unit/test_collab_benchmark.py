"""The AgentCollab evaluation without its engines: tasks, trees, policies and counts by hand, and its page."""

from __future__ import annotations

import asyncio
import math
import random
import re
from typing import Any

import pytest

from agentinfer.collab_lang.controller import Model, Verdict
from benchmarks import collab_live
from benchmarks.collab import document, policies
from benchmarks.collab.engine import Engine, normalised
from benchmarks.collab.episode import Said, choices, is_over, is_progress, is_right, messages
from benchmarks.collab.evaluation import CONSTANT, GROWING, Recorded, area_under_curve, evaluate
from benchmarks.collab.play import Taken, play
from benchmarks.collab.recording import KINDS, examples
from benchmarks.collab.tasks import Fact, Task, Wording, kinds, make_tasks
from benchmarks.collab.tree import Node, Step, Tree, record, said_at, tree_from_json

LARGE, SMALL = Model.LARGE, Model.SMALL
NOTHING_SHARED = {LARGE: 0, SMALL: 0}


def step(choice: int, **fields: Any) -> Step:
    base: dict[str, Any] = {"probability": 0.5, "p_answer": 0.0, "p_true": 0.9, "is_progress": True}
    base |= {"prompt_tokens": 10, "reply_tokens": 4, "check_tokens": 7}
    return Step(choice, **(base | fields))


def agent(skill: float, seed: int) -> Any:
    """A made-up model that is right with this probability, and whose figures know a little of it."""

    def at(task: Task, said: Said) -> Step:
        rng = random.Random(f"{seed} {task.id} {said}")
        possible = choices(task, said)
        right = [number for number, fact in enumerate(possible) if is_progress(task, said, fact)]
        choice = right[0] if right and rng.random() < skill else rng.randrange(len(possible))
        is_good = is_progress(task, said, possible[choice])
        figure = min(1.0, 0.6 * rng.random() + 0.4 * is_good)
        size = 50 + 20 * len(said)
        return step(choice, is_progress=is_good, p_true=figure, probability=figure, prompt_tokens=size)

    return at


def recorded_of(count: int) -> Recorded:
    tasks = make_tasks(count, 3, KINDS)
    large, small = agent(0.9, 0), agent(0.5, 1)

    async def both(task: Task, said: Said) -> Node:
        return {LARGE: large(task, said), SMALL: small(task, said)}

    trees = [asyncio.run(record(task, both)) for task in tasks]
    return Recorded(tasks, trees, {LARGE: 50, SMALL: 50}, {LARGE: (0.002, 0.03), SMALL: (0.001, 0.01)}, 20)


class ToldEngine(Engine):
    """Answers as SGLang's routes do, with a made-up prompt and one token a character; it prefers `preferred`."""

    def __init__(self, preferred: str) -> None:
        super().__init__(None, "http://made-up", "m", examples(), lambda text: [ord(each) for each in text])  # type: ignore[arg-type]
        self.preferred = [ord(each) for each in preferred]
        self.bodies: list[tuple[str, Any]] = []

    async def _post(self, path: str, body: Any) -> Any:
        self.bodies.append((path, body))
        if path == "/generate":
            return [{"meta_info": {"input_token_logprobs": self._rows(ids)}} for ids in body["input_ids"]]
        if "regex" in body:
            alternatives = [{"token": "TR", "logprob": -1.0}, {"token": "F", "logprob": -1.0 - 2.0}]
            content = [{"token": "TR", "logprob": -1.0, "top_logprobs": alternatives}]
            choice = {"message": {"role": "assistant", "content": "TR"}, "logprobs": {"content": content}}
            return {"choices": [choice], "usage": {"prompt_tokens": 3 + len(self.preferred) + 70}}
        return {"choices": [{"prompt_token_ids": [1, 2, 3]}]}

    def _rows(self, ids: list[int]) -> list[list[Any]]:
        reply = ids[3:]
        logprob = -1.0 / len(reply) if reply == self.preferred else -3.0 / len(reply)
        return [[None, ids[2], None], *([logprob, token, None] for token in reply)]


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    recorded = recorded_of(60)
    costs = {each.value: {"prefill_s": 0.001, "decode_s": 0.02} for each in Model}
    head = {"tasks": 60, "models": {"large": "L", "small": "S"}, "threads": 1, "nodes": 9, "random_seeds": 2}
    return {**head, "costs": costs, "command": "made up", **evaluate(recorded)}


@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_a_task_has_one_answer_at_the_end_of_a_path_of_told_facts(kind: Any) -> None:
    for task in make_tasks(20, 5, [kind]):
        said: Said = ()
        for fact in task.path:
            assert not is_over(task, said)
            assert fact in choices(task, said)
            assert len(task.told[fact.subject]) == kind.distractors + 1
            said = (*said, fact)
        assert is_over(task, said)
        assert is_right(task, said)
        assert [fact.is_answer for fact in task.path] == [False] * (kind.hops - 1) + [True]
        places = [fact.value for facts in task.told.values() for fact in facts if fact.is_answer]
        assert places.count(task.path[-1].value) == 1
        assert all(fact.relation in task.question for fact in task.path)


def test_tasks_are_the_same_for_a_seed_and_none_is_an_example() -> None:
    assert make_tasks(12, 1, KINDS) == make_tasks(12, 1, KINDS)
    assert make_tasks(12, 1, KINDS) != make_tasks(12, 2, KINDS)
    assert not {each.question for each in examples()} & {each.question for each in make_tasks(96, 1, KINDS)}


def test_a_question_names_the_way_forwards_or_backwards() -> None:
    forward, backward = make_tasks(2, 4, kinds((3,), (1,), tuple(Wording)))
    assert re.fullmatch(r"What is \w+'s \w+'s \w+'s \w+\?", forward.question)
    assert re.fullmatch(r"What is the \w+ of the \w+ of the \w+ of \w+\?", backward.question)
    assert forward.question.endswith(f"{forward.path[-1].relation}?")
    assert backward.question.endswith(f"{backward.path[0].subject}?")


def test_a_chat_alternates_and_ends_with_what_the_last_step_brought() -> None:
    task = make_tasks(1, 4, KINDS[-1:])[0]
    chat = messages(task, task.path[:2], examples())
    assert [each["role"] for each in chat] == ["system", *["user", "assistant"] * ((len(chat) - 2) // 2), "user"]
    told = " ".join(fact.text for fact in task.told[task.path[1].value])
    assert chat[-1]["content"] == f"{told}\nQuestion: {task.question}"
    assert sum(task.question in each["content"] for each in chat) == 3


def test_a_wrong_turn_can_be_taken_back_until_the_steps_are_spent() -> None:
    task = make_tasks(1, 4, kinds((3,), (3,), (Wording.FORWARD,)))[0]
    wrong = next(fact for fact in choices(task, ()) if fact not in task.path and fact.value in task.told)
    assert not is_progress(task, (), wrong)
    assert is_progress(task, (wrong,), task.path[0])
    said = (wrong, *task.path)
    assert is_right(task, said)
    place = next(fact for fact in choices(task, (wrong,)) if fact.is_answer)
    assert is_over(task, (wrong, place))
    assert not is_right(task, (wrong, place))


def test_a_tree_has_every_place_that_a_model_leads_to() -> None:
    recorded = recorded_of(12)
    for task, tree in zip(recorded.tasks, recorded.trees, strict=True):
        for key, node in tree.nodes.items():
            assert not is_over(task, said_at(task, key))
            for each in node.values():
                following = (*key, each.choice)
                assert is_over(task, said_at(task, following)) != (following in tree.nodes)
    assert tree_from_json(recorded.trees[0].as_json()) == recorded.trees[0]


def test_tokens_are_counted_against_what_each_model_has_seen() -> None:
    """Large, small, large: the second speaker has seen the beginning only, the third lacks the step between."""
    task = make_tasks(1, 4, kinds((3,), (1,), (Wording.FORWARD,)))[0]
    keys = [tuple(choices(task, task.path[:at]).index(task.path[at]) for at in range(count)) for count in range(4)]
    sizes = (100, 120, 150)
    nodes = {
        key: {
            LARGE: step(keys[3][number], prompt_tokens=sizes[number], reply_tokens=5),
            SMALL: step(keys[3][number], prompt_tokens=sizes[number] + 8, reply_tokens=6, p_answer=0.25),
        }
        for number, key in enumerate(keys[:3])
    }
    turns = [LARGE, SMALL, LARGE]
    found = play(task, Tree(task.id, nodes), lambda _: lambda taken, _: turns[len(taken)], {LARGE: 60, SMALL: 70})
    assert found.is_right
    assert found.p_answer == 0.0
    assert found.speakers == turns
    assert found.switches == 2
    assert found.prefilled == {LARGE: 40 + 45, SMALL: 58}
    assert found.at_switches == 58 + 45
    # The results alone: 128 - 108 - 5 tokens for the small model, 150 - 120 - 6 for the large one.
    assert found.cold_at_switches == {SMALL: 58 - 15, LARGE: 45 - 24}
    assert found.decoded == {LARGE: 10, SMALL: 6}
    assert found.checked == {LARGE: 14, SMALL: 7}


def test_collab_follows_the_controller() -> None:
    node = {LARGE: step(0), SMALL: step(0)}
    speaker = policies.collab(GROWING, policies.by_check(0.5))(make_tasks(1, 1, KINDS)[0])
    taken: list[Taken] = []
    spoke = []
    for p_true in (0.1, 0.9, 0.2, 0.1, 0.1, 0.1, 0.1, 0.9):
        spoke.append(speaker(taken, node))
        taken.append(Taken(spoke[-1], step(0, p_true=p_true)))
    # Opening; progress; escalated; a burst of one without progress; escalated for two; then back.
    assert [each.value[0] for each in spoke] == list("lsslsll" + "s")
    assert CONSTANT.burst_max == CONSTANT.burst_first


def test_a_check_that_could_not_be_read_is_missing() -> None:
    assert policies.by_check(0.5)(Taken(SMALL, step(0, p_true=None))) is Verdict.MISSING
    assert policies.by_truth(Taken(SMALL, step(0, is_progress=False))) is Verdict.NO_PROGRESS
    assert policies.by_confidence(0.6)(Taken(SMALL, step(0, probability=0.5))) is Verdict.NO_PROGRESS


def test_a_route_is_chosen_once_and_by_the_small_models_first_step() -> None:
    task = make_tasks(1, 1, KINDS)[0]
    unsure = {LARGE: step(0), SMALL: step(0, probability=0.3)}
    sure = {LARGE: step(0), SMALL: step(0, probability=0.9)}
    speaker = policies.routed(0.5)(task)
    assert [speaker([], unsure), speaker([], sure)] == [LARGE, LARGE]
    speaker = policies.routed(0.5)(task)
    assert [speaker([], sure), speaker([], unsure)] == [SMALL, SMALL]


def test_random_switching_repeats_for_a_seed_and_takes_its_share() -> None:
    node = {LARGE: step(0), SMALL: step(0)}
    taken = [Taken(LARGE, step(0))] * 4
    tasks = make_tasks(300, 1, KINDS)
    spoken = [policies.at_random(0.3, 1)(task)(taken, node) for task in tasks]
    assert spoken == [policies.at_random(0.3, 1)(task)(taken, node) for task in tasks]
    assert 0.2 < spoken.count(LARGE) / len(spoken) < 0.4


def test_a_curve_says_how_often_right_steps_have_the_higher_figure() -> None:
    assert area_under_curve([0.9, 0.1], [True, False]) == 1.0
    assert area_under_curve([0.5, 0.5, 0.2], [True, False, False]) == 0.75
    assert area_under_curve([0.5, 0.5], [True, True]) is None


def test_probabilities_of_replies_sum_to_one_whatever_their_logs_are() -> None:
    assert normalised([-2000.0, -2000.0]) == [0.5, 0.5]
    assert sum(normalised([-1.0, -30.0, -3.0])) == pytest.approx(1.0)


def test_what_the_policies_promise(result: dict[str, Any]) -> None:
    rows = {row["policy"]: row for row in result["policies"]}
    assert rows["large only"]["large_steps_share"] == 1.0
    assert rows["small only"]["large_steps_share"] == 0.0
    assert rows["large only"]["switches"] == rows["small only"]["switches"] == 0
    assert rows["large only"]["accuracy"]["mean"] > rows["small only"]["accuracy"]["mean"]
    assert rows["large plans 1"]["large_steps_share"] < rows["large plans 2"]["large_steps_share"]
    assert rows["who would be right speaks"]["random"]["difference"]["low"] > 0, "knowing is worth more than a lot"
    assert rows["collab at 0.5"]["large_steps_share"] > rows["collab at 0.1"]["large_steps_share"]
    for row in result["policies"]:
        assert row["seconds_warm"] <= row["seconds"]
        assert row["of_it_before_the_result"] <= row["prefilled_at_switches"]
        if "random" in row:
            assert row["random"]["large_steps_share"] == pytest.approx(row["large_steps_share"], abs=0.03)


def test_the_section_shows_every_policy(result: dict[str, Any]) -> None:
    made = document.section(result)
    assert all(row["policy"] in made for row in result["policies"])
    text = f"before\n{document.BEGIN}old\n{document.END}after\n"
    assert document.with_section(text, "new\n") == f"before\n{document.BEGIN}new\n{document.END}after\n"
    with pytest.raises(ValueError, match="expected the marks"):
        document.with_section("no marks", "new\n")


def test_the_page_shows_the_measured_result() -> None:
    text = document.DOCUMENT.read_text(encoding="utf-8")
    assert text == document.with_section(text, document.measured()), "run: python -m benchmarks.collab.document"


def test_results_name_no_path_of_a_machine() -> None:
    for result in document.RESULT.parent.glob("*.json"):
        found = re.search(r"/(work|tmp|root|home)/", result.read_text(encoding="utf-8"))
        assert found is None, f"{result.name}: {found}"


def test_facts_read_as_sentences() -> None:
    assert Fact("Falcon", "author", "Clara").text == "Falcon's author is Clara."
    assert not Fact("Falcon", "author", "Clara").is_answer
    assert Fact("Clara", "home", "Oslo").is_answer


def test_live_runs_are_compared_with_the_twin_of_the_same_repeat() -> None:
    def run(way: str, repeat: int, seconds: float, **collab: int) -> dict[str, Any]:
        turns = [{"session": "s", "turn": turn, "latency_s": seconds / 4} for turn in range(4)]
        own = {"completion_mean_s": seconds, "worst_turn_s": 1.0, "prompt_tokens_computed": 10}
        return {"way": way, "repeat": repeat, **own, "collab": collab, "turns": turns}

    counts = {"switches": 2, "switch_unseen_tokens": 100, "switch_computed_tokens": 5}
    runs = [run("large", 0, 10.0), run("large", 1, 20.0)]
    runs += [run("collab", 0, 8.0, **counts), run("collab", 1, 10.0, **counts)]
    large, collab = collab_live.rows(runs)
    assert "completion_ratios" not in large
    assert collab["completion_ratios"] == [0.8, 0.5]
    assert collab["latency_ratio"]["median"] == pytest.approx(0.65)
    assert collab["switch_prefilled_share"] == pytest.approx(0.95)
    assert (collab["switches"], collab["repeats"]) == (4, 2)
    assert collab_live.TWINS.keys() == collab_live.FRONTS.keys()


def test_the_section_of_live_runs_shows_every_way(result: dict[str, Any]) -> None:
    row = {"completion_mean_s": 80.0, "worst_turn_s": 4.0, "prompt_tokens_computed": 12_000}
    ratio = {"median": 1.01, "q1": 0.98, "q3": 1.05}
    switched = {"switches": 4, "switch_unseen_tokens": 5000, "switch_prefilled_share": 0.97}
    rows = [
        {"way": "large", **row},
        {"way": "collab", **row, "completion_ratios": [0.9], "latency_ratio": ratio, **switched},
    ]
    live = {
        "models": collab_live.MODELS,
        "sessions": ["s"],
        "trace": {"name": "t.jsonl"},
        "turns": 9,
        "threads": 1,
        "gap_s": 2.0,
        "rows": rows,
        "command": "python -m benchmarks.collab_live",
    }
    made = document.section(result, live)
    assert "| `large` | 80.0 | – | – | 4.00 | 12,000 | – | – | – |" in made
    assert "| `collab` | 80.0 | 0.900 | 1.01 (0.98 to 1.05) | 4.00 | 12,000 | 4 | 5,000 | 97.0% |" in made


def test_an_engine_says_the_likeliest_whole_reply_and_judges_it() -> None:
    task = make_tasks(1, 4, kinds((3,), (3,), (Wording.FORWARD,)))[0]
    engine = ToldEngine(task.path[0].text)
    found = asyncio.run(engine.step(task, ()))
    others = len(choices(task, ())) - 1
    assert choices(task, ())[found.choice] == task.path[0]
    assert found.is_progress
    assert found.probability == pytest.approx(1 / (1 + others * math.exp(-2.0)), abs=1e-4)
    assert found.p_true == pytest.approx(1 / (1 + math.exp(-2.0)), abs=1e-4)
    assert (found.prompt_tokens, found.reply_tokens, found.check_tokens) == (3, len(task.path[0].text), 70)
    scored = next(body for path, body in engine.bodies if path == "/generate")
    assert scored["logprob_start_len"] == 2
    assert len(scored["input_ids"]) == others + 1
    judged = next(body for _, body in engine.bodies if "regex" in body)
    assert judged["messages"][-2]["content"] == task.path[0].text


def test_the_right_answer_is_weighed_against_the_other_answers_only() -> None:
    task = make_tasks(1, 4, kinds((2,), (3,), (Wording.FORWARD,)))[0]
    said = task.path[:1]
    found = asyncio.run(ToldEngine(task.path[1].text).step(task, said))
    places = sum(fact.is_answer for fact in choices(task, said))
    assert places > 1
    assert found.p_answer == pytest.approx(1 / (1 + (places - 1) * math.exp(-2.0)), abs=1e-4)
    assert asyncio.run(ToldEngine("").step(task, ())).p_answer == 0.0


def test_scores_of_other_tokens_than_the_replys_are_refused() -> None:
    class Forgetful(ToldEngine):
        def _rows(self, ids: list[int]) -> list[list[Any]]:
            return super()._rows(ids)[:-1]

    with pytest.raises(RuntimeError, match="scored other tokens"):
        asyncio.run(Forgetful("").step(make_tasks(1, 4, KINDS)[0], ()))
