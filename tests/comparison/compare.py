"""Who is right where: the cases of `cases.py` against layertap and other tools, as a page.

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
# Who is right where

The traps of hook-based feature extraction, each in its smallest model, run through layertap and other tools. What is
true is computed without any tool: by calling the layers one by one, in a model that changes nothing in place.

This page is written by a script; in an environment with layertap and as many of the others as you like:

```sh
pip install timm captum torchextractor requests
pip install --no-deps thingsvision torchtyping 'typeguard<3'
python tests/comparison/compare.py
```

| word | what it means |
|---|---|
| right | the value is the true one, to within {CLOSE:g} in every element, or the model is as the case says |
| wrong | no error, and another value, one of several without a word of the others, or the model is otherwise |
| refused | an error that says why, in words that the case in `cases.py` looks for |
| error | any other error |
| - | the case does not apply: the tool has no way to ask for this, or does not promise it |

Where a layer has no one value (it runs three times and the name says no call, or it did not run), `refused` is the
answer to be had; `right` is only there where the tool's names say which call is meant.

"""

DOORS = """
How each tool was asked, with its defaults:

- `layertap.tap`: `with layertap.tap(model, layers) as taps: taps.run(x)`. It runs the model in the mode it is in, as do
  torchvision, torchextractor, timm and captum; dropout and batch norm then do what train mode means. The values
  are the layer's in that forward, and `wrong` in that row says that they are not those of eval mode.
- `layertap.extract`: `layertap.extract(model, images, layers)`, which sets eval mode and puts it back.
- torchvision: `create_feature_extractor(model, return_nodes=layers)`; later calls and parts by their node's name.
- torchextractor: `Extractor(model, layers)`; a structure comes whole, and the part was taken out of it. Its
  `capture_fn` lets a user copy each value; its default keeps a reference.
- timm: `timm.models.FeatureHookNet(model, ...)`, with `feature_info` naming the layers. It has no way to remove hooks.
- captum: `LayerActivation(model, modules).attribute(x)`; it takes modules, not names.
- thingsvision: `PyTorchExtractor.extract_features(batches, module_names=layers)`. Its pins (numpy below 2, torchvision
  0.15.2, TensorFlow) exclude layertap's, so that its extractor for PyTorch was loaded without the rest of the package.
"""

COST = """\
What `with layertap.tap(model, ["classifier.5"]):` around a forward of AlexNet on 64 images adds to the plain forward,
in paired runs (`overhead.py`), on a {machine} that others use too. The plain forward again, against
itself, is the noise.
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
