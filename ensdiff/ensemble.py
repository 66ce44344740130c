"""The encoded ensemble: one stacked parameter pytree, its device mesh, and what applies all members at once.

(2) ``eps_w(x, t) = sum_k w_k eps_k(x, t)``, factual ``w = 1/K``.

Members are stacked along the leading axis of every parameter, and only `over_members`, `sum_over_members` and
`update_members` know how. Everything that computes with members runs inside `jax.shard_map` over the mesh axes
``'member'`` and ``'data'``, so that no collective is needed unless a result is a sum over members.
"""

import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Int

from ensdiff import hosts
from ensdiff.codes import Code
from ensdiff.conv import one_by_one, resolve
from ensdiff.digest import stacked_sums
from ensdiff.schedule import Schedule
from ensdiff.typing import Array, ArrayLike, Key, Params, as_key, unmasked
from ensdiff.unet import UNet, UNetConfig


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["params"],
    meta_fields=["code", "model", "schedule", "image_shape", "value_range", "data_digest"],
)
@dataclasses.dataclass(frozen=True)
class Ensemble:
    """K trained members. A pytree: the array leaves are ``params``, everything else is static.

    Args:
        params: linen parameters of `UNet`, every leaf with a leading member axis of length K.
        code: which member trained on which unit.
        model: the U-Net of one member.
        schedule: the noise schedule (1) it was trained with.
        image_shape: (H, W, C).
        value_range: the model-space values of black and white; images in [0, 1] are scaled to it.
        data_digest: `Dataset.digest` of the training data, in hexadecimal digits; None where it is not known, as of
            members that were trained elsewhere.

    >>> params
    Ensemble(8 members, 40 units, 8x8x1 images, ... parameters a member)
    >>> {leaf.shape[0] for leaf in jax.tree.leaves(params.params)}
    {8}
    """

    params: Params
    code: Code
    model: UNetConfig
    schedule: Schedule
    image_shape: tuple[int, int, int]
    value_range: tuple[float, float] = (-1.0, 1.0)
    data_digest: str | None = None

    @property
    def members(self) -> int:
        """K."""
        return self.code.members

    @property
    def fingerprint(self) -> str:
        """64 hexadecimal digits of what decides a sample: all bits of all members' parameters, in order, and settings.

        Settings are the network's (not how it is computed: ``conv``, ``attention``, ``remat``, ``dropout``), the
        schedule, the shape of images and the value range. The code is no part of it: images, noise and derivatives do
        not depend on it, and an ensemble may be asked about other units by another code. Nor are devices, shards and
        processes. It is computed once for parameters that are JAX arrays, whose values cannot change; of several
        processes all must ask for it together.

        >>> params.fingerprint == ensdiff.sample(params, 0, 1, steps=2).fingerprint
        True
        """
        found = self.__dict__.get("_fingerprint")
        if found is None:
            found = _fingerprint(self)
            if all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(self.params)):
                object.__setattr__(self, "_fingerprint", found)
        return found

    def candidate_code(self, code: Code | None = None) -> Code:
        """The code whose units are asked about: the ensemble's own, or another over the same members.

        Raises:
            ValueError: it is for another number of members.
        """
        code = self.code if code is None else code
        if code.members != self.members:
            raise ValueError(f"the code is for {code.members} members, the ensemble has {self.members}")
        return code

    def __repr__(self) -> str:
        try:
            size = sum(int(np.prod(leaf.shape[1:])) for leaf in jax.tree.leaves(self.params))
            parameters = f"{size:,} parameters a member"
        except (AttributeError, TypeError):
            parameters = "abstract parameters"
        H, W, C = self.image_shape
        return f"Ensemble({self.members} members, {self.code.units} units, {H}x{W}x{C} images, {parameters})"


_COMPUTED = ("conv", "attention", "remat", "dropout")
"""Fields of `UNetConfig` that change no prediction of a trained network but for rounding."""


