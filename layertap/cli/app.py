"""The commands: parse, call one function, print. Importing it loads neither torch nor numpy nor the plugins."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from layertap.cli.compare import compare
from layertap.cli.format import (
    LAYER_COLUMNS,
    OPERATION_COLUMNS,
    forecast_data,
    forecast_text,
    layer_data,
    layer_rows,
    operation_data,
    operation_rows,
    print_table,
    printable,
    report_data,
    report_text,
    verdict_data,
    verdict_text,
)
from layertap.cli.options import Json, Ops, Overrides, Own, own_plugins, print_json
from layertap.cli.report import report
from layertap.cli.search import search
from layertap.cli.work import work
from layertap.errors import SOME_FAILED, STORAGE, ConfigError
from layertap.pipeline.malloc import uncollected

app = typer.Typer(
    help="Extract features: point it at images, name layers, get their activations.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

new = typer.Typer(help="Write a plugin of your own to start from.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(new, name="new")


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
    retry_failed: Annotated[
        bool,
        typer.Option("--retry-failed", help="Retry images that failed for a temporary reason, such as a timeout."),
    ] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Print nothing but errors.")] = False,
    as_json: Json = False,
) -> int:
    """Extract what CONFIG asks for. Run the same command again to resume an interrupted run."""
    from layertap.config.loading import load_config, parse_overrides
    from layertap.plugins import Plugins

    known = Plugins.load(own_plugins(context, plugin))
    loaded = load_config(config, parse_overrides(overrides or []), known)
    if quiet:
        loaded = loaded.model_copy(update={"observers": tuple(o for o in loaded.observers if o.type != "progress")})

    # After the configuration is checked: its faults are reported without waiting for torch.
    with uncollected():
        from layertap.pipeline.pipeline import run_loaded

    report = run_loaded(loaded, known, retry_failed=retry_failed)
    if as_json:
        print_json(report_data(report))
    elif not quiet:
        typer.echo(report_text(report))
    return SOME_FAILED if report.failed else 0


app.command()(work)


@app.command()
def layers(
    context: typer.Context,
    target: Annotated[str, typer.Argument(metavar="CONFIG_OR_MODEL", help="A YAML file, or TYPE/NAME.")],
    overrides: Overrides = None,
    plugin: Own = None,
    ops: Ops = None,
    as_json: Json = False,
) -> None:
    """List every layer: output, calls per forward, size, share of compute, parameters, and what the taps match."""
    from layertap.cli.layers import look_at, operations_in
    from layertap.config.loading import parse_overrides

    changes, own = parse_overrides(overrides or []), own_plugins(context, plugin)
    if ops is not None:
        rows = operations_in(target, ops, changes, own)
        if as_json:
            print_json([operation_data(row) for row in rows])
        else:
            print_table(OPERATION_COLUMNS, operation_rows(rows))
        return
    found = look_at(target, changes, own)
    if as_json:
        print_json([layer_data(found, layer) for layer in found.layers])
    else:
        print_table(LAYER_COLUMNS, layer_rows(found))
    for reason in found.unmatched:
        typer.echo(printable(reason), err=True)


@app.command()
def plan(
    context: typer.Context,
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    overrides: Overrides = None,
    plugin: Own = None,
    ops: Ops = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Compute a few batches, and say how long all takes.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what `run` would do: taps, shapes, bytes, workers, where the forward stops. Reads images only to measure."""
    from layertap.cli.layers import operations_in
    from layertap.cli.plan import forecast
    from layertap.config.loading import parse_overrides

    changes, own = parse_overrides(overrides or []), own_plugins(context, plugin)
    found = forecast(config, changes, own, measure=measure)
    rows = operations_in(config, ops, changes, own) if ops is not None else []
    if as_json:
        listed = {} if ops is None else {"operations": [operation_data(row) for row in rows]}
        print_json(forecast_data(found) | listed)
        return
    typer.echo(forecast_text(found))
    if ops is not None:
        print_table(OPERATION_COLUMNS, operation_rows(rows))


@app.command()
def info(
    context: typer.Context,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="An output folder.")],
    as_json: Json = False,
) -> None:
    """Summarise what an output folder holds and how it was made."""
    from layertap.cli.info import summary_text
    from layertap.store.manifest import read_output
    from layertap.store.paths import user_path

    output = user_path(output)
    found = read_output(output)
    typer.echo(found.model_dump_json(indent=2) if as_json else summary_text(output, found))


@app.command()
def verify(
    context: typer.Context,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="An output folder.")],
    overrides: Overrides = None,
    plugin: Own = None,
    rows: Annotated[int, typer.Option("--rows", min=0, help="How many random rows to compute again.")] = 16,
    remote: Annotated[
        list[str] | None,
        typer.Option("--remote", metavar="HOST", help="Fetch images from this host. May be given several times."),
    ] = None,
    as_json: Json = False,
) -> int:
    """Read every file of OUT against its digests, and compute some rows again. KEY=VALUE gives what has moved."""
    from layertap.config.loading import parse_overrides
    from layertap.store.paths import user_path

    with uncollected():
        from layertap.pipeline.verify import verify as checked

    output = user_path(output)
    changes, own = parse_overrides(overrides or []), own_plugins(context, plugin)
    found = checked(output, rows=rows, overrides=changes, plugins=own, remote=remote or ())
    if as_json:
        print_json(verdict_data(found))
    else:
        typer.echo(verdict_text(found))
    return STORAGE if found.faults else 0


