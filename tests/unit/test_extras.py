"""What only an extra brings is asked for before any work starts, and nothing else needs it."""

from __future__ import annotations

import ast
import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import pytest

from recbole_diffurec.cli import main
from recbole_diffurec.config import layers
from recbole_diffurec.errors import cannot_import
from recbole_diffurec.experiments.cluster import HowToRun

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("missing", "arguments", "what"),
    [
        ("ray", ["tune"], "tune needs ray, which is not installed"),
        ("optuna", ["tune", "--search=optuna"], "search optuna needs optuna"),
        ("ray", ["compare", "--models=Pop", "--parallel=2"], "running in parallel needs ray"),
        ("ray", ["compare", "--models=Pop", "--ray_address=auto"], "running in parallel needs ray"),
    ],
)
def test_ray_and_optuna_are_asked_for_first(missing, arguments, what, workdir, capsys, monkeypatch):
    if missing == "optuna":
        pytest.importorskip("ray.tune", reason="a search without optuna needs Ray")
    else:
        monkeypatch.setitem(sys.modules, "ray.tune", None)
    monkeypatch.setitem(sys.modules, missing, None)
    Path("space.test").write_text("n_layers choice [1,2]\n", encoding="utf-8")
    given = ["--params_file=space.test"] if arguments[0] == "tune" else []
    assert main([*arguments, *given]) == 2
    said = capsys.readouterr().err
    assert what in said
    assert "pip install 'recbole-diffurec[tune]', or in a clone pip install -e '.[tune]'" in said
    assert [path.name for path in Path().iterdir()] == ["space.test"], "nothing was begun"


def test_what_is_there_and_cannot_be_imported_is_not_called_missing(tmp_path, monkeypatch):
    """A package whose own imports fail, or that lacks a name that is wanted of it."""
    (tmp_path / "half_installed.py").write_text("import a_missing_part\n", encoding="utf-8")
    (tmp_path / "too_old.py").write_text("", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    expected = {
        "import no_such_package": "x needs no_such_package, which is not installed: pip install p",
        "import half_installed": "x needs a_missing_part, which is not installed: pip install p",
        "from too_old import name": "cannot import name 'name' from 'too_old'",
        "import too_old.part": "needs what cannot be imported here (No module named 'too_old.part'",
    }
    for code, message in expected.items():
        with pytest.raises(ImportError) as caught:
            exec(code)
        assert message in str(cannot_import("x", caught.value, "p"))


def test_one_place_says_what_pip_is_asked_for():
    """A name that only an index knows is of no use to a clone, and the other way round."""
    elsewhere = [
        f"{path.name}:{node.lineno}"
        for path in sorted((ROOT / "recbole_diffurec").rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if path.name != "errors.py" and isinstance(node, ast.Constant)
        if any(words in str(node.value) for words in ("pip install", "recbole-diffurec["))
    ]
    assert elsewhere == []


def test_serve_says_why_it_cannot_be_imported(monkeypatch, capsys):
    pytest.importorskip("fastapi", reason="the service needs fastapi")
    monkeypatch.delitem(sys.modules, "recbole_diffurec.inference.service", raising=False)
    monkeypatch.delattr("fastapi.Query")
    assert main(["serve", "a.pth"]) == 2
    said = capsys.readouterr().err
    assert "cannot import name 'Query' from 'fastapi'" in said and "not installed" not in said and said.count("\n") == 1


def test_the_cost_of_parallel_runs_is_estimated_without_ray(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    assert HowToRun(parallel=2, dry_run=True).on_ray
    assert not HowToRun().on_ray


def test_recboles_own_entry_needs_no_ray():
    """Its module imports Ray for one function, and RecBole 1.2.0 does not require it."""
    code = (
        "import sys; sys.modules['ray'] = None; import recbole_diffurec\n"
        "from recbole.quick_start import run_recbole, quick_start\n"
        "assert sys.modules['ray'] is None and 'ray.tune' not in sys.modules\n"
        "try:\n    quick_start.tune.report(1)\n"
        "except ModuleNotFoundError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ray.tune.report" in done.stdout and "pip install -e '.[tune]'" in done.stdout


def test_an_installation_has_all_shipped_files():
    """Of properties/, the recipes' search spaces among them, and the service's page."""
    # A build leaves its own notes in the checkout.
    found = importlib.metadata.distributions(name="recbole-diffurec")
    distribution = next(one for one in found if Path(str(one.locate_file(""))).resolve() != ROOT)
    if json.loads(distribution.read_text("direct_url.json") or "{}").get("dir_info", {}).get("editable"):
        pytest.skip("installed as a link to the checkout")
    installed = {str(path) for path in distribution.files or ()}
    shipped = [path for path in (ROOT / "properties").rglob("*") if path.suffix in (".yaml", ".test")]
    wanted = {f"recbole_diffurec/properties/{path.relative_to(ROOT / 'properties').as_posix()}" for path in shipped}
    static = ROOT / "recbole_diffurec" / "inference" / "static"
    wanted |= {path.relative_to(ROOT).as_posix() for path in static.iterdir()}
    assert len(shipped) > 20 and wanted <= installed, sorted(wanted - installed)
    assert layers.properties_dir().is_dir()
