"""Folders that people share, on the Hugging Face hub or on a disk: trained policies and datasets, copied whole and checked."""

import contextlib
import shutil
import tempfile
from pathlib import Path

from src.run.errors import UserError
from src.run.files import atomic_path

HUB, DATASETS = "hf://", "hf://datasets/"


def upload(folder, address, files):
    """The `files` of a folder to a repository of the hub, which is made where it is missing. Raises UserError."""
    hub, name, kind = open_hub(address)
    try:
        hub.create_repo(name, repo_type=kind, exist_ok=True)
        hub.upload_folder(repo_id=name, repo_type=kind, folder_path=str(folder), allow_patterns=list(files))
    except (OSError, ValueError) as error:  # the hub's errors are of these kinds
        raise UserError(f"{address} cannot be written ({_reason(error)}): log in (hf auth login), and mend the name") from None


@contextlib.contextmanager
def downloaded(address, files):
    """A folder with those of `files` that a repository of the hub has, as long as the context lasts. Raises UserError."""
    hub, name, kind = open_hub(address)
    with tempfile.TemporaryDirectory() as temporary:
        try:
            hub.snapshot_download(name, repo_type=kind, local_dir=temporary, allow_patterns=list(files))
        except (OSError, ValueError) as error:
            raise UserError(f"{address} cannot be read ({_reason(error)}): mend the name, or log in (hf auth login)") from None
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
    """The `files` of a folder to another one, each under its name at once; returns the folder. Raises UserError."""
    folder, tops = Path(folder), {name.split("/")[0] for name in files}
    if folder.exists() and (not folder.is_dir() or any(entry.name not in tops for entry in folder.iterdir())):
        raise UserError(f"{folder} holds other files: name a new folder")
    for name in files:
        with atomic_path(folder / name) as temporary:
            shutil.copyfile(Path(source) / name, temporary)
    return folder
