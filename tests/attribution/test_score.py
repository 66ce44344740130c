"""Scoring units by quadratic forms: against direct losses and loops, for any chunk size, device count and order."""

import math

import jax
import numpy as np
import pytest

import ensdiff
from ensdiff.attribution.candidates import Candidates, uniform
from ensdiff.attribution.compiled_words import compilable, word_fn
from ensdiff.attribution.differential import quadratic_influence
from ensdiff.attribution.forms import evaluate, gram_forms, loss_forms, score_words, stream
from ensdiff.attribution.ranking import Top
from ensdiff.codes import Code


def gram_of(members, samples=3, seed=0, rank=50):
    tangent = np.random.default_rng(seed).normal(size=(samples, members, rank))
    return tangent @ tangent.transpose(0, 2, 1)


@pytest.mark.parametrize(("members", "weight", "units"), [
    (3, 1, 3), (8, 4, 60), (16, 8, 5000), (17, 5, 6000), (32, 16, 10**7), (34, 17, 10**8), (48, 11, 10**7),
    (60, 30, 10**9), (64, 20, 10**6),
])  # fmt: skip
def test_compiled_words_are_the_codes(members, weight, units):
    code = Code(members, units, weight, key=0x9E3779B97F4A7C15)
    ids = np.random.default_rng(0).integers(0, units, 500)
    with jax.enable_x64(True):
        words = np.asarray(jax.jit(word_fn(code))(ids.astype(np.uint64)))
    bits = (words[:, None] >> np.arange(members - 1, -1, -1, dtype=np.uint64)) & np.uint64(1)
    np.testing.assert_array_equal(bits, code.rows(ids))


def test_words_that_are_not_compiled():
    for code in (Code.balanced(70, 100), Code.from_matrix(Code.balanced(8, 60).matrix())):
        assert not compilable(code)
        with pytest.raises(ValueError, match="not compiled"):
            word_fn(code)


@pytest.mark.parametrize(("members", "weight"), [(4, 2), (9, 2), (16, 8), (33, 20), (64, 32), (80, 40)])
def test_scores_against_a_loop_over_members(members, weight):
    """Tables of byte pairs (and, beyond 64 members, products) give the explicit sums over members."""
    rng = np.random.default_rng(1)
    words = np.array([rng.permutation(np.arange(members) < weight) for _ in range(40)]).astype(np.uint8)
    words[0] = 0
    words[0, :1] = 1  # a word of another weight
    matrix, w = gram_of(members), rng.dirichlet(np.ones(members))
    distances, losses = gram_forms(matrix, w), loss_forms(matrix, w)
    got_distance, got_loss = score_words(distances, words), score_words(losses, words, chunk=7)
    for b in range(3):
        for m, word in enumerate(words):
            survivors = [k for k in range(members) if not word[k]]
            row = np.array([1 / len(survivors) if k in survivors else 0.0 for k in range(members)])
            d = row - w
            square = sum(d[k] * matrix[b, k, l] * d[l] for k in range(members) for l in range(members))
            loss = row @ matrix[b] @ row - w @ matrix[b] @ w
            assert got_distance[b, m] == pytest.approx(math.sqrt(square), rel=1e-5)
            assert got_loss[b, m] == pytest.approx(loss, rel=1e-4, abs=1e-4)
    np.testing.assert_allclose(evaluate(distances, words), got_distance, rtol=1e-5)
    np.testing.assert_allclose(quadratic_influence(matrix, uniform(words), w), got_distance, rtol=1e-5)


@pytest.mark.parametrize("source", ["compiled", "rows"])
def test_streaming_does_not_depend_on_chunks(source):
    """10^5 units are scored in chunks of several sizes, and all at once on the host."""
    code = Code.balanced(20, 10**5, seed=2)
    forms = gram_forms(gram_of(20), np.full(20, 1 / 20))
    every = evaluate(forms, code.matrix())
    given = code if source == "compiled" else lambda start, stop: code.rows(np.arange(start, stop))
    for chunk in (None, 10**5, 33_333):
        top, seen = Top(3, 25), 0
        for start, scores in stream(forms, code.units, given, chunk=chunk):
            assert start == seen
            np.testing.assert_allclose(scores, every[:, start : start + scores.shape[1]], rtol=1e-5)
            seen += scores.shape[1]
            top.update(start, scores)
        assert seen == 10**5
        for b in range(3):
            # float32 may swap neighbours
            np.testing.assert_allclose(every[b, top.index_BT[b]], np.sort(every[b])[::-1][:25], rtol=1e-6)
            np.testing.assert_allclose(top.scores_BT[b], np.sort(every[b])[::-1][:25], rtol=1e-5)


def test_scores_do_not_depend_on_the_number_of_devices(monkeypatch):
    code, forms = Code.balanced(20, 10**5, seed=2), gram_forms(gram_of(20), np.full(20, 1 / 20))
    devices = jax.local_devices()
    assert len(devices) > 1
    results = []
    for count in (1, len(devices)):
        monkeypatch.setattr(jax, "local_devices", lambda count=count: devices[:count])
        results.append(np.concatenate([scores for _, scores in stream(forms, code.units, code)], axis=1))
    np.testing.assert_array_equal(*results)


def test_products_agree_with_tables(monkeypatch):
    """An accelerator multiplies matrices instead of looking up tables."""
    forms, words = gram_forms(gram_of(20), np.full(20, 1 / 20)), Code.balanced(20, 500).matrix()
    tables = score_words(forms, words)
    monkeypatch.setattr("ensdiff.attribution.forms.MAX_MEMBERS", 8)
    np.testing.assert_allclose(score_words(forms, words), tables, rtol=1e-5)


def test_top_against_sorting(rng):
    scores = rng.integers(0, 30, (2, 400)).astype(np.float32)  # many ties
    for top in (1, 7, 400):
        best = Top(2, top)
        for start in range(0, 400, 37):
            best.update(start, scores[:, start : start + 37])
        for b in range(2):
            order = np.lexsort((np.arange(400), -scores[b]))[:top]
            np.testing.assert_array_equal(best.index_BT[b], order)
            np.testing.assert_array_equal(best.scores_BT[b], scores[b, order])


def test_candidates():
    code = Code.from_matrix([[1, 1, 0, 0, 0], [0, 1, 1, 0, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 1]])
    sets = Candidates.of(code, [{0, 1}, 3, [2, 2]])
    np.testing.assert_array_equal(sets.words(np.arange(3)), [[1, 1, 1, 0, 0], [0, 0, 0, 0, 1], [0, 0, 1, 1, 0]])
    np.testing.assert_array_equal(sets.kind_N, [2, 1, 1])
    some = Candidates.of(code, [2, 0])
    np.testing.assert_array_equal(some.units(np.array([[1, 0]])), [[0, 2]])  # in the given order
    some = some.by_id()
    np.testing.assert_array_equal(some.units(np.array([[1, 0]])), [[2, 0]])
    np.testing.assert_array_equal(some.kind_N, [2, 2])
    np.testing.assert_allclose(some.weights(np.array([1])), [[1 / 3, 1 / 3, 0, 0, 1 / 3]])
    with pytest.raises(ensdiff.NoSurvivorError, match="units 0, 2, 3"):
        Candidates.of(code, [{0, 2, 3}])
