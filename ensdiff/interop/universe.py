"""Reading of counterfactual universe files. `ensdiff.interop.ctf` describes their format."""

import hashlib
import io
import itertools
import json
import os
import re
import tarfile
from collections.abc import Iterator
from typing import Any

import numpy as np
from jaxtyping import UInt8

from ensdiff.files.checksums import DamagedError
from ensdiff.files.reading import existing_file

ONE, MANY = "ONEFILE", "MULTIFILE"
SIZES = ("Height", "Width", "Channel")
SUM = "ENSDIFF.sha256"
"""Keyword of a part's checksum in its header."""
CONDITIONS = "conditions.json"
UNITS = "units.json"
_MODES = {1: "L", 3: "RGB"}


class Universe:
    """An open ``.ctf`` file, whose pictures are decoded on access. Use it in a ``with`` statement, or `close` it.

    Args:
        path: the file.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: the file is not an uncompressed tar, or is not of this format. The message states what is wrong.
        DamagedError: a part is not what was written. Parts that are read later raise it too. The message names the
            part.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = existing_file(path)
        try:
            self._tar = tarfile.open(self.path, "r:")  # noqa: SIM115 - closed by close(); "r:" rejects compressed files
            members = self._tar.getmembers()
        except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
            raise ValueError(f"{self.path} is not a plain tar file, or is truncated: {error}") from error
        size = self.path.stat().st_size
        self._members = {  # a sparse member may claim to be of any size
            member.name.removeprefix("./"): member
            for member in members
            if member.isfile() and not member.issparse() and 0 <= member.size <= size
        }
        self._summed = any(SUM in member.pax_headers for member in members)
        try:
            self._open()
        except ValueError:
            self._tar.close()
            raise

    def _open(self) -> None:
        self.config = self._config()
        self.units: int = self.config["TrainingUnits"]
        self.count: int = self.config["NumberGenerated"]
        self.train_shape, self.image_shape = (
            tuple(self.config[part + size] for size in SIZES) for part in ("Train", "Gen")
        )
        self._one = self.config["Format"] == ONE
        fixed = ["factual.png", *(["training_set.png"] if self._one else [])]
        needed = itertools.chain(fixed, (f"leave_{i + 1}_out.png" for i in range(self.units)))
        missing = list(itertools.islice((name for name in needed if name not in self._members), 3))
        if missing:
            raise ValueError(f"{self.path} is incomplete: {', '.join(missing)} is missing")
        self._train: list[tuple[str, int]] = []
        if not self._one:
            found = [(int(m[1]), int(m[2]), m[0]) for name in self._members if (m := re.fullmatch(_TRAIN, name))]
            self._train = [(name, count) for _, count, name in sorted(found)]
            if len(self._train) != self.units:
                raise ValueError(
                    f"{self.path} has {len(self._train)} files train_*.png: expected {self.units}, one per unit"
                )

    def __enter__(self) -> "Universe":
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def __repr__(self) -> str:
        size = "x".join(map(str, self.image_shape))
        return f"Universe({self.path.name}: {self.count} samples of {size}, {self.units} training units)"

    def close(self) -> None:
        """Close the file."""
        self._tar.close()

    @property
    def factual(self) -> UInt8[np.ndarray, "B H W C"]:
        """The samples, 0 .. 255."""
        return self._tiles("factual.png", self.image_shape, self.count)

    @property
    def conditions(self) -> dict[str, Any] | None:
        """The samples' ``captions``, ``guidance``, ``conditions`` and ``null`` (rows); None if unconditional."""
        if CONDITIONS not in self._members:
            return None
        told = self._json(CONDITIONS)
        captions = told.get("captions") if isinstance(told, dict) else None
        if (
            not isinstance(captions, list)
            or len(captions) != self.count
            or not all(isinstance(c, str) for c in captions)
        ):
            raise ValueError(f"{self.path}: {CONDITIONS} has no captions: expected {self.count} texts, one per sample")
        return told

    @property
    def unit_names(self) -> list[str] | None:
        """The names of the training units; None if the file has none, as those of other programs and older versions."""
        if UNITS not in self._members:
            return None
        told = self._json(UNITS)
        names = told.get("names") if isinstance(told, dict) else None
        if not isinstance(names, list) or len(names) != self.units or not all(isinstance(n, str) for n in names):
            raise ValueError(f"{self.path}: {UNITS} has no names: expected {self.units} texts, one per unit")
        return names

    def counterfactual(self, unit: int) -> UInt8[np.ndarray, "B H W C"]:
        """Return the samples without unit ``unit``, counted from 0."""
        return self._tiles(f"leave_{self._check(unit) + 1}_out.png", self.image_shape, self.count)

    def counterfactuals(self) -> Iterator[UInt8[np.ndarray, "B H W C"]]:
        """Yield the samples without each unit, in order."""
        return (self.counterfactual(unit) for unit in range(self.units))

    def training(self, unit: int) -> UInt8[np.ndarray, "n H W C"]:
        """Return the training images of unit ``unit``, counted from 0."""
        self._check(unit)
        if self._one:
            return self._training_set()[unit : unit + 1]
        name, count = self._train[unit]
        return self._tiles(name, self.train_shape, count)

    def check(self) -> None:
        """Read every part.

        Raises:
            ValueError: a part cannot be read. The message names it.
            DamagedError: a part is not what was written. The message names it.
        """
        _ = self.factual, self.conditions, self.unit_names
        for unit in range(self.units):
            self.counterfactual(unit)
            self.training(unit)

    def _training_set(self) -> np.ndarray:
        if not hasattr(self, "_training"):
            self._training = self._tiles("training_set.png", self.train_shape, self.units)
        return self._training

    def _check(self, unit: int) -> int:
        if not 0 <= unit < self.units:
            raise ValueError(f"unit {unit} does not exist: ids are 0 .. {self.units - 1}")
        return unit

    def _read(self, name: str) -> bytes:
        try:
            file = self._tar.extractfile(self._members[name])
            assert file is not None
            content = file.read()
        except KeyError:
            raise ValueError(f"{self.path} is not a counterfactual universe: {name} is missing") from None
        except (tarfile.TarError, EOFError, OSError, ValueError, OverflowError) as error:
            raise ValueError(f"{self.path}: {name} cannot be read: {error}") from error
        expected = self._members[name].pax_headers.get(SUM)
        if self._summed and expected != hashlib.sha256(content).hexdigest():
            raise DamagedError(f"{self.path} is damaged: {name} does not match its checksum")
        return content

    def _json(self, name: str) -> Any:
        try:
            return json.loads(self._read(name))
        except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"{self.path}: {name} is not JSON: {error}") from error

    def _config(self) -> dict[str, Any]:
        config = self._json("config.json")
        if not isinstance(config, dict) or not isinstance(config.get("Format"), str):
            raise ValueError(f"{self.path}: config.json has no Format")
        names = ["TrainingUnits", "NumberGenerated", *(part + size for part in ("Train", "Gen") for size in SIZES)]
        for name in names:
            value = config.get(name)
            if type(value) is not int or not 1 <= value <= 2**31:
                raise ValueError(f"{self.path}: config.json has {name}={value!r}: expected an integer of at least 1")
        return config

    def _tiles(self, name: str, shape: tuple[int, ...], count: int) -> np.ndarray:
        from PIL import Image

        H, W, C = shape
        try:
            with Image.open(io.BytesIO(self._read(name)), formats=["PNG"]) as picture:
                width, height = picture.size
                if width % W or height % H or (width // W) * (height // H) < count:
                    raise ValueError(f"{width}x{height} pixels do not hold {count} tiles of {W}x{H}")
                if picture.mode != _MODES.get(C):
                    raise ValueError(f"a picture of mode {picture.mode}: expected {C} channels of 8 bits")
                pixels = np.asarray(picture)
        except DamagedError:
            raise
        except Exception as error:  # a damaged picture can raise anything
            raise ValueError(f"{self.path}: {name} cannot be used: {error}") from error
        tiles = pixels.reshape(height // H, H, width // W, W, C).transpose(0, 2, 1, 3, 4)
        return tiles.reshape(-1, H, W, C)[:count]


_TRAIN = r"train_(\d+)_(\d+)\.png"
