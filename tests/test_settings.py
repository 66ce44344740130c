"""Checks of the fields of settings."""

import dataclasses
from collections.abc import Callable
from typing import Literal

import pytest

import ensdiff
from ensdiff.settings import check_fields


@dataclasses.dataclass(frozen=True)
class Settings:
    """Settings with one field for each kind of choice."""

    word: Literal["a", "b"] = "a"
    digit: Literal[0, 1] = 0
    rule: Literal["c", "d"] | Callable = "c"
    maybe: Literal["e"] | None = None

    def __post_init__(self) -> None:
        check_fields(self)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"word": "c"}, r"^word='c': expected one of 'a', 'b'$"),
        ({"digit": 2}, r"^digit=2: expected one of 0, 1$"),
        ({"digit": True}, r"^digit=True: expected one of 0, 1$"),
        ({"rule": "a"}, r"^rule='a': expected one of 'c', 'd' or a function$"),
        ({"maybe": "a"}, r"^maybe='a': expected 'e' or None$"),
    ],
)
def test_wrong_choice_is_named(given, message):
    with pytest.raises(ValueError, match=message):
        Settings(**given)


def test_every_choice_is_taken():
    for given in ({"word": "b"}, {"digit": 1}, {"rule": "d"}, {"rule": len}, {"maybe": "e"}):
        Settings(**given)


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (ensdiff.TrainConfig, "decay"),
        *((ensdiff.SamplerConfig, name) for name in ("sampler", "variance", "spacing")),
        *((ensdiff.LossConfig, name) for name in ("levels", "weighting")),
        *(
            (ensdiff.UNetConfig, name)
            for name in ("time_layout", "downsample", "upsample", "compute_dtype", "conv", "attention")
        ),
    ],
)
def test_configs_refuse_unknown_choices(make, name):
    with pytest.raises(ValueError, match=f"^{name}='neither': expected one of '"):
        make(**{name: "neither"})
