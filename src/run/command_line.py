"""Command lines: one parser per script, whose defaults come from settings files, and the command that follows.

Precedence: flag > named recipe of the YAML > the recipe of that name in configs/recipes/ > YAML > default in the code. An
unknown flag or key, a wrong type or an impossible value ends the script with one line on stderr and exit status 2, before
anything is written.
"""

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path

from src.run.config import CONFIG_DIR, known_env_type, known_env_types, num_known_tasks, read_env, read_yaml, recipe_layers
from src.run.devices import find_device, use_threads
from src.run.errors import UserError
from src.run.flags import BooleanFlag, Parser, folder, natural, nearest, thread_count
from src.run.settings import setting


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
    run.add_argument("--threads", type=thread_count, default=1, help="of torch and simulator; small models gain little from more")
    run.add_argument("--output_dir", default=".", type=folder, help="root of saves/, datasets/ and results/")
    run.add_argument("--resume", action="boolean", default=True, help="continue an interrupted run; --no-resume starts again")
    run.add_argument("--tensorboard", action="boolean", default=True, help="write TensorBoard events beside metrics.jsonl")
    return parser


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
    for key in ("context_horizon", "prompt_length"):  # steps of one episode: a default fits short ones, too
        if parser.get_default(key):
            parser.set_defaults(**{key: min(parser.get_default(key), env.max_episode_steps)})
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
            apply_section(parser, file, section if file == path else in_training_tasks(section, env), name)
    args = parser.parse_args(argv)
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


def find_section(document, script):
    """The mapping under a dotted name, or None."""
    for key in script.split("."):
        document = (document or {}).get(key)
    return document


def recipe_keys(env_type, recipe, script):
    """Names of the settings that a recipe has for a script, in the family's file and the shared one."""
    path = CONFIG_DIR / f"{env_type}.yaml"
    layers = [] if recipe == "paper" else recipe_layers(path, read_yaml(path), recipe)
    return {key for _, sections, _ in layers for key in find_section(sections, script) or {}}


def in_training_tasks(section, env):
    """A shared recipe's section, or None. It knows no family's ranges: its task ids count from the first training task."""
    first = env.train_tasks[0]
    if not (first and section and "task_id_end" in section):
        return section
    return {**section, "task_id_start": first, "task_id_end": first + section["task_id_end"]}


def apply_section(parser, path, section, name):
    """Make the values of a YAML section the parser's defaults; each is checked as its flag would be. Keys are any name of a flag,
    without its dashes and with _ for those inside."""
    if section is None:
        return
    if not isinstance(section, dict):
        raise UserError(f"{path}: {name} must be a mapping")
    actions = {key: action for action in parser._actions for key in _keys(action)}
    of_code = vars(parser).setdefault("_of_code", {action.dest: action.default for action in parser._actions})
    given = {}
    for key, value in section.items():
        action, where = actions.get(key), f"{path}: {name}.{key}"
        if action is None or action.dest in ("env_type", "env_name", "config", "recipe", "help"):
            raise UserError(f"{path}: {name}: unknown key {key!r}{nearest(str(key), actions)}")
        if action.dest in given:
            raise UserError(f"{where} and {given[action.dest]} are names of one setting: give one of them")
        given[action.dest] = key
        empty = value is None and of_code[action.dest] is None  # undoes what lies below
        parser.set_defaults(**{action.dest: None if empty else _coerce(action, value, where)})


def _keys(action):
    """What a flag is called in a settings file: all its names, but not the --no-x of a switch."""
    strings = [string for string in action.option_strings if not string.startswith("--no-")]
    return {action.dest, *(string.lstrip("-").replace("-", "_") for string in strings)}


def _coerce(action, value, where):
    if value is None:
        raise UserError(f"{where} is empty: give a value, or remove the line for the default {action.default}")
    if isinstance(action.nargs, int) or action.nargs in ("+", "*"):
        if not isinstance(value, list):
            raise UserError(f"{where}: {value!r} is not a list")
        if not value and action.nargs == "+":
            raise UserError(f"{where} is an empty list: give a value at least, or remove the line")
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

    def with_training(self, env):
        """A TaskRange that holds the training tasks of the EnvConfig too."""
        (first, last), start, end = env.train_tasks, self.task_id_start, self.task_id_end
        return TaskRange(None if start is None else min(start, first), None if end is None else max(end, last))

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
