"""Flags and settings files: what wins, what is refused, and that every file and every --help works."""

import argparse
import importlib
import json

import pytest
import torch
import yaml
from helpers import POINT_ROBOT, ROOT, SCRIPTS, parsed

from src.run import command_line, config
from src.run.command_line import TaskRange, apply_section, next_command, parse_args, script_parser, settings
from src.run.config import load_env, num_tasks, read_env, read_yaml
from src.run.errors import UserError
from src.run.flags import fraction
from src.run.settings import pick
from tools import sweep

FILES = sorted((ROOT / "configs").glob("*.yaml"))
BASE = yaml.safe_load(POINT_ROBOT.read_text())
ENVIRONMENT = {key: BASE[key] for key in ("env_name", "entry_point", "max_episode_steps", "train_tasks", "test_tasks")}


def parser_of(script):
    return importlib.import_module(script).make_parser()


def write(path, document):
    """A settings file: the environment block of Point-Robot and what `document` adds or replaces; text is written as it is."""
    path.write_text(document if isinstance(document, str) else yaml.safe_dump(ENVIRONMENT | document))
    return path


def read(path, script="train_meta_dt", *flags):
    return parse_args(parser_of(script), script, ["--config", str(path), *flags])


def refused(path, message, script="train_meta_dt", *flags):
    with pytest.raises(UserError, match=message) as error:
        read(path, script, *flags)
    assert "\n" not in str(error.value)


# ------------------------------------------------------------------------------------------------------------- booleans


@pytest.mark.parametrize(
    ("flags", "value"),
    [
        ([], False),
        (["--zero_shot"], True),
        (["--zero_shot", "True"], True),
        (["--zero_shot", "true"], True),
        (["--zero_shot=True"], True),
        (["--zero_shot", "False"], False),
        (["--zero_shot", "false"], False),
        (["--zero_shot=False"], False),
        (["--zero_shot", "--no-zero_shot"], False),
        (["--no-zero_shot", "--zero_shot"], True),
        (["--zero_shot", "--seed", "2"], True),
    ],
)
def test_booleans_mean_what_they_say(flags, value):
    assert parsed("train_meta_dt", *flags).zero_shot is value


@pytest.mark.parametrize(("flags", "value"), [([], True), (["--no-resume"], False), (["--resume", "False"], False)])
def test_a_boolean_that_is_on_can_be_switched_off(flags, value):
    assert parsed("train_context", *flags).resume is value


@pytest.mark.parametrize("flags", [["--zero_shot", "maybe"], ["--zero_shot="], ["--no-zero_shot", "True"], ["--no-zero_shot=1"]])
def test_anything_else_is_refused(flags):
    with pytest.raises(UserError, match="zero_shot"):
        parsed("train_meta_dt", *flags)


def test_booleans_in_a_settings_file(tmp_path):
    for value, expected in ((True, True), (False, False), ("True", True), ("false", False)):
        path = write(tmp_path / "toy.yaml", {"train_meta_dt": {"zero_shot": value}})
        assert read(path).zero_shot is expected
        assert read(path, "train_meta_dt", "--no-zero_shot").zero_shot is False
    refused(write(tmp_path / "toy.yaml", {"train_meta_dt": {"zero_shot": "maybe"}}), "toy.yaml: train_meta_dt.zero_shot: 'maybe'")


# ----------------------------------------------------------------------------------------------------------- precedence


def test_flag_over_recipe_over_file_over_default(tmp_path):
    base = {"batch_size": 32, "width": 64, "layers": 5}
    recipe = {"batch_size": 16, "width": 48}
    path = write(tmp_path / "toy.yaml", {"train_meta_dt": base, "recipes": {"small": {"train_meta_dt": recipe}, "none": {}}})
    found = [
        tuple(getattr(args, key) for key in ("batch_size", "width", "layers", "heads"))
        for args in (
            read(path, "train_meta_dt", "--recipe", "small", "--batch_size", "8"),
            read(path, "train_meta_dt", "--recipe", "small"),
            read(path),
            read(path, "train_meta_dt", "--recipe", "paper"),
            read(path, "train_meta_dt", "--recipe", "none"),
        )
    ]
    assert found == [(8, 48, 5, 1), (16, 48, 5, 1), (32, 64, 5, 1), (32, 64, 5, 1), (32, 64, 5, 1)]
    assert read(path, "train_context", "--recipe", "small").batch_size == 128  # another script's section
    assert [read(path, "train_meta_dt", "--recipe", name).suffix for name in ("small", "paper")] == ["+small", ""]


