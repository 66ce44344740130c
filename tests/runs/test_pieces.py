"""Interrupted attribution continues: finished parts are kept, and the result is the same bit for bit."""

import functools
import sys

import numpy as np
import pytest

import ensdiff
from ensdiff.attribution import loss, ranking, scoring
from ensdiff.runs import pieces as pieces_module
from ensdiff.runs.pieces import Pieces, pieces
from tests.faults import cut, flip, flips
from tests.helpers import random_ensemble

pytestmark = [pytest.mark.faults, pytest.mark.slow]


class Interrupted(BaseException):
    """Not an Exception, like KeyboardInterrupt."""


def interrupt(monkeypatch, module, name, calls):
    """Let a function run ``calls`` times, then raise `Interrupted`. Return the list of its calls."""
    plain, made = getattr(module, name), []

    def counted(*args, **options):
        if len(made) == calls:
            raise Interrupted
        made.append(name)
        return plain(*args, **options)

    monkeypatch.setattr(module, name, counted)
    return made


@pytest.fixture(scope="module")
def five():
    """Return an ensemble of five members, so that four words are left for the null."""
    return random_ensemble(ensdiff.Code.balanced(members=5, units=6, weight=2, seed=0))


@pytest.fixture(scope="module")
def samples(five):
    return ensdiff.sample(five, 0, 3, steps=2)


