"""Settings: one argparse parser per script, environment YAML files, strict checks.

Precedence: flag > named recipe of the YAML > the recipe of that name in configs/recipes/ > YAML > default in the code. An
unknown flag or key, a wrong type or an impossible value ends the script with one line on stderr and exit status 2, before
anything is written.
"""

import argparse
import dataclasses
import difflib
import os
import re
import shlex
import sys
from pathlib import Path

import torch
import yaml
from gymnasium.envs.registration import parse_env_id
from gymnasium.error import Error as GymnasiumError

from src.run.devices import use_threads
from src.run.environment import make_environment
from src.run.errors import UserError, shortened
from src.run.files import read_text
from src.run.settings import setting

NAMES = "give up to 100 letters, digits and _ . + -"  # what is_name takes
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


# ---------------------------------------------------------------------------------------------------------- flag types


def _number(kind, low, high, text):
    def convert(value):
        try:
            number = kind(value)
        except (TypeError, ValueError):
            number = None
        if number is None or isinstance(value, bool) or not low <= number <= high:
            raise argparse.ArgumentTypeError(f"{value!r} is not {text}")
        return number

    convert.__name__ = text
    return convert


def _integer(value):
    if isinstance(value, float):
        if not value.is_integer():
            raise ValueError(value)
        return int(value)
    return int(value)


positive_int = _number(_integer, 1, 10**12, "an integer of at least 1")
natural = _number(_integer, 0, 10**12, "an integer of at least 0")
positive_float = _number(float, 1e-300, 1e300, "a number above 0")
nonnegative_float = _number(float, 0, 1e300, "a number of at least 0")
fraction = _number(float, 0, 1, "a number between 0 and 1")
proper_fraction = _number(float, 0, 1 - 1e-6, "a number of at least 0 and below 1")
real = _number(float, -1e300, 1e300, "a finite number")


def boolean(value):
    """True or False, as text or as a value; yes, no, 1 and 0 are understood too."""
    words = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
    if str(value).lower() not in words:
        raise argparse.ArgumentTypeError(f"{value!r} is not True or False")
    return words[str(value).lower()]


def is_name(value):
    """Whether a text can be the name of a file or folder, and a fact of a result file, everywhere."""
    return isinstance(value, str) and re.fullmatch(r"[\w.+-]{1,100}", value) is not None and value not in (".", "..")


def plain_name(value):
    """The name of one file or folder, so that nothing is written or read elsewhere by it."""
    if not is_name(value):
        raise argparse.ArgumentTypeError(f"{shortened(repr(value), 120)} is not a name: {NAMES}")
    return value


class BooleanFlag(argparse.Action):
    """--x, --no-x, --x True, --x False, --x=False; anything else is an error."""

    def __init__(self, option_strings, dest, default=False, help=None):
        strings = [*option_strings, *(f"--no-{option[2:]}" for option in option_strings)]
        super().__init__(strings, dest, nargs="?", default=default, type=boolean, metavar="True|False", help=help)

    def __call__(self, parser, namespace, value, option_string=None):
        if option_string.startswith("--no-"):
            if value is not None:
                parser.error(f"{option_string} takes no value")
            value = False
        elif value is None:
            value = True
        setattr(namespace, self.dest, value)


class Parser(argparse.ArgumentParser):
    """argparse with one-line errors, no abbreviations, and defaults in the help. --a-b and --a_b are the same flag."""

    def __init__(self, description=None, **kwargs):
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            **kwargs,
        )
        self.register("action", "boolean", BooleanFlag)

    def parse_known_args(self, args=None, namespace=None):
        spellings = {string.replace("_", "-"): string for string in self._option_string_actions}

        def respelled(word):
            flag, *value = word.split("=", 1)
            return "=".join([spellings.get(flag.replace("_", "-"), flag), *value]) if word.startswith("--") else word

        return super().parse_known_args([respelled(word) for word in (sys.argv[1:] if args is None else args)], namespace)

    def error(self, message):
        raise UserError(message.removeprefix("argument "))


