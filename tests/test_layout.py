"""The order of the rooms: imports of src run downwards, and nothing in src knows a script, a tool or a baseline."""

import ast
import re

from helpers import ROOT, shell

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


# where files are read that could hold code: torch.load with weights_only, and a pickle reader that knows numbers alone
READERS = {"src/run/files.py": {"torch.load", "safetensors.torch.load"}, "src/data/pickles.py": {"pickle._Unpickler"}}
LOADING = re.compile(
    r"(?:torch|jit|numpy|np|pickle|_pickle|cPickle|dill|joblib|cloudpickle|shelve|marshal)\.(?:load|loads|open|_?Unpickler)"
    r"|safetensors\.(?:torch\.|numpy\.)?(?:load|load_file|safe_open)|.*\b(?:safe_open|load_file)"
)


def test_files_that_could_hold_code_have_one_reader():
    found, folders = {}, ("src", "baselines", "envs", "tools", "benchmarks", "examples")
    for path in [*ROOT.glob("*.py"), *(path for folder in folders for path in (ROOT / folder).rglob("*.py"))]:
        tree = ast.parse(path.read_text())
        names = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute | ast.Name)}
        names = {name for name in {*names, *imported(path)} if LOADING.fullmatch(name)}
        if names:
            found[path.relative_to(ROOT).as_posix()] = names
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load"]
        assert all("weights_only=True" in ast.unparse(call) for call in calls), path
        assert not any(keyword.arg == "allow_pickle" for node in ast.walk(tree) if isinstance(node, ast.Call)
                       for keyword in node.keywords if ast.unparse(keyword.value) != "False"), path  # fmt: skip
    assert found == READERS


# what parses a command line or speaks of one
PARSE = {
    "src/run/command_line.py": {"settings"},
    "src/run/flags.py": {"parse_args", "parse_known_args"},
    "src/run/settings.py": {"pick"},
    "baselines/online_dt/__main__.py": {"choose"},
}


def test_no_function_takes_the_arguments_of_a_script():
    """They take settings, src/run/settings.py; what parses a command line is the exception."""
    found = []
    for path in sorted([*(ROOT / "src").rglob("*.py"), *(ROOT / "baselines").rglob("*.py")]):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                name = getattr(node, "name", "lambda")
                where = path.relative_to(ROOT).as_posix()
                names = {argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}
                if "args" in names and name not in PARSE.get(where, set()):
                    found.append(f"{where}: {name}")
    assert not found


def test_the_help_of_stage_4_fits_on_two_screens():
    assert len(shell("train_meta_dt", "--help").stdout.splitlines()) <= 110