def test_either_name_selects_the_file():
    by_type = parse_args(parser_of("train_context"), "train_context", ["--env_type", "point_robot"])
    by_name = parse_args(parser_of("train_context"), "train_context", ["--env_name", "PointRobot-v0"])
    both = parsed("train_context", "--env_name", "PointRobot-v0")
    assert settings(by_type) == settings(by_name) == settings(both)
    assert (by_name.env_type, by_name.env_name, by_name.env.test_tasks) == ("point_robot", "PointRobot-v0", (45, 50))


def test_a_contradiction_is_an_error(tmp_path):
    with pytest.raises(UserError, match="--env_name AntDir-v0 contradicts point_robot"):
        parsed("train_context", "--env_name", "AntDir-v0")
    path = write(tmp_path / "toy.yaml", {})
    refused(path, "--env_type point_robot contradicts --config", "train_context", "--env_type", "point_robot")
    assert read(path, "train_context", "--env_type", "toy").env_type == "toy"


@pytest.mark.parametrize("spelling", ["3e-4", "3.0e-4", "'3e-4'", "0.0003", ".3e-3"])
def test_numbers_however_yaml_reads_them(tmp_path, spelling):
    """YAML 1.1 reads 3e-4 as text."""
    text = yaml.safe_dump(ENVIRONMENT) + f"train_meta_dt: {{learning_rate: {spelling}, steps: 5.0e+3, batch_size: '16'}}\n"
    args = read(write(tmp_path / "toy.yaml", text), "train_meta_dt", "--prompt_start_step", "0")
    assert (args.learning_rate, args.steps, args.batch_size) == (3e-4, 5000, 16)
    assert (type(args.learning_rate), type(args.steps), type(args.batch_size)) == (float, int, int)


def test_numbers_that_are_read_in_one_way(tmp_path):
    text = yaml.safe_dump(ENVIRONMENT) + "options: {a: 0x10, b: 0b11, c: 1_000, d: 0.50, e: 0, f: '010', g: '1:30', h: -0.0}\n"
    options = read(write(tmp_path / "toy.yaml", text)).env.options
    assert options == (("a", 16), ("b", 3), ("c", 1000), ("d", 0.5), ("e", 0), ("f", "010"), ("g", "1:30"), ("h", 0.0))


def test_whole_numbers_for_a_number_become_one(tmp_path):
    args = read(write(tmp_path / "toy.yaml", {"train_meta_dt": {"return_scale": 10}}))
    assert type(args.return_scale) is float
    args = read(write(tmp_path / "toy.yaml", {"train_data_collection": {"hidden_sizes": [64.0, 32]}}), "train_data_collection")
    assert args.hidden_sizes == [64, 32] and all(type(size) is int for size in args.hidden_sizes)


def test_negative_numbers_on_the_command_line():
    assert parsed("train_meta_dt", "--target_return", "-5.5").target_return == -5.5
    assert parsed("train_meta_dt", "--target_return=-1e1").target_return == -10


def test_two_names_of_a_flag():
    assert parsed("get_datasets", "--data_type", "random", "--data-quality=random").data_type == "random"
    assert parsed("get_datasets", "--data_type", "random", "--data_type", "medium").data_type == "medium"


# -------------------------------------------------------------------------------------------------- mistakes in a file


