"""The package's rooms: who may import whom, and how large things may be."""

from __future__ import annotations

import ast
import functools
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pytest
from conftest import ROOT
from source import PACKAGE, modules, room_of, tree

import recbole_diffurec


@dataclass(frozen=True)
class Room:
    """One room of the package: its modules, and the rooms that they may import from beside their own.

    ``lazily`` is for imports inside functions, ``types`` for those under ``TYPE_CHECKING``. Rooms are named by their
    folders; a module at the top is a room of its own.
    """

    modules: str
    imports: str = ""
    lazily: str = ""
    types: str = ""


# From the leaves to the root: a room may import from those above it alone. A new module has to be put in here.
ROOMS = {
    "errors": Room("errors"),
    "version": Room("version"),
    "runtime": Room(
        "allocator archive checkpoint distributed files gathering memory precision process ranks shared visible",
        imports="errors",
    ),
    "diffusion": Room("absorbing noise process samplers schedules step_samplers"),
    "layers": Room(
        "adaptive attention blocks contrast device dropout encoder item_softmax linear ragged recurrent step_embedding "
        "unit_rows",
    ),
    "data": Room(
        "atomic augment columns delimited formats histories interactions items output prepare rows sniff sources "
        "tables times",
        imports="errors runtime",
    ),
    "config": Room("described layers needs protocol rules", imports="errors"),
    "models": Room(
        "acvae adrec approximator base causal cl4srec contrastive cooccurrence dcrec denoiser diffrec_dnr diffurec "
        "diffurec_program diffurec_rules dreamrec dropout_by_data duorec ensemble interventions last_attention "
        "masked_diffusion mfgan objectives scores sequential spec stosa vsan",
        imports="errors runtime diffusion layers data config",
    ),
    "host": Room(
        "all_positions attention batches bert4rec candidates catalogue checkpoints checks collector compat config "
        "cooccurrences dataset devices entry_points filters fingerprint guards hooks inputs items listing loaders "
        "metrics models presplit repeats sequences splits stand_in trackers wanted_columns",
        imports="errors runtime layers data config models",
    ),
    "training": Room(
        "attributes averaging epoch evaluate journal keeping load own_data prepare report run scoring state trainer "
        "weights",
        imports="errors version runtime data config models host",
    ),
    "plugin": Room("plugin", imports="models host", lazily="training"),
    "inference": Room(
        "answers batch batcher card checkpoint_data connections export hub items limits lists next_lists reasons "
        "recommender results schema service sharing similar",
        imports="errors version runtime data config models host training",
    ),
    "experiments": Room(
        "about audit audit_bench audit_figure audit_lines audit_tables calibration cluster compare diffusion_figures "
        "figures grid looks measures progress readable report search_figure search_folder search_options space stats "
        "store tables trials tune verdict",
        imports="errors runtime config models host training",
    ),
    "testing": Room("testing", imports="errors runtime data models host training inference"),
    # What --help needs is imported at once, all else when a command is carried out.
    "cli": Room(
        "arguments commands parsers terminal",
        imports="errors version runtime config models",
        lazily="data host training inference experiments",
    ),
    "__init__": Room(
        "__init__",
        imports="errors version host plugin",
        types="data models training inference experiments",
    ),
    "__main__": Room("__main__", imports="cli"),
}


@functools.cache
def imports(module: str) -> list[tuple[str, str]]:
    """(imported module of the package, how) of one module, of all forms of import."""
    path = modules()[module]
    folder = path.relative_to(ROOT).parent.parts
    found: list[tuple[str, str]] = []

    def names(node: ast.AST) -> Iterator[str]:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(folder[: len(folder) - node.level + 1]) if node.level else ""
            base = ".".join(filter(None, [base, node.module]))
            yield from (f"{base}.{alias.name}" for alias in node.names)

    def visit(node: ast.AST, how: str) -> None:
        for name in names(node):
            package, _, inside = name.partition(".")
            if package == PACKAGE.name:
                while inside and inside not in modules():  # the name of something in the module
                    inside = inside.rpartition(".")[0]
                found.append((inside or "__init__", how))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)) and how == "imports":
            how = "lazily"
        for_types = isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING")
        for child in ast.iter_child_nodes(node):
            visit(child, "types" if for_types and child in getattr(node, "body", ()) else how)

    visit(tree(path), "imports")
    return found