def script_parser(docstring):
    """A parser whose description is the script's docstring, with the flags that every script has."""
    parser = Parser(docstring, usage="%(prog)s --env_type NAME [flags]")
    parser.formatter_class = _HelpFormatter
    which = parser.add_argument_group("environment")
    which.add_argument("--env_type", help="name of the settings file: configs/<env_type>.yaml, for example point_robot")
    which.add_argument("--env_name", help="gymnasium-style name, for example PointRobot-v0; selects the same file")
    which.add_argument("--config", help="path of a settings file outside configs/ (an environment of your own)")
    which.add_argument(
        "--recipe",
        default="paper",
        help="named settings over the file's base, from its own block and configs/recipes/; 'paper' is the base, 'debug' tiny",
    )
    run = parser.add_argument_group("run")
    run.add_argument("--seed", type=natural, default=0, help="every random generator of the run derives from it")
    run.add_argument("--device", default="auto", help="auto (a GPU where there is one), cpu, cuda, cuda:1, ...")
    run.add_argument("--threads", type=positive_int, default=1, help="of torch and simulator; small models gain little from more")
    run.add_argument("--output_dir", default=".", help="root under which saves/, datasets/ and results/ are read and written")
    run.add_argument("--resume", action="boolean", default=True, help="continue an interrupted run; --no-resume starts again")
    run.add_argument("--tensorboard", action="boolean", default=True, help="write TensorBoard events beside metrics.jsonl")
    return parser


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """The docstring's layout is kept, and every flag shows its default; mostly one line for a flag."""

    def __init__(self, prog):
        super().__init__(prog, max_help_position=42, width=160)

    def _get_default_metavar_for_optional(self, action):
        return {"an integer": "N", "a number": "X", "a finite": "X"}.get(
            " ".join(getattr(action.type, "__name__", "").split()[:2]), "NAME"
        )

    def _get_help_string(self, action):
        return action.help if action.default is None else super()._get_help_string(action)  # the help says what None means

    def _format_action_invocation(self, action):
        if isinstance(action, BooleanFlag):  # --no-x, --x True and --x False work too
            return f"{action.option_strings[0]} [{action.metavar}]"
        return super()._format_action_invocation(action)


# -------------------------------------------------------------------------------------------------------------- parsing


def parse_args(parser, script, argv=None, notes=True):
    """Two passes: find the environment's YAML, make its values the defaults, then parse in full.

    Args:
        script: name of the YAML section, with dots where it is nested: "train_context", "baselines.borel.online_training".
        notes: say where a recipe has nothing for the script.

    Returns the namespace with `env` (EnvConfig), `env_type`, `env_name`, `suffix` ("" for the paper's recipe, "+fast" for
    another; "-validation" behind it with --validation) and a checked torch device in `device`. Raises UserError.
    """
    first = Parser(add_help=False)
    for flag in ("--env_type", "--env_name", "--config", "--recipe"):
        first.add_argument(flag)
    chosen, rest = first.parse_known_args(argv)
    if not (chosen.env_type or chosen.env_name or chosen.config):
        if "-h" in rest or "--help" in rest:
            parser.parse_args(argv)
        raise UserError(f"name an environment: --env_type {'|'.join(known_env_types())}, or --config FILE")
    path = find_config(chosen)
    document = read_yaml(path)
    env = read_env(path, document)
    apply_section(parser, path, find_section(document, script), script)
    if chosen.recipe not in (None, "paper"):
        layers = recipe_layers(path, document, chosen.recipe)
        sections = [(file, find_section(recipe, script), f"{name}{script}") for file, recipe, name in layers]
        if notes and script.startswith(("train_", "baselines.")) and not any(section for _, section, _ in sections):
            print(
                f"note: recipe {chosen.recipe} of {path.name} sets nothing for {script}: sizes are those without it",
                file=sys.stderr,
            )
        for file, section, name in sections:
            apply_section(parser, file, section, name)
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        raise UserError(f"unknown argument {unknown[0]}{nearest(unknown[0].split('=')[0], _flags(parser))}; see --help")
    args.env, args.env_type, args.env_name = env, env.env_type, env.env_name
    args.suffix = "" if args.recipe == "paper" else f"+{args.recipe}"
    if getattr(args, "validation", False):  # never in the place of a model or result of the test tasks
        args.suffix += "-validation"
    for key, value in vars(args).items():
        if isinstance(value, str) and "\0" in value:  # of a settings file: a command line cannot hold it
            raise UserError(f"{path}: {key} holds a zero byte, which no name has: take it out")
    args.device = find_device(args.device)
    use_threads(args.threads)
    return args


