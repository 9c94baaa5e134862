"""One command line for two engines: who gets which flag, what is made different, what is refused."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import yaml

from agentinfer.errors import ConfigError
from agentinfer.runtime.arguments import read_config_file, split_command_line
from agentinfer.runtime.collab.command_lines import (
    CommandLines,
    Door,
    Elsewhere,
    EngineLine,
    command_lines,
    suffixed,
)
from agentinfer.runtime.collab.role_flags import canonical

READS_AHEAD = "--agentinfer-prefill-route"
PAIR = ("--model-path", "org/Big", "--small-model-path", "org/Little")


def plan(*argv: str, environ: dict[str, str] | None = None) -> CommandLines:
    resolved = split_command_line(argv, environ or {}).resolved
    return command_lines(argv, read_config_file(argv), resolved, itertools.count(20_001).__next__)


def engine(lines: CommandLines, role: str) -> EngineLine:
    found = lines.engines[role]
    assert isinstance(found, EngineLine)
    return found


def own_words(lines: CommandLines, role: str) -> list[str]:
    """What the engine is given besides what the supervisor always adds."""
    argv = list(engine(lines, role).argv)
    for flag in ("--model-path", "--served-model-name", "--host", "--port"):
        index = argv.index(flag)
        del argv[index : index + 2]
    if READS_AHEAD in argv:
        argv.remove(READS_AHEAD)
    return argv


def test_each_engine_has_its_model_a_name_and_a_port_of_its_own() -> None:
    lines = plan(*PAIR)
    large, small = engine(lines, "large"), engine(lines, "small")
    assert large.argv == (
        *("--model-path", "org/Big", "--served-model-name", "org/Big"),
        *("--host", "127.0.0.1", "--port", "20001", READS_AHEAD),
    )
    assert small.argv == (
        *("--model-path", "org/Little", "--served-model-name", "org/Little"),
        *("--host", "127.0.0.1", "--port", "20002", READS_AHEAD),
    )
    assert (small.model_path, small.model, small.base_url) == ("org/Little", "org/Little", "http://127.0.0.1:20002")
    assert lines.door == Door("127.0.0.1", 30_000, None)


@pytest.mark.parametrize(
    ("flags", "large", "small"),
    [
        ("--tp-size 2", "--tp-size 2", "--tp-size 2"),
        ("--tp-size 4 --small-tp-size 1", "--tp-size 4", "--tp-size 1"),
        ("--tp 4 --small-tensor-parallel-size=1", "--tp 4", "--tensor-parallel-size=1"),
        ("--large-page-size 9 --small-page-size=5", "--page-size 9", "--page-size=5"),
        ("--small-enable-metrics --log-level info", "--log-level info", "--log-level info --enable-metrics"),
        ("--lora-paths a b --dtype half", "--dtype half --lora-paths a b", "--dtype half"),
        ('--small-json-model-override-args {"a":-1}', "", '--json-model-override-args {"a":-1}'),
        ("--random-seed -1", "--random-seed -1", "--random-seed -1"),
        ("--schedule-policy agent --enable-compress", *["--schedule-policy agent --enable-compress"] * 2),
        ("--small-schedule-policy agent", "", "--schedule-policy agent"),
        ("--no-agentinfer-sessions --no-agentinfer-collab-warm", *["--no-agentinfer-sessions"] * 2),
        ("--agentinfer-collab-burst-max=4 --agentinfer-max-sessions 3", *["--agentinfer-max-sessions 3"] * 2),
        ("--revision abc --small-revision def", "--revision abc", "--revision def"),
        ("--host 0.0.0.0 --port=81 --ssl-keyfile k --ssl-certfile c", "", ""),
        ("--mem-fraction-static 0.8 --small-mem-fraction-static 0.3", "", ""),
        ("--api-key k", "--api-key k", "--api-key k"),
    ],
    ids=lambda value: value or "nothing",
)
def test_flags_are_for_both_unless_a_role_is_said(flags: str, large: str, small: str) -> None:
    lines = plan(*PAIR, *flags.split())
    assert " ".join(own_words(lines, "large")) == large
    assert " ".join(own_words(lines, "small")) == small


@pytest.mark.parametrize(
    ("flags", "names"),
    [
        (PAIR, ("org/Big", "org/Little")),
        (("--small-model-path", "m", "--model-path", "m"), ("m-large", "m-small")),
        (("--small-model-path", "embedded:smollm2-135m"), ("smollm2-135m-large", "smollm2-135m-small")),
        ((*PAIR, "--served-model-name", "b"), ("b", "org/Little")),
        ((*PAIR, "--large-served-model-name", "b", "--small-served-model-name", "l"), ("b", "l")),
        ((*PAIR, "--served-model-name", "org/Little"), ("org/Little", "org/Little-small")),
    ],
)
def test_names_are_as_sglang_would_give_them_and_never_the_same(flags: tuple[str, ...], names: tuple[str, str]) -> None:
    lines = plan(*flags)
    assert (engine(lines, "large").model, engine(lines, "small").model) == names
    for role, name in zip(("large", "small"), names, strict=True):
        argv = engine(lines, role).argv
        assert argv[argv.index("--served-model-name") + 1] == name
        assert argv.count("--served-model-name") == 1


def test_door_is_the_users_and_engines_keep_the_key() -> None:
    lines = plan(*PAIR, "--host", "0.0.0.0", "--po", "8000", "--api-key", "k", "--small-api-key", "s")
    assert lines.door == Door("0.0.0.0", 8000, "k")
    assert (engine(lines, "large").api_key, engine(lines, "small").api_key) == ("k", "s")


def test_what_memory_is_split_by_is_read_from_both_parts() -> None:
    lines = plan(
        *PAIR, "--tp", "2", "--dp-size", "3", "--dtype", "half", "--small-tp", "1", "--small-base-gpu-id=1",
        "--small-enable-dp-attention", "--mem-fraction-static", "0.8", "--large-mem-fraction-static", "0.5",
        "--small-kv-cache-dtype", "fp8_e5m2", "--chunked-prefill-size", "-1",
    )  # fmt: skip
    large, small = engine(lines, "large"), engine(lines, "small")
    assert (large.num_gpus, large.num_shards, large.base_gpu_id, large.fraction) == (6, 2, None, 0.5)
    assert (small.num_gpus, small.num_shards, small.base_gpu_id, small.fraction) == (1, 1, 1, None)
    assert (large.dtype, small.kv_cache_dtype, large.chunked_prefill_tokens) == ("half", "fp8_e5m2", None)
    assert lines.shared_fraction == 0.8
    assert "--mem-fraction-static" not in large.argv + small.argv


@pytest.mark.parametrize(
    ("flags", "reads_ahead"),
    [
        ([], True),
        (["--no-agentinfer-collab-warm"], False),
        (["--no-agentinfer-sessions"], False),
        (["--no-agentinfer-prefill-route"], False),
    ],
)
def test_engines_can_read_ahead_unless_that_is_off(flags: list[str], reads_ahead: bool) -> None:
    lines = plan(*PAIR, *flags)
    assert [READS_AHEAD in engine(lines, role).argv for role in ("large", "small")] == [reads_ahead] * 2


# ---- files that are written


@pytest.mark.parametrize(
    ("path", "large"),
    [("turns.jsonl", "turns-large.jsonl"), ("/a.b/store", "/a.b/store-large"), ("x/.hidden", "x/.hidden-large")],
)
def test_files_get_the_role_in_their_name(path: str, large: str) -> None:
    assert suffixed(path, "large") == large


def test_no_two_engines_write_one_file_whatever_said_so(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("agentinfer-compress-store: notes\nsmall-agentinfer-sched-latency-file: mine.json\n")
    lines = plan(
        *(*PAIR, "--config", str(config)),
        *("--agentinfer-record=turns.jsonl", "--large-agentinfer-sched-latency-file=l.json"),
        environ={"AGENTINFER_SPEC_STORE": "/data/store"},
    )
    assert own_words(lines, "large") == [
        "--agentinfer-sched-latency-file=l.json",
        *("--agentinfer-record", "turns-large.jsonl", "--agentinfer-spec-store", "/data/store-large"),
        *("--agentinfer-compress-store", "notes-large"),
    ]
    small = own_words(lines, "small")
    assert small[:4] == ["--agentinfer-record", "turns-small.jsonl", "--agentinfer-spec-store", "/data/store-small"]
    assert engine(lines, "small").file == {"agentinfer-sched-latency-file": "mine.json"}
    for role in ("large", "small"):
        assert "agentinfer-compress-store" not in engine(lines, role).file


def test_one_engine_here_keeps_the_files_as_given() -> None:
    lines = plan("--model-path", "m", "--small-base-url", "http://b:1", "--agentinfer-record", "t.jsonl")
    assert "--agentinfer-record" in engine(lines, "large").argv
    assert "t.jsonl" in engine(lines, "large").argv


# ---- the file of --config


def test_config_file_is_split_like_the_command_line(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    content = {
        "model-path": "org/Big",
        "small-model-path": "org/Little",
        "port": 8000,
        "api-key": "k",
        "tp-size": 4,
        "small-tp-size": 1,
        "enable-metrics": True,
        "lora-paths": ["a", "b"],
        "mem-fraction-static": 0.8,
        "agentinfer-max-sessions": 5,
        "agentinfer-collab-burst-max": 4,
        "large-agentinfer-max-sessions": 6,
    }
    config.write_text(yaml.safe_dump(content))
    lines = plan("--config", str(config), "--tp-size", "2")
    large, small = engine(lines, "large"), engine(lines, "small")
    shared = {"api-key": "k", "enable-metrics": True}
    assert large.file == {
        **shared, "model-path": "org/Big", "tp-size": 4, "lora-paths": ["a", "b"], "agentinfer-max-sessions": 6
    }  # fmt: skip
    assert small.file == {**shared, "tp-size": 1, "agentinfer-max-sessions": 5}
    assert "--config" not in large.argv + small.argv
    assert (large.num_gpus, small.num_gpus) == (2, 2)  # a flag wins over the file
    assert (lines.door.port, lines.door.api_key, lines.shared_fraction) == (8000, "k", 0.8)
    assert (large.model_path, large.model, small.model) == ("org/Big", "org/Big", "org/Little")


def test_keys_with_underscores_have_roles_too(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("small_model_path: s\nlarge_agentinfer_record: mine\nagentinfer_record: shared\n")
    lines = plan("--config", str(config))
    assert engine(lines, "small").file == {}
    assert engine(lines, "large").file == {"agentinfer-record": "mine"}
    assert engine(lines, "small").argv[-3:-1] == ("--agentinfer-record", "shared-small")


# ---- engines elsewhere


def test_both_engines_elsewhere_start_nothing() -> None:
    lines = plan(
        "--large-base-url", "http://a:1/v1/", "--small-base-url=https://b", "--small-api-key", "s",
        "--small-served-model-name", "little", "--port", "81", "--api-key", "k", "--agentinfer-max-sessions", "9",
        "--no-agentinfer-check-model",
    )  # fmt: skip
    assert lines.started_here == ()
    assert lines.engines == {
        "large": Elsewhere("large", "http://a:1", None, None),
        "small": Elsewhere("small", "https://b", "little", "s"),
    }
    assert (lines.door.port, lines.door.api_key) == (81, "k")


def test_small_model_may_be_named_by_our_own_option_or_variable() -> None:
    lines = plan("--model-path", "m", environ={"AGENTINFER_COLLAB": "http://b:1"})
    assert lines.engines["small"] == Elsewhere("small", "http://b:1", None, None)
    assert engine(plan("--model-path", "m", "--agentinfer-collab", "s"), "small").model_path == "s"
    assert engine(plan("--model-path", "m", "--small-model", "s"), "small").model_path == "s"


# ---- refusals


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--small-port", "1"], "--small-port: the engines listen on this machine alone"),
        (["--large-host=0.0.0.0"], "The address for clients is --host, without a role"),
        (["stray-first"], "unexpected argument 'stray-first' before the first flag"),
        ([*PAIR, "--nccl-port", "1"], "--nccl-port is one address, and two engines are started"),
        ([*PAIR, "--dist-init-addr", "a:1"], "--dist-init-addr is one address"),
        ([*PAIR, "--grpc-mode"], "--grpc-mode: the model that both speak for needs engines with the OpenAI API"),
        ([*PAIR, "--small-base-url", "http://b"], "--small-model-path and --small-base-url were both given"),
        ([*PAIR, "--large-base-url", "http://b"], "the large model was given twice, here (org/Big) and elsewhere"),
        (["--small-base-url", "b:1"], "--small-base-url b:1: expected a URL that begins with http"),
        (["--small-model-path", "s", "--large-base-url", "b:1"], "--large-base-url b:1: expected a URL"),
        (["--small-base-url", "http://b", "--small-tp-size", "2"], "--small-tp-size was given, but the small"),
        (
            ["--small-base-url", "http://b", "--large-base-url", "http://a", "--tp-size", "2"],
            "--tp-size was given, but both engines are elsewhere",
        ),
        (
            ["--small-base-url", "http://b", "--large-base-url", "http://a", "--agentinfer-record", "r"],
            "--agentinfer-record was given, but both engines are elsewhere",
        ),
        ([*PAIR, "--small-config", "s.yaml"], "--small-config: there is one file, --config, in which small-KEY"),
        ([*PAIR, "--served-model-name", "x", "--small-served-model-name", "x"], "both models were given the name x"),
        ([*PAIR, "--served-model-name", "collab"], "the large model's name is collab, as is that of"),
        ([*PAIR, "--port", "x"], "--port: got 'x', expected an integer"),
        ([*PAIR, "--small-mem-fraction-static", "1.5"], "--mem-fraction-static: got '1.5', expected a number between"),
        ([*PAIR, "--ssl-keyfile", "k"], "--ssl-keyfile and --ssl-certfile: one was given without the other"),
        ([*PAIR, "--enable-ssl-refresh"], "--enable-ssl-refresh has no effect in front of two engines"),
        (
            [*PAIR, "--large-agentinfer-record", "r", "--small-agentinfer-record=r"],
            "--agentinfer-record: both engines were given r, and only one server can write it",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)  # fmt: skip
def test_contradictions_are_refused_by_name(flags: list[str], said: str) -> None:
    argv = flags if any(word.startswith("--small-") for word in flags) else [*flags, "--small-model-path", "s"]
    with pytest.raises(ConfigError) as refused:
        plan(*argv)
    assert said in str(refused.value)


# ---- off


def test_switched_off_by_the_operator_the_large_model_is_served_alone(tmp_path: Path) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text("small-tp-size: 1\nlarge-tp-size: 2\nsmall-model-path: s\ndtype: half\n")
    argv = ["--large-model-path", "b", "--small-tp", "1", "2", "--port", "1", "--config", str(config)]
    line = split_command_line(argv, {"AGENTINFER_DISABLE": "collab"})
    assert not line.resolved.config.collab.enabled
    assert line.engine_argv == ("--model-path", "b", "--port", "1", "--config", str(config))
    assert line.engine_file == {"tp-size": 2, "dtype": "half"}
    assert line.file_is_shared


def test_role_flags_without_a_small_model_are_nobodys() -> None:
    line = split_command_line(["--large-tp-size", "2"], {})
    assert not line.resolved.config.collab.enabled
    assert line.engine_argv == ("--large-tp-size", "2")


@pytest.mark.parametrize(
    ("typed", "first"),
    [
        ("--model", "--model-path"),
        ("--model-pat", "--model-path"),
        ("--modelopt-quant", "--modelopt-quant"),
        ("--tp", "--tp-size"),
        ("--tensor-parallel", "--tp-size"),
        ("--port", "--port"),
        ("--portal", "--portal"),
        ("--nccl-init-addr", "--dist-init-addr"),
        ("--nccl-p", "--nccl-port"),
        ("--dtype", "--dtype"),
        ("--unknown", "--unknown"),
    ],
)
def test_spellings_of_a_flag_are_one(typed: str, first: str) -> None:
    assert canonical(typed) == first
