"""What a plugin raises for an image: its type, message and place are in the report, the output and every error."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

import layertap
from layertap.cli.main import main
from layertap.records import Cause
from layertap.store.tally import Causes
from tests.conftest import TINY
from tests.pipeline.test_pipeline import config, contents

PLUGIN = """\
import layertap


def helper(image):
    raise ValueError("bad thing\\x1b[31m\\nand more of it")


class Failing(layertap.Preprocessor):
    def prepare(self, image):
        import torch

        if image.width % 2:
            helper(image)  # line 13
        if image.width % 3 == 0:
            torch.zeros(2).reshape(5)
        return torch.full((3, 16, 16), 9, dtype=torch.uint8)

    def finish(self, batch):
        return batch.float() / 255


class Fetched(layertap.Source):
    def records(self):
        for number in range(12):
            yield layertap.ImageRecord(f"{number:02d}", Fetch(number))


class Fetch:
    def __init__(self, number):
        self.number = number

    def __call__(self):
        if self.number == 4:
            raise OSError("the camera is off")
        if self.number == 5:
            raise Unspeakable()
        if self.number == 6:
            return 7
        return {}[self.number]


class Unspeakable(Exception):
    def __str__(self):
        raise RuntimeError("no words")


@layertap.hookimpl
def register_preprocessors(register):
    register("failing", Failing)


@layertap.hookimpl
def register_sources(register):
    register("fetched", Fetched)
"""


@pytest.fixture
def plugin(tmp_path: Path) -> str:
    file = tmp_path / "my_plugin.py"
    file.write_text(PLUGIN)
    return str(file)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """Widths 10 to 21: six are odd, and of the even ones two are multiples of three."""
    (tmp_path / "images").mkdir()
    for width in range(10, 22):
        Image.new("RGB", (width, 8)).save(tmp_path / f"images/{width}.png")
    return tmp_path / "images"


def run(images: Path, out: Path | None, plugin: str, **changes: Any) -> layertap.Report:
    whole = config(images, out, **{"preprocess": {"type": "failing"}, "shard_rows": 4, **changes})
    return layertap.run(whole, plugins=[TINY, plugin])


def command(*words: str) -> int:
    """Run the command line and give its exit code."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["layertap", *words])
        with pytest.raises(SystemExit) as ended:
            main()
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return int(ended.value.code or 0)


def place(plugin: str, text: str) -> str:
    lines = PLUGIN.splitlines()
    return f"{plugin}:{next(number for number, line in enumerate(lines, 1) if text in line)}"


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_first_of_each_kind_is_reported_with_its_place_and_count(images, tmp_path, plugin, isolation):
    report = run(images, tmp_path / "out", plugin, isolation=isolation)
    assert (report.kept, dict(report.reasons)) == (4, {"error": 8})
    raised, reshaped = report.causes
    assert raised.cause == Cause("ValueError", r"bad thing\x1b[31m", place(plugin, "raise ValueError"))
    assert (raised.first, raised.count) == ("11.png", 6)
    assert (reshaped.cause.type, reshaped.cause.place) == ("RuntimeError", place(plugin, "reshape(5)"))
    assert (reshaped.first, reshaped.count) == ("12.png", 2)
    assert "shape" in reshaped.cause.message
    assert (tmp_path / "out/failures.csv").read_text().splitlines()[:2] == ["id,stage,reason", "11.png,prepare,error"]


def test_screen_json_info_and_a_complete_output_report_causes(images, tmp_path, plugin, capsys):
    (tmp_path / "run.yaml").write_text(json.dumps(config(images, tmp_path / "out", preprocess={"type": "failing"})))
    words = ["run", str(tmp_path / "run.yaml"), "--plugin", TINY, "--plugin", plugin]
    line = rf"ValueError: bad thing\x1b[31m ({place(plugin, 'raise ValueError')}), first at '11.png', and 5 more"
    for _ in range(2):  # the second time it is complete already
        assert command(*words) == 3
        assert f"    {line}\n" in capsys.readouterr().out
    assert command(*words, "--json") == 3
    causes = json.loads(capsys.readouterr().out)["causes"]
    assert causes[0] == {
        "type": "ValueError",
        "message": r"bad thing\x1b[31m",
        "place": place(plugin, "raise ValueError"),
        "first": "11.png",
        "count": 6,
    }
    assert command("info", str(tmp_path / "out")) == 0
    assert f"    {line}\n" in capsys.readouterr().out


