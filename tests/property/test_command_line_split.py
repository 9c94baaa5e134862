"""What a user types for the engine reaches it word for word; our flags are taken out wherever they stand."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from agentinfer.config import AgentInferConfig, all_options
from agentinfer.runtime.arguments import split_command_line

# Words as SGLang's command lines have them, and as nobody should type them.
ENGINE_WORDS = st.one_of(
    st.sampled_from(
        ["--tp", "2", "--port=1", "-1", "-0.5", "--model-path", "a b", "", "-", "-x", '{"a": -1}', "--no-x"]
    ),
    st.text(max_size=8).filter(lambda word: not word.startswith("--c")),
    st.text(alphabet="-agentifr", max_size=9).map(lambda word: "--" + word),
).filter(lambda word: word != "--" and not word.startswith(("--agentinfer-", "--no-agentinfer-")))

OUR_FLAGS = st.sampled_from(
    [
        ("--agentinfer-max-sessions", "7"),
        ("--agentinfer-max-sessions=7",),
        ("--agentinfer-record", "f"),
        ("--agentinfer-sessions",),
        ("--agentinfer-forced-replay",),
    ]
)


@given(st.lists(st.one_of(ENGINE_WORDS.map(lambda word: (word,)), OUR_FLAGS.map(lambda flags: (*flags, None)))))
def test_engine_words_pass_in_order(pieces: list[tuple[str | None, ...]]) -> None:
    argv = [word for piece in pieces for word in piece if word is not None]
    engine = [piece[0] for piece in pieces if piece[-1] is not None]
    line = split_command_line(argv, {})
    assert list(line.engine_argv) == engine
    assert line.resolved.config.sessions.enabled


@given(st.data())
def test_configuration_reaches_child_processes_unchanged(data: st.DataObject) -> None:
    flags: list[str] = []
    for option in all_options().values():
        if option.kind is str and data.draw(st.booleans()):
            any_text = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20)
            text = st.sampled_from(option.choices) if option.choices else any_text
            flags.append(f"{option.flag}={data.draw(text)}")
        elif option.kind is int:
            flags.append(f"{option.flag}={data.draw(st.integers(int(option.low or 0), int(option.high or 10**6)))}")
        elif option.kind is float:
            flags.append(f"{option.flag}={data.draw(st.floats(float(option.low or 0), float(option.high or 1e9)))!r}")
    config = split_command_line(flags, {}).resolved.config
    assert AgentInferConfig.from_json(config.to_json()) == config
