"""Parameters as compiled programs take them: members split over the mesh, and a frozen base on every device."""

from typing import Any

from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ensdiff.ensemble.ensemble import Ensemble
from ensdiff.ensemble.mesh import on_mesh
from ensdiff.models.adapters import Adapted, Shared
from ensdiff.models.denoiser import Denoiser
from ensdiff.typing import Params


def member_specs(model: Denoiser) -> Any:
    """Return the placement of what `place_members` returns: a pytree prefix of `PartitionSpec`."""
    members: Any = P("member")
    return Shared(P(), members) if isinstance(model, Adapted) else members


def place_members(params: Ensemble, mesh: Mesh) -> Params | Shared:
    """Return the stacked parameters on the mesh, for adapted members together with their base.

    `ensdiff.models.adapters.opened` takes them apart inside of a compiled program.

    Raises:
        ValueError: adapted members without their base.
    """
    return place_stacked(params, params.params, mesh)


def place_stacked(params: Ensemble, stacked: Params, mesh: Mesh) -> Params | Shared:
    """Do what `place_members` does for other parameters of members, such as those of some members."""
    whole = stacked_of(params, stacked)
    if isinstance(whole, Shared):
        return Shared(on_mesh(whole.base, mesh, P()), on_mesh(whole.members, mesh))
    return on_mesh(whole, mesh)


def stacked_of(params: Ensemble, stacked: Params | None = None) -> Params | Shared:
    """Return the stacked parameters, by default of all members, for adapted members together with their base."""
    stacked = params.params if stacked is None else stacked
    if not isinstance(params.model, Adapted):
        return stacked
    if params.base is None:
        raise ValueError(
            f"the ensemble is one of adapters ({params.model.name}) without its base: give dataclasses.replace(params, "
            "base=base_params)"
        )
    return Shared(params.base, stacked)
