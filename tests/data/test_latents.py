"""Files of latents that are mapped into memory, and principal components as an encoder."""

import zipfile

import jax.numpy as jnp
import numpy as np
import pytest

from ensdiff import data
from ensdiff.data import pca
from ensdiff.files.npy import map_npz
from ensdiff.models.space import Latents
from experiments.building import load_data


def latents(rng, count=6):
    return rng.normal(0, 5, (count, 2, 3, 4)).astype(np.float16)


def test_arrays_of_an_npz_are_mapped(tmp_path, rng):
    z = latents(rng)
    np.savez(tmp_path / "z.npz", first=np.arange(7), z=z, last=np.asfortranarray(z[0]))
    np.testing.assert_array_equal(map_npz(tmp_path / "z.npz", "z"), z)
    np.testing.assert_array_equal(map_npz(tmp_path / "z.npz", "last"), z[0])
    assert isinstance(map_npz(tmp_path / "z.npz", "z"), np.memmap)
    with pytest.raises(ValueError, match="no array 'y'; it has first, z, last"):
        map_npz(tmp_path / "z.npz", "y")
    np.savez_compressed(tmp_path / "c.npz", z=z)
    with pytest.raises(ValueError, match=r"array 'z' is compressed or encrypted: .* numpy.savez"):
        map_npz(tmp_path / "c.npz", "z")
    content = bytearray((tmp_path / "z.npz").read_bytes())
    content[:4] = b"\0\0\0\0"  # the header before the first array
    (tmp_path / "d.npz").write_bytes(content)
    with pytest.raises(ValueError, match=r"d.npz is not a readable .npz file: no header of 'first' at byte 0"):
        map_npz(tmp_path / "d.npz", "first")
    with zipfile.ZipFile(tmp_path / "e.npz", "w") as archive:
        archive.writestr("z.npy", (b"\x93NUMPY\x01\x00F\x00{'descr': '<f2', 'fortran_order': False, 'shape': (90,), }"))
    with pytest.raises(ValueError, match=r"e.npz is not a readable .npz file"):
        map_npz(tmp_path / "e.npz", "z")


def test_a_file_of_latents(tmp_path, rng):
    z = latents(rng)
    about = {"scale": [0.5, 1, 2, 4], "mean": 1.0, "encoder": "mine", "names": list("uvwxyz"), "labels": [0, 1, 2] * 2}
    np.savez(tmp_path / "z.npz", latents=z, who=list("aabbcc"), condition=np.eye(6, 2, dtype=np.float32), **about)
    found = data.latents(tmp_path / "z.npz")
    np.testing.assert_array_equal(found.images, z)
    assert isinstance(found.images, np.memmap)
    assert isinstance(found.condition.base, np.memmap)  # not copied either
    assert found.space == Latents((1.0,), (0.5, 1.0, 2.0, 4.0), "mine")
    assert list(found.unit_names) == list("uvwxyz")
    assert found.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert data.latents(tmp_path / "z.npz", groups="who", scale=3.0).space.scale == (3.0,)
    assert list(data.latents(tmp_path / "z.npz", groups="who").unit_names) == ["a", "b", "c"]
    read = data.npz(tmp_path / "z.npz", labels="labels")
    assert read.digest() == found.digest()
    options = {"name": "latents", "path": str(tmp_path / "z.npz"), "condition": "label", "held_out": 2}
    assert load_data(options).condition_spec.leaves[0].classes == 3
    np.save(tmp_path / "z.npy", z)
    plain = data.latents(tmp_path / "z.npy", scale=2.0)
    assert plain.space == Latents(scale=(2.0,))
    np.testing.assert_array_equal(plain.images, z)
    with pytest.raises(ValueError, match=r"z.npy is one array, without 'who'"):
        data.latents(tmp_path / "z.npy", groups="who")
    np.savez(tmp_path / "y.npz", images=z)
    with pytest.raises(ValueError, match="no array 'latents'; it has images"):
        data.latents(tmp_path / "y.npz")


@pytest.mark.parametrize("channels", [1, 3])
def test_all_components_reconstruct_exactly(rng, channels):
    """With as many channels as numbers in a patch, equation (1) is a rotation."""
    images = rng.integers(0, 256, (20, 4, 6, channels), dtype=np.uint8)
    found = pca.fit(images, channels=4 * channels, patch=2)
    z = found.encode(images)
    assert z.shape == (20, 2, 3, 4 * channels)
    np.testing.assert_allclose(found.decode(z), images / 255.0, atol=1e-5)
    np.testing.assert_allclose(found.encode(images / 255.0), z, atol=1e-5)


def test_components_are_those_of_a_reference(rng, monkeypatch):
    """Mean, components and variances equal a singular value decomposition of all patches, cut by a loop."""
    images = rng.integers(0, 256, (30, 4, 4, 1), dtype=np.uint8)
    images[:, ::2] //= 3  # directions of different variance
    patches = [image[i : i + 2, j : j + 2].ravel() / 255 for image in images for i in (0, 2) for j in (0, 2)]
    mean = np.mean(patches, 0)
    _, singular, basis = np.linalg.svd(np.array(patches) - mean, full_matrices=False)
    monkeypatch.setattr(pca, "ROWS", 7)  # the result does not depend on how many are taken at a time
    found = pca.fit(images, channels=3, patch=2)
    np.testing.assert_allclose(found.mean_D, mean, atol=1e-6)
    np.testing.assert_allclose(np.abs(found.basis_CD @ basis[:3].T), np.eye(3), atol=1e-4)
    np.testing.assert_allclose(found.variance_C, singular[:3] ** 2 / len(patches), rtol=1e-4)
    assert (found.basis_CD[np.arange(3), np.abs(found.basis_CD).argmax(1)] > 0).all()
    z = found.encode(images)
    np.testing.assert_allclose(z[3, 1, 0], found.basis_CD @ (images[3, 2:4, 0:2].ravel() / 255 - mean), atol=1e-5)
    x = np.asarray(found.space.to_model(jnp.asarray(z)))
    assert abs(np.mean(x.var((0, 1, 2))) - 1) < 1e-4


def test_components_are_saved(tmp_path, rng):
    found = pca.fit(rng.integers(0, 256, (9, 4, 4, 3), dtype=np.uint8), 5, 2)
    found.save(tmp_path / "x.npz")
    again = pca.load(tmp_path / "x.npz")
    assert again.digest() == found.digest()
    assert again.space == found.space
    assert found.digest() in found.space.encoder
    np.savez(tmp_path / "y.npz", mean=found.mean_D[:-1], basis=found.basis_CD, variance=found.variance_C, patch=2)
    with pytest.raises(ValueError, match="the shapes of its arrays do not match"):
        pca.load(tmp_path / "y.npz")


def test_errors_of_components():
    images = np.zeros((3, 4, 6, 1), np.uint8)
    with pytest.raises(ValueError, match="5 channels: expected 1 .. 4, the numbers in a patch of 2x2"):
        pca.fit(images, 5, 2)
    with pytest.raises(ValueError, match="pictures of 4x6, patches of 4x4: expected sides that are multiples"):
        pca.fit(images, 2, 4)
    found = pca.fit(images, 2, 2)
    with pytest.raises(ValueError, match="pictures with 3 channels: expected 1, as fitted"):
        found.encode(np.zeros((3, 4, 6, 3), np.uint8))
    with pytest.raises(ValueError, match=r"expected \(N, h, w, 2\)"):
        found.decode(np.zeros((3, 2, 2, 1)))
