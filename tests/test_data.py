"""Each data set from files in its exact format, written here, so that no test needs a download."""

import contextlib
import http.client
import json
import os
import pickle
import random
import struct
import sys
import zipfile
import zlib
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch.utils.data import DataLoader

from ppl_vae import data
from ppl_vae.data.sources import IDX
from ppl_vae.errors import ConfigError, DataError, LabelError, ShapeError

PARTS = ("train", "valid", "test")


def splits(d):
    return [getattr(d, part) for part in PARTS]


def crc(x):
    return zlib.crc32(x.numpy().tobytes())


def numbered(n, *shape):
    """Images of bytes whose first two pixels spell their row number."""
    x = np.zeros((n, *shape), np.uint8)
    flat = x.reshape(n, -1)
    flat[:, 0], flat[:, 1] = np.arange(n) // 256, np.arange(n) % 256
    return x


def numbers(split):
    flat = split.x.flatten(1)
    return (256 * flat[:, 0] + flat[:, 1]).long()


def write_mnist(folder):
    """The four idx files; image i spells i, and label i is i % 10."""
    folder.mkdir(parents=True)
    for part, n in (("train", 60_000), ("t10k", 10_000)):
        head = struct.pack(">4I", 0x803, n, 28, 28)
        (folder / f"{part}-images-idx3-ubyte").write_bytes(head + numbered(n, 28, 28).tobytes())
        head = struct.pack(">2I", 0x801, n)
        (folder / f"{part}-labels-idx1-ubyte").write_bytes(head + bytes(i % 10 for i in range(n)))


@pytest.fixture(scope="module")
def mnist_root(tmp_path_factory):
    root = tmp_path_factory.mktemp("root")
    write_mnist(root / "MNIST" / "raw")
    for kind in ("FashionMNIST", "KMNIST"):
        (root / kind).mkdir()
        (root / kind / "raw").symlink_to(root / "MNIST" / "raw")
    yield root
    for file in (root / "MNIST" / "raw").iterdir():
        file.unlink()  # 55 MB that no later test needs


# Named data sets.


def test_digits_are_scikit_learns_in_the_fixed_permutation():
    d, bunch = data.load("digits"), load_digits()
    order = np.random.RandomState(0).permutation(1797)
    assert [len(s) for s in splits(d)] == [1297, 250, 250]
    assert torch.equal(torch.cat([s.x for s in splits(d)])[:, 0].double(), torch.tensor(bunch.images[order]))
    assert torch.equal(torch.cat([s.y for s in splits(d)]), torch.tensor(bunch.target[order]))
    assert (d.x_shape, d.classes, d.range, d.levels, d.binarization) == (
        (1, 8, 8),
        10,
        (0.0, 16.0),
        17,
        "none",
    )
    assert d.train.x.dtype == torch.float32
    assert d.train.y.dtype == torch.int64
    assert order[:5].tolist() == [1081, 1707, 927, 713, 262]


@pytest.mark.parametrize("name", ["mnist", "fashion-mnist", "kmnist"])
def test_mnist_family_is_read_and_cut_in_file_order(mnist_root, name):
    d = data.load(name, root=mnist_root)
    assert torch.equal(numbers(d.train), torch.arange(50_000))
    assert torch.equal(numbers(d.valid), torch.arange(50_000, 60_000))
    assert torch.equal(numbers(d.test), torch.arange(10_000))
    assert torch.equal(d.valid.y, torch.arange(10_000) % 10)
    assert (d.x_shape, d.classes, d.range, d.levels) == ((1, 28, 28), 10, (0.0, 255.0), 256)


def test_an_old_pickle_beside_mnist_is_not_opened(mnist_root):
    processed = mnist_root / "MNIST" / "processed"
    processed.mkdir()
    for file in ("training.pt", "test.pt"):
        (processed / file).write_bytes(pickle.dumps(mnist_root))
    assert len(data.load("mnist", root=str(mnist_root)).test) == 10_000