@pytest.mark.parametrize(
    ("document", "message"),
    [
        ({"train_meta_dt": {"learning_rat": 1}}, r"unknown key 'learning_rat' \(did you mean learning_rate"),
        ({"train_meta_dt": {"env_type": "x"}}, "unknown key 'env_type'"),
        ({"train_meta_td": {}}, r"unknown key 'train_meta_td' \(did you mean train_meta_dt"),
        ({"max_steps": 3}, "unknown key 'max_steps'"),
        ({"recipes": {"fast": {"train_contxt": {}}}}, r"unknown script 'train_contxt' \(did you mean train_context"),
        ({"recipes": {"paper": {}}}, "recipes.paper is the name of the file's base"),
        ({"recipes": ["fast"]}, "recipes must be a mapping"),
        ({"train_meta_dt": [1]}, "train_meta_dt must be a mapping"),
        ({"train_meta_dt": {"learning_rate": "fast"}}, "train_meta_dt.learning_rate: 'fast' is not a number above 0"),
        ({"train_meta_dt": {"learning_rate": -1.0}}, "learning_rate: -1.0 is not a number above 0"),
        ({"train_meta_dt": {"learning_rate": float("nan")}}, "learning_rate: nan is not"),
        ({"train_meta_dt": {"learning_rate": True}}, "learning_rate: True is not"),
        ({"train_meta_dt": {"learning_rate": [1e-3]}}, "learning_rate"),
        ({"train_meta_dt": {"learning_rate": None}}, "train_meta_dt.learning_rate is empty: give a value, or remove the line"),
        ({"train_meta_dt": {"zero_shot": None}}, "zero_shot is empty"),
        ({"train_meta_dt": {"data_type": "random", "data_quality": "random"}}, "data_type and data_quality are names of one"),
        ({"train_meta_dt": {"no_zero_shot": True}}, "unknown key 'no_zero_shot'"),
        ({"train_meta_dt": {"h": True}}, "unknown key 'h'"),
        ({"train_meta_dt": {"target_return": True}}, "target_return: True is not a finite number .*, nor auto"),
        ({"train_meta_dt": {"target_return": "much"}}, "target_return: 'much' is not a finite number .*, nor auto"),
        ({"train_meta_dt": {"target_return": float("nan")}}, "target_return: nan is not a finite number .*, nor auto"),
        ({"train_meta_dt": {"steps": 2.5}}, "steps: 2.5 is not an integer of at least 1"),
        ({"train_meta_dt": {"steps": 0}}, "steps: 0 is not an integer of at least 1"),
        ({"train_meta_dt": {"dropout": 1.5}}, "dropout: 1.5 is not a number of at least 0 and below 1"),
        ({"train_meta_dt": {"prompt_select": "best"}}, "prompt_select: 'best' is not one of argmax, sample, random, last, none"),
        ({"train_meta_dt": {"data_quality": 3}}, "data_quality: 3 is no name of a dataset"),
        ({"env_name": 3}, "env_name must be text"),
        ({"env_name": "a/b c"}, "env_name 'a/b c' is no name of an environment"),
        ({"recipes": {"odd": "train_context"}}, "recipes.odd must be a mapping of scripts to settings"),
        ("[" * 5000, "nested too deeply"),
        ({"entry_point": "envs.point_robot.PointRobotEnv"}, "entry_point must read package.module:Class"),
        ({"entry_point": "a:b:c"}, "entry_point must read package.module:Class"),
        ({"entry_point": "a:"}, "entry_point must read package.module:Class"),
        ({"options": {"case": float("inf")}}, "options.case must be a finite number, not inf"),
        ({"options": {"case": float("nan")}}, "options.case must be a finite number, not nan"),
        ({"options": ["push"]}, "options must be a mapping of the entry point's keywords to values"),
        ({"options": {"max_episode_steps": 5}}, "options.max_episode_steps is given by the scripts"),
        ({"options": {"name": ["push"]}}, r"options.name must be text, a number, true or false, not \['push'\]"),
        ({"max_episode_steps": "20"}, "max_episode_steps must be an integer"),
        ({"max_episode_steps": True}, "max_episode_steps must be an integer"),
        ({"train_tasks": [5, 5]}, r"train_tasks must be \[first, last \+ 1\]"),
        ({"train_tasks": 45}, r"train_tasks must be \[first"),
        ({"test_tasks": [40, 50]}, "test_tasks .40, 50. overlap train_tasks"),
        ({"validation_tasks": [44, 46]}, "validation_tasks .44, 46. must lie inside train_tasks"),
        ({"fresh_tasks": [49, 60]}, "fresh_tasks .49, 60. must lie behind all other tasks"),
        ({"fresh_tasks": 50}, r"fresh_tasks must be \[first"),
        ("env_name: a\nenv_name: b\n", "toy.yaml line 2: key 'env_name' is given twice"),
        ("train_meta_dt: {steps: 1, steps: 2}\n", "key 'steps' is given twice"),
        ("a: &a {b: 1}\nrecipes: {fast: {train_meta_dt: {<<: *a, steps: 2, steps: 3}}}\n", "key 'steps' is given twice"),
        ("env_name: [\n", "toy.yaml line 2"),
        ("a: 1\nmax_episode_steps: 010\n", "toy.yaml line 2: YAML does not read 010 as people do: write plain digits"),
        ("max_episode_steps: 08\n", "does not read 08 as people do"),
        ("test_tasks: [-0_1, 8]\n", "does not read -0_1 as people do"),
        ("train_meta_dt: {steps: 1:30}\n", "does not read 1:30 as people do"),
        ("train_meta_dt: {steps: +1:30.5}\n", "does not read .1:30.5 as people do"),
        ("- a\n", "must be a mapping"),
        ("", "must be a mapping"),
        ("env_name: !!python/object:os.system x\n", "toy.yaml line 1"),
        ("env_name: A-v0\n", "the key entry_point is missing"),
    ],
)  # fmt: skip
def test_mistakes_in_a_file_are_named(tmp_path, document, message):
    refused(write(tmp_path / "toy.yaml", document), message)