def is_given(name, argv=None):
    """Whether the command line has the flag --name, in either spelling."""
    words = sys.argv[1:] if argv is None else argv
    return any(str(word).split("=", 1)[0].replace("-", "_") == f"__{name}" for word in words)


def settings(args, exclude=()):
    """The resolved settings as a JSON-able dict, saved as config.json beside every artifact."""
    values = {key: value for key, value in vars(args).items() if key not in {"env", "config", "suffix", *exclude}}
    env = dataclasses.asdict(args.env)
    env.pop("fresh_tasks")  # no training depends on them
    for key in ("terminates", "options"):  # of few families: what says nothing is left out
        if not env[key]:
            env.pop(key)
    return {**values, "device": str(args.device), "env": env}


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


def known_env_type(name, flag="--env_type"):
    """`name`, where configs/ has a settings file of that name. Raises UserError that names the flag."""
    known = known_env_types()
    if name not in known:
        raise UserError(f"unknown {flag} {name}{nearest(name, known)}; known: {', '.join(known)}")
    return name


def find_config(chosen):
    """Path of the YAML that --config, --env_type or --env_name select; a contradiction is an error."""
    if chosen.config:
        if not Path(chosen.config).is_file():
            raise UserError(f"--config {chosen.config} does not exist")
        path = Path(chosen.config)
    elif chosen.env_type:
        path = CONFIG_DIR / f"{known_env_type(chosen.env_type)}.yaml"
    else:
        names = {read_yaml(CONFIG_DIR / f"{name}.yaml").get("env_name"): name for name in known_env_types()}
        if chosen.env_name not in names:
            raise UserError(f"unknown --env_name {chosen.env_name}{nearest(chosen.env_name, names)}; known: {', '.join(names)}")
        path = CONFIG_DIR / f"{names[chosen.env_name]}.yaml"
    if chosen.env_type and path.stem != chosen.env_type:
        raise UserError(f"--env_type {chosen.env_type} contradicts --config {chosen.config}: give one of them")
    name = read_yaml(path).get("env_name")
    if chosen.env_name and name != chosen.env_name:
        raise UserError(f"--env_name {chosen.env_name} contradicts {path.name}, which is {name}: give one of them")
    return path


def load_env(env_type, flag="--env_type"):
    """EnvConfig of configs/<env_type>.yaml. Raises UserError where there is no such file, or it is no good; `flag` named it."""
    path = CONFIG_DIR / f"{known_env_type(env_type, flag)}.yaml"
    return read_env(path, read_yaml(path))


LARGEST_YAML = 1 << 20  # bytes
MOST_NODES = 20_000  # keys and values, with aliases written out; ours have a few hundred


class _StrictLoader(yaml.SafeLoader):
    """YAML in which a key given twice is an error (plain YAML silently keeps the second); `<<: *name` takes over a block."""


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
    if ":" not in values["entry_point"]:
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


def find_section(document, script):
    """The mapping under a dotted name, or None."""
    for key in script.split("."):
        document = (document or {}).get(key)
    return document


