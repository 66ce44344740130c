"""Run directories: what a training run writes, and how to load it elsewhere.

```
runs/digits/
  run.json               version, model, schedule, code, data and training settings
  data.manifest          unit and content hash of every training item; its SHA-256 is run.json's data.digest
  environment.jsonl      devices and versions, one line per start; each holds from its step to the next line's
  checkpoints/<step>/    Orbax: parameters, optimiser state and average; run.json's content and checksums beside them
  metrics.jsonl          one line per logged step: each member's mean loss since the line before, and gradient norm
  tensorboard/           the same for TensorBoard
  samples/step_<n>.png   sample grids
  damaged/               checkpoints that did not match their checksums when the run was resumed
```
A checkpoint alone is enough to load an ensemble: its metadata hold everything static. Every file appears whole or not
at all, and says itself when it was changed since (`ensdiff.runs.checkpoints`, `ensdiff.files.checksums`).

Of several processes each writes and reads its own members' part of a checkpoint; every other file is process 0's. So
the folder must be on a file system that all of them share. One run at a time may write into it.

Modules, from the lowest up:

- `sums`: checksums of members; `description`: what a run and its checkpoints say about themselves, read and compared.
- `checkpoints`: opening a checkpoint and reading its arrays; every checksum of arrays is compared there.
- `logs`, `environment`: the files of lines, and where a run was trained.
- `resuming`: whether a run may go on; `directory`: writing a run and going on with it.
- `loading`: `ensdiff.load` and `ensdiff.save`; `checking`: `ensdiff.check_run`; `identity`: which data a run is of.
- `pieces`: finished parts of long computations.
"""
