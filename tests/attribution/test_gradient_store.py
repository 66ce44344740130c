"""Stores of gradients: interruptions at any moment, damage, other ensembles and data, and what is stored."""

import errno
import json
import shutil
import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import ensdiff
from ensdiff.attribution.gradients import (
    OUTPUTS,
    GradientConfig,
    Setting,
    member_scores,
    open_gradients,
    projected_gradients,
    store_bytes,
    write_gradients,
)
from ensdiff.attribution.gradients import store as store_module
from ensdiff.attribution.gradients import writer as writer_module
from ensdiff.attribution.gradients.table import encode
from ensdiff.files.npy import map_npy, read_npy, reserve_npy, write_rows
from ensdiff.files.writing import lock
from tests.faults import copied, cut, flip, flips
from tests.helpers import CODE, blobs, random_ensemble

pytestmark = [pytest.mark.faults, pytest.mark.slow]
CONFIG = GradientConfig(draws=4, parts=2, dimension=3)
CHUNK = 2
DATA = ensdiff.data.arrays(blobs(6))
HELD_OUT = ensdiff.data.arrays(blobs(3, seed=1))


class Killed(BaseException):
    """Not an Exception, like the end of a process."""


def gradients_without_network(params, images, output="loss", config=None, **_):
    """Return numbers of the right shape that depend on every argument."""
    rng = np.random.default_rng([config.seed, len(output)])
    pixels = np.asarray(getattr(images, "images", images), np.float64).reshape(len(images), -1)
    sums = pixels @ rng.normal(size=(pixels.shape[1], config.parts * config.dimension))
    scale = np.float32(10.0) ** np.arange(params.members)[:, None, None, None]
    return np.float32(sums).reshape(len(images), config.parts, config.dimension) * scale


@pytest.fixture
def fake(monkeypatch):
    monkeypatch.setattr(store_module, "projected_gradients", gradients_without_network)


@pytest.fixture(scope="module")
def complete(tiny, tmp_path_factory):
    """Return a complete store of two outputs and held-out items."""
    folder = tmp_path_factory.mktemp("stores") / "complete"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store_module, "projected_gradients", gradients_without_network)
        write(folder, tiny)
    return folder


def write(folder, params, outputs=("loss", "square"), config=CONFIG, data=DATA, held_out=HELD_OUT, chunk=CHUNK, **more):
    return write_gradients(folder, params, data, outputs, config, held_out=held_out, chunk=chunk, **more)


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.*") if path.name != ".lock"}


def expected(params, output, data=DATA):
    return np.concatenate(
        [gradients_without_network(params, data.images[i : i + 1], output, CONFIG) for i in range(data.items)], axis=1
    )


def test_what_is_stored_is_what_was_computed(complete, tiny):
    store = open_gradients(complete, tiny, DATA, held_out=HELD_OUT)
    assert store.outputs == store.held_out_outputs == ("loss", "square")
    assert store.config == CONFIG
    for output in store.outputs:
        np.testing.assert_allclose(np.asarray(store.train(output)), expected(tiny, output), rtol=2**-11)
        held = np.asarray(store.held_out(output))
        np.testing.assert_allclose(held, expected(tiny, output, HELD_OUT), rtol=2**-11)
    rows, all_rows = store.member("loss", 3), np.asarray(store.train("loss"))[3]
    assert store.train("loss").shape == (4, 6, 2, 3)
    assert rows.shape == (6, 2, 3) == (len(rows), 2, 3)
    for items in (slice(1, 4), np.array([4, 0]), np.arange(6) % 2 == 0, 2):
        assert rows[items].dtype == np.float32
        np.testing.assert_array_equal(rows[items], all_rows[items])
    assert not isinstance(rows[1:3], np.memmap)
    assert isinstance(rows.values_nGD, np.memmap)


def test_the_gradients_of_a_network(tiny, tmp_path):
    """Nothing is replaced here: what is read equals what `projected_gradients` returns for all items at once."""
    store = write(tmp_path, tiny, ["loss"], held_out=None, chunk=4)
    phi = projected_gradients(tiny, DATA.images, "loss", CONFIG)
    largest = np.abs(phi).max((2, 3), keepdims=True)
    assert (np.abs(np.asarray(store.train("loss")) - phi) <= 1e-3 * largest).all()


