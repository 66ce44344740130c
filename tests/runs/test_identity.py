"""Units are identified by the content of their items, for any names and any order of the files."""

import dataclasses
import pathlib
import shutil
import warnings

import jax
import numpy as np
import pytest
from absl import flags
from ml_collections import ConfigDict
from PIL import Image

import ensdiff
from ensdiff.data import from_images
from ensdiff.data.viewing import viewer
from ensdiff.files.checksums import write_sealed
from ensdiff.interop import ctf
from ensdiff.report import Page, attribution_sections, write_page
from ensdiff.report.explorer import explore
from ensdiff.report.explorer.layer import _classes
from ensdiff.report.explorer.write import units_data
from ensdiff.runs.directory import RunDirectory
from ensdiff.runs.identity import check_attributed
from ensdiff.sampling.denoise import Noise
from experiments import building, naming, runs
from tests.helpers import blobs, random_ensemble

CODE = ensdiff.Code.balanced(members=6, units=12, seed=0)


def folder(path, **options):
    return ensdiff.data.folder(path, mode="L", **options)


def write_run(path, params, data, config):
    """Write a run as `ensdiff.train` leaves it, without training."""
    with RunDirectory.open(path, keep=1) as run:
        run.begin(params, data=data)
        run.save_tree(0, {"params": params.params})
    write_sealed(path / "config.json", config)
    return path


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Return a folder with twelve pictures and a run that was trained on them there."""
    place = tmp_path_factory.mktemp("place")
    (place / "images").mkdir()
    for i, image in enumerate(blobs(12)):
        Image.fromarray(image[..., 0]).save(place / "images" / f"p{i:02d}.png")
    data = folder(place / "images")
    params = dataclasses.replace(random_ensemble(CODE), data_digest=data.digest())
    config = {"data": {"name": "folder", "path": "images", "mode": "L"}, "run_dir": "runs/mine"}
    write_run(place / "runs" / "mine", params, data, {**config, "working_directory": str(place)})
    return place


@pytest.fixture
def place(made, tmp_path):
    """Return a copy of the folder that a test may change; the run's recorded paths are those of the original."""
    return pathlib.Path(shutil.copytree(made, tmp_path / "place"))


def found_in(place, **options):
    return ensdiff.training_data(place / "runs" / "mine", folder(place / "images"), **options)


def rename(place, before, after):
    (place / "images" / before).rename(place / "images" / after)


def add(place, name, seed=9):
    Image.fromarray(blobs(1, seed)[0, ..., 0]).save(place / "images" / name)


def test_a_renamed_file_is_still_its_unit(place):
    rename(place, "p11.png", "a.png")
    found = found_in(place)
    np.testing.assert_array_equal(found.images, blobs(12))
    assert list(found.unit_names) == [*(f"p{i:02d}.png" for i in range(11)), "a.png"]
    ensdiff.check_data(ensdiff.load(place / "runs" / "mine"), found)


def test_what_is_missing_and_what_is_new_are_named(place):
    rename(place, "p03.png", ".hidden")
    add(place, "new.png")
    with pytest.raises(ValueError, match="these are not the data of .*mine: 1 of 12 .* item 3 of unit 3; 1 .*new.png"):
        found_in(place)
    with pytest.raises(ValueError, match="the data of .*mine: the data are images of"):
        ensdiff.training_data(place / "runs" / "mine", folder(place / "images", size=4))


def test_items_that_the_run_never_saw_are_left_out_and_counted(place):
    add(place, "b.png")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert found_in(place, held_out=1).items == 12
    with pytest.warns(ensdiff.DataWarning, match="1 of the 13 items given were not used to train .*mine and"):
        np.testing.assert_array_equal(found_in(place).images, blobs(12))


def test_a_copy_of_a_training_picture_does_not_take_its_name(place):
    """For equal pictures, nothing shows which one was trained on, and their names' order does not decide it."""
    pictures = place / "images"
    shutil.copyfile(pictures / "p03.png", pictures / "a_copy.png")
    shutil.copyfile(pictures / "p05.png", pictures / "z_copy.png")
    with pytest.warns(ensdiff.DataWarning, match="2 of the 14 items given are further copies of training items"):
        found = found_in(place, held_out=2)
    assert [found.unit_names[unit] for unit in (3, 4, 5)] == [
        "a_copy.png or p03.png",
        "p04.png",
        "p05.png or z_copy.png",
    ]
    (pictures / "p04.png").unlink()
    with pytest.raises(ValueError, match=r"item 4 of unit 4; 2 of the 13 items given are further copies .*p03\.png, z"):
        found_in(place)


