"""Trained policies that people load: exported, measured again to the last digit, pushed, pulled, and refused where damaged."""

import importlib
import inspect
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import POLICY, ROOT, assert_refused, listing, point_robot

from src.data import trajectories
from src.evaluation.evaluate import evaluate
from src.evaluation.results import read_result
from src.run.errors import UserError
from src.run.files import load_tensors, read_json, save_tensors, write_json
from tools import models

TINY = ["--env_type", "point_robot", "--recipe", "debug", "--data_quality", "random", "--no-tensorboard", "--steps", "3"]
TINY += ["--eval_every", "3", "--eval_episodes", "2", "--curve_episodes", "1", "--later_episodes", "1"]
METHODS = {
    **{name: [] for name in models.BASELINES},
    "generalized_dt, bidirectional": ["--statistic", "bidirectional"],
    "focal, brac": ["--rl", "brac"],
    "idaq, error": ["--quantifier", "error", "--ensemble", "2"],
}


@pytest.fixture(scope="module")
def exported(policy_root, tmp_path_factory):
    """The folder of a tiny Meta-DT in half precision."""
    return models.save_pretrained(policy_root / POLICY, tmp_path_factory.mktemp("models") / "meta_dt", half=True)


def test_a_meta_dt_is_whole_and_small(exported, policy_root, capsys):
    assert {path.name for path in exported.iterdir()} == set(models.FILES)
    stored, trained = load_tensors(exported / "model.safetensors"), load_tensors(policy_root / POLICY / "model.safetensors")
    assert {value.dtype for name, value in stored.items() if name.startswith("transformer")} == {torch.float16}
    assert stored["observation_mean"].dtype == torch.float32 and torch.equal(
        stored["observation_mean"], trained["observation_mean"]
    )
    world_model = {
        name: value for name, value in load_tensors(exported / "agent.safetensors").items() if "world_model.gru" in name
    }
    assert world_model and {value.dtype for value in world_model.values()} == {torch.float16}
    assert models.measure(exported)
    out, config = capsys.readouterr().out, read_json(exported / "config.json")
    assert set(config["regimes"]) == set(read_json(exported / "results.json")) and out.count("every return as recorded") == len(
        config["regimes"]
    )
    assert config["regimes"]["few_shot"] == {key: config["settings"][f"{key}_episodes"] for key in ("warmup", "later")}


def test_the_card_says_what_it_is(exported, policy_root):
    text, config = (exported / "README.md").read_text(), read_json(exported / "config.json")
    assert text.startswith("---\nlicense: mit\n")
    for words in ("point_robot", "random data", config["made_from"]["dataset_sha256"], "privileges", "strict", "licence | MIT"):
        assert words in text
    result = read_result(policy_root / "results/point_robot/random/meta_dt+debug/few_shot-strict/seed_0.json")
    measured = read_json(exported / "results.json")["few_shot"]["returns"]
    (row,) = re.findall(r"^\| few_shot \| (\S+), 1 seed \| (\S+) \|$", text, re.M)
    assert row == (f"{np.mean(result['returns']):.2f}", f"{np.mean(measured):.6g}")


def test_the_lines_of_the_card(exported):
    (lines,) = re.findall(r"```python\n(.*?)```", (exported / "README.md").read_text(), re.DOTALL)
    names = {}
    exec(lines.replace("FOLDER", str(exported)), names)
    assert names["episode"] == 3 and names["done"] and np.isfinite(names["reward"]) and len(names["agent"].lived) == 3


@pytest.mark.long
@pytest.mark.parametrize("name", METHODS)
def test_every_method_acts_from_its_folder_as_it_was_measured(name, data_root, tmp_path, capsys):
    """Restored without any data, the weights earn what the result file says, digit by digit, in their folder and out of it."""
    root = tmp_path / "root"
    root.mkdir()
    (root / "datasets").symlink_to(data_root / "datasets")
    method = name.split(",")[0]
    paths = importlib.import_module(f"baselines.{method}").main([*TINY, "--output_dir", str(root), *METHODS[name]])
    (folder,) = [path.parent for path in (root / "saves").rglob("agent.json")]
    trained = models.read_trained(folder, method, point_robot(), torch.device("cpu"), read_json(folder / "config.json"))
    for path in paths:
        result = read_result(path)
        warmup = len(result["warmup_returns"][0][0]) if "warmup_returns" in result else 0
        later = 1 if warmup else 0
        again = evaluate(trained.agent(warmup), point_robot(), result["task_ids"], 2, warmup, 0, later)
        assert {key: result[key] for key in again} == again
    out = models.save_pretrained(folder, tmp_path / "out")
    capsys.readouterr()
    assert models.measure(out, results=root / "results") and read_json(out / "config.json")["method"] == method
    assert capsys.readouterr().out.count(": the same returns") == len(paths)
    agent = models.from_pretrained(out)
    agent.start(np.zeros(2))
    assert agent.action_space.contains(agent.act())


