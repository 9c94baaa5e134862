"""When the CPU platform serves a process, what it changes there, and that a stand-in never hides a real package."""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import json
import os
import subprocess
import sys
import textwrap
import types
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from agentinfer.runtime.cpu import activate as activation  # noqa: E402
from agentinfer.runtime.cpu import kernels, torchvision_stub, triton_stub  # noqa: E402


@pytest.fixture
def bare_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """No accelerator and no kernel package, whatever the machine that runs the tests has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    monkeypatch.setattr(kernels, "real_sgl_kernel_present", lambda: False)
    monkeypatch.setattr(activation.platform, "machine", lambda: "x86_64")


@pytest.mark.usefixtures("bare_machine")
class TestDecision:
    def test_serves_a_machine_without_accelerator(self) -> None:
        assert activation.reason_to_stay_off({}) is None
        assert activation.reason_to_stay_off({"SGLANG_USE_CPU_ENGINE": "1"}) is None

    def test_stays_off_beside_cuda(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.version, "hip", None)
        assert activation.reason_to_stay_off({"SGLANG_USE_CPU_ENGINE": "1"}) == "CUDA is available"
        assert activation.activate() is None

    def test_stays_off_beside_rocm(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.version, "hip", "6.3")
        assert activation.reason_to_stay_off({}) == "ROCm is available"

    def test_stays_off_beside_another_accelerator(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
        monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("xpu"))
        assert activation.reason_to_stay_off({}) == "xpu is available"

    def test_stays_off_beside_a_backend_not_yet_imported(self, monkeypatch: pytest.MonkeyPatch) -> None:
        find = importlib.util.find_spec
        found = importlib.machinery.ModuleSpec("torch_npu", None)
        monkeypatch.setattr(
            importlib.util, "find_spec", lambda name, *a: found if name == "torch_npu" else find(name, *a)
        )
        assert activation.reason_to_stay_off({}) == "npu is available"

    def test_stays_off_beside_a_real_sgl_kernel(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernels, "real_sgl_kernel_present", lambda: True)
        assert activation.reason_to_stay_off({}) == "a real sgl_kernel is installed"
        assert activation.activate() is None

    def test_respects_a_user_who_switches_the_cpu_engine_off(self) -> None:
        assert activation.reason_to_stay_off({"SGLANG_USE_CPU_ENGINE": "0"}) == "SGLANG_USE_CPU_ENGINE=0"

    def test_stays_off_on_processors_the_engine_does_not_know(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(activation.platform, "machine", lambda: "riscv64")
        assert activation.reason_to_stay_off({}) == "SGLang's CPU engine does not run on riscv64"

    def test_staying_off_changes_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(kernels, "real_sgl_kernel_present", lambda: True)
        environment, modules = dict(os.environ), set(sys.modules)
        activation.activate()
        assert dict(os.environ) == environment
        assert set(sys.modules) == modules


class TestEnvironment:
    def test_fills_in_what_is_unset(self) -> None:
        environ: dict[str, str] = {}
        activation.apply_environment_defaults(environ)
        assert environ == {"SGLANG_USE_CPU_ENGINE": "1", "TORCHDYNAMO_DISABLE": "1", "OMP_WAIT_POLICY": "PASSIVE"}

    @pytest.mark.parametrize("name", ["OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME"])
    def test_keeps_what_the_user_says_about_spinning(self, name: str) -> None:
        environ = {name: "user"}
        activation.apply_environment_defaults(environ)
        assert {k: v for k, v in environ.items() if k in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT", "KMP_BLOCKTIME")} == {
            name: "user"
        }

    def test_keeps_the_users_compilation_setting(self) -> None:
        environ = {"TORCHDYNAMO_DISABLE": "0"}
        activation.apply_environment_defaults(environ)
        assert environ["TORCHDYNAMO_DISABLE"] == "0"


def run_python(code: str, *path: Path, env: dict[str, str] | None = None) -> Any:
    """Runs `code` in a fresh interpreter with `path` in front, and returns the JSON it prints last."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, path)), **(env or {})}
    environment.pop("SGLANG_USE_CPU_ENGINE", None)
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], env=environment, capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def real_package(folder: Path, name: str, body: str = "REAL = True\n") -> Path:
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(body)
    return folder


