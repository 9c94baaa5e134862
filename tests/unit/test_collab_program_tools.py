"""Tools of frontend programs: what a model may write, what runs, what it is told; and the formats of two models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any, Literal

import pytest

pytest.importorskip("sglang.lang")
pytest.importorskip("jinja2")

import sglang as sgl
from sglang.lang.chat_template import get_chat_template

from agentinfer.collab_lang.programs import CollabBackend, Tools
from agentinfer.collab_lang.programs.conversation import Written
from agentinfer.collab_lang.programs.rendering import Refusal, Renderer, in_turns
from agentinfer.collab_lang.settings import Check, CollabSettings
from agentinfer.models.catalogue import find_model
from tests.fake_engine import FakeEngine
from tests.template_rendering import render

pytestmark = pytest.mark.sglang

GEMMA3 = find_model("gemma3-270m").chat_template
SMOLLM2 = find_model("smollm2-135m").chat_template


def look(path: str, lines: int = 10, order: Literal["up", "down"] = "up") -> str:
    """Shows a file."""
    if path == "missing":
        raise FileNotFoundError(path)
    return f"{path}:{lines}:{order}"


def count(words: list[str], exact: bool | None = None) -> int:
    """How many."""
    return len(words)


TOOLS = Tools(look, count)


@pytest.fixture
def engines() -> Iterator[tuple[FakeEngine, FakeEngine]]:
    pair = FakeEngine(GEMMA3, "large"), FakeEngine(SMOLLM2, "small")
    yield pair
    for each in pair:
        each.close()


def test_the_grammar_says_what_the_functions_take() -> None:
    look_call, count_call = json.loads(TOOLS.json_schema)["anyOf"]
    assert look_call["properties"]["name"] == {"const": "look"}
    assert look_call["properties"]["arguments"] == {
        "type": "object",
        "properties": {
            "path": {"type": "string", "maxLength": 400},
            "lines": {"type": "integer"},
            "order": {"enum": ["up", "down"]},
        },
        "required": ["path"],
        "additionalProperties": False,
    }
    words = {"type": "array", "items": {"type": "string", "maxLength": 400}, "maxItems": 16}
    arguments = count_call["properties"]["arguments"]
    assert arguments["properties"] == {"words": words, "exact": {"anyOf": [{"type": "boolean"}]}}
    assert arguments["required"] == ["words"]


def test_every_call_that_the_grammar_takes_parses_in_the_engines_own_backend() -> None:
    xgrammar = pytest.importorskip("xgrammar")
    xgrammar.Grammar.from_json_schema(TOOLS.json_schema)


def test_a_tool_of_no_plain_type_is_refused_where_it_is_made() -> None:
    def odd(what: object) -> str:
        return str(what)

    with pytest.raises(TypeError, match=re.escape("expected str, int")):
        Tools(odd)


@pytest.mark.parametrize(
    ("written", "told", "is_error"),
    [
        ('{"name": "look", "arguments": {"path": "a", "lines": 3}}', "a:3:up", False),
        ('{"name": "count", "arguments": {"words": ["a", "b"]}}', "2", False),
        ('{"name": "look", "arguments": {"path": "a\tb"}}', "a\tb:10:up", False),
        ('{"name": "look", "arguments": {"path": "missing"}}', "error: FileNotFoundError: missing", True),
        ('{"name": "look", "arguments": {"other": 1}}', "error: TypeError: look() got an unexpected", True),
        ('{"name": "burn", "arguments": {}}', "error: not a call of look, count (KeyError: 'burn')", True),
        ('{"name": "look", "argu', "error: not a call of look, count (JSONDecodeError", True),
        ("[1]", "error: not a call of look, count (TypeError", True),
    ],
    ids=["strings", "numbers", "a tab", "the tool fails", "other arguments", "unknown", "cut off", "no object"],
)
def test_what_the_model_is_told_of_a_call(written: str, told: str, is_error: bool) -> None:
    call = TOOLS.call(written)
    assert call.text.startswith(told)
    assert (call.error is not None) is is_error


def test_a_result_becomes_a_tools_message_in_each_models_format(engines: tuple[FakeEngine, FakeEngine]) -> None:
    large, small = engines
    written = '{"name": "look", "arguments": {"path": "a"}}'
    large.reply = small.reply = lambda prompt: written

    @sgl.function
    def program(s: Any) -> None:
        s += sgl.user("Look.")
        for number in range(2):
            s += sgl.assistant(TOOLS.gen(f"call_{number}"))
            s[f"text_{number}"] = TOOLS.run(s, f"call_{number}").text

    settings = CollabSettings(warm_up_steps=1, check=Check.OFF)
    state = program.run(backend=CollabBackend(large.url, small.url, settings))
    state.sync()
    assert state["text_0"] == "a:10:up"
    assert json.loads(large.turns()[0]["sampling_params"]["json_schema"]) == json.loads(TOOLS.json_schema)
    messages = [
        {"role": "user", "content": "Look."},
        {"role": "assistant", "content": written},
        {"role": "tool", "content": "a:10:up"},
    ]
    assert state.messages()[:3] == messages
    assert small.prompts() == [render(SMOLLM2, messages, add_generation_prompt=True)]


def renderer(engine: FakeEngine) -> Renderer:
    def post(path: str, body: dict[str, Any]) -> Any:
        engine.requests.append((path, body))
        try:
            return engine.answer(path, body)
        except Exception as error:
            raise Refusal(str(error)) from None

    return Renderer(post, get_chat_template("default"), engine.name)


TOOL_TALK = (
    {"role": "user", "content": "Look."},
    {"role": "assistant", "content": "I do."},
    {"role": "tool", "content": "seen"},
)


def text(ids: tuple[int, ...] | None) -> str:
    return "".join(map(chr, ids or ()))


def test_a_template_that_leaves_tools_out_gets_their_results_from_the_user(
    engines: tuple[FakeEngine, FakeEngine],
) -> None:
    large, _ = engines
    large.template = (
        "{%- for m in messages -%}{%- if m['role'] != 'tool' -%}<{{ m['role'] }}>{{ m['content'] }}{%- endif -%}"
        "{%- endfor -%}{%- if add_generation_prompt -%}<assistant>{%- endif -%}"
    )
    found = renderer(large).prompt(Written(TOOL_TALK, "assistant", ""))
    assert text(found.ids) == "<user>Look.<assistant>I do.<user>seen<assistant>"


def test_a_role_that_a_program_made_up_is_a_users(engines: tuple[FakeEngine, FakeEngine]) -> None:
    _, small = engines
    found = renderer(small).prompt(Written(({"role": "critic", "content": "Bad."},), "assistant", "But "))
    asked = [{"role": "user", "content": "Bad."}]
    assert text(found.ids) == render(SMOLLM2, asked, add_generation_prompt=True) + "But "


def test_history_is_what_all_prompts_after_it_begin_with(engines: tuple[FakeEngine, FakeEngine]) -> None:
    for engine in engines:
        made = renderer(engine)
        ahead = text(made.history(Written(TOOL_TALK[:1], "assistant", "I do.")).ids)
        for role in ("user", "tool"):
            after = (*TOOL_TALK[:2], {"role": role, "content": "more"})
            whole = text(made.prompt(Written(after, "assistant", "")).ids)
            shared = next(at for at in range(len(whole)) if whole[: at + 1] != ahead[: at + 1])
            assert "I do." in whole[:shared]
            if role == "user":
                assert shared == len(ahead)


def test_the_tool_role_is_asked_about_once(engines: tuple[FakeEngine, FakeEngine]) -> None:
    large, _ = engines
    made = renderer(large)
    for _ in range(3):
        made.prompt(Written(TOOL_TALK, "assistant", ""))
    assert len(large.sent("/detokenize")) == 1


def test_one_refused_chat_does_not_make_the_next_a_guess(engines: tuple[FakeEngine, FakeEngine]) -> None:
    large, _ = engines
    made = renderer(large)
    answer = large.answer

    def refusing(path: str, body: dict[str, Any]) -> Any:
        if "bad" in str(body):
            raise ValueError("no")
        return answer(path, body)

    large.answer = refusing  # type: ignore[method-assign]
    assert made.prompt(Written(({"role": "user", "content": "bad"},), "assistant", "")).text == "USER:bad\nASSISTANT:"
    assert made.prompt(Written(TOOL_TALK[:1], "assistant", "")).ids is not None


def test_turns_alternate() -> None:
    messages = [
        {"role": role, "content": str(number)}
        for number, role in enumerate(["system", "user", "tool", "assistant", "assistant", "user"])
    ]
    assert in_turns(messages) == [
        {"role": "user", "content": "0\n\n1\n\n2"},
        {"role": "assistant", "content": "3\n\n4"},
        {"role": "user", "content": "5"},
    ]