def test_mistakes_in_a_recipe_are_named(tmp_path):
    path = write(tmp_path / "toy.yaml", {"recipes": {"fast": {"train_meta_dt": {"stesp": 1}}}})
    assert read(path).steps == 100_000
    refused(path, "toy.yaml: recipes.fast.train_meta_dt: unknown key 'stesp'.*steps", "train_meta_dt", "--recipe", "fast")
    refused(path, "has no recipe 'fats': choose paper, fast, compare, compare_long, debug", "train_meta_dt", "--recipe", "fats")


def test_a_recipe_without_a_section_is_told(tmp_path, capsys):
    path = write(tmp_path / "toy.yaml", {"recipes": {"slow": {"train_meta_dt": {"steps": 7}}}})
    read(path, "train_meta_dt", "--recipe", "slow")
    read(path, "get_datasets", "--recipe", "slow")
    read(path, "train_context", "--recipe", "fast")  # every file has what configs/recipes/fast.yaml says of this script
    assert not capsys.readouterr().err
    assert read(path, "train_context", "--recipe", "slow").suffix == "+slow"
    assert "note: recipe slow of toy.yaml sets nothing for train_context" in capsys.readouterr().err


def test_a_shared_recipe_lies_under_the_files_own(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "RECIPE_DIR", tmp_path / "recipes")
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "small.yaml").write_text("train_meta_dt: {batch_size: 16, width: 48}\n")
    base = {"batch_size": 32, "width": 64, "layers": 5}
    path = write(tmp_path / "toy.yaml", {"train_meta_dt": base, "recipes": {"small": {"train_meta_dt": {"width": 24}}}})
    args = read(path, "train_meta_dt", "--recipe", "small")
    assert (args.batch_size, args.width, args.layers, args.suffix) == (16, 24, 5, "+small")
    own = write(tmp_path / "mine.yaml", {})
    assert read(own, "train_meta_dt", "--recipe", "small").width == 48
    for text, message in (
        ("train_meta_dt: {widht: 1}\n", "small.yaml: train_meta_dt: unknown key 'widht' .did you mean width"),
        ("train_meta_td: {}\n", "small.yaml: unknown script 'train_meta_td' .did you mean train_meta_dt"),
    ):
        (tmp_path / "recipes" / "small.yaml").write_text(text)
        refused(own, message, "train_meta_dt", "--recipe", "small")


