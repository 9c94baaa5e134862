"""The library door: an agent's own loop, and graphs. Whatever fails, the agent has its own messages."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from agentinfer.compress.distiller import Assignment
from agentinfer.compress.extractive import ExtractiveDistiller
from agentinfer.compress.graph_middleware import GraphMemory, as_openai
from agentinfer.compress.middleware import MemoryCompressor
from agentinfer.compress.note import Line, Note
from agentinfer.compress.recall import RECALL
from agentinfer.compress.settings import Settings

SETTINGS = Settings(threshold_tokens=500, keep_recent_steps=1)
Messages = list[dict[str, Any]]


def start() -> Messages:
    return [{"role": "system", "content": "You are an agent."}, {"role": "user", "content": "Find the port."}]


def called(step: int) -> dict[str, Any]:
    function = {"name": "read", "arguments": json.dumps({"path": f"f{step}.txt"})}
    call = {"id": f"c{step}", "type": "function", "function": function}
    return {"role": "assistant", "content": f"I read f{step}.txt.", "tool_calls": [call]}


def result(step: int) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": f"c{step}", "content": f"port {8000 + step} in f{step} " + "words " * 250}


class Distiller:
    """Answers when it is let; counts."""

    def __init__(self, answer: Callable[[Assignment], Note] | None = None) -> None:
        self.let = asyncio.Event()
        self.let.set()
        self.calls = self.cancelled = 0
        self._answer = answer or (lambda a: Note(tuple(Line(o.text[:20], o.index) for o in a.observations)))

    async def distil(self, assignment: Assignment) -> Note:
        self.calls += 1
        try:
            await self.let.wait()
        except asyncio.CancelledError:
            self.cancelled += 1
            raise
        return self._answer(assignment)


async def turns(memory: MemoryCompressor, history: Messages, steps: range, name: str = "s") -> list[list[Any]]:
    """What the model got in each of these steps; `history` grows as the agent's does."""
    got = []
    for step in steps:
        got.append(await memory.before_model(name, history))
        reply = called(step)
        memory.after_model(name, history, reply)
        for _ in range(5):  # the tool runs
            await asyncio.sleep(0)
        history += [reply, result(step)]
    return got


def test_a_loop_gets_shorter_prompts_and_recalls_what_was_taken() -> None:
    async def run() -> None:
        memory = MemoryCompressor(ExtractiveDistiller(), SETTINGS)
        history = start()
        got = await turns(memory, history, range(10))
        whole = json.dumps(history)
        last = await memory.before_model("s", history)
        assert got[0] == start()
        assert len(json.dumps(last)) < 0.6 * len(whole)
        assert json.dumps(history) == whole, "the agent's history is not touched"
        assert {"role": "tool", "tool_call_id": "c0", "content": "[o3]"} in last
        assert last[-1] is history[-1]
        assert memory.recall("s", "o3") == result(0)["content"]
        assert memory.handle_recall("s", '{"id": "[o3]"}') == result(0)["content"]
        memory.close()

    asyncio.run(run())


def test_nothing_waits_for_a_note() -> None:
    async def run() -> None:
        distiller = Distiller()
        distiller.let.clear()
        memory = MemoryCompressor(distiller, SETTINGS)
        history = start()
        got = await asyncio.wait_for(turns(memory, history, range(6)), 10)
        assert distiller.calls == 1, "one job a session"
        assert [len(each) for each in got] == [2 + 2 * step for step in range(6)], "its own messages meanwhile"
        distiller.let.set()
        await asyncio.sleep(0.01)
        assert "[o3]" in json.dumps(await memory.before_model("s", history))
        memory.close()

    asyncio.run(run())


def _raises(assignment: Assignment) -> Note:
    raise RuntimeError("no model")


@pytest.mark.parametrize("answer", [_raises, lambda _: Note(), lambda _: None], ids=["raises", "empty", "malformed"])
def test_a_distiller_that_is_of_no_use_leaves_the_agent_its_messages(answer: Any) -> None:
    async def run() -> None:
        distiller = Distiller(answer)
        memory = MemoryCompressor(distiller, SETTINGS)
        history = start()
        await turns(memory, history, range(6))
        assert distiller.calls > 1, "the next turn tries again"
        assert await memory.before_model("s", history) == history
        memory.close()

    asyncio.run(run())


def test_a_distiller_that_hangs_is_given_up() -> None:
    async def run() -> None:
        distiller = Distiller()
        distiller.let.clear()
        memory = MemoryCompressor(distiller, Settings(500, keep_recent_steps=1, distil_timeout_s=0.05))
        history = start()
        await turns(memory, history, range(4))
        await asyncio.sleep(0.2)
        assert distiller.cancelled == 1
        distiller.let.set()
        await turns(memory, history, range(4, 6))
        assert "[o3]" in json.dumps(await memory.before_model("s", history)), "the next job succeeds"
        memory.close()

    asyncio.run(run())


def test_closing_cancels_the_job_and_forgets() -> None:
    async def run() -> None:
        distiller = Distiller()
        distiller.let.clear()
        memory = MemoryCompressor(distiller, SETTINGS)
        history = start()
        await turns(memory, history, range(4))
        memory.close("s")
        await asyncio.sleep(0)
        assert distiller.cancelled == 1
        assert await memory.before_model("s", history) == history
        with pytest.raises(KeyError, match="o3: nothing of that id"):
            memory.recall("s", "o3")
        memory.close()

    asyncio.run(run())


