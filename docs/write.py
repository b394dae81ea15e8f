"""Writes what the documentation says of parameters, models and modules, from where the package says it.

``python docs/write.py`` after a change to ``properties/``, to the register of models or to a module's first line; a
test fails while a page says otherwise. ``docs/parameters.md`` is written whole. In other pages, and in the README, what
lies between ``<!-- NAME -->`` and ``<!-- end of NAME -->`` is; a new model gets its page.
"""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from recbole_diffurec.config.described import experiments, read
from recbole_diffurec.config.layers import Loader
from recbole_diffurec.models import spec as register
from recbole_diffurec.models.spec import BUILTIN, ModelSpec

ROOT = Path(__file__).resolve().parents[1]
PROPERTIES, PACKAGE, DOCS = ROOT / "properties", ROOT / "recbole_diffurec", ROOT / "docs"

# The rooms in the order of their imports: each may import those above it.
ROOMS = (
    *("runtime", "diffusion", "layers", "data", "config", "models"),
    *("host", "training", "inference", "experiments", "cli"),
)


# Parameters


def parameters_page() -> str:
    """``docs/parameters.md``."""
    parts = [
        "# Parameters",
        "Given as `--NAME=VALUE` on the command line, as `name: value` in a file of `--config_files`, or as keyword "
        "arguments in Python. Stronger settings win: command line, `--config_files`, `--experiment`, data set, model, "
        "overall, RecBole's own defaults. Values are YAML and never executed; a name that nobody knows is an error "
        "that names the nearest one. A parameter of RecBole that is not listed here keeps RecBole's meaning and "
        "default.",
        "Made by `docs/write.py` from the comments of `properties/`.",
        "## Every model",
        f"`properties/overall.yaml`. {_prose(read(PROPERTIES / 'overall.yaml')[0])}",
        *_tables(PROPERTIES / "overall.yaml"),
    ]
    for path in sorted((PROPERTIES / "model").glob("*.yaml")):
        base = yaml.load(path.read_text(encoding="utf-8"), Loader).get("base")
        like = f" All other defaults are those of [{base}](#{base.lower()})." if base else ""
        parts += [f"## {path.stem}", f"`properties/model/{path.name}`. {_prose(read(path)[0])}{like}", *_tables(path)]
    parts += ["## Data sets", "What a known data set changes, stronger than the model's defaults."]
    for path in sorted((PROPERTIES / "dataset").glob("*.yaml")):
        parts += [f"### {path.stem}", _prose(read(path)[0]), *_tables(path)]
    known = "Settings for `--experiment=NAME`, in `properties/experiment/NAME.yaml`."
    return "\n\n".join([*parts, "## Experiments", known, _experiments()]) + "\n"


def _tables(path: Path) -> Iterator[str]:
    """A table of each section; a key that has no meaning there means what it does for every model."""
    general = {p.name: p.meaning for section in read(PROPERTIES / "overall.yaml")[1] for p in section.parameters}
    for section in read(path)[1]:
        if section.title:
            yield f"### {section.title}"
        yield "| parameter | default | type, range | meaning |\n|---|---|---|---|\n" + "\n".join(
            f"| `{p.name}` | {_code(p.default)} | {_cell(p.kind)} | {_cell(p.meaning or general[p.name])} |"
            for p in section.parameters
        )


def _code(value: str) -> str:
    """A default as it stands; one of several lines is told with the meaning."""
    return "empty" if value == "~" else f"`{_cell(value)}`" if value else ""


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")


def _prose(text: str) -> str:
    """A comment of a YAML file as Markdown: its options as such."""
    return re.sub(r"(--\w+=\S*[^\s.,](?: --\w+=\S*[^\s.,])*)", r"`\1`", _cell(text))


def _experiments() -> str:
    rows = [f"| `{name}` | {_prose(what)} |" for name, what in experiments()]
    return "\n".join(["| name | what it is |", "|---|---|", *rows])


# Models


def models_in_short(prefix: str) -> str:
    """The names of this package's models, each a link to its page."""
    return ",\n".join(f"[{spec.name}]({prefix}{spec.name}.md)" for spec in _specs()) + "."


def models_table(prefix: str) -> str:
    """The models of this package, each with a link to its page, whose folder ``prefix`` leads to."""
    rows = [
        f"| [{spec.name}]({prefix}{spec.name}.md) | {_cell(spec.summary)} | {_names(spec.variants)} | "
        f"{_names(_recipes(spec.name))} |"
        for spec in _specs()
    ]
    return "\n".join(["| model | what it does | variants | recipes |", "|---|---|---|---|", *rows])


