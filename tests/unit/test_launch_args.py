"""Splitting a command line into ours and the engine's, and what we add to the engine's part."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from agentinfer.config import AgentInferConfig, RecordConfig, SessionsConfig
from agentinfer.errors import ConfigError
from agentinfer.runtime.arguments import (
    QuietParser,
    completing_flags,
    engine_command_line,
    engine_options_given,
    split_command_line,
)
from agentinfer.runtime.launch import refuse_bypassed_http

ON = AgentInferConfig()
OFF = AgentInferConfig(sessions=SessionsConfig(sessions=False))


def engine_parser() -> QuietParser:
    """A few options in the shapes that SGLang's have: aliases, types, choices, switches, lists, deprecated ones."""

    class Deprecated(argparse.Action):
        def __call__(self, parser, namespace, values, option_string=None) -> None:
            sys.stdout.write(f"{option_string} is deprecated\n")
            setattr(namespace, self.dest, True)

    parser = QuietParser()
    parser.add_argument("--model-path", "--model", required=True)
    parser.add_argument("--tokenizer-path")
    parser.add_argument("--speculative-draft-model-path", "--speculative-draft-model")
    parser.add_argument("--served-model-name")
    parser.add_argument("--tool-call-parser", choices=["qwen", "llama3"])
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--port", type=int, default=30000)
    parser.add_argument("--json-model-override-args", default="{}")
    parser.add_argument("--lora-paths", nargs="*")
    parser.add_argument("--enable-metrics", action="store_true")
    parser.add_argument("--enable-cache-report", action="store_true")
    parser.add_argument("--old-switch", action=Deprecated, nargs=0, default=False)
    parser.add_argument("--config")
    return parser


def folder_of(path: str, dtype: str) -> str:
    return f"/cache/{path.removeprefix('embedded:')}-{dtype}"


def complete(argv: list[str], config: AgentInferConfig = OFF) -> tuple[list[str], list[str]]:
    line = split_command_line(argv, {})
    return completing_flags(engine_options_given(line, engine_parser()), config, folder_of)


@pytest.mark.parametrize(
    ("argv", "engine"),
    [
        ([], []),
        (["--model-path", "m", "--port=1"], ["--model-path", "m", "--port=1"]),
        (["--agentinfer-record", "f", "--port", "1"], ["--port", "1"]),
        (["--port", "1", "--agentinfer-record=f"], ["--port", "1"]),
        (
            ["--lora-paths", "a", "b", "--no-agentinfer-sessions", "--port", "-1"],
            ["--lora-paths", "a", "b", "--port", "-1"],
        ),
        (["--json-model-override-args", '{"a": -1}'], ["--json-model-override-args", '{"a": -1}']),
        (["--agentinfer-rec", "f"], ["--agentinfer-rec", "f"]),
        (["--agent"], ["--agent"]),
    ],
    ids=["nothing", "theirs", "ours first", "ours last", "ours between", "json", "no abbreviation", "no prefix"],
)
def test_engine_gets_its_part_in_order_and_unchanged(argv: list[str], engine: list[str]) -> None:
    assert list(split_command_line(argv, {"AGENTINFER_DISABLE": "record"}).engine_argv) == engine


def test_bad_value_of_ours_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"--agentinfer-max-sessions: got '0', expected an integer from 1"):
        split_command_line(["--agentinfer-max-sessions", "0"], {})


def test_flag_of_ours_without_its_value_is_refused() -> None:
    with pytest.raises(ConfigError, match="--agentinfer-record: expected one argument"):
        split_command_line(["--agentinfer-record"], {})


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--modle-path", "m"], "unknown flag --modle-path. Did you mean --model-path"),
        (["--agentinfer-recrod", "f"], "unknown flag --agentinfer-recrod. Did you mean --agentinfer-record"),
        (["--agentinfer-recrod=f"], "unknown flag --agentinfer-recrod. Did you mean --agentinfer-record"),
        (["--xyzzy"], "unknown flag --xyzzy. All flags:"),
        (["--port", "x"], "argument --port: invalid int value: 'x'"),
        (["--tool-call-parser", "x"], "argument --tool-call-parser: invalid choice"),
        (["stray"], "unexpected argument 'stray'"),
    ],
)
def test_flag_that_nobody_knows_is_answered_with_near_ones(argv: list[str], said: str) -> None:
    line = split_command_line(argv, {})
    with pytest.raises(ConfigError) as refused:
        engine_options_given(line, engine_parser())
    assert said in str(refused.value)


