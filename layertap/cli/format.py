"""What the command line prints, as text and as data."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from layertap.cli.layers import Anatomy, OperationRow
    from layertap.cli.plan import Forecast
    from layertap.errors import LayertapError
    from layertap.pipeline.verify import Verdict
    from layertap.records import Column, CountedCause, Report
    from layertap.taps.survey import LayerInfo


LAYER_COLUMNS = ["layer", "type", "output", "dtype", "calls", "MB per image", "compute", "parameters", "tap"]
OPERATION_COLUMNS = ["operation", "output", "dtype"]
PLUGIN_COLUMNS = ["kind", "type", "distribution", "version", "file"]


def json_wanted(arguments: Sequence[str]) -> bool:
    """Whether a command line asks for JSON, known also where it cannot be parsed."""
    options = arguments[: list(arguments).index("--")] if "--" in arguments else arguments
    return "--json" in options


def error_data(code: int | None, faults: Sequence[LayertapError]) -> dict[str, Any]:
    """What went wrong, for machines: the exit code, and each fault."""
    return {
        "error": {
            "code": code,
            "faults": [
                {
                    "code": fault.code,
                    "where": list(fault.where),
                    "place": fault.place or None,
                    "message": fault.message,
                }
                for fault in faults
            ],
        }
    }


def report_data(report: Report) -> dict[str, Any]:
    """A report as data for JSON."""
    return {
        "planned": report.planned,
        "kept": report.kept,
        "failed": report.failed,
        "reasons": dict(report.reasons),
        "causes": [cause_data(counted) for counted in report.causes],
        "seconds": round(report.seconds, 3),
        "extracting": round(report.extracting, 3),
        "path": None if report.path is None else str(report.path),
        "stored": report.stored,
        "already": report.already,
        "taps": {n: {"shape": [report.kept, *c.shape], "dtype": c.dtype} for n, c in report.columns.items()},
        "nonfinite": dict(report.nonfinite),
        "notes": dict(report.notes),
        "remarks": list(report.remarks),
        **{key: report.about[key] for key in ("weights_entry", "weights_prefix") if key in report.about},
    }


def weights_text(about: Mapping[str, Any]) -> str | None:
    """Which weights of a file a model has; None for a file that is a plain state dict, or if there is no file."""
    entry, prefix = about.get("weights_entry"), about.get("weights_prefix")
    if not about.get("weights_sha256") or not (entry or prefix):
        return None
    words = [f"entry {entry}"] if entry else []
    words += [f"prefix {prefix} stripped"] if prefix else []
    words += [f"{about['unused_keys']} other keys left out"] if about.get("unused_keys") else []
    return printable(f"{about.get('weights_file')}, {', '.join(words)}")


def cause_data(counted: CountedCause) -> dict[str, Any]:
    """The cause of some failures, for machines."""
    return {**dataclasses.asdict(counted.cause), "first": counted.first, "count": counted.count}


def causes_text(causes: Iterable[CountedCause]) -> list[str]:
    """The causes of failures, one line each. An output's own record of them is not trusted."""
    return [printable(f"    {counted}") for counted in causes]


def report_text(report: Report) -> str:
    """A report as text."""
    from layertap.store.replace import retired

    done = f"in {report.seconds:.1f} s, of which {report.extracting:.1f} s went into extracting"
    done = "was already complete" if report.already else done
    lines = [f"{report.kept} of {report.planned} images kept, {report.failed} failed, {done}"]
    where = f" -> {report.path}" if report.path else ""
    lines += [f"  {name}: {c.dtype} {(report.kept, *c.shape)}{where}" for name, c in report.columns.items()]
    lines += [f"  {count} values of {name} are not finite" for name, count in report.nonfinite.items() if count]
    if report.failed:
        reasons = ", ".join(f"{reason} {count}" for reason, count in sorted(report.reasons.items()))
        lines.append(f"  failed: {reasons}" + (f" (listed in {report.path / 'failures.csv'})" if report.path else ""))
    if weights := weights_text(report.about):
        lines.append(f"  weights: {weights}")
    lines += causes_text(report.causes)
    if report.notes:
        lines.append("  noted: " + ", ".join(f"{word} {count}" for word, count in sorted(report.notes.items())))
    if report.path and (left := retired(report.path)).exists():
        lines.append(f"  files in the replaced output that are not layertap's are now in {left}")
    lines += [f"  {remark}" for remark in report.remarks]
    if not report.stored:
        lines.append("  this sink has no output folder, so this run can be neither resumed nor verified")
    return "\n".join(map(printable, lines))


