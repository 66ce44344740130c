"""Deletion certificates: honest ones hold, forged ones fail, and leaky trainers are caught."""

import copy
import dataclasses
import functools
import json
import os
import re
import shutil
import sys

import jax
import numpy as np
import pytest

import ensdiff
from ensdiff.certificate import LIMITS, Certificate, sections
from ensdiff.certificate import certificate as certificates
from ensdiff.certificate.certificate import _seal
from ensdiff.certificate.files import find_files, strangers
from ensdiff.certificate.forget import _without_names
from ensdiff.certificate.run import Run
from ensdiff.certificate.sections import FIELDS
from ensdiff.codes.choosing import choose
from ensdiff.codes.unit_names import UnitNames
from ensdiff.data import batch_indices
from ensdiff.files.checksums import read_sealed, seal_line, write_sealed
from ensdiff.runs.checkpoints import open_checkpoint
from ensdiff.runs.directory import RunDirectory
from ensdiff.runs.logs import read_environments
from ensdiff.runs.unit_names import write_names
from tests.faults import reseal
from tests.helpers import CODE, SHORT, blobs, random_ensemble

pytestmark = pytest.mark.certificate

MODEL = ensdiff.UNetConfig(channels=4, norm_groups=2, multipliers=(1,), middle_attention=False)
OPTIONS = dict(schedule=SHORT, steps=5, batch_size=2, ema=0.9, learning_rate=1e-2, warmup=0, checkpoint_every=2)
UNIT = 3
SURVIVORS = np.flatnonzero(CODE.rows(UNIT)[0] == 0).tolist()
SEEN = np.flatnonzero(CODE.rows(UNIT)[0] == 1).tolist()
DATA = ensdiff.data.arrays(blobs())


def train(path, code=CODE, data=DATA, **options):
    ensdiff.train(data, code, MODEL, run_dir=path, progress=False, **{**OPTIONS, **options})
    return path


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    return train(tmp_path_factory.mktemp("certified") / "run")


@pytest.fixture(scope="module")
def small(run_dir):
    path = run_dir.with_name("small")
    ensdiff.forget(run_dir, [UNIT], path)
    return path


@pytest.fixture(scope="module")
def honest(run_dir):
    return ensdiff.certify(run_dir, [UNIT])


@pytest.fixture
def examined_once(monkeypatch):
    """Compute the expected values of a certificate only once per set of units, for tests whose run does not change."""
    monkeypatch.setattr(certificates, "_examine", functools.cache(certificates._examine))


@pytest.fixture
def copied(small, tmp_path):
    """Return a copy of the smaller run that a test may change, and its certificate."""
    shutil.copytree(small, tmp_path / "small")
    return tmp_path / "small", Certificate.load(small / "certificate.json")


def counted(record_property, name, number=1):
    record_property("count", (name, number))


def test_an_honest_certificate_holds(run_dir, honest, tmp_path):
    certificate = honest
    assert certificate.units == (UNIT,)
    assert list(certificate.survivors) == SURVIVORS
    assert "the run holds others too" in certificate.values["claim"]
    assert certificate.values["limits"] == list(LIMITS)
    certificate.save(tmp_path / "certificate.json")
    result = Certificate.load(tmp_path / "certificate.json").verify(run_dir, data=DATA, replay=5)
    assert result.ok, result.failures
    assert "20 draws of 2 members, none of them of units [3]" in result.checked
    assert "steps 0 to 5 of these members, retrained, bit for bit" in result.checked
    assert certificate == ensdiff.certify(run_dir, UNIT)  # no field depends on the time or the place of certification


def test_streams_equal_the_trainers_draws(honest):
    """The hashes of streams equal those computed in a plain loop over steps."""
    import hashlib

    from ensdiff.data import Splits

    splits = Splits.build(DATA, CODE)
    draws = np.stack([batch_indices(splits, 0, step, 2) for step in range(5)])  # (S, K, B)
    for k in SURVIVORS:
        content = np.ascontiguousarray(draws[:, k]).astype("<i8").tobytes()
        assert honest.values["streams"]["sha256"][str(k)] == hashlib.sha256(content).hexdigest()
        assert not np.isin(draws[:, k], DATA.items_of(UNIT)).any()


@pytest.mark.parametrize("at_once", [1, 3, 4, 5, 100])
def test_streams_do_not_depend_on_the_number_of_steps_computed_at_once(run_dir, honest, monkeypatch, at_once):
    from ensdiff.certificate import streams

    expected = honest.values["streams"]
    monkeypatch.setattr(streams, "DRAWS", at_once * 2 * CODE.members)
    facts_of = Run.open(run_dir)
    found = streams.read_streams(CODE, facts_of.manifest, [UNIT], SURVIVORS, seed=0, batch=2, steps=5)
    assert {str(k): value for k, value in found.sha256.items()} == expected["sha256"]
    # for a member that saw the unit, the first such draw is named
    found = streams.read_streams(CODE, facts_of.manifest, [UNIT], SEEN, seed=0, batch=2, steps=5)
    assert [line.split(" draws")[0] for line in found.violations] == [f"member {k}" for k in SEEN]
    from ensdiff.data import Splits

    draws = np.stack([batch_indices(Splits.build(DATA, CODE), 0, s, 2) for s in range(5)])
    step, place = np.argwhere(draws[:, SEEN[0]] == UNIT)[0]
    assert found.violations[0].endswith(f"draws item {UNIT} of unit {UNIT} at step {step}, place {place}")


def test_the_smaller_run_is_the_survivors(run_dir, small):
    whole, rest = ensdiff.load(run_dir), ensdiff.load(small)
    assert rest.members == len(SURVIVORS)
    for a, b in zip(jax.tree.leaves(whole.params), jax.tree.leaves(rest.params), strict=True):
        np.testing.assert_array_equal(np.asarray(a)[SURVIVORS], b)
    # removing the unit from the whole run equals sampling from the smaller one
    samples = ensdiff.sample(whole, 1, 2, steps=3)
    without = ensdiff.counterfactuals(whole, samples, [UNIT])[0]
    np.testing.assert_allclose(ensdiff.sample(rest, 1, 2, steps=3).images, without, atol=1e-5)
    assert (rest.code.matrix() == CODE.matrix()[:, SURVIVORS]).all()
    found = {p.name for p in small.iterdir()} - {".lock"}
    assert found == {
        "run.json", "data.manifest", "environment.jsonl", "metrics.jsonl", "certificate.json", "checkpoints"
    }  # fmt: skip
    lines = ensdiff.read_metrics(small)
    assert [line["loss_K"] for line in lines] == [
        [line["loss_K"][k] for k in SURVIVORS] for line in ensdiff.read_metrics(run_dir)
    ]


