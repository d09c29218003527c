"""Installed plugins, the user's own, and everything that can be wrong with them."""

from __future__ import annotations

import itertools
import json
import re
import subprocess
import sys

import pytest

import layertap
from layertap.errors import ConfigError, PluginError
from layertap.plugins import KINDS, Plugins, guard

NUMBER = itertools.count()

SOURCE = """
import layertap
class Own(layertap.Source):
    def records(self):
        yield layertap.ImageRecord("a", b"")
@layertap.hookimpl
def register_sources(register):
    register({name!r}, Own)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Installs a distribution: METADATA, entry_points.txt and a module, in its own folder on the path."""

    def install(name, code, entries=("source-x",), version="1.0", metadata=True):
        number = next(NUMBER)
        folder, module = tmp_path / f"site{number}", f"stranger_{number}"
        info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        if metadata:
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        lines = [f"{entry} = {module}" if "=" not in entry else entry for entry in entries]
        (info / "entry_points.txt").write_text("\n".join(["[layertap]", *lines, ""]))
        if code is not None:
            (folder / f"{module}.py").write_text(code)
        monkeypatch.syspath_prepend(folder)
        return module

    yield install
    for module in [name for name in sys.modules if name.startswith("stranger_")]:
        del sys.modules[module]


@pytest.fixture
def own(tmp_path):
    """Writes a plugin file and gives its path."""

    def own(code, name="mine.py"):
        (tmp_path / name).write_text(code)
        return str(tmp_path / name)

    return own


def refusal(action, *arguments):
    with pytest.raises(ConfigError) as caught:
        action(*arguments)
    assert caught.value.code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- installed


def test_first_party_plugins_come_in_by_their_entry_points():
    plugins = Plugins.load()
    assert plugins.faults() == []
    known = {(r.kind, r.type_name) for r in plugins if r.distribution == "layertap"}
    assert known >= {
        ("model", "torchvision"),
        ("source", "folder"),
        ("source", "samples"),
        ("preprocessor", "imagenet"),
        ("reducer", "flatten"),
        ("reducer", "mean_pool"),
        ("sink", "npy"),
        ("sink", "memory"),
        ("sink", "discard"),
        ("observer", "progress"),
    }
    for registered in plugins:
        assert registered.plugin.startswith("layertap:") or registered.distribution != "layertap"
        if registered.distribution == "layertap":
            assert registered.plugin == f"layertap:{registered.kind}-{registered.type_name}"
            assert registered.named


def test_installed_plugin_is_registered_with_its_origin(install):
    module = install("stranger", SOURCE.format(name="odd"), ["source-odd"], "2.1")
    found = Plugins.load().find("source", "odd")
    assert (found.plugin, found.distribution, found.version) == ("stranger:source-odd", "stranger", "2.1")
    assert found.file == sys.modules[module].__file__


def test_several_entry_points_may_name_one_module(install):
    install("stranger", SOURCE.format(name="odd"), ["source-odd", "sink-odd", "reducer-odd"])
    plugins = Plugins.load()
    assert plugins.faults() == []
    assert plugins.find("source", "odd").distribution == "stranger"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("import no_such_package\n", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("raise ValueError('first line\\nsecond')\n", "ValueError: first line"),
        ("raise SystemExit(0)\n", "SystemExit: 0"),
        ("import layertap\nraise layertap.ConfigError('not on this machine')\n", "ConfigError: not on this machine"),
        ("def broken(:\n", "SyntaxError: invalid syntax"),
        (None, "ModuleNotFoundError: No module named 'stranger_"),
        ("", "TypeError: registers nothing"),
        (
            "import layertap\n@layertap.hookimpl\ndef register_source(register): ...\n",
            "PluginValidationError: unknown hook 'register_source' in plugin ",
        ),
        (
            "import layertap\n@layertap.hookimpl\ndef register_sources(table): ...\n",
            "PluginValidationError: Plugin 'stranger:source-x' for hook 'register_sources'",
        ),
        (
            "import layertap\n@layertap.hookimpl\ndef register_sources(register): register('x', layertap.Sink)\n",
            "TypeError: source 'x' is not a subclass of layertap.Source",
        ),
        (
            SOURCE.format(name="x").replace("    def", "    extra = ['photos']\n    def"),
            "TypeError: source 'x': its extra is a name, not ['photos']",
        ),
    ],
)
def test_failure_to_load_is_reported_where_a_type_is_unknown(install, code, reason):
    install("stranger", code)
    plugins = Plugins.load()
    assert plugins.find("source", "folder").distribution == "layertap"
    message = refusal(plugins.find, "source", "flder")
    assert plugins.failures["stranger:source-x"].startswith(reason)
    (fault,) = plugins.faults()
    assert fault.startswith(f"stranger:source-x could not be loaded: {reason}")
    assert message.startswith("no source has the type 'flder'; did you mean 'folder'? (installed: ")
    assert f"the plugin stranger:source-x could not be loaded: {reason}" in message


