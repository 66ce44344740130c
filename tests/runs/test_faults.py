"""Truncated and changed files, full and vanishing disks, two writers and signals: errors name them, nothing is lost."""

import contextlib
import dataclasses
import errno
import json
import logging
import os
import pathlib
import resource
import shutil
import signal
import subprocess
import sys
import time
import types
import warnings
import zlib

import jax
import numpy as np
import pytest

import ensdiff
from ensdiff.certificate.replay import _segments
from ensdiff.certificate.run import Run as CertifiedRun
from ensdiff.certificate.run import read_places
from ensdiff.files import checksums, writing
from ensdiff.runs import checkpoints, description, directory, logs
from ensdiff.runs.directory import RunDirectory
from ensdiff.training import preemption
from tests.faults import CONFIG, copied, cut, flip, flips, new_state, reseal, restore, same, train
from tests.helpers import CODE, ROOT, blobs

pytestmark = [
    pytest.mark.faults,
    # coroutines from reading a damaged checkpoint, which end when they are garbage-collected
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Return a run of four steps without faults, with checkpoints at 2 and 4."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    params = train(folder)
    checksums.write_sealed(folder / "config.json", {"data": {"name": "arrays", "seed": 3}})
    assert ensdiff.check_run(folder) == []
    return folder, jax.tree.map(np.asarray, params.params)


@pytest.fixture(scope="module")
def states(whole):
    """Return the stored state of each checkpoint."""
    found = {}
    for step in (2, 4):
        checkpoint = checkpoints.open_checkpoint(whole[0], step)
        found[step] = checkpoints.read_arrays(
            checkpoint, jax.tree.map(lambda _: np.ndarray, checkpoints.read_shapes(checkpoint))
        )
    return found


def as_tree(state):
    return {"params": state.params, "opt_state": list(jax.tree.leaves(state.opt_state)), "ema": state.ema}


def is_stored(state, tree):
    return same(as_tree(state), {**tree, "opt_state": jax.tree.leaves(tree["opt_state"])})


VITAL = ("/state/d/", "_CHECKPOINT_METADATA", "state/manifest.ocdbt")
"""Parts of a checkpoint whose loss must be noticed; other parts repeat our own records, such as old shardings."""


def damage(folder, whole, states, state, cases):
    """Damage each file in its way: resuming takes the older checkpoint with a warning, or nothing was lost."""
    detected = harmless = 0
    for name, act in cases:
        copied(whole, folder)
        act(folder / "checkpoints" / "4" / name)
        step, found, said = restore(folder, state)
        if step == 4:
            assert is_stored(found, states[4]), f"{name}: wrong values were taken for good"
            harmless += 1
            continue
        assert step == 2
        assert is_stored(found, states[2])
        assert f"{folder / 'checkpoints' / '4'} is damaged" in said[0], said
        assert said[-1] == "resuming at checkpoint 2, the newest good one"
        assert (folder / "damaged" / "4").is_dir()
        detected += 1
    return detected, harmless


def files_of(checkpoint):
    return sorted(str(path.relative_to(checkpoint)) for path in checkpoint.rglob("*") if path.is_file())


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(whole, states, tmp_path, record_property):
    folder, names = tmp_path / "run", files_of(whole[0] / "checkpoints" / "4")
    vital = [name for name in names if any(part in f"/{name}" for part in VITAL)]
    assert len(vital) >= 3
    state = new_state()
    cut_down = [(name, cut) for name in vital] + [("_CHECKPOINT_METADATA", lambda path: path.unlink())]
    detected, harmless = damage(folder, whole[0], states, state, cut_down)
    assert (detected, harmless) == (len(cut_down), 0)
    size = {name: (whole[0] / "checkpoints" / "4" / name).stat().st_size for name in names}
    changed = [(name, lambda path, n=size[name]: flip(path, n // 3, 4)) for name in names if size[name]]
    more, _ = damage(folder, whole[0], states, state, changed)
    record_property("count", ("corruptions detected", detected + more))


@pytest.mark.slow
def test_damage_anywhere_in_a_checkpoint(whole, states, tmp_path, record_property):
    """Every file is damaged by one changed bit, and by truncation to two lengths."""
    checkpoint = whole[0] / "checkpoints" / "4"
    cases = []
    for name in files_of(checkpoint):
        path = checkpoint / name
        cases += [(name, lambda path, at=at: flip(path, *at)) for at in flips(path, 1)]
        cases += [(name, lambda path, n=n: cut(path, n)) for n in (0, path.stat().st_size // 2)]
    detected, harmless = damage(tmp_path / "run", whole[0], states, new_state(), cases)
    assert detected > len(cases) / 4
    assert detected + harmless == len(cases)
    record_property("count", ("corruptions detected", detected))


def test_no_good_checkpoint_stops_the_run(whole, tmp_path):
    for files in (["_CHECKPOINT_METADATA"] * 2, ["_CHECKPOINT_METADATA", "state/manifest.ocdbt"]):
        folder = copied(whole[0], tmp_path / "run")
        for step, name in zip((2, 4), files, strict=True):
            cut(folder / "checkpoints" / str(step) / name)
        before = files_of(folder / "checkpoints")
        with pytest.raises(ensdiff.DamagedError, match=r"has no good checkpoint: .*4 is damaged"):
            train(folder, resume=True)
        assert [name for name in files_of(folder / "checkpoints") if name.startswith("4/")] == [
            name for name in before if name.startswith("4/")
        ]


def without_time(folder):
    return [{name: value for name, value in line.items() if name != "time"} for line in ensdiff.read_metrics(folder)]


def test_training_goes_on_over_a_damaged_checkpoint(whole, tmp_path, caplog):
    """The damaged checkpoint's steps are trained and saved once more, with the same end bit for bit."""
    folder = copied(whole[0], tmp_path / "run")
    cut(folder / "checkpoints" / "4" / "state" / "manifest.ocdbt")
    for name in ("run.json", "config.json"):
        cut(folder / name)
    for name in ("metrics.jsonl", "environment.jsonl"):
        flip(folder / name, 30)
    assert len(ensdiff.check_run(folder)) == 5
    with pytest.raises(ensdiff.DamagedError, match=r"environment\.jsonl is damaged: line 1 does.*or resume the run"):
        read_places(folder)
    with pytest.warns(ensdiff.DamageWarning) as caught:
        params = train(folder, resume=True)
    said = " | ".join(str(w.message) for w in caught)
    for part in (
        "checkpoints/4 is damaged", "run.json is damaged", "metrics.jsonl is damaged: line 1 does not",
        "environment.jsonl is damaged: line 1 does not match its checksum; it is rewritten, with the place of training",
    ):  # fmt: skip
        assert part in said, said
    assert same(params.params, whole[1])
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    # steps that were not yet logged when checkpoint 2 was written count in the next line
    assert [line["step"] for line in ensdiff.read_metrics(folder)] == [3, 4]
    assert without_time(folder) == without_time(whole[0])
    (folder / "config.json").unlink()
    assert ensdiff.check_run(folder) == []
    # the certificate records that the place of the first steps is unknown
    places = read_places(folder)
    assert [(place["step"], "unknown" in place, "mesh" in place) for place in places] == [
        (0, True, False),
        (2, False, True),
    ]
    run = types.SimpleNamespace(environments=places, last=4)
    assert [segment[:2] for segment in _segments(run, 2)] == [(2, 4)]
    with pytest.raises(ValueError, match="steps 0 to 2 cannot be replayed, because it is unknown where"):
        list(_segments(run, 0))


def test_where_nothing_is_known():
    """The place is unknown from the first step after the last good line up to the next good line."""
    mesh = {"mesh": {"member": 1, "data": 1}}
    lines = [{"step": 0, **mesh}, None, None, {"step": 7, **mesh}, {"step": 9, **mesh}, None]
    assert [line["step"] for line in logs.known_environments(lines)] == [0, 1, 7, 9, 10]
    assert ["unknown" in line for line in logs.known_environments(lines)] == [False, True, False, False, True]
    assert [line["step"] for line in logs.known_environments([None, {"step": 3, **mesh}])] == [0, 3]
    assert logs.known_environments(lines[:1]) == lines[:1]


def test_an_older_checkpoint_of_another_run_is_not_taken(whole, tmp_path):
    """The settings are compared with the checkpoint that is resumed from, not with the newest one."""
    folder = copied(whole[0], tmp_path / "run")
    reseal(folder / "checkpoints" / "2", lambda text: text["train"].update(seed=7))
    cut(folder / "checkpoints" / "4" / "state" / "manifest.ocdbt")
    before = files_of(folder / "checkpoints")
    with pytest.raises(ValueError, match=r"settings that differ from those of checkpoint 2\. train\.seed: was 7, is 0"):
        train(folder, resume=True)
    assert files_of(folder / "checkpoints") == before


class Killed(BaseException):
    """Stands for SIGKILL."""


def test_a_kill_while_a_checkpoint_is_deleted(whole, tmp_path, monkeypatch):
    """Nothing remains under its step's name, and the remains are gone after the next start."""
    folder = copied(whole[0], tmp_path / "run")

    def killed(path, **_):
        next(file for file in pathlib.Path(path).rglob("*") if file.is_file()).unlink()
        raise Killed

    with RunDirectory.open(folder, keep=1, resume=True) as run:
        run.wait()
        assert checkpoints.steps_of(folder) == [2, 4]  # nothing is deleted until something was written
        run.adopt(checksums.read_sealed(folder / "run.json"))
        run.save(5, new_state())
        with monkeypatch.context() as patch:
            patch.setattr(shutil, "rmtree", killed)
            with pytest.raises(Killed):
                run.wait()
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == [".deleted.2", "5"]
    step, _, said = restore(folder, new_state())
    assert (step, said) == (5, [])
    assert [p.name for p in (folder / "checkpoints").iterdir()] == ["5"]
    assert not (folder / "damaged").exists()


def test_a_checkpoint_that_cannot_be_deleted_is_no_failed_write(whole, tmp_path, monkeypatch):
    folder = copied(whole[0], tmp_path / "run")

    def busy(*_, **__):
        raise OSError(errno.EBUSY, os.strerror(errno.EBUSY))

    with RunDirectory.open(folder, keep=1, resume=True) as run:
        run.adopt(checksums.read_sealed(folder / "run.json"))
        run.save(5, new_state())
        monkeypatch.setattr(os, "replace", busy)
        with pytest.warns(ensdiff.DamageWarning, match="could not be deleted") as caught:
            run.wait()
        monkeypatch.undo()
        assert [str(warning.message).split(" of ")[0] for warning in caught] == ["checkpoint 2", "checkpoint 4"]
    assert checkpoints.steps_of(folder) == [5]  # deleted when the run ends


@pytest.mark.parametrize("code", ["ENOLCK", "EOPNOTSUPP", "ENOSYS"])
def test_a_file_system_without_locks(tmp_path, monkeypatch, code):
    import fcntl

    def flock(*_):
        raise OSError(getattr(errno, code), os.strerror(getattr(errno, code)))

    monkeypatch.setattr(fcntl, "flock", flock)
    for _ in range(2):  # nothing remains that would stop the next writer
        with pytest.warns(UserWarning, match="has no locks") as caught, writing.lock(tmp_path):
            pass
        assert len(caught) == 1
    code = "EIO"
    with pytest.raises(OSError, match="Input/output error"), writing.lock(tmp_path):
        pass


def test_files_in_the_place_of_folders(tmp_path):
    for name in (*directory.FOLDERS, "."):
        file = tmp_path / name / "run" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file = file if name != "." else tmp_path / "file"
        file.write_text("")
        run = file if name == "." else file.parent
        with pytest.raises(NotADirectoryError, match=rf"{file} is not a folder, but a folder is needed there: rename"):
            RunDirectory.open(run, keep=1, resume=True)
        assert not (run / ".lock").exists()
    for name in ("file", "file/inside/it"):
        with pytest.raises(NotADirectoryError, match="file is not a folder"):
            writing.make_folder(tmp_path / name)


def test_a_line_says_a_thing_once(tmp_path):
    """If a field is given twice, readers might take either value."""
    twice = checksums.seal_line({"step": 0, "stop": 5}).replace("stop", "step")
    text = twice[: twice.index(', "crc32"')] + "}"
    (tmp_path / "lines").write_text(f'{text[:-1]}, "crc32": {zlib.crc32(text.encode())}}}\n')
    assert checksums.read_lines(tmp_path / "lines") == [None]


def test_check_run_names_every_damaged_file(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder, ignore=lambda *_: ["checkpoints"])
    (folder / "attribution").mkdir()
    numbers = np.arange(2.0)[:, None]
    att = ensdiff.Attribution(numbers.astype(int), numbers, None, None, "loss", "loss")
    att.save(folder / "attribution" / "loss")
    (folder / "attribution" / "names.json").write_text('["a"]')
    assert ensdiff.check_run(folder) == []
    names = [
        "run.json", "config.json", "data.manifest", "environment.jsonl", "metrics.jsonl", "attribution/loss.json",
        "attribution/loss.npz",
    ]  # fmt: skip
    for name in names:
        content = (folder / name).read_bytes()
        flip(folder / name, len(content) // 3, 1)
        (line,) = ensdiff.check_run(folder)
        assert line.startswith(f"{folder / name} is "), line
        (folder / name).write_bytes(content)
    for name in ("run.json", "data.manifest", "attribution/loss.npz"):
        content = (folder / name).read_bytes()
        (folder / name).unlink()
        (line,) = ensdiff.check_run(folder)
        assert str(folder / name) in line
        (folder / name).write_bytes(content)
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    assert "metrics.jsonl is a folder" in "".join(ensdiff.check_run(folder))
    with pytest.raises(FileNotFoundError, match="is not a run directory: it does not exist"):
        ensdiff.check_run(tmp_path / "typo")


def test_what_check_run_calls_good_can_be_loaded(whole, tmp_path):
    """`check_run` reads checkpoints as `load` does, which opens files that a reader of NumPy arrays does not need."""
    folder = copied(whole[0], tmp_path / "run")
    file = folder / "checkpoints" / "4" / "state" / "array_metadatas" / "process_0"
    cut(file)
    (line,) = ensdiff.check_run(folder)
    assert f"{folder / 'checkpoints' / '4'} is damaged: it cannot be read" in line
    for read in (lambda: ensdiff.load(folder), lambda: CertifiedRun.open(folder).state(4)):
        with pytest.raises(ensdiff.DamagedError, match="checkpoints/4 is damaged: it cannot be read"):
            read()
    file.unlink()  # neither function needs it
    assert ensdiff.check_run(folder) == []
    assert same(ensdiff.load(folder).params, whole[1])


def test_checkpoints_are_compared_with_what_the_run_says(whole, tmp_path):
    folder = copied(whole[0], tmp_path / "run")
    other = ensdiff.Code.balanced(members=4, units=6, seed=1).to_dict()

    def change(text):
        text["train"].update(seed=7, log_every=9)  # the second setting does not decide the result
        text["data"].update(digest="0" * 64)
        text.update(code=other, space={"kind": "pixels", "low": 0.0, "high": 1.0})

    reseal(folder / "checkpoints" / "2", change)
    (line,) = ensdiff.check_run(folder)
    assert line.startswith(f"{folder / 'checkpoints' / '2'} belongs to another run than run.json, which differs in ")
    for name in ("train.seed", "data", "space.low", "code."):
        assert name in line
    assert "log_every" not in line
    with pytest.warns(
        ensdiff.DamageWarning, match=r"2 belongs to another run than run\.json, which differs in .*train\.seed"
    ):
        ensdiff.load(folder, 2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ensdiff.load(folder)
    cut(folder / "run.json")
    with pytest.warns(ensdiff.DamageWarning, match=r"run\.json is damaged.* could not be compared with it"):
        ensdiff.load(folder)
    (folder / "run.json").unlink()
    assert ensdiff.check_run(folder) == [f"{folder / 'run.json'} does not exist"]


def test_lines_of_a_run_are_in_order(whole, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(whole[0], folder, ignore=lambda *_: ["checkpoints"])
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    assert len(lines) == 2
    for wrong, number in ((lines[::-1], 2), ([*lines, lines[1]], 3)):
        (folder / "metrics.jsonl").write_text("".join(wrong))
        (line,) = ensdiff.check_run(folder)
        assert f"metrics.jsonl is damaged: its steps are not ascending at line {number}, which is of step" in line
    (folder / "metrics.jsonl").write_text("".join(lines))
    (folder / "environment.jsonl").unlink()
    assert ensdiff.check_run(folder) == [f"{folder / 'environment.jsonl'} is missing: training writes one"]


@pytest.mark.parametrize("change", [
    {"image_shape": [0, 8, 1]}, {"space": {"kind": "pixels", "low": 1.0}},
    {"space": {"kind": "latents", "scale": [0.0]}},
    {"origin": {"members": [0], "forgotten": None}},
])  # fmt: skip
def test_a_description_of_no_ensemble(whole, tmp_path, change):
    """An error names the field, both when a run is loaded and when its data are looked up."""
    values = {**checksums.read_sealed(whole[0] / "run.json"), **change}
    (name,) = change
    with pytest.raises(ValueError, match=name):
        description.from_description(values, None)
    checksums.write_sealed(tmp_path / "run.json", values)
    with pytest.raises(ValueError, match=name):
        ensdiff.training_data(tmp_path, ensdiff.data.arrays(blobs()))


def test_every_bit_of_a_saved_attribution(tmp_path, record_property):
    numbers = np.linspace(0, 1, 3)[:, None]
    att = ensdiff.Attribution(np.array([[3], [0], [5]]), numbers, numbers, numbers, "loss", "loss", {"candidates": 6})
    att.save(tmp_path / "att")
    detected = 0
    for suffix, step in ((".json", 3), (".npz", 16)):
        file = tmp_path / f"att{suffix}"
        content = file.read_bytes()
        for place in range(0, len(content), step):
            file.write_bytes(content)
            flip(file, place, place % 7)
            try:
                found = ensdiff.Attribution.load(tmp_path / "att")
            except ensdiff.DamagedError as error:
                detected += str(file) in str(error)
            else:
                assert suffix == ".json"  # a letter of the name of an unused field was changed
                assert (found.method, found.level, found.settings) == (att.method, att.level, att.settings)
                np.testing.assert_array_equal(found.influence, att.influence)
        file.write_bytes(content)
    assert detected > 200
    record_property("count", ("corruptions detected", detected))
    for suffix in (".json", ".npz"):  # both files may be renamed together
        shutil.copyfile(tmp_path / f"att{suffix}", tmp_path / f"b.1{suffix}")
    np.testing.assert_array_equal(ensdiff.Attribution.load(tmp_path / "b.1").influence, numbers)
    # a file of an older version
    values = json.loads((tmp_path / "att.json").read_text())
    for name in ("sha256", "sealed", "files"):
        del values[name]
    (tmp_path / "att.json").write_text(json.dumps(values))
    np.testing.assert_array_equal(ensdiff.Attribution.load(tmp_path / "att").influence, numbers)


def test_load_refuses_damage_and_says_what_else_there_is(whole, tmp_path):
    folder = copied(whole[0], tmp_path / "run")
    for path in (folder / "checkpoints" / "4").rglob("d/*"):
        cut(path)
    for options in ({}, {"members": [1]}):
        with pytest.raises(ensdiff.DamagedError, match=r"checkpoints/4 is damaged.*also has checkpoint 2 \(step=...\)"):
            ensdiff.load(folder, **options)
    assert same(ensdiff.load(folder, 2).params, ensdiff.load(whole[0], 2).params)
    assert "checkpoints/4 is damaged" in ensdiff.check_run(folder)[0]


@pytest.mark.slow
def test_chosen_members(whole, tmp_path):
    everything = ensdiff.load(whole[0])
    some = ensdiff.load(whole[0], members=[2, 0])
    assert some.members == 2
    assert same(some.params, jax.tree.map(lambda a: a[np.array([2, 0])], everything.params))
    np.testing.assert_array_equal(some.code.matrix(), CODE.matrix()[:, [2, 0]])
    assert ensdiff.sample(some, 0, 2, steps=2).images.shape == (2, 8, 8, 1)
    raw = ensdiff.load(whole[0], members=[1], average=False)
    assert same(raw.params, jax.tree.map(lambda a: a[1:2], ensdiff.load(whole[0], average=False).params))
    for wrong in ([], [4], [-1], [1, 1], [0.5], 3):
        with pytest.raises(ValueError, match=r"members"):
            ensdiff.load(whole[0], members=wrong)
    # only the parts that are read are checked: here member 3's average differs from the saved one
    folder = copied(whole[0], tmp_path / "run")
    reseal(folder / "checkpoints" / "4", lambda text: text["sums"]["ema"].__setitem__(3, "0" * 64))
    assert same(ensdiff.load(folder, members=[2, 0]).params, some.params)
    assert ensdiff.load(folder, average=False).members == 4
    for options in ({}, {"members": [1, 3]}):
        with pytest.raises(ensdiff.DamagedError, match=r"ema of members 3 do not match"):
            ensdiff.load(folder, **options)


def test_versions(whole, tmp_path):
    folder = copied(whole[0], tmp_path / "run")
    reseal(folder / "checkpoints" / "4", lambda text: text.update(format=7, ensdiff="9.1"))
    with pytest.raises(ValueError, match=r"newer ensdiff \(9\.1, format 7\).*Upgrade: pip install"):
        ensdiff.load(folder)
    with pytest.raises(ValueError, match=r"newer ensdiff"):
        train(folder, resume=True)

    def older(text):
        text.update(format=1)
        text.pop("sums")

    reseal(folder / "checkpoints" / "4", older)
    assert same(ensdiff.load(folder).params, whole[1])


def test_a_renamed_checkpoint_is_named(whole, tmp_path):
    """The sealed step is compared with the folder's name whenever a checkpoint is read."""
    folder = copied(whole[0], tmp_path / "run")
    (folder / "checkpoints" / "4").rename(folder / "checkpoints" / "99")
    words = "checkpoints/99 is damaged: it holds step 4, but the folder is named 99"
    for options in ({}, {"step": 99}, {"members": [1]}):
        with pytest.raises(ensdiff.DamagedError, match=words):
            ensdiff.load(folder, **options)
    assert [words in line for line in ensdiff.check_run(folder)] == [True]
    step, _, said = restore(folder, new_state())
    assert step == 2
    assert words in said[0]
    # a link does not hide this
    (folder / "checkpoints" / "5").symlink_to(folder / "checkpoints" / "2")
    with pytest.raises(ensdiff.DamagedError, match="it holds step 2, but the folder is named 5"):
        ensdiff.load(folder)


def test_names_that_are_no_steps(whole, tmp_path):
    folder = copied(whole[0], tmp_path / "run")
    for name in ("²", "060", "٤", "９", "+5", " 5", "1_0", "-1", "4.0", "keep"):
        (folder / "checkpoints" / name).mkdir()
    assert checkpoints.steps_of(folder) == [2, 4]
    assert restore(folder, new_state())[::2] == (4, [])


def test_a_description_without_its_checksum(whole, tmp_path):
    """Only runs of format 1 have no checksum. In other formats, the step and the sums are unreliable without it."""
    folder = copied(whole[0], tmp_path / "run")
    path = folder / "checkpoints" / "4" / checkpoints.METADATA
    values = json.loads(path.read_text())
    del values["custom_metadata"][checksums.SEAL]
    path.write_text(json.dumps(values))
    with pytest.raises(ensdiff.DamagedError, match="its description or its checksum is missing"):
        ensdiff.load(folder)
    text = (whole[0] / "checkpoints" / "4" / checkpoints.METADATA).read_text()
    path.write_text(text.replace('"step": 4', '"step": 5, "step": 4'))
    assert path.read_text() != text
    with pytest.raises(ensdiff.DamagedError, match="the field 'step' is given twice"):
        ensdiff.load(folder)


@pytest.mark.slow
def test_every_bit_of_the_small_files(whole, tmp_path, record_property):
    """A changed bit is detected, or changes no value that is read."""
    detected = 0
    for name in ("run.json", "config.json"):
        path = tmp_path / name
        content = (whole[0] / name).read_bytes()
        expected = checksums.read_sealed(whole[0] / name)
        for place in range(len(content)):
            path.write_bytes(content)
            flip(path, place, place % 7)
            try:
                assert checksums.read_sealed(path) == expected
            except ensdiff.DamagedError:
                detected += 1
        for size in range(0, len(content) - 1, 7):
            path.write_bytes(content[:size])
            with pytest.raises(ensdiff.DamagedError, match=rf"{name} is damaged"):
                checksums.read_sealed(path)
            detected += 1
    expected = ensdiff.read_metrics(whole[0])
    path = tmp_path / "metrics.jsonl"
    content = (whole[0] / "metrics.jsonl").read_bytes()
    for place in range(len(content)):
        path.write_bytes(content)
        flip(path, place, place % 7)
        lines = checksums.read_lines(path)
        assert all(line is None or line in expected for line in lines)
        assert len(lines) == len(expected) or None in lines or place == len(content) - 1
        detected += None in lines
    (expected,) = logs.read_environments(whole[0])
    path = tmp_path / "environment.jsonl"
    content = (whole[0] / path.name).read_bytes()
    for place in range(len(content)):
        path.write_bytes(content)
        flip(path, place, place % 7)
        assert logs.read_environments(tmp_path)[0] is None, place
        detected += 1
    record_property("count", ("corruptions detected", detected))


def test_a_damaged_universe_file(tiny, tmp_path, record_property):
    from ensdiff.interop import ctf
    from tests.helpers import blobs

    path = tmp_path / "x.ctf"
    samples = ensdiff.sample(tiny, 0, 3, steps=2)

    def content():
        with ctf.read(path) as universe:
            return [universe.config, *universe.counterfactuals(), universe.factual, universe.training(0)]

    ctf.write(path, tiny, samples, ensdiff.data.arrays(blobs())).close()
    good, expected = path.read_bytes(), content()
    detected = 0
    for place, bit in flips(path, 400):
        path.write_bytes(good)
        flip(path, place, bit)
        try:
            found = content()
        except ValueError:
            detected += 1
            continue
        assert found[0] == expected[0]
        assert same(found[1:], expected[1:]), f"bit {bit} of byte {place}"
    for size in range(1, len(good) - 20 * 512, 997):
        path.write_bytes(good[:size])
        with pytest.raises(ValueError, match=r"x\.ctf"):
            content()
        detected += 1
    assert detected > 100
    record_property("count", ("corruptions detected", detected))


def test_one_writer(whole, tmp_path):
    folder = copied(whole[0], tmp_path / "run")
    with (
        RunDirectory.open(folder, keep=1, resume=True),
        pytest.raises(ensdiff.FolderInUseError, match=rf"in use by process {os.getpid()} on .*: wait until"),
    ):
        train(folder, resume=True)
    train(folder, resume=True)  # the lock is gone with its holder
    # a process that is killed leaves no lock behind
    code = (
        f"import time, ensdiff\nwith ensdiff.files.writing.lock({str(folder)!r}): print(1, flush=True); time.sleep(60)"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"1\n"
        with pytest.raises(ensdiff.FolderInUseError, match=f"by process {holder.pid}"), writing.lock(folder):
            pass
    finally:
        holder.kill()
        holder.wait()
    with writing.lock(folder):
        pass


def goes_on(folder, whole):
    """Check that resuming after the fault reaches the same end and removes the remains of the failure."""
    assert same(train(folder, resume=True).params, whole)
    assert sorted(p.name for p in (folder / "checkpoints").iterdir()) == ["2", "4"]
    assert ensdiff.check_run(folder) == []


def at_step(step, folder, act):
    """Return a ``stop`` that never stops, but acts on a run at one step, once its checkpoint 2 is on the disk."""

    def stop(done):
        if done == step:
            deadline = time.monotonic() + 60
            while not (folder / "checkpoints" / "2").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            act()
        return False

    return stop


@contextlib.contextmanager
def small_disk(folder, size):
    """Mount a file system of ``size`` bytes in memory; skip the test if this user may not mount one."""
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_full_disk(whole, tmp_path, caplog, capfd):
    """One error names the checkpoint, instead of a thousand lines from the threads that raised it."""
    with small_disk(tmp_path / "disk", 8 * 2**20) as disk:

        def fill():
            with contextlib.suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
                while True:
                    file.write(bytes(4096))

        with pytest.raises(OSError, match=r"^checkpoint 4 of .* the disk is full \(0\.0 MiB.*checkpoint 2 is kept"):
            train(disk / "run", config=dataclasses.replace(CONFIG, log_every=1), stop=at_step(3, disk / "run", fill))
        assert [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING] == []
        assert capfd.readouterr().err == ""
        (disk / "filler").unlink()
        goes_on(disk / "run", whole[1])


def test_a_read_only_disk(whole, tmp_path):
    with small_disk(tmp_path / "disk", 8 * 2**20) as disk:
        train(disk / "run", steps=3)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        with pytest.raises(OSError, match=r"run: the file system is read-only; choose a folder that can be written to"):
            train(disk / "run", resume=True)
        with pytest.raises(OSError, match=r"new: the file system is read-only"):
            train(disk / "new")
        assert ensdiff.load(disk / "run", 2).members == 4
        subprocess.run(["mount", "-o", "remount,rw", disk], check=True)
        assert same(train(disk / "run", resume=True).params, whole[1])


def test_a_folder_that_vanishes(tmp_path):
    folder = tmp_path / "run"
    with pytest.raises(OSError, match=r"run could not be written: .*run is gone; no checkpoint is kept"):
        train(folder, stop=at_step(3, folder, lambda: shutil.rmtree(folder)))
    assert not (folder / "checkpoints").exists()


def test_a_limit_on_the_size_of_files(whole, tmp_path):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    folder = tmp_path / "run"

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, hard))

    try:
        with pytest.raises(OSError, match=r"could not be written: a file grew larger than.*checkpoint 2 is kept"):
            train(folder, stop=at_step(3, folder, limit))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    goes_on(folder, whole[1])


def test_atomic_writes_leave_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "x"
    writing.write_atomically(path, "old")

    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(OSError, match="No space"):
        writing.write_atomically(path, "new")
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.slow
def test_every_mth_checkpoint_is_kept(tmp_path):
    config = dataclasses.replace(CONFIG, checkpoint_every=1, keep=2, keep_every=3)
    train(tmp_path / "run", config=config, steps=8)
    assert sorted(int(p.name) for p in (tmp_path / "run" / "checkpoints").iterdir()) == [3, 6, 7, 8]
    with pytest.raises(ValueError, match=r"keep_every=3: expected a multiple of checkpoint_every=2"):
        ensdiff.TrainConfig(keep_every=3, checkpoint_every=2)


@pytest.mark.parametrize("devices", [1, 2, 3])
def test_restoring_onto_another_number_of_devices(whole, states, tmp_path, devices):
    """The checkpoint was written by four devices."""
    mesh = ensdiff.make_mesh(4, devices=jax.devices()[:devices])
    step, state, said = restore(copied(whole[0], tmp_path / "run"), new_state(mesh))
    assert (step, said) == (4, [])
    assert is_stored(state, states[4])
    assert {len(leaf.devices()) for leaf in jax.tree.leaves(state)} == {mesh.size}


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_saves_and_stops(whole, tmp_path, number):
    before = signal.getsignal(number)
    with preemption.on_signals() as asked:

        def stop(done):
            if done == 3:
                os.kill(os.getpid(), number)
            return asked(done)

        with pytest.raises(ensdiff.Preempted, match=r"step 3 of 4: .*run has the checkpoint; set resume to continue"):
            train(tmp_path / "run", stop=stop)
    assert signal.getsignal(number) == before
    assert checkpoints.steps_of(tmp_path / "run") == [2, 3]
    assert same(train(tmp_path / "run", resume=True).params, whole[1])


def test_a_second_interrupt_does_not_wait():
    with preemption.on_signals() as asked:
        os.kill(os.getpid(), signal.SIGINT)
        assert asked(1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