@pytest.mark.parametrize(
    ("argv", "given"),
    [
        ([], {}),
        (["--model", "m"], {"model_path": "m"}),
        (["--model-pa", "m"], {"model_path": "m"}),
        (["--enable-metrics"], {"enable_metrics": True}),
        (["--old-switch"], {"old_switch": True}),
    ],
    ids=["nothing", "alias", "abbreviation", "switch", "deprecated"],
)
def test_only_what_the_user_set_counts_as_given(argv: list[str], given: dict[str, object], capsys) -> None:
    assert engine_options_given(split_command_line(argv, {}), engine_parser()) == given
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("argv", "flags"),
    [
        (["--model-path", "m"], []),
        (["--model-path", "m", "--tokenizer-path", "embedded:b"], ["--tokenizer-path", "/cache/b-bfloat16"]),
        (
            ["--model-path", "m", "--speculative-draft-model", "embedded:b"],
            ["--speculative-draft-model-path", "/cache/b-bfloat16"],
        ),
        (
            ["--model", "embedded:a", "--dtype", "float32"],
            ["--model-path", "/cache/a-float32", "--served-model-name", "a", "--tool-call-parser", "qwen"],
        ),
        (
            [
                "--model-path",
                "embedded:a",
                "--dtype",
                "half",
                "--served-model-name",
                "n",
                "--tool-call-parser",
                "llama3",
            ],
            ["--model-path", "/cache/a-float16"],
        ),
        (
            ["--dtype", "auto"],
            [
                *("--model-path", "/cache/smollm2-135m-bfloat16"),
                *("--served-model-name", "smollm2-135m", "--tool-call-parser", "qwen"),
            ],
        ),
    ],
    ids=["plain path", "tokenizer", "draft by alias", "embedded float32", "user's own choices stay", "no model"],
)
def test_embedded_models_are_resolved_wherever_a_path_is_taken(argv: list[str], flags: list[str]) -> None:
    assert complete(argv)[0] == flags


def test_default_model_and_its_settings_are_said() -> None:
    notes = complete([])[1]
    assert notes[0] == "no --model-path was given: serving the embedded model smollm2-135m"
    assert "--tool-call-parser qwen" in notes[1]
    assert complete(["--model-path", "m"])[1] == []


@pytest.mark.parametrize(
    ("argv", "config", "flags"),
    [
        ([], ON, ["--enable-metrics", "--enable-cache-report"]),
        (["--enable-metrics"], ON, ["--enable-cache-report"]),
        ([], OFF, []),
    ],
    ids=["sessions bring both", "what is there stays", "off means absent"],
)
def test_sessions_bring_metrics_and_the_cache_report(argv, config, flags) -> None:
    assert complete(["--model-path", "m", *argv], config)[0] == flags


@pytest.fixture
def serve_yaml(tmp_path: Path) -> Path:
    path = tmp_path / "serve.yaml"
    path.write_text(
        "model: embedded:a\nagentinfer-max-sessions: 5\nenable-metrics: false\nport: 7\nagentinfer_record: out.jsonl\n"
    )
    return path


@pytest.mark.parametrize("spelling", ["two words", "one word"])
def test_config_file_is_split_like_the_command_line(serve_yaml: Path, spelling: str) -> None:
    argv = ["--config", str(serve_yaml)] if spelling == "two words" else [f"--config={serve_yaml}"]
    line = split_command_line([*argv, "--agentinfer-max-sessions", "6"], {})
    assert line.resolved.config.sessions.max_sessions == 6
    assert line.resolved.config.record == RecordConfig("out.jsonl")
    assert line.resolved.sources["record"] == f"agentinfer-record in {serve_yaml}"
    given = engine_options_given(line, engine_parser())
    assert given == {"config": str(serve_yaml), "model_path": "embedded:a", "enable_metrics": False, "port": 7}
    flags, _ = completing_flags(given, line.resolved.config, folder_of)
    assert flags[:2] == ["--model-path", "/cache/a-bfloat16"]
    assert "--enable-metrics" not in flags
    with engine_command_line(line, flags) as engine_argv:
        assert engine_argv[0] == "--config"
        assert engine_argv[2:] == flags
        copy = Path(engine_argv[1])
        assert yaml.safe_load(copy.read_text()) == {"model": "embedded:a", "enable-metrics": False, "port": 7}
    assert not copy.exists()


