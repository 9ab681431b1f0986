"""A run's folder: owned by one process, made with one set of settings."""

import contextlib
import fcntl
import json
from pathlib import Path

from src.run.errors import UserError
from src.run.files import read_json, system_reason, write_json


@contextlib.contextmanager
def run_directory(path, config, resume, volatile=()):
    """Own a run's folder: locks it, checks that what lies there was made with the same settings, else writes config.json.

    Args:
        config: JSON-able settings; a resumed run must agree in all but the keys in `volatile`.
        resume: False deletes the former run's files first.
    Raises UserError when another process writes there, or when the settings differ.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
    except OSError as error:
        raise UserError(f"cannot write into {path}: {system_reason(error.errno)}; choose another --output_dir") from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise UserError(f"another run is writing into {path}; wait for it or choose another --output_dir") from None
        for leftover in path.glob(".*.tmp"):  # of a run that was killed in the middle of a write
            leftover.unlink()
        if not resume:
            files = [old for old in path.rglob("*") if old.is_file() and old.name != ".lock"]
            for old in sorted(files, key=lambda file: file == path / "config.json"):  # last: it vouches for the others
                old.unlink()
        elif (path / "config.json").exists():
            _check_same(path, read_json(path / "config.json"), config, volatile)
        if not (path / "config.json").exists():
            write_json(path / "config.json", config)
        yield path


def _check_same(path, old, new, volatile):
    if not isinstance(old, dict):
        raise UserError(f"{path / 'config.json'} holds no settings: pass --no-resume to replace the run")
    new = json.loads(json.dumps(new))  # tuples and lists are one thing in JSON
    for key in sorted((old.keys() | new.keys()) - set(volatile)):
        if key not in old and not new[key]:
            continue  # a switch that is younger than the run, and off
        if old.get(key) != new.get(key):
            difference = f"{key} {old.get(key)!r}, this command says {new.get(key)!r}"
            if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
                inner = [k for k in old[key].keys() | new[key].keys() if old[key].get(k) != new[key].get(k)]
                difference = f"another {key} ({', '.join(sorted(inner))})"
            raise UserError(
                f"{path} holds a run with {difference}: pass --no-resume to replace it, or choose another --output_dir"
            )
