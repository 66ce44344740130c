"""What leaves the run directory, and what explains it: trackers of metrics, the model card, uploads to the Hub."""

import sys
import types

import numpy as np
import pytest
from ml_collections import ConfigDict

import ensdiff
from ensdiff.files.checksums import read_sealed, write_sealed
from experiments import card, trackers, upload


class Tracker(types.ModuleType):
    """A package with the functions of Weights & Biases and trackio."""

    def __init__(self, name, broken=()):
        super().__init__(name)
        self.calls, self.broken = [], broken

    def __getattr__(self, name):
        if name not in ("init", "log", "finish"):
            raise AttributeError(name)

        def call(*args, **kwargs):
            self.calls.append((name, args, kwargs))
            if name in self.broken:
                raise OSError("no network")

        return call


def config(tmp_path, log):
    return ConfigDict({"run_dir": str(tmp_path / "artists"), "log": log, "train": {"steps": 3}})


def test_trackers_get_what_the_metrics_file_gets(monkeypatch, tmp_path):
    """The mean and every member, under the tags of TensorBoard, by ensdiff.train itself."""
    fake = {name: Tracker(name) for name in ("wandb", "trackio")}
    for name, module in fake.items():
        monkeypatch.setitem(sys.modules, name, module)
    data = ensdiff.data.arrays(np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8))
    with trackers.tracked(config(tmp_path, "wandb, trackio")) as on_metrics:
        ensdiff.train(
            data, ensdiff.Code.balanced(4, 6), ensdiff.UNetConfig(channels=4, norm_groups=2, multipliers=(1,)),
            schedule=ensdiff.Schedule(timesteps=20), steps=3, batch_size=2, warmup=0, log_every=2, progress=False,
            run_dir=tmp_path / "artists", on_metrics=on_metrics,
        )  # fmt: skip
    lines = ensdiff.read_metrics(tmp_path / "artists")
    for name, module in fake.items():
        (first, _, given), *logged, (last, _, _) = module.calls
        assert (first, last) == ("init", "finish")
        assert (given["project"], given["name"], given["resume"]) == ("ensdiff", "artists", "allow")
        assert given["config"]["train"]["steps"] == 3
        assert ("id" in given) == (name == "wandb")
        assert [kwargs["step"] for _, _, kwargs in logged] == [line["step"] for line in lines] == [2, 3]
        for (_, (values,), _), line in zip(logged, lines, strict=True):
            assert values["loss/member_003"] == line["loss_K"][3]
            assert values["loss/mean"] == pytest.approx(np.mean(line["loss_K"]))
            assert values["grad_norm/member_000"] == line["grad_norm_K"][0]


@pytest.mark.parametrize("broken", ["init", "log", "finish"])
def test_a_tracker_that_fails_is_a_warning(monkeypatch, tmp_path, broken):
    module = Tracker("wandb", broken={broken})
    monkeypatch.setitem(sys.modules, "wandb", module)

    def follow():
        with trackers.tracked(config(tmp_path, "wandb")) as send:
            for step in (1, 2):
                send(step, {"loss_K": np.ones(2)})

    with pytest.warns(UserWarning, match="wandb failed .*no network"):
        follow()
    counts = {"init": 1, "log": 2, "finish": 4}  # of all calls; after the first error there are no more
    assert len(module.calls) == counts[broken]


def test_unknown_and_missing_trackers_are_refused_at_once(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "trackio", None)
    with pytest.raises(ValueError, match=r"config.log=trackio: trackio cannot be imported .* pip install trackio"):
        trackers.trackers_of(config(tmp_path, "trackio"))
    with pytest.raises(ValueError, match="config.log='clearml': expected some of tensorboard, wandb, trackio"):
        trackers.trackers_of(config(tmp_path, "tensorboard,clearml"))
    assert trackers.trackers_of(config(tmp_path, "tensorboard")) == []
    assert trackers.trackers_of(ConfigDict({"run_dir": "x"})) == []


@pytest.fixture
def run_dir(tiny, tmp_path):
    """Return a run directory with more in it than belongs to a run."""
    path = tmp_path / "by_artist"
    ensdiff.save(tiny, path)
    for name in ("config.json", "secret.txt", "samples/step_0000002.png", "checkpoints/0/note.txt"):
        (path / name).parent.mkdir(exist_ok=True)
        (path / name).write_text("x")
    write_sealed(path / "config.json", {"working_directory": "/home/me"})
    return path