def equal(a, b):
    for name in ("units", "influence", "p_value", "q_value", "null_BL"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


def test_exact_ablation_goes_on(five, samples, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "PAIRS_OF_A_PIECE", 6)  # two units of three samples
    folder = tmp_path / "partial"
    options = dict(top=2, null=3, partial=folder)
    expected = ensdiff.attribute(five, samples, "exact", **options)
    assert not folder.exists()
    with monkeypatch.context() as patch:
        made = interrupt(patch, scoring, "measured_influence", 3)
        with pytest.raises(Interrupted):
            ensdiff.attribute(five, samples, "exact", **options)
        assert len(made) == 3
    assert len(list(folder.glob("*.npz"))) == 3
    flip(sorted(folder.glob("*.npz"))[0], 100)
    with monkeypatch.context() as patch:
        made = interrupt(patch, scoring, "measured_influence", 99)
        with pytest.warns(ensdiff.DamageWarning, match="does not match its checksum and is recomputed"):
            found = ensdiff.attribute(five, samples, "exact", **options)
        assert len(made) == 5 - 3 + 1  # pieces: three of the units, two of the null; one was damaged
    equal(found, expected)
    assert not folder.exists()
    at_once = ensdiff.attribute(five, samples, "exact", top=2, null=3)
    np.testing.assert_allclose(at_once.influence, expected.influence, rtol=1e-5)  # batches of a different size


def test_other_files_in_the_folder_stay(tmp_path):
    (tmp_path / "notes.txt").write_text("of the user")
    with pieces(tmp_path, 1) as kept:
        kept.get(lambda: np.ones(2), "a")
        next(tmp_path.glob("*.npz")).rename(tmp_path / f".{'0' * 64}.npz.123")  # a file that a killed process left
        kept.get(lambda: np.ones(2), "b")
    assert [p.name for p in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(NotADirectoryError, match=r"notes\.txt is not a folder"), pieces(tmp_path / "notes.txt", 1):
        pass


def test_pieces_of_other_things_are_not_taken(five, samples, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        interrupt(patch, scoring, "measured_influence", 1)
        with pytest.raises(Interrupted):
            ensdiff.attribute(five, samples, "exact", top=2, null=3, partial=tmp_path / "x")
    other = random_ensemble(five.code, seed=5)
    made = ensdiff.sample(other, 0, 3, steps=2)
    found = ensdiff.attribute(
        other, ensdiff.sample(other, 0, 3, steps=2), "exact", top=2, null=3, partial=tmp_path / "x"
    )
    equal(found, ensdiff.attribute(other, made, "exact", top=2, null=3))


@pytest.mark.parametrize("chosen", ["resolve", "resolve_attention"])
def test_pieces_of_another_algorithm_are_not_taken(five, samples, tmp_path, monkeypatch, chosen):
    """Predictions of another version or machine may round differently."""
    monkeypatch.setattr(scoring, "PAIRS_OF_A_PIECE", 6)
    options = dict(top=2, null=0, partial=tmp_path / "x")
    with monkeypatch.context() as patch:
        interrupt(patch, scoring, "measured_influence", 2)
        with pytest.raises(Interrupted):
            ensdiff.attribute(five, samples, "exact", **options)
    made = interrupt(monkeypatch, scoring, "measured_influence", 99)
    monkeypatch.setattr(sys.modules["ensdiff.attribution.attribute"], chosen, lambda *_, **__: "another")
    ensdiff.attribute(five, samples, "exact", **options)
    assert len(made) == 3  # all


def test_loss_scores_go_on(five, samples, tmp_path, monkeypatch):
    config = ensdiff.LossConfig(draws=16, block=4)
    expected = ensdiff.attribute(five, samples, "loss", top=2, null=3, loss=config)
    with monkeypatch.context() as patch:
        made = interrupt(patch, loss, "pace", 2)  # in the third of four blocks
        with pytest.raises(Interrupted):
            ensdiff.attribute(five, samples, "loss", top=2, null=3, loss=config, partial=tmp_path / "x")
        assert len(made) == 2
    kept = len(list((tmp_path / "x").glob("*.npz")))
    assert 0 < kept < 4
    found = ensdiff.attribute(five, samples, "loss", top=2, null=3, loss=config, partial=tmp_path / "x")
    equal(found, expected)
    np.testing.assert_array_equal(found.standard_error, expected.standard_error)


@pytest.mark.parametrize("null", [0, 3])
def test_scoring_of_many_units_goes_on(tmp_path, monkeypatch, null):
    """Scoring continues from the last snapshot, with the best so far and the counts behind the q-values."""
    code = ensdiff.Code.balanced(members=12, units=700, seed=0)
    params = random_ensemble(code)
    samples = ensdiff.sample(params, 0, 2, steps=2)
    monkeypatch.setattr("ensdiff.attribution.forms.CHUNK", 64)
    monkeypatch.setattr(Pieces, "__init__", functools.partialmethod(Pieces.__init__, seconds=0.0))
    options = dict(top=5, null=null)
    expected = ensdiff.attribute(params, samples, "differential", **options)
    plain, seen = ranking.Top.update, []

    def update(self, start, score_BM):
        seen.append(start)
        if len(seen) == 6:
            raise Interrupted
        plain(self, start, score_BM)

    monkeypatch.setattr(ranking.Top, "update", update)
    with pytest.raises(Interrupted):
        ensdiff.attribute(params, samples, "differential", **options, partial=tmp_path / "x")
    found = ensdiff.attribute(params, samples, "differential", **options, partial=tmp_path / "x")
    assert seen[:8] == [0, 64, 128, 192, 256, 320, 320, 384]
    equal(found, expected) if null else np.testing.assert_array_equal(found.influence, expected.influence)
    np.testing.assert_array_equal(found.units, expected.units)


def test_a_damaged_piece_is_never_used(tmp_path, record_property):
    path = tmp_path / "piece.npz"
    pieces_module._write(path, {"value": np.arange(5.0)})
    content, detected = path.read_bytes(), 0
    for place, bit in flips(path, 200):
        path.write_bytes(content)
        flip(path, place, bit)
        with pytest.warns(ensdiff.DamageWarning, match="piece.npz is damaged"):
            assert pieces_module._read(path) is None
        detected += 1
    cut(path)
    with pytest.warns(ensdiff.DamageWarning):
        assert pieces_module._read(path) is None
    record_property("count", ("corruptions detected", detected + 1))


def test_two_processes_do_not_share_pieces(tmp_path):
    with (
        pieces(tmp_path / "x", 1),
        pytest.raises(ensdiff.FolderInUseError, match="in use by process"),
        pieces(tmp_path / "x", 1),
    ):
        pass
    with pieces(None, 1) as kept:
        assert kept.get(lambda: np.arange(3)).tolist() == [0, 1, 2]
        assert kept.last() is None


def test_samples_and_scores_are_the_same_twice(five):
    """The same seed gives the same results bit for bit."""
    found = []
    for _ in range(2):
        samples = ensdiff.sample(five, 3, 2, steps=2)
        att = ensdiff.attribute(five, samples, "screen", top=2, verify=3, null=3)
        found.append((np.asarray(samples.images), att))
    np.testing.assert_array_equal(found[0][0], found[1][0])
    equal(found[0][1], found[1][1])