# ------------------------------------------------------------------------------------------------------- push and pull


def test_folders_are_pushed_and_pulled(exported, tmp_path):
    models.main(["push", str(exported), str(tmp_path / "shelf/policy")])
    models.main(["pull", str(tmp_path / "shelf/policy"), str(tmp_path / "mine")])
    assert listing(tmp_path / "mine") == listing(exported)
    models.main(["pull", str(exported), str(tmp_path / "mine")])  # the same again


class Hub:
    """A folder in the place of the hub. Every call must fit the real client's signature."""

    folder = real = None

    def __getattr__(self, name):
        real = inspect.signature(getattr(Hub.real, name))
        return lambda *args, **options: getattr(Hub, f"_{name}")(
            **dict(list(real.bind(self, *args, **options).arguments.items())[1:])
        )

    @staticmethod
    def _create_repo(repo_id, repo_type, exist_ok):
        (Hub.folder / repo_id).mkdir(parents=True, exist_ok=exist_ok)

    @staticmethod
    def _upload_folder(repo_id, folder_path, repo_type, allow_patterns):
        for name in allow_patterns:
            (Hub.folder / repo_id / name).parent.mkdir(exist_ok=True)
            shutil.copy(f"{folder_path}/{name}", Hub.folder / repo_id / name)

    @staticmethod
    def _snapshot_download(repo_id, repo_type, local_dir, allow_patterns):
        if not (Hub.folder / repo_id).exists():
            raise OSError("404 Client Error")
        for name in allow_patterns:
            Path(local_dir, name).parent.mkdir(exist_ok=True)
            shutil.copy(Hub.folder / repo_id / name, f"{local_dir}/{name}")


def test_the_hub(exported, tmp_path, monkeypatch, capsys):
    hub = pytest.importorskip("huggingface_hub")
    Hub.folder = tmp_path / "hub"
    Hub.real = hub.HfApi
    monkeypatch.setattr(hub, "HfApi", Hub)
    models.main(["push", str(exported), "hf://me/policy"])
    models.main(["pull", "hf://me/policy", str(tmp_path / "mine")])
    assert listing(tmp_path / "mine") == listing(exported)
    assert models.from_pretrained("hf://me/policy").action_space == models.from_pretrained(exported).action_space
    assert_refused(capsys, models, ["pull", "hf://me/other", str(tmp_path / "other")], "hf://me/other cannot be read (404")
    assert not (tmp_path / "other").exists()


def test_a_dataset(data_root, tmp_path, monkeypatch, capsys):
    """To the hub and back to where the scripts look for it; never to another name, and never altered."""
    hub = pytest.importorskip("huggingface_hub")
    Hub.folder, Hub.real = tmp_path / "hub", hub.HfApi
    monkeypatch.setattr(hub, "HfApi", Hub)
    folder, address = data_root / "datasets/point_robot/random-v0", "hf://datasets/me/walks"
    assert_refused(capsys, models, ["push", str(folder), "hf://me/walks"], "is a dataset: hf://datasets/name/dataset")
    models.main(["push", str(folder), address])
    assert_refused(capsys, models, ["pull", address, str(tmp_path / "mine")], "pull it to datasets/point_robot/random-v0")
    target = tmp_path / "datasets/point_robot/random-v0"
    models.main(["pull", address, str(target)])
    assert listing(target) == listing(folder)
    loaded, stored = trajectories.load(tmp_path / "datasets", "point_robot", "random", point_robot()), tmp_path / "hub/me/walks"
    flip(stored / models.DATA_FILES[0], (stored / models.DATA_FILES[0]).read_bytes().index(loaded.rewards[7].tobytes()))
    shutil.rmtree(target)
    assert_refused(capsys, models, ["pull", address, str(target)], "delete it and make it again")
    assert not target.exists()


