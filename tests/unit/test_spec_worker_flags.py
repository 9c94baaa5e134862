"""AGENT_SAM is one thing under two names: SGLang's flag switches our feature, and our flag sets SGLang's."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from agentinfer.config import AgentInferConfig, SpeculationConfig
from agentinfer.errors import ConfigError, SeamError
from agentinfer.runtime.arguments import CommandLine, completing_flags, split_command_line
from agentinfer.runtime.speculation import registration


def split(*argv: str, **environ: str) -> CommandLine:
    return split_command_line(argv, environ)


@pytest.mark.parametrize(
    "argv",
    [
        ("--speculative-algorithm", "AGENT_SAM"),
        ("--speculative-algorithm=agent_sam",),
        ("--speculative-algo", "Agent_Sam", "--port", "1"),
        ("--agentinfer-speculation",),
    ],
    ids=["flag", "joined", "abbreviated", "ours"],
)
def test_either_flag_switches_speculation_on(argv: tuple[str, ...]) -> None:
    line = split(*argv)
    assert line.resolved.config.speculation.enabled
    assert list(line.engine_argv) == [word for word in argv if word != "--agentinfer-speculation"]


@pytest.mark.parametrize(
    "argv",
    [(), ("--speculative-algorithm", "NGRAM"), ("--speculative-algorithm",), ("--model-path", "AGENT_SAM")],
    ids=["nothing", "another", "no value", "a model of that name"],
)
def test_speculation_stays_off_where_nobody_asks_for_it(argv: tuple[str, ...]) -> None:
    assert not split(*argv).resolved.config.speculation.enabled


def test_configuration_file_may_name_the_algorithm(tmp_path: Path) -> None:
    file = tmp_path / "serve.yaml"
    file.write_text("speculative-algorithm: AGENT_SAM\nport: 1\n")
    assert split("--config", str(file)).resolved.config.speculation.enabled
    dropped = split("--config", str(file), AGENTINFER_DISABLE="speculation")
    assert dropped.engine_file == {"port": 1}
    assert dropped.file_is_shared


@pytest.mark.parametrize(
    ("argv", "left"),
    [
        (("--port", "1", "--speculative-algorithm", "AGENT_SAM"), ("--port", "1")),
        (("--speculative-algorithm=AGENT_SAM", "--port", "1"), ("--port", "1")),
        (("--speculative-algorithm", "NGRAM"), ("--speculative-algorithm", "NGRAM")),
    ],
    ids=["last", "joined", "another"],
)
def test_disabling_the_feature_takes_the_algorithm_out(argv: tuple[str, ...], left: tuple[str, ...]) -> None:
    line = split(*argv, AGENTINFER_DISABLE="speculation")
    assert not line.resolved.config.speculation.enabled
    assert line.engine_argv == left


def test_two_settings_that_disagree_are_refused() -> None:
    with pytest.raises(ConfigError, match="--agentinfer-speculation turns speculation off"):
        split("--speculative-algorithm", "AGENT_SAM", "--no-agentinfer-speculation")
    config = AgentInferConfig(speculation=SpeculationConfig(speculation=True))
    with pytest.raises(ConfigError, match="NGRAM was given together with --agentinfer-speculation"):
        completing_flags({"speculative_algorithm": "NGRAM", "model_path": "m"}, config, lambda path, dtype: path)


def test_our_flag_sets_sglangs() -> None:
    config = AgentInferConfig(speculation=SpeculationConfig(speculation=True))
    flags, _ = completing_flags({"model_path": "m"}, config, lambda path, dtype: path)
    assert flags[flags.index("--speculative-algorithm") + 1] == "AGENT_SAM"
    flags, _ = completing_flags(
        {"model_path": "m", "speculative_algorithm": "agent_sam"}, config, lambda path, dtype: path
    )
    assert "--speculative-algorithm" not in flags


def server_args(**fields: object) -> SimpleNamespace:
    known = {
        "device": "cuda",
        "enable_dp_attention": False,
        "pp_size": 1,
        "page_size": 1,
        "attention_backend": "flashinfer",
        "disable_overlap_schedule": False,
        "max_running_requests": None,
        "enable_mixed_chunk": True,
        "speculative_num_draft_tokens": None,
        "speculative_eagle_topk": None,
        "speculative_num_steps": None,
    }
    return SimpleNamespace(**{**known, **fields})


@pytest.fixture
def configured(monkeypatch: pytest.MonkeyPatch):
    def configure(**settings: object) -> None:
        config = AgentInferConfig(speculation=SpeculationConfig(speculation=True, **settings))
        monkeypatch.setenv("AGENTINFER_CONFIG", config.to_json())

    configure()
    return configure


def test_sglangs_speculation_arguments_are_filled_in(configured) -> None:
    args = server_args()
    registration._complete(args)
    assert (args.speculative_num_draft_tokens, args.max_running_requests) == (16, 48)
    assert args.speculative_eagle_topk * args.speculative_num_steps <= args.speculative_num_draft_tokens
    assert (args.disable_overlap_schedule, args.enable_mixed_chunk) == (False, False)


def test_what_the_user_gave_is_kept(configured) -> None:
    configured(spec_max_width=8)
    args = server_args(device="cpu", max_running_requests=3)
    registration._complete(args)
    assert (args.speculative_num_draft_tokens, args.max_running_requests) == (8, 3)
    assert args.disable_overlap_schedule
    args = server_args(speculative_num_draft_tokens=5)
    registration._complete(args)
    assert args.speculative_num_draft_tokens == 5


@pytest.mark.parametrize(("shape", "is_tree"), [("tree", True), ("chain", False)])
def test_attention_backends_are_told_of_trees_by_topk(configured, shape: str, is_tree: bool) -> None:
    configured(spec_shape=shape)
    args = server_args()
    registration._complete(args)
    assert (args.speculative_eagle_topk > 1) is is_tree


def test_trees_in_pages_are_refused_where_the_backend_cannot(configured) -> None:
    with pytest.raises(ConfigError, match="--agentinfer-spec-shape chain"):
        registration._complete(server_args(page_size=16, attention_backend="fa3"))
    registration._complete(server_args(page_size=16, attention_backend="flashinfer"))
    configured(spec_shape="chain")
    registration._complete(server_args(page_size=16, attention_backend="fa3"))


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"enable_dp_attention": True}, "--enable-dp-attention"),
        ({"pp_size": 2}, "--pp-size above 1"),
        ({"device": "xpu"}, "--device xpu"),
    ],
    ids=["dp attention", "pipeline", "device"],
)
def test_what_cannot_be_combined_is_refused_by_name(fields: dict[str, object], named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        registration._validate(server_args(**fields))
    registration._validate(server_args())


def test_scheduler_that_runs_another_worker_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    class Ours:
        pass

    monkeypatch.setattr(registration, "_worker_class", lambda: Ours)
    registration._require_our_worker(None, SimpleNamespace(draft_worker=Ours()))
    for other in (None, object()):
        scheduler = SimpleNamespace(draft_worker=other, spec_algorithm=SimpleNamespace(name="NGRAM"))
        with pytest.raises(SeamError, match="AGENTINFER_DISABLE=speculation"):
            registration._require_our_worker(None, scheduler)
