"""Settings: frozen dataclasses beside what consumes them, each field with its default, type and help; flags come from them."""

import dataclasses


def setting(default, help, type=None, choices=None, flags=(), nargs=None):
    """A field of a settings dataclass.

    Args:
        type: converts and checks a flag's text (src/run/config.py has some); not needed for True or False and for `choices`.
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
