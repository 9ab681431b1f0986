"""A run's folder: owned by one process, made with one set of settings."""

import contextlib
import json
import shutil
from pathlib import Path

from src.run import distributed
from src.run.errors import UserError
from src.run.files import locked_file, read_json, system_reason, write_json

# what lies in the folder of a run that has achieved nothing yet
NOTES = {".lock", "config.json", "metrics.csv", "metrics.jsonl", "tensorboard"}


@contextlib.contextmanager
def run_directory(path, config, resume, volatile=(), elsewhere=None):
    """As `owned_directory`; of several processes (src/run/distributed.py) the first one owns the folder, and the others wait."""
    if distributed.wanted() != distributed.size():
        raise UserError("this script runs in one process: start it by python, without torchrun")
    with distributed.leader_first(lambda: owned_directory(path, config, resume, volatile, elsewhere)):
        yield Path(path)


@contextlib.contextmanager
def owned_directory(path, config, resume, volatile=(), elsewhere=None):
    """Own a run's folder: locks it, checks that what lies there was made with the same settings, else writes config.json.

    A run that ends in an error before its first artifact leaves no settings behind, and settings without an artifact bind nobody:
    the corrected command goes through.

    Args:
        config: JSON-able settings; a resumed run must agree in all but the keys in `volatile`.
        resume: False deletes the former run's files first.
        elsewhere: a folder that the run writes into beside its own; what lies there is bound to the settings too.
    Raises UserError when another process writes there, when the settings differ, or when artifacts lie there without settings.
    """
    path = Path(path)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    with contextlib.ExitStack() as stack:
        try:
            path.mkdir(parents=True, exist_ok=True)
            stack.enter_context(locked_file(path / ".lock", wait=False))
        except BlockingIOError:
            raise UserError(f"another run is writing into {path}; wait for it or choose another --output_dir") from None
        except OSError as error:
            raise UserError(f"cannot write into {path}: {system_reason(error.errno)}; choose another --output_dir") from None
        for leftover in path.glob(".*.tmp"):  # of a run that was killed in the middle of a write
            leftover.unlink(missing_ok=True)
        if not resume:
            _clear(path)
        elif _achieved(path) or (elsewhere and Path(elsewhere).exists() and (path / "config.json").exists()):
            _check_same(path, config, volatile)
            config = None  # the first ones stay
        if config is not None:
            write_json(path / "config.json", config)
        try:
            yield path
        except UserError:
            if not _achieved(path) and not (elsewhere and Path(elsewhere).exists()):
                _clear(path)
                _remove(made, path)
            raise


def _achieved(path):
    """Whether a run has left more here than its settings and logs."""
    return any(entry.name not in NOTES and not entry.name.endswith(".tmp") for entry in path.iterdir())


def _clear(path):
    files = [old for old in path.rglob("*") if (old.is_file() or old.is_symlink()) and old.name != ".lock"]
    for old in sorted(files, key=lambda file: file == path / "config.json"):  # last: it vouches for the others
        old.unlink()


def _remove(made, path):
    """Remove the folders that this run made and left empty."""
    if path in made:
        shutil.rmtree(path, ignore_errors=True)
    for folder in made[1:]:
        with contextlib.suppress(OSError):  # somebody else has put something there
            folder.rmdir()


def _check_same(path, new, volatile):
    if not (path / "config.json").exists():
        raise UserError(f"{path} holds files of a run without its settings, config.json: pass --no-resume to replace it")
    old = read_json(path / "config.json")
    if not isinstance(old, dict):
        raise UserError(f"{path / 'config.json'} holds no settings: pass --no-resume to replace the run")
    new = json.loads(json.dumps(new))  # tuples and lists are one thing in JSON
    for key in sorted((old.keys() | new.keys()) - set(volatile)):
        if key not in old and not new[key]:
            continue  # a switch that is younger than the run, and off
        if old.get(key) != new.get(key):
            difference = f"{key} {_shown(old.get(key))}, this command says {_shown(new.get(key))}"
            if isinstance(old.get(key), dict) and isinstance(new.get(key), dict):
                inner = [k for k in old[key].keys() | new[key].keys() if old[key].get(k) != new[key].get(k)]
                difference = f"another {key} ({', '.join(sorted(inner))})"
            raise UserError(
                f"{path} holds a run with {difference}: pass --no-resume to replace it, or choose another --output_dir"
            )


def _shown(value):
    text = repr(value)
    return text if len(text) < 100 else f"{text[:97]}..."
