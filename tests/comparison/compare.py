"""Which tool is right where: the cases of `cases.py` against layertap and other tools, as a page.

`python tests/comparison/compare.py` prints the page and writes it beside this file as README.md. A tool that is not
installed has a column that says so.
"""

from __future__ import annotations

import gc
import platform
import sys
import textwrap
import warnings
from pathlib import Path

import torch

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parents[1]))

from tests.comparison import overhead  # noqa: E402
from tests.comparison.cases import CASES, CLOSE, Case  # noqa: E402
from tests.comparison.tools import TOOLS, Tool  # noqa: E402

ABSENT = "not installed"

HEAD = f"""\
# Which tool is right where

Each trap of hook-based feature extraction, in its smallest model, run through layertap and other tools. The true values
are computed without any tool: the layers are called one by one, in a model that changes nothing in place.

A script writes this page. Run it in an environment with layertap and as many of the other tools as you like:

<!-- not run: needs the other tools -->
```sh
pip install timm captum torchextractor requests
pip install --no-deps thingsvision torchtyping 'typeguard<3'
python tests/comparison/compare.py
```

| word | meaning |
|---|---|
| right | the value is the true one, to within {CLOSE:g} in every element, or the model is as the case says |
| wrong | no error, but a different value, or one of several values without a warning, or the model was changed |
| refused | an error that says why, in words that the case in `cases.py` looks for |
| error | any other error |
| - | the case does not apply: the tool has no way to ask for this, or does not promise it |

If a layer has no single value (it runs three times and the name does not say which call, or it did not run), the best
possible answer is `refused`. `right` appears only where the tool's names say which call is meant.

"""

DOORS = """
How each tool was asked, with its defaults:

- `layertap.tap`: `with layertap.tap(model, layers) as taps: taps.run(x)`. It runs the model in its current mode, as
  torchvision, torchextractor, timm and captum do, so dropout and batch norm act as in train mode. The values are the
  layer's in that forward. `wrong` in that row means that they are not those of eval mode.
- `layertap.extract`: `layertap.extract(model, images, layers)`, which sets eval mode and puts it back.
- torchvision: `create_feature_extractor(model, return_nodes=layers)`. Later calls and parts are named by their node.
- torchextractor: `Extractor(model, layers)`. It returns a whole structure, from which the part was taken. With its
  `capture_fn` a user can copy each value; by default it keeps a reference.
- timm: `timm.models.FeatureHookNet(model, ...)`, with `feature_info` naming the layers. It has no way to remove hooks.
- captum: `LayerActivation(model, modules).attribute(x)`. It takes modules, not names.
- thingsvision: `PyTorchExtractor.extract_features(batches, module_names=layers)`. Its pins (numpy below 2, torchvision
  0.15.2, TensorFlow) conflict with layertap's, so its PyTorch extractor was loaded without the rest of the package.
"""

COST = """\
The time that `with layertap.tap(model, ["classifier.5"]):` adds to a forward of AlexNet on 64 images, in paired runs
(`overhead.py`), on a {machine} that other jobs share. The plain forward, compared
with itself, is the noise.
"""


def verdict(case: Case, tool: Tool) -> tuple[str, str]:
    """The word for a case and a tool, and what the error said, if there was one."""
    torch.manual_seed(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            found = case.check(tool)
    except Exception as error:
        said = " ".join(str(error).split())
        word = "refused" if any(reason in said for reason in case.reasons) else "error"
        return word, f"{type(error).__name__}: {said}"
    finally:
        gc.collect()
    return {True: "right", False: "wrong", None: "-"}[found], ""


def row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def compared() -> str:
    """The table of all cases, and what errors said."""
    lines = [row("case", *(tool.name for tool in TOOLS)), row("---", *("---" for _ in TOOLS))]
    said: dict[tuple[str, str, str], list[str]] = {}
    for case in CASES:
        cells = []
        for tool in TOOLS:
            word, text = verdict(case, tool) if tool.version else (ABSENT, "")
            cells.append(word)
            if text:
                said.setdefault((case.title, word, text), []).append(tool.name)
        lines.append(row(case.title, *cells))
    errors = [row("case", "tool", "word", "error"), row(*["---"] * 4)]
    for (title, word, text), tools in said.items():
        shown = text if len(text) <= 160 else f"{text[:157]}..."
        errors.append(row(title, ", ".join(tools), word, f"``{shown}``"))
    return "\n".join([*lines, DOORS, "## What the errors said", "", *errors])


def versions() -> str:
    names = sorted({tool.distribution: tool.version or ABSENT for tool in TOOLS}.items())
    known = {"Python": platform.python_version(), "torch": torch.__version__, **dict(names)}
    return ", ".join(f"{name} {found}" for name, found in known.items())


def cost() -> str:
    machine = f"{torch.get_num_threads()}-thread {platform.machine()} {platform.system()} machine"
    intro = COST.format(machine=machine)
    return "\n".join(["## What one tap costs", "", intro, *overhead.shown(overhead.measure())])


def main() -> None:
    measured = textwrap.fill(f"Measured on the CPU with {versions()}.", 118)
    page = f"{HEAD}{measured}\n\n{compared()}\n\n{cost()}\n"
    (HERE / "README.md").write_text(page, "utf-8")
    print(page)


if __name__ == "__main__":
    main()