def apply_section(parser, path, section, name):
    """Make the values of a YAML section the parser's defaults; each is checked as its flag would be."""
    if section is None:
        return
    if not isinstance(section, dict):
        raise UserError(f"{path}: {name} must be a mapping")
    actions = {action.dest: action for action in parser._actions}
    for key, value in section.items():
        if key not in actions or key in ("env_type", "env_name", "config", "recipe", "help"):
            raise UserError(f"{path}: {name}: unknown key {key!r}{nearest(str(key), actions)}")
        parser.set_defaults(**{key: _coerce(actions[key], value, f"{path}: {name}.{key}")})


def _coerce(action, value, where):
    if value is None:
        if action.default is not None:
            raise UserError(f"{where} is empty: give a value, or remove the line for the default {action.default}")
        return None
    if isinstance(action.nargs, int) or action.nargs in ("+", "*"):
        if not isinstance(value, list):
            raise UserError(f"{where}: {value!r} is not a list")
        return [_coerce_one(action, item, where) for item in value]
    return _coerce_one(action, value, where)


def _coerce_one(action, value, where):
    if isinstance(value, list | dict) or (action.type is None and not isinstance(value, str)):
        raise UserError(f"{where}: {value!r} is not text")
    try:
        value = action.type(value) if action.type else value
    except (argparse.ArgumentTypeError, ValueError, TypeError) as error:
        raise UserError(f"{where}: {error}") from None
    if action.choices is not None and value not in action.choices:
        raise UserError(f"{where}: {value!r} is not one of {', '.join(map(str, action.choices))}")
    return value


def _flags(parser):
    return [string for action in parser._actions for string in action.option_strings]


def nearest(word, candidates):
    """ " (did you mean ...?)" with the candidate that is most like `word`, or "" where none is."""
    found = difflib.get_close_matches(word, [str(c) for c in candidates], 1)
    return f" (did you mean {found[0]}?)" if found else ""


def find_device(name):
    """'auto' or a torch device name -> torch.device that exists here; a GPU for each process of torchrun. Raises UserError."""
    if name in ("auto", "cuda") and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, ImportError):
        raise UserError(f"--device {name} is not available here; use --device cpu") from None
    return device


@dataclasses.dataclass(frozen=True)
class TaskRange:
    """tasks"""

    task_id_start: int | None = setting(None, "first task id (default: the first there is)", natural)
    task_id_end: int | None = setting(None, "one past the last task id (default: all there are but the fresh ones)", natural)

    def of(self, env, environment, default=None):
        """The tasks as a range, checked; without flags all of the EnvConfig and its environment that are not fresh, or the pair
        `default`. Raises UserError."""
        total = num_known_tasks(env, environment)
        first, last = default or (0, total)
        start = first if self.task_id_start is None else self.task_id_start
        end = last if self.task_id_end is None else self.task_id_end
        if not 0 <= start < end <= total:
            raise UserError(f"--task_id_start {start} --task_id_end {end} must satisfy 0 <= start < end <= {total}")
        return range(start, end)

    def words(self):
        """The flags that say the same to another script."""
        given = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return [word for name, value in given.items() if value is not None for word in (f"--{name}", str(value))]


def next_command(run, script, *extra):
    """The command line of the stage that follows, for the same environment, recipe, seed and folder.

    Args:
        run: RunSettings, or what has its attributes.
        script: a file, or "-m package.module".
        extra: further words.
    """
    words = ["python", *script.split(), *(("--config", run.config) if run.config else ("--env_type", run.env_type)), *extra]
    for key, default in {"recipe": "paper", "seed": 0, "output_dir": "."}.items():
        if getattr(run, key) != default:
            words += [f"--{key}", str(getattr(run, key))]
    return shlex.join(words)


def report_command(results):
    """The command that shows what lies in the folder `results`."""
    return shlex.join(["python", "-m", "tools.report", "--results", str(results)])