def test_a_recipe_may_build_on_another(tmp_path):
    path = write(tmp_path / "toy.yaml", {})
    path.write_text(
        path.read_text() + "recipes:\n  fast: {train_meta_dt: &fast {steps: 7, batch_size: 3}}\n"
        "  slow: {train_meta_dt: {<<: *fast, steps: 70}}\n"
    )
    slow = read(path, "train_meta_dt", "--recipe", "slow")
    assert (slow.steps, slow.batch_size) == (70, 3)


def test_any_name_of_a_flag_is_a_key(tmp_path):
    path = write(tmp_path / "toy.yaml", {"train_context": {"data_type": "random"}, "get_datasets": {"data_quality": "random"}})
    assert (read(path, "train_context").data_quality, read(path, "get_datasets").data_type) == ("random", "random")


def test_an_empty_value_undoes_what_lies_below(tmp_path):
    """Where the code's own default is nothing."""
    path = write(tmp_path / "toy.yaml", {"recipes": {"debug": {"get_datasets": {"task_id_end": None}}}})
    assert read(path, "get_datasets", "--recipe", "debug").task_id_end is None
    path = write(tmp_path / "toy.yaml", {"recipes": {"debug": {"get_datasets": {"capacity": None}}}})
    refused(path, "get_datasets.capacity is empty", "get_datasets", "--recipe", "debug")


def test_the_debug_recipe_takes_the_first_training_task(tmp_path):
    def chosen(*flags, **document):
        args = read(write(tmp_path / "toy.yaml", document), "get_datasets", "--recipe", "debug", *flags)
        return args.task_id_start, args.task_id_end

    assert chosen() == (None, 1)
    later = {"train_tasks": [2, 6], "test_tasks": [0, 2]}
    assert chosen(**later) == (2, 3) and chosen("--task_id_end", "5", **later) == (2, 5)
    assert chosen(**later, recipes={"debug": {"get_datasets": {"task_id_end": 4}}}) == (2, 4)


def test_a_settings_file_is_loaded_by_its_path(tmp_path):
    path = write(tmp_path / "toy.yml", {})
    assert load_env(str(path)) == load_env(path) == read(path).env
    with pytest.raises(UserError, match=r"cannot read .*no\.yaml: No such file"):
        load_env(tmp_path / "no.yaml")
    with pytest.raises(UserError, match="unknown --behaviour_of"):
        load_env(str(path), "--behaviour_of")


def test_a_family_of_one_task_may_be_tested_on_it(tmp_path):
    args = read(write(tmp_path / "toy.yaml", {"train_tasks": [0, 1], "test_tasks": [0, 1]}))
    assert args.env.validation_tasks == (0, 1)


def test_an_environment_that_does_not_fit_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_environments.py").write_text(
        "import gymnasium as gym, numpy as np\n"
        "class Plain(gym.Env):\n    observation_space = action_space = gym.spaces.Box(-1, 1, (1,))\n"
        "class Boundless(Plain):\n    tasks = {'a': np.zeros(50)}\n    action_space = gym.spaces.Box(-np.inf, np.inf, (1,))\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for entry_point, message in (
        ("broken_environments:Plain", "has no task table: set self.tasks"),
        ("broken_environments:Boundless", "action space without bounds"),
        ("broken_environments:Missing", "cannot be made .*Missing"),
        ("no_such_module:Env", "cannot be made .*no_such_module"),
    ):
        env = read(write(tmp_path / "toy.yaml", {"entry_point": entry_point})).env
        with pytest.raises(UserError, match=message):
            env.make()
    with pytest.raises(UserError, match="task ranges reach 101, the environment has 100 tasks"):
        read(write(tmp_path / "toy.yaml", {"test_tasks": [45, 101]})).env.make()