def test_misspelt_hook_is_reported_with_the_nearest(install):
    install("stranger", "import layertap\n@layertap.hookimpl\ndef register_source(register): ...\n")
    (reason,) = Plugins.load().faults()
    assert "; did you mean 'register_sources'" in reason


def test_plugin_that_fails_half_way_leaves_nothing(install):
    install("stranger", SOURCE.format(name="half") + "    register('other', object)\n")
    plugins = Plugins.load()
    assert "half" not in plugins.tables["source"]
    assert plugins.failures["stranger:source-x"] == "TypeError: source 'other' is not a subclass of layertap.Source"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("register('a b', Own)", "'a b' cannot be the name of a source"),
        ("register('a/b', Own)", "'a/b' cannot be the name of a source"),
        ("register('a\\tb', Own)", "'a\\tb' cannot be the name of a source"),
        ("register('', Own)", "'' cannot be the name of a source"),
        ("register(5, Own)", "5 cannot be the name of a source"),
        ("register('a', 5)", "source 'a' is not a subclass of layertap.Source"),
        ("register('a', Own())", "source 'a' is not a subclass of layertap.Source"),
        ("Own.Params = dict\n    register('a', Own)", "source 'a': its Params is not a subclass of layertap.Params"),
        (
            "class Params(layertap.Params):\n        type: str\n    Own.Params = Params\n    register('a', Own)",
            "source 'a': no parameter can be named 'type'",
        ),
    ],
)
def test_registration_that_could_only_go_wrong_later_is_refused(own, body, reason):
    path = own(SOURCE.format(name="x").replace("register('x', Own)", body))
    assert Plugins.load([path]).failures[path].startswith(f"TypeError: {reason}")


def test_word_of_the_pipeline_is_not_a_type(own):
    code = SOURCE.format(name="model").replace("Source", "Preprocessor").replace("sources", "preprocessors")
    path = own(code.replace("def records", "def prepare"))
    assert "'model' cannot be the name of a preprocessor" in Plugins.load([path]).failures[path]


def conflict(plugins, *asked):
    with pytest.raises(PluginError) as caught:
        plugins.find(*asked)
    assert caught.value.code == 2
    return str(caught.value)


def test_type_of_two_plugins_is_an_error_for_those_who_ask_for_it(install):
    first = install("one", SOURCE.format(name="odd"))
    second = install("two", SOURCE.format(name="odd"))
    plugins = Plugins.load()
    assert plugins.find("source", "folder").distribution == "layertap"
    message = conflict(plugins, "source", "odd")
    assert message.startswith("two plugins register the source type 'odd': one:source-x (")
    assert " and two:source-x (" in message
    assert f"{first}.py" in message
    assert f"{second}.py" in message
    assert "LAYERTAP_PLUGINS" in message
    assert plugins.get("source", "odd") is None
    assert "odd" not in plugins.tables["source"]
    assert [r.distribution for r in plugins if r.type_name == "odd"] == ["one", "two"]
    assert plugins.faults() == [message]