def test_config_file_without_keys_of_ours_is_handed_on_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "theirs.yml"
    path.write_text("port: 7\n")
    line = split_command_line(["--config", str(path), "--port", "8"], {})
    with engine_command_line(line, []) as engine_argv:
        assert engine_argv == ["--config", str(path), "--port", "8"]


@pytest.mark.parametrize("key", ["enable-compress", "enable_compress", "agentinfer-compress"])
def test_compression_is_switched_by_its_short_key_too(tmp_path: Path, key: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"{key}: true\nport: 7\n")
    line = split_command_line(["--config", str(path)], {})
    assert line.resolved.config.compress.enabled
    assert line.resolved.sources["compress"] == f"agentinfer-compress in {path}"
    assert line.engine_file == {"port": 7}
    assert line.file_is_shared


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.json", "{}", "ends in .yaml or .yml"),
        ("a.yaml", "- 1", "got list"),
        ("a.yaml", "a: [", "cannot be read"),
        ("a.yaml", "agentinfer-sesions: true", "Did you mean agentinfer-sessions"),
        ("a.yaml", "agentinfer-max-sessions: 0", "agentinfer-max-sessions in"),
        ("a.yaml", "enable-compress: perhaps", "agentinfer-compress in"),
        ("a.yaml", "enable-compress: true\nagentinfer-compress: true", "another word for agentinfer-compress"),
        ("a.yaml", "enable-compress: true\nenable_compress: true", "another word for agentinfer-compress"),
    ],
)
def test_bad_config_file_is_refused(tmp_path: Path, name: str, content: str, said: str) -> None:
    path = tmp_path / name
    path.write_text(content)
    with pytest.raises(ConfigError) as refused:
        split_command_line(["--config", str(path)], {})
    assert said in str(refused.value)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize(
    "argv", [["--config"], ["--config", "a.yaml", "--config", "b.yaml"], ["--config", "gone.yaml"]]
)
def test_config_without_one_readable_file_is_refused(argv: list[str]) -> None:
    with pytest.raises(ConfigError, match="--config"):
        split_command_line(argv, {})


@pytest.mark.parametrize(
    ("key", "meant"), [("modle-path", "model-path"), ("model_path", "model-path"), ("enable_metrics", "enable-metrics")]
)
def test_unknown_engine_key_in_a_file_is_refused_with_near_ones(tmp_path: Path, key: str, meant: str) -> None:
    path = tmp_path / "a.yaml"
    path.write_text(f"{key}: m\n")
    with pytest.raises(ConfigError, match=f"unknown key {key}. Did you mean {meant}"):
        engine_options_given(split_command_line(["--config", str(path)], {}), engine_parser())


def server_args(**fields: object) -> SimpleNamespace:
    plain = {
        "tokenizer_worker_num": 1,
        "smg_grpc_mode": False,
        "grpc_mode": False,
        "encoder_only": False,
        "use_ray": False,
    }
    return SimpleNamespace(**{**plain, **fields})


@pytest.mark.parametrize(
    ("args", "is_rust", "named"),
    [
        (server_args(tokenizer_worker_num=2), False, "--tokenizer-worker-num"),
        (server_args(smg_grpc_mode=True), False, "--grpc-mode"),
        (server_args(grpc_mode=True), False, "--grpc-mode"),
        (server_args(encoder_only=True), False, "--encoder-only"),
        (server_args(use_ray=True), False, "--use-ray"),
        (server_args(), True, "SGLANG_RUST_SERVER"),
    ],
)
def test_server_without_our_http_layer_is_refused_only_while_a_feature_needs_it(args, is_rust, named) -> None:
    with pytest.raises(ConfigError, match=named) as refused:
        refuse_bypassed_http(args, is_rust, ON)
    assert "AGENTINFER_DISABLE=all" in str(refused.value)
    refuse_bypassed_http(args, is_rust, OFF)


def test_plain_http_server_is_not_refused() -> None:
    refuse_bypassed_http(server_args(), False, ON)