def test_every_module_is_in_the_table():
    listed = [(name, module) for name, room in ROOMS.items() for module in room.modules.split()]
    names = [module if module == name else f"{name}.{module}" for name, module in listed]
    folders = {room_of(module) for module in modules() if "." in module}
    assert sorted([*names, *folders]) == sorted(modules()), "put a new module into ROOMS, and take out one that is gone"


@pytest.mark.parametrize("name", ROOMS)
def test_imports_go_one_way(name):
    above = list(ROOMS)[: list(ROOMS).index(name)]
    allowed = {how: set(getattr(ROOMS[name], how).split()) for how in ("imports", "lazily", "types")}
    assert allowed["imports"] | allowed["lazily"] <= set(above), "a room imports from those above it in the table"
    assert not allowed["imports"] & allowed["lazily"], "what is imported at once may be imported lazily too"
    used: dict[str, set[str]] = {how: set() for how in allowed}
    for module in filter(lambda module: room_of(module) == name, modules()):
        for imported, how in imports(module):
            room = room_of(imported)
            if room == name or (how != "imports" and room in allowed["imports"]):
                continue
            assert room in allowed[how], f"{module} must not import {imported} ({how})"
            used[how].add(room)
    assert used == allowed, "the table allows what nobody does"


def test_modules_do_not_import_in_a_circle():
    """Not even inside functions: what a module needs is read before it."""
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, f"a circle: {' -> '.join([*way[way.index(module) :], module])}"
        if module in done:
            return
        for imported, how in imports(module):
            if how != "types" and imported != "__init__":
                visit(imported, (*way, module))
        done.add(module)

    for module in modules():
        visit(module, ())


IMPORT_EACH_FIRST = """
import os, sys
import matplotlib, numpy, pandas, scipy.sparse, sklearn, torch  # not RecBole: whose imports run code of ours
failed = 0
for statement in sys.argv[1:]:
    if (child := os.fork()) == 0:
        try:
            exec(statement)
        except BaseException as error:
            print(f"{statement}: {error!r}", flush=True)
            os._exit(1)
        os._exit(0)
    failed |= os.waitpid(child, 0)[1]
sys.exit(bool(failed))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="one process for each would take minutes")
def test_whatever_is_imported_first_can_be():
    """Mends run while RecBole is imported, and import modules of ours, one of which may have begun it."""
    first = [f"from recbole_diffurec import {name}" for name in recbole_diffurec.__all__]
    first += [f"import recbole_diffurec.{module}" for module in modules() if room_of(module) == "host"]
    command = [sys.executable, "-c", IMPORT_EACH_FIRST, *first]
    done = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, timeout=500, check=False)
    assert (done.returncode, done.stdout) == (0, "")


# Sizes

LINES_OF_MODULE, LINES_OF_FUNCTION, PARAMETERS = 400, 60, 8


@pytest.mark.parametrize("module", modules())
def test_nothing_is_too_large(module):
    path = modules()[module]
    assert len(path.read_text(encoding="utf-8").splitlines()) <= LINES_OF_MODULE
    for node in ast.walk(tree(path)):
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
            lines = node.end_lineno - node.lineno + 1
            assert lines <= LINES_OF_FUNCTION, f"{node.name} has {lines} lines, its docstring included"
            named = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
            names = [argument.arg for argument in named if argument.arg not in ("self", "cls")]
            if not node.name.startswith("_") or node.name == "__init__":
                assert len(names) <= PARAMETERS, f"{node.name} has {len(names)} parameters"
