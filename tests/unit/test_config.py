"""Configuration: one source of truth for flags, variables, file keys and docs; every bad value is refused by name."""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
from pathlib import Path

import pytest

from agentinfer.config import (
    FEATURES,
    OTHER_VARIABLES,
    AgentInferConfig,
    RecordConfig,
    SessionsConfig,
    add_flags,
    all_options,
    resolve_config,
)
from agentinfer.config.document import documentation
from agentinfer.errors import ConfigError

ROOT = Path(__file__).parents[2]


def resolve(*flags: str, environ: dict[str, str] | None = None, file: dict[str, object] | None = None):
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser)
    return resolve_config(vars(parser.parse_args(flags)), environ or {}, file or {}, "serve.yaml")


def test_defaults_when_nobody_sets_anything() -> None:
    resolved = resolve()
    assert resolved.config == AgentInferConfig()
    assert set(resolved.sources.values()) == {"default"}


@pytest.mark.parametrize(
    ("flags", "environ", "file", "value", "source"),
    [
        (
            ["--agentinfer-max-sessions=1"],
            {"AGENTINFER_MAX_SESSIONS": "2"},
            {"agentinfer-max-sessions": 3},
            1,
            "--agent",
        ),
        ([], {"AGENTINFER_MAX_SESSIONS": "2"}, {"agentinfer-max-sessions": 3}, 2, "AGENTINFER_MAX_SESSIONS"),
        (
            [],
            {"AGENTINFER_MAX_SESSIONS": ""},
            {"agentinfer-max-sessions": 3},
            3,
            "agentinfer-max-sessions in serve.yaml",
        ),
        ([], {}, {"agentinfer_max_sessions": "3"}, 3, "agentinfer-max-sessions in serve.yaml"),
        ([], {}, {}, 10_000, "default"),
    ],
    ids=["flag wins", "then variable", "empty variable is unset", "then file", "then default"],
)
def test_precedence(flags, environ, file, value, source) -> None:
    resolved = resolve(*flags, environ=environ, file=file)
    assert resolved.config.sessions.max_sessions == value
    assert resolved.sources["max_sessions"].startswith(source)


@pytest.mark.parametrize(
    ("environ", "file", "names"),
    [
        ({"AGENTINFER_MAX_SESSIONS": "0"}, {}, ["AGENTINFER_MAX_SESSIONS", "'0'", "from 1 to 10,000,000"]),
        ({"AGENTINFER_MAX_SESSIONS": "many"}, {}, ["AGENTINFER_MAX_SESSIONS", "'many'", "an integer"]),
        ({"AGENTINFER_MAX_SESSIONS": "1.5"}, {}, ["AGENTINFER_MAX_SESSIONS", "'1.5'"]),
        ({"AGENTINFER_SESSION_EXPIRY_S": "nan"}, {}, ["AGENTINFER_SESSION_EXPIRY_S", "'nan'", "at least 1"]),
        ({"AGENTINFER_SESSION_EXPIRY_S": "inf"}, {}, ["AGENTINFER_SESSION_EXPIRY_S", "'inf'"]),
        ({"AGENTINFER_SESSIONS": "perhaps"}, {}, ["AGENTINFER_SESSIONS", "'perhaps'", "true or false"]),
        ({}, {"agentinfer-max-sessions": True}, ["agentinfer-max-sessions in serve.yaml", "True"]),
        ({}, {"agentinfer-max-sessions": 2.5}, ["agentinfer-max-sessions in serve.yaml", "2.5"]),
        ({}, {"agentinfer-record": ["a"]}, ["agentinfer-record in serve.yaml", "['a']"]),
        ({}, {"agentinfer-record": ""}, ["agentinfer-record in serve.yaml", "non-empty"]),
        ({}, {"agentinfer-sessions": None}, ["agentinfer-sessions in serve.yaml", "None"]),
        (
            {},
            {"agentinfer-max-session": 1},
            ["serve.yaml", "agentinfer-max-session", "Did you mean agentinfer-max-sessions"],
        ),
        ({"AGENTINFER_RECRD": "x"}, {}, ["AGENTINFER_RECRD", "Did you mean AGENTINFER_RECORD"]),
        (
            {"AGENTINFER_DISABLE": "sessions,recrod"},
            {},
            ["AGENTINFER_DISABLE", "'recrod'", "record", "sessions", "all"],
        ),
    ],
)
def test_bad_value_is_refused_naming_source_value_and_range(environ, file, names) -> None:
    with pytest.raises(ConfigError) as refused:
        resolve(environ=environ, file=file)
    for name in names:
        assert name in str(refused.value)


