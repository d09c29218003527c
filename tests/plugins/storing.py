"""One set of small pictures, stored in every way that a source reads."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import layertap

SIDE = (28, 24)


def refusal(listing: Callable[[], object]) -> str:
    """The one line of the error when a source refuses to be listed."""
    with pytest.raises(layertap.ConfigError) as caught:
        listing()
    said = str(caught.value)
    assert "\n" not in said
    assert len(caught.value.where) == 1
    return said


def pictures(photographs: list[Image.Image], root: Path, count: int = 24) -> list[Path]:
    """A number of PNG files of one size in two folders, in the order of their paths."""
    for number in range(count):
        image = photographs[number % len(photographs)]
        left, top = 17 * number, 5 * number
        folder = root / ("a" if number < count // 2 else "b")
        folder.mkdir(parents=True, exist_ok=True)
        image.crop((left, top, left + 4 * SIDE[0], top + 4 * SIDE[1])).resize(SIDE).save(folder / f"{number:02d}.png")
    return sorted(root.rglob("*.png"))


def pixels(paths: list[Path]) -> np.ndarray:
    return np.stack([np.asarray(Image.open(path)) for path in paths])


def add(archive: tarfile.TarFile, name: str, data: bytes, **facts: Any) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in facts.items():
        setattr(info, key, value)
    archive.addfile(info, io.BytesIO(data))


def as_folder(paths: list[Path], out: Path) -> dict[str, Any]:
    return {"type": "folder", "path": str(paths[0].parents[1])}


def as_csv(paths: list[Path], out: Path) -> dict[str, Any]:
    root = paths[0].parents[1]
    with (out / "list.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label"])
        writer.writerows([path.relative_to(root).as_posix(), path.parent.name] for path in paths)
    return {"type": "manifest", "path": str(out / "list.csv"), "root": str(root)}


def as_json_lines(paths: list[Path], out: Path) -> dict[str, Any]:
    lines = [json.dumps({"file": str(path), "number": number}) for number, path in enumerate(paths)]
    (out / "list.jsonl").write_text("\n".join(lines))
    return {"type": "manifest", "path": str(out / "list.jsonl"), "column": "file"}


def as_table(paths: list[Path], out: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"path": [str(path) for path in paths]}), out / "list.parquet")
    return {"type": "manifest", "path": str(out / "list.parquet")}


def as_tar(paths: list[Path], out: Path) -> dict[str, Any]:
    half = len(paths) // 2
    for shard, some in enumerate((paths[:half], paths[half:])):
        with tarfile.open(out / f"shard-{shard:03d}.tar", "w") as archive:
            for number, path in enumerate(some):
                add(archive, f"{number:04d}.png", path.read_bytes())
                add(archive, f"{number:04d}.cls", str(number % 3).encode())
    return {"type": "tar", "path": str(out / "shard-{000..001}.tar")}


def as_parquet(paths: list[Path], out: Path) -> dict[str, Any]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    images = [{"bytes": path.read_bytes(), "path": path.name} for path in paths]
    pq.write_table(pa.table({"image": images}), out / "images.parquet", row_group_size=7)
    return {"type": "parquet", "path": str(out / "images.parquet")}


def as_huggingface(paths: list[Path], out: Path) -> dict[str, Any]:
    import datasets

    features = datasets.Features({"label": datasets.ClassLabel(names=["a", "b"]), "image": datasets.Image()})
    rows = {"image": [str(path) for path in paths], "label": [path.parent.name for path in paths]}
    saved = datasets.Dataset.from_dict(rows, features=features)
    datasets.disable_progress_bars()
    saved.save_to_disk(out / "saved")
    return {"type": "huggingface", "path": str(out / "saved")}


def as_torchvision(paths: list[Path], out: Path) -> dict[str, Any]:
    args = {"root": str(paths[0].parents[1])}
    return {"type": "torchvision_dataset", "name": "ImageFolder", "args": args}


def as_npy(paths: list[Path], out: Path) -> dict[str, Any]:
    np.save(out / "images.npy", pixels(paths))
    return {"type": "array", "path": str(out / "images.npy")}


def as_channels_first(paths: list[Path], out: Path) -> dict[str, Any]:
    np.save(out / "first.npy", np.ascontiguousarray(pixels(paths).transpose(0, 3, 1, 2)))
    return {"type": "array", "path": str(out / "first.npy")}


def as_npz(paths: list[Path], out: Path) -> dict[str, Any]:
    np.savez(out / "images.npz", y=np.arange(len(paths)), x=pixels(paths))
    return {"type": "array", "path": str(out / "images.npz"), "labels": "y"}


def as_compressed_npz(paths: list[Path], out: Path) -> dict[str, Any]:
    np.savez_compressed(out / "packed.npz", x=pixels(paths), y=np.arange(len(paths)))
    return {"type": "array", "path": str(out / "packed.npz"), "key": "x", "labels": "y"}


def as_hdf5(paths: list[Path], out: Path) -> dict[str, Any]:
    import h5py

    with h5py.File(out / "images.h5", "w") as file:
        file.create_dataset("set/x", data=pixels(paths), chunks=(5, *SIDE[::-1], 3), compression="gzip")
        file["set/names"] = [path.name for path in paths]
    return {"type": "array", "path": str(out / "images.h5"), "labels": "set/names"}


WAYS = {name.removeprefix("as_"): way for name, way in list(globals().items()) if name.startswith("as_")}
