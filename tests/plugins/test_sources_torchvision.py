"""torchvision's data sets by name: plain arguments only, nothing fetched unasked, nothing unpickled unvetted."""

from __future__ import annotations

import struct
import threading

import numpy as np
import pydantic
import pytest
import torch
from PIL import Image

import layertap
from layertap_plugins.sources.torchvision_dataset import TorchvisionDatasetSource
from tests.plugins.storing import refusal


def records(name, **args):
    return list(TorchvisionDatasetSource.of(name=name, args=args).records())


def fault(name, **args):
    return refusal(lambda: records(name, **args))


@pytest.fixture
def folder(tmp_path):
    for number, name in enumerate(["dog/b.png", "cat/a.png", "cat/deep/z.png"]):
        path = tmp_path / "root" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
    return tmp_path / "root"


def test_an_image_folder_gives_its_files_by_their_paths(folder):
    found = records("ImageFolder", root=str(folder))
    assert [(record.id, record.meta) for record in found] == [
        ("cat/a.png", {"label": "cat"}),
        ("cat/deep/z.png", {"label": "cat"}),
        ("dog/b.png", {"label": "dog"}),
    ]
    assert [record.data for record in found] == [folder / record.id for record in found]


def test_images_that_a_data_set_draws_are_the_same_on_every_thread():
    found = records("FakeData", size=40, image_size=[3, 6, 5])
    assert [record.id for record in found][:2] == ["00000000", "00000001"]
    assert found[0].meta == {"label": None}
    expected = [np.asarray(record.data()) for record in found]
    assert expected[0].shape == (6, 5, 3)
    same = []

    def read(first):
        for number in range(first, 40, 4):
            torch.rand(1)
            same.append(np.array_equal(np.asarray(found[number].data()), expected[number]))

    threads = [threading.Thread(target=read, args=(first,)) for first in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert same == [True] * 40


def mnist(root, images, labels):
    raw = root / "MNIST/raw"
    raw.mkdir(parents=True)
    for name in ("train", "t10k"):
        (raw / f"{name}-images-idx3-ubyte").write_bytes(struct.pack(">4i", 0x803, *images.shape) + images.tobytes())
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">2i", 0x801, len(labels)) + labels.tobytes())


def test_labels_come_by_the_names_of_their_classes(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (3, 28, 28), np.uint8)
    mnist(tmp_path, images, np.array([7, 0, 1], np.uint8))
    found = records("MNIST", root=str(tmp_path), train=False)
    assert [record.meta["label"] for record in found] == ["7 - seven", "0 - zero", "1 - one"]
    assert all(np.array_equal(np.asarray(record.data()), image) for record, image in zip(found, images, strict=True))


def test_nothing_is_downloaded_unless_the_arguments_say_so(tmp_path):
    for name in ("CIFAR10", "MNIST", "SEMEION"):
        assert "ownload=True" in fault(name, root=str(tmp_path / name))
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "CIFAR10"])


@pytest.mark.parametrize("key", ["transform", "target_transform", "transforms", "loader", "is_valid_file"])
def test_functions_are_refused(folder, key):
    assert f"{key} is a function; images are prepared by `preprocess`" in fault("ImageFolder", root=".", **{key: "x"})


@pytest.mark.parametrize(
    ("name", "args", "said"),
    [
        ("CIFAR11", {}, "no data set 'CIFAR11'; did you mean 'CIFAR10'"),
        ("VisionDataset", {}, "no data set"),
        ("wrap_dataset_for_transforms_v2", {}, "no data set"),
        ("os", {}, "no data set"),
        ("folder.ImageFolder", {}, "no data set"),
        ("__class__", {}, "no data set"),
        ("ImageFolder", {"rot": "a"}, "ImageFolder has no 'rot'; did you mean 'root'?"),
        ("ImageFolder", {}, "missing 1 required positional argument: 'root'"),
        ("ImageFolder", {"root": "/nowhere/at/all"}, "No such file"),
        ("FakeData", {"size": 0}, "has no images"),
        ("FakeData", {"size": "many"}, "does not suit FakeData"),
    ],
)
def test_unsuitable_arguments_are_reported_in_one_line(name, args, said):
    assert said in fault(name, **args)


def test_a_data_set_that_unpickles_a_file_of_the_working_directory_is_refused():
    with pytest.raises(layertap.UnsafeError, match="LSUN would load a pickle"):
        records("LSUN", root=".")


def test_a_data_set_of_anything_but_images_is_refused(tmp_path):
    values = np.zeros((20, 3, 64, 64), np.uint8)
    (tmp_path / "MovingMNIST").mkdir()
    np.save(tmp_path / "MovingMNIST/mnist_test_seq.npy", values)
    assert "MovingMNIST gives a Tensor per item, not one image" in fault("MovingMNIST", root=str(tmp_path))


def test_wrong_parameters_are_refused():
    for params in ({}, {"name": ""}, {"name": "MNIST", "root": "."}):
        with pytest.raises(pydantic.ValidationError):
            TorchvisionDatasetSource.of(**params)
