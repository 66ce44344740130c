"""The data, trained ensembles and computed arrays that studies share, stored so that an interrupted study continues."""

import functools
import json
import pathlib
import time
import warnings
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

import ensdiff
from ensdiff.data import Dataset
from ensdiff.ensemble.memory import Resources
from ensdiff.files.reading import read_json
from ensdiff.files.writing import write_atomically
from ensdiff.metrics import Classifier, fit_classifier
from ensdiff.runs.pieces import Pieces
from ensdiff.sampling.denoise import Noise
from ensdiff.sampling.sample import ablated, sampler_config
from ensdiff.typing import as_key

from .. import building


class Workshop:
    """The data and the models of one config, in a folder.

    Args:
        folder: folder that stores models and arrays.
        config: config of `experiments.evaluate`.
        progress: show progress bars.
    """

    def __init__(self, folder: pathlib.Path, config: ConfigDict, *, progress: bool = True):
        self.folder, self.config, self.progress = folder, config, progress
        (folder / "arrays").mkdir(parents=True, exist_ok=True)
        self._pieces = Pieces(folder / "arrays", ensdiff.__version__)

    def of_data(self, data: ConfigDict) -> "Workshop":
        """Return a workshop of another data set, with the same settings, in the same folder."""
        config = ConfigDict(self.config.to_dict())
        config.data = data
        return Workshop(self.folder, config, progress=self.progress)

    def settings(self, study: str) -> ConfigDict:
        """Return the section of the config for a study."""
        return self.config[study]

    def gradients(self, **options: Any) -> ensdiff.GradientConfig:
        """Return how gradients are computed: the config's section ``gradients``, if any, with other options.

        Raises:
            ValueError: the section has an unknown field or a wrong value.
        """
        values = building.section(self.config, "gradients")
        return building.build(ensdiff.GradientConfig, "gradients", {**values, **options})

    @functools.cached_property
    def data(self) -> Dataset:
        """Return the training data of all studies, shuffled, so that the first N items are a random subset."""
        data = building.load_data(building.section(self.config, "data"))
        return data.subset(np.random.default_rng(0).permutation(data.items))

    @functools.cached_property
    def held_out(self) -> Dataset:
        """Return the held-out data, on which no model is trained."""
        return building.load_held_out(building.section(self.config, "data"))

    @functools.cached_property
    def classifier(self) -> Classifier:
        """Return the classifier whose features are the feature space of all studies of this data set.

        Raises:
            ValueError: the data have no labels.
        """
        labels = self.data.labels
        if labels is None:
            raise ValueError("config.data: the studies need data with labels, such as digits or fashion_mnist")
        return fit_classifier(self.data.images, labels)

    def train(self, name: str, data: Dataset, code: ensdiff.Code, **options: Any) -> ensdiff.Ensemble:
        """Train an ensemble, continue its training, or open it if it is trained.

        Args:
            name: folder in ``models``, which begins with the name of the study.
            data: data with the units of the code.
            code: which member trains on which unit.
            **options: fields of `TrainConfig` that differ from the config's.
        """
        model, schedule, train = building.settings(self.config, data.shape[-1], data.condition_spec)
        run_dir = self.folder / "models" / name
        if not (run_dir / "run.json").exists():
            print(f"training {name}: {code.members} members on {data.units} units", flush=True)
        begin = time.perf_counter()
        params = ensdiff.train(
            data, code, model, train, schedule=schedule, run_dir=run_dir, resume=True, progress=self.progress, **options
        )
        self._clock(f"{name}: training", begin)
        return params

    def kept(self, name: str, compute: Callable[[], np.ndarray], *inputs: Any) -> np.ndarray:
        """Return ``compute()``, or its stored result if it was computed from the same inputs before.

        The name begins with the name of the study.
        """
        return self.kept_all(name, lambda: {"value": compute()}, *inputs)["value"]

    def kept_all(self, name: str, compute: Callable[[], dict[str, np.ndarray]], *inputs: Any) -> dict[str, np.ndarray]:
        """Do what `kept` does for several arrays by name."""

        def timed() -> dict[str, np.ndarray]:
            print(f"computing {name}", flush=True)
            begin = time.perf_counter()
            values = {key: np.asarray(value) for key, value in compute().items()}
            self._clock(name, begin, always=True)
            return values

        return self._pieces.get_all(timed, name, *inputs)

    def samples(
        self,
        study: str,
        params: ensdiff.Ensemble,
        n: int,
        seed: int = 0,
        weights: np.ndarray | None = None,
        cond: np.ndarray | None = None,
    ) -> ensdiff.Samples:
        """Return samples by the config's sampler, stored so that results computed from them are found again exactly.

        ``cond`` are the classes that conditional members are asked for, one per sample.
        """
        config = sampler_config(params, **building.section(self.config, "sampler"))
        weights = params.code.factual()[0] if weights is None else weights

        def compute() -> np.ndarray:
            made = ensdiff.sample(params, seed, n, sampler=config, weights=weights, cond=cond, progress=self.progress)
            return np.asarray(made.images)

        given = () if cond is None else (cond,)
        images = self.kept(f"{study}/samples", compute, params, n, seed, repr(config), weights, *given)
        noise = Noise(jnp.arange(n, dtype=jnp.int32), key=as_key(seed))
        told = params.conditions(cond, n)
        return ensdiff.Samples(jnp.asarray(images), noise, jnp.asarray(weights), config, params.fingerprint, told)

    def counterfactuals(
        self, name: str, params: ensdiff.Ensemble, samples: ensdiff.Samples, weights_MK: np.ndarray
    ) -> np.ndarray:
        """Return every sample under every row of weights, (M, B, H, W, C)."""
        M, B = len(weights_MK), len(samples)

        def compute() -> np.ndarray:
            rows, which = np.repeat(weights_MK, B, axis=0), np.tile(np.arange(B), M)
            return ablated(params, samples, rows, which, Resources(progress=self.progress))

        images = self.kept(name, compute, params, samples, weights_MK)
        return images.reshape(M, B, *params.image_shape)

    def seconds(self, study: str) -> float:
        """Return the seconds that the study has taken so far, without interruptions."""
        return sum(seconds for name, seconds in self._times().items() if name.startswith(f"{study}/"))

    def seconds_of(self, names: dict[str, str]) -> dict[str, float]:
        """Return the seconds of stored computations under the keys of ``names``, leaving out unknown ones."""
        times = self._times()
        return {name: times[key] for name, key in names.items() if key in times}

    def _times(self) -> dict[str, float]:
        path = self.folder / "seconds.json"
        return read_json(path) if path.exists() else {}

    def _clock(self, name: str, begin: float, always: bool = False) -> None:
        """Add to the seconds of ``name``; without ``always``, only its first call counts, later ones only open it."""
        took = time.perf_counter() - begin
        times = self._times()
        if always or name not in times:
            write_atomically(self.folder / "seconds.json", json.dumps({**times, name: times.get(name, 0.0) + took}))


def quiet_matrix(code_NK: np.ndarray) -> ensdiff.Code:
    """Build a code without warnings: equal words, unseen units and members that saw every unit are intended here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ensdiff.CodeWarning)
        return ensdiff.Code.from_matrix(code_NK)