def _fingerprint(params: Ensemble) -> str:
    model = {name: value for name, value in dataclasses.asdict(params.model).items() if name not in _COMPUTED}
    named = jax.tree.leaves_with_path(params.params)
    arrays = [(jax.tree_util.keystr(path), leaf.shape, str(leaf.dtype)) for path, leaf in named]
    settings = [model, dataclasses.asdict(params.schedule), params.image_shape, params.value_range, arrays]
    state = hashlib.sha256(json.dumps(_as_floats(settings)).encode())
    for sums in stacked_sums([leaf for _, leaf in named]):
        state.update(hashlib.sha256(sums.astype("<u4").tobytes()).digest())
    return state.hexdigest()


def _as_floats(value: Any) -> Any:
    """Settings with every number as a float: 1, 1.0 and a NumPy scalar are one setting."""
    if isinstance(value, dict):
        return {name: _as_floats(entry) for name, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_as_floats(entry) for entry in value]
    return value if value is None or isinstance(value, str | bool) else float(value)


WEIGHT_SUM = 1e-5
"""How far a sum of weights may be from 1: many times the rounding of float32."""


def member_weights(weights: Any, members: int, name: str = "weights") -> Float[np.ndarray, "*rows K"]:
    """Weights of members as (2) needs them: rows that sum to 1.

    Args:
        weights: (..., K). Booleans, and integers that are all 0 or 1, are masks of the members that are kept: each row
            becomes equal weights of these. Other numbers are weights themselves; they may be negative.
        members: K.
        name: of the argument, for the error.

    Returns:
        Float64, each row with a sum of 1 within `WEIGHT_SUM`.

    Raises:
        ValueError: another shape, numbers that are not finite, a mask that keeps no member, or weights of another sum.

    >>> member_weights([True, False, True, False], 4).tolist()
    [0.5, 0.0, 0.5, 0.0]
    """
    given = np.asarray(unmasked(weights, name))
    try:
        values = given.astype(np.float64)
    except (TypeError, ValueError):
        values = np.full(given.shape, np.nan)
    if given.shape[-1:] != (members,) or not np.isfinite(values).all():
        raise ValueError(f"{name} has shape {given.shape}: expected {members} finite numbers, not all 0")
    total = values.sum(-1, keepdims=True)
    if given.dtype.kind == "b" or (given.dtype.kind in "iu" and np.isin(given, (0, 1)).all()):
        if not total.all():
            raise ValueError(f"{name} is a mask that keeps none of the {members} members: keep at least one")
        return values / total
    wrong = total[np.abs(total - 1) > WEIGHT_SUM]
    if len(wrong):
        raise ValueError(
            f"{name} sum to {wrong[0]:.6g}: expected 1 (within {WEIGHT_SUM:g}), so that predictions are averaged; give "
            f"{name} / {name}.sum(-1, keepdims=True), or a boolean mask of the members that are kept"
        )
    return values


def to_model(images: Array, value_range: tuple[float, float]) -> Float[Array, "..."]:
    """Images in [0, 1], or uint8, to model space, float32."""
    x = images.astype(jnp.float32) / 255.0 if images.dtype == jnp.uint8 else images.astype(jnp.float32)
    low, high = value_range
    return low + (high - low) * x


def to_images(x: Array, value_range: tuple[float, float]) -> Float[Array, "..."]:
    """Model space to images: clipped to the value range, then scaled to [0, 1]."""
    low, high = value_range
    return (jnp.clip(x, low, high) - low) / (high - low)


