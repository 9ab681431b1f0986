"""Result files: the one writer and the one reader, for the scripts and for every baseline.

One finished measurement is one JSON file. Its facts are fields, and its path is built from them, never parsed:
results/<env_type>/<quality>/<method>[+<recipe>][-<ablation>][-<variant>]/<regime>-<protocol>[-validation|-fresh]/seed_<s>.json.
"tasks" holds one line per task: its id, its parameters, raw returns (seven digits), warm-up and later returns, lengths,
success, and the reference levels of the task; where all episodes are alike, {"each": its numbers, "times": how many}.
Pictures' data (paths, embeddings, beliefs) lie beside the run under saves/.
"""

import hashlib
import json
import re
from pathlib import Path

import numpy as np

from src.run.errors import UserError
from src.run.files import atomic_path, read_json, sealed, write_json
from src.run.flags import is_name
from src.run.provenance import provenance

SCHEMA = 1
# of `measured`: a list with an entry per task
PER_TASK = ("returns", "warmup_returns", "accepted", "later_returns", "lengths", "success")
PICTURES = ("trajectories", "embedding", "belief", "reward_prediction", "door_map")  # of `measured`: go to saves/
PRIVILEGES = ("none", "reward function", "task parameters", "simulator")  # what training was given beyond the recorded data
DIAGNOSTICS = "diagnostics"  # the regime of a file that describes a world model: it has no tasks and no protocol
NAMES = ("env_type", "quality", "method", "recipe", "ablation", "regime")
TEXTS = ("command", "commit", "hardware")
LARGEST = 1e15  # of any number in a file
MOST_ALIKE = 1_000_000  # numbers that a file may hold when episodes that are alike are written out
FILE_LIMIT, PICTURE_LIMIT = 16 << 20, 64 << 20  # bytes
WIDTH = 130  # characters of a line of settings
MEND = "repeat the run that wrote it, or remove the file"
SCALE = f"numbers up to {LARGEST:g} can be kept, scale rewards and observations to that"


# ----------------------------------------------------------------------------------------------------------- writing


def write_result(
    output_dir, env_type, quality, *, method, recipe, ablation, regime, protocol, privileges, seed, task_ids, measured, training,
    made_from, config, reference=None, target_return=None, task_parameters=None, curve=None, validation=False, fresh=False,
    variant=None, directory=None, folder="results", **extra,
):  # fmt: skip
    """Writes one result file, atomically, and returns its path.

    Args:
        output_dir: the root above results/. quality: of the data ("medium", "online", …).
        method: "meta_dt", "borel", …. recipe: named block of settings. ablation: "none", "no_context", ….
        regime: "zero_shot", "few_shot", "bamdp", …, or "diagnostics" (world model; no tasks).
        protocol: "strict", "paper", or None for diagnostics. privileges: one of PRIVILEGES.
        task_ids: the tasks that were scored. measured: what `evaluate` returns; PER_TASK lists, and PICTURES.
        training: {"gradient_steps", "wall_clock_s", "parameters" (their number), …}. made_from: {"dataset_sha256", …}.
        config: the resolved settings.
        reference: {level: per task a return, or the list of its returns by episode; or None where the level is unknown}.
        target_return: a number, or one per task. task_parameters: {task: {name: value}}; other tasks may be among them.
        curve: {series: list}, as long as its "gradient_steps". validation, fresh: whether the tasks are such.
        variant: {setting: value} of the evaluation where it differs from the recipe's.
        directory: the run's folder; pictures' data go there, and nowhere without it. folder: of results, below output_dir.
        extra: further facts (target_rule, normalisation, note, errors, probe, …).
    Raises:
        ValueError: `measured` does not fit the tasks or holds an unknown key.
        UserError: `read_result` would refuse the file, because a number is too large or not finite or a name is none.
    """
    measured, variant = dict(measured), dict(variant or {})
    pictures = {key: measured.pop(key) for key in PICTURES if measured.get(key) is not None and key in measured}
    if unknown := measured.keys() - {*PER_TASK, *PICTURES}:
        raise ValueError(f"measured holds {', '.join(sorted(unknown))}: give it as a fact of its own")
    facts = {
        "env_type": env_type, "quality": quality, "method": method, "recipe": recipe, "ablation": ablation, "variant": variant,
        "regime": regime, "protocol": protocol, "validation": validation, "fresh": fresh, "privileges": privileges, "seed": seed,
    }  # fmt: skip
    path = result_path(output_dir, facts, folder)
    per_task = {key: values for key, values in measured.items() if values is not None}
    single_target = target_return is None or np.ndim(target_return) == 0
    if not single_target:
        per_task["target_return"] = target_return
    levels = {level: values for level, values in (reference or {}).items() if values is not None}
    for key, values in {**per_task, **levels}.items():
        if len(values) != len(task_ids):
            raise ValueError(f"{key} has {len(values)} entries for {len(task_ids)} tasks")
    known = {str(task): values for task, values in (task_parameters or {}).items()}
    rows = []
    for place, task in enumerate(task_ids):
        row = {"task": int(task)}
        if str(int(task)) in known:
            row["parameters"] = known[str(int(task))]
        row |= {key: values[place] for key, values in per_task.items()}
        if levels:
            row["reference"] = {level: values[place] for level, values in levels.items()}
        rows.append(row)
    document = {"schema": SCHEMA, **facts}
    document |= {"target_return": target_return} if single_target and target_return is not None else {}
    document |= extra
    document |= {"tasks": rows, "curve": curve or {}, "training": training, "made_from": made_from}
    if pictures and directory is not None:
        name = "-".join(path.parent.parts[-2:])  # a run may be measured in several ways
        file = Path(directory, f"pictures-{name}.json")
        pictures = _as_json(pictures, label(facts))
        if file.is_relative_to(output_dir):
            document["pictures"] = file.relative_to(output_dir).as_posix()
    document |= {**provenance(), "config": config}
    document = _readable(document, label(facts))
    document["tasks"] = [{key: _folded(key, values) for key, values in row.items()} for row in document["tasks"]]
    text = _layout(sealed(document))
    if pictures and directory is not None:
        write_json(file, pictures)
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")  # names of files may be any bytes
    return path


