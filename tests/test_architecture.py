"""Rules no linter knows, as walks over the syntax tree; each says which incident it prevents."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ["coop", "consent", "federated", "inference_gateway", "ui"]
MODULES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))
LINES_MAX = 400
DRAWERS = re.compile(r"^(utils?|common|misc|base|manager|core|tools|helpers?)$")
BANNED_CALLS = {
    "torch.load",
    "pickle.load",
    "pickle.loads",
    "joblib.load",
    "cloudpickle.load",
    "yaml.load",
    "eval",
    "exec",
}


def called(tree: ast.AST) -> set[str]:
    return {ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)}


def too_long(source: str) -> bool:
    return source.count("\n") > LINES_MAX


def commits(source: str) -> bool:
    return any(name.endswith(".commit") for name in called(ast.parse(source)))


def dangerous(source: str) -> set[str]:
    tree = ast.parse(source)
    imports = {
        alias.name
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    } | {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    return (called(tree) & BANNED_CALLS) | (
        imports & {"pickle", "joblib", "cloudpickle", "dill", "marshal"}
    )


def divides(source: str) -> bool:
    tree = ast.parse(source)
    divisions = (
        isinstance(node, ast.BinOp) and isinstance(node.op, ast.Div) for node in ast.walk(tree)
    )
    floats = (
        isinstance(node, ast.Constant) and isinstance(node.value, float) for node in ast.walk(tree)
    )
    return any(divisions) or any(floats)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_is_one_subject(path: Path):
    """A drawer grows until nobody knows what it promises."""
    assert not too_long(path.read_text()), "over 400 lines: is it still one subject?"
    assert not DRAWERS.match(path.stem)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_the_database_commits_and_nothing_loads_code(path: Path):
    """A commit in the middle loses the log entry; a pickle from the network is a remote shell."""
    source = path.read_text()
    assert path == ROOT / "coop/db.py" or not commits(source)
    assert not dangerous(source)


@pytest.mark.parametrize("name", ["coop/money.py", "coop/dividend.py", "coop/ledger.py"])
def test_money_is_never_divided_and_never_a_float(name: str):
    """A float share lost 1 credit in 10^7 in a peer's payout."""
    assert not divides((ROOT / name).read_text())


def test_the_rules_catch_what_they_forbid():
    assert too_long("x = 1\n" * (LINES_MAX + 1))
    assert commits("session.commit()")
    assert dangerous("import pickle") == {"pickle"}
    assert dangerous("torch.load('x')") == {"torch.load"}
    assert divides("a = b / c")
    assert divides("a = 0.5")


def test_every_coop_module_has_its_layer():
    """A module that no layer names is not checked at all."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    named = {name for layer in contracts[0]["layers"] for name in re.split(" [|:] ", layer)}
    modules = {
        f"coop.{path.stem}" for path in (ROOT / "coop").glob("*.py") if path.stem != "__init__"
    }
    packages = {f"coop.{path.parent.name}" for path in (ROOT / "coop").glob("*/__init__.py")}
    assert (modules | packages) - named - {"coop.migrations", "coop.tables"} == set()


def test_no_portal_file_shadows_a_module():
    """`streamlit run` puts its folder first on the path: ui/token.py would replace token."""
    taken = set(sys.stdlib_module_names) | set(packages_distributions())
    shadows = {path.stem for path in (ROOT / "ui").glob("*.py")} - {"__init__"}
    assert shadows & (taken - {"ui"}) == set()


def test_nothing_committed_names_a_registry_or_a_path_of_one_machine():
    """A lock file with download addresses breaks everybody behind another mirror."""
    # Each name is written with a class of one letter so that this file does not name it.
    hosts = re.compile(
        r"pyp[i]\.org|pythonhoste[d]|registry\.npmj[s]|deb\.debia[n]|/wor[k]/|/roo[t]/"
    )
    suffixes = {
        ".py",
        ".md",
        ".toml",
        ".txt",
        ".yaml",
        ".json",
        ".csv",
        ".js",
        ".html",
        ".css",
        ".go",
        "",
    }
    found = []
    for path in ROOT.rglob("*"):
        inside = path.relative_to(ROOT).parts
        if (
            path.is_file()
            and path.suffix in suffixes
            and not inside[0].startswith(
                (".venv", ".git", ".coop", ".lock", ".hyp", ".mypy", ".ruff", ".import")
            )
        ):
            text = path.read_text(errors="ignore")
            if hosts.search(text):
                found.append(str(path.relative_to(ROOT)))
    assert found == []
