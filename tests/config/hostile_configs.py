"""Configurations that try to become code, to fill the memory, or to be taken for something else."""

from __future__ import annotations

import codecs
import contextlib
import io
import json
import os
import shutil
import signal
import sys
import time
from pathlib import Path
from typing import Any

from layertap.cli.main import main

PHOTOS, OUT = "photos", "out"
CANARY_MODULE, CANARY_PACKAGE = "canary_module", "canary_package"
"""Importable; both leave a file behind when they are."""

TINY = Path(__file__).parents[1] / "tiny.py"

_LINES = {
    "model": "tiny",
    "taps": "[features.0]",
    "source": f"{{type: folder, path: {PHOTOS}}}",
    "sink": f"{{type: npy, path: {OUT}}}",
    "device": "cpu",
    "batch_size": "4",
}


def with_(**lines: str) -> str:
    """An honest configuration with these lines in the place of its own; lines of their own come last."""
    return "".join(f"{key}: {value}\n" for key, value in {**_LINES, **lines}.items())


HONEST = with_()

_TAG = "is not allowed: a configuration is plain data"
_WEIGHTS = "{type: torchvision, name: squeezenet1_1, weights: %s}"
_ALIASES = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{after}: &{after} [{', '.join([f'*{before}'] * 9)}]\n" for before, after in zip("abcdefg", "bcdefgh", strict=True)
)

