"""Checkpoints that attack whoever loads them, or are broken: what each is, and how it must be refused."""

from __future__ import annotations

import io
import json
import pickle
import struct
import tarfile
import warnings
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save
from torch import nn

BROKEN, UNSAFE = 2, 8

TENSOR = {"w": torch.arange(4.0)}
# What torch.save writes for it, in the pickle.
SIZE, STRIDE, COUNT, HOOKS = b"K\x04\x85q\x08", b"K\x01\x85q\t", b"cpuq\x06K\x04", b"ccollections\nOrderedDict\nq\n)R"


class Whole(nn.Module):
    """A module that is pickled whole, by the name of its class."""


def number(value: int) -> bytes:
    return b"\x8a\x08" + value.to_bytes(8, "little")


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def call(module: str, name: str, *arguments: bytes) -> bytes:
    """The opcodes of `module.name(*arguments)`."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def saved(state: object = TENSOR, **options: bool) -> bytes:
    file = io.BytesIO()
    torch.save(state, file, **options)
    return file.getvalue()


def members(edit: Callable[[bytes], bytes] = lambda pickled: pickled) -> dict[str, bytes]:
    """The members of a checkpoint, with its pickle edited."""
    with zipfile.ZipFile(io.BytesIO(saved())) as archive:
        content = {name: archive.read(name) for name in archive.namelist()}
    before = content["archive/data.pkl"]
    content["archive/data.pkl"] = edit(before)
    return content


def packed(content: dict[str, bytes], compression: int = zipfile.ZIP_STORED, twice: str | None = None) -> bytes:
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w", compression) as archive:
        warnings.simplefilter("ignore")  # about a name that stands twice
        for name, data in content.items():
            archive.writestr(name, data)
        if twice:
            archive.writestr(twice, content[twice])
    return file.getvalue()


def edited(*changes: bytes) -> bytes:
    """A checkpoint in whose pickle the first of each two is replaced by the second."""

    def edit(pickled: bytes) -> bytes:
        for before, after in zip(changes[::2], changes[1::2], strict=True):
            assert pickled.count(before) == 1
            pickled = pickled.replace(before, after)
        return pickled

    return packed(members(edit))


def inside(body: bytes) -> bytes:
    """A checkpoint whose state dict also holds what `body` makes."""
    return edited(b"Rq\rs.", b"Rq\rs" + text("x") + body + b"s.")


def tensors(header: object, data: bytes = bytes(16), length: int | None = None) -> bytes:
    """A .safetensors file with this header."""
    content = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(content) if length is None else length) + content + data


def gadgets(canary: Path) -> Iterator[tuple[str, bytes]]:
    """Pickles that would make the file `canary`, in all the ways in which a pickle calls something."""
    command = f"touch '{canary}'"
    quoted, touch = f"S{command!r}\n".encode(), call("os", "system", text(command))
    yield "reduce, protocol 0", b"cos\nsystem\n(" + quoted + b"tR."
    yield "reduce, protocol 2", b"\x80\x02" + touch + b"."
    yield "stack global", b"\x80\x04" + text("os") + text("system") + b"\x93(" + text(command) + b"tR."
    yield "inst", b"(" + quoted + b"ios\nsystem\n."
    yield "obj", b"(cos\nsystem\n" + quoted + b"o."
    yield "extension", b"\x80\x02\x82\x01(" + quoted + b"tR."
    yield "posix", b"\x80\x02" + call("posix", "system", text(command)) + b"."
    yield "eval", b"\x80\x02" + call("builtins", "eval", text(f"open({str(canary)!r}, 'w')")) + b"."
    yield "eval of Python 2", b"\x80\x02" + call("__builtin__", "eval", text(f"open({str(canary)!r}, 'w')")) + b"."
    yield (
        "subprocess",
        b"\x80\x02" + call("subprocess", "Popen", b"(" + text("touch") + text(str(canary)) + b"t") + b".",
    )
    yield "dotted name", b"\x80\x02" + call("torch", "os.system", text(command)) + b"."
    yield "setstate", b"\x80\x02cfunctools\npartial\n)\x81(cos\nsystem\n" + text(command) + b"\x85}Ntb."
    yield "torch's own loader", b"\x80\x02" + call("torch.serialization", "load", text(str(canary))) + b"."
    yield "joblib", b"\x80\x04" + text("joblib.numpy_pickle") + text("NumpyArrayWrapper") + b"\x93)\x81."
    yield "numpy objects", pickle.dumps(np.array([{}], dtype=object), 2)
    yield "in a state dict", inside(touch)
    yield "in a persistent id", edited(b"X\x03\x00\x00\x00cpuq\x06", touch)
    yield "in the hooks of a tensor", edited(HOOKS, touch)
    facts = b"".join(pickle.dumps(fact, 2) for fact in (0x1950A86A20F9469CFC6C, 1001))
    yield "old format, third pickle", facts + b"\x80\x02" + touch + b"."
    yield "old format, fifth pickle", facts + pickle.dumps({}, 2) * 2 + b"\x80\x02" + touch + b"."
    yield "whole module", saved({"state_dict": {}, "net": Whole()})
    yield "tar", tarred(b"\x80\x02" + touch + b".")


def tarred(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name in ("storages", "tensors", "pickle"):
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return file.getvalue()


def archives() -> Iterator[tuple[str, bytes, int]]:
    """Archives that are something else, or are packed as torch packs none."""
    plain = members()
    yield "TorchScript", packed({**plain, "archive/constants.pkl": b"\x80\x02).", "archive/code/a.py": b""}), UNSAFE
    yield "torch.export", packed({"a/archive_format": b"pt2", "a/models/model.json": b"{}"}), UNSAFE
    yield "other archive", packed({"word/document.xml": b"<x/>"}), UNSAFE
    yield "npz", packed({"w.npy": b"\x93NUMPY\x01\x00"}), UNSAFE
    yield "empty archive", packed({}), BROKEN
    yield "zip-slip", packed({**plain, "archive/../../../canary": b"x"}), UNSAFE
    yield "absolute name", packed({**plain, "/tmp/canary": b"x"}), UNSAFE
    yield "zip bomb", packed({**plain, "archive/data/0": bytes(50_000_000)}, zipfile.ZIP_DEFLATED), UNSAFE
    yield "member twice", packed(plain, twice="archive/data.pkl"), UNSAFE
    honest = packed(plain)
    yield "second end", honest + honest[-22:], BROKEN
    yield "comment", honest[:-2] + b"\x16\0" + bytes(22), UNSAFE
    yield "archive in a comment", honest[:-2] + struct.pack("<H", len(honest)) + honest, UNSAFE
    yield "something before it", b"\x80\x02N." + honest, BROKEN
    yield "encrypted", honest.replace(b"PK\1\2\x14\3\x14\0\0\0", b"PK\1\2\x14\3\x14\0\1\0"), UNSAFE
    claims = bytearray(honest)
    struct.pack_into("<II", claims, honest.index(b"PK\1\2") + 20, 10**9, 10**9)
    yield "member that claims a gigabyte", bytes(claims), UNSAFE
    # Two entries of the table of contents for the same bytes.
    table = honest.index(b"PK\1\2")
    last, end = honest.rindex(b"PK\1\2"), honest.rindex(b"PK\5\6")
    entry = bytearray(honest[last:end])
    entry[46] ^= 1
    tail = bytearray(honest[end:])
    struct.pack_into("<HHI", tail, 8, *(len(plain) + 1,) * 2, end + len(entry) - table)
    yield "overlapping members", honest[:end] + bytes(entry) + bytes(tail), UNSAFE
    yield "cut archive", saved()[:-200], BROKEN
    yield "cut old format", saved(_use_new_zipfile_serialization=False)[:-8], BROKEN


def giants() -> Iterator[tuple[str, bytes, int]]:
    """Files that ask for far more memory or time than they are large."""
    much = 10**11
    yield "sparse", saved({"w": torch.sparse_coo_tensor([[0]], [1.0], (10**12,), check_invariants=False)}), UNSAFE
    yield "quantized", inside(call("torch._utils", "_rebuild_qtensor", b"NK\x00", number(much) + b"\x85")), UNSAFE
    yield "on no device", saved({"w": torch.empty(10**12, device="meta")}), UNSAFE
    yield "storage longer than its member", edited(COUNT, COUNT[:-2] + number(much)), BROKEN
    old = saved(_use_new_zipfile_serialization=False)
    yield "storage longer than the file", old.replace(COUNT, COUNT[:-2] + number(much)), BROKEN
    yield "tensor larger than its storage", edited(SIZE, number(much) + SIZE[2:]), BROKEN
    yield "tensor before its storage", edited(b"QK\x00", b"QJ\xff\xff\xff\xff"), BROKEN
    yield "stride of 0", edited(SIZE, number(much) + SIZE[2:], STRIDE, b"K\x00" + STRIDE[2:]), UNSAFE
    yield "bytearray", inside(call("__builtin__", "bytearray", number(much))), UNSAFE
    yield "tensor by number", inside(call("torch", "FloatTensor", number(much))), UNSAFE
    yield "encoding that takes forever", inside(call("_codecs", "encode", text("ä" * 99), text("punycode"))), UNSAFE
    rebuild = b"ctorch._utils\n_rebuild_wrapper_subclass\n"
    yield "rebuild of a type", inside(call("torch._tensor", "_rebuild_from_type_v2", rebuild, b"NN}")), UNSAFE
    doubled = b"".join(b"q%ch%c\x86" % (60 + i, 60 + i) for i in range(60))
    yield "tuple of doubling tuples as a key", inside(b"}K\x01\x85" + doubled + b"Ns"), UNSAFE
    lists = b"".join(b"q%c](h%ch%ce" % (60 + i, 60 + i, 60 + i) for i in range(60))
    yield "list of doubling lists", inside(b"(]" + lists + b"t"), UNSAFE
    yield "millions of marks", b"\x80\x02" + b"(" * 3_000_000, UNSAFE
    yield "string of 4 GB", b"\x80\x02X\xff\xff\xff\xff.", BROKEN
    yield "bytes of 2**64", b"\x8e" + b"\xff" * 8, BROKEN
    yield "persistent id that is none", edited(b"tq\x07Q", b"tq\x07N\x86Q"), BROKEN


def other_files() -> Iterator[tuple[str, bytes, int]]:
    """What people save under a name that ends in .pth, without harm in it."""
    yield "empty", b"", BROKEN
    yield "web page", b"<!DOCTYPE html><html><body>404</body></html>", BROKEN
    yield "LFS pointer", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", BROKEN
    yield "noise", bytes(range(256)) * 40, BROKEN
    file = io.BytesIO()
    np.save(file, np.array([{}], dtype=object), allow_pickle=True)
    yield "npy of objects", file.getvalue(), UNSAFE
    yield "list", saved([1, 2]), BROKEN
    yield "numbers", saved({"w": 1}), BROKEN
    yield "nothing", pickle.dumps(None, 2), BROKEN


def safetensors() -> Iterator[tuple[str, bytes, int]]:
    """Headers that lie."""
    entry = {"dtype": "F32", "shape": [4], "data_offsets": [0, 16]}
    once = json.dumps(entry)
    yield "header of 2**63 bytes", tensors({"w": entry}, length=2**63), BROKEN
    yield "header longer than the file", tensors({"w": entry}, length=90_000_000), BROKEN
    yield "header of 11 MB", tensors({"w": entry, "__metadata__": {"x": "x" * 11_000_000}}), BROKEN
    yield "deep header", tensors(b'{"w":' + b"[" * 100_000 + b"]" * 100_000 + b"}"), BROKEN
    yield "header that is no JSON", tensors(b"\xff\xfe{}"), BROKEN
    yield "key twice", tensors(f'{{"w":{once},"w":{once}}}'.encode()), BROKEN
    yield "overlapping tensors", tensors({"w": entry, "v": entry}), BROKEN
    yield "offsets past the end", tensors({"w": {**entry, "shape": [400], "data_offsets": [0, 1600]}}), BROKEN
    yield "offsets before the start", tensors({"w": {**entry, "data_offsets": [-16, 0]}}), BROKEN
    yield "shape of 2**124 values", tensors({"w": {**entry, "shape": [2**62, 2**62]}}), BROKEN
    yield "bytes that belong to nothing", tensors({"w": entry}, bytes(32)), BROKEN
    yield "type that torch lacks", tensors({"w": {"dtype": "F4", "shape": [32], "data_offsets": [0, 16]}}), BROKEN
    yield "type that is none", tensors({"w": {**entry, "dtype": "O"}}), BROKEN
    yield "cut", save(TENSOR)[:-1], BROKEN
    yield "no header", b"\0\0", BROKEN


def checkpoints(canary: Path) -> Iterator[tuple[str, bytes, int]]:
    """Every file as its name, its bytes and the code with which it must be refused."""
    for name, content in gadgets(canary):
        yield f"{name}.pth", content, UNSAFE
    for name, content, code in (*archives(), *giants(), *other_files()):
        yield f"{name}.pth", content, code
    for name, content, code in safetensors():
        yield f"{name}.safetensors", content, code
    touch = next(content for name, content in gadgets(canary) if name == "reduce, protocol 2")
    yield "pickle by another name.safetensors", touch, BROKEN
    yield "pickle by another name.bin", touch, UNSAFE
