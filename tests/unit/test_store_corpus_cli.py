"""`agentinfer corpus` as an operator meets it: tables, files, exit status, and what it says about bad input."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from agentinfer import cli
from agentinfer.commands.corpus import recorded
from agentinfer.replay.traces import read_trace
from agentinfer.spec_sam.store import ContextStore, StoreOptions
from tests.agent_sessions import SYSTEM, assistant, call, generated_sessions, tool, user

TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% for c in m.tool_calls or [] %}"
    "[{{ c.function.name }} {{ c.function.arguments.command }}]{% endfor %}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)


@pytest.fixture
def model(tmp_path) -> Path:
    """A model folder with a byte-level tokenizer and a chat template, as transformers loads it."""
    pytest.importorskip("transformers")
    tokenizers = pytest.importorskip("tokenizers")
    folder = tmp_path / "model"
    folder.mkdir()
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: i for i, token in enumerate(alphabet)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture
def trace(tmp_path) -> Path:
    path = tmp_path / "sessions.jsonl"
    sessions = generated_sessions(num_sessions=5, num_turns=4, seed=1)
    path.write_text("".join(json.dumps({"id": f"s{i}", "messages": m}) + "\n" for i, m in enumerate(sessions)))
    return path


@pytest.fixture
def filled(tmp_path) -> Path:
    path = tmp_path / "store"
    with ContextStore(path, "tokenizer.json:abc") as store:
        for n in range(20):
            store.add(f"tenant{n % 2}", f"s{n // 4}", n, [*range(60), n], [n, n + 1])
        useful = store.contexts()[3]
        store.credit(useful.id, 12.5)
    return path


def everything(path):
    """What an export has to keep."""
    with ContextStore(path, None, read_only=True) as store:
        return [
            (
                (c.namespace, c.session, c.turn, c.shared, c.response_start, c.added_unix_s),
                store.tokens(c.id).tolist(),
                store.text(c.id).tolist(),
                pytest.approx(store.usefulness(c.id), rel=1e-3),
            )
            for c in store.contexts()
        ]


def corpus(*words) -> int:
    return cli.main(["corpus", *map(str, words)])


def test_recorded_sessions_are_stored_as_the_model_saw_them(tmp_path, model, trace, capsys) -> None:
    store_path = tmp_path / "store"
    assert corpus("import", "--store", store_path, "--model", model, trace) == 0
    assert "5 sessions stored" in capsys.readouterr().out
    encode = recorded.ModelTokenizer(str(model))
    session = read_trace(str(trace)).sessions[2]
    with ContextStore(store_path, None, read_only=True) as store:
        last = store.contexts("default", session.id)[-1]
        assert last.turn == len(session.turns) - 1
        whole = encode.render([recorded._for_template(m) for m in session.messages], [], is_prompt=False)
        assert store.text(last.id).tolist() == encode.encode(whole)
        told = encode.encode(whole)[-(last.num_tokens - last.response_start) :]
        assert store.tokens(last.id)[last.response_start :].tolist() == told
    assert corpus("import", "--store", store_path, "--model", model, trace) == 0
    assert "0 sessions stored in 0 contexts; 5 were there already" in capsys.readouterr().out


def test_turns_are_rendered_with_call_arguments_as_objects_and_history_that_changes() -> None:
    class Letters:
        """A template that shows thoughts only in the last message: earlier text changes from turn to turn."""

        def render(self, messages, tools, is_prompt):
            parts = [f"{m['content']}{m.get('reasoning_content', '') if m is messages[-1] else ''};" for m in messages]
            arguments = [c["function"]["arguments"] for m in messages for c in m.get("tool_calls", ())]
            assert all(isinstance(a, dict) for a in arguments)
            return "".join(parts)

        def encode(self, text):
            return [ord(letter) for letter in text]

    messages = [SYSTEM, user("a"), assistant("b", call("1", command="ls")), tool("1", "c"), assistant("d")]
    messages[2]["reasoning_content"] = "thought"
    line = json.dumps({"id": "x", "messages": messages})
    path = Path(__file__).with_name("unused")
    from agentinfer.replay.traces import openai_lines
    from agentinfer.replay.traces.files import TraceFile

    (session,) = openai_lines.read(TraceFile(path, "", line.encode()))
    first, second = recorded.turns(session, Letters())
    text = "You are a careful agent.;a;"
    assert "".join(map(chr, np.concatenate([first.prompt, first.response]))) == text + "bthought;"
    assert "".join(map(chr, np.concatenate([second.prompt, second.response]))) == text + "b;c;d;"
    assert "".join(map(chr, second.response)) == "d;"


def test_export_and_import_give_the_same(tmp_path, filled, capsys) -> None:
    out = tmp_path / "corpus.jsonl"
    assert corpus("export", "--store", filled, "--out", out) == 0
    assert "20 contexts written" in capsys.readouterr().out
    assert corpus("import", "--store", tmp_path / "copy", out) == 0
    assert everything(tmp_path / "copy") == everything(filled)
    assert corpus("import", "--store", tmp_path / "copy", out) == 0
    assert "were there already" in capsys.readouterr().out
    assert everything(tmp_path / "copy") == everything(filled)


def test_export_of_one_namespace_to_standard_output(filled, capsysbinary) -> None:
    assert corpus("export", "--store", filled, "--namespace", "tenant1") == 0
    header, *lines = map(json.loads, capsysbinary.readouterr().out.splitlines())
    assert header == {"format": "agentinfer.corpus", "version": 1, "tokenizer": "tokenizer.json:abc"}
    assert len(lines) == 10
    assert {line["namespace"] for line in lines} == {"tenant1"}


def test_an_export_after_eviction_of_a_parent_can_be_imported(tmp_path, filled) -> None:
    with ContextStore(filled, None) as store:
        parents = {c.parent for c in store.contexts()} - {0}
        assert parents
        store.remove([min(parents)])
    out = tmp_path / "corpus.jsonl"
    assert corpus("export", "--store", filled, "--out", out) == 0
    assert corpus("import", "--store", tmp_path / "copy", out) == 0
    assert everything(tmp_path / "copy") == everything(filled)


def test_stats_as_table_and_json(filled, capsys) -> None:
    assert corpus("stats", "--store", filled) == 0
    text = capsys.readouterr().out
    assert "tokenizer tokenizer.json:abc, 2 segments" in text
    assert ["tenant0", "5", "10"] in [line.split()[:3] for line in text.splitlines()]
    assert corpus("stats", "--store", filled, "--json") == 0
    stats = json.loads(capsys.readouterr().out)
    assert sum(row["usefulness"] for row in stats["namespaces"]) == pytest.approx(12.5, rel=1e-3)
    assert stats["size_bytes"] == sum(p.stat().st_size for p in filled.glob("*.segment"))


def test_prune_by_size_keeps_the_useful_one_and_by_namespace_removes_it(filled, capsys) -> None:
    with ContextStore(filled, None, read_only=True) as store:
        useful = max(store.contexts(), key=lambda c: store.usefulness(c.id))
    # All are within the grace period of a store, which pruning honours: the oldest go first then.
    assert corpus("prune", "--store", filled, "--max-mb", "0.01") == 0
    assert corpus("prune", "--store", filled, "--older-than", "1h") == 0
    assert "0 contexts removed" in capsys.readouterr().out
    assert corpus("prune", "--store", filled, "--namespace", useful.namespace) == 0
    assert "10 contexts removed" in capsys.readouterr().out
    assert corpus("prune", "--store", filled, "--older-than", "0s") == 0
    assert "10 contexts removed" in capsys.readouterr().out
    assert everything(filled) == []


def test_looking_at_a_store_beyond_the_default_bound_removes_nothing(filled, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr("agentinfer.spec_sam.store.store.StoreOptions", lambda: StoreOptions(max_bytes=4096))
    before = everything(filled)
    assert corpus("prune", "--store", filled, "--older-than", "1h") == 0
    assert corpus("export", "--store", filled, "--out", tmp_path / "out") == 0
    assert everything(filled) == before


def test_verify_names_file_and_offset_and_changes_nothing(filled, capsys) -> None:
    assert corpus("verify", "--store", filled) == 0
    assert "ok  2 segments, 20 contexts" in capsys.readouterr().out
    segment = sorted(filled.glob("*.segment"))[1]
    data = bytearray(segment.read_bytes())
    data[len(data) // 2] ^= 1
    segment.write_bytes(data)
    assert corpus("verify", "--store", filled) == 1
    printed = capsys.readouterr()
    assert f"corrupt: {segment}: offset " in printed.err
    assert "checksum" in printed.err
    assert "1 faults" in printed.out
    assert segment.read_bytes() == data


def test_verify_takes_no_record_under_way_for_damage(filled, capsys) -> None:
    with ContextStore(filled, None):
        segment = sorted(filled.glob("*.segment"))[0]
        data = segment.read_bytes()
        segment.write_bytes(data + data[200:230])
        assert corpus("verify", "--store", filled) == 0
        assert "being written" in capsys.readouterr().out
        segment.write_bytes(data)
    segment.write_bytes(data + data[200:230])
    assert corpus("verify", "--store", filled) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("stats", "--store", "{tmp}"), "expected the folder of a context store, but it holds"),
        (("stats", "--store", "{tmp}/none"), "no such folder"),
        (("prune", "--store", "{tmp}/none", "--max-mb", "1"), "no such folder"),
        (("prune", "--store", "{store}"), "nothing to prune by; give --max-mb, --older-than or --namespace"),
        (
            ("prune", "--store", "{store}", "--namespace", "x"),
            "no namespace 'x' is stored; there are: tenant0, tenant1",
        ),
        (("export", "--store", "{store}", "--namespace", "x"), "no namespace 'x' is stored"),
        (("export", "--store", "{store}", "--out", "{tmp}/no/where"), "cannot be written: No such file"),
        (("import", "--store", "{tmp}/new", "{tmp}/none.jsonl"), "cannot be read: No such file"),
        (("import", "--store", "{tmp}/new", "{trace}"), "name the model: --model"),
        (("import", "--store", "{tmp}/new", "--model", "{tmp}", "{trace}"), "no tokenizer there"),
        (("import", "--store", "{store}", "{other}"), "are of tokenizer tokenizer.json:abc, expected else"),
        (("import", "--store", "{tmp}/new", "{later}"), "expected agentinfer.corpus version 1"),
        (("import", "--store", "{tmp}/new", "{broken}"), "broken.jsonl:2: tokens: expected a list of 32-bit token ids"),
    ],
)
def test_bad_input_is_answered_in_words(tmp_path, filled, trace, capsys, words, message) -> None:
    header = {"format": "agentinfer.corpus", "version": 1, "tokenizer": "else"}
    numbers = {"id": 1, "turn": 0, "parent": 0, "shared": 0, "response_start": 0, "added_unix_s": 1, "usefulness": 0}
    line = {"namespace": "n", "session": "s", **numbers, "tokens": [1]}
    files = {"other": [header, line], "later": [header | {"version": 2}], "broken": [header, line | {"tokens": ["a"]}]}
    names = {"tmp": tmp_path, "store": filled, "trace": trace}
    for name, lines in files.items():
        names[name] = tmp_path / f"{name}.jsonl"
        names[name].write_text("\n".join(map(json.dumps, lines)))
    before = everything(filled)
    assert corpus(*(word.format(**names) for word in words)) == 1
    assert message in capsys.readouterr().err
    assert everything(filled) == before


@pytest.mark.parametrize(
    "words", [("--max-mb", "-1"), ("--max-mb", "much"), ("--older-than", "3"), ("--older-than", "xd")]
)
def test_bad_sizes_and_ages_are_refused(filled, words, capsys) -> None:
    with pytest.raises(SystemExit):
        corpus("prune", "--store", filled, *words)
    assert "expected" in capsys.readouterr().err


def test_a_store_that_a_server_writes_to_can_be_looked_at_but_not_pruned(filled, capsys) -> None:
    with ContextStore(filled, None):
        assert corpus("stats", "--store", filled) == 0
        assert corpus("prune", "--store", filled, "--max-mb", "1") == 1
        assert "there can be one writer" in capsys.readouterr().err
