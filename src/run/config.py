"""Settings files: environments and recipes as strict YAML. A mistake is one line that names the file and the key."""

import dataclasses
import math
import re
import sys
from pathlib import Path

import yaml
from gymnasium.envs.registration import parse_env_id
from gymnasium.error import Error as GymnasiumError

from src.run.environment import make_environment
from src.run.errors import UserError, shortened
from src.run.files import read_text
from src.run.flags import NAMES, is_name, nearest

CONFIG_DIR = Path(__file__).resolve().parents[2] / "configs"
RECIPE_DIR = CONFIG_DIR / "recipes"
BASELINES_DIR = CONFIG_DIR.parent / "baselines"
SCRIPTS = ("train_data_collection", "get_datasets", "train_context", "train_meta_dt")


@dataclasses.dataclass(frozen=True)
class EnvConfig:
    """The environment block of a YAML file. Task ranges are half-open [a, b); validation tasks lie inside the training range,
    fresh ones behind all others: they serve final figures alone, and no data are made of them."""

    env_type: str
    env_name: str
    entry_point: str  # "package.module:Class"
    max_episode_steps: int
    train_tasks: tuple[int, int]
    test_tasks: tuple[int, int]
    validation_tasks: tuple[int, int]
    fresh_tasks: tuple[int, int] | None = None
    terminates: bool = False  # episodes may end before max_episode_steps
    options: tuple = ()  # (keyword, value) pairs of the entry point, sorted

    def make(self, render_mode=None, discrete=False):
        """A fresh environment; see `make_environment`."""
        return make_environment(self, render_mode, discrete)


def num_tasks(environment):
    """Number of rows in the environment's task table."""
    return len(next(iter(environment.unwrapped.tasks.values())))


def num_known_tasks(env, environment):
    """Number of the tasks that may be trained and chosen on: all but the fresh ones of the EnvConfig."""
    return env.fresh_tasks[0] if env.fresh_tasks else num_tasks(environment)


def known_env_types():
    """Names of the settings files in configs/."""
    return sorted(path.stem for path in CONFIG_DIR.glob("*.yaml"))


def is_published(env):
    """Whether configs/ describes this environment under its name, so that what is stored under that name holds for it."""
    path = CONFIG_DIR / f"{env.env_type}.yaml"
    if not path.exists():
        return False
    ours = read_env(path, read_yaml(path))
    keys = "entry_point", "max_episode_steps", "train_tasks", "terminates"
    return all(getattr(ours, key) == getattr(env, key) for key in keys)


def is_settings_file(name):
    """Whether a family is named by the path of its settings file."""
    return Path(name).suffix in (".yaml", ".yml")


def known_env_type(name, flag="--env_type"):
    """`name`, where configs/ has a settings file of that name. Raises UserError that names the flag."""
    known = known_env_types()
    if name not in known:
        raise UserError(f"unknown {flag} {name}{nearest(name, known)}; known: {', '.join(known)}")
    return name


def load_env(env_type, flag=None):
    """EnvConfig of configs/<env_type>.yaml, or of the settings file at a path that ends in .yaml or .yml.

    flag: what named it; it takes families of configs/ alone. Raises UserError where there is no such file, or it is no good.
    """
    own = flag is None and is_settings_file(env_type)
    path = Path(env_type) if own else CONFIG_DIR / f"{known_env_type(env_type, flag or '--env_type')}.yaml"
    return read_env(path, read_yaml(path))