def verdict_data(found: Verdict) -> dict[str, Any]:
    """What a verification found, as data for JSON."""
    return {**dataclasses.asdict(found), "path": str(found.path)}


def verdict_text(found: Verdict) -> str:
    """What a verification found, as text."""
    state = "complete" if found.complete else "unfinished"
    lines = [
        f"{found.path}: {state}; {found.files} files, {found.bytes / 1e6:.1f} MB and {found.shards} shards read again"
    ]
    if found.rows:
        same = "to the bit" if not found.difference else f"except for differences of up to {found.difference:.3g}"
        lines.append(f"  {len(found.rows)} rows computed again, the same {same}: {', '.join(map(str, found.rows))}")
    if found.rows and found.environment:
        lines.append(f"  changed since then: {'; '.join(found.environment)}")
    lines += [f"  {fault}" for fault in found.faults]
    count = len(found.faults)
    lines.append(f"{count} fault{'s' * (count > 1)}" if count else "all is well")
    return "\n".join(map(printable, lines))


def forecast_data(found: Forecast) -> dict[str, Any]:
    """A dry run as data for JSON."""
    return {
        "model": dict(found.about),
        "device": found.device,
        "images": found.images,
        "batch_size": found.batch_size,
        "shard_rows": found.shard_rows,
        "shards": found.shards,
        "engine": found.engine,
        "workers": found.workers,
        "images_per_second": found.rate,
        "seconds": found.seconds,
        "taps": {
            name: {
                "layer": column.tap.layer,
                "raw": list(column.tap.shape),
                "axes": column.tap.axes,
                "reduce": list(column.tap.reduce),
                "shape": list(column.shape),
                "dtype": column.dtype,
            }
            for name, column in found.columns.items()
        },
        "silent": list(found.silent),
        "bytes_an_image": found.row_bytes,
        "bytes": found.bytes,
        "free_bytes": found.free_bytes,
        "stop": found.stop,
        "compute": found.compute,
        "path": None if found.path is None else str(found.path),
        "state": found.state,
    }


def forecast_text(found: Forecast) -> str:
    """A dry run as text."""
    about = found.about
    weights = f", weights {about['weights']}" if "weights" in about else ""
    lines = [
        f"model   {about.get('name', '(no name)')}{weights}{' (untrained)' if about.get('untrained') else ''}",
        f"images  {found.images}, batches of {found.batch_size}, shards of {found.shard_rows}, on {found.device}",
    ]
    lines += _engine_lines(found)
    lines += [f"tap     {_tap_text(name, column)}" for name, column in found.columns.items()]
    lines += [f"skipped {name}: its layer never runs" for name in found.silent]
    if found.compute is not None:
        stop = f"the forward stops after {found.stop}" if found.stop else "the forward runs to its end"
        lines.append(f"compute {stop}: {found.compute:.1%} of the model, {1 - found.compute:.1%} saved")
    free = "" if found.free_bytes is None else f", {_size(found.free_bytes)} free"
    size = f"{_size(found.bytes)} in all, twice that while parts are merged"
    lines.append(f"disk    {_size(found.row_bytes)} per image, {size}{free}")
    where = "" if found.path is None else f"{found.path}: "
    lines.append(f"output  {where}{found.state}")
    return "\n".join(map(printable, lines))


def _engine_lines(found: Forecast) -> list[str]:
    lines = []
    if found.engine:
        workers = "workers that join" if found.workers is None else f"{found.workers} workers"
        each = "" if not found.workers else f", {_size(found.bytes // found.workers)} each"
        lines.append(f"engine  {found.engine}: {workers}, {found.shards} shards{each}")
    if found.rate is not None:
        long = "" if found.seconds is None else f": {_duration(found.seconds)} of extracting"
        lines.append(f"rate    {found.rate:.1f} images/s{' per worker' if found.engine else ''}{long}")
    return lines


def _duration(seconds: float) -> str:
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s"
    return f"{whole // 60} min" if whole < 3_600 else f"{whole // 3_600} h {whole % 3_600 // 60} min"