def test_pictures_that_were_other_units_are_said_to_be(place):
    data = folder(place / "images").regroup(["x", "x", *map(str, range(10))])
    with pytest.warns(ensdiff.DataWarning, match="units of the data differ .* to another, 'x', in the data given"):
        assert ensdiff.training_data(place / "runs" / "mine", data).units == 12
    pairs = folder(place / "images").regroup(np.arange(12) // 2)
    params = dataclasses.replace(random_ensemble(ensdiff.Code.balanced(6, 6)), data_digest=pairs.digest())
    run = write_run(place / "runs" / "pairs", params, pairs, {})
    with pytest.warns(ensdiff.DataWarning, match="item [01] belongs to unit 0 in the run's manifest, but to another"):
        assert ensdiff.training_data(run, folder(place / "images")).units == 6


@pytest.mark.parametrize("known", [True, False])
def test_runs_without_a_manifest(place, known):
    """Saved ensembles know the digest; those of other programs do not, so names and numbers are compared."""
    data = folder(place / "images")
    params = ensdiff.load(place / "runs" / "mine")
    named = ensdiff.Code.from_matrix(CODE.matrix(), names=data.unit_names)
    ensdiff.save(params if known else dataclasses.replace(params, code=named, data_digest=None), place / "saved")
    assert ensdiff.check_run(place / "saved") == []
    rename(place, "p11.png", "a.png")
    other = folder(place / "images")
    if known:
        assert ensdiff.training_data(place / "saved", data) is data
        message = "these are not the data of .*saved: the data have the digest"
    else:
        with pytest.warns(ensdiff.DataWarning, match="stores no hashes of its training data"):
            assert ensdiff.training_data(place / "saved", data) is data
        message = "these are not the data of .*saved: .*unit 0 is 'p00.png' in the code and 'a.png' in the data"
    for wrong in (other, other.subset(range(11))):
        with pytest.raises(ValueError, match=message if wrong is other else "11 units"):
            ensdiff.training_data(place / "saved", wrong)


def test_a_manifest_that_was_changed_is_not_believed(place):
    file = place / "runs" / "mine" / "data.manifest"
    lines = file.read_bytes().split(b"\n")
    lines[3] = lines[3].replace(b"2 ", b"5 ")
    file.write_bytes(b"\n".join(lines))
    with pytest.raises(ensdiff.DamagedError, match="data.manifest is damaged"):
        found_in(place)


def test_forgotten_pictures_may_be_gone(place):
    """The aligned data still match the run, and nothing is trained on the placeholders of the missing pictures."""
    run = place / "runs" / "mine"
    description = ensdiff.files.checksums.read_sealed(run / "run.json")
    origin = {"members": list(range(6)), "forgotten": [3], "code": CODE.to_dict()}
    write_sealed(run / "run.json", {**description, "origin": origin})
    rename(place, "p03.png", ".hidden")
    found = found_in(place)
    assert found.absent.tolist() == [3]
    assert not found.images[3].any()
    assert found.unit_names[3] == "unit 3"
    ensdiff.check_data(ensdiff.load(run), found)
    assert found.subset([0, 3]).absent.tolist() == [1]
    params = ensdiff.load(run)
    for call in (
        lambda: ensdiff.train(found, CODE, steps=1),
        lambda: ensdiff.baselines.baseline_scores(blobs(1), found, ["pixel"]),
        lambda: ctf.write(place / "x.ctf", params, ensdiff.sample(params, 0, 1, steps=1), found),
    ):
        with pytest.raises(ValueError, match="1 items of the data are absent, the first of unit 3"):
            call()


def test_pictures_of_deleted_items_are_said_to_be_deleted(tiny, tmp_path):
    """The placeholders of deleted items are not shown anywhere."""
    whole = from_images(blobs(9), [0, 0, 1, 2, 3, 4, 5, 5, 5], labels=[7, 7, 8, 8, 8, 9, 5, 6, 5])
    data = whole.subset([1, 3, 4, 5, 6, 7, 8]).align(whole.manifest(), absent=[0, 1], names=whole.unit_names)
    samples = ensdiff.sample(tiny, 0, 1, steps=2)
    att = ensdiff.attribute(tiny, samples, "exact", top=6, null=0)
    names = [axes.get_title() for axes in att.plot(samples.images, data).axes[1:]]
    assert [name.endswith("deleted") for name in names] == (att.units[0] == 1).tolist()
    (section,) = attribution_sections(tiny, data, samples, att)
    cards = {card.name: card for card in section.units}
    assert [(len(cards[name].images), cards[name].deleted) for name in "012"] == [(1, 1), (0, 1), (1, 0)]
    assert ["class" in cards[name].extra for name in "012"] == [False, False, True]
    page = write_page(tmp_path / "page.html", Page("x", [], samples=[section])).read_text()
    assert page.count("trained on, 1 deleted") == 2
    assert page.count('alt="training image') == 1 + 0 + 1 + 1 + 1 + 3
    layer = explore(tiny, data, samples, att, combined=0, null=0)
    assert {
        unit: len(entry[4]) for unit, entry in units_data(layer, np.arange(3), viewer(data.space, None)).items()
    } == {
        "0": 1,
        "1": 0,
        "2": 1,
    }
    assert _classes(data, None) == ["7", "unknown", "8", "8", "9", "mixed"]


def test_every_function_of_an_ensemble_and_data_compares_them(place):
    params = ensdiff.load(place / "runs" / "mine")
    data = folder(place / "images")
    other = data.subset(np.roll(np.arange(12), 1))
    images = np.zeros((1, 8, 8, 1))
    att = ensdiff.Attribution(
        np.array([[3]]), np.array([[1.0]]), None, None, "exact", "l2", {"units": 12, "data": data.digest()}
    )
    check_attributed(att, data)
    K = params.members
    samples = ensdiff.Samples(
        images, Noise(np.arange(1), key=jax.random.key(0)), np.full(K, 1 / K), ensdiff.SamplerConfig()
    )
    for call in (
        lambda: ensdiff.contrast(params, other),
        lambda: explore(params, other, None),
        lambda: attribution_sections(params, other, None, att),
        lambda: ctf.write(place / "x.ctf", params, samples, other),
        lambda: att.plot(images, other),
    ):
        with pytest.raises(ValueError, match=r"the digest .*ensdiff\.training_data\(run, data\) selects"):
            call()
    with pytest.raises(ValueError, match=r"the data have 12 units, the attribution is to 2: .*regroup"):
        dataclasses.replace(att, settings={"units": 2}).plot(images, data)
    with pytest.raises(ValueError, match="sets of units"):
        attribution_sections(params, data, None, dataclasses.replace(att, sets=((0, 1),) * 4))


def test_names_are_compared_where_nothing_else_is_known():
    names = ["zed", "ada", "bob", "eve", "kim", "lou"]
    code = ensdiff.Code.from_matrix(ensdiff.Code.balanced(4, 6).matrix(), names=names)
    data = ensdiff.data.arrays(blobs(6), groups=names)
    with pytest.raises(ValueError, match=r"unit 0 is 'zed' in the code and 'ada' in the data; .*code\.reordered"):
        ensdiff.contrast(random_ensemble(code), data)
    with pytest.raises(ValueError, match=r"unit 0 is 'zed' in the code and 'ada' in the data"):
        ensdiff.train(data, code, steps=1)
    params = random_ensemble(code.reordered(data.unit_names))
    ensdiff.check_data(params, data)
    np.testing.assert_array_equal(params.code.rows([data.unit_names.index("zed")]), code.rows([0]))
    ensdiff.check_data(random_ensemble(code), ensdiff.data.arrays(blobs(6)))  # "item 0" is only a number


@pytest.fixture
def given(monkeypatch):
    """Return a function that sets flags of the programs for one test."""
    if "data" not in flags.FLAGS:
        runs.define_data_flag()
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    saved = {name: flags.FLAGS[name].value for name in ("run", "data")}

    def call(**values):
        for name in saved:
            flags.FLAGS[name].value = values.get(name)

    yield call
    call(**saved)


def test_programs_find_data_that_moved_with_the_run(place, given, monkeypatch):
    """A relative path is tried from here, from where training started, and at the same position relative to the run."""
    elsewhere = place / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    given(run=str(place / "runs" / "mine"))
    rename(place, "p11.png", "a.png")
    config = ensdiff.files.checksums.read_sealed(place / "runs" / "mine" / "config.json")
    write_sealed(place / "runs" / "mine" / "config.json", {**config, "working_directory": str(place / "gone")})
    assert runs.training_data().unit_names[11] == "a.png"
    shutil.copytree(place / "images", elsewhere / "images")
    (elsewhere / "images" / "a.png").rename(elsewhere / "images" / "here.png")
    assert runs.training_data().unit_names[11] == "here.png"
    assert runs.all_data().unit_names[0] == "here.png"
    # other data under the same name do not hide the right data
    (elsewhere / "images" / "p00.png").unlink()
    assert runs.training_data().unit_names[11] == runs.all_data().unit_names[0] == "a.png"
    assert runs.all_data(absent=[0]).unit_names[0] == "here.png"  # items that may be missing
    (place / "images" / "p01.png").rename(place / "p01.png")
    assert runs.all_data().unit_names[0] == "here.png"  # if no place has all items, the first is taken
    (place / "p01.png").rename(place / "images" / "p01.png")
    shutil.rmtree(elsewhere / "images")
    (place / "images").rename(place / "pictures")
    with pytest.raises(FileNotFoundError) as caught:
        runs.training_data()
    for part in ("images does not exist", str(place / "gone" / "images"), str(place / "images"), "pass --data="):
        assert part in str(caught.value)
    given(run=str(place / "runs" / "mine"), data=f"folder,path={place / 'pictures'},mode=L")
    assert runs.training_data().unit_names[11] == "a.png"


def test_runs_of_before_say_only_where_they_were(tmp_path):
    """Without the working directory of training, data are looked for at the same position relative to the run."""
    config = {"data": {"name": "folder", "path": "images"}, "run_dir": "runs/mine"}
    sections = building.data_sections(tmp_path / "runs" / "mine", config)
    assert [section["path"] for section in sections] == ["images", str(tmp_path / "images")]
    config["data"]["path"] = str(tmp_path / "absolute")
    assert [s["path"] for s in building.data_sections(tmp_path / "x", config)] == [str(tmp_path / "absolute")]
    assert building.data_sections(tmp_path, {"data": {"name": "digits"}}) == [{"name": "digits"}]


def test_held_out_items_stay_held_out_when_files_are_renamed(place, given):
    """Held-out items are chosen by number and order, but the run's items are found by content."""
    run = place / "runs" / "held"
    section = {"name": "folder", "path": str(place / "images"), "mode": "L", "held_out": 4}
    data = building.load_data(section)
    assert data.items == 8
    params = random_ensemble(ensdiff.Code.balanced(6, 8))
    write_run(run, dataclasses.replace(params, data_digest=data.digest()), data, {"data": section})
    rename(place, "p11.png", "a.png")
    given(run=str(run))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(runs.training_data().images, data.images)
    add(place, "new.png")
    with pytest.warns(ensdiff.DataWarning, match="5 of the 13 items given, where 4 were held out, were not used"):
        np.testing.assert_array_equal(runs.training_data().images, data.images)


def test_what_is_about_to_be_forgotten_is_named(place, given, capsys, monkeypatch):
    rename(place, "p11.png", "a.png")
    given(run=str(place / "runs" / "mine"), data=f"folder,path={place / 'images'},mode=L")
    naming.units_to_forget("11,0")
    assert capsys.readouterr().out == "unit 11 is a.png, 1 picture\nunit 0 is p00.png, 1 picture\n"
    given(run=str(place / "runs" / "mine"), data=f"folder,path={place / 'nowhere'},mode=L")
    naming.units_to_forget("11")
    assert "cannot tell which pictures units 11 are: " in capsys.readouterr().out

    def lacks(**_):
        raise ImportError("no \x1b[2J")

    monkeypatch.setattr(runs, "training_data", lacks)
    naming.units_to_forget("11")
    assert "cannot tell which pictures units 11 are: no \\x1b[2J" in capsys.readouterr().out
    monkeypatch.setattr(runs, "training_data", lambda: pytest.fail("read all data for units that cannot be removed"))
    with pytest.raises(ValueError, match="unit 12 does not exist"):
        naming.units_to_forget("12")
    params = ensdiff.load(place / "runs" / "mine")
    code = ensdiff.Code.from_matrix(CODE.matrix(), names=[f"\x1b{i}" for i in range(12)])
    run = write_run(place / "runs" / "named", dataclasses.replace(params, code=code), folder(place / "images"), {})
    given(run=str(run))
    naming.units_to_forget("11")
    assert capsys.readouterr().out == "unit 11 is \\x1b11, 1 picture\n"


def test_an_id_that_names_another_unit_in_the_data_only_is_not_forgotten(place, given, monkeypatch):
    """Runs of older versions do not have the names, which are found when it is told what is forgotten."""
    names = [str(1990 + i) for i in range(11)] + ["3"]
    data = dataclasses.replace(folder(place / "images"), unit_names=names)
    monkeypatch.setattr(runs, "training_data", lambda **_: data)
    given(run=str(place / "runs" / "mine"))
    assert naming.units_to_forget("id:3") == [3]
    with pytest.raises(ValueError, match="3 is the id of unit 3 and the name of unit 11"):
        naming.units_to_forget("3")


def test_a_run_made_by_forgetting_takes_no_other_files(place, given):
    run = place / "runs" / "mine"
    flags_of = flags.FLAGS
    if "out" not in flags_of:
        runs.define_sampling_flags(n=1)
    given(run=str(run))
    assert runs.output_folder("attribution") == run / "attribution"
    (run / "attribution").rmdir()
    description = ensdiff.files.checksums.read_sealed(run / "run.json")
    write_sealed(run / "run.json", {**description, "origin": {"members": [0], "forgotten": [3]}})
    with pytest.raises(ValueError, match=r"mine was made by forgetting units, .* pass --out=FOLDER"):
        runs.output_folder("attribution")
    assert not (run / "attribution").exists()
    flags_of["out"].value = str(place / "out")
    try:
        assert runs.output_folder("attribution") == place / "out"
    finally:
        flags_of["out"].value = None


def test_a_run_is_resumed_with_its_pictures_whatever_they_are_called(place):
    """Pictures may change order, names and folder; any other change is named in the error."""
    run, before = place / "runs" / "mine", folder(place / "images")
    params = ensdiff.load(run)
    config = ConfigDict({"run_dir": str(run), "resume": True})
    config.data = ConfigDict({"name": "folder", "path": str(place / "images"), "mode": "L"})

    def begin(data):
        with RunDirectory.open(run, keep=1, resume=True) as directory:
            directory.begin(params, data=data)

    rename(place, "p11.png", "a.png")
    with pytest.raises(ValueError, match=r"data: items are in another order .*ensdiff\.training_data\(run, data\)"):
        begin(folder(place / "images"))
    begin(building.run_data(config))
    (place / "images").rename(place / "other")
    config.data.path = str(place / "other")
    found = building.run_data(config)
    np.testing.assert_array_equal(found.images, before.images)
    assert found.name != before.name
    begin(found)
    assert ensdiff.files.checksums.read_sealed(run / "run.json")["data"]["name"] == before.name  # as in the checkpoint
    Image.fromarray(blobs(1, 9)[0, ..., 0]).save(place / "other" / "new.png")
    with pytest.warns(ensdiff.DataWarning, match="1 of the 13 items given were not used to train .* and are left out"):
        np.testing.assert_array_equal(building.run_data(config).images, before.images)
    config.data.held_out = 2
    with pytest.raises(ValueError, match="1 of the items were not used .* config.data.held_out=2"):
        building.run_data(config)
    config.data.held_out = 1
    np.testing.assert_array_equal(building.run_data(config).images, before.images)
    config.resume = False
    assert building.run_data(config).items == 12  # in a new run, a random item is held out
    (place / "other" / "p03.png").unlink()
    with pytest.raises(ValueError, match="data: 1 of 12 training items are not among the data: item 3 of unit 3; 1 of"):
        begin(folder(place / "other"))


def test_options_of_data_are_numbers_where_the_reader_takes_numbers(tmp_path, given, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("2024", "x"):
        (tmp_path / name).mkdir()
        for i, image in enumerate(blobs(3)):
            Image.fromarray(image[..., 0]).save(tmp_path / name / f"{i}.png")
    np.savez(tmp_path / "7", **{"1": blobs(3), "2": np.array([0, 0, 1])})
    (tmp_path / "7.npz").rename(tmp_path / "7")
    for text, shape, units in (
        ("folder,path=2024,size=4,mode=L", (3, 4, 4, 1), 3),
        ("folder,path=x", (3, 8, 8, 3), 3),
        ("npz,path=7,images=1,groups=2", (3, 8, 8, 1), 2),
    ):
        given(run=str(tmp_path / "none"), data=text)
        data = runs.all_data()
        assert (data.images.shape, data.units) == (shape, units)
    given(run=str(tmp_path / "none"), data="folder,path=x,size=big")
    with pytest.raises(ValueError, match="folder takes an integer as size, not 'big'"):
        runs.all_data()