@pytest.mark.parametrize("method", ["loss", *(pytest.param(m, marks=pytest.mark.slow) for m in ("exact", "screen"))])
def test_the_smaller_run_attributes(small, method):
    params = ensdiff.load(small)
    samples = ensdiff.sample(params, 0, 2, steps=2)
    removable = np.flatnonzero(params.code.matrix().any(1) & ~params.code.matrix().all(1))
    assert UNIT not in removable
    att = ensdiff.attribute(params, samples, method, top=2, null=0)
    assert att.settings["candidates"] == len(removable)
    assert np.isin(att.units, removable).all()


def test_no_array_of_a_member_that_saw_the_unit_remains(run_dir, small):
    """The smaller run's state contains no row of any leaf of the members that saw the unit."""
    before, after = Run.open(run_dir).state(5), Run.open(small).state(5)
    rows = {np.asarray(a)[k].tobytes() for a in jax.tree.leaves(before.params) for k in SEEN if a[k].any()}
    kept = {row.tobytes() for tree in after for a in jax.tree.leaves(tree) for row in a}
    assert rows
    assert not rows & kept


def test_remaining_capacity(small):
    words = CODE.matrix()[:, SURVIVORS]
    others = np.delete(np.arange(6), UNIT)
    capacity = Certificate.load(small / "certificate.json").values["capacity"]
    assert capacity["members"] == len(SURVIVORS)
    assert capacity["lost"] == int(words[others].all(1).sum())
    certain = max(
        m for m in range(len(others) + 1)
        if all(not words[list(some)].any(0).all() for some in _subsets(others, m))
    )  # fmt: skip
    assert capacity["certain"] == certain


def _subsets(ids, m):
    import itertools

    return itertools.combinations([int(i) for i in ids], m)


def test_replay_without_the_deleted_picture(small):
    """Replay works with data that lack the forgotten item, have the others in another order, and contain new ones."""
    rest = np.delete(blobs(), UNIT, axis=0)[::-1]
    data = ensdiff.data.arrays(np.concatenate([blobs(2, seed=9), rest]))
    certificate = Certificate.load(small / "certificate.json")
    assert certificate.verify(small, data=data, replay=5).ok
    lost = ensdiff.data.arrays(rest[1:])
    result = certificate.verify(small, data=lost, replay=5)
    assert result.failures == (
        "1 of 6 training items are not among the data: item 5 of unit 5: give the data that the run was trained on",
    )
    assert certificate.verify(small, data=lost).failures == result.failures
    assert certificate.verify(small, data=data).ok


@pytest.mark.slow
def test_forgetting_again_keeps_what_was_forgotten_before(copied, tmp_path, monkeypatch):
    """A second unit is forgotten from a run that forgot one before and has a checkpoint without checksums."""
    path, _ = copied
    unit = next(i for i in range(6) if i != UNIT and 0 < CODE.rows(i)[0][SURVIVORS].sum() < len(SURVIVORS))

    def old(text):
        text.update(format=1)
        del text["sums"]

    reseal(path / "checkpoints" / "4", old)
    monkeypatch.setattr("ensdiff.runs.layout.ROWS", 1)  # so that the layout of its arrays is not converted
    config = {"data": {"name": "folder", "path": "images"}, "run_dir": "runs/mine"}
    write_sealed(path / "config.json", {**config, "working_directory": "/home/ada/secret"})
    certificate = ensdiff.forget(path, [unit], tmp_path / "two")
    assert (
        read_sealed(tmp_path / "two" / "config.json") == config
    )  # without the working directory, because the smaller run may be published
    assert certificate.units == tuple(sorted([UNIT, unit]))
    assert certificate.survivors == tuple(k for k in SURVIVORS if not CODE.rows(unit)[0][k])
    assert Run.open(tmp_path / "two").forgotten == certificate.units
    claim = certificate.values["claim"]
    assert f"is an item of units {certificate.units[0]}, {certificate.units[1]}; the run holds no other member" in claim
    assert claim.endswith(" The checkpoints of steps 4 were written without checksums: damage since cannot be seen.")
    assert certificate.verify(tmp_path / "two").ok


@pytest.mark.slow
def test_forgetting_again(small, tmp_path):
    code = ensdiff.Code.balanced(8, 10, weight=2, seed=0)
    data = ensdiff.data.arrays(blobs(10))
    first = train(tmp_path / "run", code, data)
    ensdiff.forget(first, [2], tmp_path / "one")
    certificate = ensdiff.forget(tmp_path / "one", {5}, tmp_path / "two")
    assert certificate.units == (2, 5)
    assert list(certificate.survivors) == np.flatnonzero(code.survivors([2, 5])).tolist()
    at_once = ensdiff.forget(first, [2, 5], tmp_path / "both")
    assert {**at_once.values, "files": 0, "digest": 0} == {**certificate.values, "files": 0, "digest": 0}
    assert certificate.verify(tmp_path / "two", data=data.subset(np.delete(np.arange(10), [2, 5])), replay=5).ok
    with pytest.raises(ValueError, match=r"units \[5\] are forgotten already"):
        ensdiff.forget(tmp_path / "two", [5], tmp_path / "three")
    with pytest.raises(ValueError, match="was made by forgetting units.*cannot be trained further"):
        train(tmp_path / "two", code, data, resume=True, steps=9)