# ---------------------------------------------------------------------------------------------- every file, every script


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_parses_with_every_script_and_recipe(path):
    document = read_yaml(path)
    env = read_env(path, document)
    assert env.train_tasks[1] <= env.test_tasks[0] or env.train_tasks == env.test_tasks
    assert {"paper", "fast", "debug"} <= set(config.recipe_names(document))
    for recipe in config.recipe_names(document):
        for script in SCRIPTS:
            args = read(path, script, "--recipe", recipe)
            json.dumps(settings(args), allow_nan=False)
    if env.entry_point.startswith("envs.meta_world:"):
        pytest.importorskip("metaworld", reason="Meta-World is an optional install")
    environment = env.make(discrete=True)
    assert len(next(iter(environment.unwrapped.tasks.values()))) >= env.test_tasks[1]
    assert environment.observation_space.shape


def test_the_published_values_of_point_robot():
    policy, context = parsed("train_meta_dt"), parsed("train_context")
    found = (policy.learning_rate, policy.steps, policy.prompt_start_step, policy.history_length, policy.prompt_length)
    assert found == (1e-4, 100_000, 20_000, 20, 5)
    found = (policy.return_scale, policy.batch_size, policy.weight_decay, policy.lr_warmup_steps, policy.grad_clip)
    assert found == (10, 128, 1e-4, 10_000, 0.25)
    assert (policy.width, policy.layers, policy.heads, policy.dropout, policy.eval_every) == (128, 3, 1, 0.1, 500)
    ours = ("rescale_actions", "full_windows", "explore_steps")
    assert not any(getattr(policy, name) for name in ours)
    ours = (policy.context, policy.explore, policy.imitate, policy.other_tasks, policy.target_return)
    assert ours == ("running", "none", "episodes", "none", "auto")
    assert (context.context_horizon, context.epochs, context.steps, context.batch_size) == (4, 301, None, 128)
    assert (context.learning_rate, context.grad_clip, context.decode, context.weight_decay) == (1e-3, 1.0, "own", 0)


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_default_has_the_type_of_its_flag(script):
    parser = parser_of(script)
    for action in parser._actions:
        if action.default is None or action.default == argparse.SUPPRESS:
            continue
        again = command_line._coerce(action, action.default, action.dest)
        assert again == action.default and type(again) is type(action.default), action.dest
        assert action.help, action.dest


