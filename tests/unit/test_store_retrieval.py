"""Retrieval: the right context first, whatever was added, removed and merged before; sparse and dense."""

from __future__ import annotations

import itertools
import threading

import numpy as np
import pytest

from agentinfer.spec_sam.store import ContextStore, StoreError
from agentinfer.spec_sam.store.dense import DenseRetriever, sentence_transformers
from agentinfer.spec_sam.store.sparse import SparseRetriever


def brute_force(keys, query, key_tokens=256):
    """BM25 over the sets of token pairs, straight from the formula; similarity by context."""

    def pairs(tokens):
        cut = list(tokens)[-key_tokens:]
        return set(itertools.pairwise(cut))

    sets = {i: pairs(key) for i, key in keys.items()}
    wanted = pairs(query)
    idf = {}
    for pair in wanted:
        count = sum(pair in own for own in sets.values())
        idf[pair] = np.log1p((len(sets) - count + 0.5) / (count + 0.5))
    mean = max(1.0, np.mean([len(own) for own in sets.values()]))
    found = {}
    for i, own in sets.items():
        score = sum(idf[pair] for pair in wanted & own)
        score *= 2.2 / (1 + 1.2 * (0.25 + 0.75 * len(own) / mean)) / sum(idf.values())
        if score > 0:
            found[i] = min(1.0, score)
    return found


def random_keys(rng, num_keys, vocabulary=60):
    return {
        int(i): rng.integers(0, vocabulary, int(rng.integers(0, 80))) for i in rng.permutation(num_keys * 2)[:num_keys]
    }


def test_sparse_scores_are_bm25_after_any_adds_and_removals() -> None:
    rng = np.random.default_rng(5)
    index, held = SparseRetriever(), {}
    for step, (context_id, key) in enumerate(random_keys(rng, 300).items()):
        index.add([context_id], [np.asarray(key, np.int32)])
        held[context_id] = key
        if step % 7 == 0:
            gone = [int(i) for i in rng.permutation(list(held))[: step % 5]]
            index.remove(gone)
            for i in gone:
                del held[i]
        if step % 11 == 0:
            index.check_integrity(held)
            query = rng.integers(0, 60, 50).astype(np.int32)
            hits = dict(index.search(query, 10_000, ()))
            # Removed contexts stay in the blocks, and so in the pairs' counts, until a merge: few at any time.
            expected = brute_force(held, query)
            assert hits.keys() == expected.keys()
            assert [hits[i] for i in sorted(hits)] == pytest.approx([expected[i] for i in sorted(hits)], rel=0.35)


def test_sparse_scores_are_exactly_bm25_without_removals() -> None:
    rng = np.random.default_rng(6)
    held = random_keys(rng, 200)
    one_by_one, at_once = SparseRetriever(), SparseRetriever()
    for context_id, key in held.items():
        one_by_one.add([context_id], [np.asarray(key, np.int32)])
    at_once.add(list(held), [np.asarray(key, np.int32) for key in held.values()])
    for _ in range(20):
        query = rng.integers(0, 60, 40).astype(np.int32)
        expected = brute_force(held, query)
        best = sorted(expected, key=lambda i: (-expected[i], -i))[:7]
        for index in (one_by_one, at_once):
            hits = index.search(query, 7, ())
            assert [hit.similarity for hit in hits] == pytest.approx([expected[i] for i in best])
            assert {hit.context_id for hit in hits[:3]} <= set(best)


def test_long_queries_and_keys_count_by_their_ends() -> None:
    index = SparseRetriever(key_tokens=8)
    index.add([1, 2], [np.arange(100, dtype=np.int32), np.arange(100, 0, -1, dtype=np.int32)])
    assert [hit.context_id for hit in index.search(np.arange(50, 100, dtype=np.int32), 5, ())] == [1]
    assert index.search(np.arange(50, dtype=np.int32), 5, ()) == []


def test_the_same_situation_is_similar_by_one_and_the_later_of_equals_comes_first() -> None:
    index = SparseRetriever()
    key = np.arange(50, dtype=np.int32)
    index.add([3, 9, 5], [key, key, key])
    assert [(hit.context_id, round(hit.similarity, 6)) for hit in index.search(key, 3, [9])] == [(5, 1.0), (3, 1.0)]


def test_index_memory_is_bounded_by_the_key_length() -> None:
    rng = np.random.default_rng(0)
    index = SparseRetriever(key_tokens=64)
    for context_id in range(500):
        index.add([context_id], [rng.integers(0, 50_000, 5000).astype(np.int32)])
    assert index.memory_bytes() / 500 < 64 * 12 + 200


