"""The order of the rooms: imports of src run downwards, and nothing in src knows a script, a tool or a baseline."""

import ast

from helpers import ROOT

ROOMS = ("run", "data", "evaluation", "behaviour", "models", "report")  # each may import those before it
SCRIPTS = tuple(path.stem for path in ROOT.glob("*.py"))


def imported(path):
    """Names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_run_downwards():
    files = sorted((ROOT / "src").rglob("*.py"))
    assert len(files) > 30
    upwards = []
    for path in files:
        room = path.relative_to(ROOT / "src").parts[0]
        assert room in (*ROOMS, "__init__.py"), f"{path} lies in no room"
        for name in imported(path):
            top, *inner = name.split(".")
            outside = top in ("tools", "baselines", "benchmarks", "tests", *SCRIPTS)
            above = top == "src" and ROOMS.index(inner[0]) > ROOMS.index(room)
            upwards += [f"{path.relative_to(ROOT)} imports {name}"] * (outside or above)
    assert not upwards


def test_environments_import_nothing_of_ours():
    upwards = [f"{path.name}: {name}" for path in (ROOT / "envs").glob("*.py") for name in imported(path)
               if name.split(".")[0] in ("src", "tools", "baselines", *SCRIPTS)]  # fmt: skip
    assert not upwards
