"""Kernels of gradients: against solves, explicit refits of ridge regressions, loops, and a plain copy of (k1)."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ensdiff.attribution.gradients import (
    GradientConfig,
    MemberKernel,
    Setting,
    kernels,
    member_scores,
    over_units,
    reduce,
    reduction,
    stream_scores,
)

SEEDS, RIDGE = st.integers(0, 1000), st.floats(1e-4, 10)
SHAPES = st.tuples(st.integers(2, 9), st.integers(1, 7))  # items and dimension: more items than dimensions, and fewer


def drawn(seed, n, D):
    """Return gradients of n items, of 3 queries, and which items were seen (at least one)."""
    rng = np.random.default_rng(seed)
    seen = rng.random(n) < 0.5
    seen[rng.integers(n)] = True
    return rng.normal(size=(n, D)), rng.normal(size=(3, D)), seen


def damped(phi_sD, ridge):
    """Return A of (k1)."""
    D = phi_sD.shape[1]
    gram = phi_sD.T @ phi_sD
    return gram + ridge * np.trace(gram) / D * np.eye(D)


@given(SEEDS, SHAPES, RIDGE)
def test_plain_kernel_against_a_solve(seed, shape, ridge):
    phi, query, _ = drawn(seed, *shape)
    expected = query @ np.linalg.solve(damped(phi, ridge), phi.T)
    np.testing.assert_allclose(MemberKernel(phi).scores(query, ridge), expected, rtol=1e-6, atol=1e-9)


@given(SEEDS, SHAPES, RIDGE)
def test_removals_and_additions_are_explicit_refits(seed, shape, ridge):
    """A ridge regression's prediction changes by the score times the item's residual when it is removed or added."""
    phi, query, seen = drawn(seed, *shape)
    y = np.random.default_rng(seed + 1).normal(size=len(phi))
    shift = damped(phi[seen], ridge) - phi[seen].T @ phi[seen]  # n_S lambda I, which stays

    def fit(rows):
        return np.linalg.solve(phi[rows].T @ phi[rows] + shift, phi[rows].T @ y[rows])

    theta = fit(seen)
    kernel = MemberKernel(phi, seen)
    scores = kernel.scores(query, ridge)
    others = kernel.scores_of(query, phi, ridge)
    for i in range(len(phi)):
        changed = seen.copy()
        changed[i] = not changed[i]
        change = query @ (fit(changed) - theta) if not seen[i] else query @ (theta - fit(changed))
        residual = y[i] - phi[i] @ theta
        np.testing.assert_allclose(scores[:, i] * residual, change, rtol=1e-6, atol=1e-9)
        if not seen[i]:
            np.testing.assert_allclose(others[:, i], scores[:, i], rtol=1e-9)


@given(SEEDS)
def test_a_linear_model_s_influence(seed):
    """Up to the residual, (k1) is the derivative of a least-squares prediction with respect to an item's weight."""
    rng = np.random.default_rng(seed)
    X, y, q = rng.normal(size=(20, 4)), rng.normal(size=20), rng.normal(size=(3, 4))
    shift = damped(X, 1e-6) - X.T @ X

    def predictions(weight):
        theta = np.linalg.solve((X * weight[:, None]).T @ X + shift, X.T @ (weight * y))
        return q @ theta, y - X @ theta

    _, residual = predictions(np.ones(20))
    scores = MemberKernel(X).scores(q, 1e-6) * residual
    for i in range(20):
        up, down = np.ones(20), np.ones(20)
        up[i], down[i] = 1 + 1e-5, 1 - 1e-5
        derivative = (predictions(up)[0] - predictions(down)[0]) / 2e-5
        np.testing.assert_allclose(scores[:, i], derivative, rtol=1e-5, atol=1e-7)


def test_gradients_of_zeros_and_bad_arguments():
    kernel = MemberKernel(np.zeros((4, 2)), np.ones(4))
    assert (kernel.scores(np.ones((3, 2)), 0.1) == 0).all()
    assert (MemberKernel(np.ones((4, 2)), np.zeros(4)).scores(np.ones((3, 2)), 0.1) == 0).all()
    with pytest.raises(ValueError, match="ridge=0"):
        kernel.scores(np.ones((3, 2)), 0.0)
    with pytest.raises(ValueError, match="each of 4 items"):
        MemberKernel(np.zeros((4, 2)), np.ones(3))


