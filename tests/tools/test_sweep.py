"""A grid of runs: which commands it becomes, that none runs twice, and that no two write the same file."""

import shlex
import shutil

import numpy as np
import pytest
from helpers import ROOT, assert_refused, listing, shell

from src.evaluation.results import read_result
from tools import sweep

TINY = ("--qualities", "random", "--recipes", "debug")


def planned(capsys, tmp_path, *flags):
    capsys.readouterr()
    sweep.main([*TINY, "--output_dir", str(tmp_path), "--dry_run", *flags])
    return [shlex.split(line) for line in capsys.readouterr().out.splitlines()]


def flag(words, name):
    """Value of a flag in a command, None where it is not given."""
    pairs = dict(word[2:].split("=", 1) for word in words if word.startswith("--") and "=" in word)
    return pairs.get(name, words[words.index(f"--{name}") + 1] if f"--{name}" in words else None)


def test_every_combination_is_one_command(tmp_path, capsys):
    commands = planned(
        capsys, tmp_path, "--env_types", "point_robot", "cheetah_vel", "--methods", "focal", "dt", "--seeds", "0", "3"
    )
    runs = [words for words in commands if "-m" in words]
    assert len(commands) == 2 + len(runs) and [words[1] for words in commands if "-m" not in words] == ["get_datasets.py"] * 2
    found = {(words[2], flag(words, "env_type"), flag(words, "seed")) for words in runs}
    names = ("baselines.focal", "baselines.dt")
    assert found == {(m, e, s) for m in names for e in ("point_robot", "cheetah_vel") for s in ("0", "3")} and len(runs) == 8
    assert {flag(words, "output_dir") for words in runs} == {str(tmp_path)}


@pytest.mark.long
def test_settings_are_a_grid_and_have_folders_of_their_own(tmp_path, capsys):
    grid = ["context.context_horizon=0,4", "meta_dt.learning_rate=1e-4,3e-4", "meta_dt.zero_shot=True"]
    commands = planned(capsys, tmp_path, "--methods", "meta_dt", "focal", "--set", *grid)
    policies = [words for words in commands if words[1] == "train_meta_dt.py"]
    models = [words for words in commands if words[1] == "train_context.py"]
    assert len(policies) == 4 and len(models) == 2  # each world model serves the policies of both learning rates
    assert len({flag(words, "output_dir") for words in policies + models}) == 6
    for words in policies:
        (model,) = [m for m in models if flag(words, "world_model").startswith(flag(m, "output_dir") + "/")]
        assert f"context_horizon={flag(model, 'context_horizon')}" in flag(words, "output_dir")
        changed = {"0": "context+debug-context_horizon_0", "4": "context+debug"}[flag(model, "context_horizon")]
        assert flag(words, "world_model").endswith(f"/{changed}/seed_0")  # where stage 3 writes it
        assert flag(words, "zero_shot") == "True" and flag(words, "learning_rate") in ("1e-4", "3e-4")
    (focal,) = [words for words in commands if "baselines.focal" in words]
    assert flag(focal, "output_dir") == str(tmp_path) and flag(focal, "learning_rate") is None


@pytest.mark.long
def test_a_world_model_with_another_setting_serves_its_policy(data_root, tmp_path):
    root = shutil.copytree(data_root, tmp_path / "root")
    done = shell("-m tools.sweep", *TINY, "--output_dir", root, "--set", "context.context_horizon=0")
    assert done.returncode == 0, done.stderr
    (found,) = [name for name in listing(root / "sweep") if name.endswith("few_shot-strict/seed_0.json")]
    assert "/meta_dt+debug-context_context_horizon_0/" in found


def test_data_of_another_familys_policies_need_their_stage_1(tmp_path, capsys):
    flags = ["--env_types", "point_robot_semicircle_sparse", "--methods", "idaq", "--qualities", "expert"]
    first = planned(capsys, tmp_path, *flags)[0]
    assert (first[1], flag(first, "env_type")) == ("train_data_collection.py", "point_robot_semicircle")


def test_a_settings_file_may_end_in_yml(tmp_path, capsys):
    file = shutil.copy(ROOT / "configs/point_robot.yaml", tmp_path / "mine.yml")
    *_, words = planned(capsys, tmp_path, "--env_types", str(file), "--qualities", "random", "--methods", "focal")
    assert flag(words, "config") == str(file)


@pytest.mark.long
def test_a_file_says_the_same(tmp_path, capsys):
    (tmp_path / "grid.yaml").write_text(
        "methods: [focal]\nseeds: [1, 2]\nsettings: {focal.metric_weight: [0, 1.5], focal.relabel: True}\n"
    )
    flags = ["--methods", "focal", "--seeds", "1", "2", "--set", "focal.metric_weight=0,1.5", "focal.relabel=True"]
    assert planned(capsys, tmp_path, "--grid", str(tmp_path / "grid.yaml")) == planned(capsys, tmp_path, *flags)
    commands = planned(capsys, tmp_path, "--grid", str(tmp_path / "grid.yaml"), "--seeds", "7")
    assert {flag(words, "seed") for words in commands if "-m" in words} == {"7"}  # flags win