def test_the_card_says_what_the_run_is_and_can_answer(run_dir):
    text = read_sealed(run_dir / "run.json")
    train = {"steps": 4000, "batch_size": 2, "learning_rate": 1e-3, "decay": "cosine", "seed": 5}
    write_sealed(run_dir / "run.json", text | {"train": train, "data": {"name": "a|b", "items": 7, "digest": "d" * 64}})
    written = card.card(run_dir)
    head, _, body = written.removeprefix("---\n").partition("---\n")
    assert head.startswith("library_name: ensdiff\n# license: choose one")
    for part in (
        "# by\\_artist\n",
        "| data | a\\|b: 7 items of 8x8x1 in 6 units |",
        "| members K | 4 |",
        "that see a unit | 2 |",
        "4,000 steps of 2 items per member, learning rate 0.001, cosine, seed 5",
        "- Of 6 units, any can be removed: 2 of 4",
        "- 0 code words belong to none of them",
        "its q is at least 1",
        "ensdiff.load(",
    ):
        assert part in body
    assert "could not be read" not in body


def test_an_edited_card_is_kept(run_dir):
    assert card.write_card(run_dir)
    first = (run_dir / "README.md").read_text()
    assert first.startswith("---\nlibrary_name")
    assert card.write_card(run_dir)  # its own is written again
    (run_dir / "README.md").write_text(first.replace("# license: choose one", "license: mit #"))
    assert not card.write_card(run_dir)
    assert "license: mit" in (run_dir / "README.md").read_text()


def test_a_card_of_groups(tmp_path, tiny):
    from tests.helpers import random_ensemble

    code = ensdiff.Code.hierarchical(8, [0, 0, 1, 1, 2, 2], seed=0)
    ensdiff.save(random_ensemble(code), tmp_path / "run")
    text = card.card(tmp_path / "run")
    assert "- Of 3 groups, any can be removed: 2 of 8 members survive it" in text
    assert "25 code words belong to none of them" in text  # C(8, 6) - 3
    assert "Single units inside of a group can be removed too" in text


class Api:
    """The two methods of huggingface_hub.HfApi that are used."""

    def __init__(self):
        self.calls = []

    def create_repo(self, **kwargs):
        self.calls.append(kwargs)
        return f"https://huggingface.co/{kwargs['repo_id']}"

    def upload_folder(self, **kwargs):
        self.calls.append(kwargs)


def test_only_files_of_the_run_are_uploaded(run_dir, monkeypatch):
    (run_dir / "metrics.jsonl").symlink_to(run_dir / "secret.txt")
    card.write_card(run_dir)
    names = upload.files_of(run_dir, checkpoints=False, config=False)
    assert {"README.md", "run.json", "samples/step_0000002.png"} <= set(names)
    assert any(name.startswith("checkpoints/0/state/") for name in names)
    assert not {"config.json", "secret.txt", "metrics.jsonl", "checkpoints/0/note.txt", ".lock"} & set(names)
    assert "config.json" in upload.files_of(run_dir, checkpoints=True, config=True)
    api = Api()
    address = upload.upload(run_dir, "me/by_artist", names, public=False, api=api)
    made, sent = api.calls
    assert address == "https://huggingface.co/me/by_artist"
    assert (made["private"], made["exist_ok"]) == (True, True)
    assert sent["allow_patterns"] == names
    assert sent["folder_path"] == str(run_dir)
    with pytest.raises(FileNotFoundError, match="no finished checkpoint"):
        upload.files_of(run_dir / "samples", checkpoints=False, config=False)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ImportError, match=r"pip install 'ensdiff\[hub\]'"):
        upload.hub()


def test_an_upload_that_fails_is_explained(run_dir):
    api = Api()
    api.upload_folder = lambda **_: 1 / 0
    with pytest.raises(OSError, match="me/it was not uploaded: ZeroDivisionError: division by zero"):
        upload.upload(run_dir, "me/it", ["run.json"], public=False, api=api)


def test_an_uploaded_run_loads(run_dir, tmp_path, tiny):
    """What is uploaded is enough to load the ensemble elsewhere."""
    for name in upload.files_of(run_dir, checkpoints=False, config=False):
        (tmp_path / "there" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "there" / name).write_bytes((run_dir / name).read_bytes())
    found = ensdiff.load(tmp_path / "there")
    assert found.code == tiny.code


@pytest.mark.slow
def test_upload_as_typed(run, run_dir):
    done = run("upload", f"--run={run_dir}", "--repo=me/it", "--dry_run")
    assert done.returncode == 0, done.stderr
    assert "\nrun.json\n" in done.stdout
    assert not (run_dir / "README.md").exists()
    assert "--repo=: expected" in run("upload", f"--run={run_dir}").stderr
    (run_dir / "config.json").write_text("x")
    assert "is damaged and is not uploaded" in run("upload", f"--run={run_dir}", "--repo=me/it").stderr
