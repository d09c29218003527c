"""The command line: parse, call one function, print. Importing it loads neither torch nor numpy nor the plugins."""

from __future__ import annotations

import io
import json
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn

import typer

from layertap.errors import ConfigError, LayertapError

if TYPE_CHECKING:
    from layertap.anatomy import Anatomy
    from layertap.records import Report

SOME_FAILED, INTERRUPTED, TERMINATED = 3, 130, 143

# What a wrong command line raises: click's ClickException. Newer versions of typer carry a click of their own inside,
# and then it is not that of the package click, which may not be installed at all.
_UsageFault: Any = next(cls for cls in typer.BadParameter.__mro__ if cls.__name__ == "ClickException")

app = typer.Typer(
    help="Extract features: point it at images, name layers, get their activations.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

Own = Annotated[
    list[str] | None,
    typer.Option("--plugin", metavar="FILE_OR_MODULE", help="Load a plugin of your own. May be given several times."),
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Values laid over it, as in batch_size=32.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class _Stopped(BaseException):
    """SIGINT or SIGTERM, on its way out through every `finally`; unlike KeyboardInterrupt, typer lets it pass."""

    def __init__(self, code: int) -> None:
        self.code = code


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"layertap {version('layertap')}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    plugin: Own = None,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    context.obj = plugin or []


@app.command()
def run(
    context: typer.Context,
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    overrides: Overrides = None,
    plugin: Own = None,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    as_json: Json = False,
) -> int:
    """Extract what CONFIG asks for. The same command finishes a run that was interrupted."""
    from layertap.config import load_config, parse_overrides
    from layertap.plugins import Plugins

    own = [*context.obj, *(plugin or [])]
    loaded = load_config(config, parse_overrides(overrides or []), Plugins.load(own))
    if quiet:
        loaded = loaded.model_copy(update={"observers": tuple(o for o in loaded.observers if o.type != "progress")})

    from layertap import pipeline

    report = pipeline.run(loaded, plugins=own)
    if as_json:
        typer.echo(json.dumps(_report_data(report), indent=2))
    elif not quiet:
        typer.echo(_summary(report))
    return SOME_FAILED if report.failed else 0


@app.command()
def layers(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="CONFIG_OR_MODEL", help="A YAML file, or TYPE/NAME.")],
    overrides: Overrides = None,
    plugin: Own = None,
    as_json: Json = False,
) -> None:
    """List every layer: type, output shape, calls a forward, parameters, and what the taps match."""
    from layertap.anatomy import look_at
    from layertap.config import parse_overrides

    found = look_at(target, parse_overrides(overrides or []), [*context.obj, *(plugin or [])])
    if as_json:
        typer.echo(json.dumps([_layer_data(found, index) for index in range(len(found.layers))], indent=2))
    else:
        _print_table(["layer", "type", "output", "calls", "parameters", "tap"], _layer_rows(found))
    for reason in found.unmatched:
        typer.echo(reason, err=True)


@app.command()
def plugins(context: typer.Context, plugin: Own = None, as_json: Json = False) -> None:
    """List every plugin: kind, type, distribution, version and file."""
    from layertap.plugins import Plugins

    known = Plugins.load([*context.obj, *(plugin or [])])
    columns = ["kind", "type", "distribution", "version", "file"]
    rows = [[r.kind, r.type_name, r.distribution, r.version, r.file] for r in known]
    if as_json:
        typer.echo(json.dumps([dict(zip(columns, row, strict=True)) for row in rows], indent=2))
    elif sys.stdout.isatty():
        _print_table(columns, rows)
    else:
        for row in rows:
            typer.echo("\t".join(row))
    for name, reason in known.failures.items():
        typer.echo(f"{name} could not be loaded: {reason}", err=True)


@app.command()
def schema(context: typer.Context, plugin: Own = None) -> None:
    """Print the JSON Schema of a configuration, with every installed plugin's parameters."""
    from layertap.plugins import Plugins
    from layertap.schema import config_schema

    typer.echo(json.dumps(config_schema(Plugins.load([*context.obj, *(plugin or [])])), indent=2))


@app.command()
def init(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="[FILE]", help="The file to write.")] = Path("layertap.yaml"),
    plugin: Own = None,
) -> None:
    """Write a commented configuration to start from, and its schema for editors."""
    from importlib.resources import files

    from layertap.plugins import Plugins
    from layertap.schema import config_schema

    text = files("layertap").joinpath("starter.yaml").read_text("utf-8")
    described = config_schema(Plugins.load([*context.obj, *(plugin or [])]))
    schema_path = path.with_name("layertap.schema.json")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
        schema_path.write_text(json.dumps(described, indent=2) + "\n", "utf-8")
    except FileExistsError:
        raise ConfigError(f"{path}: exists already; name another file: layertap init FILE") from None
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be written: {error.strerror}") from error
    typer.echo(f"wrote {path} and {schema_path}; now: layertap run {path} source.path=YOUR_IMAGES/")


