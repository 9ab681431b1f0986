"""The command that makes every run behind the tables: what it leaves out, what it makes again."""

import json
from pathlib import Path

import pytest
import yaml
from helpers import listing, shell

FLAGS = ("--env_type", "point_robot", "--recipes", "debug", "--methods", "meta_dt", "--qualities", "random", "--seeds", "0")


def reproduce(root, *flags):
    done = shell("-m tools.reproduce", *FLAGS, "--output_dir", root, *flags)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.long
def test_everything_runs_nothing_runs_twice_and_what_is_missing_is_made_again(tmp_path):
    finished(tmp_path)
    nothing_runs_twice(tmp_path)
    what_a_missing_run_needs_is_made_again(tmp_path)


def finished(root):
    planned = reproduce(root, "--dry_run").splitlines()
    assert reproduce(root, "--dry_run", "--seeds", "0", "0").splitlines() == planned
    assert [command.split()[1] for command in planned] == ["get_datasets.py", "train_context.py", *["train_meta_dt.py"] * 6]
    assert "0 of 8 runs are finished already" in reproduce(root)


def nothing_runs_twice(finished):
    results = {name for name in listing(finished / "results") if name.endswith(".json")}
    regimes = ["", "-no_context", "-random_prompt"]
    expected = {f"meta_dt+debug{name}/few_shot-strict" for name in regimes} | {"context+debug/diagnostics"}
    expected |= {f"meta_dt+debug/{regime}" for regime in ("zero_shot-strict", "zero_shot-paper", "few_shot-paper")}
    assert expected <= {"/".join(name.split("/")[-3:-1]) for name in results}
    before = listing(finished / "results")
    assert "7 of 7 runs are finished already" in reproduce(finished)
    assert listing(finished / "results") == before and reproduce(finished, "--dry_run").strip() == ""


def test_a_folder_that_cannot_be_written(tmp_path):
    (tmp_path / "saves").write_text("a file in its way")
    done = shell("-m tools.reproduce", "--env_type", "point_robot", "--output_dir", str(tmp_path))
    assert done.returncode == 2 and "cannot be written" in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.long
def test_a_run_that_fails_is_named_until_it_is_made(tmp_path):
    blocked = tmp_path / "saves/point_robot/random/dt+debug"
    blocked.parent.mkdir(parents=True)
    blocked.write_text("a file in its way")
    flags = ("--methods", "dt", "--output_dir", str(tmp_path))
    done = shell("-m tools.reproduce", *FLAGS, *flags)
    assert done.returncode == 2 and "1 runs failed" in done.stderr
    noted = tmp_path / "saves/point_robot/reproduce/failed.json"
    faults = json.loads(noted.read_text())
    assert [(fault["method"], fault["regime"], fault["seed"]) for fault in faults] == [
        ("dt", "few_shot", 0),
        ("dt", "zero_shot", 0),
    ]
    assert all("cannot write into" in fault["reason"] for fault in faults)
    blocked.unlink()
    assert "1 of 1 results are in" in reproduce(tmp_path, *flags)
    assert json.loads(noted.read_text()) == []
    noted.write_text('{"a": 1}')
    done = shell("-m tools.reproduce", *FLAGS, *flags, "--seeds", "1")
    assert done.returncode == 2 and "failed.json is damaged: remove it" in done.stderr


def what_a_missing_run_needs_is_made_again(finished):
    """Results are committed, world models are not: a fresh clone has the one without the other."""
    missing = finished / "results/point_robot/random/meta_dt+debug/zero_shot-paper/seed_0.json"
    before = missing.read_bytes()
    missing.unlink()
    weights = finished / "saves/point_robot/random/meta_dt+debug/zero_shot/seed_0/model.safetensors"
    assert len(reproduce(finished, "--dry_run").splitlines()) == 1
    kept = weights.read_bytes()
    weights.unlink()
    planned = reproduce(finished, "--dry_run").splitlines()
    assert len(planned) == 2 and "--zero_shot True" in planned[0] and "--protocol paper" in planned[1]
    weights.write_bytes(kept)  # newer than its result now, as after an interruption
    assert reproduce(finished, "--dry_run").splitlines() == planned
    (finished / "saves/point_robot/random/context+debug/seed_0/best.safetensors").unlink()
    planned = [command.split()[1] for command in reproduce(finished, "--dry_run").splitlines()]
    assert planned == ["train_context.py", "train_meta_dt.py", "train_meta_dt.py"]
    missing.write_bytes(before)
    assert reproduce(finished, "--dry_run").strip() == ""


def test_a_recipe_without_prompts_has_one_policy_for_both_regimes_and_is_left_one_idea_less_each_time(tmp_path):
    planned = reproduce(tmp_path, "--dry_run", "--recipes", "fast", "--methods", "meta_dt").splitlines()
    own = f" --world_model {tmp_path}/saves/point_robot/random/context+fast-decode_own/seed_0"
    changes = ["", "", " --context none", " --hindsight_share 0", " --other_tasks none", " --imitate episodes --top_share 1"]
    changes += [" --dropout 0.1"]
    changes += [" --context running --eval_only", " --explore none --explore_steps 0 --eval_only", " --decode own", own]
    assert [command.split("random --seed 0", 1)[1] for command in planned if "train_" in command] == changes
    planned = shell(
        "-m tools.reproduce", "--env_type", "hopper_rand_params", *FLAGS[2:], "--recipes", "fast", "--methods", "meta_dt",
        "--dry_run",
    ).stdout  # fmt: skip
    assert "--other_tasks" not in planned and "--window_time False" in planned  # what the recipe has not cannot be left out
    refused = shell("-m tools.reproduce", "--env_type", "point_robot", "--recipes", "fast", "--dry_run")
    assert refused.returncode == 2 and "fast says nothing of compared methods" in refused.stderr


@pytest.mark.slow
def test_each_idea_less_is_a_row_of_its_own(tmp_path):
    recipe = tmp_path / "point_robot.yaml"
    recipe.write_text(tiny_recipe())
    done = shell(
        "-m tools.reproduce", "--env_type", str(recipe), "--recipes", "tiny", "--methods", "meta_dt", "--qualities", "random",
        "--seeds", "0", "--output_dir", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    rows = {"/".join(name.split("/")[-3:-1]) for name in listing(tmp_path / "results") if name.endswith(".json")}
    less = ["", "-no_context", "-hindsight_share_0.0", "-other_tasks_none", "-top_share_1.0+imitate_episodes"]
    less += ["-dropout"]
    less += ["-context_running", "-explore_none-explore_steps_0", "-context_decode_own"]
    expected = {f"meta_dt+tiny{name}/{regime}-strict" for name in less for regime in ("few_shot", "zero_shot")}
    expected -= {"meta_dt+tiny-context_running/zero_shot-strict"}  # a first episode carries nothing: the recipe's own row
    assert rows == expected | {"context+tiny/diagnostics", "context+tiny-decode_own/diagnostics"}


def tiny_recipe():
    """Point-Robot's settings file with a recipe that has the ideas of `fast` and the sizes of `debug`."""
    document = yaml.safe_load(Path("configs/point_robot.yaml").read_text())
    fast, debug = (yaml.safe_load(Path(f"configs/recipes/{name}.yaml").read_text()) for name in ("fast", "debug"))
    small = {key: (document["recipes"].get("debug") or {}).get(key, {}) for key in ("train_context", "train_meta_dt")}
    tiny = dict(debug) | {key: fast[key] | document["recipes"]["fast"].get(key, {}) | debug[key] | small[key] for key in small}
    return yaml.safe_dump(document | {"recipes": {"tiny": tiny}})