@pytest.mark.parametrize(
    "damage",
    [lambda raw: raw[:-1], lambda raw: b"\x1f\x8b" + raw[2:], lambda raw: b"", lambda raw: raw + b"\0"],
)
def test_a_damaged_idx_file_is_named(mnist_root, tmp_path, damage):
    folder = tmp_path / "MNIST" / "raw"
    folder.mkdir(parents=True)
    for file in (mnist_root / "MNIST" / "raw").iterdir():
        (folder / file.name).symlink_to(file)
    labels = folder / "t10k-labels-idx1-ubyte"
    raw = damage(labels.read_bytes())
    labels.unlink()
    labels.write_bytes(raw)
    with pytest.raises(DataError, match=r"expected .*t10k-labels-idx1-ubyte to be an uncompressed idx file"):
        data.load("mnist", root=tmp_path)


def test_an_unreadable_idx_file_is_named(mnist_root, monkeypatch):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(DataError, match=r"expected to read .*train-images.*Permission denied"):
        data.load("mnist", root=mnist_root)


@pytest.mark.parametrize(
    "failure",
    [
        RuntimeError("Error downloading:\nno network"),
        URLError("no network"),
        ConnectionResetError("no network"),
        http.client.IncompleteRead(b"no network"),
    ],
)
def test_no_file_and_no_network_leave_nothing_behind(tmp_path, monkeypatch, failure):
    from torchvision import datasets

    def download(self):
        Path(self.raw_folder).mkdir(parents=True)
        Path(self.raw_folder, "train-images-idx3-ubyte.gz").write_bytes(b"half")
        raise failure

    monkeypatch.setattr(datasets.KMNIST, "download", download)
    with pytest.raises(DataError, match=r"t10k-labels-idx1-ubyte in .*new/KMNIST/raw, got no such files") as info:
        data.load("kmnist", root=tmp_path / "new")
    assert "\n" not in str(info.value)
    assert "load 'digits'" in str(info.value)
    assert not list(tmp_path.iterdir())


def test_a_download_arrives_whole_and_quietly(tmp_path, monkeypatch, capsys):
    from torchvision import datasets

    def download(self):
        print("47%", file=sys.stderr)
        write_mnist(Path(self.raw_folder))
        Path(self.raw_folder, "train-images-idx3-ubyte.gz").touch()

    monkeypatch.setattr(datasets.KMNIST, "download", download)
    assert len(data.load("kmnist", root=tmp_path / "new").train) == 50_000
    files = sorted(p.name for p in tmp_path.rglob("*") if p.is_file())
    assert files == sorted(IDX)
    assert os.listdir(tmp_path / "new") == ["KMNIST"]
    assert capsys.readouterr() == ("", "")


def test_binarized_mnist_unpacks_to_the_bits_that_were_packed(tmp_path):
    rng = np.random.default_rng(0)
    bits = {part: rng.integers(0, 2, (n, 784), np.uint8) for part, n in zip(PARTS, (7, 3, 2), strict=True)}
    packed = {part: np.packbits(b, axis=1) for part, b in bits.items()}
    np.savez(tmp_path / "binarized_mnist_packed.npz", **packed)
    d = data.load("binarized-mnist", root=tmp_path)
    for part, split in zip(PARTS, splits(d), strict=True):
        assert np.array_equal(split.x.reshape(-1, 784).numpy(), bits[part])
        assert split.y is None
    assert (d.x_shape, d.classes, d.range, d.levels) == ((1, 28, 28), None, (0.0, 1.0), 2)
    unit = data.load("binarized-mnist", root=tmp_path, scale="unit")
    assert unit.levels == 2
    assert torch.equal(unit.train.x, d.train.x)
    with pytest.raises(ConfigError, match="the pixels of binarized-mnist are 0 and 1 already"):
        data.load("binarized-mnist", root=tmp_path, binarize="dynamic")