def test_units_and_runs_that_cannot_be_forgotten(run_dir, small, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(ensdiff.NoSurvivorError, match="no member survives the removal of units 0, 1, 2.*one alone"):
        ensdiff.forget(run_dir, [0, 1, 2, 3, 4, 5], out)
    with pytest.raises(ValueError, match="unit 6 does not exist: ids are 0 .. 5"):
        ensdiff.forget(run_dir, [6], out)
    with pytest.raises(ValueError, match="no units given"):
        ensdiff.forget(run_dir, [], out)
    for again in ([UNIT], np.array([UNIT]), [np.int64(UNIT), 0]):
        with pytest.raises(ValueError, match=rf"units \[{UNIT}\] are forgotten already"):
            ensdiff.forget(small, again, out)
    with pytest.raises(FileExistsError, match="exists already; choose a new folder"):
        ensdiff.forget(run_dir, [UNIT], small)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        ensdiff.forget(tmp_path / "none", [UNIT], out)
    ensdiff.save(random_ensemble(), tmp_path / "saved")
    with pytest.raises(ValueError, match="only runs that ensdiff.train wrote can be certified"):
        ensdiff.forget(tmp_path / "saved", [UNIT], out)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["saved"]


def leaves(values, place=()):
    """Yield every place in a JSON value that holds a plain value or an empty container."""
    if isinstance(values, (dict, list)) and values:
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from leaves(value, (*place, key))
    else:
        yield place


def forged(value):
    """Return another value of the same kind."""
    if isinstance(value, bool) or value is None:
        return not value
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, str):
        return "0" * len(value) if value and set(value) <= set("123456789abcdef0") - {"0"} else f"{value}x"
    return [*value, 1] if isinstance(value, list) else {**value, "x": 1}


def forge(certificate, place):
    """Return the certificate with one changed field and the digest that fits it."""
    values = copy.deepcopy(certificate.values)
    inside = values
    for key in place[:-1]:
        inside = inside[key]
    inside[place[-1]] = forged(inside[place[-1]])
    return Certificate({**values, "digest": _seal(values)})


def name_of(place):
    if place[0] == "files":
        return place[1]
    return place[0] + "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in place[1:])


def check_forgeries(small, places, record_property):
    certificate = Certificate.load(small / "certificate.json")
    for place in places:
        result = forge(certificate, place).verify(small)
        assert not result.ok, place
        # a forged unit id changes the expected values of all other fields, and lists then differ in length
        names = {name_of(place[:i]) for i in range(1, len(place) + 1)} if place[0] == "units" else {name_of(place)}
        assert any(line.startswith(tuple(names)) for line in result.failures), (place, result.failures)
    counted(record_property, "forgeries detected", len(places))


FORGEABLE = [
    "claim", "units", "code", "members", "config", "data", "copies", "streams", "parameters", "trained_on", "capacity",
    "others", "limits", "files",
]  # fmt: skip


def test_every_section_can_be_forged_and_is_caught(small, record_property, examined_once):
    values = Certificate.load(small / "certificate.json").values
    assert {*FORGEABLE, "kind", "format", "digest"} == set(values)
    places = [next(iter(leaves(values[name], (name,)))) for name in FORGEABLE]
    check_forgeries(small, places, record_property)


@pytest.mark.slow
def test_every_field_can_be_forged_and_is_caught(small, record_property, examined_once):
    values = Certificate.load(small / "certificate.json").values
    places = [place for place in leaves(values) if place[0] in FORGEABLE]
    assert len(places) > 60
    check_forgeries(small, places, record_property)


def test_an_altered_certificate_without_a_new_digest(small, tmp_path, record_property, examined_once):
    values = json.loads((small / "certificate.json").read_text())
    for change, message in (
        ({"units": []}, "digest: the certificate was altered"),
        ({"streams": None}, "digest: the certificate was altered"),
        ({"extra": 1}, "extra: not a field of a certificate"),
        ({"files": None}, "files: not a list of files with their hashes"),
        ({"units": [{"id": "3"}]}, "units: not a list of units with their ids"),
        ({"units": [{"id": 77}]}, "unit 77 does not exist: ids are 0 .. 5"),
        ({"units": []}, "no units given"),
    ):
        result = Certificate({**values, **change}).verify(small)
        assert any(line.startswith(message) for line in result.failures), result.failures
    for name in ("claim", "limits", "digest"):
        result = Certificate({key: value for key, value in values.items() if key != name}).verify(small)
        assert f"{name}: missing from the certificate" in result.failures
    path = tmp_path / "certificate.json"
    for content, message in (
        ("[]", "is not a deletion certificate"),
        ("{}", "is not a deletion certificate"),
        ('{"kind": "ensdiff deletion certificate", "format": 3}', "has format 3, this ensdiff reads 2: upgrade"),
        ('{"kind": "ensdiff deletion certificate", "format": 1}', "has format 1, which did not.*Make the certificate"),
        ("{", "is not a JSON file, or is damaged"),
        ("[" * 100_000, "is not a JSON file, or is damaged"),
    ):
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            Certificate.load(path)
    counted(record_property, "forgeries detected", 15)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # from reading a damaged checkpoint