def make_mesh(members: int, batch: int | None = None, devices: list | None = None) -> Mesh:
    """A ('member', 'data') mesh over as many devices as can share the work equally.

    The member axis gets a divisor of ``members``, the data axis (where ``batch`` is given) one of the batch: as many
    devices as that allows are used and, of equal choices, the one with the most member shards is taken.

    With several processes every process gets a part, equal to within one device, and neighbouring members lie in one
    process. Where the work cannot be divided over so many, a leading axis ``'copy'`` repeats it.

    >>> dict(make_mesh(16, devices=jax.devices()[:1]).shape)
    {'member': 1, 'data': 1}
    """
    devices = list(jax.devices() if devices is None else devices)
    if members < 1 or not devices:
        raise ValueError(f"members={members}, {len(devices)} devices: expected at least one of each")
    own: dict[int, list] = {}
    for device in devices:
        own.setdefault(device.process_index, []).append(device)
    m, d = mesh_shape(members, batch, len(devices), len(own))
    copies = max(1, len(own) // (m * d))
    # in turn from each process, so that each takes part; then a process's devices side by side
    in_turn = sorted((rank, process) for process, some in own.items() for rank in range(len(some)))
    used = sorted((process, rank) for rank, process in in_turn[: copies * m * d])
    grid = np.array([own[process][rank] for process, rank in used], dtype=object).reshape(copies, m, d)
    if copies > 1:
        return Mesh(grid, ("copy", "member", "data"), axis_types=(AxisType.Auto,) * 3)
    return Mesh(grid[0], ("member", "data"), axis_types=(AxisType.Auto,) * 2)


def mesh_shape(members: int, batch: int | None, devices: int, processes: int = 1) -> tuple[int, int]:
    """Member and data shards: as many devices as divide the work and, of equal choices, the most member shards.

    The shards lie on all processes, or on a divisor of their number.

    >>> mesh_shape(20, 128, 8)  # five member shards would leave three devices idle
    (4, 2)
    """
    choices = [
        (m, d)
        for m in range(1, min(members, devices) + 1)
        for d in range(1, devices // m + 1)
        if members % m == 0 and (batch is None or batch % d == 0) and (m * d >= processes or processes % (m * d) == 0)
    ]
    return max(choices, key=lambda shape: (shape[0] * shape[1], shape[0]))


def platform(mesh: Mesh | AbstractMesh) -> str:
    """``"cpu"``, ``"gpu"`` or ``"tpu"``; ``""`` of an abstract mesh."""
    return mesh.devices.flat[0].platform if isinstance(mesh, Mesh) else ""


def on_mesh(tree: Params, mesh: Mesh, spec: P | None = None) -> Params:
    """Place every array on the mesh, by default with its leading axis split over the members."""
    return hosts.place(tree, mesh, P("member") if spec is None else spec)


def pace(tree: Params, mesh: Mesh) -> Params:
    """Wait for a step's results where queueing steps is not safe, and return them.

    XLA's CPU backend can deadlock in an all-reduce when many executions with collectives are in flight on several
    devices (seen with jax 0.10.2 after some hundred queued sampling steps). Accelerators run their queue in order.
    """
    if mesh.size > 1 and platform(mesh) == "cpu":
        jax.block_until_ready(tree)
    return tree


def init_params(
    model: UNetConfig, image_shape: tuple[int, int, int], members: int, key: Key, mesh: Mesh | None = None
) -> Params:
    """Initial parameters of all members, each from its own key ``fold_in(key, member)``.

    On a mesh every device computes its own members, so that no host holds all of them.
    """
    H, W, C = image_shape
    model.check_image(H, W)
    if model.image_channels != C:
        raise ValueError(f"the images have {C} channels and the U-Net {model.image_channels}: set image_channels={C}")
    key = as_key(key)
    return _init_fn(model, image_shape, members, mesh)(key if mesh is None else on_mesh(key, mesh, P()))


@functools.lru_cache(maxsize=32)
def _init_fn(model: UNetConfig, image_shape: tuple[int, int, int], members: int, mesh: Mesh | None):
    net = UNet(model)

    def init(key, member_K):
        x, t = jnp.zeros((1, *image_shape)), jnp.zeros((1,), jnp.int32)
        keys_K = jax.vmap(lambda k: jax.random.fold_in(key, k))(member_K)
        return jax.vmap(lambda key: net.init(key, x, t)["params"])(keys_K)

    if mesh is None:
        return jit_once(lambda key: init(key, jnp.arange(members)))
    count = members // mesh.shape["member"]

    def local_init(key):
        return init(key, jax.lax.axis_index("member") * count + jnp.arange(count))

    return jit_once(jax.shard_map(local_init, mesh=mesh, in_specs=P(), out_specs=P("member"), check_vma=False))


def jit_once(function: Callable[..., Any]) -> Callable[..., Any]:
    """`jax.jit` of a program that runs once, such as draws of noise: on a CPU it is compiled with little optimisation.

    That takes a quarter of the time, and the bits of the draws are the same. Inside of another program (or of
    `jax.eval_shape`) it is the function itself.
    """
    effort = {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else None
    compiled = jax.jit(function, compiler_options=effort)

    def call(*args):
        traced = any(isinstance(leaf, jax.core.Tracer) for leaf in jax.tree.leaves(args))
        return function(*args) if traced else compiled(*args)

    return call


def abstract_params(model: UNetConfig, image_shape: tuple[int, int, int], members: int) -> Params:
    """Shapes and dtypes of `init_params`, without computing anything."""
    return jax.eval_shape(lambda: init_params(model, image_shape, members, 0))


def apply_member(model: UNetConfig, params: Params, x_BHWC: Array, t_B: Array) -> Float[Array, "B H W C"]:
    """Noise prediction of one member; no dropout."""
    model = dataclasses.replace(model, conv=resolve(model.conv, predicting=True))
    predicted: Any = UNet(model).apply({"params": params}, x_BHWC, t_B)
    return predicted


CACHED = {"cpu": 2**18}
"""Bytes of one activation, at full resolution, of the images whose gradient is computed at once: on a CPU the
activations of a few images stay in the cache, and all passes over them are then faster."""


def count_pieces(model: UNetConfig, image_shape: tuple[int, int, int], batch: int, mesh: Mesh | AbstractMesh) -> int:
    """Equal pieces of one member's batch whose activations stay in the cache of one device; 1 on accelerators.

    >>> count_pieces(UNetConfig(channels=32), (28, 28, 1), 16, make_mesh(1, devices=jax.devices("cpu")[:1]))
    8
    """
    held = CACHED.get(platform(mesh))
    if held is None or not one_by_one(model.conv):
        return 1
    image = image_shape[0] * image_shape[1] * model.channels * model.dtype.itemsize
    return next(n for n in range(1, batch + 1) if batch % n == 0 and (n == batch or batch // n * image <= held))


def sum_over_pieces(function: Callable, pieces: int, *arrays_B: Array) -> Any:
    """``function`` of a batch that is a sum over it, as the sum over pieces that are worked off one after another."""
    if pieces == 1:
        return function(*arrays_B)
    return _add_up(function, tuple(a.reshape(pieces, len(a) // pieces, *a.shape[1:]) for a in arrays_B))


def _add_up(function: Callable, parts: tuple) -> Any:
    """The sum of ``function`` over a leading axis of its arguments, in a loop."""
    one = jax.eval_shape(function, *jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape[1:], a.dtype), parts))
    zero = jax.tree.map(lambda a: jnp.zeros(a.shape, a.dtype), one)
    return jax.lax.scan(lambda sums, part: (jax.tree.map(jnp.add, sums, function(*part)), None), zero, parts)[0]


def over_members(model: UNetConfig, function: Callable, *stacked_K: Any) -> Any:
    """``function`` of every member's own part of the arguments, stacked again: `jax.vmap`, or its loop.

    ``model.conv`` says how, see `ensdiff.conv`.
    """
    if one_by_one(model.conv):
        return jax.lax.map(lambda parts: function(*parts), stacked_K)
    return jax.vmap(function)(*stacked_K)


def sum_over_members(model: UNetConfig, function: Callable, *stacked_K: Any) -> Any:
    """The sum of ``function`` of every member's part; in a loop it is added up as it comes."""
    if not one_by_one(model.conv):
        return jax.tree.map(lambda a: a.sum(0), jax.vmap(function)(*stacked_K))
    return _add_up(function, stacked_K)


def update_members(model: UNetConfig, function: Callable, state_K: Any, *stacked_K: Any) -> tuple[Any, Any]:
    """`over_members` of a function that returns a new state of its member and something else.

    In a loop every member's state is replaced where it lies, so that a donated state is never there twice.
    """
    if not one_by_one(model.conv):
        return jax.vmap(function)(state_K, *stacked_K)

    def member(state_K, numbered):
        k, parts = numbered
        old = jax.tree.map(lambda a: jax.lax.dynamic_index_in_dim(a, k, keepdims=False), state_K)
        new, rest = function(old, *parts)
        return jax.tree.map(lambda a, b: jax.lax.dynamic_update_index_in_dim(a, b, k, 0), state_K, new), rest

    members = jax.tree.leaves(state_K)[0].shape[0]
    return jax.lax.scan(member, state_K, (jnp.arange(members), stacked_K))


@functools.lru_cache(maxsize=32)
def _predict_fn(model: UNetConfig, mesh: Mesh):
    def predict(params_K, x_BHWC, t_B):
        return over_members(model, lambda params: apply_member(model, params, x_BHWC, t_B), params_K)

    return jax.jit(
        jax.shard_map(
            predict,
            mesh=mesh,
            in_specs=(P("member"), P("data"), P("data")),
            out_specs=P("member", "data"),
            check_vma=False,
        )
    )


def predict(
    params: Ensemble, x_BHWC: Float[ArrayLike, "..."], t_B: Int[ArrayLike, " B"] | np.integer | int
) -> Float[Array, "K B H W C"]:
    """Every member's noise prediction ``eps_KBHWC`` for noisy images in model space.

    Args:
        params: the ensemble.
        x_BHWC: noisy images in model space (data in [-1, 1], plus noise), channels last.
        t_B: noise level of each image, 0 .. T - 1; one integer stands for all.

    Raises:
        ValueError: the images have another shape than the ensemble's, or a level is out of range.

    >>> x_BHWC = np.random.default_rng(0).normal(size=(3, 8, 8, 1)).astype(np.float32)
    >>> ensdiff.predict(params, x_BHWC, np.array([10, 500, 999])).shape
    (8, 3, 8, 8, 1)
    """
    x_BHWC = jnp.asarray(x_BHWC, jnp.float32)
    if x_BHWC.ndim != 4 or x_BHWC.shape[1:] != tuple(params.image_shape):
        raise ValueError(
            f"x_BHWC has shape {x_BHWC.shape}: expected (B, {', '.join(map(str, params.image_shape))}), channels last"
        )
    levels = np.broadcast_to(np.asarray(t_B), (len(x_BHWC),))
    if not np.issubdtype(levels.dtype, np.integer) or levels.min() < 0 or levels.max() >= params.schedule.timesteps:
        raise ValueError(f"t_B={np.asarray(t_B)}: expected integers in 0 .. {params.schedule.timesteps - 1}")
    mesh = make_mesh(params.members, len(x_BHWC))
    return _predict_fn(params.model, mesh)(
        on_mesh(params.params, mesh),
        on_mesh(x_BHWC, mesh, P("data")),
        on_mesh(levels.astype(np.int32), mesh, P("data")),
    )


IMAGES_AT_ONCE = {"cpu": 16}
"""Most images of one application of a member, where more do not make it faster: on a CPU, larger batches leave the
cache (`experiments.benchmark`, table "batch")."""


def images_at_once(
    model: UNetConfig, image_shape: tuple[int, int, int], mesh: Mesh | AbstractMesh, members: int, budget: int
) -> int:
    """Images that one application of members may be given on one device; 0 where the budget does not hold one.

    Args:
        model: the U-Net.
        image_shape: (H, W, C).
        mesh: the devices.
        members: K; all that lie on one device are alive together, unless they are computed one after another.
        budget: bytes of activations.
    """
    limit = budget // least_bytes(model, image_shape, mesh, members)
    return min(limit, IMAGES_AT_ONCE.get(platform(mesh), limit))


def least_bytes(model: UNetConfig, image_shape: tuple[int, int, int], mesh: Mesh | AbstractMesh, members: int) -> int:
    """Bytes of activations of one image in as many members as are computed together on one device."""
    alive = 1 if one_by_one(model.conv) else members // mesh.shape["member"]
    return alive * activation_bytes(model, image_shape)


@functools.lru_cache(maxsize=64)
def activation_bytes(model: UNetConfig, image_shape: tuple[int, int, int]) -> int:
    """An upper bound on the bytes of activations that one image needs in one member's forward pass.

    The sum over the outputs of all layers, from shapes alone; a compiler that reuses buffers needs less.
    """
    H, W, C = image_shape
    x = jax.ShapeDtypeStruct((1, H, W, C), jnp.float32)
    t = jax.ShapeDtypeStruct((1,), jnp.int32)
    net = UNet(model)

    def run(x, t):
        variables = net.init(jax.random.key(0), x, t)
        return net.apply({"params": variables["params"]}, x, t, capture_intermediates=True, mutable=["intermediates"])

    _, outputs = jax.eval_shape(run, x, t)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(outputs))