def test_omniglot_cuts_its_validation_part_from_the_training_drawings(tmp_path):
    np.savez_compressed(
        tmp_path / "omniglot_28.npz", train=numbered(24_345, 28, 28), test=numbered(8_115, 28, 28), extra="x"
    )
    d = data.load("omniglot", root=tmp_path)
    order = torch.from_numpy(np.random.RandomState(0).permutation(24_345))
    assert torch.equal(numbers(d.train), order[:23_000])
    assert torch.equal(numbers(d.valid), order[23_000:])
    assert torch.equal(numbers(d.test), torch.arange(8_115))
    assert (d.x_shape, d.classes, d.levels) == ((1, 28, 28), None, 256)


def test_frey_faces_are_cut_disjointly(tmp_path):
    np.savez(tmp_path / "frey_faces.npz", x=numbered(1965, 28, 20))
    d = data.load("frey-faces", root=tmp_path)
    assert [len(s) for s in splits(d)] == [1565, 200, 200]
    assert torch.equal(torch.cat([numbers(s) for s in splits(d)]).sort().values, torch.arange(1965))
    assert (d.x_shape, d.range) == ((1, 28, 20), (0.0, 255.0))


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"y": np.zeros(3)}, r"expected x in .*frey_faces.npz .* got \('nothing',\)"),
        ({"x": np.zeros((300, 28, 20))}, r"got \('float64', 300, 28, 20\)"),
        ({"x": np.zeros((300, 28, 28), np.uint8)}, r"expected x .*'uint8', N, \*\(28, 20\)\), got"),
        (
            {"x": np.zeros((400, 28, 20), np.uint8)},
            "expected more rows than the 400 for valid and test, got 400",
        ),
    ],
)
def test_a_named_file_of_the_wrong_kind_is_refused(tmp_path, arrays, message):
    np.savez(tmp_path / "frey_faces.npz", **arrays)
    with pytest.raises(DataError, match=message):
        data.load("frey-faces", root=tmp_path)


# Files of the user's own.


def test_a_users_file_keeps_the_splits_it_has_and_cuts_the_others(tmp_path):
    path, x, y = tmp_path / "mine.npz", np.arange(120.0).reshape(20, 3, 2), np.arange(20) % 4
    np.savez(path, x=x, y=y, note=np.array([None]))  # other keys are not read, not even pickled ones
    d = data.load(path)
    assert (d.name, d.x_shape, d.classes, d.levels) == (str(path), (3, 2), 4, None)
    assert [len(s) for s in splits(d)] == [16, 2, 2]
    np.savez(path, x_train=x, y_train=y, x_test=x[:5], y_test=y[:5])
    d = data.load(str(path))
    assert [len(s) for s in splits(d)] == [18, 2, 5]
    assert np.array_equal(d.test.x.numpy(), x[:5])
    np.savez(path, x_train=x, x_valid=x[5:], x_test=x[:5])
    d = data.load(path)
    assert np.array_equal(d.train.x.numpy(), x)
    assert [len(s) for s in splits(d)] == [20, 15, 5]


def test_a_users_file_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(DataError, match=r"nowhere.npz, got FileNotFoundError"):
        data.load(tmp_path / "nowhere.npz")
    with pytest.raises(DataError, match="got IsADirectoryError"):
        data.load(tmp_path)
    path = tmp_path / "x.npz"
    np.savez(path, z=np.zeros(3))
    with pytest.raises(DataError, match="expected pixels under the key x or x_train"):
        data.load(path)
    np.savez(path, x=np.array([None]))
    with pytest.raises(DataError, match=r"got ValueError \(Object arrays cannot be loaded"):
        data.load(path)
    with path.open("wb") as file:
        np.save(file, np.zeros(3))
    with pytest.raises(DataError, match=r"expected an \.npz file of plain arrays"):
        data.load(path)


@pytest.mark.parametrize(
    ("keys", "alone", "beside"),
    [
        (["x_train", "y"], "y", "x_train"),
        (["x", "y_train"], "y_train", "x"),
        (["x", "x_train", "y"], "x, y", "x_train"),
        (["x_train", "y_train", "y_test"], "y_test", "x_train"),
    ],
)
def test_keys_that_go_with_nothing_are_not_dropped(tmp_path, keys, alone, beside):
    values = {"x": np.zeros((20, 2)), "y": np.zeros(20, int)}
    np.savez(path := tmp_path / "x.npz", **{key: values[key[0]] for key in keys})
    with pytest.raises(DataError, match=rf"expected keys that go together in .*, got {alone} beside {beside}: rename"):
        data.load(path)


