"""Arrays of images are read a row at a time, with the axes that follow from their shape, and must be bytes."""

from __future__ import annotations

import io
import os
import tracemalloc
import zipfile

import h5py
import numpy as np
import pydantic
import pytest

from layertap_plugins.sources.array import ArraySource
from tests.plugins.storing import refusal

IMAGES = np.random.default_rng(0).integers(0, 256, (6, 5, 7, 3), np.uint8)


def records(path, **params):
    return list(ArraySource.of(path=str(path), **params).records())


def read(path, **params):
    return np.stack([np.asarray(record.data()) for record in records(path, **params)])


def saved(path, array):
    np.save(path, array)
    return path


def fault(path, **params):
    return refusal(lambda: records(path, **params))


def test_the_axes_follow_from_the_shape(tmp_path):
    first = np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2))
    assert np.array_equal(read(saved(tmp_path / "a.npy", IMAGES)), IMAGES)
    assert np.array_equal(read(saved(tmp_path / "a.npy", first)), IMAGES)
    grey = np.ascontiguousarray(IMAGES[..., 0])
    for array in (grey, grey[..., None], grey[:, None]):
        assert np.array_equal(read(saved(tmp_path / "a.npy", array)), grey)
    assert [record.data().mode for record in records(tmp_path / "a.npy")] == ["L"] * 6
    assert [record.id for record in records(tmp_path / "a.npy")][-1] == "00000005"


def test_an_ambiguous_shape_needs_axes(tmp_path):
    path = saved(tmp_path / "a.npy", np.ascontiguousarray(IMAGES[:, :3]))
    assert "does not show its axes; set `axes` to NHWC" in fault(path)
    assert np.array_equal(read(path, axes="NHWC"), IMAGES[:, :3])
    assert np.array_equal(read(path, axes="NCHW"), IMAGES[:, :3].transpose(0, 2, 3, 1))
    assert "does not fit `axes: NHW`" in fault(path, axes="NHW")
    one = saved(tmp_path / "one.npy", IMAGES[0])
    assert "does not show its axes" in fault(one)
    assert read(one, axes="NHW").shape == (5, 7, 3)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_an_npz_gives_the_array_that_can_hold_images(tmp_path, save):
    path = tmp_path / "a.npz"
    save(path, y=np.arange(6), x=IMAGES, odd=np.array([{}], dtype=object))
    assert np.array_equal(read(path), IMAGES)
    assert [record.meta for record in records(path, labels="y")] == [{"label": number} for number in range(6)]
    save(path, train=IMAGES[:4], test=IMAGES[4:])
    assert "name the array of the images" in fault(path)
    assert "train uint8 (4, 5, 7, 3), test uint8" in fault(path)
    assert np.array_equal(read(path, key="test"), IMAGES[4:])
    assert "has no array 'tset'; did you mean 'test'?" in fault(path, key="tset")


def test_hdf5_data_sets_are_found_by_their_path(tmp_path):
    path = tmp_path / "a.h5"
    with h5py.File(path, "w") as file:
        file.create_dataset("deep/images", data=IMAGES, chunks=(4, 5, 7, 3), compression="gzip")
        file["deep/names"] = ["ä", *"bcdef"]
        file["numbers"] = np.arange(6)[:, None]
    assert np.array_equal(read(path), IMAGES)
    assert np.array_equal(read(path, key="deep/images"), IMAGES)
    assert [r.meta["label"] for r in records(path, labels="deep/names")] == ["ä", *"bcdef"]
    assert [r.meta["label"] for r in records(path, labels="numbers")] == [*range(6)]
    os.rename(path, tmp_path / "whatever")
    assert np.array_equal(read(tmp_path / "whatever"), IMAGES)


def test_hdf5_does_not_follow_links_to_other_files(tmp_path):
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["images"] = IMAGES
    (tmp_path / "raw").write_bytes(IMAGES.tobytes())
    layout = h5py.VirtualLayout(IMAGES.shape, "u1")
    layout[:] = h5py.VirtualSource(tmp_path / "other.h5", "images", IMAGES.shape)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["link"] = h5py.ExternalLink(str(tmp_path / "other.h5"), "images")
        file.create_virtual_dataset("virtual", layout)
        file.create_dataset("external", IMAGES.shape, "u1", external=str(tmp_path / "raw"))
    assert "it has none" in fault(tmp_path / "a.h5")
    for key in ("link", "virtual", "external"):
        assert f"has no array {key!r}" in fault(tmp_path / "a.h5", key=key)