@pytest.mark.parametrize("method", ["trak", "d-trak"])
def test_kernels_read_a_store(complete, tiny, method):
    """Scores from the disk are those from memory."""
    store, rng = open_gradients(complete, tiny, DATA), np.random.default_rng(0)
    (output,) = OUTPUTS[method]
    query, seen = {output: rng.normal(size=(4, 2, 2, 3))}, CODE.matrix()[DATA.unit_of_item]
    found, plain = (
        member_scores(
            method,
            query,
            {output: of(store.train(output))},
            seen,
            Setting(0.1, dimension=3),
            {output: of(store.held_out(output))},
        )
        for of in (lambda stored: stored, np.asarray)
    )
    assert found.items_KBn.shape == (4, 2, 6)
    np.testing.assert_array_equal(found.items_KBn, plain.items_KBn)
    np.testing.assert_array_equal(found.extra_KBm, plain.extra_KBm)


@given(
    hnp.arrays(np.float32, st.tuples(*[st.integers(1, 3)] * 4), elements=st.floats(-1, 1, width=32)),
    st.integers(-38, 30),
)
def test_rounding_to_float16(phi, exponent):
    """Numbers of any size have the relative error of float16, down to 2^-39 of an item's largest number."""
    phi = phi * np.float32(10.0**exponent)
    values, scales = encode(phi)
    assert np.isfinite(values).all()
    assert scales.flags.c_contiguous
    found = values.astype(np.float64) * scales.T[:, :, None, None]
    exact = phi.astype(np.float64)
    bound = 2.0**-11 * np.abs(exact) + 2.0**-39 * np.abs(exact).max((2, 3), keepdims=True)
    assert (np.abs(found - exact) <= np.maximum(bound, 2.0**-149)).all()


def killed_after(monkeypatch, chunks):
    """Kill the computation of the next chunk when ``chunks`` were computed; return the list of chunks, which grows."""
    seen = []

    def counted(params, images, *rest, **options):
        if len(seen) == chunks:
            raise Killed
        seen.append(images.images.tobytes())
        return gradients_without_network(params, images, *rest, **options)

    monkeypatch.setattr(store_module, "projected_gradients", counted)
    return seen


def kill_at(monkeypatch, step):
    """Kill the writing at its ``step``-th action of any kind: writing rows, a line of progress, the settings."""
    actions = []

    def counted(function):
        def act(*args, **options):
            actions.append(function)
            if len(actions) == step:
                if function is write_rows:
                    function(*args[:2], args[2][:1])  # only some of the rows
                raise Killed
            return function(*args, **options)

        return act

    for name in ("write_rows", "reserve_npy", "write_sealed", "write_atomically", "_line"):
        monkeypatch.setattr(writer_module, name, counted(getattr(writer_module, name)))


def test_a_kill_at_any_step(tiny, tmp_path, monkeypatch, record_property):
    """The same call continues, recomputes at most one chunk, and ends with the same bits."""
    seen = killed_after(monkeypatch, 999)
    write(tmp_path / "whole", tiny, ["loss"], held_out=None)
    whole, needed = contents(tmp_path / "whole"), len(seen)
    assert needed == 3
    for step in range(1, 99):
        seen.clear()
        with monkeypatch.context() as patch:
            kill_at(patch, step)
            try:
                write(tmp_path / "killed", tiny, ["loss"], held_out=None)
            except Killed:
                pass
            else:
                break
        with warnings.catch_warnings():
            warnings.simplefilter("error", ensdiff.DamageWarning)
            write(tmp_path / "killed", tiny, ["loss"], held_out=None)
        assert len(seen) <= needed + 1
        assert contents(tmp_path / "killed") == whole
        shutil.rmtree(tmp_path / "killed")
    assert 25 < step < 98
    record_property("count", ("kills survived", step - 1))


def test_kills_one_after_another(tiny, tmp_path, monkeypatch, complete):
    """Each call finishes one chunk before it is killed, and no chunk is computed twice."""
    seen = []
    for _ in range(9):
        now = killed_after(monkeypatch, 1)
        with pytest.raises(Killed):
            write(tmp_path, tiny)
        seen += now
    last = killed_after(monkeypatch, 99)
    write(tmp_path, tiny)
    assert len(seen + last) == 2 * (3 + 2)
    assert contents(tmp_path) == contents(complete)


