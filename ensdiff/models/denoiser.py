"""The one seam between the library and a network: a `Denoiser`, for one member."""

from typing import Any, Protocol, runtime_checkable

from jaxtyping import Float

from ensdiff.typing import Array, Params


@runtime_checkable
class Denoiser(Protocol):
    """A network of one member: two pure functions and a size. It must be hashable, and equal to an equal network.

    `UNetConfig` and `DiTConfig` are denoisers, and so are the results of `linen`, `nnx` and `functions`. Training,
    sampling, attribution, certificates and planning know nothing else about a network.

    Attributes:
        stack: how many members of one device are computed together (`jax.vmap`); 1 computes one after another, and 0
            computes all together. It may change results by rounding only.
    """

    @property
    def stack(self) -> int:
        """The number of members of one device that are computed together; 0 is all of them."""
        ...

    def init(self, key: Array) -> Params:
        """Return the initial parameters of one member, a pytree of float32 arrays."""
        ...

    def apply(
        self, params: Params, x_BHWC: Array, t_B: Array, cond: Any = None, key_B: Array | None = None
    ) -> Float[Array, "B H W C"]:
        """Return the prediction for noisy images.

        Images must not influence each other, or a counterfactual would depend on its neighbours.

        Args:
            params: the parameters.
            x_BHWC: noisy images in model space, times the process's scale of inputs.
            t_B: float32, the time of each image as the process defines it (`ensdiff.Schedule`): for variance
                preserving processes the number of its noise level.
            cond: the condition tree of the images (`ensdiff.models.condition`); None for an unconditional model.
            key_B: one key per image for dropout while training; None otherwise.
        """
        ...