@pytest.mark.parametrize("together", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_one_flipped_byte_is_found_and_its_file_named(copied, together, record_property):
    """Verification names every changed file, whether all files are changed at the same time or one after another."""
    path, certificate = copied
    rng = np.random.default_rng(0)
    names = list(certificate.values["files"])
    before = {name: (path / name).read_bytes() for name in names}
    for some in [names] if together else [[name] for name in names]:
        for name in some:
            changed = bytearray(before[name])
            changed[rng.integers(len(changed))] ^= 1 << rng.integers(8)
            (path / name).write_bytes(changed)
        result = certificate.verify(path)
        for name in some:
            assert any(line.startswith(f"{name}: the file differs") for line in result.failures), result.failures
            (path / name).write_bytes(before[name])
    assert certificate.verify(path).ok
    counted(record_property, "forgeries detected", len(names))


def test_files_that_are_gone_or_new(copied):
    path, certificate = copied
    shutil.copytree(path / "checkpoints" / "5", path / "checkpoints" / "9")  # load() would open it
    (path / "config.json").write_text("{}")
    (path / "environment.jsonl").unlink()
    result = certificate.verify(path)
    assert "config.json: the file is not one that was certified" in result.failures
    assert "environment.jsonl: the file is missing" in result.failures
    assert any(line.startswith("checkpoints/9/") and "not one that was certified" in line for line in result.failures)
    assert not any("config.train" in line for line in result.failures)
    shutil.rmtree(path)
    result = certificate.verify(path)
    assert "run.json: the file is missing" in result.failures
    assert result.failures[-1].startswith(f"{path} does not exist; train with")


@pytest.mark.slow
def test_damage_is_not_laundered(copied, tmp_path):
    """Arrays of another step under the description of step 5 are refused, as `load` refuses them."""
    path, certificate = copied
    state = path / "checkpoints" / "5" / "state"
    shutil.rmtree(state)
    shutil.copytree(path / "checkpoints" / "4" / "state", state)
    words = "checkpoints/5 is damaged: (ema|params) of members 0, 1 do not match their checksums"
    unit = next(i for i in range(6) if i != UNIT and 0 < CODE.rows(i)[0][SURVIVORS].sum() < len(SURVIVORS))
    for refused in (
        lambda: ensdiff.load(path, average=False),
        lambda: ensdiff.certify(path, [UNIT]),
        lambda: ensdiff.forget(path, [unit], tmp_path / "out"),
    ):
        with pytest.raises(ensdiff.DamagedError, match=words):
            refused()
    assert not (tmp_path / "out").exists()
    assert any(re.search(words, line) for line in certificate.verify(path).failures)
    # neither missing nor fitting checksums help, because the optimiser counts its steps
    reseal(path / "checkpoints" / "5", lambda values: values.update(sums={}))
    with pytest.raises(ensdiff.DamagedError, match="2 members, but the numbers of checksums are {}"):
        ensdiff.certify(path, [UNIT])
    text = open_checkpoint(path, 4).description
    reseal(path / "checkpoints" / "5", lambda values: values.update(sums=text["sums"]))
    with pytest.raises(ValueError, match="checkpoints/5 belongs to another step: its optimiser took 4 steps"):
        ensdiff.certify(path, [UNIT])
    # renaming the folder does not help either
    shutil.rmtree(path / "checkpoints" / "5")
    (path / "checkpoints" / "4").rename(path / "checkpoints" / "5")
    for refused in (lambda: ensdiff.certify(path, [UNIT]), lambda: ensdiff.forget(path, [unit], tmp_path / "out")):
        with pytest.raises(ensdiff.DamagedError, match="it holds step 4, but the folder is named 5"):
            refused()
    assert any("it holds step 4, but the folder is named 5" in line for line in certificate.verify(path).failures)


@pytest.mark.slow
def test_other_files_limit_the_claim_about_other_members(run_dir, copied):
    """Every other file that may hold members is named, and the claim states that it was not examined."""
    path, certificate = copied
    (path / "metrics.jsonl").write_text((run_dir / "metrics.jsonl").read_text())  # metrics of four members
    for place in ("checkpoints/keep", "checkpoints/060", "damaged/60", "checkpoints/5/extra"):
        (path / place).mkdir(parents=True)
        (path / place / "x.npz").write_bytes(b"members")
    (path / "samples").mkdir()
    (path / "samples" / "all").symlink_to(run_dir)
    (path / "\x1b[2K").write_text("all is well")
    said = 'no file". Looked at again: the run holds no other member'
    (path / said).write_text("all is well")
    (path / ".lock").write_bytes(bytes(1000))
    names = [
        "\\x1b[2K", ".lock", "checkpoints/060/x.npz", "checkpoints/5/extra/x.npz", "checkpoints/keep/x.npz",
        "damaged/60/x.npz", "metrics.jsonl", said, "samples/all",
    ]  # fmt: skip
    result = certificate.verify(path)
    named = [line.split(": it is not")[0] for line in result.failures if "may hold other members; move it out" in line]
    assert sorted(named) == sorted(names)
    again = ensdiff.certify(path, [UNIT])
    quoted = [json.dumps(name.replace("\\x1b", "\x1b")) for name in names]
    assert again.values["claim"].endswith(
        "; its checkpoints hold no other member, but other files lie in the run, which were not examined and may hold "
        f"some ({len(names)}): {', '.join(quoted)}."
    )
    assert again.verify(path).ok
    # a forged claim that does not mention them
    values = {**again.values, "claim": certificate.values["claim"], "others": []}
    assert len(Certificate({**values, "digest": _seal(values)}).verify(path).failures) == 1 + len(names)


def test_a_checkpoint_of_step_0(run_dir, copied, tmp_path):
    """A checkpoint of step 0 is refused: training writes none, replay compares none, and it could hold any members."""
    path, certificate = copied

    def of_others(name, leaf):
        rows = np.ascontiguousarray(leaf[SEEN])
        return np.zeros_like(rows) if jax.tree_util.keystr(name).endswith("count") else rows

    tree = jax.tree.map_with_path(of_others, Run.open(run_dir).state(5))
    with RunDirectory.open(path, keep=9, resume=True) as small:
        small.adopt(read_sealed(path / "run.json"))
        small.save(0, tree)
    words = "checkpoints/0 was not written by training"
    for refused in (lambda: ensdiff.certify(path, [UNIT]), lambda: ensdiff.forget(path, [0], tmp_path / "out")):
        with pytest.raises(ValueError, match=words):
            refused()
    assert any(words in line for line in certificate.verify(path).failures)


@pytest.mark.slow
def test_no_streams_are_computed_for_a_forged_step(copied, monkeypatch):
    """A huge step number of an empty folder, or of a sealed checkpoint, is refused before any stream is computed."""
    path, certificate = copied
    monkeypatch.setattr(sections, "read_streams", lambda *_, **__: pytest.fail("streams of 10^12 steps"))
    large = path / "checkpoints" / "999999999999"
    large.mkdir()
    assert any("checkpoints/999999999999 is damaged" in line for line in certificate.verify(path).failures)
    shutil.copytree(path / "checkpoints" / "5", large, dirs_exist_ok=True)
    reseal(large, lambda text: text.update(step=999999999999))
    for found in (certificate.verify(path, data=DATA, replay=10**13).failures, [str(refusal(path))]):
        assert any("999999999999 belongs to another step: its optimiser took 5 steps" in line for line in found), found


def refusal(path):
    with pytest.raises(ValueError) as caught:
        ensdiff.certify(path, [UNIT])
    return caught.value


def test_a_damaged_config_is_not_certified(copied, tmp_path):
    path, _ = copied
    write_sealed(path / "config.json", {"data": {"name": "digits"}})
    certificate = ensdiff.certify(path, [UNIT])
    text = (path / "config.json").read_text()
    (path / "config.json").write_text(text.replace("digits", "digitz"))
    words = "config.json is damaged: it does not match its checksum"
    assert words in str(refusal(path))
    with pytest.raises(ensdiff.DamagedError, match=words):
        ensdiff.forget(path, [0], tmp_path / "out")
    assert any(words in line for line in certificate.verify(path).failures)


def test_metrics_contain_only_what_training_logs(small, tmp_path):
    """Other fields, more lines or longer numbers are reported: they could hold the parameters of another member."""
    (tmp_path / "metrics.jsonl").write_text((small / "metrics.jsonl").read_text())
    (line,) = ensdiff.read_metrics(small)
    assert line["step"] == 5

    def unknown(*lines):
        content = [text if isinstance(text, str) else seal_line(text) for text in lines]
        (tmp_path / "metrics.jsonl").write_text("".join(f"{text}\n" for text in content))
        return strangers(tmp_path, find_files(tmp_path), 2, 5, FIELDS)

    assert unknown(line) == unknown({**line, "step": 4}, line) == unknown(json.dumps(line)) == []
    text = seal_line(line)
    for lines in (
        [{**line, "weights_K": [0.5, 0.5]}], [{**line, "loss_K": [0.5]}], [{**line, "loss_K": [0.5, float("nan")]}],
        [{**line, "loss_K": [1, 10**400]}], [{**line, "time": "now"}], [{**line, "step": 6}], [{**line, "step": 0}],
        [line, line], [line, {**line, "step": 4}], [{name: line[name] for name in ("step", "time")}], ["[]"],
        [text.replace(", ", ",  ", 1)], [json.dumps({**line, "time": 1.5}).replace("1.5,", "1.50000,")],
    ):  # fmt: skip
        assert unknown(*lines) == ["metrics.jsonl"], lines


def test_a_mesh_of_no_devices_is_damage(copied):
    path, certificate = copied
    (place,) = read_environments(path)
    for mesh in ({"member": 0, "data": 0}, {"member": -1, "data": 1}):
        (path / "environment.jsonl").write_text(json.dumps({**place, "mesh": mesh}) + "\n")
        failures = certificate.verify(path, data=DATA, replay=5).failures
        assert any("environment.jsonl is damaged: line 1" in line for line in failures), failures


@pytest.mark.parametrize("change", [
    {"data": None}, {"train": 3}, {"model": []}, {"code": 3}, {"image_shape": [8]}, {"origin": "all"},
    {"image_shape": ["8", 8, 1]}, {"image_shape": [0, 8, 1]}, {"image_shape": [8, 8, True]},
    {"space": {"kind": "pixels", "low": 0.0, "high": 0.0}}, {"space": {"kind": "pixels", "low": "a"}}, {"space": []},
    {"space": {"kind": "pixels", "low": float("nan")}}, {"space": {"kind": "cubes"}}, {"condition": [{"classes": 0}]},
    {"space": None},
    {"origin": {"members": [0, 2], "forgotten": None, "code": CODE.to_dict()}},
    {"origin": {"members": [-1], "forgotten": [], "code": CODE.to_dict()}},
    {"origin": {"members": [0, 2], "forgotten": [10**30], "code": CODE.to_dict()}},
    {"origin": {"members": [0, 2], "forgotten": [3], "code": CODE.to_dict(), "unchecked": "4"}},
])  # fmt: skip
def test_a_forged_description_is_a_failure(small, tmp_path, change):
    """A forged description makes verification fail, and raises no error."""
    write_sealed(tmp_path / "run.json", {**read_sealed(small / "run.json"), **change})
    result = Certificate.load(small / "certificate.json").verify(tmp_path)
    words = ("is not the des", "does not state")
    assert any("run.json" in line and any(w in line for w in words) for line in result.failures)


def test_an_older_checkpoint_of_another_run(run_dir, copied):
    """An older checkpoint is refused if it has another seed, or the state of all members."""
    path, certificate = copied
    reseal(path / "checkpoints" / "2", lambda text: text["train"].update(seed=9, log_every=7))
    with pytest.raises(ValueError, match=r"^train.seed: run.json has 0, checkpoints/2 has 9$"):
        ensdiff.certify(path, [UNIT])
    shutil.copytree(run_dir.with_name("small") / "checkpoints" / "2", path / "checkpoints" / "2", dirs_exist_ok=True)
    shutil.rmtree(path / "checkpoints" / "4")
    shutil.copytree(run_dir / "checkpoints" / "4", path / "checkpoints" / "4")
    with pytest.raises(ValueError, match=r"code.members: run.json has 2, checkpoints/4 has 4"):
        ensdiff.certify(path, [UNIT])
    here = open_checkpoint(path, 5).description
    more = {name: here[name] for name in ("code", "origin", "sums")}
    reseal(path / "checkpoints" / "4", lambda text: text.update(more))
    with pytest.raises(ValueError, match=r"checkpoints/4 is not the state of 2 members alone: .*\(4, .* and \d+ more"):
        ensdiff.certify(path, [UNIT])
    assert any("checkpoints/4 is not the state of 2 mem" in line for line in certificate.verify(path).failures)


def test_links_and_pipes_are_not_followed(copied, tmp_path):
    """A link cannot lead out of the run, and a pipe cannot make verification wait forever."""
    path, certificate = copied
    shutil.move(path / "checkpoints" / "4", tmp_path / "elsewhere")
    (path / "checkpoints" / "4").symlink_to(tmp_path / "elsewhere")
    file = path / "checkpoints" / "5" / "state" / "manifest.ocdbt"
    file.unlink()
    os.mkfifo(file)
    result = certificate.verify(path)
    for name in ("checkpoints/4", "checkpoints/5/state/manifest.ocdbt"):
        assert any(line.startswith(f"{name}: a link or a special file") for line in result.failures), result.failures
    for refused in (lambda: ensdiff.certify(path, [UNIT]), lambda: ensdiff.forget(path, [0], tmp_path / "out")):
        with pytest.raises(ValueError, match=r"cannot be certified: checkpoints/4: a link or a special file"):
            refused()


def test_ambiguous_json_is_refused(small, tmp_path):
    text = (small / "certificate.json").read_text()
    path = tmp_path / "certificate.json"
    for content, message in (
        (text.replace('"claim":', '"claim": "anything", "claim":'), "the field 'claim' is given twice"),
        (text.replace('"id": 3', '"id": 5, "id": 3'), "the field 'id' is given twice"),
        ("\ufeff" + text, "begins with a byte order mark"),
        (text.replace('"capacity": {', '"capacity": {"x": NaN, '), "the number NaN is not finite"),
        (text.replace('"capacity": {', '"capacity": {"x": -1e999, '), "the number -1e999 is not finite"),
        (text.replace('"limits":', '"x": ' + "[" * 90 + "]" * 90 + ', "limits":'), "nested deeper than 64 levels"),
    ):
        assert content != text
        path.write_text(content)
        with pytest.raises(ValueError, match=message):
            Certificate.load(path)
    path.write_bytes(text.encode("utf-16"))
    with pytest.raises(ValueError, match="can't decode"):
        Certificate.load(path)


def test_messages_contain_no_control_characters(small, examined_once):
    values = dict(Certificate.load(small / "certificate.json").values)
    evil = "\x1b[2K\rthe certificate holds\n\u202e"
    values |= {evil: 1, "files": {**values["files"], evil: "0"}, "capacity": {evil: evil}, "claim": evil}
    certificate = Certificate({**values, "digest": _seal(values)})
    result = certificate.verify(small)
    assert len(result.failures) >= 4
    assert all(line.isprintable() for line in (*result.failures, repr(certificate)))
    assert any(r"\x1b[2K\rthe certificate holds\n\u202e: not a field" in line for line in result.failures)


def test_programs_print_errors_without_escape_sequences(capsys):
    from experiments import common

    with pytest.raises(SystemExit):
        common._fail(1, "digest \x1b[2K\x1b[1A\u202e is another", "")
    assert capsys.readouterr().err == r"error: digest \x1b[2K\x1b[1A\u202e is another" + "\n"


def test_units_on_a_command_line_are_plain_digits():
    assert choose("3, 17,0", 18) == [[3], [17], [0]]
    for text in ("²", "３", "+3", "1_0", "-1", "03", "3,", ""):
        with pytest.raises(ValueError, match="expected ids"):
            choose(text, 18)


def test_units_of_the_data_are_compared(small, copied, examined_once):
    """Units are compared by the items that they contain, because their numbers and names may change."""
    certificate = Certificate.load(small / "certificate.json")
    renamed = DATA.regroup([f"name {5 - i}" for i in range(6)])
    assert renamed.unit_of_item.tolist() == [5, 4, 3, 2, 1, 0]
    assert certificate.verify(small, data=renamed).ok
    (line,) = certificate.verify(small, data=DATA.regroup(list("abcdee"))).failures
    assert line in [
        f"data: item {i} belongs to unit {i} in the run's manifest, but to another, 'e', in the data given"
        for i in (4, 5)
    ]
    # a run and a certificate whose manifest assigns the picture of unit 3 to unit 5
    path, _ = copied
    manifest = Run.open(path).manifest
    moved = manifest._replace(unit_of_item=np.where(manifest.unit_of_item == UNIT, 5, manifest.unit_of_item))
    (path / "data.manifest").write_bytes(moved.to_bytes())
    description = read_sealed(path / "run.json")
    description["data"]["digest"] = moved.digest()
    write_sealed(path / "run.json", description)
    for step in (2, 4, 5):
        reseal(path / "checkpoints" / str(step), lambda text: text["data"].update(digest=moved.digest()))
    forged_run = ensdiff.certify(path, [UNIT])
    assert forged_run.verify(path).ok
    (line,) = forged_run.verify(path, data=DATA).failures
    assert line.startswith("data: item ")
    assert "belongs to unit 5 in the run's manifest, but to another, 'item " in line


@pytest.mark.parametrize(("file", "change", "message"), [
    ("run.json", {"train": {"seed": 1}}, "train.seed: run.json has 1, checkpoints/5 has 0"),
    ("run.json", {"code": {"units": 7}}, "run.json is not the description of a run"),
    ("run.json", {"origin": {"members": [0, 1]}}, "the code is not that of members [0, 1]"),
    ("run.json", {"data": {"digest": "0" * 64}}, "description states " + "0" * 64),
    ("run.json", {"model": {"dropout": 0.5}}, "model.dropout: run.json has 0.5, checkpoints/5 has 0.0"),
    ("run.json", {"schedule": {"timesteps": 21}}, "schedule.timesteps: run.json has 21"),
])  # fmt: skip
def test_the_changed_field_of_a_description_is_named(copied, file, change, message):
    path, certificate = copied
    values = read_sealed(path / file)
    for section, fields in change.items():
        values[section] |= fields
    write_sealed(path / file, values)
    result = certificate.verify(path)
    assert any(message in line for line in result.failures), result.failures
    assert any(line.startswith(f"{file}: the file differs") for line in result.failures)


@pytest.mark.slow
def test_changed_parameters_are_named_by_member(run_dir, tmp_path, record_property):
    """Verifying a certificate with another run names every member whose parameters differ, and the setting."""
    other = train(tmp_path / "other", learning_rate=1.1e-2)
    result = ensdiff.certify(run_dir, [UNIT]).verify(other)
    lines = [line for line in result.failures if line.startswith("parameters.sha256")]
    assert {line.split(":")[0].split(".")[2] for line in lines} == {str(k) for k in SURVIVORS}
    assert any(
        line.startswith("config.train.learning_rate: the certificate has 0.01, the run") for line in result.failures
    )
    counted(record_property, "forgeries detected")


def leaky(monkeypatch, step, member):
    """Make the trainer show the forgotten unit to a survivor once, without a trace in its streams."""
    module = sys.modules["ensdiff.training.host"]
    plain = module.make_batch

    def make_batch(data, splits, config, at, *block):
        batch = plain(data, splits, config, at, *block)
        if at == step:
            images = np.array(batch.images_KBHWC)
            images[member, 0] = DATA.images[UNIT]
            batch = batch._replace(images_KBHWC=images)
        return batch

    monkeypatch.setattr(module, "make_batch", make_batch)


@pytest.mark.slow
def test_a_leaky_trainer_is_caught_by_replay(tmp_path, monkeypatch, record_property):
    """The stream check cannot detect a trainer that deviates from its streams; replay of the same steps can."""
    with monkeypatch.context() as patch:
        leaky(patch, 3, SURVIVORS[1])
        train(tmp_path / "run")
    certificate = ensdiff.forget(tmp_path / "run", [UNIT], tmp_path / "small")
    assert certificate.verify(tmp_path / "small").ok
    result = certificate.verify(tmp_path / "small", data=DATA, replay=3)
    found = [f"replay: params of member {SURVIVORS[1]} at step {step} differs" for step in (4, 5)]
    for text in found:
        assert any(line.startswith(text) for line in result.failures), result.failures
    assert not any(f"member {SURVIVORS[0]} " in line for line in result.failures)
    # replay of only the last step starts from a checkpoint after the leak, and finds nothing
    assert certificate.verify(tmp_path / "small", data=DATA, replay=1).ok
    assert not any("did not record executions" in line for line in result.failures)
    (place,) = read_environments(tmp_path / "small")
    del place["execution"]  # by an older version, whose bits differ without any leak
    (tmp_path / "small" / "environment.jsonl").write_text(json.dumps(place) + "\n")
    result = ensdiff.certify(tmp_path / "small", [UNIT]).verify(tmp_path / "small", data=DATA, replay=3)
    assert "this one differs: version: one that did not record executions" in result.failures[-1]
    counted(record_property, "leaky trainers caught")


def test_a_leaky_index_stream_is_caught_by_the_stream_check(run_dir, honest, tmp_path, monkeypatch, record_property):
    """Splits that leak a unit are detected, because draws are compared with the code and not with the splits."""
    from ensdiff.data import Splits

    plain = Splits.build.__func__

    def build(cls, data, code, members=slice(None)):
        splits = plain(cls, data, code, members)
        lists = list(splits.items_of_member)
        lists[SURVIVORS[0]] = np.append(lists[SURVIVORS[0]], UNIT)
        return dataclasses.replace(splits, items_of_member=tuple(lists))

    monkeypatch.setattr(Splits, "build", classmethod(build))
    train(tmp_path / "run")
    message = f"member {SURVIVORS[0]} draws item {UNIT} of unit {UNIT} at step"
    with pytest.raises(ValueError, match=f"cannot be certified: {message}"):
        ensdiff.certify(tmp_path / "run", [UNIT])
    assert any(line.startswith(f"streams: {message}") for line in honest.verify(run_dir).failures)
    counted(record_property, "leaky trainers caught")


def test_a_member_that_saw_the_unit_is_no_survivor(run_dir, honest, record_property):
    """For a certificate that lists such a member as a survivor, verification names the draw of the unit."""
    values = copy.deepcopy(dict(honest.values))
    values["members"]["survivors"] = sorted([*SURVIVORS, SEEN[0]])
    result = Certificate({**values, "digest": _seal(values)}).verify(run_dir)
    assert any(
        line.startswith(f"streams: member {SEEN[0]} draws item {UNIT} of unit {UNIT}") for line in result.failures
    )
    counted(record_property, "forgeries detected")


@pytest.mark.slow
def test_errors_name_what_replay_needs(copied):
    path, certificate = copied
    assert certificate.verify(path, replay=5).failures == ("replay: it needs the training data, pass data=",)
    result = certificate.verify(path, data=DATA, replay=-1)
    assert result.failures == ("replay=-1: expected a number of steps, 0 for none",)
    shutil.rmtree(path / "checkpoints" / "4")
    again = ensdiff.certify(path, [UNIT])
    (line,) = again.verify(path, data=DATA, replay=2).failures
    assert line == "--replay=2: the run keeps checkpoints 2, 5, so at least 3 steps must be retrained"
    file = path / "environment.jsonl"
    (place,) = read_environments(path)
    file.write_text(json.dumps({**place, "mesh": {"member": 8, "data": 1}}) + "\n")
    (line,) = ensdiff.certify(path, [UNIT]).verify(path, data=DATA, replay=5).failures
    assert "trained on 8 devices" in line
    assert line.endswith("set JAX_NUM_CPU_DEVICES=8")


@pytest.mark.slow
def test_replay_on_another_device_names_it_when_bits_differ(copied):
    """If replay on another kind of device gives other bits, the failure also names that difference."""
    path, _ = copied
    file = path / "environment.jsonl"
    (place,) = read_environments(path)
    file.write_text(json.dumps({**place, "cpu": "another", "mesh": {"member": 1, "data": 2}}) + "\n")
    lines = ensdiff.certify(path, [UNIT]).verify(path, data=DATA, replay=5).failures
    if lines:  # two data shards sum gradients in another order
        assert "this one differs: cpu: 'another', here" in lines[-1]


@pytest.mark.slow
def test_resumed_runs_are_replayed_where_each_part_was_trained(tmp_path):
    """Replay uses the mesh of each of two starts, which have different shapes."""
    mesh = ensdiff.make_mesh(4, devices=jax.devices()[:2])
    train(tmp_path / "run", steps=2, mesh=mesh)
    train(tmp_path / "run", steps=5, resume=True)
    places = Run.open(tmp_path / "run").environments
    assert [(place["step"], place["mesh"]["member"]) for place in places] == [(0, 2), (2, 4)]
    result = ensdiff.certify(tmp_path / "run", [UNIT]).verify(tmp_path / "run", data=DATA, replay=5)
    assert result.ok, result.failures


@pytest.mark.slow
def test_replay_repeats_the_recorded_execution(copied, monkeypatch):
    """Without a recorded execution, replay uses the model's settings; an unknown execution is a failure."""
    path, _ = copied
    file = path / "environment.jsonl"
    (place,) = read_environments(path)
    module, used = sys.modules["ensdiff.certificate.replay"], []
    plain = module.stepper

    def noted(*args):
        used.append(args[-3])
        return plain(*args)

    monkeypatch.setattr(module, "stepper", noted)
    other = {**place["execution"], "attention": "batch"}  # the network has no attention, so the program is the same
    for lines, expected in (
        ([{name: value for name, value in place.items() if name != "execution"}], ["image"]),
        ([{**place, "execution": other}], ["batch"]),
        ([place, {**place, "step": 4, "execution": other}], ["image", "batch"]),
    ):
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        used.clear()
        assert ensdiff.certify(path, [UNIT]).verify(path, data=DATA, replay=5).ok
        assert [execution.attention for execution in used] == expected
    file.write_text(json.dumps({**place, "execution": {**other, "pipeline": "tape"}}) + "\n")
    (line,) = ensdiff.certify(path, [UNIT]).verify(path, data=DATA, replay=5).failures
    assert "pipeline='tape'" in line
    assert "a newer ensdiff may have written it" in line


@pytest.mark.slow
def test_copies_in_other_units_are_listed(tmp_path):
    images = blobs()
    images[4] = images[UNIT]
    run = train(tmp_path / "run", data=ensdiff.data.arrays(images))
    copies = ensdiff.certify(run, [UNIT]).values["copies"]
    seen = bool(CODE.rows(4)[0][SURVIVORS].any())
    assert copies == ([{"item": 4, "unit": 4, "of_unit": UNIT}] if seen else [])
    assert seen
    assert ensdiff.certify(run, [0]).values["copies"] == []


@pytest.mark.slow
def test_groups_are_units(tmp_path):
    """The certificate of a unit with several items contains all of their hashes."""
    data = ensdiff.data.arrays(blobs(9), ["b", "a", "a", "c", "d", "d", "d", "e", "f"])
    run = train(tmp_path / "run", data=data)
    certificate = ensdiff.forget(run, [3], tmp_path / "small")
    (unit,) = certificate.values["units"]
    assert [entry["item"] for entry in unit["items"]] == [4, 5, 6]
    import hashlib

    assert unit["items"][0]["sha256"] == hashlib.sha256(data.images[4].tobytes()).hexdigest()
    assert certificate.verify(tmp_path / "small", data=data.subset([0, 1, 2, 3, 7, 8]), replay=3).ok


@pytest.mark.slow
def test_digits_from_the_command_line(run, tmp_path):
    """Forgetting and verifying work on the command line, and a flipped byte makes verification fail."""
    options = [
        "--config=experiments/configs/digits.py", f"--config.run_dir={tmp_path / 'digits'}", "--config.train.steps=4",
        "--config.train.checkpoint_every=2", "--config.train.sample_every=0", "--config.model.channels=8",
    ]  # fmt: skip
    assert run("train", *options).returncode == 0
    small = tmp_path / "small"
    done = run("forget", f"--run={tmp_path / 'digits'}", "--units=3", f"--out={small}")
    assert done.returncode == 0, done.stderr
    assert "unit 3 is item 3, 1 picture" in done.stdout
    assert "8 members are left" in done.stdout
    done = run("certify", "verify", f"--run={small}", "--replay=2")
    assert done.returncode == 0, done.stderr
    assert "the certificate holds" in done.stdout
    assert "checked: steps 2 to 4 of these members, retrained, bit for bit" in done.stdout
    digest = json.loads((small / "certificate.json").read_text())["digest"]
    assert run("certify", "verify", f"--run={small}", f"--digest={digest}").returncode == 0
    assert run("certify", "verify", f"--run={small}", "--digest=123").returncode == 1
    file = max((small / "checkpoints" / "4").rglob("d/*"), key=lambda file: file.stat().st_size)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    done = run("certify", "verify", f"--run={small}")
    assert done.returncode == 1
    assert f"differs: {file.relative_to(small)}: the file differs from the certified one" in done.stdout
    assert "does not hold" in done.stderr
    assert "Traceback" not in done.stderr


def test_restricted_codes():
    code = ensdiff.Code.hierarchical(8, np.arange(12) // 4, group_weight=6, weight=3, seed=0)
    part = code.only([6, 1, 3])
    assert (part.matrix() == code.matrix()[:, [6, 1, 3]]).all()
    assert (part.group_code().matrix() == code.group_code().matrix()[:, [6, 1, 3]]).all()
    assert ensdiff.Code.from_dict(json.loads(json.dumps(part.to_dict()))) == part
    for wrong in ([], [0, 0], [8], [-1]):
        with pytest.raises(ValueError, match="expected distinct member numbers, 0 .. 7"):
            code.only(wrong)


NAMES = ["ada", "bob", "eve", "Jane Doe", "gil", "hal"]


@pytest.fixture
def named(run_dir, tmp_path):
    """Return a copy of the run that has the names of its units."""
    path = tmp_path / "named"
    shutil.copytree(run_dir, path)
    write_names(path, dataclasses.replace(Run.open(path).ensemble, unit_names=UnitNames(NAMES)), keep=False)
    return path


@pytest.mark.slow
def test_certificates_name_units(named, honest):
    """Names are for reading: whatever the names, the units are the same. One without names holds for the same run."""
    certificate = ensdiff.certify(named, ["Jane Doe"])
    assert (certificate.units, certificate.names) == ((UNIT,), ("Jane Doe",))
    assert f"is an item of units {UNIT} (Jane Doe); the run" in certificate.values["claim"]
    without = ensdiff.certify(named, [UNIT], names=False)
    assert without.names is None
    assert "Jane" not in json.dumps(without.values)
    assert honest.names is None
    assert {k: v for k, v in without.values.items() if k not in ("files", "digest")} == {
        k: v for k, v in honest.values.items() if k not in ("files", "digest")
    }  # as older versions wrote it
    for some in (certificate, without):
        result = some.verify(named)
        assert result.ok, result.failures
    forged = json.loads(json.dumps(certificate.values))
    forged["units"][0]["name"] = "bob"
    failures = Certificate({**forged, "digest": _seal(forged)}).verify(named).failures
    assert failures == ("units[0].name: the certificate has 'bob', the run has 'Jane Doe'",)
    for units, message in ((["Jane"], "similar names are 'Jane Doe'"), ("bob", "in a list, such as")):
        with pytest.raises(ValueError, match=message):
            ensdiff.certify(named, units)


@pytest.mark.parametrize("names", [True, False])
def test_names_of_forgotten_units(named, names):
    """They stay for the reader, or no file of the new run has them, except what the user called the data."""
    out = named.with_name("out")
    certificate = ensdiff.forget(named, ["Jane Doe"], out, names=names)
    assert certificate.units == (UNIT,)
    result = Certificate.load(out / "certificate.json").verify(out)
    assert result.ok, result.failures
    found = [path for path in out.rglob("*") if path.is_file() and b"Jane" in path.read_bytes()]
    assert {path.name for path in found} == ({"certificate.json", "unit_names.json"} if names else set())
    assert ensdiff.load(out).names_of()[UNIT] == ("Jane Doe" if names else f"unit {UNIT}")
    assert ensdiff.load(out).names_of()[0] == "ada"


def test_names_in_a_code_are_left_out_too():
    code = ensdiff.Code.hierarchical(6, np.arange(9) // 3, group_weight=4, weight=2, group_names=["x", "y", "z"])
    code = dataclasses.replace(code, names=tuple("abcdefghi"))
    less = _without_names(code, {3, 4, 5, 8})
    assert less.names == ("a", "b", "c", "unit 3", "unit 4", "unit 5", "g", "h", "unit 8")
    assert less.groups.names == ("x", "group 1", "z")
    assert (less.matrix() == code.matrix()).all()
    assert _without_names(code, set()) is code