LARGEST_YAML = 1 << 20  # bytes
MOST_NODES = 20_000  # keys and values, with aliases written out; ours have a few hundred


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error (plain YAML silently keeps the second), and so is a number that people read
    otherwise; `<<: *name` takes over a block."""


def _strict_mapping(loader, node, deep=False):
    seen = []
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        name = loader.construct_object(key, deep=deep)
        if name in seen:
            raise yaml.constructor.ConstructorError(None, None, f"key {name!r} is given twice", key.start_mark)
        seen.append(name)
    return yaml.SafeLoader.construct_mapping(loader, node, deep)


_StrictLoader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _strict_mapping)

INTEGER, NUMBER = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
ZERO_FIRST = re.compile(r"[-+]?0[0-9_]+$")  # 010 is 8 to YAML 1.1, and 08 a text


def _strict_number(loader, node):
    if ":" in node.value or ZERO_FIRST.match(node.value):  # 1:30 is 90
        problem = f"YAML does not read {shortened(node.value, 60)} as people do: write plain digits, or quotes around a text"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    make = yaml.SafeLoader.construct_yaml_int if node.tag == INTEGER else yaml.SafeLoader.construct_yaml_float
    return make(loader, node)


_StrictLoader.add_implicit_resolver(INTEGER, ZERO_FIRST, list("-+0"))
for _tag in (INTEGER, NUMBER):
    _StrictLoader.add_constructor(_tag, _strict_number)


def _count_nodes(node):
    """Raises ValueError where a document is larger than MOST_NODES once every alias is written out."""
    left, waiting = MOST_NODES, [node]
    while waiting:
        node, left = waiting.pop(), left - 1
        if left < 0:
            raise ValueError(f"it has more than {MOST_NODES} entries with every alias written out")
        if isinstance(node, yaml.MappingNode):
            waiting += [part for pair in node.value for part in pair]
        elif isinstance(node, yaml.SequenceNode):
            waiting += node.value


def read_yaml(path):
    """One settings file as a dict. Raises UserError with the line of a mistake."""
    try:
        loader = _StrictLoader(read_text(path, LARGEST_YAML))
        node = loader.get_single_node()
        _count_nodes(node)
        document = None if node is None else loader.construct_document(node)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror}") from None
    except RecursionError:
        raise UserError(f"{path} is nested too deeply") from None
    except (ValueError, OverflowError) as error:  # also a number or a date that is none
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())[:160]}") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f" line {mark.line + 1}" if mark else ""
        problem = " ".join(str(getattr(error, "problem", error)).split())[:160]
        raise UserError(f"{path}{line}: {problem}") from None
    if not isinstance(document, dict):
        raise UserError(f"{path} must be a mapping of keys to values")
    return document


def read_env(path, document):
    """The environment block of a settings file -> EnvConfig; modules beside the file become importable, for its entry point.

    Raises UserError that names the key.
    """
    if not is_name(Path(path).stem):  # it is that of folders and of the results
        raise UserError(f"{path}: a settings file cannot have that name: {NAMES}")
    fields = {field.name for field in dataclasses.fields(EnvConfig)} - {"env_type"}
    known = fields | set(SCRIPTS) | {"recipes", "baselines"}
    for key in document:
        if key not in known:
            raise UserError(f"{path}: unknown key {key!r}{nearest(str(key), known)}")
    for key in ("recipes", "baselines", *SCRIPTS):
        if document.get(key) is not None and not isinstance(document[key], dict):
            raise UserError(f"{path}: {key} must be a mapping")
    if "paper" in (document.get("recipes") or {}):
        raise UserError(f"{path}: recipes.paper is the name of the file's base: choose another")
    check_baselines(path, document.get("baselines"), "baselines")
    for name, recipe in (document.get("recipes") or {}).items():
        if not is_name(name):
            raise UserError(f"{path}: recipes: {shortened(repr(name), 120)} is not a name: {NAMES}")
        check_recipe(path, recipe, f"recipes.{name}")
    values = {"validation_tasks": document.get("train_tasks"), "fresh_tasks": None, "terminates": False, "options": {}}
    values |= {key: document[key] for key in fields & document.keys()}
    for key in sorted(fields - values.keys()):
        raise UserError(f"{path}: the key {key} is missing")
    for key, kind, text in (("env_name", str, "text"), ("entry_point", str, "text"), ("terminates", bool, "true or false")):
        if not isinstance(values[key], kind):
            raise UserError(f"{path}: {key} must be {text}, not {values[key]!r}")
    try:
        parse_env_id(values["env_name"])
    except GymnasiumError as error:
        raise UserError(f"{path}: env_name {values['env_name']!r} is no name of an environment ({error})") from None
    parts = values["entry_point"].split(":")
    if len(parts) != 2 or not all(part.strip() for part in parts):
        raise UserError(f"{path}: entry_point must read package.module:Class, not {values['entry_point']!r}")
    values["options"] = _read_options(path, values["options"])
    if type(values["max_episode_steps"]) is not int or values["max_episode_steps"] < 1:
        raise UserError(f"{path}: max_episode_steps must be an integer of at least 1, not {values['max_episode_steps']!r}")
    _check_ranges(path, values)
    folder = str(Path(path).resolve().parent)
    if folder not in sys.path:
        sys.path.append(folder)  # behind ours, so that nothing there takes the place of a module of the project
    return EnvConfig(env_type=Path(path).stem, **values)


def _read_options(path, options):
    """Keywords of the entry point as sorted pairs, texts and numbers. Raises UserError for another kind of value."""
    if not isinstance(options, dict) or not all(isinstance(key, str) for key in options):
        raise UserError(f"{path}: options must be a mapping of the entry point's keywords to values")
    for key, value in options.items():
        if key in ("render_mode", "max_episode_steps"):
            raise UserError(f"{path}: options.{key} is given by the scripts: remove it")
        if not isinstance(value, str | int | float):
            raise UserError(f"{path}: options.{key} must be text, a number, true or false, not {value!r}")
        if isinstance(value, float) and not math.isfinite(value):  # no record of a run can hold it
            raise UserError(f"{path}: options.{key} must be a finite number, not {value!r}: give a large one, or a text")
    return tuple(sorted(options.items()))


def _check_ranges(path, values):
    """Turns the task ranges in `values` into tuples. Raises UserError where one is impossible."""
    for key in ("train_tasks", "test_tasks", "validation_tasks", "fresh_tasks"):
        pair = values[key]
        if key == "fresh_tasks" and pair is None:
            continue
        if not (isinstance(pair, list) and len(pair) == 2 and all(type(n) is int for n in pair) and 0 <= pair[0] < pair[1]):
            raise UserError(f"{path}: {key} must be [first, last + 1], for example [0, 45], not {pair!r}")
        values[key] = tuple(pair)
    train, validation, test = (values[f"{name}_tasks"] for name in ("train", "validation", "test"))
    if test != train and max(train[0], test[0]) < min(train[1], test[1]):  # equal: nothing to generalise to, a family of one task
        raise UserError(f"{path}: test_tasks {list(test)} overlap train_tasks {list(train)}: no test task may be trained on")
    if validation[0] < train[0] or validation[1] > train[1]:
        raise UserError(f"{path}: validation_tasks {list(validation)} must lie inside train_tasks {list(train)}")
    if values["fresh_tasks"] and values["fresh_tasks"][0] < max(train[1], test[1]):
        raise UserError(f"{path}: fresh_tasks {list(values['fresh_tasks'])} must lie behind all other tasks")


def check_baselines(path, section, name, folder=BASELINES_DIR):
    """Sections of baselines are named as their files: baselines/x.py and baselines/x/__main__.py are `x:`, baselines/y/z.py is
    `y: {z: ...}`. Raises UserError for another name."""
    if section is None:
        return
    if not isinstance(section, dict):
        raise UserError(f"{path}: {name} must be a mapping")
    for key, value in section.items():
        inner = folder / str(key)
        if inner.is_dir() and not (inner / "__main__.py").exists():
            check_baselines(path, value, f"{name}.{key}", inner)
        elif not inner.is_dir() and not (folder / f"{key}.py").is_file():
            known = [entry.stem for entry in folder.iterdir() if entry.stem[0] not in "._"]
            raise UserError(f"{path}: {name}: unknown baseline {key!r}{nearest(str(key), known)}")


def recipe_names(document):
    """Recipes that a settings file (as a dict) can be asked for: "paper", its own, and those that all files share."""
    shared = sorted(path.stem for path in RECIPE_DIR.glob("*.yaml"))
    return list(dict.fromkeys(["paper", *(document.get("recipes") or {}), *shared]))


def recipe_layers(path, document, name):
    """[(file, {script: settings}, prefix of keys in messages)] of a recipe: the shared one, then the file's own over it.

    Raises UserError where neither configs/recipes/ nor the settings file (at `path`, read as `document`) knows the recipe.
    """
    if name not in recipe_names(document):
        raise UserError(f"{path.name} has no recipe {name!r}: choose {', '.join(recipe_names(document))}")
    layers, shared = [], RECIPE_DIR / f"{name}.yaml"
    if shared.exists():
        layers.append((shared, read_yaml(shared), ""))
        check_recipe(shared, layers[0][1])
    own = (document.get("recipes") or {}).get(name)
    return layers + ([(path, own, f"recipes.{name}.")] if own is not None else [])


def check_recipe(path, recipe, name=""):
    """Whether a recipe is a mapping of scripts to settings; `name`: where it stands in the file. Raises UserError."""
    where = f"{path}: {name}" if name else f"{path}"
    if not isinstance(recipe, dict):
        raise UserError(f"{where} must be a mapping of scripts to settings")
    for key in recipe:
        if key not in (*SCRIPTS, "baselines"):
            raise UserError(f"{where}: unknown script {key!r}{nearest(str(key), SCRIPTS)}")
    check_baselines(path, recipe.get("baselines"), f"{name}.baselines" if name else "baselines")