# Its name -> the text, and what the message says: from the place on, where it has one.
_TAGS = {
    "object/apply": (with_(model="!!python/object/apply:os.system ['touch canary']"), f"os.system {_TAG}"),
    "object/new": (with_(model="!!python/object/new:os.system ['touch canary']"), ":1:8: the tag "),
    "name": (with_(taps="[!!python/name:os.system '']"), ":2:8: the tag "),
    "module": (with_(taps="!!python/module:canary_module ''"), ":2:7: the tag "),
    "tuple": (with_(taps="!!python/tuple [features.0]"), ":2:7: the tag "),
    "local": (with_(model="!tiny {name: x}"), ":1:8: the tag "),
    "include": (with_(model="!include /etc/passwd"), ":1:8: the tag "),
    "environment": (with_(sink="!ENV ${HOME}"), ":4:7: the tag "),
    "binary": (with_(model="!!binary dGlueQ=="), ":1:8: the tag "),
    "verbatim": (with_(model="!<tag:yaml.org,2002:python/name:os.system> ''"), ":1:8: the tag "),
    "shorthand": ("%TAG !p! tag:yaml.org,2002:python/\n---\n" + with_(model="!p!name:os.system ''"), ":3:8: the tag "),
    "on a key": (with_() + "!!python/name:os.system x: 1\n", ":7:1: the tag "),
    "on all": ("!!python/object/apply:os.system ['touch canary']\n", ":1:1: the tag "),
}
_CODE = {
    "target": (with_(model="{_target_: os.system, command: touch canary}"), ":1:1: model: has no `type`"),
    "target beside a type": (with_(model="{type: tiny, _target_: canary_module.Model}"), "model._target_: unknown key"),
    "target in a parameter": (with_(source="{type: folder, path: {_target_: os.getcwd}}"), ":3:24: source.path: "),
    "module and name": (with_(model="{type: 'os:system'}"), ":1:9: model.type: no model has the type 'os:system'"),
    "dotted": (with_(model="{type: canary_module.Model}"), ":1:9: model.type: no model has the type"),
    "dotted, short": (with_(model="canary_module.Model/x"), "no model has the type 'canary_module.Model'"),
    "only a module": (with_(model="{type: canary_module}"), ":1:9: model.type: "),
    "path": (with_(model="{type: ../canary_module}"), ":1:9: model.type: "),
    "file": (with_(model="{type: ./canary_module.py}"), ":1:9: model.type: "),
    "expression": (with_(model="{type: \"__import__('os').system('touch canary')\"}"), ":1:9: model.type: "),
    "dunder": (with_(model="{type: tiny, __class__: canary_module.Model}"), ":1:21: model.__class__: unknown key"),
    "source": (with_(source="{type: 'canary_module:Source'}"), ":3:10: source.type: no source has the type"),
    "sink": (with_(sink="{type: canary_module.Sink, path: out}"), ":4:8: sink.type: no sink has the type"),
    "preprocessor": (with_(preprocess="canary_module.Prepare"), ":7:1: preprocess.type: no preprocessor has the type"),
    "reducer": (with_(taps="[{layer: features.0, reduce: ['os:system']}]"), "taps[0].reduce[0]"),
    "reducer that takes code": (
        with_(taps="[{layer: features.0, reduce: {type: mean_pool, function: os.system}}]"),
        "unknown key",
    ),
    "observer": (with_(observers="[canary_module.Observer]"), ":7:13: observers[0].type: no observer has the type"),
    "observer that takes a class": (with_(observers="[{type: progress, class: canary_module.X}]"), "unknown key"),
    "plugins": (with_(plugins="[canary_module]"), ":7:1: plugins: unknown key"),
    "import": (with_(**{"import": "canary_module"}), ":7:1: import: unknown key"),
    "hydra": (with_(defaults="[_self_]", hydra="{run: {dir: /}}"), ":7:1: defaults: unknown key"),
    "logging": (
        with_(logging="{version: 1, handlers: {h: {(): canary_module.handler, class: canary_module.Handler}}}"),
        ":7:1: logging: unknown key",
    ),
    "environment, text": (with_(source="{type: folder, path: '${HOME}'}"), "the environment variable ${HOME}"),
    "environment, number": (with_(batch_size="${oc.env:HOME}"), ":6:1: batch_size: should be a valid integer"),
    "home": (with_(source="{type: folder, path: ~}"), ":3:24: source.path: should be a valid string"),
    "home of a user": (with_(source="{type: folder, path: ~root/none/such}"), "/none/such'"),
    "template": (with_(batch_size="'{{ 2 * 2 }}'"), ":6:1: batch_size: should be a valid integer"),
    "template, bare": (with_(batch_size="{{ 2 * 2 }}"), ":6:"),
    "shell": (with_(source="{type: folder, path: '$(touch canary)'}"), "cannot use '$(touch canary)'"),
    "shell, back": (with_(source="{type: folder, path: '`touch canary`'}"), "cannot use '`touch canary`'"),
    "format": (with_(source="{type: folder, path: '{0.__class__}'}"), "cannot use '{0.__class__}'"),
    "merge": ("a: &a {type: tiny}\n" + with_(model="{<<: *a}"), ":1:1: a: unknown key"),
    "merge into a part": (with_(model="{type: tiny, <<: {name: x}}"), ":1:21: model.<<: unknown key"),
}
_REACHING = {
    "package above": (with_(model=_WEIGHTS % "package:canary_package/../x.pth"), "leads out of the package"),
    "package, absolute": (with_(model=_WEIGHTS % "package:canary_package//etc/passwd"), "leads out of the package"),
    "package without": (with_(model=_WEIGHTS % "package:canary_package/x.pth"), "has no file 'x.pth'"),
    "package below": (with_(model=_WEIGHTS % "package:canary_package.below/x.pth"), "no dots or dashes"),
    "package of one module": (with_(model=_WEIGHTS % "package:canary_module/x.pth"), "no package 'canary_module'"),
    "its code as weights": (with_(model=_WEIGHTS % "package:canary_package/__init__.py"), "is not a weights file"),
    "other file": (with_(model=_WEIGHTS % "/etc/passwd"), "'/etc/passwd' is not a weights file"),
    "device file": (with_(model=_WEIGHTS % "/dev/zero"), ":1:"),
    "address": (with_(model=_WEIGHTS % "http://weights.invalid/x.pth"), "is not a file"),
    "argument that fetches": (with_(model=(_WEIGHTS % "random")[:-1] + ", args: {weights: DEFAULT}}"), "model.args"),
    "argument that is code": (with_(model=(_WEIGHTS % "random")[:-1] + ", args: {dropout: os.system}}"), "model.args"),
}
_SHAPES = {
    "alias bomb": (_ALIASES, "holds more than 10,000 values"),
    "alias of itself": (with_(args="&x [*x]"), ":7:7: holds more than 10,000 values"),
    "alias of nothing": (with_(model="*x"), ":1:8: found undefined alias"),
    "3,000 deep": (with_(args="[" * 3_000 + "]" * 3_000), ":7:"),
    "900,000 open": (with_(args="[" * 900_000), ":7:"),
    "5,000 digits": (with_(batch_size="9" * 5_000), ":6:13: a number of 5,000 digits"),
    "key twice": (with_() + "model: tiny\n", ":7:1: duplicate key 'model' (first on line 1)"),
    "key twice inside": (with_(model="{type: tiny, type: tiny}"), ":1:21: duplicate key 'type'"),
    "tab": ("model:\n\ttype: tiny\n", ":2:1: while scanning for the next token"),
    "mark inside": (with_(model="\ufefftiny"), "'\\ufefftiny'"),
    "UTF-16": (with_().encode("utf-16"), ":1:1: is not UTF-8 text"),
    "UTF-32": (with_().encode("utf-32"), ":1:1: is not UTF-8 text"),
    "latin-1": (with_(model="ä").encode("latin-1"), ":1:8: is not UTF-8 text"),
    "two documents": (with_() + "---\n" + with_(), ":7:1: expected a single document"),
    "empty": ("", ":1:1: does not hold a mapping"),
    "comment": ("# model: tiny\n", ":1:1: does not hold a mapping"),
    "list": ("- model: tiny\n", ":1:1: does not hold a mapping"),
    "text": ("model tiny\n", ":1:1: does not hold a mapping"),
    "2 MB": (with_() + "#" * 2_000_000, "is larger than 1,000,000 bytes"),
    "binary": (b"\x7fELF\x02\x01\x01\0\0\xff\xfe", "is not UTF-8 text"),
    "NUL": (with_(model="ti\0ny"), ":1:10: the character U+0000 is not allowed"),
    "escape": (with_(model="\x1b[2Jtiny"), ":1:8: the character U+001B is not allowed"),
    "escape, quoted": (with_(model='"\\e[2Jtiny\\r\\n"'), "\\x1b[2Jtiny"),
    "surrogate": (with_(model='"\\uD800"'), ":1:"),
    "unclosed": (with_(model="{type: tiny"), ":2:"),
    "key that is a list": (with_() + "? [a]\n: 1\n", ":7:3: a key must be a string"),
    "key that is a number": (with_() + "5: 1\n", ":7:1: a key must be a string"),
}
_VALUES = {
    "norway": (with_(early_stop="no"), ":7:1: early_stop: should be a valid boolean, not 'no'; write true or false"),
    "off": (with_(on_error="off"), ":7:1: on_error: "),
    "sexagesimal": (with_(batch_size="12:30:45"), ":6:1: batch_size: should be a valid integer, not '12:30:45'"),
    "90 digits": (with_(batch_size="9" * 90), ":6:1: batch_size: "),
    "threads": (with_(workers="1000000000"), ":7:1: workers: "),
    "pattern that finds nothing": (with_(taps="['re:(a+)+$']"), ":2:8: taps[0]: no layer matches"),
    "pattern that takes forever": (
        with_(taps="['re:((.|.?.|.?.?.)+)+!']"),
        ":2:8: taps[0]: 're:((.|.?.|.?.?.)+)+!' is too slow",
    ),
    "pattern that counts forever": (
        with_(taps="['re:(((((){1000}){1000}){1000}){1000}){1000}']"),
        ":2:8: taps[0]: 're:(((((){1000}){1000}){1000}){1000}){1000}' ",
    ),
    "1e3": (with_(batch_size="1e3"), ":6:1: batch_size: should be a valid integer, not 1000.0"),
    "quoted number": (with_(batch_size="'4'"), ":6:1: batch_size: should be a valid integer, not '4'"),
    "0": (with_(batch_size="0"), ":6:1: batch_size: should be greater than or equal to 1, not 0"),
    "-1": (with_(batch_size="-1"), ":6:1: batch_size: "),
    "true": (with_(batch_size="true"), ":6:1: batch_size: should be a valid integer, not True"),
    "infinite": (with_(batch_size=".inf"), ":6:1: batch_size: "),
    "no number": (with_(max_failures=".nan"), ":7:1: max_failures: "),
    "overflow": (with_(image_timeout="1e999"), ":7:1: image_timeout: "),
    "null": (with_(batch_size="null"), ":6:1: batch_size: "),
    "mapping": (with_(batch_size="{a: 1}"), ":6:1: batch_size: "),
    "layer 5": (with_(taps="[5]"), ":2:8: taps[0]: a tap is a string, but this was read as 5: quote it"),
    "layer 1.5": (with_(taps="1.5"), ":2:1: taps: a tap is a string, but this was read as 1.5"),
    "no layer": (with_(taps="[]"), ":2:1: taps: "),
    "layer that is none": (with_(taps="[featres.0]"), "featres.0"),
    "open bracket": (with_(taps="['features[']"), ":2:8: taps[0]: the tap 'features['"),
    "no pattern": (with_(taps="['re:(']"), ":2:8: taps[0]: "),
    "pattern that is too large": (with_(taps="['re:a{99999999999}']"), ":2:8: taps[0]: "),
    "type of number": (with_(taps="[{layer: features.0, dtype: object}]"), ":2:28: taps[0].dtype: "),
    "name that leads out": (with_(taps="[{layer: nowhere, name: ../../canary}]"), "nowhere"),
    "cuda:99": (with_(device="cuda:99"), ":5:1: device: 'cuda:99': no such device"),
    "device and more": (with_(device="'cuda:0; touch canary'"), ":5:1: device: "),
    "mode": (with_(mode="overwrite"), ":7:1: mode: "),
    "rows": (with_(shard_rows="3"), ":7:1: shard_rows: 3 is not a multiple of batch_size (4)"),
    "unknown key": (with_(btach_size="4"), ":7:1: btach_size: unknown key; did you mean 'batch_size'?"),
    "missing key": (with_().replace("source", "sauce"), ":3:1: sauce: unknown key; did you mean 'source'?"),
    "no folder": (with_(source="{type: folder, path: nowhere}"), "cannot use 'nowhere'"),
    "no images": (with_(source="{type: folder, path: photos, include: ['*/../*']}"), "no images in 'photos'"),
}

