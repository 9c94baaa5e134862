"""The doctor: each wrong thing is named with its cure, and only problems make it fail."""

from __future__ import annotations

import dataclasses
import json
import socket
from collections.abc import Iterable
from pathlib import Path

import pytest

from agentinfer import cli
from agentinfer.models.store import ModelStore
from agentinfer.runtime import doctor
from agentinfer.runtime.device import Device, cpu_flags, cpu_summary
from agentinfer.runtime.doctor import Finding

ALL = {
    "sglang": "0.5.21",
    "torch": "2.13.0",
    "transformers": "5.12.1",
    "xgrammar": "0.2.7",
    "triton": "3.7",
    "flashinfer-python": "0.6.18",
    "sglang-kernel": "0.4.7",
}
CPU = Device("cpu", "CPU", "ours", cores=2, cpu_flags=frozenset({"avx512f"}), omp_threads=2)


def states(findings: Iterable[Finding]) -> dict[str, str]:
    return {each.topic: each.state for each in findings}


@pytest.mark.parametrize(
    ("without", "has_cuda", "topic", "state"),
    [
        ((), True, "sglang", "ok"),
        (("sglang",), False, "sglang", "problem"),
        (("torch",), False, "torch", "problem"),
        (("flashinfer-python",), True, "flashinfer-python", "problem"),
        (("flashinfer-python",), False, "flashinfer-python", "ok"),
        (("triton",), False, "triton", "ok"),
    ],
)
def test_missing_package_is_a_problem_where_it_is_needed(without, has_cuda, topic, state) -> None:
    installed = {name: version for name, version in ALL.items() if name not in without}
    findings = list(doctor.version_findings(installed.get, has_cuda))
    assert states(findings)[topic] == state
    assert all(each.advice for each in findings if each.state != "ok")


def test_untested_sglang_is_a_warning_with_the_version_to_install() -> None:
    found = {f.topic: f for f in doctor.version_findings({**ALL, "sglang": "0.6.0"}.get, has_cuda=False)}["sglang"]
    assert found.state == "warning"
    assert "sglang==0.5.21" in str(found.advice)


@pytest.mark.parametrize(
    ("device", "warned"),
    [
        (CPU, set()),
        (Device("cpu", "CPU", "ours", 2, frozenset(), None), {"processor"}),
        (Device("cpu", "CPU", "ours", 2, frozenset({"avx512f"}), 3), {"threads"}),
        (Device("cuda", "H200", "SGLang's own", 2, frozenset(), 3), set()),
    ],
    ids=["good", "old processor", "too many threads", "GPU"],
)
def test_slow_settings_are_warned_of_on_the_cpu_only(device: Device, warned: set[str]) -> None:
    assert {topic for topic, state in states(doctor.device_findings(device)).items() if state == "warning"} == warned


@pytest.mark.parametrize(
    ("kind", "obstacle", "state"),
    [
        ("cpu", "a real sgl_kernel is installed", "problem"),
        ("cpu", None, "ok"),
        ("cuda", None, "ok"),
    ],
)
def test_cuda_packages_without_a_gpu_are_a_problem_with_both_cures(kind: str, obstacle: str | None, state: str) -> None:
    device = dataclasses.replace(CPU, kind=kind, obstacle=obstacle)
    (found,) = [each for each in doctor.device_findings(device) if each.topic == "platform"]
    assert found.state == state
    if obstacle is not None:
        assert obstacle in found.seen
        assert "nvidia-smi" in str(found.advice)
        assert "ENGINE=cpu" in str(found.advice)


def test_plugin_that_sglang_would_skip_is_a_problem_with_its_cure() -> None:
    (found,) = doctor.plugin_findings({"SGLANG_PLUGINS": "other"})
    assert found.state == "problem"
    assert found.advice == "add agentinfer,agentinfer_cpu or unset it"


def test_each_broken_seam_is_a_problem() -> None:
    assert states(doctor.seam_findings((), [])) == {"seams": "ok"}
    found = list(doctor.seam_findings((), ["x does not exist", "y takes (a), expected (b)"]))
    assert [each.state for each in found] == ["problem", "problem"]


def test_model_not_prepared_is_told_but_no_problem(tmp_path: Path) -> None:
    found = list(doctor.model_findings(ModelStore(tmp_path)))
    assert {each.state for each in found} == {"ok"}
    assert "agentinfer models prepare smollm2-135m" in found[0].seen


