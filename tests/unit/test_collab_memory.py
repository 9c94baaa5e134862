"""Two engines on one machine: GPUs, memory, cores. SGLang's reckoning is done here after it, to see that both fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from agentinfer.config import CollabConfig
from agentinfer.errors import ConfigError
from agentinfer.runtime.collab.checkpoints import kv_bytes_a_token, model_folder, weights_bytes
from agentinfer.runtime.collab.command_lines import CommandLines, Door, EngineLine
from agentinfer.runtime.collab.gpus import Gpu, find_gpus
from agentinfer.runtime.collab.memory import (
    GIB,
    Needs,
    fraction_of,
    gpu_ids,
    second_first_gpu,
    split_cores,
    split_memory,
    working_bytes,
)
from agentinfer.runtime.collab.placement import Placement


class GpuOfSglang:
    """A GPU on which engines start as SGLang 0.5.21 starts them: weights, then KV cache, then graphs."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes

    def start(self, fraction: float, weights_bytes: int, working_bytes: int) -> int:
        """Bytes of the KV cache (`_profile_available_bytes`)."""
        before = self.free_bytes
        self.free_bytes -= weights_bytes
        kv_bytes = self.free_bytes - int(before * (1 - fraction))
        self.free_bytes -= kv_bytes + working_bytes
        return kv_bytes


