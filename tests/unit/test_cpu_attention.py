"""The CPU attention backend against dense float64 attention: every forward mode, without a server or a model."""

from __future__ import annotations

from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from agentinfer.runtime.cpu.attention_math import KEY_BLOCK, QUERY_CHUNK, attend_rows, causal_bias, round_up
from agentinfer.runtime.cpu.linear import row_invariant_linear

# Rounding of a softmax-weighted mean of unit normals; bfloat16 has 8 bits, its result is rounded once more.
TOLERANCE = {torch.float32: 2e-6, torch.bfloat16: 2e-2}

# Query heads, kv heads, head dimension.
Shape = tuple[int, int, int]

SHAPES = [
    pytest.param((9, 3, 64), id="grouped-9-3-64"),
    pytest.param((4, 4, 32), id="one-kv-head-each"),
    pytest.param((4, 1, 256), id="one-kv-head-in-all"),
]


@dataclass
class Layer:
    """What the backend reads of a RadixAttention."""

    tp_q_head_num: int
    tp_k_head_num: int
    qk_head_dim: int
    v_head_dim: int
    scaling: float
    sliding_window_size: int = -1
    logit_cap: float = 0.0
    layer_id: int = 0
    is_cross_attention: bool = False
    attn_type: Any = None


class Pool:
    """One layer's KV pool of scattered slots. Unused slots hold NaN: reading one without masking it would show."""

    def __init__(self, num_slots: int, heads: int, dim: int, dtype: torch.dtype) -> None:
        self.keys = torch.full((num_slots, heads, dim), float("nan"), dtype=dtype)
        self.values = torch.full((num_slots, heads, dim), float("nan"), dtype=dtype)

    def get_key_buffer(self, layer_id: int) -> torch.Tensor:
        return self.keys

    def get_value_buffer(self, layer_id: int) -> torch.Tensor:
        return self.values

    def set_kv_buffer(self, layer: Layer, where: Any, k: torch.Tensor, v: torch.Tensor) -> None:
        self.keys[where.loc], self.values[where.loc] = (
            k.view_as(self.keys[where.loc]),
            v.view_as(self.values[where.loc]),
        )