def model_facts(spec: ModelSpec) -> str:
    """What the register, its class and its module say of a model."""
    place = spec.model_class.__module__
    module = (inspect.getdoc(inspect.getmodule(spec.model_class)) or "").split("\n\n")
    papers = [paragraph for paragraph in module if re.search(r"\b20\d\d\b", paragraph)]
    facts = {
        "class": f"`{place}.{spec.model_class.__name__}`",
        "defaults": f"`properties/model/{spec.name}.yaml`, [listed](../parameters.md#{spec.name.lower()})",
        "in comparisons": "a method, whose improvement is reported" if spec.method else "a baseline",
        "padding": "batches are as wide as their longest history, which changes nothing"
        if spec.trims_padding
        else "batches are as wide as `MAX_ITEM_LIST_LENGTH`",
        **({"all positions": "trained at once with `rows: sequences`"} if spec.all_positions else {}),
        "recipes": _names(_recipes(spec.name)),
        **{
            f"variant `{name}`": ", ".join(f"`{key}: {value}`" for key, value in fixed.items())
            for name, fixed in spec.variants.items()
        },
        **{f"no {ability}": f"because {reason}" for ability, reason in spec.cannot.items()},
    }
    table = "\n".join(["| | |", "|---|---|", *(f"| {name} | {_cell(fact)} |" for name, fact in facts.items())])
    described = re.split(r"\n\n(?:\w+\n---|Defaults:)", inspect.getdoc(spec.model_class) or "")[0]
    command = f"```bash\nrecbole-diffurec --model={spec.name} --dataset=amazon-beauty\n```"
    return "\n\n".join([described, *papers, table, command])


def _specs() -> list[ModelSpec]:
    return [spec for spec in register.all_specs()[0] if spec.name in BUILTIN]


def _recipes(model: str) -> list[str]:
    folder = PROPERTIES / "experiment"
    found = [path for path in sorted(folder.rglob("*.yaml")) if re.search(rf"--model={model}\b", read(path)[0])]
    return [path.relative_to(folder).with_suffix("").as_posix() for path in found]


def _names(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in names) or "-"


# Modules


def rooms() -> str:
    """Every module of the package with the first line of its docstring, by room."""
    parts = ["### recbole_diffurec/", _modules(sorted(PACKAGE.glob("*.py")))]
    for room in ROOMS:
        files = sorted((PACKAGE / room).glob("*.py"))
        parts += [f"### {room}/", _first_line(files.pop(0)), _modules(files)]
    return "\n\n".join(parts)


def _modules(files: Iterable[Path]) -> str:
    return "\n".join(
        ["| module | |", "|---|---|", *(f"| `{path.name}` | {_cell(_first_line(path))} |" for path in files)]
    )


def _first_line(path: Path) -> str:
    said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if said is None:
        raise ValueError(f"{path} has no docstring")
    return said.splitlines()[0]


# Pages


def pages() -> dict[Path, str]:
    """What each page that this file writes, or writes a part of, is to be."""
    found = {
        DOCS / "parameters.md": parameters_page(),
        ROOT / "README.md": _with(ROOT / "README.md", "models", models_in_short("docs/models/")),
        DOCS / "models" / "index.md": _with(DOCS / "models" / "index.md", "models", models_table("")),
        DOCS / "architecture.md": _with(DOCS / "architecture.md", "rooms", rooms()),
    }
    for spec in _specs():
        path = DOCS / "models" / f"{spec.name}.md"
        found[path] = _with(path, "facts", model_facts(spec), f"# {spec.name}\n\n{spec.summary}\n")
    return found


def _with(path: Path, name: str, text: str, new: str = "") -> str:
    """A page with ``text`` between the marks of ``name``; one that is missing begins with ``new``."""
    begin, end = f"<!-- {name} -->", f"<!-- end of {name} -->"
    page = path.read_text(encoding="utf-8") if path.exists() else f"{new}\n{begin}\n{end}\n"
    before, found, rest = page.partition(begin)
    _, closed, after = rest.partition(end)
    if not (found and closed):
        raise ValueError(f"{path} lacks '{begin}' or '{end}'")
    return f"{before}{begin}\n{text}\n{end}{after}"


if __name__ == "__main__":
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
