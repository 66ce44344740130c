"""Scoring ablations by quadratic forms, for any number of units.

Differential and loss attribution score an ablation by the same kind of function. Let s be the 0/1 vector of the members
that survive the ablation, and ``w_-U = s / |s|``:

(6) ``d^T G d``, ``d = w_-U - w``: as ``d = (I - w 1^T) s / |s|``, it is ``s^T A s / |s|^2`` with
    ``A = (I - w 1^T)^T G (I - w 1^T)``;
(7) ``L(w_-U) - L(w) = s^T A s / |s|^2`` with ``A = R - (w^T R w) 1 1^T``.

A is formed in float64, so that no large terms cancel in the float32 sums over members.

A sum over pairs of members is a sum over pairs of bytes of s. With a table of 2^16 entries for each pair of bytes, a
score for K = 32 members takes six look-ups, and no vector of members is formed. Words of balanced codes are computed on
the device that scores them (`ensdiff.attribution.compiled_words`), so only one chunk is in memory, for any number of
units.
"""

import functools
import itertools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, UInt8

from ensdiff import hosts
from ensdiff.attribution.compiled_words import MAX_MEMBERS, compilable, look, word_fn
from ensdiff.codes import Code
from ensdiff.ensemble.compiling import per_device
from ensdiff.ensemble.ensemble import member_weights
from ensdiff.ensemble.memory import Resources
from ensdiff.ensemble.mesh import on_mesh
from ensdiff.typing import Array

COMPILED = 2**16
"""Fewest units for which it is worth compiling the computation of their words."""
CHUNK = 2**17
"""Default number of ablations per chunk: few enough for their words to stay in the cache of a core."""
_BITS = ((np.arange(256)[:, None] >> np.arange(7, -1, -1)) & 1).astype(np.float64)


class Forms(NamedTuple):
    """One quadratic form per sample: ``score(s) = s^T A s / |s|^2``, or its square root.

    Args:
        matrix_BKK: A of each sample, symmetric, float64.
        root: whether scores are distances, which are the square root of the form.
    """

    matrix_BKK: Float[np.ndarray, "B K K"]
    root: bool


class Chunk(NamedTuple):
    """The scores of some consecutive ablations.

    Args:
        start: number of the first ablation.
        score_BM: scores for all samples.
    """

    start: int
    score_BM: Float[np.ndarray, "B M"]


def gram_forms(gram_BKK: Float[np.ndarray, "B K K"], weights_K: Float[np.ndarray, " K"]) -> Forms:
    """Return the forms of predicted distances (6): the scores are ``sqrt(d^T G d)``, ``d = s / |s| - w``, >= 0."""
    w = member_weights(weights_K, np.shape(gram_BKK)[-1], "weights_K")
    centre = np.eye(len(w)) - w[:, None]
    return Forms(_symmetric(centre.T @ np.asarray(gram_BKK, np.float64) @ centre), True)


def loss_forms(loss_BKK: Float[np.ndarray, "B K K"], weights_K: Float[np.ndarray, " K"]) -> Forms:
    """Return the forms of changes of loss (7), ``L(s / |s|) - L(w)``; positive if the ablation raises the loss."""
    loss_BKK = np.asarray(loss_BKK, np.float64)
    w = member_weights(weights_K, loss_BKK.shape[-1], "weights_K")
    factual_B = np.einsum("k,bkl,l->b", w, loss_BKK, w)
    return Forms(_symmetric(loss_BKK - factual_B[:, None, None]), False)


def _symmetric(matrix_BKK: np.ndarray) -> np.ndarray:
    return (matrix_BKK + matrix_BKK.transpose(0, 2, 1)) / 2


def score_words(forms: Forms, word_MK: UInt8[np.ndarray, "M K"], chunk: int | None = None) -> Float[np.ndarray, "B M"]:
    """Return the scores of ablations, given the members that each drops (1 = dropped; each row keeps some member)."""
    out = [scores for _, scores in stream(forms, len(word_MK), lambda start, stop: word_MK[start:stop], chunk=chunk)]
    return np.concatenate(out, axis=1) if out else np.empty((len(forms.matrix_BKK), 0), np.float32)