def test_a_loss_of_power(fake, tiny, tmp_path, complete, monkeypatch):
    """Rows that never reached the disk, although the progress did, are recomputed."""
    with monkeypatch.context() as patch:
        patch.setattr(store_module.TableWriter, "_finish", lambda _: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            write(tmp_path / "x", tiny)
    path = tmp_path / "x" / "loss" / "member_02.npy"
    content = bytearray(path.read_bytes())
    content[-12 * CHUNK :] = bytes(12 * CHUNK)  # the last chunk
    path.write_bytes(content)
    with pytest.warns(ensdiff.DamageWarning, match="member_02.npy is damaged: items 4 to 5 .*; they are recomputed"):
        write(tmp_path / "x", tiny)
    assert contents(tmp_path / "x") == contents(complete)


def test_outputs_and_held_out_items_are_added(fake, tiny, tmp_path, complete):
    first = write(tmp_path, tiny, ["square"], held_out=None)
    with pytest.raises(ValueError, match="has no gradients of 'loss' of training items: write them with python -m"):
        first.train("loss")
    with pytest.raises(ValueError, match="has no gradients of 'square' of held-out items"):
        first.held_out("square")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "square").iterdir()}
    write(tmp_path, tiny, ["loss", "square"])
    assert contents(tmp_path) == contents(complete)
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "square").iterdir()}


def test_an_unfinished_table_is_not_read(tiny, tmp_path, monkeypatch):
    killed_after(monkeypatch, 2)
    with pytest.raises(Killed):
        write(tmp_path, tiny)
    store = open_gradients(tmp_path, tiny, DATA)
    assert store.outputs == ()
    with pytest.raises(ValueError, match="only 4 of 6 gradients of 'loss' of training items"):
        store.train("loss")


def test_damage_is_found_and_repaired(fake, tiny, tmp_path, complete, monkeypatch, record_property):
    whole, detected = contents(complete), 0
    for name in ("member_00.npy", "member_03.npy", "scales.npy"):
        for place, bit in flips(complete / "loss" / name, 12):
            folder = copied(complete, tmp_path / "x")
            flip(folder / "loss" / name, place, bit)
            with pytest.raises(ensdiff.DamagedError, match=f"loss/{name}.* damaged"):
                open_gradients(folder, tiny, DATA).train("loss")
            detected += 1
    with monkeypatch.context() as patch:
        killed_after(patch, 0)
        with pytest.warns(ensdiff.DamageWarning), pytest.raises(Killed):
            write(folder, tiny)
    assert open_gradients(folder, tiny, DATA).outputs == ("square",)  # while it is being repaired
    flip(folder / "loss" / "scales.npy", 140)
    with pytest.warns(ensdiff.DamageWarning, match=r"scales.npy is damaged: items \d to \d do not match"):
        write(folder, tiny)
    assert contents(folder) == whole
    cut(folder / "loss" / "member_01.npy")
    with pytest.raises(ensdiff.DamagedError, match=r"member_01.npy is missing or damaged"):
        open_gradients(folder, tiny, DATA)
    (folder / "loss" / "member_01.npy").unlink()
    with pytest.raises(ensdiff.DamagedError, match=r"member_01.npy is missing or damaged"):
        open_gradients(folder, tiny, DATA, check=False).train("loss")
    with pytest.warns(ensdiff.DamageWarning, match="member_01.npy is damaged: items 0 to 1, 2 to 3, 4 to 5"):
        write(folder, tiny)
    assert contents(folder) == whole
    record_property("count", ("corruptions detected", detected + 2))


@pytest.mark.parametrize("change", ["dimension", "cut", "sums"])
def test_damaged_settings(tiny, tmp_path, complete, change):
    folder = copied(complete, tmp_path / "x")
    path = folder / "loss" / "settings.json"
    values = json.loads(path.read_text())
    if change == "sums":  # with a valid checksum, as only a mistake in a program could write it
        values["sums"].pop()
        values.pop("sha256"), values.pop("sealed")
        writer_module.write_sealed(path, values)
    elif change == "cut":
        cut(path)
    else:
        path.write_text(path.read_text().replace('"dimension": 3', '"dimension": 4'))
    for use in (lambda: open_gradients(folder, tiny, DATA), lambda: write(folder, tiny)):
        with pytest.raises(ensdiff.DamagedError, match=r"loss/settings.json is damaged"):
            use()