@dataclass
class World:
    """Random tokens' queries, keys and values for a few requests, and a backend over a pool that stores them."""

    shape: Shape
    lens: list[int]
    dtype: torch.dtype = torch.float32
    window: int | None = None
    logit_cap: float = 0.0
    seed: int = 0
    store_prefix: bool = True
    layer: Layer = field(init=False)

    def __post_init__(self) -> None:
        from sglang.srt.layers.radix_attention import AttentionType

        from agentinfer.runtime.cpu.attention import CpuAttnBackend

        heads, kv_heads, dim = self.shape
        generator = torch.Generator().manual_seed(self.seed)
        self.layer = Layer(heads, kv_heads, dim, dim, dim**-0.5, logit_cap=self.logit_cap)
        self.layer.attn_type = AttentionType.DECODER
        self.layer.sliding_window_size = -1 if self.window is None else self.window

        def normal(n: int, h: int) -> torch.Tensor:
            return torch.randn(n, h, dim, generator=generator).to(self.dtype)

        self.q = [normal(n, heads) for n in self.lens]
        self.k = [normal(n, kv_heads) for n in self.lens]
        self.v = [normal(n, kv_heads) for n in self.lens]
        total = sum(self.lens)
        self.pool = Pool(2 * total + 1, kv_heads, dim, self.dtype)
        scattered = torch.randperm(2 * total, generator=generator)[:total] + 1
        self.slots = list(scattered.split(self.lens))
        table = torch.zeros(len(self.lens) + 2, max(self.lens) + 8, dtype=torch.int32)
        for request, slots in enumerate(self.slots):
            table[request + 1, : len(slots)] = slots.int()
        runner = SimpleNamespace(
            device="cpu", req_to_token_pool=SimpleNamespace(req_to_token=table), token_to_kv_pool=self.pool
        )
        self.backend = CpuAttnBackend(runner)

    def run(self, mode: str, spans: list[tuple[int, int]], spec_info: Any = None) -> list[torch.Tensor]:
        """Attention of tokens [start, stop) of each request, all that is before them already in the pool."""
        from sglang.srt.model_executor.forward_batch_info import ForwardMode

        forward_mode = ForwardMode[mode]
        for request, (start, _) in enumerate(spans if self.store_prefix else []):
            stored = self.slots[request][:start]
            self.pool.keys[stored], self.pool.values[stored] = self.k[request][:start], self.v[request][:start]
        queries = [stop - start for start, stop in spans]
        verify = forward_mode.is_target_verify()
        batch = SimpleNamespace(
            forward_mode=forward_mode,
            req_pool_indices=torch.arange(1, len(spans) + 1),
            seq_lens=torch.tensor([start if verify else stop for start, stop in spans]),
            extend_seq_lens=torch.tensor(queries),
            extend_prefix_lens=torch.tensor([start for start, _ in spans]),
            out_cache_loc=torch.cat([self.slots[r][a:b] for r, (a, b) in enumerate(spans)]),
            spec_info=spec_info,
            encoder_lens=None,
        )

        def gather(tensors: list[torch.Tensor]) -> torch.Tensor:
            return torch.cat([tensors[r][a:b] for r, (a, b) in enumerate(spans)]).flatten(1)

        self.backend.init_forward_metadata(batch)
        out = self.backend.forward(gather(self.q), gather(self.k), gather(self.v), self.layer, batch)
        return list(out.view(-1, self.shape[0], self.shape[2]).split(queries))

    def dense(self, request: int, start: int, stop: int, tree: torch.Tensor | None = None) -> torch.Tensor:
        """The same in float64, key by key."""
        heads, kv_heads, dim = self.shape
        rows = []
        for query in range(start, stop):
            seen = visible_keys(query, start, self.window, tree)
            keys = self.k[request][seen].double().repeat_interleave(heads // kv_heads, 1)
            values = self.v[request][seen].double().repeat_interleave(heads // kv_heads, 1)
            scores = torch.einsum("hd,khd->hk", self.q[request][query].double(), keys) * dim**-0.5
            if self.logit_cap:
                scores = self.logit_cap * torch.tanh(scores / self.logit_cap)
            rows.append(torch.einsum("hk,khd->hd", scores.softmax(-1), values))
        return torch.stack(rows)

    def check(self, seen: torch.Tensor, expected: torch.Tensor) -> None:
        assert torch.isfinite(seen).all()
        assert (seen.double() - expected).abs().max() < TOLERANCE[self.dtype]


def visible_keys(query: int, first: int, window: int | None, tree: torch.Tensor | None) -> list[int]:
    """Positions in the pool that a query sees; in a tree, node i is stored at first + i but stands at its depth."""
    if tree is None:
        return [k for k in range(query + 1) if window is None or query - k <= window]
    node = query - first
    position = first + int(tree[node].sum()) - 1
    prefix = [k for k in range(first) if window is None or position - k <= window]
    nodes = [k for k in range(len(tree)) if tree[node, k]]
    return prefix + [
        first + k for k in nodes if window is None or position - (first + int(tree[k].sum()) - 1) <= window
    ]


def mask_of_parents(parents: list[int]) -> torch.Tensor:
    mask = torch.eye(len(parents), dtype=torch.bool)
    for node, parent in enumerate(parents):
        if parent >= 0:
            mask[node] |= mask[parent]
    return mask


def verify_input(masks: list[torch.Tensor] | None, width: int, topk: int = -1) -> SimpleNamespace:
    mask = None if masks is None else torch.cat([m.flatten() for m in masks])
    return SimpleNamespace(draft_token_num=width, custom_mask=mask, tree_topk=topk)


pytestmark = pytest.mark.sglang

DTYPES = [pytest.param(torch.float32, id="float32"), pytest.param(torch.bfloat16, id="bfloat16")]
WINDOWS = [pytest.param(None, id="full"), pytest.param(20, id="window")]


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_extend_with_and_without_cached_prefix(shape: Shape, dtype: torch.dtype, window: int | None) -> None:
    # No prefix; a prefix with one, and with many new tokens; more than one chunk of queries; a block boundary.
    spans = [(0, 5), (30, 31), (17, 60), (3, QUERY_CHUNK + 9), (KEY_BLOCK - 2, KEY_BLOCK + 3)]
    world = World(shape, [stop for _, stop in spans], dtype, window)
    for request, seen in enumerate(world.run("EXTEND", spans)):
        world.check(seen, world.dense(request, *spans[request]))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_decode_of_ragged_batch(shape: Shape, dtype: torch.dtype, window: int | None) -> None:
    lens = [1, 40, 3, KEY_BLOCK, KEY_BLOCK + 1, 41]
    world = World(shape, lens, dtype, window)
    for request, seen in enumerate(world.run("DECODE", [(n - 1, n) for n in lens])):
        world.check(seen, world.dense(request, lens[request] - 1, lens[request]))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_mixed_chunk_of_prefill_and_decode_rows(dtype: torch.dtype, window: int | None) -> None:
    spans = [(0, 70), (25, 26), (64, 65), (10, 40)]
    world = World((9, 3, 64), [stop for _, stop in spans], dtype, window)
    for request, seen in enumerate(world.run("MIXED", spans)):
        world.check(seen, world.dense(request, *spans[request]))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_verify_of_trees(shape: Shape, dtype: torch.dtype, window: int | None) -> None:
    trees = [mask_of_parents(p) for p in ([-1, 0, 0, 1, 1, 2, 5], [-1, 0, 1, 2, 3, 4, 5], [-1, 0, 0, 0, 0, 0, 0])]
    spans = [(50, 57), (KEY_BLOCK - 3, KEY_BLOCK + 4), (1, 8)]
    world = World(shape, [stop for _, stop in spans], dtype, window)
    for request, seen in enumerate(world.run("TARGET_VERIFY", spans, verify_input(trees, 7))):
        world.check(seen, world.dense(request, *spans[request], tree=trees[request]))


@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_verify_of_ragged_drafts(shape: Shape, dtype: torch.dtype, window: int | None) -> None:
    """A tree, a lone root, a chain and a root in the next key block, in one call where they span as many blocks."""
    trees = [mask_of_parents([-1, 0, 0, 1, 1, 2, 5]), None, None, None]
    spans = [(50, 57), (40, 41), (9, 14), (KEY_BLOCK, KEY_BLOCK + 1)]
    world = World(shape, [stop for _, stop in spans], dtype, window)
    given = SimpleNamespace(row_counts=tuple(stop - start for start, stop in spans), trees=trees)
    for request, seen in enumerate(world.run("TARGET_VERIFY", spans, given)):
        world.check(seen, world.dense(request, *spans[request], tree=trees[request]))


@pytest.mark.parametrize("masks", ["none", "lower triangle"])
def test_verify_of_a_chain_is_an_extend(masks: str) -> None:
    spans = [(50, 58), (9, 17)]
    given = None if masks == "none" else [torch.ones(8, 8, dtype=torch.bool).tril()] * 2
    world = World((9, 3, 64), [stop for _, stop in spans])
    for request, seen in enumerate(world.run("TARGET_VERIFY", spans, verify_input(given, 8))):
        world.check(seen, world.dense(request, *spans[request]))


def test_verify_takes_masks_with_the_prefix_columns() -> None:
    tree = mask_of_parents([-1, 0, 0, 1])
    spans = [(6, 10), (3, 7)]
    full = [torch.cat([torch.ones(4, start, dtype=torch.bool), tree], dim=1) for start, _ in spans]
    world = World((4, 4, 32), [stop for _, stop in spans])
    for request, seen in enumerate(world.run("TARGET_VERIFY", spans, verify_input(full, 4))):
        world.check(seen, world.dense(request, *spans[request], tree=tree))


def test_verify_refuses_a_mask_of_the_wrong_size() -> None:
    world = World((4, 4, 32), [10])
    with pytest.raises(ValueError, match=r"holds 9 booleans.*expected 16"):
        world.run("TARGET_VERIFY", [(6, 10)], verify_input([torch.ones(3, 3, dtype=torch.bool)], 4))


@pytest.mark.parametrize("mode", ["DECODE", "EXTEND"])
def test_sliding_window_layers_read_their_own_pool(mode: str) -> None:
    """In a hybrid pool such a layer's slots are translated, for reading as for writing; evicted ones map to slot 0."""
    length, window = 40, 8
    world = World((4, 1, 64), [length], window=window)
    num_slots = world.pool.keys.shape[0]
    to_window_pool = torch.randperm(num_slots - 1, generator=torch.Generator().manual_seed(1)) + 1
    start = length - 1 if mode == "DECODE" else length - 5
    world.run("EXTEND", [(0, start)])
    keys, values = world.pool.keys.clone(), world.pool.values.clone()
    for slot in world.slots[0][:start].tolist():
        world.pool.keys[to_window_pool[slot - 1]] = keys[slot]
        world.pool.values[to_window_pool[slot - 1]] = values[slot]
    world.pool.keys[0] = world.pool.values[0] = 7.0
    mapping = torch.cat([torch.zeros(1, dtype=torch.int64), to_window_pool])
    mapping[world.slots[0][: start - window]] = 0

    def write(layer: Layer, where: Any, k: torch.Tensor, v: torch.Tensor) -> None:
        assert torch.equal(where.swa_loc, mapping[where.loc])
        world.pool.keys[where.swa_loc] = k.view(-1, 1, 64)
        world.pool.values[where.swa_loc] = v.view(-1, 1, 64)

    world.pool.set_kv_buffer = write  # type: ignore[method-assign]
    world.pool.layers_mapping = {0: (0, True)}  # type: ignore[attr-defined]
    world.pool.translate_loc_from_full_to_swa = lambda slots: mapping[slots.long()]  # type: ignore[attr-defined]
    world.backend.use_sliding_window_kv_pool = True
    world.store_prefix = False
    (seen,) = world.run(mode, [(start, length)])
    world.check(seen, world.dense(0, start, length))


def test_softcapped_logits() -> None:
    spans = [(0, 20), (15, 16)]
    world = World((4, 1, 64), [20, 16], logit_cap=1.5)
    for request, seen in enumerate(world.run("EXTEND", spans)):
        world.check(seen, world.dense(request, *spans[request]))


def test_request_without_new_tokens_is_skipped() -> None:
    world = World((4, 4, 32), [8, 9, 5])
    spans = [(2, 8), (9, 9), (0, 5)]
    for request, seen in enumerate(world.run("EXTEND", spans)):
        if seen.shape[0]:
            world.check(seen, world.dense(request, *spans[request]))


def test_idle_batch_needs_no_metadata() -> None:
    from sglang.srt.model_executor.forward_batch_info import ForwardMode

    world = World((4, 4, 32), [4])
    idle = SimpleNamespace(forward_mode=ForwardMode.IDLE, out_cache_loc=None)
    world.backend.init_forward_metadata(idle)
    assert world.backend.forward(torch.zeros(0, 128), None, None, world.layer, idle).shape == (0, 128)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
def test_layers_of_different_windows_share_a_pass(shape: Shape, dtype: torch.dtype) -> None:
    world = World(shape, [60], dtype)
    world.run("DECODE", [(59, 60)])
    for window in (10, -1, 25):
        world.layer.sliding_window_size = window
        world.window = None if window < 0 else window
        (seen,) = world.run("DECODE", [(59, 60)])
        world.check(seen, world.dense(0, 59, 60))


# --- bits ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("length", [5, 33, 131, 257, KEY_BLOCK - 1, KEY_BLOCK, KEY_BLOCK + 5, 2 * KEY_BLOCK + 1])
def test_float32_row_has_the_same_bits_however_it_is_computed(length: int, window: int | None) -> None:
    """The last token by prefill, behind a prefix, decoded alone, decoded beside others, and at the end of a chain."""
    world = World((9, 3, 64), [length, 40, length + 1], window=window)
    (whole,) = world.run("EXTEND", [(0, length)])
    (behind,) = world.run("EXTEND", [(length // 2, length)])
    (alone,) = world.run("DECODE", [(length - 1, length)])
    beside = world.run("DECODE", [(length - 1, length), (39, 40), (length, length + 1)])
    (chain,) = world.run("TARGET_VERIFY", [(length - 4, length)], verify_input(None, 4))
    counts = SimpleNamespace(row_counts=(4, 1, 1), trees=[None] * 3)
    ragged = world.run("TARGET_VERIFY", [(length - 4, length), (39, 40), (length, length + 1)], counts)
    assert torch.equal(ragged[0], chain)
    assert torch.equal(ragged[1], beside[1])
    assert torch.equal(behind, whole[length // 2 :])
    assert torch.equal(chain, whole[-4:])
    assert torch.equal(alone, whole[-1:])
    assert torch.equal(beside[0], whole[-1:])


@pytest.mark.usefixtures("one_thread")
def test_bfloat16_chain_has_the_bits_of_decoding() -> None:
    world = World((9, 3, 64), [300], torch.bfloat16)
    (chain,) = world.run("TARGET_VERIFY", [(292, 300)], verify_input(None, 8))
    for step in range(8):
        (decoded,) = world.run("DECODE", [(292 + step, 293 + step)])
        assert torch.equal(decoded[0], chain[step])


@pytest.mark.usefixtures("one_thread")
@pytest.mark.parametrize("out_features", [48, 960])
def test_float32_linear_rows_do_not_depend_on_their_number(out_features: int) -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(67, 576, generator=generator)
    weight, bias = torch.randn(out_features, 576, generator=generator), torch.randn(out_features, generator=generator)
    whole = row_invariant_linear(x, weight, bias)
    assert torch.allclose(whole.double(), x.double() @ weight.double().T + bias.double(), atol=2e-4)
    for rows in (1, 2, 3, 4, 7, 8, 33):
        assert torch.equal(row_invariant_linear(x[20 : 20 + rows], weight, bias), whole[20 : 20 + rows])


def test_linear_keeps_leading_dimensions_and_takes_no_rows() -> None:
    weight = torch.randn(5, 8)
    assert row_invariant_linear(torch.randn(2, 3, 8), weight).shape == (2, 3, 5)
    assert row_invariant_linear(torch.randn(0, 8), weight).shape == (0, 5)


# --- masks --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("window", [None, 0, 3, 100])
@pytest.mark.parametrize("keys", [range(16), range(4, 16)], ids=["from-start", "later-block"])
@pytest.mark.parametrize("parents", [None, [-1, 0, 0, 1, 3]], ids=["chain", "tree"])
def test_causal_bias_matches_the_rule_key_by_key(parents: list[int] | None, keys: range, window: int | None) -> None:
    tree = None if parents is None else mask_of_parents(parents)
    bias = causal_bias(6, 5, keys, window=window, tree=tree, dtype=torch.float32)
    for row in range(5):
        seen = [key for key in keys if bias[row, key - keys.start] == 0]
        assert seen == [key for key in visible_keys(6 + row, 6, window, tree) if key in keys]


def test_attend_rows_ignores_masked_keys_entirely() -> None:
    q, k, v = torch.randn(6, 4, 32), torch.randn(32, 2, 32), torch.randn(32, 2, 32)
    bias = causal_bias(3, 6, range(32), window=None, tree=None, dtype=torch.float32)
    before = attend_rows(q, k, v, bias, 0.2)
    k[9:], v[9:] = 1e4, -1e4
    assert torch.equal(attend_rows(q, k, v, bias, 0.2), before)


@pytest.mark.parametrize(("count", "expected"), [(0, 0), (1, 512), (512, 512), (513, 1024)])
def test_round_up(count: int, expected: int) -> None:
    assert round_up(count, 512) == expected
