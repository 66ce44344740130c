"""Draw docs/ordering.svg: how well the losses of K members alone order N units.

The left panel simulates an additive world: effects of units are independent normal numbers, and minus the loss of a
member is the sum of the effects of the units that it saw. The right panel adds noise, and shows the LDS of the contrast
of losses that the study ``judging`` measured against retrained models (docs/results/judging.json), for every ensemble.
Run it from the root of the repository: ``python docs/examples/ordering.py``.
"""

import json
import pathlib
import re

import numpy as np

from ensdiff.attribution.combination import combine, cosine_of_members
from ensdiff.data.drawing import sheet, svg

UNITS = np.array([4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096])
CODES = 8
QUERIES = 10
RESULTS = pathlib.Path("docs/results/judging.json")
KINDS = ("generated", "training", "held out")


def cosines(members: int, units: int, share: float, rng: np.random.Generator) -> tuple[float, float]:
    """Return the mean cosine with the effects of the contrast of losses, and of the posterior mean without a prior."""
    found = np.array([_cosines(members, units, share, rng) for _ in range(CODES)])
    return tuple(found.mean(0))


def _cosines(members: int, units: int, share: float, rng: np.random.Generator) -> tuple[float, float]:
    code_NK = (np.argsort(rng.random((units, members)), axis=1) < members // 2).astype(float)
    effect_BN = rng.normal(size=(QUERIES, units))
    loss_BK = effect_BN @ code_NK + np.sqrt(units / 4 * (1 - share) / share) * rng.normal(size=(QUERIES, members))
    contrast_BN = (loss_BK - loss_BK.mean(1, keepdims=True)) @ code_NK.T
    posterior_BN = combine(np.zeros_like(effect_BN), None, loss_BK, code_NK).mean_BN

    def cosine(found_BN: np.ndarray) -> float:
        lengths = np.linalg.norm(found_BN, axis=1) * np.linalg.norm(effect_BN, axis=1)
        return float(np.mean((found_BN * effect_BN).sum(1) / lengths))

    return cosine(contrast_BN), cosine(posterior_BN)


def measured() -> list[tuple[float, dict[str, float]]]:
    """Return, for each ensemble of the study, its units per member N / K, and the LDS of the contrast of losses."""
    found = []
    for name, of_kind in json.loads(RESULTS.read_text())["numbers"].items():
        if match := re.match(r"(\d+) .*K = (\d+)$", name):
            units, members = map(int, match.groups())
            found.append((units / members, {kind: of_kind[kind]["lds"]["contrast"]["value"] for kind in KINDS}))
    return found


def main() -> None:
    """Simulate, and write the figure."""
    rng = np.random.default_rng(0)
    figure, ((left, right),) = sheet(8.2, 3.3, 1, 2, sharey=True)
    lines = np.geomspace(UNITS[0], UNITS[-1], 60)
    for number, members in enumerate((16, 64, 256)):
        found = np.array([cosines(members, int(units), 1.0, rng) for units in UNITS])
        left.plot(lines, cosine_of_members(members, lines), color=f"C{number}", linewidth=1)
        left.plot(UNITS, found[:, 0], "o", color=f"C{number}", markersize=4, label=f"K = {members}")
        left.plot(UNITS, found[:, 1], "x", color=f"C{number}", markersize=4)
    left.set(title="losses without noise", xlabel="units N", ylabel="cosine with the effects")
    ratios = np.geomspace(0.5, 100, 60)
    for number, share in enumerate((1.0, 0.5, 0.25, 0.1)):
        right.plot(ratios, cosine_of_members(1, ratios, share), color=f"C{number}", linewidth=1, label=f"r = {share:g}")
    points = measured()
    for marker, kind in zip("^sd", KINDS, strict=True):
        values = [of_kind[kind] for _, of_kind in points]
        right.plot(
            [ratio for ratio, _ in points], values, marker, color="black", markersize=5, fillstyle="none",
            label=f"LDS, {kind}",
        )  # fmt: skip
    right.set(title="a share r due to the data; measured", xlabel="units per member N / K")
    for axes in (left, right):
        axes.set_xscale("log")
        axes.set_ylim(0, 1.02)
        axes.legend(frameon=False, fontsize="small")
    (pathlib.Path("docs") / "ordering.svg").write_bytes(svg(figure))


if __name__ == "__main__":
    main()