def test_a_damaged_line_of_progress(fake, tiny, tmp_path, complete, monkeypatch):
    """The chunk of a line that was changed or cut is computed again."""
    with monkeypatch.context() as patch:
        patch.setattr(store_module.TableWriter, "_finish", lambda _: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            write(tmp_path / "x", tiny, ["loss"], held_out=None)
    path = tmp_path / "x" / "loss" / "progress.jsonl"
    assert len(path.read_text().splitlines()) == 3
    flip(path, 12)
    cut(path, path.stat().st_size - 4)
    killed_after(monkeypatch, 1)
    with pytest.raises(Killed):
        write(tmp_path / "x", tiny, ["loss"], held_out=None)
    seen = killed_after(monkeypatch, 99)
    write(tmp_path / "x", tiny, ["loss"], held_out=None)
    assert len(seen) == 1
    assert contents(tmp_path / "x" / "loss") == contents(complete / "loss")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            dict(params=random_ensemble(CODE, seed=7)),
            r"loss holds other gradients.*another ensemble \(\w{12}\.\.\., expe",
        ),
        (dict(data=ensdiff.data.arrays(blobs(6, seed=9))), r"loss holds other gradients.*they are of other data"),
        (dict(held_out=ensdiff.data.arrays(blobs(3, seed=9))), r"loss_held_out holds other gradients.*of other data"),
    ],
)
def test_other_ensembles_and_data_are_refused(fake, tiny, complete, changes, message):
    before = contents(complete)
    params, options = changes.get("params", tiny), dict(data=DATA, held_out=HELD_OUT) | changes
    options.pop("params", None)
    with pytest.raises(ValueError, match=message):
        write(complete, params, **options)
    with pytest.raises(ValueError, match=message):
        open_gradients(complete, params, options["data"], held_out=options["held_out"])
    assert contents(complete) == before


@pytest.mark.parametrize("field", ["draws", "parts", "dimension", "projection", "seed"])
def test_other_settings_are_refused(fake, tiny, complete, field):
    """Tables of one store belong together: also a new output needs the settings of the others."""
    other = dict(draws=8, parts=4, dimension=6, projection="signs", seed=1)[field]
    config = GradientConfig(**{**dict(draws=4, parts=2, dimension=3), field: other})
    for outputs in (["loss"], ["output"]):
        with pytest.raises(ValueError, match=f"loss holds other gradients: {field}=.*, expected {other!r}"):
            write(complete, tiny, outputs, config)
    assert not (complete / "output").exists()


def test_settings_of_scores_are_not_those_of_gradients(fake, tiny, complete):
    before = contents(complete)
    write(complete, tiny, config=GradientConfig(draws=4, parts=2, dimension=3, ridge=0.5, normalize=True))
    assert contents(complete) == before


def test_a_full_disk(fake, tiny, tmp_path, monkeypatch, complete):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    free = shutil.disk_usage(tmp_path)._replace(free=100)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda _: free)
        with pytest.raises(OSError, match=r"need 1.15kB more in .*, but the disk has only 100B: choose another folder"):
            write(tmp_path / "x", tiny)
    assert not contents(tmp_path / "x")
    with monkeypatch.context() as patch:
        patch.setattr(writer_module, "write_rows", full)
        with pytest.raises(OSError, match="loss could not be written to: the disk is full .*; finished chunks are"):
            write(tmp_path / "x", tiny)
    write(tmp_path / "x", tiny)
    assert contents(tmp_path / "x") == contents(complete)


def test_what_is_said(fake, tiny, tmp_path, monkeypatch):
    lines = []
    write(tmp_path, tiny, say=lines.append)
    sizes = store_bytes(CONFIG, 4, 6, outputs=2) + store_bytes(CONFIG, 4, 3, outputs=2)
    assert sizes == 2 * (6 + 3) * 4 * (2 * 2 * 3 + 4) == 1152
    what = "gradients of loss and square of 6 and 3 held out items under 4 members, 2 x 3 numbers each"
    assert lines[0] == f"{tmp_path}: {what}: 1.15kB"
    assert lines[1].startswith("2 items took")
    assert lines[1].endswith(", compilation included: at most 00:00 for the other 16")
    assert lines[2].endswith("s: about 00:00 for the other 14")
    assert len(lines) == 3
    again = []
    write(tmp_path, tiny, say=again.append)
    assert again[1:] == ["18 of 18 gradients are finished and kept"]


