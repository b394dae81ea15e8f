"""What the command line lists: models by kind, and parameters with their meaning, RecBole's own among them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import recbole

from recbole_diffurec.config import layers
from recbole_diffurec.config.described import Parameter, read
from recbole_diffurec.host import catalogue
from recbole_diffurec.host.catalogue import HOST_PROPERTIES
from recbole_diffurec.models import spec as register
from recbole_diffurec.models.base import DiffusionRecommender

__all__ = ["models_by_kind", "parameters_of"]

# RecBole's folders of models, and what they hold.
_KINDS = {
    "sequential_recommender": "sequential, of RecBole",
    "general_recommender": "general, of RecBole: users and items without an order",
    "knowledge_aware_recommender": "knowledge-aware, of RecBole: with a graph of the items",
    "context_aware_recommender": "context-aware, of RecBole: with columns of users and items",
    "exlib_recommender": "of other packages, through RecBole",
}


def models_by_kind() -> dict[str, list[tuple[str, str]]]:
    """All names that ``--model`` takes, each with a line on what it is, by kind."""
    found: dict[str, list[tuple[str, str]]] = {"diffusion": [], "sequential": []}
    specs, broken = register.all_specs()
    for spec in specs:
        diffusion = issubclass(spec.model_class, DiffusionRecommender)
        found["diffusion" if diffusion else "sequential"].append((spec.name, spec.summary))
    for name, (spec, fixed) in register.variants().items():
        values = ", ".join(f"{key}: {value}" for key, value in fixed.items())
        found["diffusion"].append((name, f"{spec.name} with {values}"))
    found.update({kind: [] for kind in _KINDS.values()})
    found["that cannot be loaded"] = list(broken.items())
    folder = Path(recbole.__file__).parent / "model"
    for name in catalogue.known_models()[len(register.names()) :]:
        path = next(folder.glob(f"*_recommender/{name.lower()}.py"), None)
        kind = _KINDS.get(path.parent.name) if path is not None else None
        found[kind or _KINDS["exlib_recommender"]].append((name, _said(path, name) if path is not None else ""))
    return {kind: names for kind, names in found.items() if names}


def _said(path: Path, name: str) -> str:
    """The paper that a model of RecBole names, or else the first sentence of what it says of itself."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    module = ast.get_docstring(tree) or ""
    reference = " ".join(module.partition("Reference")[2].partition("\n\n")[0].split()).lstrip(": ")
    title = re.search(r'["“](.+?)[."”]+\s*(?:[Ii]n\s+)?([^.]*)', reference)
    if title:
        return f"{title[1]}, {title[2]}" if title[2] else title[1]
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name]
    of_class = " ".join((ast.get_docstring(classes[0]) or "").split()) if classes else ""
    return re.split(r"\.? https?:", reference)[0] or of_class.partition(". ")[0].rstrip(".")


def parameters_of(model: str | None = None) -> Iterator[tuple[str, list[Parameter]]]:
    """Headings and the parameters below them: of a model, of every model, of RecBole.

    Parameters
    ----------
    model : str, optional
        A name of ``--model``; without one, what every model has.

    Raises
    ------
    UserError
        There is no such model.
    """
    overall = read(layers.properties_dir() / "overall.yaml")[1]
    general = {parameter.name: parameter.meaning for section in overall for parameter in section.parameters}
    listed: set[str] = set()
    for heading, path in _files(model):
        for section in read(path)[1]:
            new = [parameter for parameter in section.parameters if parameter.name not in listed]
            for parameter in new:  # what a model's file does not say again
                parameter.meaning = parameter.meaning or general.get(parameter.name, "")
            if new:
                yield f"{heading}{': ' if section.title else ''}{section.title.lower()}", new
            listed.update(parameter.name for parameter in new)


def _files(model: str | None) -> Iterator[tuple[str, Path]]:
    """Files of parameters, the strongest first, whose values are those that count."""
    own = layers.properties_dir()
    if model is not None:
        spec, _ = catalogue.named(model)
        name: str | None = spec.name
        while name is not None:
            path = Path(catalogue.find(name).defaults or own / "model" / f"{name}.yaml")
            if path.is_file():
                yield name, path
            name = layers.read_yaml(path).get("base") if path.is_file() else None
        if (HOST_PROPERTIES / "model" / f"{spec.name}.yaml").is_file():
            yield f"{spec.name} (RecBole)", HOST_PROPERTIES / "model" / f"{spec.name}.yaml"
    yield "every model", own / "overall.yaml"
    yield "RecBole", HOST_PROPERTIES / "overall.yaml"
    yield "RecBole, data", HOST_PROPERTIES / "dataset" / "sample.yaml"