def test_searches_run_while_contexts_come_and_go() -> None:
    index = SparseRetriever()
    rng = np.random.default_rng(1)
    keys = [rng.integers(0, 30, 40).astype(np.int32) for _ in range(600)]
    errors = []
    is_over = threading.Event()

    def search() -> None:
        try:
            while not is_over.is_set():
                for hit in index.search(keys[0], 5, range(10)):
                    assert hit.context_id >= 10
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for context_id, key in enumerate(keys):
        index.add([context_id], [key])
        if context_id % 3 == 2:
            index.remove([context_id - 2, context_id - 1])
    is_over.set()
    for thread in threads:
        thread.join()
    assert not errors
    index.check_integrity(range(2, 600, 3))


def test_what_was_said_in_the_same_situation_is_found(tmp_path) -> None:
    """Situations: a tool's output. What came next is what a draft needs, and it shares nothing with the query."""
    outputs = [np.arange(1000 * n, 1000 * n + 200) for n in range(20)]
    answers = [np.arange(50_000 + 100 * n, 50_000 + 100 * n + 30) for n in range(20)]
    with ContextStore(tmp_path, "t") as store:
        for n, (output, answer) in enumerate(zip(outputs, answers, strict=True)):
            store.add("ns", f"s{n}", 0, np.concatenate([np.arange(100), output]), answer)
            store.add("ns", f"s{n}", 1, np.concatenate([np.arange(100), output, answer, np.arange(300)]), [4])
        for n, output in enumerate(outputs):
            hit = store.retrieve("ns", np.concatenate([[9, 9, 9], output]), 1)[0]
            assert hit.session == f"s{n}"
            assert hit.tokens[hit.response_start :].tolist() == answers[n].tolist()
            other = store.retrieve("ns", np.concatenate([[9, 9, 9], output]), 1, exclude_session=f"s{n}")
            assert all(hit.session != f"s{n}" for hit in other)


def test_namespaces_do_not_see_each_other(tmp_path) -> None:
    with ContextStore(tmp_path, "t") as store:
        store.add("red", "s", 0, [1, 2, 3], [4])
        store.add("blue", "s", 0, [1, 2, 3], [5])
        assert [hit.tokens[-1] for hit in store.retrieve("red", [1, 2, 3], 9)] == [4]
        assert store.retrieve("green", [1, 2, 3], 9) == []


def test_retrieved_tokens_outlive_eviction_and_cannot_be_written(tmp_path) -> None:
    with ContextStore(tmp_path, "t") as store:
        store.add("ns", "s", 0, list(range(50)), [7, 8])
        (hit,) = store.retrieve("ns", list(range(50)), 1)
        store.evict(0)
        assert store.retrieve("ns", list(range(50)), 1) == []
        assert hit.tokens.tolist() == [*range(50), 7, 8]
        with pytest.raises(ValueError, match="read-only"):
            hit.tokens[0] = 1


def bag_of_words(texts):
    rows = np.zeros((len(texts), 64), np.float32)
    for row, text in zip(rows, texts, strict=True):
        for word in text.split():
            row[int(word) % 64] += 1
    return rows


def test_dense_retrieval_ranks_by_cosine_behind_the_same_store(tmp_path) -> None:
    def dense() -> DenseRetriever:
        return DenseRetriever(bag_of_words, lambda tokens: " ".join(map(str, tokens)), key_tokens=16)

    with ContextStore(tmp_path, "t", retriever=dense) as store:
        near = store.add("ns", "near", 0, [1, 2, 3, 4], [60])
        nearer = store.add("ns", "nearer", 0, [4, 3, 2, 5], [61])
        store.add("ns", "far", 0, [20, 21], [62])
        hits = store.retrieve("ns", [5, 4, 3, 2], 3)
        assert [hit.context_id for hit in hits] == [nearer, near]
        assert [hit.similarity for hit in hits] == pytest.approx([1.0, 0.75])
        assert [h.session for h in store.retrieve("ns", [5, 4, 3, 2], 3, exclude_session="nearer")] == ["near"]
        store.evict(0)
        store.check_integrity()


def test_dense_retrieval_without_its_package_says_what_to_install(monkeypatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "sentence_transformers", None)
    with pytest.raises(StoreError, match="pip install sentence-transformers"):
        sentence_transformers()