def test_a_store_keeps_its_chunks(fake, tiny, tmp_path, complete, monkeypatch):
    """A call with another number of items per chunk continues with the number that the store was begun with."""
    with monkeypatch.context() as patch:
        killed_after(patch, 1)
        with pytest.raises(Killed):
            write(tmp_path, tiny)
    write(tmp_path, tiny, chunk=5)
    assert contents(tmp_path / "loss") == contents(complete / "loss")


def test_bad_requests(fake, tiny, tmp_path, complete):
    for options, message in (
        (dict(outputs=["trak"]), "output='trak': expected one of 'loss', 'square', 'output'"),
        (dict(outputs=[]), "expected one or more different outputs"),
        (dict(outputs=["loss", "loss"]), "expected one or more different outputs"),
        (dict(chunk=0), "chunk=0: expected at least 1 item"),
        (dict(held_out=DATA), "all held-out items are training items"),
        (dict(held_out=ensdiff.data.arrays(np.zeros((2, 4, 4, 1), np.uint8))), r"images of \(4, 4, 1\): expected"),
        (dict(data=ensdiff.data.arrays(blobs(5))), "the data have 5 units"),
    ):
        with pytest.raises(ValueError, match=message):
            write(tmp_path / "x", tiny, **options)
    assert not (tmp_path / "x").exists()
    with pytest.warns(ensdiff.DataWarning, match="1 of the 4 held-out items are copies of training items"):
        write(tmp_path / "x", tiny, held_out=ensdiff.data.arrays(np.concatenate([HELD_OUT.images, DATA.images[:1]])))
    with pytest.raises(FileNotFoundError, match="nothing holds no gradients: write them with python -m"):
        open_gradients(tmp_path / "nothing", tiny, DATA)
    with lock(complete), pytest.raises(ensdiff.FolderInUseError, match="in use by process"):
        write(complete, tiny)
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(NotADirectoryError, match="file is not a folder"):
        write(file, tiny)


def test_members_that_diverged(fake, tiny, tmp_path, monkeypatch):
    def diverged(*args, **options):
        phi = gradients_without_network(*args, **options)
        phi[2, 1] = np.nan
        return phi

    write(tmp_path, tiny, ["square"], held_out=None)
    monkeypatch.setattr(store_module, "projected_gradients", diverged)
    with pytest.raises(
        ValueError, match="the gradient of item 1 under member 2 is not finite: has the member diverged"
    ):
        write(tmp_path, tiny, ["loss"])


def test_absent_items_are_refused(fake, tiny, tmp_path):
    present = DATA.subset(range(5))
    aligned = present.align(DATA.manifest(), absent=[5])
    with pytest.raises(ValueError, match="1 items of the data are absent.*a store of gradients needs the pictures"):
        write(tmp_path / "x", tiny, data=aligned)


def test_rows_of_npy_files(tmp_path):
    """Rows written one by one are those that NumPy writes at once."""
    rows = np.arange(24, dtype=np.float16).reshape(4, 3, 2)
    np.save(tmp_path / "numpy.npy", rows)
    path = tmp_path / "ours.npy"
    reserve_npy(path, rows.shape, rows.dtype)
    assert not read_npy(path).any()
    for start, some in ((2, rows[2:]), (0, rows[:1]), (1, rows[1:2])):
        write_rows(path, start, some)
    assert path.read_bytes() == (tmp_path / "numpy.npy").read_bytes()
    mapped = map_npy(path)
    np.testing.assert_array_equal(mapped, rows)
    with pytest.raises(ValueError, match="read-only"):
        mapped[0] = 0
    for start, wrong in ((3, rows[:2]), (-1, rows[:1]), (0, rows[:, :1]), (0, rows.astype(np.float32))):
        with pytest.raises(ValueError, match=r"do not fit into .*ours.npy, which holds an array of shape \(4, 3, 2\)"):
            write_rows(path, start, wrong)
    np.save(path, np.asfortranarray(rows))
    np.testing.assert_array_equal(map_npy(path), rows)
    cut(path, path.stat().st_size - 1)
    with pytest.raises(ValueError, match=r"ours.npy is not a readable .npy file: an array of shape \(4, 3, 2\)"):
        map_npy(path)
    with pytest.raises(FileNotFoundError, match="none.npy does not exist"):
        map_npy(tmp_path / "none.npy")