def test_two_entry_points_named_after_one_type_are_as_much_an_error(install):
    install("usurper", SOURCE.format(name="folder"), ["source-folder"])
    message = conflict(Plugins.load(), "source", "folder")
    assert message.startswith("two plugins register the source type 'folder': layertap:source-folder (")
    assert " and usurper:source-folder (" in message


def test_own_plugin_in_the_place_of_an_installed_one_is_an_error_for_its_type(own):
    path = own(SOURCE.format(name="folder"))
    plugins = Plugins.load([path])
    assert f"file:{path}" in conflict(plugins, "source", "folder")
    assert plugins.find("source", "samples").distribution == "layertap"


@pytest.mark.parametrize("enumerated_first", [False, True])
def test_plugin_whose_name_says_another_type_displaces_none(install, enumerated_first):
    install("usurper", SOURCE.format(name="folder") + "    register('x', Own)\n")
    plugins = Plugins.load()
    if enumerated_first:
        assert [r.distribution for r in plugins if (r.kind, r.type_name) == ("source", "folder")] == [
            "layertap",
            "usurper",
        ]
    assert plugins.find("source", "x").distribution == "usurper"
    assert plugins.find("source", "folder").distribution == "layertap"
    (fault,) = plugins.faults()
    assert "two plugins register the source type 'folder'" in fault
    assert "layertap:source-folder is used" in fault


def test_two_plugins_of_one_type_of_which_one_is_broken_are_no_conflict(install):
    install("one", "raise ValueError('oops')\n", ["source-odd"])
    install("two", SOURCE.format(name="odd"), ["source-odd"])
    assert Plugins.load().find("source", "odd").distribution == "two"


def test_entry_point_may_have_any_name(install):
    install("stranger", SOURCE.format(name="odd"), ["everything"])
    install("liar", SOURCE.format(name="even"), ["source-odd"])
    plugins = Plugins.load()
    assert plugins.find("source", "odd").plugin == "stranger:everything"
    assert plugins.find("source", "even").distribution == "liar"
    assert plugins.faults() == []


def test_only_the_plugin_of_the_type_is_imported(install, tmp_path):
    mark = f"open({str(tmp_path)!r} + '/' + __name__, 'w').close()\n"
    odd = install("one", mark + SOURCE.format(name="odd"), ["source-odd"])
    even = install("two", mark + SOURCE.format(name="even"), ["source-even"])
    broken = install("three", mark + "raise ValueError('oops')\n", ["sink-odd"])
    plugins = Plugins.load()
    assert not (tmp_path / odd).exists()
    assert plugins.find("source", "odd").distribution == "one"
    assert (tmp_path / odd).exists()
    assert not (tmp_path / even).exists()
    assert not (tmp_path / broken).exists()
    assert plugins.failures == {}
    assert "odd" in plugins.tables["source"]
    assert (tmp_path / even).exists()


def test_one_type_name_may_belong_to_several_kinds(install):
    code = SOURCE.format(name="odd").replace("Source", "Sink").replace("sources", "sinks").replace("records", "write")
    install("one", SOURCE.format(name="odd"))
    install("two", code, ["sink-x"])
    plugins = Plugins.load()
    assert plugins.find("source", "odd").distribution == "one"
    assert plugins.find("sink", "odd").distribution == "two"


def test_half_removed_distribution_does_not_stop_the_others(install):
    install("ghost", SOURCE.format(name="odd"), metadata=False)
    install("wrong", SOURCE.format(name="even"), ["source-y = nothing:there:really"])
    plugins = Plugins.load()
    assert (plugins.find("source", "odd").distribution, plugins.find("source", "odd").version) == ("-", "-")
    assert plugins.find("source", "folder")
    assert len(plugins.faults()) == 1
    assert list(plugins.failures) == ["wrong:source-y"]