def test_features_are_told_with_where_their_values_come_from() -> None:
    found = list(doctor.feature_findings({"AGENTINFER_RECORD": "f", "AGENTINFER_MAX_SESSIONS": "5"}))
    text = "\n".join(each.seen for each in found)
    assert "record on: record=f (from AGENTINFER_RECORD)" in text
    assert "max_sessions=5 (from AGENTINFER_MAX_SESSIONS)" in text
    assert "forced_replay off" in text


def test_bad_variable_is_a_problem() -> None:
    (found,) = doctor.feature_findings({"AGENTINFER_MAX_SESSIONS": "0"})
    assert found.state == "problem"
    assert "AGENTINFER_MAX_SESSIONS" in found.seen


def test_taken_port_is_a_warning() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert states(doctor.port_findings(port)) == {"port": "warning"}
    assert states(doctor.port_findings(port)) == {"port": "ok"}


@pytest.mark.parametrize(("free_bytes", "state"), [(10**12, "ok"), (10**9, "warning")])
def test_little_disk_space_is_a_warning(tmp_path: Path, free_bytes: int, state: str) -> None:
    assert states(doctor.disk_findings(tmp_path, free_bytes)) == {"disk": state}


@pytest.mark.parametrize(
    ("found", "status"),
    [
        ([Finding("a", "ok", "fine")], 0),
        ([Finding("a", "warning", "hm", "do this")], 0),
        ([Finding("a", "ok", "fine"), Finding("b", "problem", "bad", "do that")], 1),
    ],
    ids=["ok", "warning", "problem"],
)
def test_exit_status_is_zero_unless_there_is_a_problem(found, status, monkeypatch, capsys) -> None:
    monkeypatch.setattr(doctor, "examine", lambda environ, port: found)
    assert cli.main(["doctor"]) == status
    text = capsys.readouterr().out
    assert all(each.seen in text and (each.advice or "") in text for each in found)
    assert cli.main(["doctor", "--json"]) == status
    assert [each["topic"] for each in json.loads(capsys.readouterr().out)] == [each.topic for each in found]


def test_broken_topic_does_not_hide_the_others(monkeypatch) -> None:
    def broken(port: int) -> list[Finding]:
        raise RuntimeError("no sockets here")

    monkeypatch.setattr(doctor, "port_findings", broken)
    monkeypatch.setattr(doctor, "this_device", lambda environ: CPU)
    found = doctor.examine({}, 1)
    assert [each.seen for each in found if each.state == "problem"] == ["RuntimeError: no sockets here"]
    assert {"disk", "seams", "feature"} <= {each.topic for each in found}


def test_topic_that_needs_a_missing_package_is_left_unchecked(monkeypatch) -> None:
    def needs_torch(rows: object, problems: object) -> list[Finding]:
        raise ModuleNotFoundError("No module named 'torch'", name="torch")

    monkeypatch.setattr(doctor, "seam_findings", needs_torch)
    monkeypatch.setattr(doctor, "this_device", lambda environ: CPU)
    unchecked = [each for each in doctor.examine({}, 1) if each.topic == "unchecked"]
    assert [(each.state, each.seen) for each in unchecked] == [
        ("warning", "a topic needs torch, which is not installed")
    ]


@pytest.mark.parametrize(
    ("content", "flags"),
    [
        (
            "processor : 0\nflags : fpu avx2 avx512f avx512_bf16 amx_tile\n",
            {"avx2", "avx512f", "avx512_bf16", "amx_tile"},
        ),
        ("processor : 0\nFeatures : fp asimd bf16 sve\n", {"bf16", "sve"}),
        ("nothing", set()),
    ],
    ids=["x86", "arm", "unknown"],
)
def test_telling_instruction_sets_are_read(tmp_path: Path, content: str, flags: set[str]) -> None:
    path = tmp_path / "cpuinfo"
    path.write_text(content)
    assert cpu_flags(path) == flags
    assert cpu_flags(tmp_path / "gone") == frozenset()


def test_thread_settings_are_told() -> None:
    assert "OMP_NUM_THREADS=1" in cpu_summary(2, frozenset(), {"OMP_NUM_THREADS": "1"})
    assert "OMP_* not set" in cpu_summary(2, frozenset({"avx2"}), {})