# reduction


@given(SEEDS, st.integers(1, 5), st.sampled_from(["all", "low", "high"]), st.booleans())
def test_reduce_against_a_loop(seed, G, levels, normalize):
    phi = np.random.default_rng(seed).normal(size=(2, 3, G, 4)).astype(np.float16)
    found = reduce(phi, Setting(1.0, levels, normalize, 2))
    used = {"all": range(G), "low": range((G + 1) // 2), "high": range(G // 2, G)}[levels]
    for k, b in np.ndindex(2, 3):
        total = np.zeros(2)
        for g in used:
            row = phi[k, b, g].astype(np.float64)
            folded = row[:2] + row[2:]
            total += folded / np.linalg.norm(folded) if normalize else folded
        np.testing.assert_allclose(found[k, b], total / len(used), rtol=1e-9, atol=1e-12)


def test_reduce_refuses():
    with pytest.raises(ValueError, match="divisor of the gradients' dimension 4"):
        reduce(np.ones((1, 1, 4)), Setting(1.0, dimension=3))
    with pytest.raises(ValueError, match="levels='middle'"):
        reduce(np.ones((1, 1, 4)), Setting(1.0, "middle", dimension=4))


# scores of the methods


def gradients(seed, *outputs, K=2, B=3, n=8, m=2, G=4, D=4):
    rng = np.random.default_rng(seed)
    query, train, extra = (
        {output: rng.normal(size=(K, items, G, D)).astype(np.float32) for output in outputs} for items in (B, n, m)
    )
    return query, train, extra, rng.random((n, K)) < 0.6


@pytest.mark.parametrize("method", ["trak", "d-trak"])
def test_plain_scores_are_the_formula_over_all_draws(method):
    """Without membership, the mean over members is (k1) of the gradients of all draws, as always."""
    output = {"trak": "loss", "d-trak": "square"}[method]
    query, train, _, _ = gradients(0, output)
    config = GradientConfig(ridge=0.1, levels="all", normalize=False, dimension=4, members=False)
    found = member_scores(method, query, train, None, *config.settings()).items_KBn.mean(0)
    expected = np.zeros((3, 8))
    for k in range(2):
        phi, q = train[output][k].mean(1).astype(np.float64), query[output][k].mean(1)
        kernel = phi.T @ phi / 8
        expected += q @ np.linalg.solve(kernel + 0.1 * np.trace(kernel) / 4 * np.eye(4), phi.T) / 8 / 2
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("normalize", [False, True])
def test_das_against_loops(normalize):
    query, train, extra, seen = gradients(1, "loss", "output")
    setting = Setting(0.3, "high", normalize, 4)
    found = member_scores("das", query, train, seen, setting, extra)
    for k in range(2):
        psi, step = (reduce(train[output][k], setting) for output in ("output", "loss"))
        inverse = np.linalg.inv(damped(psi[seen[:, k]], 0.3))
        more_psi, more_step = (reduce(extra[output][k], setting) for output in ("output", "loss"))
        for b in range(3):
            parts = query["output"][k, b, 2:].astype(np.float64)
            parts = parts / np.linalg.norm(parts, axis=1, keepdims=True) if normalize else parts
            for i in range(8):
                h = psi[i] @ inverse @ psi[i]
                delta = inverse @ step[i] / (1 - h if seen[i, k] else 1 + h)
                assert found.items_KBn[k, b, i] == pytest.approx(np.mean([(g @ delta) ** 2 for g in parts]), rel=1e-4)
            for j in range(2):
                delta = inverse @ more_step[j] / (1 + more_psi[j] @ inverse @ more_psi[j])
                assert found.extra_KBm[k, b, j] == pytest.approx(np.mean([(g @ delta) ** 2 for g in parts]), rel=1e-4)
    assert (found.items_KBn >= 0).all()


@pytest.mark.parametrize("method", ["trak", "das"])
def test_all_settings_at_once_are_each_setting_alone(method):
    query, train, extra, seen = gradients(2, *kernels.OUTPUTS[method])
    settings = GradientConfig(dimension=4).settings()
    found = {(one.member, one.setting): one for one in stream_scores(method, query, train, seen, settings, extra)}
    assert len(found) == 2 * 24
    for setting in settings[::5]:
        alone = member_scores(method, query, train, seen, setting, extra)
        for k in range(2):
            np.testing.assert_allclose(found[k, setting].items_Bn, alone.items_KBn[k], rtol=1e-5, atol=1e-9)
            np.testing.assert_allclose(found[k, setting].extra_Bm, alone.extra_KBm[k], rtol=1e-5, atol=1e-9)


class Rows:
    """Gradients that can only be sliced, and that count the most rows read at once."""

    def __init__(self, phi):
        self.shape, self._phi, self.most = phi.shape, phi, 0

    def __getitem__(self, rows):
        assert isinstance(rows, slice)
        self.most = max(self.most, len(self._phi[rows]))
        return self._phi[rows]


@pytest.mark.parametrize("D", [2, 16])
def test_stored_gradients_are_read_in_chunks(monkeypatch, D):
    query, train, _, seen = gradients(3, "loss", D=D)
    stored = {"loss": [Rows(phi.astype(np.float16)) for phi in train["loss"]]}
    setting = Setting(0.1, dimension=D)
    rounded = {"loss": train["loss"].astype(np.float16)}
    expected = member_scores("trak", query, rounded, seen, setting).items_KBn
    monkeypatch.setattr(reduction, "CHUNK_BYTES", 8 * D * 3)
    monkeypatch.setattr(reduction, "HELD_BYTES", 0)
    found = member_scores("trak", query, stored, seen, setting).items_KBn
    assert [rows.most for rows in stored["loss"]] == [3, 3]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_plain_kernel_treats_held_out_items_as_training_items():
    """An item scores the same outside of training as inside, where its gradient is in the kernel."""
    rng = np.random.default_rng(0)
    query, all_nD = ({"loss": rng.normal(size=(2, n, 1, 5))} for n in (3, 9))
    setting = Setting(1e-6, dimension=5)  # the damping is another with one more item
    train, extra = ({"loss": all_nD["loss"][:, part]} for part in (slice(8), slice(8, None)))
    inside = member_scores("trak", query, all_nD, None, setting)
    outside = member_scores("trak", query, train, None, setting, extra)
    np.testing.assert_allclose(outside.extra_KBm[..., 0], inside.items_KBn[..., 8], rtol=1e-3)


@given(SEEDS, st.integers(1, 6))
def test_over_units_against_a_loop(seed, units):
    rng = np.random.default_rng(seed)
    scores, unit_of_item = rng.normal(size=(2, 3, 7)), rng.integers(0, units, 7)
    found = over_units(scores, unit_of_item, units)
    for unit in range(units):
        expected = sum((scores[:, :, i] for i in range(7) if unit_of_item[i] == unit), np.zeros((2, 3)))
        np.testing.assert_allclose(found[:, :, unit], expected, rtol=1e-5, atol=1e-6)
    assert (over_units(scores, np.arange(7), 7) == scores.astype(np.float32)).all()


def test_gradients_that_do_not_fit():
    query, train, extra, seen = gradients(4, "loss")
    setting = Setting(0.1, dimension=4)
    with pytest.raises(ValueError, match="query has no gradients of 'square'"):
        member_scores("d-trak", query, train, seen, setting)
    with pytest.raises(ValueError, match="expected .K, items, G, D."):
        member_scores("trak", {"loss": query["loss"][:1]}, train, seen, setting)
    with pytest.raises(ValueError, match="8 items and 2 members"):
        member_scores("trak", query, train, seen.T, setting)
    with pytest.raises(ValueError, match="'trak', 'd-trak', 'das'"):
        member_scores("cosine", query, train, seen, setting, extra)
