"""The page's figures, laid out with Bokeh; the page fills them with data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from layertap.outputs.tables import needing

EXTRA = "report"


def library() -> str:
    """The script that draws the figures, which the package Bokeh ships. Raises `ConfigError` if it is not installed."""
    with needing("bokeh", EXTRA):
        from bokeh.util.paths import bokehjs_path
    text = (Path(bokehjs_path()) / "js" / "bokeh.min.js").read_text("utf-8")
    # In the page itself, this would end the script.
    return text.replace("</script", r"<\/script")


def scale() -> list[str]:
    """The colours of numbers, from the least to the largest."""
    with needing("bokeh", EXTRA):
        from bokeh.palettes import Viridis256
    return list(Viridis256)


def figures() -> dict[str, Any]:
    """The figures as data for the page, by name."""
    with needing("bokeh", EXTRA):
        from bokeh.embed import json_item
        from bokeh.models import ColumnDataSource, HoverTool, LinearColorMapper
        from bokeh.plotting import figure

    empty: dict[str, list[float]] = {"x": [], "y": [], "c": []}
    tools = "pan,wheel_zoom,box_zoom,lasso_select,box_select,tap,reset"
    plain: dict[str, Any] = {
        "sizing_mode": "stretch_both",
        "x_range": (0, 1),
        "y_range": (0, 1),
    }
    places = figure(tools=tools, active_drag="lasso_select", active_scroll="wheel_zoom", **plain)
    places.add_tools(HoverTool(tooltips=None))
    places.scatter(
        "x",
        "y",
        source=ColumnDataSource(empty),
        size=6,
        line_color=None,
        fill_alpha=0.75,
        fill_color={"field": "c", "transform": LinearColorMapper(palette=["#888888"], low=-1, high=1)},
        nonselection_fill_alpha=0.12,
        selection_fill_alpha=1,
    )
    places.toolbar.logo = None
    bars = figure(tools="", toolbar_location=None, **plain)
    bars.quad(
        left="left",
        right="right",
        top="top",
        bottom=0,
        source=ColumnDataSource({"left": [], "right": [], "top": []}),
        fill_color="#4477aa",
        line_color=None,
    )
    bars.yaxis.axis_label = "images"
    bars.xaxis.axis_label = "value"
    return {"map": json_item(places), "histogram": json_item(bars)}
