"""Folders that people share, on the Hugging Face hub or on a disk: trained policies and datasets, copied whole and checked."""

import contextlib
import filecmp
import re
import shutil
import tempfile
from pathlib import Path

from src.run.errors import UserError
from src.run.files import atomic_path

HUB, DATASETS = "hf://", "hf://datasets/"
MEND = "see that there is a connection, mend the name, or log in (hf auth login)"


def upload(folder, address, files):
    """The `files` of a folder to a repository of the hub, which is made where it is missing. Raises UserError."""
    hub, name, kind = open_hub(address)
    try:
        hub.create_repo(name, repo_type=kind, exist_ok=True)
        hub.upload_folder(repo_id=name, repo_type=kind, folder_path=str(folder), allow_patterns=list(files))
    except Exception as error:  # whatever its client and the network raise
        raise UserError(f"{address} cannot be written ({_reason(error)}): {MEND}") from None


@contextlib.contextmanager
def downloaded(address, files):
    """A folder with those of `files` that a repository of the hub has, as long as the context lasts. Raises UserError."""
    hub, name, kind = open_hub(address)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            hub.snapshot_download(name, repo_type=kind, local_dir=temporary, allow_patterns=list(files))
        except Exception as error:
            raise UserError(f"{address} cannot be read ({_reason(error)}): {MEND}") from None
        yield Path(temporary)


def _reason(error):
    return " ".join(str(error).split())[:160] or type(error).__name__


def open_hub(address):
    """(client of the Hugging Face hub, name of the repository there, "model" or "dataset"). Raises UserError."""
    kind = "dataset" if address.startswith(DATASETS) else "model"
    name = address.removeprefix(DATASETS).removeprefix(HUB)
    if name.count("/") != 1 or not all(name.split("/")):
        raise UserError(f"{address}: give hf://name/model, or hf://datasets/name/dataset")
    try:
        import huggingface_hub
    except ImportError:
        raise UserError(f"{address} needs a package: pip install huggingface_hub") from None
    return huggingface_hub.HfApi(), name, kind


def copy(source, folder, files):
    """The `files` of a folder to another one, each under its name at once; returns the folder. Raises UserError where it holds
    anything else: what is there is never replaced, and the same command completes what was cut off."""
    source, folder = Path(source), Path(folder)
    if folder.exists() and (not folder.is_dir() or not all(_same(path, source, folder, files) for path in contents(folder))):
        raise UserError(f"{folder} holds other files: name a new folder, or remove it")
    for name in files:
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(source / name, temporary)
    return folder


def contents(folder):
    """The files of a folder, without what a killed writer left."""
    return [path for path in Path(folder).rglob("*") if not path.is_dir() and not re.fullmatch(r"\..*\.tmp", path.name)]


def _same(path, source, folder, files):
    name = path.relative_to(folder).as_posix()
    return name in files and filecmp.cmp(path, source / name, shallow=False)