def _folded(key, episodes):
    """A list with an entry per episode as it is written: what all episodes have in common once."""
    if key not in PER_TASK or len(episodes) < 2 or any(episode != episodes[0] for episode in episodes):
        return episodes
    return {"each": episodes[0], "times": len(episodes)}


def _unfold(rows):
    """Write out, in place, what all episodes of a row of "tasks" have in common, while that is no more than MOST_ALIKE."""
    left = MOST_ALIKE
    for row in rows if isinstance(rows, list) else ():
        for key in PER_TASK if isinstance(row, dict) else ():
            alike = row.get(key)
            if isinstance(alike, dict) and alike.keys() == {"each", "times"} and _is_whole(alike["times"]):
                left -= alike["times"] * (len(alike["each"]) + 1 if isinstance(alike["each"], list) else 1)
                if left >= 0:
                    row[key] = [alike["each"]] * alike["times"]


def _readable(document, name):
    """A document as its reader will see it. Raises UserError where that would refuse it."""
    document = _as_json(document, name)
    for key, rule in _faults(document):
        raise UserError(f"'{key}' of the result of {name} must be {rule}, and it is not written: {SCALE}")
    return document


def _as_json(value, name):
    try:
        return json.loads(_line(value))
    except ValueError:  # JSON knows neither
        raise UserError(f"the result of {name} holds a number that is infinite or none, and is not written: {SCALE}") from None


def require_writable(what, values):
    """Raises UserError where numbers (...,) are beyond what a result file may hold: before a training whose result they are."""
    if not (np.abs(values) <= LARGEST).all():
        raise UserError(f"{what} are above {LARGEST:g}, which no result file holds: scale the rewards down")


def result_path(output_dir, facts, folder="results"):
    """Path of the result file with these facts (a dict of the fields, or a result as `read_result` gives it)."""
    regime = facts["regime"] if facts["protocol"] is None else f"{facts['regime']}-{facts['protocol']}"
    regime += "-validation" if facts["validation"] else "-fresh" if facts["fresh"] else ""
    names = facts["env_type"], facts["quality"], label(facts), regime
    return Path(output_dir, folder, *names, f"seed_{facts['seed']}.json")


def label(facts):
    """The name of a row: method, recipe (but "paper"), ablation (but "none") and variant: meta_dt+fast-no_context."""
    name = facts["method"] + ("" if facts["recipe"] == "paper" else f"+{facts['recipe']}")
    name += "" if facts["ablation"] == "none" else f"-{facts['ablation']}"
    variant = "".join(f"-{key}_{value}" for key, value in (facts.get("variant") or {}).items())
    if len(variant) > 100 or re.search(r"[^\w.+-]", variant):  # no name for a folder
        variant = f"-variant_{hashlib.sha256(_line(facts['variant']).encode()).hexdigest()[:8]}"
    return name + variant