@pytest.mark.parametrize("word", ["1", "true", "YES", "on"])
def test_words_for_true(word: str) -> None:
    assert resolve(environ={"AGENTINFER_FORCED_REPLAY": word}).config.forced_replay.enabled


@pytest.mark.parametrize("word", ["0", "False", "no", "off"])
def test_words_for_false(word: str) -> None:
    assert not resolve(environ={"AGENTINFER_SESSIONS": word}).config.sessions.enabled


def test_disable_wins_over_a_flag_and_says_so() -> None:
    resolved = resolve("--agentinfer-record", "f", environ={"AGENTINFER_DISABLE": " record "})
    assert resolved.config.enabled_features == ("sessions",)
    assert resolved.sources["record"] == "AGENTINFER_DISABLE"


def test_disable_all_leaves_nothing_on() -> None:
    flags = ("--agentinfer-record", "f", "--agentinfer-forced-replay")
    assert resolve(*flags, environ={"AGENTINFER_DISABLE": "all"}).config.enabled_features == ()


@pytest.mark.parametrize("flags", [("--agentinfer-record", "f"), ("--agentinfer-forced-replay",)])
def test_feature_whose_need_is_off_is_refused_with_both_ways_out(flags: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match=r"needs sessions.*--agentinfer-sessions.*AGENTINFER_DISABLE=sessions,"):
        resolve("--no-agentinfer-sessions", *flags)


def test_what_needs_a_feature_is_named_with_it() -> None:
    config = AgentInferConfig(record=RecordConfig("f"))
    assert config.needed_by("sessions") == ("sessions", "record")
    assert config.needed_by("record") == ("record",)


def test_json_round_trip_reaches_child_processes_unchanged() -> None:
    config = resolve("--agentinfer-record", "ü f", "--agentinfer-session-expiry-s", "1.5").config
    assert AgentInferConfig.from_env({"AGENTINFER_CONFIG": config.to_json()}) == config
    assert AgentInferConfig.from_env({}) is None
    assert AgentInferConfig.from_env({"AGENTINFER_CONFIG": ""}) is None


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "{}", json.dumps({**dataclasses.asdict(AgentInferConfig()), "later": {}})],
    ids=["no json", "list", "missing", "unknown feature"],
)
def test_foreign_json_is_refused_naming_the_variable(text: str) -> None:
    with pytest.raises(ConfigError, match="AGENTINFER_CONFIG"):
        AgentInferConfig.from_json(text)


def test_unknown_option_in_json_is_refused() -> None:
    data = dataclasses.asdict(AgentInferConfig())
    data["sessions"]["later"] = 1
    with pytest.raises(ConfigError, match="later"):
        AgentInferConfig.from_json(json.dumps(data))


def test_direct_construction_is_checked_too() -> None:
    with pytest.raises(ConfigError, match=r"SessionsConfig\.max_sessions: got -1"):
        SessionsConfig(max_sessions=-1)


def test_flags_are_never_abbreviated_into_ours() -> None:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    add_flags(parser)
    assert parser.parse_known_args(["--agentinfer-rec", "x"])[1] == ["--agentinfer-rec", "x"]


def test_option_names_are_unique_and_each_feature_begins_with_its_switch() -> None:
    names = [each.name for feature in FEATURES.values() for each in feature.options()]
    assert len(names) == len(set(names))
    assert [feature.switch().name for feature in FEATURES.values()] == list(FEATURES)


def test_documentation_is_up_to_date() -> None:
    page = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert page == documentation(), "run: python -m agentinfer.config.document > docs/configuration.md"


def test_every_variable_in_the_sources_is_documented() -> None:
    known = {each.variable for each in all_options().values()} | set(OTHER_VARIABLES)
    sources = [*ROOT.glob("agentinfer/**/*.py"), *ROOT.glob("tests/**/*.py")]
    read = re.compile(r"environ(?:\.get\(|\[|\.setdefault\(|\.pop\()\s*\"(AGENTINFER_[A-Z_]+)\"")
    used = {name for path in sources for name in read.findall(path.read_text(encoding="utf-8"))}
    assert used, "the pattern finds no variable at all"
    assert used <= known