@pytest.mark.parametrize("flags", [["--help"], ["--env_type", "point_robot", "-h"]], ids=["alone", "of an environment"])
@pytest.mark.parametrize("script", [path.stem for path in sorted(ROOT.glob("*.py"))] + ["tools.report"])
def test_every_help_works(script, flags, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(script).main(flags)
    text = capsys.readouterr().out
    assert end.value.code == 0 and "%(" not in text and "show this help" in text
    if script in SCRIPTS:
        for action in parser_of(script)._actions:
            assert action.option_strings[0] in text
    if script == "train_meta_dt":
        assert ("(default: 10.0)" in text) == (len(flags) > 1)  # the environment's own default


def test_flags_are_not_abbreviated():
    with pytest.raises(UserError, match=r"unknown argument --learning_rat \(did you mean --learning_rate"):
        parsed("train_meta_dt", "--learning_rat", "1")
    with pytest.raises(UserError, match="unknown argument"):
        parsed("train_meta_dt", "--zero")


# ------------------------------------------------------------------------------------------------------------- helpers


def test_the_settings_tell_everything():
    args = parsed("train_meta_dt", "--seed", "3")
    document = json.loads(json.dumps(settings(args)))
    flags = {action.dest for action in parser_of("train_meta_dt")._actions} - {"help", "config"}
    assert flags <= document.keys() and document["seed"] == 3
    assert document["env"]["test_tasks"] == [45, 50] and document["device"] == str(args.device)


def test_the_next_command_goes_on_where_this_one_stood(tmp_path):
    args = parsed("train_context", "--seed", "2", "--recipe", "fast", "--output_dir", "a folder")
    expected = "python x.py --env_type point_robot --y 1 --recipe fast --seed 2 --output_dir 'a folder'"
    assert next_command(args, "x.py", "--y", "1") == expected
    assert next_command(parsed("train_context"), "x.py") == "python x.py --env_type point_robot"
    path = write(tmp_path / "toy.yaml", {})
    assert next_command(read(path), "x.py") == f"python x.py --config {path}"
    args = parsed("get_datasets", "--task_id_start", "3")
    kept = next_command(args, "x.py", *pick(TaskRange, args).words())
    assert kept == "python x.py --env_type point_robot --task_id_start 3"


def test_task_ranges():
    env = read_env(POINT_ROBOT, read_yaml(POINT_ROBOT))
    environment = env.make()
    assert num_tasks(environment) == 100  # of the fresh ones no data are made
    for start, end, expected in ((None, None, range(50)), (3, None, range(3, 50)), (None, 2, range(2)), (49, 50, range(49, 50))):
        assert TaskRange(start, end).of(env, environment) == expected
    for start, end in ((5, 5), (7, 5), (0, 51), (50, None)):
        with pytest.raises(UserError, match="must satisfy 0 <= start < end <= 50"):
            TaskRange(start, end).of(env, environment)


def test_devices():
    assert parsed("train_context", "--device", "cpu").device == torch.device("cpu")
    assert parsed("train_context").device.type == ("cuda" if torch.cuda.is_available() else "cpu")
    for name in ("gpu", "cuda:99", "meta", "hpu", "mps:7", ""):
        with pytest.raises(UserError, match="use --device cpu"):
            parsed("train_context", "--device", name)


def test_a_section_is_checked_as_its_flags_are():
    parser = script_parser("x")
    parser.add_argument("--level", type=fraction, choices=[0.5, 1.0], default=1.0, help="x")
    apply_section(parser, "toy.yaml", {"level": "0.5", "seed": 4}, "x")
    assert (parser.get_default("level"), parser.get_default("seed")) == (0.5, 4)
    with pytest.raises(UserError, match=r"toy.yaml: x.level: 0.25 is not one of 0.5, 1.0"):
        apply_section(parser, "toy.yaml", {"level": 0.25}, "x")
    parser.add_argument("--sizes", type=fraction, nargs="+", default=[1.0], help="x")
    with pytest.raises(UserError, match=r"toy.yaml: x.sizes is an empty list: give a value at least"):
        apply_section(parser, "toy.yaml", {"sizes": []}, "x")


@pytest.mark.parametrize("name", ["a b", "a'b", "x%s", "new\nline", "x" * 101, "a,b"])
def test_names_that_no_result_can_have(tmp_path, name):
    """A result of such a name was written after the training, and could not be read by the report."""
    document = read_yaml(POINT_ROBOT)
    with pytest.raises(UserError, match="a settings file cannot have that name: give up to 100 letters"):
        read_env(tmp_path / f"{name}.yaml", document)
    with pytest.raises(UserError, match=r"recipes: .* is not a name: give up to 100 letters"):
        read_env(tmp_path / "own.yaml", document | {"recipes": {name: {}}})
    for good in ("ü", "x+y", "1", "a.b-c"):
        assert read_env(tmp_path / f"{good}.yaml", document | {"recipes": {good: {}}}).env_type == good


@pytest.mark.parametrize(
    ("flags", "start"),
    [([], 20_000), (["--steps", "25000"], 5000), (["--steps", "3"], 0), (["--steps", "200000"], 20_000),
     (["--steps", "25000", "--prompt_start_step", "20000"], 20_000), (["--steps", "25000", "--prompt-start-step=20000"], 20_000),
     (["--steps", "6", "--recipe", "debug"], 2)],
)  # fmt: skip
def test_a_smaller_budget_keeps_the_share_of_steps_without_prompts(flags, start):
    import train_meta_dt

    parser, argv = train_meta_dt.make_parser(), ["--env_type", "point_robot", *flags]
    args = parse_args(parser, "train_meta_dt", argv)
    assert train_meta_dt.prompt_start(parser, args, argv) == start


@pytest.mark.parametrize("flags", [["--slurm", "a=1", "--slurm", "b=1"], ["--set", "focal.steps=5", "--set=focal.width=7"]])
def test_flags_of_several_values_are_given_once(flags):
    """Else the first ones would be forgotten."""
    with pytest.raises(UserError, match="is given 2 times: give it once, with all its values"):
        sweep.make_parser().parse_args(flags)
