"""Refused inputs: tables of each input, its error and words of its message."""

import functools
import gzip
import json
import os
import pickle
import struct
import tarfile
import types
import zlib

import numpy as np
import pytest
from PIL import Image

import ensdiff
from ensdiff import data
from ensdiff.attribution.contrast import contrast_losses
from ensdiff.interop import ctf, diffusers, genens
from ensdiff.interop.matrices import read_code
from tests import faults
from tests.helpers import CODE, TINY, blobs, random_ensemble

pytestmark = pytest.mark.bad_input

FOLDER_OF = 2000


def hidden(values):
    """Return the same values with one masked entry."""
    return np.ma.masked_array(values, np.arange(values.size).reshape(values.shape) == 1)


def png_header(width, height):
    """Return a PNG file that claims any size and contains no pixels."""

    def chunk(kind, content):
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


@pytest.fixture(scope="module")
def here(tmp_path_factory):
    """Return good and bad files, a tiny ensemble and its samples."""
    root = tmp_path_factory.mktemp("bad")
    params = random_ensemble()
    samples = ensdiff.sample(params, 0, 2, steps=2)
    ensdiff.save(params, root / "run")
    one = ensdiff.data.arrays(blobs())
    faults.train(root / "trained")
    (root / "foreign" / "checkpoints" / "3").mkdir(parents=True)
    ensdiff.certify(root / "trained", [3]).save(root / "trained" / "certificate.json")

    good = Image.fromarray(blobs()[0, ..., 0])
    for name in ("many", "mixed", "loop", "bombs", "empty", "links", "stray"):
        (root / name).mkdir()
    good.save(root / "good.png")
    content = (root / "good.png").read_bytes()
    for i in range(FOLDER_OF):
        (root / "many" / f"{i:04d}.png").write_bytes(content if i != 1234 else content[:40])
    (root / "mixed" / "a.png").write_bytes(content)
    Image.new("L", (9, 7)).save(root / "mixed" / "b.png")
    (root / "loop" / "again").symlink_to(root / "loop")
    (root / "self").symlink_to(root / "self")
    (root / "links" / "a.png").symlink_to(root / "good.png")
    (root / "bombs" / "a.png").write_bytes(png_header(9_000, 9_000))
    for name in ("postscript", "large", "giant"):
        (root / name).mkdir()
    (root / "postscript" / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\nshowpage\n")
    (root / "large" / "a.png").write_bytes(png_header(10_000, 10_000))
    (root / "giant" / "a.png").write_bytes(png_header(60_000, 60_000))
    (root / "stray" / "sub").mkdir()
    for place in ("a.png", "sub/b.png"):
        (root / "stray" / place).write_bytes(content)

    np.savez(root / "good.npz", images=blobs(), names=np.array(list("abcdef")))
    np.savez(root / "objects.npz", images=np.array([{}, {}], object))
    (root / "bad.npz").write_bytes(b"PK\x03\x04 and no more")
    (root / "text.npz").write_text("no archive")
    head = np.lib.format.magic(1, 0) + struct.pack("<H", 118)
    head += b"{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000000), }".ljust(117) + b"\n"
    (root / "claims.npy").write_bytes(head + b"few")
    np.save(root / "halves.npy", np.full((4, 4), 0.5))
    np.save(root / "cube.npy", np.zeros((4, 4, 4)))
    np.save(root / "everyone.npy", np.array([[1, 1], [1, 0]]))
    np.save(root / "nobody.npy", np.array([[1, 0], [1, 0]]))
    (root / "call.pkl").write_bytes(pickle.dumps(functools.partial(os.system, "true")))
    (root / "cut.pkl").write_bytes(pickle.dumps(CODE.matrix())[:-20])
    (root / "list.json").write_text("[1, 2]")
    (root / "deep.json").write_text("[" * 100_000)
    (root / "code.txt").write_text("0 1")
    with gzip.open(root / "letters.csv.gz", "wt") as file:
        file.write("a,b\n")
    with gzip.open(root / "narrow.csv.gz", "wt") as file:
        file.write("1,2\n3,4\n")
    (root / "plain.csv.gz").write_text("1,2\n")
    (root / "fashion").mkdir()
    for name in ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"):
        with gzip.open(root / "fashion" / name, "wb") as file:
            file.write(struct.pack(">HBBI", 0, 8, 1, 2**31) + b"few")
    (root / "no.ctf").write_bytes(b"no tar")
    with tarfile.open(root / "empty.ctf", "w"):
        pass
    (root / "config_error.py").write_text("def get_config(:\n")
    (root / "config_raises.py").write_text("def get_config():\n    return 1 / 0\n")
    (root / "config_none.py").write_text("def get_config():\n    pass\n")
    base = "from experiments.configs import digits\ndef get_config():\n    config = digits.get_config()\n"
    (root / "config_section.py").write_text(f"{base}    config.trian = {{'steps': 3}}\n    return config\n")
    (root / "config_no_data.py").write_text(f"{base}    del config.data\n    return config\n")
    (root / "config_flat.py").write_text(f"{base}    del config.model\n    config.model = 3\n    return config\n")
    return types.SimpleNamespace(root=root, params=params, samples=samples, data=one)


def attribute(here, *args, **options):
    return ensdiff.attribute(here.params, here.samples, *args, **{"top": 2, "null": 0, **options})


def images(shape=(2, 8, 8, 1), value=0.5):
    return np.full(shape, value, np.float32)


def nan_image():
    array = images()
    array[1, 3, 3] = np.nan
    return array


def read_picture(here, name, **options):
    return data.folder(here.root / name, **options)


B, F, N = ValueError, FileNotFoundError, ensdiff.NoSurvivorError
LIBRARY = [
    # settings: type, range, contradiction, unknown
    ("steps a word", lambda h: ensdiff.TrainConfig(steps="many"), B, ["steps='many'", "expected an integer"]),
    ("steps a fraction", lambda h: ensdiff.TrainConfig(steps=2.5), B, ["steps=2.5", "an integer"]),
    ("steps true", lambda h: ensdiff.TrainConfig(steps=True), B, ["steps=True", "an integer"]),
    ("no steps", lambda h: ensdiff.TrainConfig(steps=0), B, ["steps=0", "at least 1"]),
    ("batch of none", lambda h: ensdiff.TrainConfig(batch_size=0), B, ["batch_size=0", "at least 1"]),
    ("rate NaN", lambda h: ensdiff.TrainConfig(learning_rate=float("nan")), B, ["learning_rate=nan", "finite"]),
    ("rate infinite", lambda h: ensdiff.TrainConfig(learning_rate=float("inf")), B, ["learning_rate=inf", "finite"]),
    ("rate negative", lambda h: ensdiff.TrainConfig(learning_rate=-1.0), B, ["learning_rate=-1.0", "positive"]),
    ("clip NaN", lambda h: ensdiff.TrainConfig(clip=float("nan")), B, ["clip=nan", "finite"]),
    ("average of 1", lambda h: ensdiff.TrainConfig(ema=1.0), B, ["ema=1.0", "[0, 1)"]),
    ("flip a word", lambda h: ensdiff.TrainConfig(flip="yes"), B, ["flip='yes'", "True or False"]),
    ("decay unknown", lambda h: ensdiff.TrainConfig(decay="linear"), B, ["decay='linear'", "'cosine'"]),
    ("decay a number", lambda h: ensdiff.TrainConfig(decay=3), B, ["decay=3", "one of 'constant', 'cosine'"]),
    ("option unknown", lambda h: ensdiff.train(h.data, CODE, stepz=3), B, ["'stepz'", "steps, batch_size"]),
    ("channels odd", lambda h: ensdiff.UNetConfig(channels=3), B, ["channels=3", "even number"]),
    ("multipliers a list", lambda h: ensdiff.UNetConfig(multipliers=[1, 2]), B, ["[1, 2]", "a tuple of"]),
    ("no multipliers", lambda h: ensdiff.UNetConfig(multipliers=()), B, ["multipliers=()", "for example (1, 2)"]),
    ("groups that do not divide", lambda h: ensdiff.UNetConfig(norm_groups=5), B, ["norm_groups=5", "must divide 32"]),
    ("level not there", lambda h: ensdiff.UNetConfig(attention_levels=(4,)), B, ["(4,)", "levels are 0 .. 1"]),
    ("dropout of 1", lambda h: ensdiff.UNetConfig(dropout=1.0), B, ["dropout=1.0", "[0, 1)"]),
    ("dtype unknown", lambda h: ensdiff.UNetConfig(compute_dtype="float16"), B, ["'float16'", "bfloat16"]),
    ("conv unknown", lambda h: ensdiff.UNetConfig(conv="fast"), B, ["'fast'"]),
    ("one noise level", lambda h: ensdiff.Schedule(timesteps=1), B, ["timesteps=1", "at least 2"]),
    ("betas the wrong way", lambda h: ensdiff.Schedule(beta_start=0.5), B, ["beta_start=0.5", "<= beta_end"]),
    ("beta NaN", lambda h: ensdiff.Schedule(beta_end=float("nan")), B, ["beta_end=nan", "finite"]),
    ("sampler unknown", lambda h: ensdiff.SamplerConfig("rk4"), B, ["'rk4'", "'ddpm', 'ddim'"]),
    ("eta above 1", lambda h: ensdiff.SamplerConfig(eta=1.5), B, ["eta=1.5", "[0, 1]"]),
    ("zero draws", lambda h: ensdiff.LossConfig(draws=0), B, ["draws=0", "two blocks of 32"]),
    ("odd pairs", lambda h: ensdiff.LossConfig(block=3, levels="antithetic"), B, ["block=3", "even number"]),
    ("target of 0", lambda h: ensdiff.LossConfig(target_error=0.0), B, ["target_error=0.0", "positive"]),
    ("too small for the levels", lambda h: ensdiff.train(h.data, CODE, ensdiff.UNetConfig(multipliers=(1,) * 5)), B,
     ["multiples of 16"]),
    ("colour model, grey data", lambda h: ensdiff.train(h.data, CODE, ensdiff.UNetConfig(image_channels=3)), B,
     ["1 channels", "set image_channels=1"]),
    # data
    ("no images", lambda h: data.arrays(np.zeros((0, 8, 8), np.uint8)), B, ["(0, 8, 8, 1)", "none of them 0"]),
    ("one image", lambda h: data.arrays(blobs(1)), B, ["one image", "at least two"]),
    ("NaN pixels", lambda h: data.arrays(nan_image()), B, ["image 1 holds NaN", "[0, 1]"]),
    ("0 to 255 as floats", lambda h: data.arrays(blobs().astype(float)), B, ["expected floats in", "give uint8"]),
    ("-1 to 1", lambda h: data.arrays(images(value=-1.0)), B, ["-1 to -1", "(x + 1) / 2"]),
    ("integers", lambda h: data.arrays(blobs().astype(np.int32)), B, ["int32", "expected uint8"]),
    ("objects", lambda h: data.arrays(blobs().astype(object)), B, ["object", "expected uint8"]),
    ("two channels", lambda h: data.arrays(images((4, 8, 8, 2))), B, ["2 channels", "1 or 3, channels last"]),
    ("five axes", lambda h: data.arrays(images((1, 4, 8, 8, 1))), B, ["(1, 4, 8, 8, 1)", "(N, H, W, C)"]),
    ("ragged", lambda h: data.arrays([np.zeros((8, 8)), np.zeros((9, 9))]), B, ["sizes differ"]),
    ("groups too few", lambda h: data.arrays(blobs(), groups=[1, 2]), B, ["(2,)", "(6,), one value per image"]),
    ("one group", lambda h: data.arrays(blobs(), groups=["a"] * 6), B, ["one group (a)", "at least two"]),
    ("groups of floats", lambda h: data.arrays(blobs(), groups=np.ones(6)), B, ["float64", "strings or integers"]),
    ("no group", lambda h: data.arrays(blobs(), groups=[*"abcd", None, None]), B, ["2 of 6 images", "image 4", "None"]),
    ("no label", lambda h: data.arrays(blobs(), labels=[0, 1, np.nan, 1, 0, 1]), B, ["no label", "image 2", "nan"]),
    ("groups of two types", lambda h: data.arrays(blobs(), groups=[*"abcde", 5]), B, ["'a' (string)", "5 (integer)"]),
    ("names twice", lambda h: data.from_images(blobs(), names=list("abcdea")), B, ["look the same, 'a' and 'a'"]),
    ("subset of nothing", lambda h: h.data.subset([]), B, ["shape (0,), of 6 images", "at least one index"]),
    ("subset beyond", lambda h: h.data.subset([1, 6]), B, ["item 6 does not exist", "0 .. 5"]),
    ("subset from the end", lambda h: h.data.subset([-1]), B, ["item -1 does not exist", "0 .. 5"]),
    ("subset of fractions", lambda h: h.data.subset([1.0]), B, ["float64", "expected integers, 0 .. 5"]),
    ("subset by a short mask", lambda h: h.data.subset([True, False]), B, ["2 booleans", "expected 6, one per image"]),
    ("a little above 1", lambda h: data.arrays(images(value=1.00001)), B, ["1.00001001 to 1.00001001", "[0, 1]"]),
    ("labels too few", lambda h: data.arrays(blobs(), labels=[1]), B, ["labels have shape (1,)", "one value"]),
    ("reader unknown", lambda h: data.load("mnist"), B, ["'mnist'", "expected one of digits"]),
    ("reader's option unknown", lambda h: data.load("digits", size=3), B, ["no option 'size'", "groups"]),
    ("reader's option missing", lambda h: data.load("npz"), B, ["npz needs path="]),
    ("more units than words", lambda h: ensdiff.Code.balanced(4, 7), B, ["7 units", "only 6 code words", "is 5"]),
    ("code of other data", lambda h: ensdiff.train(h.data, ensdiff.Code.balanced(4, 5), TINY), B, ["5 units", "has 6"]),
    # data: files
    ("npz not there", lambda h: data.npz(h.root / "none.npz"), F, ["none.npz does not exist"]),
    ("npz without the array", lambda h: data.npz(h.root / "good.npz", "pictures"), B, ["'pictures'", "images, names"]),
    ("npz cut short", lambda h: data.npz(h.root / "bad.npz"), B, ["bad.npz is not a readable .npz"]),
    ("npz of text", lambda h: data.npz(h.root / "text.npz"), B, ["text.npz is not a readable .npz"]),
    ("npz of objects", lambda h: data.npz(h.root / "objects.npz"), B, ["objects.npz", "Python objects", "unpickled"]),
    ("npz of words", lambda h: data.npz(h.root / "good.npz", "names"), B, ["shape (6,)", "(N, H, W, C)"]),
    ("folder not there", lambda h: read_picture(h, "none"), F, ["none does not exist"]),
    ("folder a file", lambda h: read_picture(h, "good.npz"), B, ["good.npz is a file", "a folder of pictures"]),
    ("folder empty", lambda h: read_picture(h, "empty"), B, ["empty holds no pictures", ".png"]),
    ("folder of links", lambda h: read_picture(h, "links"), B, ["links holds no pictures", "links left out"]),
    ("folder in a loop", lambda h: read_picture(h, "loop"), B, ["loop holds no pictures"]),
    ("folder a link to itself", lambda h: read_picture(h, "self"), F, ["self does not exist"]),
    ("one unreadable of thousands", lambda h: read_picture(h, "many"), B, ["1234.png cannot be read as a picture"]),
    ("mixed sizes", lambda h: read_picture(h, "mixed"), B, ["a.png is 8x8", "b.png is 9x7", "give size="]),
    ("picture in no group", lambda h: read_picture(h, "stray", groups="folder"), B, ["a.png is in no subfolder"]),
    ("mode unknown", lambda h: read_picture(h, "mixed", mode="CMYK"), B, ["'CMYK'", "'RGB', 'L'"]),
    ("size of 0", lambda h: read_picture(h, "mixed", size=0), B, ["size=0", "at least 1 pixel"]),
    ("bomb", lambda h: read_picture(h, "bombs"), B, ["bombs/a.png", "9000x9000 pixels is more than"]),
    ("bomb that Pillow warns of", lambda h: read_picture(h, "large"), B, ["large/a.png", "decompression bomb"]),
    ("bomb that Pillow refuses", lambda h: read_picture(h, "giant"), B, ["giant/a.png", "decompression bomb"]),
    ("PostScript by another name", lambda h: read_picture(h, "postscript"), B, ["postscript/a.png cannot be read"]),
    ("csv of letters", lambda h: data.mnist5k(h.root / "letters.csv.gz"), B, ["letters.csv.gz", "table of numbers"]),
    ("csv too narrow", lambda h: data.mnist5k(h.root / "narrow.csv.gz"), B, ["(2, 2)", "784 pixels and a label"]),
    ("csv not compressed", lambda h: data.mnist5k(h.root / "plain.csv.gz"), B, ["plain.csv.gz cannot be read"]),
    ("idx that claims too much", lambda h: data.fashion_mnist(h.root / "fashion"), B, ["idx3-ubyte.gz", "2147483648"]),
    ("idx not there", lambda h: data.fashion_mnist(h.root / "none"), F, ["does not exist", "dir="]),
    # checkpoints
    ("run not there", lambda h: ensdiff.load(h.root / "none"), F, ["none does not exist", "experiments.train"]),
    ("run without checkpoints", lambda h: ensdiff.load(h.root / "empty"), F, ["empty holds no finished checkpoint"]),
    ("checkpoint not there", lambda h: ensdiff.load(h.root / "run", step=7), F, ["no checkpoint 7", "it has 0"]),
    ("run twice", lambda h: ensdiff.save(h.params, h.root / "run"), FileExistsError, ["holds checkpoints already"]),
    ("GenEns not there", lambda h: genens.load(h.root / "empty"), F, ["holds splits []", "expected 0, 1"]),
    ("diffusers not there", lambda h: diffusers.load(h.root / "empty"), F, ["Shard0, Shard1"]),
    ("universe not there", lambda h: ctf.read(h.root / "none.ctf"), F, ["none.ctf does not exist"]),
    ("universe no tar", lambda h: ctf.read(h.root / "no.ctf"), B, ["no.ctf is not a plain tar file"]),
    ("universe empty", lambda h: ctf.read(h.root / "empty.ctf"), B, ["config.json is missing"]),
    ("attribution not there", lambda h: ensdiff.Attribution.load(h.root / "none"), F, ["none.json does not exist"]),
    # code matrices
    ("halves", lambda h: read_code(h.root / "halves.npy"), B, ["code[0, 0] is 0.5", "expected 0 or 1"]),
    ("cube", lambda h: read_code(h.root / "cube.npy"), B, ["(4, 4, 4)", "(units, members)"]),
    ("seen by everyone", lambda h: read_code(h.root / "everyone.npy"), B, ["units 0", "could never be removed"]),
    ("member that saw nothing", lambda h: read_code(h.root / "nobody.npy"), B, ["members 1 see no unit", "drop"]),
    ("array that claims too much", lambda h: read_code(h.root / "claims.npy"), B, ["claims.npy", "000000000 bytes"]),
    ("pickle that calls", lambda h: read_code(h.root / "call.pkl"), B, ["the pickle calls", "not run"]),
    ("pickle cut short", lambda h: read_code(h.root / "cut.pkl"), B, ["cut.pkl", "truncated"]),
    ("JSON of a list", lambda h: read_code(h.root / "list.json"), B, ["not a code", "Code.to_dict"]),
    ("JSON too deep", lambda h: read_code(h.root / "deep.json"), B, ["deep.json is not a JSON file"]),
    ("file of another kind", lambda h: read_code(h.root / "code.txt"), B, ["code.txt", ".npy"]),
    ("names too few", lambda h: ensdiff.Code.from_matrix(CODE.matrix(), ["a"]), B, ["1 names for 6 units"]),
    # samples
    ("neither key nor noise", lambda h: ensdiff.sample(h.params, steps=2), B, ["either key and n, or noise"]),
    ("no samples", lambda h: ensdiff.sample(h.params, 0, 0, steps=2), B, ["n=0", "at least 1"]),
    ("more steps than levels", lambda h: ensdiff.sample(h.params, 0, 1, steps=21), B, ["steps=21", "at most 20"]),
    ("noise of another size", lambda h: ensdiff.sample(h.params, noise=images((3, 1, 9, 9, 1)), steps=2), B,
     ["(3, 1, 9, 9, 1)", "(3, 1, 8, 8, 1)"]),
    ("weights too few", lambda h: ensdiff.sample(h.params, 0, 1, steps=2, weights=[1.0]), B, ["(1,)", "4 finite"]),
    ("weights NaN", lambda h: ensdiff.sample(h.params, 0, 1, steps=2, weights=[np.nan] * 4), B, ["finite numbers"]),
    ("sampler's option unknown", lambda h: ensdiff.sample(h.params, 0, 1, stochastic=1), B, ["stochastic", "eta"]),
    ("key a word", lambda h: ensdiff.sample(h.params, "seed", 1, steps=2), B, ["'seed'", "jax.random.key(0)"]),
    ("images without noise", lambda h: ensdiff.attribute(h.params, images(), "exact"), B, ["method='loss'"]),
    ("images of another size", lambda h: ensdiff.loss_matrix(h.params, images((2, 9, 9, 1))), B,
     ["(2, 9, 9, 1)", "(B, 8, 8, 1)"]),
    ("images outside of [0, 1]", lambda h: ensdiff.attribute(h.params, images(value=2.0), "loss", top=1), B,
     ["image 0 holds values outside of [0, 1]"]),
    ("images NaN", lambda h: ensdiff.attribute(h.params, nan_image(), "loss", top=1, null=0), B, ["image 1 holds NaN"]),
    ("images of integers", lambda h: ensdiff.loss_matrix(h.params, images().astype(int)), B, ["int64", "uint8"]),
    ("noise level out of range", lambda h: ensdiff.predict(h.params, images(), 20), B, ["t_B=20", "0 .. 19"]),
    # masked values count as missing
    ("masked code", lambda h: ensdiff.Code.from_matrix(hidden(CODE.matrix())), B, ["the code: 1 of", "masked"]),
    ("masked groups", lambda h: ensdiff.Code.hierarchical(8, hidden(np.arange(30) // 10)), B, ["groups: 1 of 30"]),
    ("masked pictures", lambda h: data.from_images(hidden(np.zeros((3, 8, 8), np.uint8))), B, ["images: 1 of 192"]),
    ("masked pictures in a list", lambda h: data.from_images([hidden(np.zeros((8, 8)))] * 2), B, ["images: 2 of 128"]),
    ("masked items", lambda h: h.data.subset(hidden(np.arange(3))), B, ["items: 1 of 3"]),
    ("masked images", lambda h: ensdiff.attribute(h.params, hidden(images()), "loss", top=1), B,
     ["the images: 1 of"]),
    ("masked weights", lambda h: ensdiff.sample(h.params, 0, 1, steps=2, weights=hidden(np.full(4, 0.25))), B,
     ["weights: 1 of 4"]),
    ("masked query", lambda h: ensdiff.baselines.baseline_scores(hidden(images()), h.data), B, ["the images: 1 of"]),
    ("masked losses", lambda h: contrast_losses(hidden(np.zeros((6, 4))), CODE), B, ["loss_NK: 1 of 24"]),
    ("masked distances", lambda h: ensdiff.metrics.radius(hidden(np.ones((2, 6)))), B, ["1 of 12 entries are masked"]),
    ("masked features", lambda h: ensdiff.metrics.frechet_distance(hidden(np.eye(4)), np.eye(4)), B, ["1 of 16"]),
    ("masked units", lambda h: CODE.ablate(hidden(np.arange(3))), B, ["unit ids: 1 of 3"]),
    # requests
    ("members by a mask", lambda h: CODE.only([True, False]), B, ["are booleans", "flatnonzero"]),
    ("seed too large", lambda h: ensdiff.sample(h.params, 2**70, 1, steps=2), B, ["seed 1180591620717411303424"]),
    ("degree between", lambda h: ensdiff.metrics.kernel_distance(np.eye(4), np.eye(4), degree=2.5), B, ["degree=2.5"]),
    ("method unknown", lambda h: attribute(h, "shapley"), B, ["'shapley'", "'screen'"]),
    ("unit unknown", lambda h: ensdiff.counterfactuals(h.params, h.samples, [6]), B, ["unit 6", "0 .. 5"]),
    ("unit negative", lambda h: attribute(h, units=[-1]), B, ["unit -1", "0 .. 5"]),
    ("unit a word", lambda h: ensdiff.counterfactuals(h.params, h.samples, ["ada"]), B, ["'ada'", "have no names"]),
    ("no survivor", lambda h: ensdiff.counterfactuals(h.params, h.samples, [{0, 1, 2, 3, 4, 5}]), N,
     ["no member survives", "survivors when one of them is kept", "Remove fewer units"]),
    ("empty set", lambda h: ensdiff.counterfactuals(h.params, h.samples, [[]]), B, ["empty set of units"]),
    ("no units", lambda h: ensdiff.counterfactuals(h.params, h.samples, []), B, ["no units given"]),
    ("top beyond N", lambda h: attribute(h, top=7, verify=7), B, ["top=7", "1 .. 6"]),
    ("top of 0", lambda h: attribute(h, top=0), B, ["top=0", "1 .. 6"]),
    ("verify below top", lambda h: attribute(h, top=3, verify=2), B, ["verify=2", "top=3"]),
    ("null negative", lambda h: attribute(h, null=-1), B, ["null=-1", "'all'"]),
    ("null beyond the words", lambda h: attribute(h, null=5), B, ["5 unowned", "6 members would do", "null=0"]),
    ("level of 0", lambda h: attribute(h, level=0), B, ["level=0", "between 0 and 1"]),
    ("verify of exact", lambda h: attribute(h, "exact", verify=3), B, ["verify is for method='screen'", "'exact'"]),
    ("loss of a screen", lambda h: attribute(h, loss=ensdiff.LossConfig()), B, ["loss is for method='loss'"]),
    ("unit twice", lambda h: attribute(h, units=[3, 3, 5]), B, ["unit 3 is given 2 times", "once"]),
    ("weights that add up to 3", lambda h: ensdiff.sample(h.params, 0, 1, steps=2, weights=[1.0, 1.0, 1.0, 0.0]), B,
     ["sum to 3", "boolean mask"]),
    ("samples of another ensemble", lambda h: ensdiff.gram(random_ensemble(seed=1), h.samples), B,
     ["another ensemble, with fingerprint", "ensdiff.load", "samples.unbound()"]),
    ("audit of exact", lambda h: attribute(h, "exact", audit=3), B, ["audit=3", "method='screen'"]),
    ("features of loss", lambda h: attribute(h, "loss", features=np.ravel), B, ["features", "leave them out"]),
    ("code of others", lambda h: attribute(h, code=ensdiff.Code.balanced(6, 6)), B, ["6 members", "has 4"]),
    ("coalitions of one", lambda h: ensdiff.group_values(np.eye(4)[None], CODE, coalitions=1), B, ["coalitions=1"]),
    ("game unknown", lambda h: ensdiff.group_values(np.eye(4)[None], CODE, kind="owen"), B, ["'owen'", "'banzhaf'"]),
    ("capacity beyond N", lambda h: CODE.capacity(7), B, ["7 removals", "0 .. 6"]),
    ("certificate of no run", lambda h: ensdiff.certify(h.root / "none", [3]), F, ["none does not exist"]),
    ("certificate of a saved run", lambda h: ensdiff.certify(h.root / "run", [3]), B, ["only runs that ensdiff.train"]),
    ("certificate of a word", lambda h: ensdiff.certify(h.root / "trained", "3"), B, ["units='3'", "[3, 7]"]),
    ("certificate not there", lambda h: ensdiff.Certificate.load(h.root / "none.json"), F, ["none.json does not"]),
    # resources
    ("budget for nothing", lambda h: ensdiff.counterfactuals(h.params, h.samples, [3], memory_budget=10), B,
     ["memory_budget=10 bytes", "give at least that"]),
    ("budget for no loss", lambda h: attribute(h, "loss", memory_budget=10), B, ["memory_budget=10 bytes"]),
    ("budget for no contrast", lambda h: ensdiff.contrast(h.params, h.data, memory_budget=10), B,
     ["memory_budget=10 bytes"]),
    ("chunk of 0", lambda h: ensdiff.sample(h.params, 0, 2, steps=2, chunk=0), B, ["chunk=0", "at least 1"]),
    ("matrix too large", lambda h: ensdiff.Code.balanced(64, 2**40).matrix(), B, ["more than 8 GiB", "rows(ids)"]),
]  # fmt: skip


@pytest.mark.parametrize(("call", "error", "words"), [case[1:] for case in LIBRARY], ids=[case[0] for case in LIBRARY])
def test_the_library_refuses(here, call, error, words, record_property):
    with pytest.raises(Exception) as caught:
        call(here)
    assert isinstance(caught.value, error), repr(caught.value)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    assert len(message) < 1500
    record_property("count", ("bad inputs refused", 1))


DIGITS = "--config=experiments/configs/digits.py"
PROGRAMS = [
    ("train", [], 2, ["config"]),
    ("train", ["--config=none.py"], 2, ["none.py does not exist", "digits", "path of a Python file"]),
    ("train", ["--config=digitz"], 2, ["digitz does not exist", "cifar10_paper, digits, ", "path of a Python file"]),
    ("train", ["--config={root}/config_error.py"], 2, ["SyntaxError", "config_error.py, line 1"]),
    ("train", ["--config={root}/config_raises.py"], 2, ["ZeroDivisionError: division by zero"]),
    ("train", ["--config={root}/config_none.py"], 2, ["--config must have a value"]),
    ("train", ["--config={root}/config_section.py"], 1, ["config.trian: no such section", "train"]),
    ("train", ["--config={root}/config_no_data.py"], 1, ["config.data.name: expected the name of a data set"]),
    ("train", ["--config={root}/config_flat.py"], 1, ["config.model=3: expected a section"]),
    ("train", [DIGITS, "--config.train.stepz=3"], 2, ["stepz", "Did you mean"]),
    ("train", [DIGITS, "--config.train.steps=many"], 2, ["steps"]),
    ("train", [DIGITS, "--config.train.steps=0"], 1, ["steps=0: expected at least 1"]),
    ("train", [DIGITS, "--config.train.learning_rate=nan"], 1, ["learning_rate=nan", "finite"]),
    ("train", [DIGITS, "--config.train.decay=linear"], 1, ["decay='linear'"]),
    ("train", [DIGITS, "--config.model.norm_groups=7"], 1, ["norm_groups=7 does not divide"]),
    ("train", [DIGITS, "--config.schedule.timesteps=1"], 1, ["timesteps=1"]),
    ("train", [DIGITS, "--config.code.members=4"], 1, ["smallest number of members"]),
    ("train", [DIGITS, "--config.code.weight=16"], 1, ["weight=16", "1 .. 15"]),
    ("train", [DIGITS, "--config.code.groups=artist"], 1, ["config.code.groups='artist'", "'label'"]),
    ("train", [DIGITS, "--config.code.groups=label", "--config.data.groups=class"], 1, ["inside classes"]),
    ("train", [DIGITS, "--config.data.name=digitz"], 1, ["'digitz'", "expected one of digits"]),
    ("train", [DIGITS, "--config.data.held_out=1797"], 1, ["config.data.held_out=1797", "1795 of the 1797"]),
    ("train", [DIGITS, "--config.data.held_out=-3"], 1, ["config.data.held_out=-3"]),
    ("train", [DIGITS, "--config.data.groups=artist"], 1, ["groups='artist'", "'class'"]),
    ("train", [DIGITS, "more"], 2, ["unexpected argument 'more'"]),
    ("train", ["--confg=x"], 2, ["confg"]),
    ("sample", [], 1, ["no run given", "--run=runs/quickstart"]),
    ("sample", ["--run={root}/none"], 1, ["none does not exist"]),
    ("sample", ["--run={root}/run", "--n=0", "--steps=2"], 1, ["n=0", "at least 1"]),
    ("sample", ["--run={root}/run", "--n=two"], 2, ["--n", "two"]),
    ("sample", ["--run={root}/run", "--steps=0"], 1, ["steps=0"]),
    ("sample", ["--run={root}/run", "--sampler=lms"], 2, ["sampler", "lms"]),
    ("attribute", ["--run={root}/run", "--method=shapley"], 2, ["method", "shapley"]),
    ("attribute", ["--run={root}/none", "--values=owen"], 2, ["values", "owen"]),
    ("sample", ["--run={root}/run", "--steps=50"], 1, ["steps=50", "at most 20"]),
    ("sample", ["--run={root}/run", "--eta=2"], 1, ["eta=2.0"]),
    ("sample", ["--run={root}/run", "--step=9"], 1, ["no checkpoint 9"]),
    ("attribute", ["--run={root}/run", "--images={root}/none"], 1, ["none does not exist"]),
    ("attribute", ["--run={root}/run", "--images={root}/bombs"], 1, ["9000x9000 pixels"]),
    ("attribute", ["--run={root}/run", "--data=npz"], 1, ["npz needs path="]),
    ("attribute", ["--run={root}/run", "--data=npz,good.npz"], 1, ["expected a reader and options"]),
    ("attribute", ["--run={root}/run", "--data=digits"], 1, ["1797 units", "the ensemble 6"]),
    ("attribute", ["--run={root}/run", "--contrast"], 1, ["does not name its training data", "--data="]),
    ("attribute", ["--run={root}/run", "--method=exact", "--verify=10"], 1, ["--verify=10 is for --method=screen"]),
    ("attribute", ["--run={root}/run", "--method=differential", "--draws=8"], 1, ["--draws=8 is for --method=loss"]),
    ("attribute", ["--run={root}/run", "--values=shapley", "--removed=0.9"], 1, ["--removed=0.9", "=banzhaf"]),
    ("attribute", ["--run={root}/run", "--compare", "--images=x"], 1, ["--images=x is for rankings and --values"]),
    ("attribute", ["--run={root}/run", "--images=x", "--sampler=ddpm"], 1, ["--sampler=ddpm is for samples"]),
    ("attribute", ["--run={root}/run", "--contrast", "--compare"], 1, ["exclude each other"]),
    ("score", ["--units=100", "--members=4"], 1, ["smallest number of members"]),
    ("score", ["--units=0"], 1, ["units=0"]),
    ("score", ["--units=1000", "--chunk=0"], 1, ["chunk=0"]),
    ("design", ["--members=two"], 1, ["two"]),
    ("design", ["--units=1000000", "--members=4"], 1, ["no such code has enough words"]),
    ("convert", [], 2, ["no command given", "genens, diffusers, ctf"]),
    ("convert", ["ctf"], 1, ["--to="]),
    ("convert", ["ctf", "--from={root}/no.ctf", "--to={root}/x.npz"], 1, ["is not a plain tar file"]),
    ("convert", ["ctf", "--from={root}/no.ctf", "--to={root}/x.zip"], 1, ["ends in .npz"]),
    ("convert", ["genens", "--from={root}/empty", "--to={root}/x"], 1, ["holds splits []"]),
    ("certify", ["create", "--run={root}/trained"], 1, ["--units="]),
    ("certify", ["create", "--run={root}/trained", "--units=6"], 1, ["unit 6 does not exist"]),
    ("certify", ["create", "--run={root}/run", "--units=3"], 1, ["only runs that ensdiff.train"]),
    ("certify", ["verify", "--run={root}/run"], 1, ["certificate.json does not exist"]),
    ("certify", ["verify", "--run={root}/trained", "--certificate={root}/list.json"], 1, ["is not a deletion cert"]),
    ("certify", ["verify", "--run={root}/trained", "--digest=12"], 1, ["not 12: it is another certificate"]),
    ("certify", ["verify", "--run={root}/trained", "--replay=2"], 1, ["does not name its training data", "--data"]),
    ("certify", ["check"], 2, ["unknown command 'check'", "create, verify"]),
    ("forget", ["--run={root}/trained"], 1, ["--units=", "--out="]),
    ("forget", ["--run={root}/trained", "--units=0,1,2,3,4,5", "--out={root}/x"], 1, ["no member survives"]),
    ("forget", ["--run={root}/trained", "--units=3", "--out={root}/run"], 1, ["exists already"]),
    ("report", [], 1, ["no run given"]),
    ("report", ["{root}/none"], 1, ["none does not exist"]),
    ("report", ["{root}/run", "--run={root}/trained"], 1, ["two runs given"]),
    ("report", ["{root}/run", "again"], 2, ["unexpected argument 'again'"]),
    ("report", ["{root}/run", "--combined=9"], 2, ["combined", "[0, 8]"]),
    ("report", ["{root}/run", "--data=digits"], 1, ["1797 units", "the ensemble 6"]),
    ("report", ["{root}/run"], 1, ["does not name its training data", "--data="]),
]  # fmt: skip
AFTER_LOADING = [  # these first load a run, which takes seconds
    ("train", [DIGITS, "--config.run_dir={root}/good.png", "--config.train.steps=1"], 1, ["good.png"]),
    ("attribute", ["--run={root}/run", "--n=1", "--steps=1", "--top=0"], 1, ["top=0", "1 .. 6"]),
    ("attribute", ["--run={root}/run", "--n=1", "--steps=1", "--top=9"], 1, ["top=9", "1 .. 6"]),
    ("attribute", ["--run={root}/run", "--n=1", "--steps=1", "--verify=1", "--top=3"], 1, ["verify=1 is less than"]),
    ("sample", ["--run={root}/run", "--n=1", "--steps=1", "--remove=ada"], 1, ["'ada'", "3 or 5,8"]),
    ("sample", ["--run={root}/run", "--n=1", "--steps=1", "--remove=6"], 1, ["unit 6 does not exist"]),
    ("sample", ["--run={root}/run", "--n=1", "--steps=1", "--remove=0,1,2,3,4,5"], 1, ["no member survives"]),
    ("attribute", ["--run={root}/run", "--n=1", "--steps=1", "--null=some"], 1, ["--null=some", "all or auto"]),
    ("attribute", ["--run={root}/run", "--n=1", "--steps=1", "--draws=0", "--method=loss"], 1, ["draws=0"]),
    ("attribute", ["--run={root}/run", "--n=1", "--steps=1", "--level=2", "--null=0"], 1, ["level=2.0"]),
    ("attribute", ["--run={root}/run", "--n=1", "--steps=1", "--units=9", "--null=0"], 1, ["unit 9"]),
    ("sample", ["--run={root}/run", "--n=1", "--sampler=genens", "--steps=9"], 1, ["--steps=9", "fixes it at 1000"]),
    ("sample", ["--run={root}/run", "--n=1", "--steps=2", "--eta=0.5"], 1, ["eta=0.5", "'ddim'"]),
    ("attribute", ["--run={root}/run", "--images={root}/many", "--method=exact"], 1, ["--method=exact", "by loss"]),
]  # fmt: skip


@pytest.mark.parametrize(
    ("program", "args", "code", "words"),
    [*PROGRAMS, *(pytest.param(*case, marks=pytest.mark.slow) for case in AFTER_LOADING)],
    ids=lambda value: str(value)[:60],
)
def test_programs_refuse_in_one_line(here, run, program, args, code, words, record_property):
    done = run(program, *(arg.format(root=here.root) for arg in args))
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert (done.returncode, len(errors)) == (code, 1), done
    assert [word for word in words if word not in errors[0]] == [], errors[0]
    assert "Traceback" not in done.stdout + done.stderr
    assert "\\n" not in errors[0]
    record_property("count", ("bad inputs refused", 1))


def test_debug_shows_the_traceback(here, run):
    for program, args in (
        ("sample", [f"--run={here.root}/none"]),
        ("train", [f"--config={here.root}/config_error.py"]),
    ):
        done = run(program, *args, "--debug")
        assert done.returncode != 0
        assert "Traceback (most recent call last)" in done.stderr
        assert "error: " in done.stderr


def test_a_real_command_ends_the_same_way(typed, here):
    """The other tests of commands run in forks; this one checks that a real command ends the same way."""
    done = typed("sample", f"--run={here.root}/none")
    assert done.returncode == 1
    assert (
        done.stderr
        == f"error: {here.root}/none does not exist; train with python -m experiments.train --config=... first\n"
    )


def test_there_are_enough_cases():
    assert len(LIBRARY) + len(PROGRAMS) >= 80
    assert len({case[0] for case in LIBRARY}) == len(LIBRARY)


def test_a_loop_of_links_beside_pictures_is_left_out(here, tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes((here.root / "good.png").read_bytes())
    (tmp_path / "again").symlink_to(tmp_path)
    with pytest.warns(data.DataWarning, match="left out 1 file or link: 1 link "):
        read = data.folder(tmp_path)
    assert json.dumps(read.unit_names[:]) == '["a.png", "b.png"]'
