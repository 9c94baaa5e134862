"""`agentinfer compress`: its figures, its page, its errors; and the tokens against the whole template."""

from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from agentinfer.cli import main
from agentinfer.commands.compress.html import page
from agentinfer.commands.compress.sessions import PrefixCache, compressed
from agentinfer.commands.compress.tokens import PromptTokens
from agentinfer.compress.extractive import ExtractiveDistiller
from agentinfer.compress.settings import Settings
from agentinfer.replay.traces import read_trace
from tests.template_rendering import render

EVIL = "<script>alert('x')</script> & </pre>"


def line(name: str, num_steps: int, first_result: str = "") -> dict[str, Any]:
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": "You are an agent."},
        {"role": "user", "content": "Find <b>it</b>."},
    ]
    for step in range(num_steps):
        function = {"name": "read", "arguments": json.dumps({"path": f"src/f{step}.py"})}
        call = {"id": f"c{step}", "type": "function", "function": function}
        messages.append({"role": "assistant", "content": f"I read f{step}.", "tool_calls": [call]})
        rows = [f"{n}: def load_{step}_{n}(limit={n * 7}) reads src/part_{step}_{n}.py" for n in range(12)]
        text = "\n".join([first_result if step == 0 else f"file {step}", *rows])
        messages.append({"role": "tool", "tool_call_id": f"c{step}", "content": text})
    messages.append({"role": "assistant", "content": "It is done."})
    return {"id": name, "messages": messages}


@pytest.fixture
def trace(tmp_path: Path) -> str:
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(each) + "\n" for each in (line("long", 24, EVIL), line("short", 2))))
    return str(path)


def run(tmp_path: Path, trace: str, *arguments: str) -> Any:
    out = tmp_path / "out.json"
    assert main(["compress", trace, "--threshold-tokens", "1500", *arguments, "--json", str(out)]) == 0
    return json.loads(out.read_text())


def test_the_record_says_what_was_taken_when_and_what_is_saved(tmp_path: Path, trace: str, capsys: Any) -> None:
    record = run(tmp_path, trace, "--turns")
    long, short = record["sessions"]
    assert record["trace"]["name"] == "trace.jsonl"
    assert record["settings"]["threshold_tokens"] == 1500
    assert (short["swaps"], short["taken"]) == (0, [])
    assert short["tokens_before"] == short["tokens_after"]
    assert long["swaps"] == sum("swapped" in turn for turn in long["turns"]) >= 1
    assert long["taken"][0] == "o3"
    assert long["last_prompt_after"] < 0.7 * long["last_prompt_before"]
    assert long["tokens_after"] == sum(turn["tokens_after"] for turn in long["turns"])
    swaps = [turn["swapped"] for turn in long["turns"] if "swapped" in turn]
    assert all(0.0 < swap["warm_share"] <= 1.0 for swap in swaps)
    notes = [turn["note"] for turn in long["turns"] if "note" in turn]
    planned = {name for turn in long["turns"] for name in turn.get("started", {}).get("taken", ())}
    assert {fact["source"] for note in notes for fact in note["facts"]} <= planned
    assert set(long["taken"]) <= planned
    said = capsys.readouterr().out
    assert "swap, " in said
    assert record["token_counts"] in said


def test_a_session_can_be_chosen_and_a_wrong_one_is_named(tmp_path: Path, trace: str, capsys: Any) -> None:
    assert [each["session"] for each in run(tmp_path, trace, "--session", "short")["sessions"]] == ["short"]
    assert main(["compress", trace, "--session", "other"]) == 1
    assert "--session other: not in" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["missing.jsonl"], "missing.jsonl: cannot be read"),
        (["{trace}", "--html", "no/x.html"], "folder does not exist"),
    ],
)
def test_bad_input_is_named(trace: str, arguments: list[str], complaint: str, capsys: Any) -> None:
    assert main(["compress", *(each.format(trace=trace) for each in arguments)]) == 1
    assert complaint in capsys.readouterr().err


_VOID = frozenset(("meta", "br", "hr", "link", "img", "input"))
_BLOCKS = frozenset(("p", "div", "pre", "table", "details", "h1", "h2"))
_LINKING = ("src", "srcset", "href", "action", "data", "poster", "formaction", "http-equiv")
_USED = frozenset(
    "html head meta title style body h1 h2 p table tr th td div span pre details summary".split()  # noqa: SIM905
)


