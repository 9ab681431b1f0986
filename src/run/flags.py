"""Flags: an argparse parser with one-line errors, and types that convert and check the value of a flag or of a settings file."""

import argparse
import difflib
import re
import sys

from src.run.errors import UserError, shortened

NAMES = "give up to 100 letters, digits and _ . + -"  # what is_name takes


def folder(value):
    """A folder's name, which may not be empty."""
    if not value.strip():
        raise argparse.ArgumentTypeError(f"{value!r} names no folder: give one, or . for this")
    return value


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


# beyond these bounds float32 fails in the midst of a training, and C's integers in a library
positive_int = _number(_integer, 1, 10**12, "an integer of at least 1 (to 1e12)")
natural = _number(_integer, 0, 10**12, "an integer of at least 0 (to 1e12)")
thread_count = _number(_integer, 1, 1024, "an integer of at least 1 (to 1024)")
positive_float = _number(float, 1e-15, 1e15, "a number above 0 (1e-15 to 1e15)")
nonnegative_float = _number(float, 0, 1e15, "a number of at least 0 (to 1e15)")
fraction = _number(float, 0, 1, "a number between 0 and 1")
proper_fraction = _number(float, 0, 1 - 1e-6, "a number of at least 0 and below 1")
positive_fraction = _number(float, 1e-15, 1, "a number above 0, at most 1")
real = _number(float, -1e15, 1e15, "a finite number (-1e15 to 1e15)")


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
        module = getattr(sys.modules["__main__"], "__spec__", None)  # None for a script that is run by its path
        if module:
            kwargs.setdefault("prog", f"python -m {module.name.removesuffix('.__main__')}")
        super().__init__(
            description=description,
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
            **kwargs,
        )
        self.register("action", "boolean", BooleanFlag)

    def parse_args(self, args=None, namespace=None):
        found, unknown = self.parse_known_args(args, namespace)
        if unknown:
            near = nearest(unknown[0].split("=")[0], self._option_string_actions)
            self.error(f"unknown argument {unknown[0]}{near}; see --help")
        return found

    def parse_known_args(self, args=None, namespace=None):
        spellings = {string.replace("_", "-"): string for string in self._option_string_actions}

        def respelled(word):
            flag, *value = word.split("=", 1)
            return "=".join([spellings.get(flag.replace("_", "-"), flag), *value]) if word.startswith("--") else word

        words = [respelled(word) for word in (sys.argv[1:] if args is None else args)]
        self._check_names(words)
        return super().parse_known_args(words, namespace)

    def _check_names(self, words):
        """Two names of one flag must say the same: which one wins, nobody can know. What takes any number of values, none by
        default, is given once: the first ones would be lost."""
        for action in self._actions:
            given = [word for word in words if word.partition("=")[0] in action.option_strings]
            if action.nargs in ("+", "*") and not action.default and len(given) > 1:
                self.error(f"{action.option_strings[0]} is given {len(given)} times: give it once, with all its values")
            if len(action.option_strings) < 2 or action.nargs is not None:
                continue
            said = {}
            for word, following in zip(words, [*words, ""][1:], strict=True):
                flag, equals, value = word.partition("=")
                if flag in action.option_strings:
                    said[flag] = value if equals else following
            if len(set(said.values())) > 1:
                self.error(f"{' and '.join(f'{flag} {value}' for flag, value in said.items())} contradict: give one of them")

    def error(self, message):
        raise UserError(message.removeprefix("argument "))


def nearest(word, candidates):
    """ " (did you mean ...?)" with the candidate that is most like `word`, or "" where none is."""
    found = difflib.get_close_matches(word, [str(c) for c in candidates], 1)
    return f" (did you mean {found[0]}?)" if found else ""