class TestStandIns:
    """In processes of their own: each changes what can be imported."""

    def test_sgl_kernel_is_installed_once_where_there_is_none(self) -> None:
        seen = run_python("""
            import json
            from agentinfer.runtime.cpu import kernels
            first, second = kernels.install(), kernels.install()
            import sgl_kernel, sgl_kernel.speculative
            from sgl_kernel import verify_tree_greedy_cpu
            from sgl_kernel.speculative import reconstruct_indices_from_tree_mask
            print(json.dumps([first, second, sgl_kernel.__version__, kernels.real_sgl_kernel_present()]))
        """)
        assert seen == [True, False, kernels.VERSION, False]

    def test_sgl_kernel_has_nothing_it_was_not_given(self) -> None:
        """A feature test such as `hasattr(sgl_kernel, ...)` must not be fooled."""
        seen = run_python("""
            import json, types
            from agentinfer.runtime.cpu import kernels
            kernels.install()
            import sgl_kernel
            print(json.dumps(sorted(k for k in vars(sgl_kernel) if not k.startswith("__"))))
        """)
        assert seen == sorted([f.__name__ for f in kernels.SURFACE["sgl_kernel"]] + ["speculative"])

    def test_a_real_sgl_kernel_wins(self, tmp_path: Path) -> None:
        seen = run_python(
            """
            import json
            from agentinfer.runtime.cpu import activate, kernels
            installed, path = kernels.install(), activate.activate()
            import sgl_kernel
            print(json.dumps([installed, path, sgl_kernel.REAL]))
            """,
            real_package(tmp_path, "sgl_kernel"),
        )
        assert seen == [False, None, True]

    def test_a_real_torchvision_wins(self, tmp_path: Path) -> None:
        seen = run_python(
            """
            import json
            from agentinfer.runtime.cpu import torchvision_stub
            installed = torchvision_stub.install()
            import torchvision
            print(json.dumps([installed, torchvision.REAL]))
            """,
            real_package(tmp_path, "torchvision"),
        )
        assert seen == [False, True]

    def test_torchvision_stand_in_lets_text_models_load_and_refuses_images(self) -> None:
        pytest.importorskip("transformers")
        if importlib.util.find_spec("torchvision") is not None and "torchvision" not in sys.modules:
            pytest.skip("a real torchvision is installed")
        seen = run_python("""
            import json
            from agentinfer.runtime.cpu import torchvision_stub
            installed = torchvision_stub.install()
            import transformers
            from torchvision.transforms import InterpolationMode, functional
            transformers.AutoImageProcessor.register(object, object)
            refused = []
            for attempt in (lambda: transformers.AutoImageProcessor.from_pretrained("x"), lambda: functional.resize(1)):
                try:
                    attempt()
                except ImportError as error:
                    refused.append("torchvision" in str(error))
            print(json.dumps([installed, refused, InterpolationMode.BICUBIC]))
        """)
        assert seen == [True, [True, True], "InterpolationMode.BICUBIC"]

    def test_a_real_triton_wins_even_behind_the_finder(self, tmp_path: Path) -> None:
        seen = run_python(
            """
            import json, sys, types
            from agentinfer.runtime.cpu import triton_stub
            installed = triton_stub.install()
            sys.meta_path.append(triton_stub.TritonStubFinder())
            sys.modules["sglang"] = types.ModuleType("sglang")
            import triton
            print(json.dumps([installed, triton.REAL]))
            """,
            real_package(tmp_path, "triton"),
        )
        assert seen == [False, True]


