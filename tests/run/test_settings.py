"""Settings declared at a dataclass: the flags that come of it, what they refuse, and what a settings file changes."""

import dataclasses
import sys
import types

import pytest
import yaml
from helpers import POINT_ROBOT

from src.run.command_line import apply_section, parse_args, script_parser
from src.run.errors import UserError
from src.run.flags import Parser, natural, positive_float
from src.run.settings import add_settings, pick, setting


@dataclasses.dataclass(frozen=True)
class Soup:
    """how it is cooked.

    More than the title.
    """

    kettle: object  # given by code
    minutes: int = setting(20, "on the fire", natural)
    salt: float = setting(0.5, "in grams", positive_float)
    stirred: bool = setting(True, "with a spoon")
    cold: bool = setting(False, "served so")
    kind: str = setting("leek", "of vegetable", choices=["leek", "pea"], flags=("--sort",))
    name: str | None = setting(None, "on the menu")


def parser_of():
    parser = script_parser("Soup.")
    add_settings(parser, Soup)
    return parser


def cooked(*flags):
    return pick(Soup, parser_of().parse_args(flags), kettle="iron")


def test_defaults_and_fields_given_by_code():
    assert cooked() == Soup("iron", 20, 0.5, True, False, "leek", None)
    with pytest.raises(TypeError, match="kettle"):
        pick(Soup, parser_of().parse_args([]))
    assert pick(Soup, parser_of().parse_args(["--minutes", "3"]), kettle=1, minutes=4).minutes == 4  # code wins
    with pytest.raises(dataclasses.FrozenInstanceError):
        cooked().minutes = 3


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        ("--minutes 0", "minutes", 0),
        ("--salt 2", "salt", 2.0),
        ("--no-stirred", "stirred", False),
        ("--stirred False", "stirred", False),
        ("--stirred", "stirred", True),
        ("--cold", "cold", True),
        ("--cold true", "cold", True),
        ("--kind pea", "kind", "pea"),
        ("--sort pea", "kind", "pea"),
        ("--name 7", "name", "7"),
    ],
)
def test_a_flag_for_every_field(flags, field, value):
    found = cooked(*flags.split())
    assert found == dataclasses.replace(cooked(), **{field: value}) and type(getattr(found, field)) is type(value)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--minutes 1.5", "'1.5' is not an integer of at least 0"),
        ("--salt 0", "'0' is not a number above 0"),
        ("--cold maybe", "'maybe' is not True or False"),
        ("--kind fish", "invalid choice: 'fish' .*leek.*pea"),
        ("--minuts 5", r"unknown argument --minuts \(did you mean --minutes\?\); see --help"),
        ("--kettle iron", "unknown argument --kettle; see --help"),
    ],
)
def test_what_does_not_fit_is_refused(flags, message):
    with pytest.raises(UserError, match=message):
        cooked(*flags.split())


def test_the_title_of_the_group_and_the_help():
    text = parser_of().format_help()
    group = text[text.index("how it is cooked:") :]
    assert "More than the title" not in text and "kettle" not in text
    for words in ("--minutes", "on the fire", "(default: 20)", "--sort", "--stirred [True|False]", "(default: True)"):
        assert words in group


@pytest.mark.parametrize("module", ["baselines.focal", "baselines.online_dt", None])
def test_the_help_names_a_module_as_it_is_run(module, monkeypatch):
    spec = module and types.SimpleNamespace(name="baselines.online_dt.__main__" if module.endswith("online_dt") else module)
    monkeypatch.setitem(sys.modules, "__main__", types.SimpleNamespace(__spec__=spec))
    monkeypatch.setattr(sys, "argv", ["/somewhere/train_context.py"])
    assert Parser("what it does").prog == (f"python -m {module}" if module else "train_context.py")


def test_a_settings_file_changes_the_default_and_a_flag_wins(tmp_path):
    environment = yaml.safe_load(POINT_ROBOT.read_text())
    keys = ("env_name", "entry_point", "max_episode_steps", "train_tasks", "test_tasks")
    document = {key: environment[key] for key in keys} | {
        "train_meta_dt": {"minutes": 5, "stirred": "false", "kind": "pea"},
        "recipes": {"quick": {"train_meta_dt": {"minutes": 1}}},
    }
    (tmp_path / "toy.yaml").write_text(yaml.safe_dump(document))

    def read(*flags):
        args = parse_args(parser_of(), "train_meta_dt", ["--config", str(tmp_path / "toy.yaml"), *flags])
        found = pick(Soup, args, kettle=0)
        return found.minutes, found.stirred, found.kind

    assert read() == (5, False, "pea")
    assert read("--recipe", "quick") == (1, False, "pea")
    assert read("--recipe", "quick", "--minutes", "2", "--stirred", "--kind", "leek") == (2, True, "leek")
    for section, message in (({"kind": "fish"}, "'fish' is not one of leek, pea"), ({"kettle": 1}, "unknown key 'kettle'")):
        with pytest.raises(UserError, match=message):
            apply_section(parser_of(), "toy.yaml", section, "train_meta_dt")