def test_an_edited_history_goes_out_as_it_came_and_the_old_one_composed_again() -> None:
    async def run() -> None:
        memory = MemoryCompressor(Distiller(), SETTINGS)
        history = start()
        await turns(memory, history, range(8))
        edited = [*history[:1], {"role": "user", "content": "Find the host."}, *history[2:]]
        assert await memory.before_model("s", edited) == edited
        assert "[o3]" in json.dumps(await memory.before_model("s", history))
        memory.close()

    asyncio.run(run())


def test_sessions_that_begin_alike_keep_apart() -> None:
    async def run() -> None:
        memory = MemoryCompressor(Distiller(), SETTINGS)
        one, other = start(), start()
        await turns(memory, one, range(8), "one")
        assert await memory.before_model("other", list(one)) == one
        await turns(memory, other, range(8), "other")
        memory.close("one")
        assert memory.recall("other", "o3") == result(0)["content"]
        memory.close()

    asyncio.run(run())


def test_what_cannot_be_read_goes_out_as_it_came() -> None:
    async def run() -> None:
        memory = MemoryCompressor(Distiller(), SETTINGS)
        for messages in ([], ["text"], [{"role": "user", "content": object()}]):
            assert await memory.before_model("s", messages) == messages
            memory.after_model("s", messages, {"role": "assistant", "content": "?"})
        memory.close()

    asyncio.run(run())


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ("not json", "recall: "),
        ("[1]", "recall: expected"),
        ('{"id": 3}', "recall: expected"),
        ('{"id": "third"}', "expected the letter o and a number"),
        ('{"id": "o99"}', "o99: nothing of that id"),
        ({"id": "o99"}, "o99: nothing of that id"),
    ],
)
def test_a_wrong_recall_is_answered_by_what_is_wrong(arguments: Any, complaint: str) -> None:
    assert complaint in MemoryCompressor(Distiller()).handle_recall("s", arguments)


def test_the_recall_tool_is_an_openai_tool() -> None:
    tool = MemoryCompressor(Distiller()).recall_tool()
    assert tool["type"] == "function"
    assert tool["function"]["parameters"]["required"] == ["id"]


def test_a_graphs_state_stays_and_its_model_reads_the_composed() -> None:
    """Messages as LangChain has them: objects with type, content, tool_calls and tool_call_id."""

    def of(message: dict[str, Any]) -> SimpleNamespace:
        kinds = {"system": "system", "user": "human", "assistant": "ai", "tool": "tool"}
        calls = [
            {"name": c["function"]["name"], "args": json.loads(c["function"]["arguments"]), "id": c["id"]}
            for c in message.get("tool_calls", ())
        ]
        return SimpleNamespace(
            type=kinds[message["role"]],
            content=message["content"],
            tool_calls=calls,
            tool_call_id=message.get("tool_call_id"),
        )

    async def run() -> None:
        memory = MemoryCompressor(Distiller(), SETTINGS)
        graph = GraphMemory(memory)
        config = {"configurable": {"thread_id": "t"}}
        state: dict[str, Any] = {"messages": [of(each) for each in start()]}
        for step in range(8):
            given = (await graph.before_model(state, config))["llm_input_messages"]
            state = {"messages": [*state["messages"], of(called(step))]}
            assert await graph.after_model(state, config) is None
            for _ in range(5):
                await asyncio.sleep(0)
            state = {"messages": [*state["messages"], of(result(step))]}
        assert given[-1] in state["messages"], "what is not composed is the state's own object"
        assert {"role": "tool", "tool_call_id": "c0", "content": "[o3]"} in given
        assert len(state["messages"]) == 18
        assert memory.recall("t", "o3") == result(0)["content"]
        memory.close()

    asyncio.run(run())


def test_a_graph_says_what_it_cannot_read() -> None:
    with pytest.raises(TypeError, match="got int, expected an OpenAI message"):
        as_openai(3)
    with pytest.raises(ValueError, match="thread_id"):
        asyncio.run(GraphMemory(MemoryCompressor(Distiller())).before_model({"messages": start()}))


def test_the_example_runs_against_an_openai_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a.txt").write_text("port 8417 " + "words " * 800)
    bodies: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> web.Response:
        bodies.append(await request.json())
        turn = len(bodies)
        name, arguments = ("read", {"path": "a.txt"}) if turn < 8 else (RECALL, {"id": "o3"})
        function = {"name": name, "arguments": json.dumps(arguments)}
        reply: dict[str, Any] = {"role": "assistant", "content": "It is 8417."}
        if turn < 9:
            call = {"id": f"c{turn}", "type": "function", "function": function}
            reply = {"role": "assistant", "content": None, "tool_calls": [call]}
        num_tokens = len(json.dumps(bodies[-1]["messages"])) // 4
        return web.json_response({"choices": [{"message": reply}], "usage": {"prompt_tokens": num_tokens}})

    async def run() -> None:
        app = web.Application()
        app.router.add_post("/v1/chat/completions", answer)
        async with TestServer(app) as server:
            path = Path(__file__).parents[2] / "examples" / "compress_loop.py"
            spec = importlib.util.spec_from_file_location("compress_loop", path)
            assert spec is not None
            assert spec.loader is not None
            example = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(example)
            monkeypatch.chdir(tmp_path)
            monkeypatch.setattr("sys.argv", ["compress_loop", "Which port?", "--url", str(server.make_url("/v1"))])
            await example.main()

    asyncio.run(run())
    assert "It is 8417." in capsys.readouterr().out
    assert {"role": "tool", "tool_call_id": "c1", "content": "[o3]"} in bodies[-1]["messages"]
    assert bodies[-1]["messages"][-1]["content"] == (tmp_path / "a.txt").read_text(), "recalled as it was"
    assert [tool["function"]["name"] for tool in bodies[0]["tools"]] == ["read", RECALL]
