"""`layertap report`: where the page is, what is said on the way, and exit codes."""

from __future__ import annotations

import subprocess
import sys

import pytest
import typer

from layertap.cli.main import app
from layertap.errors import ConfigError
from tests.looking.report.pages import blocks
from tests.looking.tables import TABLE, output, seeded


@pytest.fixture
def out(tmp_path) -> str:
    output(tmp_path, seeded(12, 5), seeded(12, 3))
    return str(tmp_path / "out")


def typed(*arguments: str) -> int:
    return typer.main.get_command(app).main(["report", *arguments], standalone_mode=False) or 0


def test_page_is_named_on_stdout_and_steps_on_stderr(out, tmp_path, capsys):
    assert typed(out, "--plugin", TABLE) == 0
    printed = capsys.readouterr()
    assert printed.out == f"the report is written; open {tmp_path / 'out.report' / 'index.html'}\n"
    assert "units of tap0" in printed.err
    found = blocks(tmp_path / "out.report" / "index.html")
    assert found["report"]["pictures"]["count"] == 12


def test_options_choose_taps_and_place(out, tmp_path, capsys):
    assert typed(out, "--tap", "tap1", "--to", str(tmp_path / "page"), "--quiet", "--plugin", TABLE) == 0
    printed = capsys.readouterr()
    assert (printed.out, printed.err) == ("", "")
    assert [tap["name"] for tap in blocks(tmp_path / "page" / "index.html")["report"]["taps"]] == ["tap1"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--projection", "tsne"], "no projection is named 'tsne'"),
        (["--to", "{out}/page"], "inside the output"),
        (["--to", "{out}"], "inside the output"),
        (["source.kind=x"], "kind"),
    ],
)
def test_what_cannot_be_written_is_an_error(out, arguments, said):
    with pytest.raises(ConfigError, match=said):
        typed(out, *(argument.format(out=out) for argument in arguments), "--plugin", TABLE)


def test_library_that_is_missing_is_named_with_its_extra_before_anything_is_computed(out, tmp_path):
    hidden = (
        "import sys; sys.modules['bokeh'] = None; sys.argv = ['layertap', 'report', *sys.argv[1:]];"
        "from layertap.cli.main import main; main()"
    )
    command = [sys.executable, "-c", hidden, out, "--plugin", TABLE]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 2
    assert "pip install 'layertap[report]'" in found.stderr
    assert "units of" not in found.stderr
    assert not (tmp_path / "out.report").exists()