def test_damaged_entry_points_of_one_distribution_cost_no_other_its_plugins(install):
    install("stranger", SOURCE.format(name="odd"), ["source-odd"])
    install("damaged", None, ["no line of an entry point\n[=\nx = y"])
    plugins = Plugins.load()
    assert plugins.find("source", "odd").distribution == "stranger"
    assert plugins.find("source", "folder").distribution == "layertap"
    (fault,) = plugins.faults()
    assert fault.startswith("damaged could not be loaded: its entry points cannot be read: ")


# --- LAYERTAP_PLUGINS


@pytest.mark.parametrize("limit", ["stranger", "source-odd", "stranger:source-odd", " source-odd , stranger,"])
def test_limit_names_distributions_or_entry_points(install, monkeypatch, limit):
    install("stranger", SOURCE.format(name="odd"), ["source-odd"])
    monkeypatch.setenv("LAYERTAP_PLUGINS", limit)
    plugins = Plugins.load()
    assert [r.type_name for r in plugins] == ["odd"]
    message = refusal(plugins.find, "source", "folder")
    assert message.endswith(f"; LAYERTAP_PLUGINS={limit} limits what is loaded")


def test_limited_plugin_is_not_even_imported(install, monkeypatch, tmp_path):
    install("stranger", f"open({str(tmp_path / 'canary')!r}, 'w')\n")
    monkeypatch.setenv("LAYERTAP_PLUGINS", "source-folder,sink-npy")
    plugins = Plugins.load()
    assert {(r.kind, r.type_name) for r in plugins} == {("source", "folder"), ("sink", "npy")}
    assert not (tmp_path / "canary").exists()


def test_empty_limit_loads_none(monkeypatch):
    monkeypatch.setenv("LAYERTAP_PLUGINS", "")
    assert list(Plugins.load()) == []


def test_unknown_word_of_the_limit_is_a_fault_and_costs_no_other(monkeypatch):
    monkeypatch.setenv("LAYERTAP_PLUGINS", "layertap,sorce-folder")
    plugins = Plugins.load()
    assert plugins.find("source", "folder").distribution == "layertap"
    (fault,) = plugins.faults()
    assert fault.startswith(
        "'sorce-folder' of LAYERTAP_PLUGINS could not be loaded: no installed plugin or distribution"
    )
    assert "'source-folder'" in fault
    assert fault in refusal(plugins.find, "source", "mine")


def test_limit_leaves_the_users_own_plugins_alone(own, monkeypatch):
    monkeypatch.setenv("LAYERTAP_PLUGINS", "")
    assert [r.type_name for r in Plugins.load([own(SOURCE.format(name="odd"))])] == ["odd"]


# --- the user's own