class Page(HTMLParser):
    """Tags that a reader of the page would meet, and the text of each kind of message."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.kinds: list[str] = []
        self.words: list[str] = []
        self.links: list[str] = []
        self.faults: list[str] = []
        self.active: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()
        self.faults += [f"{tag} is never closed" for tag in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        given = dict(attrs)
        self.kinds += (given.get("class") or "").split()
        self.links += [value for name in _LINKING if (value := given.get(name))]
        self.active += [name for name in given if name.startswith("on") or name == "style"]
        if "p" in self._open and tag in _BLOCKS:
            self.faults.append(f"{tag} ends a p without its end tag")
        if tag not in _VOID:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.faults.append(f"</{tag}> at {self.getpos()} closes what is not open, or not the last")

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def test_the_page_shows_both_histories_and_runs_nothing(tmp_path: Path, trace: str) -> None:
    out = tmp_path / "page.html"
    num_swaps = run(tmp_path, trace, "--html", str(out), "--session", "long")["sessions"][0]["swaps"]
    text = out.read_text()
    shown = Page(text)
    assert "script" not in shown.tags
    assert "b" not in shown.tags
    assert shown.links == [], "it needs nothing but itself"
    assert "url(" not in text.partition("</style>")[0]
    assert "@import" not in text.partition("</style>")[0]
    assert shown.active == []
    assert shown.faults == []
    assert any(EVIL in words for words in shown.words), "escaped, so that it reads as it was"
    assert any("Find <b>it</b>." in words for words in shown.words)
    assert shown.kinds.count("note") == num_swaps >= 1
    taken = shown.kinds.count("taken")
    assert taken % 2 == 0, "left what it was, right its id"
    assert taken >= 4
    assert any(words.strip() == "[o3]" for words in shown.words)


@pytest.mark.parametrize(
    "text", [EVIL, "</details></div><div onclick='x()'>", "<!-- ", "]]> &amp;", "\0 \x1b[31m", '">']
)
def test_whatever_a_trace_says_stays_text(tmp_path: Path, text: str) -> None:
    given = line(text, 24, text)
    given["messages"][0]["content"] = text * 300
    for message in given["messages"]:
        for call in message.get("tool_calls", ()):
            call["function"] = {"name": text, "arguments": json.dumps({text: text})}
    path, out = tmp_path / "trace.jsonl", tmp_path / "page.html"
    path.write_text(json.dumps(given) + "\n")
    run(tmp_path, str(path), "--html", str(out))
    shown = Page(out.read_text())
    assert shown.faults == shown.links == shown.active == []
    assert set(shown.tags) <= _USED
    read = text.replace("\0", "\u2400").replace("\x1b", "\u241b")
    assert sum(read in words for words in shown.words) >= 24
    assert all(head in shown.words for head in ("The client's history", "What the model reads"))


def test_a_session_with_nothing_to_take_has_a_page_too(trace: str) -> None:
    short = read_trace(trace).sessions[1]
    found = compressed(short, ExtractiveDistiller().note, Settings(), PromptTokens(None))
    assert "Nothing was worth compressing." in page([found], "estimate")


def test_tokens_are_those_of_the_whole_template(trace: str) -> None:
    from agentinfer.models.catalogue import find_model

    counter = PromptTokens()
    if not counter.is_exact:
        pytest.skip(f"the embedded model is not installed: {counter.source}")
    tools = [{"type": "function", "function": {"name": "read", "parameters": {"type": "object"}}}]
    template = find_model("smollm2-135m").chat_template
    for turn in read_trace(trace).sessions[1].turns:
        messages = json.loads(json.dumps(turn.prompt))
        for message in messages:
            for call in message.get("tool_calls", ()):
                call["function"]["arguments"] = json.loads(call["function"]["arguments"])
        for schemas in (tools, []):
            whole = render(template, messages, tools=schemas or None, add_generation_prompt=True)
            assert counter.prompt(turn.prompt, schemas) == counter.text(whole)


def test_without_the_model_tokens_are_estimated_and_said_to_be() -> None:
    counter = PromptTokens(None)
    assert counter.source.startswith("estimate")
    assert not counter.is_exact
    assert counter.prompt([{"role": "user", "content": "x" * 350}]) == 101 + 8


def test_a_prefix_cache_knows_whole_messages_from_the_beginning() -> None:
    cache = PrefixCache()
    cache.add([b"a", b"b", b"c"])
    cache.add([b"a", b"d"])
    assert cache.cached_tokens([(b"a", 1), (b"b", 10), (b"x", 100)]) == 11
    assert cache.cached_tokens([(b"a", 1), (b"d", 10), (b"c", 100)]) == 11
    assert cache.cached_tokens([(b"b", 1)]) == 0
