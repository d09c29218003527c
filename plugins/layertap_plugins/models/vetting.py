"""Checks of a checkpoint before anything is built from it: what it names, and how much it unpacks to.

The readers that follow run no code either. But torch's reader calls constructors with any size that a file asks for and
unpacks compressed members, and the reader of safetensors lets the last of two equal keys win.
"""

from __future__ import annotations

import io
import itertools
import json
import pickletools
import re
import struct
import zipfile
from collections import Counter
from pathlib import Path
from typing import Any

from layertap import UnsafeError, WeightsError
from layertap_plugins.models.weights import brief

ARCHIVE = b"PK\3\4"

_HEADER_BYTES = 10_000_000
"""Most bytes of a .safetensors header; a checkpoint of ten thousand tensors has one of a million."""
_OPERATIONS = 2_000_000
"""Most operations in a pickle; a checkpoint of five thousand tensors has 150,000."""
_VALUES = 20_000_000
"""Most values that a pickle takes into others, each counted as often as it is taken."""
_TUPLE = 10_000
"""Most values in one tuple with all tuples inside: Python hashes them anew whenever it is a key."""

# What a state dict needs, and what training scripts often save with it. None of these takes more memory than its
# arguments: torch would also let a file ask for a `bytearray` or a sparse tensor of any size.
_PLAIN = frozenset({
    "collections OrderedDict",
    "collections Counter",
    "argparse Namespace",
    "__builtin__ set", "builtins set",
    "__builtin__ complex", "builtins complex",
    "torch Size", "torch device",
    "torch.nn.parameter Parameter",
    "torch.storage UntypedStorage",
    "torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2", "torch._utils _rebuild_tensor_v3",
    "torch._utils _rebuild_parameter",
})  # fmt: skip
_TYPE = re.compile(r"torch(\.cuda)? [A-Z]\w*Storage|torch (b?float\d\w*|u?int\d+|complex\d+|bool)")

