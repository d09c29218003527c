"""Files of a model that somebody published: in a local folder, or in a repository of the Hugging Face hub.

Files are only fetched, never run. Files in the cache are used as they are, without asking the hub again. Where the hub
cannot be reached, the first attempt says so: the libraries' own loaders would retry for a minute.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Protocol

from layertap import WeightsError
from layertap_plugins.models.weights import RANDOM, brief

_COMMIT = re.compile(r"[0-9a-f]{40}")
_NAME = re.compile(r"\w[\w-]*(\.[\w-]+)*/\w[\w-]*(\.[\w-]+)*")
_REVISION = re.compile(r"\w[\w.-]*(/\w[\w.-]*)*")
# The file that cannot hold code comes first.
_SAFE = {
    "pytorch_model.bin": ("model.safetensors",),
    "open_clip_pytorch_model.bin": ("open_clip_model.safetensors",),
}


class Files(Protocol):
    """The place of the files of one model."""

    @property
    def label(self) -> str:
        """What to call it in a message."""

    @property
    def revision(self) -> str | None:
        """The commit of the files, where there is one."""

    def find(self, *names: str) -> Path | None:
        """The first of the files that exists, on this disk; None where none does. Raises `WeightsError`."""


class Folder:
    """The files of a local folder."""

    revision = None

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(os.path.expanduser(path))
        self.label = str(self.path)
        if not self.path.is_dir():
            raise WeightsError(f"{self.label!r} is not a folder", where=("name",))

    def find(self, *names: str) -> Path | None:
        return next((path for name in names if os.path.isfile(path := self.path / name)), None)


class Repository:
    """The files of `OWNER/NAME`, or of `OWNER/NAME@REVISION`, in the hub's cache or fetched into it."""

    def __init__(self, reference: str) -> None:
        self.label, at, revision = reference.partition("@")
        if not _NAME.fullmatch(self.label):
            raise WeightsError(f"{self.label!r} is not OWNER/NAME of a repository", where=("name",))
        if at and not _REVISION.fullmatch(revision):
            raise WeightsError(f"{revision!r} is not a revision of {self.label!r}", where=("name",))
        self.revision: str | None = revision or None

    def find(self, *names: str) -> Path | None:
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

        known = [try_to_load_from_cache(self.label, name, revision=self.revision) for name in names]
        path = next((Path(found) for found in known if isinstance(found, str)), None)
        if path is None and None not in known:  # the cache knows that the repository has none of them
            return None
        try:
            path = path or self._fetched(names)
        except LocalEntryNotFoundError as error:  # the connection broke
            raise WeightsError(self._unreachable(names[0], error), where=("name",)) from error
        except EntryNotFoundError:  # the repository can be reached, and has none of them
            return None
        except Exception as error:  # the exceptions of the hub's client depend on its HTTP library
            raise WeightsError(self._unreachable(names[0], error), where=("name",)) from error
        if _COMMIT.fullmatch(path.parent.name):
            self.revision = path.parent.name  # all files of one load are of one commit
        return path

    def _fetched(self, names: tuple[str, ...]) -> Path:
        from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url
        from huggingface_hub.errors import EntryNotFoundError

        for name in names:
            try:
                # Asks once and does not retry; the download that follows would.
                get_hf_file_metadata(hf_hub_url(self.label, name, revision=self.revision))
            except EntryNotFoundError:
                if name == names[-1]:
                    raise
                continue
            return Path(hf_hub_download(self.label, name, revision=self.revision))
        raise AssertionError("asked for no file")

    def _unreachable(self, name: str, error: Exception) -> str:
        from huggingface_hub import constants

        cure = "set model.name to a local folder that has it"
        if not name.endswith(".json"):
            cure = f"set model.weights=PATH of a file you have, or model.weights={RANDOM}"
        return (
            f"the file {name} of {self.label} is not in the cache {constants.HF_HUB_CACHE} and cannot be fetched "
            f"({brief(error)}): put the repository there, or {cure}"
        )


def weights_file(files: Files, name: str = "pytorch_model.bin") -> Path:
    """The file of its weights: `name`, or a .safetensors file instead. Raises `WeightsError`."""
    stem, _, suffix = name.rpartition(".")
    names = (*_SAFE.get(name, (f"{stem}.safetensors",) if suffix in ("bin", "pth") else ()), name)
    path = files.find(*names)
    if path is None:
        raise WeightsError(f"{files.label} has no weights (looked for {', '.join(names)})", where=("weights",))
    return path


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file. Raises `WeightsError`."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise WeightsError(f"{str(path)!r} cannot be read: {brief(error)}", where=("name",)) from error
    if not isinstance(content, dict):
        raise WeightsError(f"{str(path)!r} holds no JSON object but a {type(content).__name__}", where=("name",))
    return content