def test_stage_1_is_cut_into_ranges_of_tasks(tmp_path, capsys, monkeypatch):
    """Where no behaviour policies come with the repository; else it is left out."""
    commands = planned(capsys, tmp_path, "--qualities", "medium", "--methods", "dt")
    assert [words[1] for words in commands] == ["get_datasets.py", "-m"]
    monkeypatch.setattr(sweep, "committed_directory", lambda env_type: tmp_path / env_type)
    commands = planned(capsys, tmp_path, "--qualities", "medium", "--methods", "dt")
    ranges = [
        (int(flag(w, "task_id_start")), int(flag(w, "task_id_end"))) for w in commands if w[1] == "train_data_collection.py"
    ]
    assert [task for first, end in ranges for task in range(first, end)] == list(range(50)) and len(ranges) == 13
    assert [words[1] for words in commands[-2:]] == ["get_datasets.py", "-m"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "focal.relabel=True"], "focal is none of the methods of this sweep: context, meta_dt"),
        (["--set", "learning_rate=1"], "give method.setting=value,value"),
        (["--set", "meta_dt.learning_rate=1,,2"], "give method.setting=value,value"),
        (["--set", "meta_dt.seed=1,2"], "has a flag of its own"),
        (["--set", "meta_dt.data_type=replay"], "has a flag of its own"),
        (["--set", "meta_dt.learning_rte=1,2"], "train_meta_dt.py has no --learning_rte (did you mean learning_rate?)"),
        (["--set", "meta_dt.width=1", "meta_dt.width=2"], "meta_dt.width is given twice"),
        (["--set", "meta_dt.layers=1", "meta_dt.width=8,wide"], "--set meta_dt: --width: 'wide' is not an integer"),
        (["--env_types", "point_robt"], "did you mean point_robot?"),
        (["--recipes", "fst"], "has no recipe 'fst'"),
        (["--qualities", "mine"], "there is no dataset mine of point_robot: import it first"),
        (["--gpus", "1"], "--gpus has no effect with --backend local: leave it out"),
        (["--backend", "ray", "--slurm", "partition=gpu"], "--slurm has no effect with --backend ray: leave it out"),
        (["--backend", "slurm", "--ray_address", "auto"], "--ray_address has no effect with --backend slurm: leave it out"),
        (["--backend", "slurm", "--slurm", "gpu"], "give name=value, for example partition=gpu"),
        (["--grid", "nowhere.yaml"], "cannot read nowhere.yaml"),
        (["--grid", "set: {focal.relabel: True}"], "what --set gives is called settings here"),
        (["--grid", "settings: 3"], "settings must be a mapping"),
    ],
)
def test_bad_input(flags, message, tmp_path, capsys):
    dry = [] if {"--gpus", "--slurm", "--ray_address"} & set(flags) else ["--dry_run"]
    if ": " in flags[1]:  # what the file says
        (tmp_path / "grid.yaml").write_text(flags[1])
        flags = ["--grid", str(tmp_path / "grid.yaml")]
    assert_refused(capsys, sweep, [*TINY, *dry, "--output_dir", str(tmp_path), *flags], message)
    assert not (tmp_path / "sweep").exists() and not (tmp_path / "results").exists()


@pytest.mark.long
def test_a_sweep_runs_resumes_and_shows_what_came_out(tmp_path):
    """Two learning rates of Meta-DT on one world model."""

    def run(*values):
        rates = f"meta_dt.learning_rate={','.join(values)}"
        done = shell("-m tools.sweep", *TINY, "--output_dir", tmp_path, "--set", rates)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    out = run("1e-3", "1e-1")
    assert "0 of 4 runs are finished already" in out and out.count("done in") == 4
    found = {name: read_result(tmp_path / name) for name in listing(tmp_path) if "/meta_dt+debug/few_shot-strict/" in name}
    found = {name: result for name, result in found.items() if name.startswith("sweep/")}
    assert sorted(result["config"]["learning_rate"] for result in found.values()) == [1e-3, 1e-1]
    for name, result in found.items():
        rate = "0.1" if result["config"]["learning_rate"] == 0.1 else "0.001"
        assert f"mean return {np.mean(result['returns']):.4g} over 1 seeds" in out, (name, rate)
    before = listing(tmp_path / "sweep")
    assert "2 of 2 runs are finished already" in run("1e-3", "1e-1") and listing(tmp_path / "sweep") == before


@pytest.mark.long
def test_a_run_that_fails_says_why(data_root, tmp_path):
    (tmp_path / "datasets").symlink_to(data_root / "datasets")
    done = shell("-m tools.sweep", *TINY, "--output_dir", tmp_path, "--methods", "dt", "--set", "dt.width=9", "dt.heads=2")
    assert done.returncode == 2 and "1 runs failed" in done.stderr and "must be a multiple of --heads 2" in done.stdout
    assert "next:" not in done.stdout  # there is nothing to report


def test_the_command_named_next_finds_results(tmp_path, capsys):
    flags = ["--output_dir", str(tmp_path), "--qualities", "replay", "--methods", "iql", "--recipes", "compare"]
    for folder in ("sweep/steps=4", "sweep/steps=5"):  # none beside them, where runs without --set write
        name = "results/point_robot/replay/iql+compare/few_shot-strict/seed_0.json"
        (tmp_path / folder / name).parent.mkdir(parents=True)
        shutil.copy(ROOT / name, tmp_path / folder / name)
        sweep.show(sweep.parse(flags))
        out = capsys.readouterr().out
        assert f"next: python -m tools.report --results {tmp_path}/sweep/steps=4/results\n" in out
        assert ("--results FOLDER/results" in out) == (folder == "sweep/steps=5")
