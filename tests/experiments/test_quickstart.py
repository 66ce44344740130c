"""What experiments.quickstart removes: runs of its own, and nothing else."""

import pytest

from experiments.own_runs import MARK, begin_run


def test_an_earlier_run_is_replaced_only_if_this_program_made_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    begin_run(run, False)
    (run / "run.json").touch()
    (run / "old").touch()
    begin_run(run, True)
    assert (run / "old").exists()
    begin_run(run, False)
    assert [file.name for file in run.iterdir()] == [MARK]


@pytest.mark.parametrize("name", ["run.json", "picture.png"])
def test_files_of_others_are_kept(tmp_path, monkeypatch, name):
    """A folder that holds anything else is not marked either, so that a later call does not remove it."""
    monkeypatch.chdir(tmp_path)
    run = tmp_path / "run"
    run.mkdir()
    (run / name).touch()
    with pytest.raises(ValueError, match="did not make"):
        begin_run(run, False)
    if name == "run.json":
        begin_run(run, True)  # resumed, but still the run of another program
    assert [file.name for file in run.iterdir()] == [name]


@pytest.mark.parametrize("images", ["run", "run/pictures", None])
def test_pictures_and_the_working_directory_are_kept(tmp_path, monkeypatch, images):
    run = tmp_path / "run"
    (run / "pictures").mkdir(parents=True)
    for name in (MARK, "run.json"):
        (run / name).touch()
    monkeypatch.chdir(run if images is None else tmp_path)
    with pytest.raises(ValueError, match="--images" if images else "working directory"):
        begin_run(run, False, images)
    assert (run / "pictures").exists()
