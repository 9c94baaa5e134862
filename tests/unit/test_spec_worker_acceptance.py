"""What a step gains: what the target emits along the drafts, with each request's own sampling, at its own rows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

pytestmark = pytest.mark.sglang

VOCABULARY = 50

# Request 0: a tree whose nodes carry 10, then 11 | 12, below 11 a 13. Request 1: only its root.
TOKENS = np.array([[10, 11, 12, 13], [20, 0, 0, 0]], dtype=np.int32)
PARENTS = np.array([[-1, 0, 0, 1], [-1, -1, -1, -1]], dtype=np.int32)
NODES = np.array([4, 1])


def layout(width: int | None = None) -> Any:
    from agentinfer.runtime.speculation.layout import step_layout

    return step_layout(TOKENS, PARENTS, NODES, np.array([5, 6]), width)


def logits_for(wanted: list[int]) -> torch.Tensor:
    """Rows that each want one token, with a runner-up."""
    logits = torch.zeros(len(wanted), VOCABULARY)
    for row, token in enumerate(wanted):
        logits[row, token] = 5.0
        logits[row, (token + 7) % VOCABULARY] = 4.0
    return logits


def sampling_info(**fields: Any) -> Any:
    """The batch's sampling parameters, all greedy unless told."""
    info = {
        "temperatures": torch.ones(2, 1),
        "top_ps": torch.ones(2),
        "top_ks": torch.ones(2, dtype=torch.int32),
        "min_ps": torch.zeros(2),
        "sampling_seed": None,
        "is_all_greedy": True,
        "is_any_greedy": True,
        "need_top_p_sampling": False,
        "need_top_k_sampling": False,
        "need_min_p_sampling": False,
        "acc_additive_penalties": None,
        "acc_scaling_penalties": None,
        "logit_bias": None,
        "has_custom_logit_processor": False,
    }
    return SimpleNamespace(**{**info, **fields})


def gained(logits: torch.Tensor, info: Any, width: int | None = None) -> list[list[int]]:
    from agentinfer.runtime.speculation.acceptance import accept

    accepted = accept(logits, layout(width), info, None, torch.zeros(len(logits)), True)
    rows = [path[:length] for path, length in zip(accepted.rows.tolist(), accepted.lens.tolist(), strict=True)]
    return [[int(accepted.predict[row]) for row in path] for path in rows]


@pytest.mark.parametrize(
    ("wanted", "tokens"),
    [
        ([11, 13, 40, 41, 42], [[11, 13, 41], [42]]),
        ([12, 13, 40, 41, 42], [[12, 40], [42]]),
        ([30, 13, 40, 41, 42], [[30], [42]]),
        ([11, 30, 40, 41, 42], [[11, 30], [42]]),
    ],
    ids=["whole path", "other branch", "nothing", "half"],
)
def test_greedy_requests_follow_the_targets_choices(wanted: list[int], tokens: list[list[int]]) -> None:
    assert gained(logits_for(wanted), sampling_info()) == tokens
    padded = [*wanted[:4], wanted[4], 0, 0, 0]
    assert gained(logits_for(padded), sampling_info(), width=4) == tokens


def test_greedy_requests_beside_sampled_ones_take_the_best_token() -> None:
    info = sampling_info(
        is_all_greedy=False, need_top_k_sampling=True, top_ks=torch.tensor([1, VOCABULARY], dtype=torch.int32)
    )
    for _ in range(20):
        assert gained(logits_for([11, 13, 40, 41, 42]), info)[0] == [11, 13, 41]


def test_sampled_tokens_are_drawn_at_every_node_that_is_reached() -> None:
    """Each row wants its token with probability 0.73 against its runner-up: the share of whole paths is 0.73 squared,
    0.534, within 4 standard deviations of 1000 draws."""
    torch.manual_seed(0)
    info = sampling_info(is_all_greedy=False, is_any_greedy=False, top_ks=torch.tensor([2, 2], dtype=torch.int32))
    info.need_top_k_sampling = True
    paths = [gained(logits_for([11, 13, 40, 41, 42]), info)[0] for _ in range(1000)]
    assert all(path[0] in (11, 18) for path in paths)
    assert all((len(path) > 1) == (path[0] == 11) for path in paths)
    share = sum(len(path) == 3 for path in paths) / len(paths)
    assert abs(share - 0.7311**2) < 4 * (0.534 * 0.466 / 1000) ** 0.5


def test_logit_bias_reaches_all_rows_of_its_request_alone() -> None:
    from agentinfer.runtime.speculation.acceptance import prepare_logits

    bias = torch.zeros(2, VOCABULARY)
    bias[0, 3], bias[1, 4] = 2.0, -1.0
    logits = torch.zeros(5, VOCABULARY)
    prepare_logits(logits, layout(), sampling_info(logit_bias=bias), None)
    assert logits[:, 3].tolist() == [2, 2, 2, 2, 0]
    assert logits[:, 4].tolist() == [0, 0, 0, 0, -1]


def test_penalties_apply_in_the_engines_order_at_the_roots() -> None:
    from agentinfer.runtime.speculation.acceptance import prepare_logits

    additive, scaling = torch.zeros(2, VOCABULARY), torch.ones(2, VOCABULARY)
    additive[1, 9], scaling[1, 9] = -0.5, 2.0
    logits = torch.ones(5, VOCABULARY)
    info = sampling_info(acc_additive_penalties=additive, acc_scaling_penalties=scaling)
    prepare_logits(logits, layout(), info, None)
    assert logits[4, 9] == 0.25
    assert (logits[:4] == 1).all()


def test_requests_own_processors_see_their_roots_only() -> None:
    from sglang.srt.sampling.sampling_batch_info import ProcessorEntry

    from agentinfer.runtime.speculation.acceptance import prepare_logits

    seen: list[Any] = []

    def processor(rows: torch.Tensor, params: list[Any]) -> torch.Tensor:
        seen.append((rows.shape[0], params))
        return rows + 1

    class Info(SimpleNamespace):
        def __len__(self) -> int:
            return 2

    info = Info(
        **vars(sampling_info(has_custom_logit_processor=True)),
        custom_params=[None, {"x": 1}],
        custom_logit_processor={0: ProcessorEntry(processor, [1], torch.tensor([1]))},
        device="cpu",
    )
    logits = torch.zeros(5, VOCABULARY)
    prepare_logits(logits, layout(), info, None)
    assert seen == [(1, [{"x": 1}])]
    assert (logits[4] == 1).all()
    assert (logits[:4] == 0).all()


@pytest.mark.parametrize(
    ("changes", "is_plain"),
    [
        ({}, False),
        ({"frequency_penalty": 0.1}, True),
        ({"presence_penalty": -0.1}, True),
        ({"repetition_penalty": 1.1}, True),
        ({"min_new_tokens": 3}, True),
        ({"min_new_tokens": 2}, False),
        ({"processor": "text"}, True),
    ],
    ids=["none", "frequency", "presence", "repetition", "too short yet", "long enough", "own processor"],
)
def test_requests_whose_tokens_depend_on_the_last_ones_are_decoded_plainly(
    changes: dict[str, Any], is_plain: bool
) -> None:
    from agentinfer.runtime.speculation.planning import needs_plain_decoding

    params = {"frequency_penalty": 0.0, "presence_penalty": 0.0, "repetition_penalty": 1.0, "min_new_tokens": 0}
    request = SimpleNamespace(
        sampling_params=SimpleNamespace(**{**params, **changes}),
        output_ids=[1, 2],
        custom_logit_processor=changes.get("processor"),
    )
    assert needs_plain_decoding(request) is is_plain
