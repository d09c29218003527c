"""Pictures of every kind, and models as a hub's client would have put them into its cache."""

from __future__ import annotations

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

MODES = ["1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LA", "I", "F"]
SIZES = [(301, 233), (97, 401), (40, 31), (224, 224), (1, 7)]
COMMIT = "0123456789abcdef0123456789abcdef01234567"


def picture(width, height, mode="RGB", seed=0):
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 4), dtype=np.uint8)
    image = Image.fromarray(noise, "RGBA") if mode in ("RGBA", "LA") else Image.fromarray(noise[..., :3].copy())
    return image.convert(mode)


def pictures():
    """One of each size and one of each mode."""
    return [*(picture(*size) for size in SIZES), *(picture(120, 90, mode, seed=1) for mode in MODES)]


def as_we_do(preprocessor, images):
    """The model input that the line would make from the images."""
    return preprocessor.finish(torch.stack([preprocessor.prepare(image) for image in images]))


def publish(cache: Path, repository: str) -> Path:
    """An empty folder where the cache keeps the files of a repository's newest commit."""
    folder = cache / f"models--{repository.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text(COMMIT)
    snapshot = folder / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    return snapshot


def same(module, state):
    """Whether the module's state is `state`, key for key and bit for bit."""
    mine = module.state_dict()
    return mine.keys() == state.keys() and all(torch.equal(mine[key], value) for key, value in state.items())


def layers(module):
    return [name for name, _ in module.named_modules()]


def one_line(error):
    return "\n" not in str(error.value)


@contextmanager
def empty_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty cache of the hub, without network access: the proxy is a port without a listener."""
    import huggingface_hub

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    monkeypatch.setenv("TORCH_HOME", str(folder))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    huggingface_hub.close_session()  # proxies are read once
    urllib.request.install_opener(None)
    yield folder
    huggingface_hub.close_session()
    urllib.request.install_opener(None)


def processed(processor, images):
    """The result of a transformers processor for each of the images."""
    return torch.cat([processor(image.convert("RGB"), return_tensors="pt")["pixel_values"] for image in images])
