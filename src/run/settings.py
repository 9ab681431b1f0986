"""Settings: frozen dataclasses beside what consumes them, each field with its default, type and help; flags come from them."""

import dataclasses


def setting(default, help, type=None, choices=None, flags=()):
    """A field of a settings dataclass.

    Args:
        type: converts and checks a flag's text (src/run/config.py has some); not needed for True or False and for `choices`.
        flags: further spellings of the flag.
    """
    return dataclasses.field(default=default, metadata={"help": help, "type": type, "choices": choices, "flags": flags})


def add_settings(parser, *classes):
    """One group of flags per dataclass, titled by its docstring; --name for every field that `setting` declares."""
    for cls in classes:
        group = parser.add_argument_group(cls.__doc__.partition("\n")[0].rstrip("."))
        for field in dataclasses.fields(cls):
            if not field.metadata:  # set by code, not by a flag
                continue
            options = {"default": field.default, "help": field.metadata["help"]}
            if isinstance(field.default, bool):
                options["action"] = "boolean"
            else:
                options |= {key: field.metadata[key] for key in ("type", "choices") if field.metadata[key]}
            group.add_argument(f"--{field.name}", *field.metadata["flags"], **options)


def pick(cls, args, **more):
    """The dataclass from parsed flags; `more` gives or replaces fields."""
    values = {field.name: getattr(args, field.name) for field in dataclasses.fields(cls) if hasattr(args, field.name)}
    return cls(**{**values, **more})
