"""Conditions and guidance in compiled sampling steps.

With a scale g of classifier-free guidance (Ho & Salimans 2022, arXiv 2207.12598), the prediction under a condition c is

(s4) ``F = F(none) + g (F(c) - F(none))``,

so 1 is the condition alone, and 0 is no condition. It is linear in the predictions, so guidance commutes with the mean
over members (2) and with every conversion of predictions.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int

from ensdiff.diffusion.samplers import Stage
from ensdiff.ensemble.members import apply_member
from ensdiff.ensemble.mesh import on_mesh
from ensdiff.models.condition import ConditionSpec
from ensdiff.models.denoiser import Denoiser
from ensdiff.typing import Array, ArrayLike, Params

Mode = Literal["unconditional", "conditional", "guided"]


class Given(NamedTuple):
    """The conditions of R states.

    Args:
        rows: a condition tree. The last row is the null row; other rows may belong to several states.
        row_R: the row of each state.
        scale: the scale of guidance.
    """

    rows: Any
    row_R: Int[ArrayLike, " R"]
    scale: ArrayLike | np.floating

    @classmethod
    def of(cls, spec: ConditionSpec, cond: Any, row_R: Int[np.ndarray, " R"], guidance: float) -> "Given":
        """Return the conditions of states, from a condition tree and the row of each state in it."""
        rows = jax.tree.map(lambda some, null: np.concatenate([np.asarray(some), null]), cond, spec.null(1))
        if guidance == 0:
            row_R = np.full(len(row_R), len(jax.tree.leaves(rows)[0]) - 1, np.int32)
        return cls(rows, row_R, np.float32(guidance))

    @staticmethod
    def specs(mode: Mode = "conditional") -> Any:
        """Return their placement on a mesh whose data axis splits the states."""
        place: Any = P
        return place() if mode == "unconditional" else Given(place(), place("data"), place())

    def on_mesh(self, mesh: Mesh) -> "Given":
        """Return the same conditions, placed as `specs` defines."""
        return Given(*(on_mesh(part, mesh, spec) for part, spec in zip(self, self.specs(), strict=True)))

    def take(self, index_P: Array) -> "Given":
        """Return the conditions of some of the states."""
        return self._replace(row_R=jnp.asarray(self.row_R)[index_P])

    def conditions(self) -> Any:
        """Return the condition tree with one row per state."""
        return jax.tree.map(lambda rows: jnp.asarray(rows)[jnp.asarray(self.row_R)], self.rows)

    def nothing(self) -> Any:
        """Return the null row for every state."""
        count = len(self.row_R)
        return jax.tree.map(lambda rows: jnp.broadcast_to(rows[-1], (count, *rows.shape[1:])), self.rows)


def mode_of(condition: ConditionSpec | None, guidance: float) -> Mode:
    """Return how many predictions a step needs: two, with and without the condition, if it is ``"guided"``."""
    if condition is None:
        return "unconditional"
    return "conditional" if guidance in (0.0, 1.0) else "guided"


def predictions_of(mode: Mode) -> int:
    """Return the number of predictions per state, member and step."""
    return 2 if mode == "guided" else 1


def predict_given(
    model: Denoiser, params: Params, x_P: Float[Array, "P H W C"], stage: Stage, given: Given | None, mode: Mode
) -> Float[Array, "P H W C"]:
    """Return one member's prediction for states of one sampling stage, with guidance (s4) if it is guided."""
    inputs_P = x_P * stage.scale
    t_P = jnp.full((len(x_P),), stage.time, jnp.float32)
    if given is None:
        return apply_member(model, params, inputs_P, t_P)
    cond = given.conditions()
    if mode == "conditional":
        return apply_member(model, params, inputs_P, t_P, cond)
    both = jax.tree.map(lambda one, other: jnp.concatenate([one, other]), cond, given.nothing())
    predicted = apply_member(model, params, jnp.tile(inputs_P, (2, 1, 1, 1)), jnp.tile(t_P, 2), both)
    with_P, without_P = jnp.split(predicted, 2)
    return without_P + given.scale * (with_P - without_P)
