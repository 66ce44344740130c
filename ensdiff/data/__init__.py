"""Data sets, units, per-member splits and index streams."""

from ensdiff.data import pca
from ensdiff.data.checked import from_images
from ensdiff.data.dataset import Dataset
from ensdiff.data.huggingface import huggingface
from ensdiff.data.manifest import Manifest
from ensdiff.data.readers import arrays, digits, fashion_mnist, folder, load, mnist5k, npz, tfds
from ensdiff.data.splits import Splits, batch_indices
from ensdiff.data.stored import latents
from ensdiff.data.warned import DataWarning
from ensdiff.data.webdataset import webdataset

__all__ = [
    "DataWarning",
    "Dataset",
    "Manifest",
    "Splits",
    "arrays",
    "batch_indices",
    "digits",
    "fashion_mnist",
    "folder",
    "from_images",
    "huggingface",
    "latents",
    "load",
    "mnist5k",
    "npz",
    "pca",
    "tfds",
    "webdataset",
]
