"""Run directories: what a training run writes, and how to load it.

```
runs/digits/
  run.json               version, model, schedule, code, data and training settings
  data.manifest          unit and content hash of every training item; its SHA-256 is run.json's data.digest
  environment.jsonl      devices, versions and execution, one line per start, valid from its step up to the next line's
  unit_names.json        the names of units, if the training data have some and the code has none
  skipped.json           the pictures that could not be read and were left out of the data, if there were some
  base.npz               the parameters that all members started from, if they share them (adapters, fine-tuning)
  tuning.json            the ways to compute members that training timed last, if it timed them
  checkpoints/<step>/    Orbax: parameters, optimiser state and average; run.json's content and checksums beside them
  metrics.jsonl          one line per logged step: each member's mean loss since the previous line, and gradient norm
  tensorboard/           the same values for TensorBoard
  samples/step_<n>.png   sample grids
  README.md              a model card, if experiments.train wrote the run
  damaged/               checkpoints that did not match their checksums when the run was resumed
```
A checkpoint alone is enough to load an ensemble, because its metadata hold everything static. Every file is written
completely or not at all, and checksums detect later changes (`ensdiff.runs.checkpoints`, `ensdiff.files.checksums`).

With several processes, each writes and reads its own members' part of a checkpoint, and process 0 writes every other
file. The folder must therefore be on a file system that all processes share. One run at a time may write into it.

Modules, from the lowest up:

- `sums`: checksums of members; `description`: reading and comparing the descriptions of runs and checkpoints.
- `checkpoints`: opening a checkpoint and reading its arrays, with all comparisons of array checksums.
- `base`: the parameters that all members started from.
- `unit_names`: the names of units, which nothing but messages depends on; `skipped`: pictures that were left out.
- `layout`: converting the arrays of checkpoints in older formats.
- `logs`, `environment`: the line-by-line files, and where a run was trained.
- `resuming`: whether a run may be resumed; `directory`: writing and resuming a run.
- `loading`: `ensdiff.load` and `ensdiff.save`; `checking`: `ensdiff.check_run`; `identity`: matching data to a run.
- `pieces`: finished parts of long computations.
"""
