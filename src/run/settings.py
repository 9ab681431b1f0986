"""Settings: frozen dataclasses beside what consumes them, each field with its default, type and help; flags come from them."""

import dataclasses
import hashlib


def setting(default, help, type=None, choices=None, flags=(), nargs=None):
    """A field of a settings dataclass.

    Args:
        type: converts and checks a flag's text (src/run/flags.py has some); not needed for True or False and for `choices`.
            bool: a switch whose default, None, says neither.
        flags: further spellings of the flag. nargs: as of argparse, for a tuple of values.
    """
    metadata = {"help": help, "type": type, "choices": choices, "flags": flags, "nargs": nargs}
    return dataclasses.field(default=default, metadata=metadata)


def add_settings(parser, *classes, hyphens=False):
    """One group of flags per dataclass, titled by its docstring; --name for every field that `setting` declares, in the help
    with hyphens where asked for."""
    for cls in classes:
        group = parser.add_argument_group(cls.__doc__.partition("\n")[0].rstrip("."))
        for field in dataclasses.fields(cls):
            if not field.metadata:  # set by code, not by a flag
                continue
            default = list(field.default) if isinstance(field.default, tuple) else field.default
            options = {"default": default, "help": field.metadata["help"]}
            if isinstance(field.default, bool) or field.metadata["type"] is bool:
                options["action"] = "boolean"
            else:
                options |= {key: field.metadata[key] for key in ("type", "choices", "nargs") if field.metadata[key]}
            name = field.name.replace("_", "-") if hyphens else field.name
            group.add_argument(f"--{name}", *field.metadata["flags"], **options)


def pick(cls, args, **more):
    """The dataclass from parsed flags; `more` gives or replaces fields."""
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(cls) if hasattr(args, field.name)}
    return cls(**{**values, **more})


def changed(chosen, recipe, without=()):
    """What an ablation is called: the settings of the dataclass `chosen` that differ from the recipe's, as "<setting>_<value>";
    switches as "<setting>" and "no_<setting>". recipe: function name -> value. without: settings that have another name."""
    found = []
    for field in dataclasses.fields(chosen):
        if field.metadata and field.name not in without:
            value = getattr(chosen, field.name)
            if value != recipe(field.name):
                switches = {True: field.name, False: f"no_{field.name}"} if isinstance(value, bool) else {}
                found.append(switches.get(value, f"{field.name}_{value}"))
    return found


def ablation_name(names):
    """One name for a run with these changes; a digest of them where it would be too long for a folder."""
    name = "+".join(names) or "none"
    return name if len(name) <= 80 else f"changed_{hashlib.sha256(name.encode()).hexdigest()[:8]}"