def main() -> NoReturn:
    """The console script: runs a command and exits with its code."""
    _catch(signal.SIGTERM, TERMINATED)
    _catch(signal.SIGINT, INTERRUPTED)
    if isinstance(sys.stdout, io.TextIOWrapper):
        # A name that a terminal has no letters for must not fail a run that is done.
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        code = typer.main.get_command(app).main(standalone_mode=False)
    except _UsageFault as error:
        error.show()
        code = error.exit_code
    except LayertapError as error:
        typer.echo(" ".join(str(error).splitlines()), err=True)
        code = error.code
    except _Stopped as stopped:
        typer.echo("stopped; what is committed stays, and the same command goes on from there", err=True)
        code = stopped.code
    sys.exit(code)


def _catch(number: signal.Signals, code: int) -> None:
    def stop(number: int, frame: object) -> NoReturn:
        raise _Stopped(code)

    # Who was started with a signal ignored (nohup, a shell's background) shall go on ignoring it.
    if signal.getsignal(number) is not signal.SIG_IGN:
        signal.signal(number, stop)


def _report_data(report: Report) -> dict[str, Any]:
    return {
        "planned": report.planned,
        "kept": report.kept,
        "failed": report.failed,
        "reasons": dict(report.reasons),
        "seconds": round(report.seconds, 3),
        "path": None if report.path is None else str(report.path),
        "stored": report.stored,
        "already": report.already,
        "taps": {n: {"shape": [report.kept, *c.shape], "dtype": c.dtype} for n, c in report.columns.items()},
        "nonfinite": dict(report.nonfinite),
    }


def _summary(report: Report) -> str:
    done = "was complete already" if report.already else f"in {report.seconds:.1f} s"
    lines = [f"{report.kept} of {report.planned} images kept, {report.failed} failed, {done}"]
    where = f" -> {report.path}" if report.path else ""
    lines += [f"  {name}: {c.dtype} {(report.kept, *c.shape)}{where}" for name, c in report.columns.items()]
    lines += [f"  {count} values of {name} are not finite" for name, count in report.nonfinite.items() if count]
    if report.failed:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(report.reasons.items()))
        lines.append(f"  failed: {reasons}" + (f" (listed in {report.path / 'failures.csv'})" if report.path else ""))
    if not report.stored:
        lines.append("  nothing is kept on disk: this sink has no output folder")
    return "\n".join(lines)


def _layer_data(found: Anatomy, index: int) -> dict[str, Any]:
    layer = found.layers[index]
    return {
        "layer": layer.name,
        "type": layer.type,
        "calls": layer.calls,
        "shapes": {path: _per_image(shape, found.images) for path, shape in layer.shapes.items()},
        "parameters": layer.parameters,
        "aliases": list(layer.aliases),
        "taps": list(found.taps.get(layer.name, [])),
    }


def _layer_rows(found: Anatomy) -> list[list[str]]:
    rows = []
    for layer in found.layers:
        depth = 0 if layer.name == "." else layer.name.count(".") + 1
        shapes = [f"{path}{_shape(_per_image(shape, found.images))}" for path, shape in layer.shapes.items()]
        output = " ".join(shapes) if layer.calls else "never ran"
        taps = ", ".join(found.taps.get(layer.name, []))
        mark = f"<- {taps}" if taps else ""
        rows.append(["  " * depth + layer.name, layer.type, output, str(layer.calls), f"{layer.parameters:,}", mark])
    return rows


def _per_image(shape: tuple[int, ...], images: int) -> list[int | str]:
    return ["N" if axis == 0 and length == images else length for axis, length in enumerate(shape)]


def _shape(shape: list[int | str]) -> str:
    return f"({', '.join(map(str, shape))})"


def _print_table(columns: list[str], rows: list[list[str]]) -> None:
    if not sys.stdout.isatty():
        # In a pipe there is no width to keep to: a line stays a line.
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        for row in (columns, *rows):
            typer.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, column in enumerate(columns):
        # The name is there to be copied: on a narrow terminal all else folds first.
        longest = max(len(row[0]) for row in rows) if rows and not number else None
        table.add_column(column, overflow="fold", min_width=longest)
    for row in rows:
        table.add_row(*(Text(cell, style="bold" if row[-1].startswith("<-") else "") for cell in row))
    Console(highlight=False).print(table)