def stream(
    forms: Forms,
    count: int,
    source: Code | Callable[[int, int], UInt8[np.ndarray, "M K"]],
    *,
    first: int = 0,
    chunk: int | None = None,
    progress: bool = False,
) -> Iterator[Chunk]:
    """Score many ablations, one chunk at a time.

    Args:
        forms: the forms of the samples.
        count: number of ablations.
        source: a code, whose units are removed one by one, or a function that takes (start, stop) and returns the
            words of these ablations (1 = dropped).
        first: where to begin: 0, or the start of a chunk of an earlier call.
        chunk: ablations per chunk; by default 131,072.
        progress: show a progress bar.

    Yields:
        Chunks of float32 scores, in order.
    """
    K = forms.matrix_BKK.shape[1]
    devices = jax.local_devices()
    resources = Resources(chunk, progress=progress)
    size = CHUNK if resources.chunk is None else resources.chunk
    local = -(-min(size, count) // len(devices))
    size = local * len(devices)
    mesh = Mesh(np.asarray(devices, dtype=object), ("unit",), axis_types=(AxisType.Auto,))
    tabled = K <= MAX_MEMBERS and devices[0].platform == "cpu"  # an accelerator multiplies faster than it looks up
    code = source if isinstance(source, Code) and count >= COMPILED and compilable(source) else None
    with jax.enable_x64(True):
        step = _score_step(K, code, local, tabled, forms.root, mesh)
        matrices = byte_tables(forms.matrix_BKK) if tabled else forms.matrix_BKK.astype(np.float32)
        tables = on_mesh(matrices, mesh, P())

        def words(start: int) -> Any:
            if code is not None:
                return np.uint64(start), np.uint64(count - 1)
            stop = min(start + size, count)
            rows = source.rows(np.arange(start, stop)) if isinstance(source, Code) else source(start, stop)
            packed = np.zeros((_bytes(K), size), np.uint8)
            packed[: -(-K // 8), : stop - start] = np.packbits(rows, axis=1).T
            return (on_mesh(packed, mesh, P(None, "unit")),)

        with hosts.progress_bar(count, "score", "unit", shown=resources.progress, done=first, unit_scale=True) as bar:
            computed = ((start, step(tables, *words(start))) for start in range(first, count, size))
            # in pairs, so that the device computes the next chunk while the caller uses this one
            for (start, score_BM), _ in itertools.pairwise(itertools.chain(computed, [(count, None)])):
                chunk_BM = np.asarray(score_BM)[:, : count - start]  # the last chunk is padded
                bar.update(chunk_BM.shape[1])
                yield Chunk(start, chunk_BM)


def byte_tables(matrix_BKK: Float[np.ndarray, "B K K"]) -> Float[np.ndarray, "B pairs 65536"]:
    """Return, for each pair p < q of bytes of s, the table of what it adds to ``s^T A s`` at each of its 2^16 values.

    Byte p is the high byte of the value. What a single byte adds is in the table of the first pair that contains it.
    """
    B, K, _ = matrix_BKK.shape
    count = _bytes(K)
    padded = np.zeros((B, 8 * count, 8 * count))
    padded[:, :K, :K] = matrix_BKK
    by_byte = padded.reshape(B, count, 8, count, 8)
    tables = np.empty((B, count * (count - 1) // 2, 256, 256), np.float32)
    for j, (p, q) in enumerate(_pairs(count)):
        table = 2 * (_BITS @ by_byte[:, p, :, q] @ _BITS.T)
        if p == 0:
            table += _own(by_byte[:, q, :, q])[:, None, :]
            if q == 1:
                table += _own(by_byte[:, 0, :, 0])[:, :, None]
        tables[:, j] = table
    return tables.reshape(B, -1, 65536)


def _own(byte_B: np.ndarray) -> np.ndarray:
    return np.einsum("vi,bij,vj->bv", _BITS, byte_B, _BITS)


def _pairs(count: int) -> list[tuple[int, int]]:
    return [(p, q) for p in range(count) for q in range(p + 1, count)]


def _bytes(members: int) -> int:
    """Return the number of bytes per word, at least two, so that there is a pair."""
    return max(2, -(-members // 8))


@functools.lru_cache(maxsize=16)
def _score_step(members: int, code: Code | None, local: int, tabled: bool, root: bool, mesh: Mesh):
    """Return a compiled function that scores one chunk, with its ablations split over the devices."""
    count = _bytes(members)
    make = None if code is None else word_fn(code)

    def generated(start: Array, last: Array) -> Array:
        first = start + jax.lax.axis_index("unit").astype(jnp.uint64) * np.uint64(local)
        word = make(jnp.minimum(first + jnp.arange(local, dtype=jnp.uint64), last))  # type: ignore[misc]
        word = word << np.uint64(8 * count - members)
        shifts = np.arange(8 * (count - 1), -1, -8, dtype=np.uint64)
        return ((word[None] >> shifts[:, None]) & np.uint64(255)).astype(jnp.uint8)

    def by_tables(table_B: Array, keep_PM: Array) -> Array:
        byte_PM = keep_PM.astype(jnp.int32)
        pair = [(byte_PM[p] << 8) | byte_PM[q] for p, q in _pairs(count)]
        return jax.lax.map(lambda table: sum(look(table[j], index) for j, index in enumerate(pair)), table_B)

    def by_products(matrix_BKK: Array, keep_PM: Array) -> Array:
        bit_PM = (keep_PM[:, None, :] >> np.arange(7, -1, -1, dtype=np.uint8)[None, :, None]) & np.uint8(1)
        s_KM = bit_PM.reshape(-1, keep_PM.shape[1])[:members].astype(jnp.float32)
        product = functools.partial(jnp.matmul, precision="highest")
        return jax.lax.map(lambda matrix: (s_KM * product(matrix, s_KM)).sum(0), matrix_BKK)

    def step(tables, *words):
        word_PM = words[0] if code is None else generated(*words)
        kept_M = members - jax.lax.population_count(word_PM).astype(jnp.int32).sum(0, dtype=jnp.int32)
        keep_PM = ~word_PM  # bits past K meet zeros in the tables, or are cut off before the product
        form_BM = (by_tables if tabled else by_products)(tables, keep_PM)
        score_BM = form_BM / jnp.square(kept_M.astype(jnp.float32))[None]
        return jnp.sqrt(jnp.maximum(score_BM, 0.0)) if root else score_BM

    spec = (P(None, "unit"),) if code is None else (P(), P())
    return per_device(step, mesh, (P(), *spec), P(None, "unit"))


def evaluate(forms: Forms, word_MK: UInt8[np.ndarray, "M K"]) -> Float[np.ndarray, "B M"]:
    """Return the same scores, computed by NumPy in float64, for few ablations."""
    keep_MK = 1.0 - np.asarray(word_MK, np.float64)
    form_BM = np.einsum("mk,bkl,ml->bm", keep_MK, forms.matrix_BKK, keep_MK, optimize=True)
    score_BM = form_BM / np.square(keep_MK.sum(1))
    return np.sqrt(np.maximum(score_BM, 0.0)) if forms.root else score_BM