def test_resumed_run_reports_causes_from_before(images, tmp_path, plugin):
    whole = run(images, tmp_path / "whole", plugin)
    with pytest.raises(layertap.PluginError):
        run(images, tmp_path / "out", plugin, observers=[{"type": "stop", "after": 12}])
    resumed = run(images, tmp_path / "out", plugin)
    assert resumed.causes == whole.causes != ()
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_output_without_causes_is_still_read(images, tmp_path, plugin):
    run(images, tmp_path / "out", plugin)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    del manifest["causes"]
    for shard in manifest["shards"]:
        del shard["causes"]
    (tmp_path / "out/manifest.json").write_text(json.dumps(manifest))
    report = run(images, tmp_path / "out", plugin)
    assert (report.already, report.failed, report.causes) == (True, 8, ())
    assert len(layertap.open(tmp_path / "out").ids) == 4


def test_retry_keeps_the_causes_of_shards_that_it_keeps(images, tmp_path, plugin):
    (images / "20.png").rename(tmp_path / "20.png")
    (images / "20.png").symlink_to(".away/20.png")
    before = run(images, tmp_path / "out", plugin)
    assert dict(before.reasons) == {"error": 8, "not_found": 1}
    (images / ".away").mkdir()
    (tmp_path / "20.png").rename(images / ".away/20.png")
    whole = config(images, tmp_path / "out", preprocess={"type": "failing"}, shard_rows=4)
    after = layertap.run(whole, plugins=[TINY, plugin], retry_failed=True)
    assert (after.kept, after.causes) == (4, before.causes)


def test_callable_of_a_source_is_named_too(images, tmp_path, plugin):
    report = run(images, None, plugin, source={"type": "fetched"})
    found = {counted.cause.type: counted for counted in report.causes}
    assert dict(report.reasons) == {"error": 11, "io_error": 1}
    assert str(found["KeyError"]) == f"KeyError: 0 ({place(plugin, '{}[self')}), first at '00', and 8 more"
    assert str(found["OSError"]) == f"OSError: the camera is off ({place(plugin, 'raise OSError')}), first at '04'"
    assert str(found["Unspeakable"].cause) == f"Unspeakable ({place(plugin, 'raise Unspeak')})"
    assert str(found["ImageError"].cause) == "ImageError: the source gave int, not bytes or an image"


def test_error_that_ends_a_run_or_extract_says_what_was_raised(images, tmp_path, plugin):
    where = place(plugin, "raise ValueError")
    with pytest.raises(layertap.ImageError, match=r"cannot be used: error \(prepare\): ValueError: bad") as caught:
        run(images, None, plugin, on_error="fail")
    assert f"({where})" in str(caught.value)
    with pytest.raises(layertap.ImageError, match="max_failures allows 1; ValueError: bad thing"):
        run(images, None, plugin, max_failures=1)

    def prepare(image: Image.Image) -> Any:
        return {}["no such key"] if image.width == 12 else torch.zeros(3, 16, 16)

    with pytest.raises(layertap.ImageError, match=r"error \(prepare\): KeyError: 'no such key' \(.*test_causes.py:\d+"):
        list(layertap.extract(nn.Sequential(nn.Conv2d(3, 4, 3)), str(images), ["0"], preprocess=prepare))


def test_codes_of_layertap_need_no_cause(images, tmp_path, plugin):
    (images / "10.png").write_bytes(b"not an image")
    report = run(images, None, plugin, preprocess={"type": "model"})
    assert (dict(report.reasons), report.causes) == ({"not_image": 1}, ())


def test_kinds_beyond_twenty_are_counted_together():
    causes = Causes()
    for number in range(50):
        causes.add(Cause("E", "", f"file:{number}"), str(number))
    counted = causes.counted()
    assert (len(counted), counted[-1].count, counted[-1].first) == (21, 30, "20")
    again = Causes()
    again.add_counted(counted)
    assert again.counted() == counted