@pytest.mark.parametrize("address", ["hf://", "hf://me", "hf://me/a/b", "hf:///a", "hf://datasets/me"])
def test_a_wrong_address_of_the_hub(address, tmp_path, capsys):
    assert_refused(capsys, models, ["pull", address, str(tmp_path / "x")], "give hf://name/model")


# ------------------------------------------------------------------------------------------------------------ bad input


def change(folder, name, **values):
    write_json(folder / name, read_json(folder / name) | values)


def other_options(folder):
    """Settings of an exported policy, trained in an environment with other options."""
    settings = read_json(folder / "config.json")["settings"]
    return settings | {"env": settings["env"] | {"options": [["sign", -1]]}}


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "agent.json").unlink(), "it lacks agent.json"),
        (lambda f: change(f, "config.json", schema=2), "this version reads 1"),
        (lambda f: change(f, "config.json", regimes={"few_shot": {"warmup": "3", "later": 0}}), "config.json was altered"),
        (lambda f: change(f, "config.json", settings=[]), "config.json was altered"),
        (lambda f: change(f, "results.json", few_shot={"returns": [[1.0]]}), "results.json was altered"),
        (lambda f: change(f, "config.json", method=["iql"]), "config.json was altered"),
        (lambda f: change(f, "config.json", rows=[]), "config.json was altered"),
        (lambda f: change(f, "config.json", provenance=[]), "config.json was altered"),
        (lambda f: change(f, "agent.json", target=None), "holds no agent"),
        (lambda f: change(f, "config.json", method="os"), "a policy of os, which cannot be loaded"),
        (lambda f: change(f, "config.json", env_type="mine"), "which configs/ does not have: give its settings file"),
        (lambda f: change(f, "config.json", env_type="cheetah_vel"), "of another cheetah_vel than the settings file here"),
        (
            lambda f: change(f, "config.json", settings=other_options(f)),
            "with other options (sign): give its own settings file",
        ),
        (lambda f: flip(f / "model.safetensors"), "is damaged"),
        (lambda f: change(f, "agent.json", sha256="0" * 64), "holds no agent"),
    ],
)
def test_what_is_no_policy_is_refused(harm, message, exported, tmp_path, capsys):
    folder = shutil.copytree(exported, tmp_path / "policy")
    harm(folder)
    if not (folder / "agent.json").exists():
        return assert_refused(capsys, models, ["push", str(folder), str(tmp_path / "x")], message)
    return assert_refused(capsys, models, ["measure", str(folder)], message)


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "model.safetensors").write_bytes(b"nothing"), "model.safetensors is damaged"),
        (lambda f: change(f, "results.json", few_shot=1), "results.json was altered"),
        (lambda f: change(f, "agent.json", sha256="0" * 64), "agent.safetensors was altered"),
    ],
)
def test_what_is_not_whole_replaces_nothing(harm, message, exported, tmp_path, capsys):
    good, folder = shutil.copytree(exported, tmp_path / "good"), shutil.copytree(exported, tmp_path / "policy")
    harm(folder)
    for command in ("push", "pull"):
        assert_refused(capsys, models, [command, str(folder), str(good)], message)
    assert listing(good) == listing(exported)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("config.json", {"env": []}, "config.json was altered"),
        ("config.json", {"env_type": ["point_robot"]}, "config.json was altered"),
        ("config.json", {"seed": "0"}, "config.json was altered"),
        ("agent.json", {"warmup": -1}, "agent.json was altered"),
        ("agent.json", {"method": 3}, "agent.json was altered"),
    ],
)
def test_a_run_that_was_altered_is_refused(name, values, message, policy_root, tmp_path, capsys):
    shutil.copytree(policy_root / "results", tmp_path / "results")
    folder = shutil.copytree(policy_root / POLICY, tmp_path / POLICY)
    change(folder, name, **values)
    assert_refused(capsys, models, ["torchscript", str(folder), str(tmp_path / "x.pt")], message)
    if name == "config.json":
        assert_refused(capsys, models, ["export", str(folder), str(tmp_path / "x")], message)
    assert not (tmp_path / "x").exists() and not (tmp_path / "x.pt").exists()