def test_a_table_is_told_how_it_becomes_data(tmp_path, monkeypatch):
    """And not how it is unpickled; the way out works as it stands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.csv").write_text("a,b,c\n" + "1.5,2,3\n" * 20)
    for name in ("my.csv", tmp_path / "my.csv", "./my.csv"):
        with pytest.raises(DataError, match=r"expected an \.npz file .*my.csv, got") as caught:
            data.load(name)
        assert "pickle" not in str(caught.value)
    exec(str(caught.value).split("of a csv, ")[1], {"numpy": np})
    assert data.load("my.npz").x_shape == (3,)


def test_a_pickle_is_refused_and_not_run(tmp_path):
    class Payload:
        def __reduce__(self):
            return (os.mkdir, (str(tmp_path / "run"),))

    path = tmp_path / "x.npz"
    path.write_bytes(pickle.dumps(Payload()))
    with pytest.raises(DataError, match=r"write it with numpy\.savez"):
        data.load(path)
    with zipfile.ZipFile(path, "w") as file, file.open("x.npy", "w") as array:
        np.lib.format.write_array(array, np.array([Payload()], object), allow_pickle=True)
    with pytest.raises(DataError):
        data.load(path)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("size", [2**40, 10**30])
def test_an_absurd_size_is_refused(tmp_path, size):
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w") as file, file.open("x.npy", "w") as array:
        header = {"descr": "|u1", "fortran_order": False, "shape": (size, 2**20)}
        np.lib.format.write_array_header_1_0(array, header)
    with pytest.raises(DataError, match=r"MemoryError|OverflowError|ValueError"):
        data.load(path)


def test_altered_bytes_give_typed_errors_only(tmp_path):
    path, rng = tmp_path / "x.npz", random.Random(0)
    np.savez_compressed(path, x=np.random.default_rng(0).random((10, 3)), y=np.arange(10))
    raw = path.read_bytes()
    for cut in range(0, len(raw), 7):
        path.write_bytes(raw[:cut])
        with pytest.raises(DataError):
            data.load(path)
    for _ in range(200):
        altered = bytearray(raw)
        altered[rng.randrange(len(raw))] ^= 1 << rng.randrange(8)
        path.write_bytes(altered)
        with contextlib.suppress(DataError):
            data.load(path)


# Units and binarisation.


def test_unit_scale_divides_by_the_largest_level_not_the_largest_seen():
    x = np.array([[0, 51], [102, 204]], np.uint8)
    d = data.from_tensors(x, valid=x, test=x, scale="unit")
    assert torch.equal(d.train.x, torch.tensor([[0.0, 0.2], [0.4, 0.8]]))
    assert (d.range, d.levels) == ((0.0, 1.0), None)
    assert data.load("digits", scale="unit").train.x.unique().tolist() == [k / 16 for k in range(17)]


def test_unit_scale_of_real_values_uses_the_training_range():
    train, test = torch.tensor([[-2.0, 0.0], [2.0, 1.0]]), torch.tensor([[4.0, -4.0]])
    d = data.from_tensors(train, valid=train, test=test)
    assert (d.range, d.levels) == ((-2.0, 2.0), None)
    d = data.from_tensors(train, valid=train, test=test, scale="unit")
    assert d.range == (0.0, 1.0)
    assert d.train.x.tolist() == [[0.0, 0.5], [1.0, 0.75]]
    assert d.test.x.tolist() == [[1.5, -0.5]]
    assert data.from_tensors(torch.full((10, 2), 3.0), scale="unit").train.x.unique().tolist() == [0.0]


@pytest.mark.parametrize("scale", ["levels", "unit"])
def test_threshold_is_half_of_the_range(scale):
    grey, d = data.load("digits"), data.load("digits", binarize="threshold", scale=scale)
    for split, binary in zip(splits(grey), splits(d), strict=True):
        assert torch.equal(binary.x, (split.x >= 8).float())
        assert torch.equal(binary.y, split.y)
        assert binary.binarize == "threshold"
    assert (d.range, d.levels, d.binarization) == ((0.0, 1.0), 2, "threshold")


@pytest.mark.parametrize("scale", ["levels", "unit"])
def test_static_draws_are_pinned_and_unbiased(scale):
    grey, d = data.load("digits"), data.load("digits", binarize="static", scale=scale)
    for k, (split, binary) in enumerate(zip(splits(grey), splits(d), strict=True)):
        p = split.x.double() / 16
        uniform = torch.from_numpy(np.random.RandomState([777, k]).random_sample(tuple(p.shape)))
        assert torch.equal(binary.x, (uniform < p).float())
        # The ones minus Σp are close to normal with variance Σp(1 - p): 4.89σ errs once in 10⁶.
        assert abs(binary.x.sum() - p.sum()) < 4.89 * (p * (1 - p)).sum().sqrt()
    assert [int(s.x.sum()) for s in splits(d)] == [25349, 4929, 4864]
    assert [crc(s.x) for s in splits(d)] == [4150839636, 3531617815, 538018698]
    assert (d.range, d.levels, d.binarization) == ((0.0, 1.0), 2, "static")
    other = data.load("digits", binarize="static", scale=scale, seed=778)
    assert not torch.equal(other.train.x, d.train.x)
    assert torch.equal(other.train.y, d.train.y)  # the seed does not move the split


def test_dynamic_keeps_probabilities_to_train_on_and_draws_the_rest_once():
    static, d = data.load("digits", binarize="static"), data.load("digits", binarize="dynamic")
    assert torch.equal(d.train.x, data.load("digits", scale="unit").train.x)
    assert [s.binarize for s in splits(d)] == ["dynamic", "static", "static"]
    assert torch.equal(d.valid.x, static.valid.x)
    assert torch.equal(d.test.x, static.test.x)
    assert (d.range, d.levels, d.binarization) == ((0.0, 1.0), 2, "dynamic")
    assert d.head(3).train.binarize == "dynamic"


def test_a_draw_in_pieces_is_the_draw_of_the_whole():
    x = torch.full((9000, 2), 0.5)
    d = data.from_tensors(x, valid=x[:1], test=x[:1], binarize="static", seed=5)
    whole = torch.from_numpy(np.random.RandomState([5, 0]).random_sample((9000, 2))) < 0.5
    assert torch.equal(d.train.x, whole.float())


def test_real_values_are_binarised_only_as_probabilities():
    x = torch.tensor([[0.25, 0.5], [0.75, 0.0]])
    assert data.from_tensors(x, valid=x, test=x, binarize="threshold").train.x.tolist() == [[0, 1], [1, 0]]
    assert torch.equal(data.from_tensors(x, valid=x, test=x, binarize="dynamic").train.x, x)
    with pytest.raises(DataError, match=r"expected values in \[0, 1\] to binarise, got 0 to 1.5 in train: map"):
        data.from_tensors(2 * x, valid=x, test=x, binarize="static")
    with pytest.raises(DataError, match=r"got -0.25 to 0.5 in test"):
        data.from_tensors(x, valid=x, test=x[:1] * torch.tensor([-1, 1]), binarize="static")
    scaled = data.from_tensors(4 * x - 1, valid=4 * x, test=4 * x - 1, scale="unit", split=(1, 0, 0))
    assert scaled.valid.x.max() > 1
    mapped = data.from_tensors(4 * x - 1, scale="unit", binarize="threshold", split=(1, 0, 0))
    assert mapped.train.x.tolist() == [[0, 1], [1, 0]]


# Tensors of the user's own.


@pytest.mark.parametrize(
    ("x", "levels", "top"),
    [
        (np.array([[0, 7]], np.uint8), 256, 255.0),
        (np.array([[0, 2]], np.uint8), 256, 255.0),
        (np.array([[0, 1]], np.uint8), 2, 1.0),
        (np.array([[False, True]]), 2, 1.0),
        (torch.tensor([[False, True]]), 2, 1.0),
        (np.array([[0, 7]], np.uint16), 8, 7.0),
        (torch.tensor([[0, 7]]), 8, 7.0),
        (torch.tensor([[0, 0]]), 2, 1.0),
        (torch.tensor([[-1, 7]]), None, 7.0),
        (np.array([[0.0, 7.0]], ">f8"), None, 7.0),
        (torch.tensor([[0.0, 7.0]], dtype=torch.bfloat16), None, 7.0),
        (torch.tensor([[0.0, 7.0]], dtype=torch.float64, requires_grad=True), None, 7.0),
    ],
)
def test_dtypes_declare_the_levels_and_become_float32(x, levels, top):
    d = data.from_tensors(x, valid=x, test=x)
    assert d.train.x.dtype == torch.float32
    assert not d.train.x.requires_grad
    assert d.train.x.tolist() == x.tolist()
    assert (d.levels, d.range[1]) == (levels, top)


def test_levels_are_those_of_all_splits():
    x = torch.arange(4)[:, None]
    assert data.from_tensors(x, valid=x, test=9 * x).levels == 28
    assert data.from_tensors(x, valid=x, test=9.0 * x).levels is None


def test_the_users_memory_is_not_shared():
    for x in (torch.zeros(5, 2), np.zeros((5, 2), np.float32)):
        d = data.from_tensors(x, valid=x, test=x)
        x[:] = 1
        assert d.train.x.sum() == d.valid.x.sum() == 0


def test_cuts_are_disjoint_cover_everything_and_keep_labels_with_rows():
    x, y = torch.arange(50)[:, None], torch.arange(50)
    d = data.from_tensors(x, y, split=(0.5, 0.3, 0.2), name="mine")
    assert [len(s) for s in splits(d)] == [25, 15, 10]
    assert torch.equal(torch.cat([s.y for s in splits(d)]).sort().values, y)
    assert all(torch.equal(s.x[:, 0].long(), s.y) for s in splits(d))
    assert (d.name, d.classes) == ("mine", 50)
    assert d.train.y[:4].tolist() == np.random.RandomState(0).permutation(50)[:4].tolist()


def test_classes_count_the_labels_of_every_split():
    x, y = torch.zeros(3, 2), torch.tensor([0.0, 1.0, 0.0])
    assert data.from_tensors(x, y, valid=(x, y), test=(x, y + 4)).classes == 6


def test_one_row_is_enough_and_leaves_nothing_to_hold_out():
    d = data.from_tensors(torch.ones(1, 2), torch.tensor([3]))
    assert [len(s) for s in splits(d)] == [1, 0, 0]
    assert (d.classes, d.test.x.shape) == (4, (0, 2))
    assert len(data.from_tensors(torch.ones(1, 2), binarize="static").head(1).valid) == 0


@pytest.mark.parametrize(
    ("x", "message"),
    [
        (torch.zeros(0, 3), r"expected x to have rows and pixels, got shape \(0, 3\)"),
        (torch.zeros(3, 0), r"got shape \(3, 0\)"),
        (np.array([["a"]]), "expected x to hold real numbers, got dtype <U1"),
        (torch.zeros(2, 2, dtype=torch.complex64), "got dtype complex64"),
        (np.array([[0.0, 1e300]]), r"the first inf at row 0, pixel \(1,\)"),
    ],
)
def test_data_that_are_no_data_are_refused(x, message):
    with pytest.raises(DataError, match=message):
        data.from_tensors(x)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_that_are_not_finite_are_located(bad):
    x = torch.zeros(5, 1, 3, 6)
    x[3, 0, 2, 5] = x[4, 0, 0, 0] = bad
    message = (
        rf"got 2 values that are not, the first {bad} at row 3, pixel \(0, 2, 5\): .* pass a mask, True where seen"
    )
    with pytest.raises(DataError, match="expected finite batch, " + message):
        data.check_finite(x, "batch")
    with pytest.raises(DataError, match="expected finite x of test, " + message):
        data.from_tensors(torch.zeros(5, 1, 3, 6), test=x)
    data.check_finite(torch.full((2, 2), 3e38))  # a sum that overflows is no fault
    data.check_finite(torch.arange(3))


@pytest.mark.parametrize(
    ("y", "error", "message"),
    [
        (torch.zeros(3), ShapeError, r"expected y of shape \(4,\), a label for each row of x, got \(3,\)"),
        (torch.eye(4), ShapeError, r"got \(4, 4\): turn one-hot rows into labels with y.argmax\(1\)"),
        (torch.rand(4), LabelError, r"real y: fit\(vae, \(x, y\)\)"),
        (torch.zeros(4, 1), ShapeError, r"real y.*: fit\(vae, \(x, y\)\)"),
        (torch.tensor([0, 1, -1, 0]), LabelError, "whole numbers from 0, got -1 in row 2"),
        (np.array([0, 1, 1, 0.5]), LabelError, "got 0.5 in row 3"),
        (np.array([[0, 1], [1, 1], [0, 0.5], [0, 0]]), LabelError, "got 0.5 in row 2"),
        (np.array([0, np.nan, 1, 0]), LabelError, "got nan in row 1"),
        (np.array([np.inf, 0, 1, 0]), LabelError, "got inf in row 0"),
        (np.array(["a", "b", "c", "d"]), LabelError, "expected y to hold real numbers, got dtype <U1"),
    ],
)
def test_labels_that_are_no_labels_are_refused(y, error, message):
    with pytest.raises(error, match=message):
        data.from_tensors(torch.zeros(4, 2), y)


def test_splits_that_do_not_fit_each_other_are_refused():
    x, y = torch.zeros(4, 2), torch.zeros(4)
    with pytest.raises(ShapeError, match=r"expected rows of \(2,\) as in train, got \(3,\) in test"):
        data.from_tensors(x, test=torch.zeros(4, 3))
    with pytest.raises(LabelError, match="expected labels in every split or none, got train and valid differ"):
        data.from_tensors(x, y, valid=x)
    with pytest.raises(LabelError, match="got train and test differ"):
        data.from_tensors(x, test=(x, y))
    with pytest.raises(ShapeError, match=r"expected x of shape \(N, \*x_shape\), got \(4,\): pass x\[:, None\]"):
        data.from_tensors(y)
    with pytest.raises(DataError, match="expected more rows than the 4 for valid and test, got 4"):
        data.from_tensors(x, split=(0, 0.5, 0.5))


# Options.


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: data.load("mnits"),
            r"name: expected one of .*digits.* or a path.*, got 'mnits'; did you mean 'mnist'",
        ),
        (lambda: data.load("Fashion_MNIST"), "did you mean 'fashion-mnist'"),
        (lambda: data.load("zebra"), r"or a path to an .npz file of your own, got 'zebra'$"),
        (lambda: data.load("digits", binarize="dynamc"), "did you mean 'dynamic'"),
        (lambda: data.load("digits", scale="units"), "did you mean 'unit'"),
        (lambda: data.from_tensors(torch.zeros(2, 2), binarize="thresh"), "did you mean 'threshold'"),
        (lambda: data.from_tensors(torch.zeros(2, 2), scale="level"), "did you mean 'levels'"),
        (lambda: data.from_tensors(torch.zeros(2, 2), split=(0.8, 0.1, 0.2)), r"sum to 1, got split=\(0.8"),
        (
            lambda: data.from_tensors(torch.zeros(2, 2, dtype=torch.bool), binarize="static"),
            "of tensors are 0 and 1",
        ),
        (
            lambda: data.load("digits", binarize="static", seed=-1),
            "expected a seed from 0 to 2³² - 1, got -1",
        ),
        (lambda: data.Split(torch.zeros(2, 2), binarize="statc"), "got 'statc'"),
        (lambda: data.load("digits").head(0), r"expected at least one row, got head\(0\)"),
    ],
)
def test_unknown_options_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        call()


# What every data set promises.


def test_the_same_call_gives_the_same_tensors_and_touches_nothing_global(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first, again = (data.load("digits", binarize="dynamic") for _ in range(2))
    for a, b in zip(splits(first), splits(again), strict=True):
        assert torch.equal(a.x, b.x)
        assert torch.equal(a.y, b.y)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])  # noqa: NPY002
    assert states[2] == random.getstate()
    assert not list(tmp_path.iterdir())


def test_a_split_is_a_torch_data_set():
    split = data.load("digits").train
    x, y = next(iter(DataLoader(split, batch_size=7)))
    assert torch.equal(x, split.x[:7])
    assert torch.equal(y, split.y[:7])
    bare = data.Split(torch.arange(6.0).reshape(3, 2))
    assert [row.tolist() for (row,) in bare] == [[0, 1], [2, 3], [4, 5]]
    (batch,) = next(iter(DataLoader(bare, batch_size=3)))
    assert torch.equal(batch, bare.x)
    assert pickle.loads(pickle.dumps(bare)).x.tolist() == bare.x.tolist()


def test_subset_and_head():
    split = data.Split(torch.arange(8.0).reshape(4, 2), torch.arange(4), "dynamic")
    for rows in ([2, 0], np.array([2, 0]), torch.tensor([2, 0])):
        part = split.subset(rows)
        assert part.y.tolist() == [2, 0]
        assert part.x.tolist() == [[4, 5], [0, 1]]
        assert part.binarize == "dynamic"
    assert split.subset(slice(1, 3)).y.tolist() == [1, 2]
    assert split.subset(split.y > 1).y.tolist() == [2, 3]
    assert split.head(2).y.tolist() == [0, 1]
    assert len(split.head(9)) == 4
    d = data.load("digits")
    small = d.head(5)
    assert [len(s) for s in splits(small)] == [5, 5, 5]
    assert torch.equal(small.test.x, d.test.x[:5])
    assert (small.classes, small.range) == (d.classes, d.range)


def test_describe_is_json_and_the_reprs_are_short():
    d = data.load("digits", binarize="dynamic")
    facts = {
        "name": "digits",
        "x_shape": [1, 8, 8],
        "classes": 10,
        "range": [0.0, 1.0],
        "levels": 2,
        "binarization": "dynamic",
        "sizes": {"train": 1297, "valid": 250, "test": 250},
    }
    assert json.loads(json.dumps(d.describe())) == d.describe() == facts
    assert repr(d).startswith("Data(name='digits', x_shape=[1, 8, 8], ")
    assert repr(d.train) == "Split(1297 rows of (1, 8, 8), labels, binarize='dynamic')"
    assert repr(data.Split(torch.zeros(2, 3))) == "Split(2 rows of (3,), no labels, binarize='none')"
    assert len({d, data.load("digits")}) == 2  # compared by identity: tensors have no truth value


def test_held_out_rows_and_labels_may_stand_in_a_list():
    x, y = np.arange(24.0).reshape(6, 2, 2), np.arange(6) % 3
    for kind in (np.asarray, torch.as_tensor, np.ndarray.tolist):
        held = [kind(x[:2]), kind(y[:2])]
        pair, listed = (data.from_tensors(x, y, valid=of(held), test=of(held)) for of in (tuple, list))
        for part in ("valid", "test"):
            a, b = getattr(pair, part), getattr(listed, part)
            assert torch.equal(a.x, b.x)
            assert torch.equal(a.y, b.y)
    # Two rows in a list are x, as rows in a list are elsewhere.
    for rows in (list(torch.as_tensor(x[:2])), x[:2].tolist(), [x[:2], None]):
        assert torch.equal(data.from_tensors(x, valid=rows, test=rows).valid.x, torch.as_tensor(x[:2]).float())