def layer_data(found: Anatomy, layer: LayerInfo) -> dict[str, Any]:
    """One layer as data for JSON."""
    return {
        "layer": layer.name,
        "type": layer.type,
        "calls": layer.calls,
        "shapes": {path: list(shape) for path, shape in found.shapes[layer.name].items()},
        "dtypes": dict(layer.dtypes),
        "bytes_an_image": found.sizes[layer.name],
        "compute": layer.compute[-1][1] if layer.compute else None,
        "parameters": layer.parameters,
        "aliases": list(layer.aliases),
        "taps": list(found.taps.get(layer.name, [])),
        "silent": found.silent.get(layer.name),
    }


def layer_rows(found: Anatomy) -> list[list[str]]:
    """The cells of `LAYER_COLUMNS`, one row per layer, with names indented by depth."""
    return [_layer_row(found, layer) for layer in found.layers]


def operation_data(found: OperationRow) -> dict[str, Any]:
    """One operation as data for JSON."""
    shapes = {path: list(shape) for path, shape in found.shapes.items()}
    return {"tap": found.tap, "shapes": shapes, "dtypes": dict(found.dtypes)}


def operation_rows(found: Sequence[OperationRow]) -> list[list[str]]:
    """The cells of `OPERATION_COLUMNS`, one row per operation."""
    return [[each.tap, _shapes(each.shapes), " ".join(dict.fromkeys(each.dtypes.values()))] for each in found]


def printable(text: str) -> str:
    """The text on one line: a name or message is data, and neither begins a line nor steers the terminal."""
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def print_table(columns: list[str], rows: list[list[str]]) -> None:
    """Cells in columns: fitted to a terminal, one whole line per row anywhere else. A last cell `<- ...` is bold."""
    # A name from a configuration is data, and must not send control characters to the terminal.
    columns = [printable(column) for column in columns]
    rows = [[printable(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        # A pipe has no width to fit into: lines are not folded.
        widths = [max(map(len, column)) for column in zip(columns, *rows, strict=True)]
        for row in (columns, *rows):
            print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="dim")
    for number, column in enumerate(columns):
        # Users copy the name: on a narrow terminal everything else folds first.
        longest = max(len(row[0]) for row in rows) if rows and not number else None
        table.add_column(column, overflow="fold", min_width=longest)
    for row in rows:
        style = "bold" if row[-1].startswith("<-") else "dim" if row[2] == "never ran" else ""
        table.add_row(*(Text(cell, style=style) for cell in row))
    Console(highlight=False).print(table)


def _layer_row(found: Anatomy, layer: LayerInfo) -> list[str]:
    depth = 0 if layer.name == "." else layer.name.count(".") + 1
    shapes = _shapes(found.shapes[layer.name])
    taps = ", ".join(found.taps.get(layer.name, []))
    return [
        "  " * depth + layer.name,
        layer.type,
        shapes if layer.calls else "never ran",
        " ".join(dict.fromkeys(layer.dtypes.values())),
        str(layer.calls),
        f"{found.sizes[layer.name] / 1e6:.3f}" if layer.calls else "",
        f"{layer.compute[-1][1]:.1%}" if layer.compute else "",
        f"{layer.parameters:,}",
        f"<- {taps}" if taps else found.silent.get(layer.name, ""),
    ]


def _tap_text(name: str, column: Column) -> str:
    raw, stored = _shape(("N", *column.tap.shape)), _shape(("N", *column.shape))
    way = [raw, *column.tap.reduce, stored] if column.tap.reduce else [stored]
    axes = f" {column.tap.axes}" if column.tap.axes else ""
    tap = column.tap
    op = "" if tap.op is None else f"@{tap.op}" + ("" if tap.index is None else f":{tap.index}")
    where = "" if name in (tap.layer, f"{tap.layer}{op}") else f" = {tap.layer}{op}"
    return f"{name}{where}: {' -> '.join(way)}{axes} {column.dtype}"


def _shapes(shapes: Mapping[str, Sequence[int | str]]) -> str:
    return " ".join(f"{path}{_shape(shape)}" for path, shape in shapes.items())


def _shape(shape: Sequence[int | str]) -> str:
    return f"({', '.join(map(str, shape))})"


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"