weights = st.integers(GIB // 8, 60 * GIB)
cells = st.integers(10_000, 1_000_000)


@given(
    total=st.integers(8 * GIB, 192 * GIB), large=weights, small=weights, cells=st.tuples(cells, cells) | st.none(),
    share=st.none() | st.floats(0.05, 0.95),
)  # fmt: skip
def test_both_fit_or_it_is_refused_and_a_restart_fits_again(total, large, small, cells, share) -> None:
    working = working_bytes(total, 1)
    cell = cells or (None, None)
    needs = {"large": Needs(large, cell[0], working), "small": Needs(small, cell[1], working)}
    if large + small + 2 * working > total * 0.98:
        with pytest.raises(ConfigError, match="do not fit on a GPU"):
            split_memory(total, needs, large_kv_share=share)
        return
    static = split_memory(total, needs, large_kv_share=share)
    assert sum(static.values()) + 2 * working <= total
    gpu = GpuOfSglang(total)
    kv = {}
    for role in ("large", "small"):
        kv[role] = gpu.start(fraction_of(static[role], gpu.free_bytes, role), needs[role].weights_bytes, working)
        # A fraction has four digits, and what they do not say stays free.
        planned = static[role] - needs[role].weights_bytes
        assert 0 < planned - total / 10_000 - 1 <= kv[role] <= planned
    assert gpu.free_bytes >= 0
    # The large engine dies: its memory is free again, beside the small one's.
    gpu.free_bytes += large + kv["large"] + working
    again = gpu.start(fraction_of(static["large"], gpu.free_bytes, "large"), large, working)
    assert again == pytest.approx(kv["large"], abs=total / 10_000 + 1)
    assert gpu.free_bytes >= 0


def test_by_default_both_caches_hold_as_many_tokens() -> None:
    needs = {"large": Needs(40 * GIB, 300_000, 5 * GIB), "small": Needs(5 * GIB, 100_000, 5 * GIB)}
    static = split_memory(80 * GIB, needs)
    tokens = {role: (static[role] - needs[role].weights_bytes) / needs[role].kv_bytes_a_token for role in static}
    assert tokens["large"] == pytest.approx(tokens["small"], rel=1e-6)
    assert sum(static.values()) == 70 * GIB


def test_share_of_the_kv_memory_can_be_chosen() -> None:
    needs = {"large": Needs(10 * GIB, 1, GIB), "small": Needs(2 * GIB, 1, GIB)}
    assert split_memory(24 * GIB, needs, large_kv_share=0.8) == {"large": 18 * GIB, "small": 4 * GIB}


def test_given_fractions_win() -> None:
    def needs(large: float | None, small: float | None) -> dict[str, Needs]:
        return {"large": Needs(10 * GIB, 1, GIB, large), "small": Needs(2 * GIB, 1, GIB, small)}

    assert split_memory(24 * GIB, needs(0.5, 0.5)) == {}
    assert split_memory(24 * GIB, needs(0.5, None)) == {"small": 10 * GIB}
    assert split_memory(24 * GIB, needs(None, 0.5)) == {"large": 15 * GIB}
    # Without a role: what both may take together.
    assert split_memory(24 * GIB, needs(None, None), shared_fraction=0.75) == {"large": 13 * GIB, "small": 5 * GIB}


def test_unknown_weights_are_asked_for_unless_fractions_are_given() -> None:
    unknown = Needs(None, None, GIB)
    with pytest.raises(ConfigError, match="the large model's weights are not on this disk yet"):
        split_memory(24 * GIB, {"large": unknown, "small": Needs(GIB, 1, GIB)})
    both = {"large": Needs(None, None, GIB, 0.6), "small": Needs(None, None, GIB, 0.8)}
    assert split_memory(24 * GIB, both) == {}


def test_a_gpu_that_something_else_filled_is_named() -> None:
    with pytest.raises(ConfigError, match=r"the small engine was to have 10\.0 GiB .* and 9\.0 GiB are free"):
        fraction_of(10 * GIB, 9 * GIB, "small")


@pytest.mark.parametrize(
    ("gpu_gib", "chunk_tokens", "gib"),
    [(80, None, 13.1), (141, None, 13.1), (141, 2_048, 10.0), (24, None, 6.7), (16, None, 3.6)],
)
def test_what_engines_work_with_follows_sglangs_own_reserve(gpu_gib, chunk_tokens, gib) -> None:
    assert working_bytes(gpu_gib * GIB, 1, chunk_tokens) / GIB == pytest.approx(gib, abs=0.11)


@pytest.mark.parametrize(
    ("large", "small_count", "gpus", "first"),
    [((0,), 1, 1, 0), ((0,), 1, 2, 1), ((0, 1, 2, 3), 2, 8, 4), ((0, 1, 2, 3), 2, 5, 0), ((2,), 1, 3, 2)],
)
def test_small_engine_takes_gpus_of_its_own_where_there_are_any(large, small_count, gpus, first) -> None:
    assert second_first_gpu(large, small_count, 1, gpus) == first


def test_gpus_of_an_engine_with_a_step() -> None:
    assert gpu_ids(1, 3, 2) == (1, 3, 5)


@pytest.mark.parametrize(
    ("cores", "small", "split"),
    [(16, None, (8, 8)), (16, 4, (12, 4)), (3, None, (2, 1)), (2, None, (1, 1)), (1, None, (1, 1)), (2, 8, (1, 2))],
)
def test_cores_are_divided_and_nobody_has_none(cores, small, split) -> None:
    assert tuple(split_cores(cores, small).values()) == split


# ---- what files say


def checkpoint(folder: Path, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    shape = {
        "num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "num_key_value_heads": 2,
        "intermediate_size": 128, "vocab_size": 100, "torch_dtype": "bfloat16", **config,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(shape))
    return folder


@pytest.mark.parametrize(
    ("stored", "dtype", "times"),
    [("bfloat16", None, 1), ("bfloat16", "float32", 2), ("float32", None, 0.5), ("float32", "float32", 1)],
)
def test_weights_are_the_files_in_the_form_they_are_loaded_in(tmp_path, stored, dtype, times) -> None:
    folder = checkpoint(tmp_path, torch_dtype=stored)
    (folder / "a.safetensors").write_bytes(b"0" * 3_000)
    (folder / "b.safetensors").write_bytes(b"0" * 1_000)
    (folder / "same.bin").write_bytes(b"0" * 4_000)
    assert weights_bytes(folder, dtype) == 4_000 * times


def test_quantized_files_are_as_large_as_they_are(tmp_path) -> None:
    folder = checkpoint(tmp_path, torch_dtype="float32", quantization_config={"quant_method": "fp8"})
    (folder / "a.safetensors").write_bytes(b"0" * 1_000)
    assert weights_bytes(folder, None) == 1_000


def test_without_files_the_shape_says_how_large_the_weights_would_be(tmp_path) -> None:
    attention, feed_forward = 64 * 16 * (4 + 2 + 2 + 4), 3 * 64 * 128
    dense = 2 * (attention + feed_forward) + 2 * 100 * 64
    assert weights_bytes(checkpoint(tmp_path / "dense"), None) == 2 * dense
    experts = checkpoint(tmp_path / "experts", num_experts=4, moe_intermediate_size=32, tie_word_embeddings=True)
    assert weights_bytes(experts, "float32") == 4 * (2 * (attention + 4 * 3 * 64 * 32) + 100 * 64)
    assert weights_bytes(tmp_path, None) is None


def test_shape_of_a_real_model_says_the_size_of_its_files(tmp_path) -> None:
    # SmolLM2-135M, of which the converted safetensors file has 269,060,552 bytes.
    shape = {
        "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9,
        "num_key_value_heads": 3, "vocab_size": 49152, "tie_word_embeddings": True,
    }  # fmt: skip
    assert weights_bytes(checkpoint(tmp_path, **shape), None) == pytest.approx(269_060_552, rel=0.001)


@pytest.mark.parametrize(
    ("config", "dtype", "kv_dtype", "bytes_a_token"),
    [
        ({}, None, None, 2 * 2 * 16 * 2 * 2),
        ({}, "float32", None, 2 * 2 * 16 * 2 * 4),
        ({}, None, "fp8_e4m3", 2 * 2 * 16 * 2),
        ({"head_dim": 128}, None, None, 2 * 2 * 128 * 2 * 2),
        ({"kv_lora_rank": 512, "qk_rope_head_dim": 64}, None, None, 2 * 576 * 2),
        ({"num_attention_heads": None}, None, None, None),
        (
            {"text_config": {"num_hidden_layers": 1, "num_attention_heads": 1, "hidden_size": 8}},
            None,
            None,
            1 * 1 * 8 * 2 * 2,
        ),
    ],
)
def test_what_a_token_takes_in_the_cache(tmp_path, config, dtype, kv_dtype, bytes_a_token) -> None:
    assert kv_bytes_a_token(checkpoint(tmp_path, **config), dtype, kv_dtype) == bytes_a_token


def test_model_of_the_hub_is_found_in_its_cache(tmp_path) -> None:
    repository = tmp_path / "hub" / "models--org--Name"
    snapshot = checkpoint(repository / "snapshots" / "abc")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    assert model_folder("org/Name", {"HF_HOME": str(tmp_path)}) == snapshot
    assert model_folder("org/Name", {"HF_HUB_CACHE": str(tmp_path / "hub")}) == snapshot
    assert model_folder("org/Other", {"HF_HOME": str(tmp_path)}) is None
    assert model_folder(str(snapshot), {}) == snapshot


# ---- placement


def engine_line(role, path, **given) -> EngineLine:
    return EngineLine(role, str(path), role, 1, None, (), **given)


class Machine:
    """GPUs whose free memory a test changes; counts how often it was asked."""

    def __init__(self, *free_gib: float, total_gib: int = 80) -> None:
        self.gpus = [Gpu(int(free * GIB), total_gib * GIB) for free in free_gib]

    def __call__(self) -> list[Gpu]:
        return self.gpus


@pytest.fixture
def pair(tmp_path):
    def make(machine, large=(), small=(), shared_fraction=None, environ=(), cores=2, **config):
        folders = {}
        for role, size in (("large", 4_000), ("small", 1_000)):
            folders[role] = checkpoint(tmp_path / role)
            (folders[role] / "a.safetensors").write_bytes(b"0" * size)
        lines = CommandLines(
            Door(),
            {
                "large": engine_line("large", folders["large"], **dict(large)),
                "small": engine_line("small", folders["small"], **dict(small)),
            },
            shared_fraction,
        )
        return Placement(lines, CollabConfig("s", **config), dict(environ), machine, cores)

    return make


def test_one_gpu_is_divided_and_engines_start_in_turn(pair) -> None:
    machine = Machine(80.0)
    placement = pair(machine)
    assert placement.is_shared_gpu
    assert placement.shares_device
    # 80 GiB less twice 13.1 to work with, halved since both caches take the same for a token.
    assert placement.flags("large") == ["--mem-fraction-static", "0.3359"]
    machine.gpus = [Gpu(int(40 * GIB), 80 * GIB)]
    assert placement.flags("small") == ["--mem-fraction-static", "0.6718"]
    assert "one GPU for both engines" in str(placement.described())
    # The large engine starts again while the small one has its share.
    machine.gpus = [Gpu(int(45 * GIB), 80 * GIB)]
    assert placement.flags("large") == ["--mem-fraction-static", "0.5972"]


def test_given_fraction_keeps_its_bytes_when_the_engine_starts_again(pair) -> None:
    machine = Machine(80.0)
    placement = pair(machine, large={"fraction": 0.5})
    assert placement.flags("large") == ["--mem-fraction-static", "0.5"]
    machine.gpus = [Gpu(50 * GIB, 80 * GIB)]
    assert placement.flags("large") == ["--mem-fraction-static", "0.8"]


def test_two_gpus_need_no_division(pair) -> None:
    placement = pair(Machine(80.0, 80.0), shared_fraction=0.7)
    assert not placement.is_shared_gpu
    assert not placement.shares_device
    assert placement.flags("large") == ["--mem-fraction-static", "0.7"]
    assert placement.flags("small") == ["--base-gpu-id", "1", "--mem-fraction-static", "0.7"]
    assert "OMP_NUM_THREADS" not in placement.environ("large")
    assert pair(Machine(80.0, 80.0)).flags("large") == []
    both_on_the_second = pair(Machine(80.0, 80.0), large={"base_gpu_id": 1}, small={"base_gpu_id": 1})
    assert both_on_the_second.is_shared_gpu
    assert "--base-gpu-id" not in both_on_the_second.flags("small")


def test_gpus_that_are_not_there_are_named(pair) -> None:
    with pytest.raises(ConfigError, match="the large engine is to run on GPUs 0, 1, 2, 3, and there are 2"):
        pair(Machine(80.0, 80.0), large={"num_gpus": 4, "num_shards": 4})


def test_without_a_gpu_the_cores_are_divided_unless_the_user_did(pair) -> None:
    placement = pair(Machine(), cores=6)
    assert placement.environ("small")["OMP_NUM_THREADS"] == "3"
    assert pair(Machine(), cores=6, collab_small_cores=1).environ("large")["OMP_NUM_THREADS"] == "5"
    assert pair(Machine(), environ={"OMP_NUM_THREADS": "2"}, cores=6).environ("large")["OMP_NUM_THREADS"] == "2"
    assert placement.flags("large") == []
    assert placement.described() is None
    assert pair(Machine(), small={"fraction": 0.4}).flags("small") == ["--mem-fraction-static", "0.4"]


@pytest.mark.parametrize(
    ("cores", "threads", "shares"),
    [(2, None, False), (1, None, True), (2, "2", True), (4, "2", False), (4, "3,2", True)],
)
def test_engines_share_cores_where_their_threads_are_more(pair, cores: int, threads: str | None, shares: bool) -> None:
    environ = {} if threads is None else {"OMP_NUM_THREADS": threads}
    assert pair(Machine(), cores=cores, environ=environ).shares_device is shares


def test_engine_is_never_told_to_be_a_pair_itself(pair) -> None:
    given = {"AGENTINFER_COLLAB": "s", "AGENTINFER_RECORD": "r", "AGENTINFER_DISABLE": "scheduling"}
    environ = pair(Machine(80.0), environ=given).environ("large")
    assert environ == {"AGENTINFER_RECORD": "r", "AGENTINFER_DISABLE": "scheduling,collab"}


def test_engines_told_to_use_the_cpu_ask_for_no_gpu(pair) -> None:
    def must_not_ask():
        raise AssertionError("asked for GPUs")

    cpu = {"device": "cpu"}
    assert pair(must_not_ask, large=cpu, small=cpu).flags("small") == []


def test_machine_without_device_files_is_not_asked_by_torch(tmp_path) -> None:
    assert find_gpus(device_files=[str(tmp_path / "none")], timeout_s=0.0) == ()