CONFIGS: dict[str, tuple[str | bytes, str]] = {
    f"{group}: {name}": (text, said)
    for group, configs in (
        ("tag", _TAGS),
        ("code", _CODE),
        ("reach", _REACHING),
        ("shape", _SHAPES),
        ("value", _VALUES),
    )
    for name, (text, said) in configs.items()
}

# A regular expression that could take forever is matched by a process of layertap's own, which can be stopped.
MATCHED_APART = {f"value: pattern that {what}" for what in ("finds nothing", "takes forever", "counts forever")}


def command(*arguments: object) -> tuple[int, str]:
    """Runs the command line in this process: its exit code, and what it said on stderr."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    argv, said, code = sys.argv, io.StringIO(), 0
    sys.argv = ["layertap", *map(str, arguments)]
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            main()
    except SystemExit as done:
        code = int(done.code or 0)
    finally:
        sys.argv = argv
        for number, handler in handlers.items():
            signal.signal(number, handler)
    return code, said.getvalue()


def watch() -> None:
    """Runs every configuration in the working directory and prints, as JSON, what came of it and what Python did."""
    import torchvision.models  # noqa: F401  (what is loaded now is not loaded below)

    for encoding in ("ascii", "unicode_escape"):  # each is a module, which messages need
        codecs.lookup(encoding)
    events: list[str] = []
    watching = False

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if watching and (told := _told(event, arguments)):
            events.append(told)

    def watched(text: str | bytes) -> dict[str, Any]:
        nonlocal watching
        Path("c.yaml").write_bytes(text if isinstance(text, bytes) else text.encode())
        events.clear()
        watching, started = True, time.monotonic()
        code, said = command("run", "c.yaml", "--plugin", TINY, "--quiet")
        watching = False
        left = sorted(set(os.listdir()) - {"c.yaml", PHOTOS, "site"})
        return {"code": code, "said": said, "left": left, "events": [*events], "seconds": time.monotonic() - started}

    sys.addaudithook(hook)
    for _ in range(2):  # the first one imports
        honest = watched(HONEST)
        shutil.rmtree(OUT)
    # The command line's own annotations are text, which typer compiles every time.
    usual = {event for event in honest["events"] if event.startswith(("compile", "exec"))}
    results = {name: watched(text) for name, (text, _) in CONFIGS.items()}
    for found in results.values():
        found["events"] = sorted(set(found["events"]) - usual)
    print(json.dumps({"honest": honest, "results": results}))


def _told(event: str, arguments: tuple[Any, ...]) -> str | None:
    """An audit event that could be somebody's code at work, in a line."""
    if event == "open":
        path, mode, flags = arguments
        if isinstance(path, int):  # a descriptor, as of a pipe
            return None
        writes = set(mode or "") & set("wax+") or (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        return f"open {path}" if writes else None
    if event == "exec":
        return f"exec in {arguments[0].co_filename}"
    if event in ("import", "compile", "os.system", "os.exec", "os.posix_spawn", "os.fork", "ctypes.dlopen"):
        return f"{event} {arguments[0]}"
    return event if event.startswith(("subprocess.", "socket.", "os.remove", "os.mkdir", "os.rename")) else None