def test_an_export_that_is_cut_short_is_no_policy(exported, policy_root, tmp_path, monkeypatch, capsys):
    folder = shutil.copytree(exported, tmp_path / "policy")

    def cut(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(models, "play", cut)
    with pytest.raises(KeyboardInterrupt):
        models.save_pretrained(policy_root / POLICY, folder)
    assert_refused(capsys, models, ["push", str(folder), str(tmp_path / "x")], "it lacks results.json")


def flip(path, place=-1):
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def test_other_weights_are_noticed(exported, tmp_path, capsys):
    folder = shutil.copytree(exported, tmp_path / "policy")
    recorded = read_json(folder / "results.json")
    recorded["few_shot"]["returns"][0][0] += 1e-6
    write_json(folder / "results.json", recorded)
    with pytest.raises(SystemExit) as end:
        models.main(["measure", str(folder)])
    said = capsys.readouterr()
    assert end.value.code == 2 and "largest difference 1e-06" in said.out and "now make others: pull" in said.err


def test_nothing_is_written_over(exported, tmp_path, policy_root, capsys):
    (tmp_path / "notes.txt").write_text("mine")
    for argv in (["pull", str(exported), str(tmp_path)], ["export", str(policy_root / POLICY), str(tmp_path)]):
        assert_refused(capsys, models, argv, "holds other files: name a new folder")
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    with pytest.raises(UserError, match="give the run's command with --eval_only"):
        models.save_pretrained(tmp_path, tmp_path / "x")


def test_weights_of_another_policy_are_refused(exported, tmp_path, capsys):
    """As a copy that was cut off leaves them: every file is whole by itself."""
    folder = shutil.copytree(exported, tmp_path / "policy")
    tensors = load_tensors(folder / "model.safetensors")
    save_tensors(folder / "model.safetensors", {name: values * 1.3 for name, values in tensors.items()})
    for argv in (["measure", str(folder)], ["push", str(folder), str(tmp_path / "x")]):
        assert_refused(capsys, models, argv, "model.safetensors is of another policy, or was altered")


def test_what_is_in_a_folder_is_not_replaced(exported, tmp_path, capsys):
    """But what a killed command left is completed by the same command."""
    own = tmp_path / "own"
    own.mkdir()
    (own / "README.md").write_text("mine")
    other = shutil.copytree(ROOT / "trained/point_robot/replay/iql+compare", tmp_path / "other")
    for target in (own, other):
        before = listing(target)
        assert_refused(capsys, models, ["push", str(exported), str(target)], "holds other files: name a new folder")
        assert listing(target) == before
    half = tmp_path / "half"
    half.mkdir()
    shutil.copy(exported / "config.json", half)
    (half / ".model.safetensors.99999.tmp").write_bytes(b"half")
    models.main(["push", str(exported), str(half)])
    models.check(half)


@pytest.mark.parametrize("there", ["[]", "{}", '{"method": "mine"}'])
def test_an_export_does_not_replace_what_another_program_wrote(there, policy_root, tmp_path, capsys):
    (tmp_path / "config.json").write_text(there)
    assert_refused(
        capsys, models, ["export", str(policy_root / POLICY), str(tmp_path)], "holds another policy: name a new folder"
    )
    assert (tmp_path / "config.json").read_text() == there and len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("values", [{"task_ids": []}, {"task_ids": [45.5]}, {"episodes": 0}, {"seed": -5}, {"task_ids": "abc"}])
def test_numbers_of_a_config_that_cannot_be(exported, tmp_path, capsys, values):
    folder = shutil.copytree(exported, tmp_path / "policy")
    change(folder, "config.json", **values)
    assert_refused(capsys, models, ["measure", str(folder)], "config.json was altered")


def test_a_task_that_does_not_exist(exported, tmp_path, capsys):
    folder = shutil.copytree(exported, tmp_path / "policy")
    change(folder, "config.json", task_ids=[999])
    assert_refused(capsys, models, ["measure", str(folder)], "measured on task 999, which point_robot does not have")


@pytest.mark.parametrize("address", ["https://huggingface.co/me/x", "hf:/me/x", "s3://me/x"])
def test_addresses_that_are_no_folders(exported, tmp_path, capsys, monkeypatch, address):
    monkeypatch.chdir(tmp_path)
    assert_refused(capsys, models, ["push", str(exported), address], "give hf://name/model")
    assert not (tmp_path / address.split("/")[0]).exists()


def test_a_module_does_not_overwrite_what_is_none(exported, capsys):
    before = listing(exported)
    assert_refused(capsys, models, ["torchscript", str(exported), str(exported / "README.md")], "a name that ends in .pt")
    assert listing(exported) == before