def test_own_file_and_own_module_are_loaded(own, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    path = own(SOURCE.format(name="odd"))
    own(SOURCE.format(name="even"), "stranger_own.py")
    plugins = Plugins.load([path, "stranger_own"])
    odd, even = plugins.find("source", "odd"), plugins.find("source", "even")
    assert (odd.plugin, odd.distribution, odd.file) == (f"file:{path}", "mine.py", path)
    assert (even.plugin, even.distribution) == ("module:stranger_own", "stranger_own")
    del sys.modules["stranger_own"]


def test_version_of_an_own_plugin_changes_with_its_text(own):
    first = Plugins.load([own(SOURCE.format(name="odd"))]).find("source", "odd")
    again = Plugins.load([own(SOURCE.format(name="odd"), "copy.py")]).find("source", "odd")
    edited = Plugins.load([own(SOURCE.format(name="odd") + "# edited\n")]).find("source", "odd")
    assert first.version == again.version != edited.version
    assert first.version.startswith("sha256:")


def test_own_file_runs_once_until_it_is_edited(own, tmp_path):
    count = f"with open({str(tmp_path / 'runs')!r}, 'a') as file: file.write('x')\n"
    path = own(count + SOURCE.format(name="odd"))
    classes = {Plugins.load([path, path]).find("source", "odd").cls, Plugins.load([path]).find("source", "odd").cls}
    assert len(classes) == 1
    assert (tmp_path / "runs").read_text() == "x"
    own(count + SOURCE.format(name="new"))  # of the same length, within the same second
    assert "odd" not in Plugins.load([path]).tables["source"]
    assert "new" in Plugins.load([path]).tables["source"]
    assert (tmp_path / "runs").read_text() == "xx"
    assert not (tmp_path / "__pycache__").exists()


def test_own_plugin_that_is_also_installed_is_not_a_duplicate():
    assert Plugins.load(["layertap_plugins.sources.folder"]).find("source", "folder").distribution == "layertap"


@pytest.mark.parametrize(
    ("code", "reason"),
    [
        ("raise ValueError('oops')\n", "ValueError: oops"),
        ("raise SystemExit('leaving')\n", "SystemExit: leaving"),
        ("import no_such_package\n", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("x = 1\n", "TypeError: registers nothing; add a function such as `@layertap.hookimpl def register_sources(r"),
        ("def register_sources(register): ...\n", "TypeError: registers nothing"),
        (
            SOURCE.format(name="x").replace("Source", "Sink"),
            "TypeError: source 'x' is not a subclass of layertap.Source",
        ),
        (
            "import layertap\n@layertap.hookimpl\ndef register_souces(register): ...\n",
            "PluginValidationError: unknown hook 'register_souces'",
        ),
        ("def broken(:\n", "SyntaxError: "),
    ],
)
def test_own_plugin_that_fails_is_reported_with_its_type_and_costs_no_other(own, code, reason):
    path, good = own(code), own(SOURCE.format(name="odd"), "good.py")
    for _ in range(2):  # the second time is no better than the first
        plugins = Plugins.load([path, good])
        assert plugins.find("source", "odd").distribution == "good.py"
        assert plugins.find("source", "folder").distribution == "layertap"
        assert f"; the plugin {path} could not be loaded: {reason}" in refusal(plugins.find, "source", "mine")


def test_own_plugin_that_does_not_exist_is_reported_with_its_type(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "near.py").touch()
    (tmp_path / "text.txt").touch()
    failures = Plugins.load(["absent.py", "absent_module", "near", "text.txt"]).failures
    assert failures["absent.py"] == "FileNotFoundError: no such file"
    assert "No module named 'absent_module'" in failures["absent_module"]
    assert failures["near"].endswith("; there is a file near.py")
    assert failures["text.txt"] == "ImportError: not a Python file"
    odd = ("", ".", "..x", "a b", "x/y")
    assert set(Plugins.load(odd).failures) == set(odd)


def test_unknown_type_without_any_plugin_says_so(monkeypatch):
    monkeypatch.setenv("LAYERTAP_PLUGINS", "")
    assert "no plugin is installed: install layertap itself" in refusal(Plugins.load().find, "sink", "npy")


# --- errors that plugins raise


class Raises(layertap.Source):
    extra = "photos"

    def records(self):
        raise NotImplementedError


def test_what_a_plugin_raises_is_one_line_that_names_it_and_the_place():
    def deep():
        raise ValueError("first line\nsecond line")

    with pytest.raises(PluginError) as caught, guard(Raises()):
        deep()
    assert re.fullmatch(
        r"the source Raises raised ValueError: first line \(at .*test_plugins\.py:\d+\)", str(caught.value)
    )


def test_plugin_that_exits_does_not_end_the_program():
    with pytest.raises(PluginError, match="the source Raises raised SystemExit: 0"), guard(Raises):
        sys.exit(0)


def test_errors_of_layertap_and_interrupts_pass():
    for error in (layertap.ConfigError("x"), layertap.ImageError("x"), KeyboardInterrupt(), GeneratorExit()):
        with pytest.raises(type(error)) as caught, guard(Raises):
            raise error
        assert caught.value is error


def test_missing_package_names_what_to_install(install):
    code = SOURCE.format(name="odd").replace("    def", "    extra = 'photos'\n    def")
    install("stranger-dist", code)
    cls = Plugins.load().find("source", "odd").cls
    with pytest.raises(PluginError) as caught, guard(cls):
        import no_such_package  # noqa: F401
    assert (
        str(caught.value) == "the source Own needs the package 'no_such_package': pip install 'stranger-dist[photos]'"
    )
    assert caught.value.code == 2


def test_missing_package_is_named_beside_a_damaged_entry_point(install):
    install("alpha", None, ["source-y = nothing:there:really"])
    cls = Plugins.load().find("source", "samples").cls
    with pytest.raises(PluginError, match=r"pip install 'layertap\[samples\]'$"), guard(cls):
        raise ModuleNotFoundError("No module named 'skimage'", name="skimage")


def test_missing_package_of_a_first_party_plugin_names_layertap():
    cls = Plugins.load().find("source", "samples").cls
    with pytest.raises(PluginError, match=r"pip install 'layertap\[samples\]'$"), guard(cls):
        raise ModuleNotFoundError("No module named 'skimage'", name="skimage")


# --- the cost of loading

WATCH = """
import sys
heavy = {"torch", "torchvision", "numpy", "PIL", "rich", "pydantic", "layertap_plugins"}
def loaded():
    return sorted(heavy & set(sys.modules))
import layertap
said = {"import": loaded()}
from layertap.cli.main import main
for name, arguments in (("help", ["--help"]), ("plugins", ["plugins"])):
    sys.argv = ["layertap", *arguments]
    try:
        main()
    except SystemExit as end:
        assert not end.code, end.code
    said[name] = loaded()
import json
print(json.dumps(said), file=sys.stderr)
"""


def test_help_and_plugins_load_neither_torch_nor_numpy():
    done = subprocess.run([sys.executable, "-c", WATCH], capture_output=True, text=True, check=True)
    said = json.loads(done.stderr)
    assert said["import"] == []
    assert said["help"] == []
    assert set(said["plugins"]) == {"pydantic", "layertap_plugins"}


def test_configuration_imports_only_the_plugins_that_it_names():
    script = """
import sys
from layertap.config.loading import load_config
from layertap.plugins import Plugins
load_config({"source": "samples", "sink": "memory"}, {"model.name": "resnet18"}, Plugins.load())
print(*sorted(name for name in sys.modules if name.startswith("layertap_plugins") and name.count(".") == 2))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = {name.removeprefix("layertap_plugins.") for name in done.stdout.split()}
    assert {"sources.samples", "sinks.memory", "models.torchvision", "observers.progress"} <= loaded
    assert not loaded & {"sinks.parquet", "sinks.npy", "sources.folder", "models.timm", "reducers.flatten"}


def test_list_of_plugins_works_whatever_is_broken(install, own, monkeypatch):
    install("one", SOURCE.format(name="odd"))
    install("two", SOURCE.format(name="odd"))
    install("three", "raise ValueError('oops')\n", ["sink-x"])
    factory = (
        "    class Params(layertap.Params):\n        a: str = __import__('pydantic').Field(default_factory=fails)\n"
    )
    code = SOURCE.format(name="even").replace("    def", factory + "    def", 1)
    install("four", "def fails(): raise OSError('not here')\n" + code, ["source-even"])
    monkeypatch.setenv("LAYERTAP_PLUGINS", "layertap,one,two,three,four,five")
    monkeypatch.setenv("PYTHONPATH", ":".join(sys.path))
    command = [sys.executable, "-m", "layertap", "--plugin", own("1 / 0"), "plugins"]
    for extra in ([], ["--json"]):
        done = subprocess.run([*command, *extra], capture_output=True, text=True, check=True)
        for word in ("folder", "odd", "even"):
            assert word in done.stdout
        for fault in (
            "three:sink-x could",
            "mine.py could",
            "'five' of LAYERTAP_PLUGINS could",
            "two plugins register",
        ):
            assert fault in done.stderr
    assert "unknown: OSError('not here')" in done.stdout


def test_every_kind_has_a_table_and_a_hook():
    from layertap.hookspecs import Registration

    assert {f"register_{kind}s" for kind in KINDS} == {name for name in vars(Registration) if name[0] != "_"}
    assert set(Plugins.load().tables) == set(KINDS)
