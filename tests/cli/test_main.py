"""The command line: what each command prints, and every exit code."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jsonschema
import pytest
from PIL import Image

import layertap
from layertap.cli.main import main

ROOT = Path(__file__).parents[2]
TINY = str(Path(__file__).parents[1] / "outsider" / "tiny.py")
SOURCE = """
import layertap
class Own(layertap.Source):
    def records(self):
        yield layertap.ImageRecord("a", b"")
@layertap.hookimpl
def register_sources(register):
    register("own", Own)
"""
CONFIG = """\
model: tiny
taps: [features.1]
source: {type: folder, path: images}
sink: {type: npy, path: out}
device: cpu
batch_size: 2
shard_rows: 2
"""


@pytest.fixture
def layertap_(monkeypatch, capsys):
    """Runs a command line in this process: its exit code, stdout and stderr."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["layertap", *map(str, arguments)])
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as caught:
                main()
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        out, err = capsys.readouterr()
        assert "Traceback" not in err
        return caught.value.code or 0, out, err

    return run


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with three images and a configuration."""
    monkeypatch.chdir(tmp_path)
    Path("images").mkdir()
    for number in range(3):
        Image.effect_noise((20, 20), 50 + number).save(f"images/{number}.png")
    Path("c.yaml").write_text(CONFIG)
    return tmp_path


def shell(*arguments, **options):
    command = [sys.executable, "-m", "layertap", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, **options)


# --- run


def test_run_writes_features_and_says_so(layertap_, place):
    code, out, err = layertap_("run", "c.yaml", "--plugin", TINY, "batch_size=1")
    assert code == 0
    assert out.splitlines()[0].startswith("3 of 3 images kept, 0 failed, in ")
    assert out.splitlines()[1] == "  features.1: float32 (3, 4, 6, 6) -> out"
    assert err == "extracting 3 images on cpu, batch size 1\n"  # how it went is said once
    features = layertap.open("out")
    assert features.ids == ["0.png", "1.png", "2.png"]
    assert features["features.1"].shape == (3, 4, 6, 6)
    assert features.manifest["batch_size"] == 1

    code, out, err = layertap_("--plugin", TINY, "run", "c.yaml", "batch_size=1")
    assert code == 0
    assert out.startswith("3 of 3 images kept, 0 failed, was already complete\n")


def test_quiet_run_prints_nothing(layertap_, place):
    assert layertap_("run", "c.yaml", "--plugin", TINY, "--quiet") == (0, "", "")
    assert Path("out/features.1.npy").is_file()


def test_json_report_is_json_and_nothing_else(layertap_, place):
    code, out, _ = layertap_("run", "c.yaml", "--plugin", TINY, "--json", "taps={first: features.1, 'é': features.2}")
    assert code == 0
    report = json.loads(out)
    assert report["planned"] == report["kept"] == 3
    assert (report["failed"], report["reasons"], report["path"], report["stored"]) == (0, {}, "out", True)
    assert report["taps"] == {
        "first": {"shape": [3, 4, 6, 6], "dtype": "float32"},
        "é": {"shape": [3, 2, 4, 4], "dtype": "float32"},
    }


def test_sink_without_a_folder_says_what_that_costs(layertap_, place):
    code, out, _ = layertap_("run", "c.yaml", "--plugin", TINY, "sink=discard")
    assert code == 0
    assert out.splitlines()[-1] == "  this sink has no output folder, so this run can be neither resumed nor verified"


def test_exit_3_when_images_failed(layertap_, place):
    Path("images/bad.png").write_text("no image")
    code, out, err = layertap_("run", "c.yaml", "--plugin", TINY)
    assert code == 3
    assert re.match(r"3 of 4 images kept, 1 failed, in \d+\.\d s, of which \d+\.\d s went into extracting\n", out)
    assert " of 4 images" not in err  # said once
    assert out.splitlines()[0].startswith("3 of 4 images kept, 1 failed, in ")
    assert out.splitlines()[-1].startswith("  failed: ")
    assert out.splitlines()[-1].endswith("1 (listed in out/failures.csv)")
    assert [failure["id"] for failure in layertap.open("out").failures] == ["bad.png"]
    assert layertap_("run", "c.yaml", "--plugin", TINY)[0] == 3  # complete already, and still not all well


def test_exit_4_when_a_bad_image_stops_the_run(layertap_, place):
    Path("images/0.png").write_text("no image")
    code, out, err = layertap_("run", "c.yaml", "--plugin", TINY, "on_error=fail", "observers=[]")
    assert (code, out) == (4, "")
    assert err.startswith("'0.png' cannot be used: ")


def test_exit_5_when_another_run_holds_the_output(layertap_, place):
    Path("second.py").write_text(
        "import layertap\n"
        "class Second(layertap.Observer):\n"
        "    def run_started(self, run):\n"
        f"        layertap.run({{**run.config, 'observers': []}}, plugins=[{TINY!r}])\n"
        "@layertap.hookimpl\n"
        "def register_observers(register):\n"
        "    register('second', Second)\n"
    )
    code, out, err = layertap_("run", "c.yaml", "--plugin", TINY, "--plugin", "second.py", "observers=second")
    assert (code, out) == (5, "")
    assert err.startswith("out: ")
    assert err.count("\n") == 1


def test_exit_6_when_the_output_is_of_another_configuration_or_not_ours(layertap_, place):
    assert layertap_("run", "c.yaml", "--plugin", TINY, "--quiet")[0] == 0
    code, out, err = layertap_("run", "c.yaml", "--plugin", TINY, "taps=features.0")
    assert (code, out) == (6, "")
    assert err.startswith("out: ")
    assert "taps" in err
    assert err.count("\n") == 1
    code, out, err = layertap_("run", "c.yaml", "--plugin", TINY, "sink.path=images")
    assert (code, out) == (6, "")
    assert err.startswith("images: ")
    assert err.count("\n") == 1
    assert sorted(path.name for path in Path("images").iterdir()) == ["0.png", "1.png", "2.png"]


def test_edited_plugin_of_ones_own_does_not_go_on_with_the_old_output(layertap_, place):
    Path("mine.py").write_text(Path(TINY).read_text())
    assert layertap_("run", "c.yaml", "--plugin", "mine.py", "--quiet")[0] == 0
    Path("mine.py").write_text(Path(TINY).read_text() + "# another\n")
    code, _, err = layertap_("run", "c.yaml", "--plugin", "mine.py")
    assert code == 6
    assert "mine.py" in err


def test_exit_1_when_a_model_raises(layertap_, place):
    code, out, err = layertap_("run", "c.yaml", "--plugin", TINY, "model.breaks=true")
    assert (code, out) == (1, "")
    assert "ValueError" in err
    assert "no forward today" in err
    assert err.count("\n") == 1
    assert not Path("out").exists()


def test_own_plugin_that_fails_is_named_with_the_type_that_it_lacks(layertap_, place):
    code, out, err = layertap_("run", "c.yaml", "--plugin", "absent.py")
    assert (code, out) == (2, "")
    assert "; the plugin absent.py could not be loaded: FileNotFoundError: no such file" in err


def test_own_plugin_that_fails_costs_no_run_that_does_without_it(layertap_, place):
    Path("broken.py").write_text("1 / 0")
    code, out, _ = layertap_("run", "c.yaml", "--plugin", "broken.py", "--plugin", TINY)
    assert code == 0
    assert out.startswith("3 of 3 images kept")


@pytest.mark.parametrize("command", [["plugins"], ["schema"], ["init", "new.yaml"]])
def test_what_is_made_of_all_plugins_names_those_that_are_missing(layertap_, place, command):
    code, out, err = layertap_(*command, "--plugin", "absent")
    assert (code, bool(out)) == (0, True)
    assert err == "absent could not be loaded: ModuleNotFoundError: No module named 'absent'\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "absent.yaml"], "absent.yaml: cannot be read: No such file or directory"),
        (["run", "c.yaml"], "c.yaml:1:1: model.type: no model has the type 'tiny'"),
        (["run", "c.yaml", "batch_size"], "command line: 'batch_size' is not an override"),
        (["run", "c.yaml", "--plugin", "absent.py"], "c.yaml:1:1: model.type: no model has the type 'tiny'"),
        (["run", "c.yaml", "--plugin", TINY, "btch_size=1"], "command line: btch_size: unknown key; did you mean"),
        (["run", "c.yaml", "--plugin", TINY, "batch_size=0"], "command line: batch_size: should be greater than or"),
        (
            ["run", "c.yaml", "--plugin", TINY, "device=gpu"],
            "command line: device: must be auto, cpu, cuda, cuda:N or mps",
        ),
        (["run", "c.yaml", "--plugin", TINY, "device=cuda:9"], "command line: device: 'cuda:9': no such device"),
        (["run", "c.yaml", "--plugin", TINY, "taps=features.7"], "command line: taps: the model has no layer"),
        (["run", "c.yaml", "--plugin", TINY, "source.path=absent"], "command line: source.path: cannot use"),
        (["run", "c.yaml", "--plugin", TINY, "source.path=c.yaml", "limit=x"], "command line: limit: should be a "),
        (["layers", "nothing/x"], "config: model.type: no model has the type 'nothing'"),
        (["layers", "absent.yaml"], "absent.yaml: cannot be read"),
        (["init", "no/such/folder.yaml"], "no/such/folder.yaml: cannot be written: No such file or directory"),
    ],
)
def test_exit_2_for_what_the_user_got_wrong(layertap_, place, arguments, message):
    code, out, err = layertap_(*arguments)
    assert (code, out) == (2, "")
    assert err.startswith(message)
    assert err.count("\n") == 1
    assert sorted(path.name for path in place.iterdir()) == ["c.yaml", "images"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["frob"], "No such command 'frob'"),
        (["run"], "Missing argument 'CONFIG'"),
        (["run", "c.yaml", "--nothing"], "No such option"),
        (["--plugin", "x.py"], "Missing command"),
        (["layers"], "Missing argument"),
        ([], "Usage: "),
    ],
)
def test_exit_2_for_a_wrong_command_line(layertap_, place, arguments, message):
    code, out, err = layertap_(*arguments)
    assert code == 2
    assert message in out + err


def test_command_line_needs_no_package_that_nobody_asked_for(tmp_path):
    """typer may carry its click inside: `import click` works on this machine by chance."""
    (tmp_path / "click.py").write_text("raise ImportError('not installed')\n")
    done = shell("frob", env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == 2
    assert "No such command 'frob'" in done.stderr


@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_interrupted_command_says_so_and_exits_with_its_code(tmp_path, name, code):
    (tmp_path / "stops.py").write_text(
        f"import os, signal, time\nos.kill(os.getpid(), signal.{name})\ntime.sleep(60)\n"
    )
    done = shell("plugins", "--plugin", tmp_path / "stops.py")
    assert (done.returncode, done.stdout) == (code, "")
    assert done.stderr == "stopped; what is committed is kept: run the same command again to resume\n"


def test_interrupted_run_goes_on_from_there(layertap_, place):
    Path("mine.py").write_text(
        "import os, signal\nfrom pathlib import Path\nimport layertap\n"
        "class Interrupting(layertap.Observer):\n"
        "    def shard_committed(self, number):\n"
        "        if not Path('interrupted').exists():\n"
        "            Path('interrupted').touch()\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "@layertap.hookimpl\n"
        "def register_observers(register):\n"
        "    register('interrupting', Interrupting)\n"
    )
    arguments = ["run", "c.yaml", "--plugin", TINY, "--plugin", "mine.py", "observers=interrupting", "batch_size=1"]
    code, out, err = layertap_(*arguments, "shard_rows=1")
    assert (code, out) == (130, "")
    assert err == "stopped; what is committed is kept: run the same command again to resume\n"
    assert layertap.open("out").manifest["status"] == "running"
    code, out, _ = layertap_(*arguments, "shard_rows=1")
    assert code == 0
    assert out.startswith("3 of 3 images kept, 0 failed, in ")


@pytest.mark.parametrize("again", [True, False], ids=["second signal", "patience"])
def test_run_that_hangs_on_its_way_out_is_left(tmp_path, again):
    (tmp_path / "hangs.py").write_text(
        "import os, signal, time\n"
        "try:\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "finally:\n"
        "    print('stopping', flush=True)\n"
        + ("    os.kill(os.getpid(), signal.SIGINT)\n" if again else "")
        + "    time.sleep(300)\n"
    )
    started = time.monotonic()
    done = shell("plugins", "--plugin", tmp_path / "hangs.py")
    assert (done.returncode, done.stdout) == (130, "stopping\n")
    assert time.monotonic() - started < 60


def test_ignored_interrupt_stays_ignored(tmp_path):
    (tmp_path / "stops.py").write_text(f"import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n{SOURCE}")
    script = f'trap "" INT; exec {sys.executable} -m layertap plugins --plugin stops.py'
    done = subprocess.run(["sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0
    assert "source\town\t" in done.stdout


def test_reader_that_goes_away_gets_no_traceback(tmp_path):
    script = f"{sys.executable} -m layertap schema | true"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=60)
    assert "Traceback" not in done.stderr


# --- layers


def test_layers_of_the_default_config_need_no_weights(layertap_):
    code, out, err = layertap_("layers", ROOT / "configs" / "alexnet.yaml")
    assert (code, err) == (0, "")
    rows = [re.split(r"\s{2,}", line.strip()) for line in out.splitlines()]
    assert rows[0] == ["layer", "type", "output", "dtype", "calls", "MB per image", "compute", "parameters", "tap"]
    assert rows[1] == [".", "AlexNet", "(N, 1000)", "float32", "1", "0.004", "100.0%", "61,100,840"]
    assert ["features.0", "Conv2d", "(N, 64, 55, 55)", "float32", "1", "0.774", "9.8%", "23,296"] in rows
    assert ["classifier.5", "ReLU", "(N, 4096)", "float32", "1", "0.016", "99.4%", "0", "<- classifier.5"] in rows
    assert [row for row in rows if row[-1].startswith("<-")] == [rows[-2]]
    assert len(rows) == 1 + 1 + 3 + 13 + 7
    assert all(line == line.rstrip() for line in out.splitlines())


def test_layers_of_a_model_by_its_name(layertap_, place):
    code, out, err = layertap_("layers", "tiny/net", "--plugin", TINY)
    assert (code, err) == (0, "")
    names = [line.split()[0] for line in out.splitlines()]
    assert names == ["layer", ".", "features", "features.0", "features.1", "features.2", "unused"]
    assert "<-" not in out
    assert "never ran" in out.splitlines()[-1]


def test_layers_need_no_source_and_no_sink_for_a_models_name(layertap_, place, monkeypatch):
    monkeypatch.setenv("LAYERTAP_PLUGINS", "")
    assert layertap_("layers", "tiny", "--plugin", TINY)[0] == 0


def test_layers_mark_the_taps_and_say_which_lie_nowhere(layertap_, place):
    code, out, err = layertap_(
        "layers", "c.yaml", "--plugin", TINY, "taps=['features.*', {layer: features.1, name: x}, no]"
    )
    marks = {line.split()[0]: line.partition("<- ")[2] for line in out.splitlines()}
    assert marks["features.0"] == "features.*"
    assert marks["features.1"] == "features.*, x"
    assert marks["unused"] == ""
    assert "'no'" in err
    assert code == 0


def test_layers_as_json(layertap_, place):
    code, out, _ = layertap_("layers", "tiny/net", "--plugin", TINY, "--json", "model.width=5", "taps=features.1")
    assert code == 0
    layers = {layer["layer"]: layer for layer in json.loads(out)}
    assert layers["features.1"] == {
        "layer": "features.1",
        "type": "ReLU",
        "calls": 1,
        "shapes": {"": ["N", 5, 6, 6]},
        "dtypes": {"": "float32"},
        "bytes_an_image": 4 * 5 * 6 * 6,
        "compute": pytest.approx(4860 / 6300),  # products of the first convolution, and of both
        "parameters": 0,
        "aliases": [],
        "taps": ["features.1"],
        "silent": None,
    }
    assert layers["unused"]["calls"] == 0
    assert layers["."]["parameters"] == 5 * 28 + 2 * (5 * 9 + 1) + 6


def test_layers_list_the_operations_of_a_layer(layertap_, place):
    code, out, err = layertap_("layers", "tiny/net", "--ops", "features.*", "--plugin", TINY)
    assert (code, err) == (0, "")
    rows = [re.split(r"\s{2,}", line) for line in out.splitlines()]
    assert rows[0] == ["operation", "output", "dtype"]
    assert rows[1] == ["features.0@conv2d", "(N, 4, 6, 6)", "float32"]
    _, out, _ = layertap_("layers", "tiny/net", "--ops", "features.1", "--plugin", TINY, "--json")
    assert json.loads(out) == [{"tap": "features.1@relu", "shapes": {"": ["N", 4, 6, 6]}, "dtypes": {"": "float32"}}]
    code, _, err = layertap_("layers", "tiny/net", "--ops", "feature", "--plugin", TINY)
    assert (code, err.count("\n")) == (2, 1)
    assert "the model has no layer 'feature'" in err


def test_layers_of_a_config_file_of_any_name(layertap_, place):
    Path("c.yaml").rename("c.conf")
    assert layertap_("layers", "c.conf", "--plugin", TINY)[0] == 0


def test_layers_of_a_model_that_raises_is_one_line(layertap_, place):
    code, out, err = layertap_("layers", "tiny/net", "model.breaks=true", "--plugin", TINY)
    assert (code, out) == (1, "")
    assert err == "the model raised ValueError on an input of shape (2, 3, 8, 8): no forward today\n"


def test_layers_on_a_narrow_terminal_keep_their_names_whole(layertap_, place, monkeypatch):
    master, slave = pty.openpty()
    try:
        monkeypatch.setenv("COLUMNS", "50")
        with open(slave, "w", closefd=False) as terminal:
            monkeypatch.setattr(sys, "stdout", terminal)
            code, _, _ = layertap_("layers", "c.yaml", "--plugin", TINY)
        shown = os.read(master, 65_536).decode()
    finally:
        os.close(master)
        os.close(slave)
    assert code == 0
    assert "\N{HORIZONTAL ELLIPSIS}" not in shown
    for name in ("features.0", "features.1", "features.2", "unused"):
        assert name in shown


# --- plugins, schema, init, version


def test_plugins_are_one_line_each_with_five_fields(layertap_):
    code, out, err = layertap_("plugins")
    assert (code, err) == (0, "")
    rows = [line.split("\t") for line in out.splitlines()]
    assert {len(row) for row in rows} == {5}
    (folder,) = [row for row in rows if row[:2] == ["source", "folder"]]
    assert folder[2:4] == ["layertap", layertap.__version__]
    assert Path(folder[4]).name == "folder.py"
    assert Path(folder[4]).is_file()


def test_plugins_as_json(layertap_, tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    for arguments in (["plugins", "--json", "--plugin"], ["--plugin"]):
        tail = [tmp_path / "mine.py"] + (["plugins", "--json"] if arguments == ["--plugin"] else [])
        code, out, _ = layertap_(*arguments, *tail)
        assert code == 0
        (own,) = [row for row in json.loads(out) if row["type"] == "own"]
        assert own["kind"] == "source"
        assert own["distribution"] == "mine.py"
        assert own["file"] == str(tmp_path / "mine.py")


def test_plugin_before_and_after_the_command_word_is_one_plugin(layertap_, tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    code, out, _ = layertap_("--plugin", tmp_path / "mine.py", "plugins", "--plugin", tmp_path / "mine.py")
    assert code == 0
    assert out.count("\town\t") == 1


def test_plugins_that_fail_are_listed_on_stderr(layertap_, tmp_path, monkeypatch):
    info = tmp_path / "broken-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: broken\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[layertap]\nsink-x = no_such_module\n")
    monkeypatch.syspath_prepend(tmp_path)
    code, out, err = layertap_("plugins")
    assert code == 0
    assert "sink\tnpy" in out
    assert err == "broken:sink-x could not be loaded: ModuleNotFoundError: No module named 'no_such_module'\n"


def test_schema_is_a_json_schema(layertap_, tmp_path):
    (tmp_path / "mine.py").write_text(SOURCE)
    code, out, _ = layertap_("schema", "--plugin", tmp_path / "mine.py")
    assert code == 0
    schema = json.loads(out)
    jsonschema.Draft202012Validator.check_schema(schema)
    assert jsonschema.Draft202012Validator(schema).is_valid({"source": "own", "sink": "memory"})


def test_init_writes_a_config_that_loads_and_its_schema(layertap_, place):
    code, out, _ = layertap_("init")
    assert code == 0
    assert (
        out
        == "wrote layertap.yaml and layertap.schema.json; now: layertap run layertap.yaml source.path=YOUR_IMAGES/\n"
    )
    text = Path("layertap.yaml").read_text()
    assert text.startswith("# yaml-language-server: $schema=layertap.schema.json\n")
    schema = json.loads(Path("layertap.schema.json").read_text())
    jsonschema.Draft202012Validator.check_schema(schema)
    arguments = [
        "run",
        "layertap.yaml",
        "--plugin",
        TINY,
        "--quiet",
        "model=tiny",
        "taps=features.0",
        "source.path=images",
    ]
    assert layertap_(*arguments) == (0, "", "")
    assert layertap.open("features").taps == ["features.0"]


def test_init_refuses_to_overwrite(layertap_, place):
    Path("layertap.yaml").write_text("mine")
    code, out, err = layertap_("init")
    assert (code, out) == (2, "")
    assert err == "layertap.yaml: already exists; name another file: layertap init FILE\n"
    assert Path("layertap.yaml").read_text() == "mine"
    assert not Path("layertap.schema.json").exists()
    Path("sub").mkdir()
    assert layertap_("init", "sub/other.yaml")[0] == 0
    assert sorted(path.name for path in Path("sub").iterdir()) == ["layertap.schema.json", "other.yaml"]


def test_version_and_help(layertap_):
    assert layertap_("--version") == (0, f"layertap {layertap.__version__}\n", "")
    code, out, _ = layertap_("--help")
    assert code == 0
    assert [word for word in ("run", "layers", "plugins", "schema", "init") if word not in out] == []
    for command in ("run", "layers", "plugins", "schema", "init"):
        assert layertap_(command, "--help")[0] == 0


def test_console_script_and_module_are_one_program():
    script = Path(sys.executable).with_name("layertap")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout) == (0, shell("--version").stdout)