class TestTritonStub:
    """The finder and what it makes, without putting it on `sys.meta_path`."""

    @pytest.fixture
    def triton(self, monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
        monkeypatch.setitem(sys.modules, "sglang", sys.modules.get("sglang", types.ModuleType("sglang")))
        finder = triton_stub.TritonStubFinder()
        spec = finder.find_spec("triton")
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        finder.exec_module(module)
        return module

    def test_answers_only_for_triton_and_only_beside_sglang(self, monkeypatch: pytest.MonkeyPatch) -> None:
        finder = triton_stub.TritonStubFinder()
        monkeypatch.setitem(sys.modules, "sglang", types.ModuleType("sglang"))
        assert finder.find_spec("triton.language") is not None
        assert finder.find_spec("tritonclient") is None
        monkeypatch.delitem(sys.modules, "sglang")
        assert finder.find_spec("triton") is None

    def test_kernels_are_defined_and_refuse_to_run(self, triton: Any) -> None:
        @triton.autotune(configs=[triton.Config({}, num_warps=4)], key=["n"])
        @triton.jit(do_not_specialize=["n"])
        def scale(x: Any, n: triton.language.constexpr) -> None:
            """A kernel."""

        assert scale.__doc__ == "A kernel."
        with pytest.raises(RuntimeError, match=r"scale was launched, but triton is not installed"):
            scale[(1,)](None, 3)

    def test_helpers_compute(self, triton: Any) -> None:
        assert [triton.cdiv(7, 2), triton.cdiv(8, 2)] == [4, 4]
        assert [triton.next_power_of_2(n) for n in (0, 1, 5, 8)] == [0, 1, 8, 8]

    def test_dunder_lookups_fail_as_on_any_module(self, triton: Any) -> None:
        assert not hasattr(triton, "__wrapped__")
        assert not hasattr(triton.language.dtype, "__torch_function__")


@pytest.mark.sglang
class TestDefaults:
    """What `platform` fills in; pure but for the import of its base class."""

    GIB = 1 << 30

    @pytest.fixture
    def args(self) -> types.SimpleNamespace:
        return types.SimpleNamespace(
            attention_backend=None,
            max_total_tokens=None,
            max_running_requests=None,
            sleep_on_idle=False,
            enable_hierarchical_cache=False,
            hicache_io_backend="kernel",
            hicache_mem_layout="page_first",
        )

    def choose(self, args: types.SimpleNamespace, free_gib: float = 16, cell: int | None = 46080) -> dict[str, object]:
        pytest.importorskip("sglang")
        from agentinfer.runtime.cpu.platform import choose_defaults

        return choose_defaults(args, cell, 8192, int(free_gib * self.GIB))

    def test_everything_unset(self, args: types.SimpleNamespace) -> None:
        assert self.choose(args) == {
            "attention_backend": "torch_native",
            "max_total_tokens": 4 * 8192,
            "sleep_on_idle": True,
        }

    def test_small_memory_takes_its_share(self, args: types.SimpleNamespace) -> None:
        assert self.choose(args, free_gib=4)["max_total_tokens"] == self.GIB // 46080

    def test_one_context_when_the_share_is_less(self, args: types.SimpleNamespace) -> None:
        assert self.choose(args, free_gib=1)["max_total_tokens"] == 8192

    def test_never_more_than_half_of_the_memory(self, args: types.SimpleNamespace) -> None:
        assert self.choose(args, free_gib=0.25)["max_total_tokens"] == self.GIB // 8 // 46080

    def test_more_running_requests_may_use_more(self, args: types.SimpleNamespace) -> None:
        args.max_running_requests = 8
        assert self.choose(args)["max_total_tokens"] == 8 * 8192

    def test_unknown_model_leaves_the_size_to_upstream(self, args: types.SimpleNamespace) -> None:
        assert "max_total_tokens" not in self.choose(args, cell=None)

    def test_the_users_flags_stay(self, args: types.SimpleNamespace) -> None:
        args.attention_backend, args.max_total_tokens, args.sleep_on_idle = "intel_amx", 100, True
        assert self.choose(args) == {}

    def test_what_resolution_filled_in_is_not_the_users(self, args: types.SimpleNamespace) -> None:
        args.attention_backend = "intel_amx"
        args._raw_input = {"attention_backend": None}
        assert self.choose(args)["attention_backend"] == "torch_native"

    def test_host_cache_gets_the_transfer_that_works(self, args: types.SimpleNamespace) -> None:
        args.enable_hierarchical_cache = True
        chosen = self.choose(args)
        assert (chosen["hicache_io_backend"], chosen["hicache_mem_layout"]) == ("direct", "layer_first")

    def test_free_memory_respects_a_containers_limit(self, tmp_path: Path) -> None:
        pytest.importorskip("sglang")
        from agentinfer.runtime.cpu.platform import free_memory_bytes

        (tmp_path / "memory.max").write_text("1000\n")
        (tmp_path / "memory.current").write_text("700\n")
        (tmp_path / "memory.stat").write_text("anon 400\ninactive_file 50\n")
        assert free_memory_bytes(tmp_path) == 350
        (tmp_path / "memory.max").write_text("max\n")
        assert free_memory_bytes(tmp_path) > 10_000
        assert free_memory_bytes(tmp_path / "absent") > 10_000


def test_torchvision_module_is_left_alone_when_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = types.ModuleType("torchvision")
    monkeypatch.setitem(sys.modules, "torchvision", loaded)
    assert torchvision_stub.install() is False
    assert sys.modules["torchvision"] is loaded