def test_labels_of_an_npy_are_in_another(tmp_path):
    path = saved(tmp_path / "a.npy", IMAGES)
    labels = saved(tmp_path / "y.npy", np.array(["x", "y", "z", "x", "y", "z"]))
    assert [record.meta["label"] for record in records(path, labels=str(labels))] == ["x", "y", "z"] * 2
    saved(labels, np.array([0.5, np.nan, 1, 2, 3, 4]))
    assert [record.meta["label"] for record in records(path, labels=str(labels))][:3] == [0.5, None, 1.0]
    saved(labels, np.arange(5))
    assert "has the shape (5,), but there are 6 images" in fault(path, labels=str(labels))
    assert "is neither an array in" in fault(path, labels="nowhere.npy")


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint16", "bool"])
def test_other_dtypes_are_refused_with_advice(tmp_path, dtype):
    said = fault(saved(tmp_path / "a.npy", IMAGES.astype(dtype)))
    assert f"holds {dtype} of shape (6, 5, 7, 3), not uint8" in said
    assert ".astype('uint8')" in said


def test_only_one_image_is_in_memory_at_a_time(tmp_path):
    path = saved(tmp_path / "a.npy", np.zeros((200, 128, 128, 3), np.uint8))
    np.savez(tmp_path / "a.npz", x=np.load(path))
    for stored in (path, tmp_path / "a.npz"):
        found = records(stored)
        tracemalloc.start()
        for record in found:
            record.data()
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < 10 * 128 * 128 * 3


def whole():
    file = io.BytesIO()
    np.save(file, IMAGES)
    return file.getvalue()


def pickled():
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    return file.getvalue()


def absurd():
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        file, {"descr": "|u1", "fortran_order": False, "shape": (2**40, 1000, 1000, 3)}
    )
    return file.getvalue() + bytes(1000)


def zipped(data, **facts):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", **facts) as archive:
        archive.writestr("x.npy", data)
    return file.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("a.npy", b"", "neither npy nor npz nor HDF5"),
        ("a.npy", b"hello", "neither npy nor npz nor HDF5"),
        ("a.npy", whole()[:-1], "cut short"),
        ("a.npy", whole()[:40], "cannot use"),
        ("a.npy", pickled(), "pickled objects"),
        ("a.npy", absurd(), "cut short"),
        ("a.npy", whole().replace(b"'descr'", b"__im__("), "cannot use"),
        ("a.npz", zipped(whole())[:200], "cannot use"),
        ("a.npz", zipped(absurd()), "cut short"),
        ("a.npz", zipped(absurd(), compression=zipfile.ZIP_DEFLATED), "cut short"),
        ("a.npz", zipped(b"hello"), "cannot use"),
        ("a.npz", zipped(pickled()), "it has none"),
        ("a.h5", b"hello", "cannot use"),
        ("a.h5", b"\x89HDF\r\n\x1a\n" + bytes(100), "cannot use"),
    ],
)
def test_damaged_and_hostile_files_are_reported_in_one_line(tmp_path, name, data, said):
    (tmp_path / name).write_bytes(data)
    assert said in fault(tmp_path / name)


def test_files_that_cannot_be_read_by_rows_are_reported(tmp_path):
    assert "np.ascontiguousarray" in fault(saved(tmp_path / "a.npy", np.asfortranarray(IMAGES)))
    assert "has no images" in fault(saved(tmp_path / "a.npy", IMAGES[:0]))
    assert "has no array 'x'" in fault(saved(tmp_path / "a.npy", IMAGES), key="x")
    assert "No such file" in fault(tmp_path / "missing.npy")
    assert "is a URL" in fault("https://example.org/a.npy")
    for params in ({}, {"path": "a", "axes": "HWC"}, {"path": "a", "keys": ["x"]}):
        with pytest.raises(pydantic.ValidationError):
            ArraySource.of(**params)