@app.command()
def export(
    context: typer.Context,
    output: Annotated[Path, typer.Argument(metavar="OUT", help="An output folder.")],
    type_name: Annotated[str, typer.Argument(metavar="TYPE", help="A sink, `thingsvision` or `clip_retrieval`.")],
    path: Annotated[Path, typer.Argument(metavar="PATH", help="A new folder, or an empty one.")],
    tap: Annotated[
        list[str] | None, typer.Option("--tap", metavar="NAME", help="Only this tap. May be given several times.")
    ] = None,
    plugin: Own = None,
) -> None:
    """Write the rows of OUT into PATH by another sink, or in another library's layout; the values stay the same."""
    from layertap.outputs.features import open_output

    with open_output(output, plugins=own_plugins(context, plugin)) as features:
        taps = features.chosen(tap)
        features.export(type_name, path, taps)
        rows = features.manifest["counts"]["kept"]
        typer.echo(printable(f"{rows} rows of {', '.join(taps)} -> {path} ({type_name})"))


app.command()(search)
app.command()(compare)
app.command()(report)


@app.command()
def bench(
    context: typer.Context,
    config: Annotated[str, typer.Argument(metavar="CONFIG", help="A YAML file.")],
    overrides: Overrides = None,
    plugin: Own = None,
    images: Annotated[int, typer.Option("--images", min=1, help="How many images of the plan, from the first.")] = 256,
    rounds: Annotated[int, typer.Option("--rounds", min=1, help="How many times to measure everything.")] = 5,
    as_json: Json = False,
) -> None:
    """Measure each stage, the limit, the line and two scripts without layertap, and suggest what would be faster."""
    from layertap.bench.scorecard import scorecard
    from layertap.config.loading import parse_overrides

    with uncollected():
        from layertap.bench.benchmark import bench as measured

    own = own_plugins(context, plugin)
    found = measured(config, parse_overrides(overrides or []), own, images=images, rounds=rounds)
    if as_json:
        print_json(found.data())
    else:
        typer.echo(scorecard(found))


@app.command()
def plugins(context: typer.Context, plugin: Own = None, as_json: Json = False) -> None:
    """List every plugin: kind, type, distribution, version, file; on a terminal also parameters and what is missing."""
    from layertap.cli.plugins import plugin_data, plugin_row, print_faults, print_plugins
    from layertap.plugins import Plugins

    known = Plugins.load(own_plugins(context, plugin))
    if as_json:
        print_json([plugin_data(registered) for registered in known])
    elif sys.stdout is not None and sys.stdout.isatty():
        print_plugins(known)
    else:
        for registered in known:
            typer.echo("\t".join(plugin_row(registered)))
    print_faults(known)


@app.command()
def schema(
    context: typer.Context,
    plugin: Own = None,
    manifest: Annotated[
        bool, typer.Option("--manifest", help="Print the schema of an output's manifest.json instead.")
    ] = False,
) -> None:
    """Print the JSON Schema of a configuration, with every installed plugin's parameters."""
    if manifest:
        from layertap.store.manifest import Manifest

        print_json(Manifest.model_json_schema())
        return

    from layertap.cli.plugins import print_faults
    from layertap.config.schema import config_schema
    from layertap.plugins import Plugins

    known = Plugins.load(own_plugins(context, plugin))
    print_json(config_schema(known))
    print_faults(known)


@new.command("plugin")
def new_plugin(
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The name of the distribution, and of the folder to write.")
    ],
    kind: Annotated[
        str, typer.Option("--kind", help="source, sink, preprocessor, reducer, model or observer.", show_default=False)
    ],
) -> None:
    """Write a working plugin into the folder NAME: its class, entry point and test, ready to install."""
    from layertap.cli.new import write_plugin

    folder = write_plugin(name, kind)
    typer.echo(f"wrote {folder}; now: pip install -e {folder}; (cd {folder} && pytest)")


@app.command()
def init(
    context: typer.Context,
    path: Annotated[Path, typer.Argument(metavar="[FILE]", help="The file to write.")] = Path("layertap.yaml"),
    plugin: Own = None,
) -> None:
    """Write a commented configuration to start from, and its schema for editors."""
    from importlib.resources import files

    from layertap.cli.plugins import print_faults
    from layertap.config.schema import config_schema
    from layertap.plugins import Plugins
    from layertap.store.paths import user_path

    path = user_path(path)
    text = files("layertap.cli").joinpath("templates/starter.yaml").read_text("utf-8")
    known = Plugins.load(own_plugins(context, plugin))
    described = config_schema(known)
    schema_path = path.with_name("layertap.schema.json")
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
        schema_path.write_text(json.dumps(described, indent=2) + "\n", "utf-8")
    except FileExistsError:
        raise ConfigError(f"{path}: already exists; name another file: layertap init FILE") from None
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be written: {error.strerror}") from error
    typer.echo(f"wrote {path} and {schema_path}; now: layertap run {path} source.path=YOUR_IMAGES/")
    print_faults(known)
