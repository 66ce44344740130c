"""The programs on the command line, each in its own process."""

import json
import pathlib
import re

import numpy as np
import pytest

import ensdiff
from ensdiff.attribution.gradients import open_gradients
from ensdiff.data.manifest import NAME as MANIFEST
from ensdiff.runs.directory import RunDirectory
from tests.helpers import blobs

TINY = [
    "--config.model.channels=4", "--config.model.multipliers=(1,)", "--config.model.norm_groups=2",
    "--config.model.middle_attention=False", "--config.train.batch_size=2", "--config.train.log_every=1",
    "--config.train.sample_every=0", "--config.schedule.timesteps=20", "--config.train.decay=constant",
]  # fmt: skip


@pytest.fixture(scope="module")
def trained(typed, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "digits"
    done = typed(
        "train", "--config=experiments/configs/digits.py", f"--config.run_dir={folder}", "--config.train.steps=4",
        "--config.train.checkpoint_every=2", *TINY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert f"trained: {folder}" in done.stdout
    assert "members see" in done.stdout
    return folder


def test_train_writes_a_run(trained):
    assert sorted(p.name for p in (trained / "checkpoints").iterdir()) == ["2", "4"]
    lines = [json.loads(line) for line in (trained / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2, 3, 4]
    assert json.loads((trained / "config.json").read_text())["data"]["name"] == "digits"


def test_sample(run, trained, tmp_path):
    done = run("sample", f"--run={trained}", "--n=2", "--steps=3", "--remove=3", "--remove=4,5", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    names = {p.name for p in tmp_path.iterdir()}
    assert names == {
        "samples_seed0.png", "samples_seed0.npz", "samples_seed0_without_3.png", "samples_seed0_without_4_5.png",
    }  # fmt: skip


def test_attribute(run, trained):
    done = run("attribute", f"--run={trained}", "--n=2", "--steps=3", "--top=3", "--verify=4", "--null=5")
    assert done.returncode == 0, done.stderr
    values = json.loads((trained / "attribution" / "screen_seed0.json").read_text())
    assert len(values["verdict"]) == 2
    assert (trained / "attribution" / "screen_seed0.png").read_bytes().startswith(b"\x89PNG")
    assert len(values["units"]) == 2
    assert len(values["units"][0]) == len(values["p_value"][0]) == 3
    page = re.search(r"report: (\S+)", done.stdout).group(1)
    assert "<!doctype html>" in pathlib.Path(page).read_text()


@pytest.fixture
def small(tiny, tmp_path):
    """Return a run of four members on six pictures, and the option for data of these and five more in random order."""
    with RunDirectory.open(tmp_path / "run", keep=1, resume=False) as directory:
        directory.begin(tiny, data=ensdiff.data.arrays(blobs()))
        directory.save_tree(0, {"params": tiny.params})
    pictures = np.concatenate([blobs(), blobs(5, seed=1)])
    order = np.random.default_rng(0).permutation(len(pictures))
    np.savez(tmp_path / "all.npz", images=pictures[order])
    return tmp_path / "run", f"--data=npz,path={tmp_path / 'all.npz'}"


@pytest.mark.slow
def test_attribute_by_gradients(run, small):
    """Single items are compared with the held-out pictures, found by content; the members grade the scores."""
    folder, data = small
    few = [f"--run={folder}", data, "--n=2", "--steps=3", "--top=3", "--draws=4"]
    done = run("attribute", *few, "--method=combined", "--gradients=draws=2,parts=1,dimension=8,ridge=0.1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"member-LDS -?\d\.\d\d \[.*\] on 2 queries and 4 members", done.stdout)
    values = json.loads((folder / "attribution" / "combined_seed0.json").read_text())
    assert values["settings"]["null_kind"] == "held-out"
    assert values["settings"]["null_of_a_kind"] == 5
    assert len(values["judgement"]["table"]) == 4  # 2 methods, normalized or not
    done = run("attribute", *few, "--method=trak", "--gradients=draws=4,drawz=2")
    assert done.returncode != 0
    assert "drawz" in done.stderr


@pytest.mark.slow
def test_report(run, trained):
    """The explorer reuses a saved attribution of the same samples, shows one by loss beside it, and no others."""
    same = ["--n=2", "--steps=3"]
    done = run("attribute", f"--run={trained}", *same, "--top=3", "--verify=4", "--null=5", "--method=screen")
    assert done.returncode == 0, done.stderr
    done = run("attribute", f"--run={trained}", *same, "--top=3", "--null=5", "--method=loss", "--draws=4")
    assert done.returncode == 0, done.stderr
    done = run("report", trained, *same, "--combined=2", "--inline=0")
    assert done.returncode == 0, done.stderr
    assert re.search(r"scores: \S+/attribution/(combined|loss)_seed0.json", done.stdout)
    assert f"attribution: {trained}/attribution/screen_seed0.json" in done.stdout
    page = pathlib.Path(re.search(r"explorer: (\S+)", done.stdout).group(1))
    text = page.read_text()
    assert "python -m experiments.sample" in text
    assert f"--run={trained} --n=2 --seed=0 --steps=3 --sampler=ddpm" in text
    assert "training-title" in text
    assert (page.parent / "explorer_files" / "landscape-0-1.js").stat().st_size > 10_000  # 1,400 units
    done = run("report", f"--run={trained}", "--n=1", "--steps=2", "--top=2", "--null=0", "--combined=0")
    assert done.returncode == 0, done.stderr
    assert "attribution: " not in done.stdout
    assert re.search(r"left out: \S+/loss_seed0.json: it is of 2 samples, not 1", done.stdout)
    assert not (page.parent / "explorer_files").exists()


@pytest.mark.slow
def test_groups_of_a_hierarchical_code(run, tmp_path):
    """A run with items inside classes can be attributed to classes and to items."""
    folder = tmp_path / "hierarchy"
    done = run(
        "train", "--config=experiments/configs/digits.py", f"--config.run_dir={folder}", "--config.train.steps=1",
        "--config.code.groups=label", "--config.code.group_weight=12", "--config.code.weight=6", *TINY,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    for extra, name, candidates in ((["--groups"], "loss_seed0_groups", 10), ([], "loss_seed0", 1400)):
        done = run(
            "attribute", f"--run={folder}", "--n=1", "--steps=2", "--method=loss", "--draws=8", "--null=50", *extra
        )
        assert done.returncode == 0, done.stderr
        att = ensdiff.Attribution.load(folder / "attribution" / name)
        assert att.settings["candidates"] == candidates
        assert att.settings["null_of_a_kind"] == 50
        assert ("--method=combined predicted it better" in done.stdout) == (candidates == 10)
    done = run("sample", f"--run={folder}", "--n=1", "--steps=2", "--groups", "--remove=2", f"--out={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out" / "samples_seed0_without_group_2.png").is_file()
    params = ensdiff.load(folder)
    samples = ensdiff.sample(params, 0, 1, steps=2)
    expected = ensdiff.counterfactuals(params, samples, [2], code=params.code.group_code())
    with np.load(tmp_path / "out" / "samples_seed0.npz") as made:
        np.testing.assert_allclose(made["counterfactuals"], expected, atol=1e-5)


@pytest.mark.slow
def test_gradients(run, tiny, small):
    """Pictures that the run was not trained on are found by their content; a store selects the method."""
    place, data = small
    folder = place / "gradients"
    command = ["gradients", f"--run={place}", data, "--draws=4", "--parts=2", "--dimension=64"]
    done = run(*command, "--held_out=3")
    assert done.returncode == 0, done.stderr
    assert (
        f"{folder}: gradients of loss and square of 6 and 3 held out items under 4 members, 2 x 64 numbers"
        in done.stdout
    )
    store = open_gradients(folder, tiny, ensdiff.data.arrays(blobs()))
    assert store.train("loss").shape == (4, 6, 2, 64)
    assert store.held_out("loss").shape == (4, 3, 2, 64)
    few = ["--n=2", "--steps=3", "--top=3", "--draws=4", "--null=0"]
    done = run("attribute", f"--run={place}", data, f"--store={folder}", *few)
    assert done.returncode == 0, done.stderr
    assert "d-trak_seed0.json" in done.stdout  # single items
    done = run("attribute", f"--run={place}", data, f"--store={folder}", *few, "--gradients=ridge=0.5")
    assert done.returncode == 0, done.stderr  # the other settings are those of the store
    done = run("attribute", f"--run={place}", data, f"--store={folder}", *few, "--gradients=draws=8")
    assert done.returncode == 1
    assert "holds gradients with draws=4" in done.stderr
    done = run(*command, "--held_out=6")
    assert done.returncode == 1
    assert done.stderr.endswith("error: --held_out=6: only 5 pictures of the data were not used in training\n")


@pytest.mark.slow
def test_a_run_without_hashes_has_no_p_values(run, small, tmp_path):
    folder, _ = small
    (folder / MANIFEST).unlink()
    np.savez(tmp_path / "data.npz", images=blobs())
    command = [
        "attribute", f"--run={folder}", f"--data=npz,path={tmp_path / 'data.npz'}", "--method=trak", "--n=2",
        "--steps=3", "--top=3", "--draws=4", "--gradients=draws=2,parts=1,dimension=8,ridge=0.1,normalize=False",
    ]  # fmt: skip
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert "no p-values: " in done.stdout
    done = run(*command, "--null=3")
    assert done.returncode == 1
    assert "stores no hashes of its training data" in done.stderr


def test_attribute_images_from_outside(run, trained, tmp_path):
    """A single picture of another size is attributed, and sets of units are scored."""
    from PIL import Image

    Image.new("RGB", (20, 14), (200, 30, 90)).save(tmp_path / "red.png")
    done = run(
        "attribute", f"--run={trained}", f"--images={tmp_path}", f"--out={tmp_path / 'out'}", "--draws=8",
        "--units=3,4+5,6+7+8", "--null=20",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "0 = red.png" in done.stdout
    att = ensdiff.Attribution.load(tmp_path / "out" / "loss_images")
    assert sorted(att.units[0]) == [0, 1, 2]
    assert att.sets == ((3,), (4, 5), (6, 7, 8))
    assert att.method == att.distance == "loss"
    assert (tmp_path / "out" / "loss_images.png").exists()


@pytest.mark.slow
def test_attribute_contrast_and_values(run, trained, tmp_path):
    done = run("attribute", f"--run={trained}", "--contrast", "--draws=4", f"--out={tmp_path}", "--top=3")
    assert done.returncode == 0, done.stderr
    assert re.search(r"AUC 0\.\d+", done.stdout)
    assert np.load(tmp_path / "contrast_seed0.npz")["membership_NK"].shape == (1400, 16)
    done = run(
        "attribute", f"--run={trained}", "--n=1", "--steps=2", "--method=loss", "--draws=8", "--values=shapley",
        "--units=2,1,3+4", f"--out={tmp_path}",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    values = json.loads((tmp_path / "shapley_loss_seed0.json").read_text())
    assert values["labels"] == ["2", "1", "3+4"]
    assert np.shape(values["value"]) == (1, 3)


def test_score(run):
    done = run("score", "--units=100000", "--members=20", "--samples=2")
    assert done.returncode == 0, done.stderr
    match = re.search(r"100,000 units, 2 samples: ([0-9.]+) s, peak memory ([0-9.]+) GiB", done.stdout)
    assert 0 < float(match.group(1)) < 600
    assert 0 < float(match.group(2)) < 16
    assert float(re.search(r"within (\S+) of float64", done.stdout).group(1)) < 1e-5


def test_design(run, tmp_path):
    done = run("design", "--members=8,16", "--weights=4,8", "--removals=1,2", f"--out={tmp_path}")
    assert done.returncode == 0, done.stderr
    rows = [line.split() for line in done.stdout.splitlines()[2:-1]]
    assert [(row[0], row[1]) for row in rows] == [("8", "4"), ("16", "4"), ("16", "8")]
    assert rows[2][4:7] == ["8.0", "/", "8"]
    assert "<svg" in (tmp_path / "capacity.svg").read_text()


@pytest.mark.slow
def test_attribute_compare(run, trained):
    done = run("attribute", f"--run={trained}", "--n=1", "--steps=2", "--draws=8", "--compare")
    assert done.returncode == 0, done.stderr
    assert "1 samples, 1400 units, 2 sampling steps" in done.stdout
    rows = {line.strip("| ").split()[0]: line for line in done.stdout.splitlines() if line.strip("| ")}
    assert "22,400" in rows["exact"]  # 1,400 units, 8 survivors, 2 steps
    assert "544" in rows["differential"]  # 2 steps, 16 members and their 16 tangents
    assert "1,344" in rows["screen"]


@pytest.mark.slow
def test_a_second_training_in_the_same_folder_is_refused(run, trained):
    done = run("train", "--config=experiments/configs/digits.py", f"--config.run_dir={trained}", *TINY)
    assert done.returncode == 1
    assert "holds checkpoints already" in done.stderr
    assert "(to continue: python -m experiments.train --config=experiments/configs/digits.py" in done.stderr
    assert done.stderr.endswith(" --config.resume=True)\n")