def _layout(document):
    """JSON text: a line per fact, per task and per series of the curve, settings on lines of WIDTH characters."""
    parts = []
    for key, value in document.items():
        if key == "tasks":
            text = _block("[", [_line(row, dense=True) for row in value], "]")
        elif key == "curve":
            text = _block("{", [f"{_line(name)}: {_line(series, dense=True)}" for name, series in value.items()], "}")
        elif key == "config":
            text = _block("{", _wrapped([f"{_line(name)}: {_line(setting)}" for name, setting in value.items()]), "}")
        else:
            text = _line(value)
        parts.append(f" {_line(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _block(opening, lines, closing):
    return f"{opening}\n  " + ",\n  ".join(lines) + f"\n {closing}" if lines else opening + closing


def _wrapped(items):
    """Texts -> lines of at most WIDTH characters, where an item is no longer."""
    lines = []
    for item in items:
        if lines and len(lines[-1]) + len(item) + 4 <= WIDTH:
            lines[-1] += f", {item}"
        else:
            lines.append(item)
    return lines


def _line(value, dense=False):
    separators = (",", ": ") if dense else None
    return json.dumps(value, allow_nan=False, ensure_ascii=False, default=_plain, separators=separators)


def _plain(value):
    """NumPy's arrays and numbers, ranges, paths -> what JSON knows."""
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    return list(value) if isinstance(value, range | set) else str(value)


# ----------------------------------------------------------------------------------------------------------- reading


def read_result(path):
    """One result file, checked.

    Returns:
        dict of its fields. In place of "tasks" stand columns with an entry per task: "task_ids", "returns" and the further
        PER_TASK keys where there are some, "task_parameters" {task: {…}}, "reference" {level: (tasks,)}, and
        "reference_episodes" {level: (tasks, K)} of the levels that are given by episode.
    Raises:
        UserError: the file cannot be read, or breaks the schema; one line that names the file and the key.
    """
    document = _read_object(path, FILE_LIMIT)
    if document.get("schema") != SCHEMA or isinstance(document.get("schema"), bool):
        raise UserError(f"{path}: key 'schema' must be {SCHEMA}; {MEND}")
    _unfold(document.get("tasks"))
    for key, rule in _faults(document):
        problem = f"must be {rule}" if key.split(".")[0] in document else "is missing"
        raise UserError(f"{path}: key '{key}' {problem}; {MEND}")
    return _columns(document)


def read_pictures(output_dir, result):
    """The pictures' data of a result, or {} where they do not lie under `output_dir` any more. Raises UserError."""
    name = result.get("pictures")
    path = Path(output_dir, name) if name else None
    return _read_object(path, PICTURE_LIMIT) if path and path.exists() else {}


def _read_object(path, limit):
    document = read_json(path, mend=MEND, largest=limit)
    if not isinstance(document, dict):
        raise UserError(f"{path}: must hold one JSON object; {MEND}")
    return document


def _columns(document):
    rows = document.pop("tasks")
    document["task_ids"] = [row["task"] for row in rows]
    for key in (*PER_TASK, "target_return"):
        if rows and key in rows[0]:
            document[key] = [row[key] for row in rows]
    document["task_parameters"] = {str(row["task"]): row["parameters"] for row in rows if "parameters" in row}
    levels = {level: [row["reference"][level] for row in rows] for level in rows[0].get("reference", {})} if rows else {}
    document["reference"] = {level: [float(np.mean(value)) for value in values] for level, values in levels.items()}
    document["reference_episodes"] = {level: values for level, values in levels.items() if isinstance(values[0], list)}
    return document


def _faults(document):
    """Yields (key, what it must be) where the schema is broken; later checks rely on the earlier ones having passed."""
    diagnostics = document.get("regime") == DIAGNOSTICS
    for key in (*NAMES, *(() if diagnostics else ("protocol",))):
        if not is_name(document.get(key)):
            yield key, "a name of letters, digits, _ . + - and no more than 100 of them"
    if diagnostics and document.get("protocol", "missing") is not None:
        yield "protocol", "null"
    for key in TEXTS:
        if not isinstance(document.get(key), str) or len(document[key]) > 10_000:
            yield key, "a text"
    if not _is_whole(document.get("seed")):
        yield "seed", "an integer from 0"
    if not isinstance(document.get("validation"), bool):
        yield "validation", "true or false"
    if not isinstance(document.get("fresh"), bool) or (document["fresh"] and document.get("validation")):
        yield "fresh", "true or false, and false for validation tasks"
    if document.get("privileges") not in PRIVILEGES:
        yield "privileges", f"one of {', '.join(PRIVILEGES)}"
    for key in ("variant", "curve", "training", "made_from", "config"):
        if not isinstance(document.get(key), dict):
            yield key, "an object"
    yield from _object_faults(document)
    yield from _curve_faults(document["curve"])
    yield from _task_faults(document.get("tasks"), diagnostics)
    yield from _diagnostics_faults(document)


def _object_faults(document):
    if not all(map(is_name, document["variant"])):
        yield "variant", "an object of settings"
    for key, value in document["training"].items():
        if not is_numbers(value, 0, nullable=True):
            yield f"training.{key}"[:100], "a number or null"
    if not all(isinstance(value, str | None) for value in document["made_from"].values()):
        yield "made_from", "an object of texts"
    if not is_numbers(document.get("target_return"), 0, nullable=True):
        yield "target_return", "a number or null"
    if not isinstance(document.get("pictures", ""), str) or ".." in document.get("pictures", "").split("/"):
        yield "pictures", "the path of a file below the folder of results/"
    scale = document.get("normalisation")
    if scale is not None and not (isinstance(scale, dict) and is_numbers([scale.get("minimum"), scale.get("maximum")], 1)):
        yield "normalisation", "null, or an object with the numbers minimum and maximum"
    if scale and not scale["minimum"] < scale["maximum"]:
        yield "normalisation", "an object whose minimum is below its maximum"


def _curve_faults(curve):
    steps = curve.get("gradient_steps") or []
    for key, values in curve.items():
        if not _is_series(key) or not is_numbers(values, 1, nullable=True) or len(values) not in (0, len(steps)):
            yield f"curve.{key}"[:100], "a list of numbers or nulls as long as curve.gradient_steps, or empty"
    if not is_numbers(steps, 1):
        yield "curve.gradient_steps", "a list of numbers"


def _task_faults(rows, diagnostics):
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows) or bool(rows) == diagnostics:
        yield "tasks", "a list of objects, one for each task"
    ids = [row.get("task") for row in rows]
    if not all(map(_is_whole, ids)) or len(set(ids)) < len(ids):
        yield "tasks.task", "an integer, another one for each task"
    for key in ("returns", "lengths", "success"):
        shapes = []
        for row in rows:
            values = row.get(key)
            shapes.append(len(values) if is_numbers(values, 1) and values else None)
        if key == "returns" and None in shapes:
            yield "tasks.returns", "a list of finite numbers for every task, none empty"
        wrong = [shape != len(row["returns"]) for shape, row in zip(shapes, rows, strict=True)]
        if any(key in row for row in rows) and any(wrong):
            yield f"tasks.{key}", "as many numbers as returns"
    for key in ("warmup_returns", "accepted", "later_returns"):
        if any(key in row for row in rows):
            fits = all(is_numbers(row.get(key), 2) and len(row[key]) == len(row["returns"]) for row in rows)
            if not fits or not _equally_long(numbers for row in rows for numbers in row[key]):
                yield f"tasks.{key}", "per return a list of finite numbers, equally many everywhere"
    if any("target_return" in row for row in rows) and not all(is_numbers(row.get("target_return"), 0) for row in rows):
        yield "tasks.target_return", "a number for every task"
    for row in rows:
        if not isinstance(row.get("parameters", {}), dict) or not isinstance(row.get("reference", {}), dict):
            yield "tasks.parameters", "an object, as reference must be"
    levels = {level for row in rows for level in row.get("reference", {})}
    for level in sorted(levels):
        values = [row.get("reference", {}).get(level) for row in rows]
        by_episode = is_numbers(values, 2) and _equally_long(values)
        if not is_name(level) or not (is_numbers(values, 1) or by_episode):
            yield f"tasks.reference.{level}"[:100], "a finite number for every task, or equally many by episode"


def _diagnostics_faults(document):
    probe = document.get("probe") or {}
    groups = {f"probe.{name}": values for name, values in probe.items()} if isinstance(probe, dict) else {"probe": probe}
    for key, values in {"errors": document.get("errors") or {}, **groups}.items():
        if not isinstance(values, dict) or not is_numbers(list(values.values()), 1, nullable=True):
            yield key[:100], "an object of finite numbers"


def is_numbers(value, depth, nullable=False):
    """Whether value is a list, nested `depth` deep, of finite numbers up to LARGEST (or None where nullable)."""
    if depth:
        return isinstance(value, list) and all(is_numbers(item, depth - 1, nullable) for item in value)
    if value is None:
        return nullable
    return isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST <= value <= LARGEST


def _equally_long(lists):
    """Whether lists are all of one length, and none is empty."""
    lengths = set(map(len, lists))
    return len(lengths) == 1 and lengths != {0}


def _is_whole(value):
    return type(value) is int and 0 <= value <= LARGEST


def _is_series(value):
    return is_name(value.replace("/", "_"))