_NAMES_CODE = frozenset({"STACK_GLOBAL", "INST", "EXT1", "EXT2", "EXT4"})
_GROWS = frozenset({"APPEND", "APPENDS", "SETITEM", "SETITEMS", "ADDITEMS", "BUILD"})
_TUPLES = frozenset({"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
# An old checkpoint has five of them in a row, followed by bare values.
_PICKLES = 5


def vet_safetensors(data: bytes, path: Path) -> None:
    """Raise `WeightsError` for a header that is damaged, too long, or holds a key twice."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or length > len(data) - 8:
        raise damaged(path, "its header ends early")
    if length > _HEADER_BYTES:
        raise damaged(path, f"its header has more than {_HEADER_BYTES:,} bytes")
    try:
        json.loads(data[8 : 8 + length], object_pairs_hook=_once)
    except (ValueError, RecursionError) as error:
        raise damaged(path, f"its header: {brief(error)}") from error


def vet_pickled(data: bytes, path: Path) -> None:
    """Raise `UnsafeError` for what is or may be more than plain tensors, `WeightsError` for what is damaged."""
    if data[257:262] == b"ustar":
        raise unsafe(path, "it is a tar archive")
    if not data.startswith(ARCHIVE):
        stream = io.BytesIO(data)
        for _ in range(_PICKLES):
            _vet_pickle(stream, path)
        return
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            name = _vet_members(archive, data, path)
            content = archive.read(name)
    except (UnsafeError, WeightsError):
        raise
    except Exception as error:  # zipfile raises struct.error, IndexError and others for what is cut or forged
        raise damaged(path, "its archive ends early or is broken") from error
    _vet_pickle(io.BytesIO(content), path)


def unsafe(path: Path, what: str) -> UnsafeError:
    """What to raise for a file that may be hostile."""
    return UnsafeError(
        f"{str(path)!r} holds more than tensors, and reading that could run code or fill the memory ({what}); if you "
        "trust it, save its state dict as .safetensors where it came from",
        where=("weights",),
    )


def damaged(path: Path, why: str) -> WeightsError:
    """What to raise for a file that no reader can read."""
    return WeightsError(f"{str(path)!r} is not a weights file, or is damaged ({why}); get it again", where=("weights",))


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    if len(dict(pairs)) < len(pairs):
        raise ValueError(f"duplicate key {Counter(key for key, _ in pairs).most_common(1)[0][0]!r}")
    return dict(pairs)


def _vet_members(archive: zipfile.ZipFile, data: bytes, path: Path) -> str:
    """The name of the pickle in an archive laid out as torch.save does it: stored, in order, side by side."""
    members = archive.infolist()
    names = [member.filename for member in members]
    top = names[0].partition("/")[0] if names else ""
    pickled = f"{top}/data.pkl"
    if pickled not in names or any(name.endswith((".py", "/constants.pkl")) for name in names):
        raise unsafe(path, "it is an archive of something else, such as a program")
    if len(set(names)) < len(names) or not all(
        name.startswith(f"{top}/") and ".." not in name.split("/") for name in names
    ):
        raise unsafe(path, "its archive holds a name twice, or one that leads out of it")
    if any(member.compress_type != zipfile.ZIP_STORED or member.flag_bits & 1 for member in members):
        raise unsafe(path, "its archive is compressed or encrypted")
    # The bytes of a member twice, or a second table of contents, would be read differently by torch.
    starts = [*sorted(member.header_offset for member in members), archive.start_dir]
    sizes = {member.header_offset: 30 + len(member.filename) + member.file_size for member in members}
    apart = all(start + sizes[start] <= after for start, after in itertools.pairwise(starts))
    if not apart or starts[0] != 0 or _directory(data) != archive.start_dir:
        raise unsafe(path, "the members of its archive overlap")
    return pickled


def _directory(data: bytes) -> int | None:
    """Where an archive's table of contents begins, according to its last bytes; None where that is not certain."""
    end = len(data) - 22
    if data[end : end + 4] != b"PK\5\6":
        return None
    start: int = struct.unpack_from("<I", data, end + 16)[0]
    if data[end - 20 : end - 16] == b"PK\6\7":
        record = struct.unpack_from("<Q", data, end - 12)[0]
        if record != end - 76:
            return None
        start = struct.unpack_from("<Q", data, record + 48)[0]
    return start


def _vet_pickle(stream: io.BytesIO, path: Path) -> None:
    try:
        _walk(stream, path)
    except (UnsafeError, WeightsError):
        raise
    except Exception as error:  # the exception of pickletools depends on the bytes
        raise damaged(path, "neither an archive nor a whole pickle") from error


def _walk(stream: io.BytesIO, path: Path) -> None:
    """Follow a pickle up to its end: what it names, and how much each of its values holds."""
    stack: list[list[int] | None] = []  # each a list of one number, which grows under all of its names
    memo: dict[int, list[int] | None] = {}
    total = 0

    def held(item: list[int] | None) -> list[int]:
        if item is None:
            raise ValueError("a mark instead of a value")
        return item

    for number, (operation, argument, _) in enumerate(pickletools.genops(stream)):
        name, below, taken = operation.name, operation.stack_before, 0
        if name in _NAMES_CODE or (name == "GLOBAL" and not _is_plain(str(argument))):
            raise unsafe(path, f"it names {_shown(argument)}")
        if name == "MARK":
            stack.append(None)
        elif name in _PUTS:
            memo[int(str(argument))] = stack[-1]
        elif name in _GETS:
            stack.append(memo[int(str(argument))])
        else:
            if pickletools.markobject in below:
                while (item := stack.pop()) is not None:
                    taken += item[0]
                below = below[: below.index(pickletools.markobject)]
            grows = name in _GROWS
            taken += sum(held(stack.pop())[0] for _ in below[grows:])
            if grows:
                held(stack[-1])[0] += taken
            else:
                stack.extend([1 + taken] for _ in operation.stack_after)
            total += taken
        if number > _OPERATIONS or total > _VALUES or (name in _TUPLES and taken > _TUPLE):
            raise unsafe(path, "it unpacks to far more than it is large")


def _is_plain(name: str) -> bool:
    return name in _PLAIN or _TYPE.fullmatch(name) is not None


def _shown(argument: object) -> str:
    return "what it does not spell out" if argument is None else f"{str(argument)[:100]!r}"
