"""Several processes train as one does: the same curve but for rounding, one writer, and a run that goes on with any number."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import CONTEXT, ROOT, listing, run_stage, words

from src.evaluation.results import read_result
from src.run.files import load_state, load_tensors
from tests.toy.fit_parallel import fit


def free_port():
    with socket.socket() as any_port:
        any_port.bind(("127.0.0.1", 0))
        return any_port.getsockname()[1]


def processes(count, *argv):
    """`count` processes of the toy, as torchrun would start them; their exit statuses and what they print."""
    shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    command = [sys.executable, "-m", "tests.toy.fit_parallel", *map(str, argv)]
    started = [
        subprocess.Popen(
            command, cwd=ROOT, env={**os.environ, **shared, "RANK": str(number)}, text=True, stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for number in range(count)
    ]  # fmt: skip
    told = [process.communicate(timeout=300) for process in started]
    return [process.returncode for process in started], [out for out, _ in told], [err for _, err in told]


def same_curve(first, second):
    assert [record["step"] for record in first] == [record["step"] for record in second] == [4, 8, 12]
    np.testing.assert_allclose([r["loss"] for r in first], [r["loss"] for r in second], rtol=1e-4)
    assert {record["rows"] for record in first} == {7}


@pytest.mark.long
def test_three_processes_are_one_and_one_goes_on_where_they_stopped(tmp_path):
    """Rows that count differ in number between the processes: a mean of means would be another loss."""
    whole = fit(tmp_path / "whole")
    statuses, _, err = processes(3, tmp_path / "three", 0, 6)  # only the last one is told to stop
    assert statuses == [143] * 3 and "stopped at step 6, saved" in err[0], err
    assert load_state(tmp_path / "three/state.pt")["step"] == 6
    loop = fit(tmp_path / "three")  # alone
    same_curve(loop.curve, whole.curve)
    ends = [load_tensors(tmp_path / name / "model.safetensors") for name in ("three", "whole")]
    for name, value in ends[1].items():
        torch.testing.assert_close(ends[0][name], value, rtol=1e-3, atol=1e-5)
    assert listing(tmp_path / "three").keys() == listing(tmp_path / "whole").keys()


@pytest.mark.long
def test_a_stopped_run_of_two_goes_on_bit_for_bit(tmp_path):
    """With dropout, which differs between the processes."""
    statuses, out, err = processes(2, tmp_path / "whole", 0.5)
    assert statuses == [0, 0], err
    assert out == ["process 0 of 2\n", ""]  # the second prints nothing
    assert processes(2, tmp_path / "stopped", 0.5, 6)[0] == [143, 143]
    assert processes(2, tmp_path / "stopped", 0.5)[0] == [0, 0]
    ends = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert ends[0] == ends[1]


def torchrun(root, script, *flags):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(free_port())]
    done = subprocess.run(
        [*command, f"{script}.py", *words(root, *flags)], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def curve(result, name):
    assert len(result["curve"][name]) == 4
    return np.array(result["curve"][name])


WORLD_MODELS = [["--context_horizon", "4"], ["--context_horizon", "0", "--batch_size", "60"]]


@pytest.mark.long
@pytest.mark.parametrize("flags", WORLD_MODELS, ids=["windows", "whole episodes"])
def test_a_world_model_by_torchrun(flags, data_root, tmp_path):
    found = {}
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "datasets").symlink_to(data_root / "datasets")
        argv = ["--steps", "20", "--eval_every", "5", *flags]
        (run_stage if name == "one" else lambda script, root, *argv: torchrun(root, script, *argv))(
            "train_context", tmp_path / name, *argv
        )
        (result,) = (tmp_path / name / "results/point_robot/random").glob("context+debug*/diagnostics/seed_0.json")
        found[name] = read_result(result)
    for series in ("train/reward_loss", "train/state_loss", "reward_loss", "state_rmse"):
        np.testing.assert_allclose(curve(found["two"], series), curve(found["one"], series), rtol=2e-4)
    assert found["two"]["training"]["processes"] == 2 and "processes" not in found["one"]["training"]
    assert found["two"]["command"].startswith("torchrun --nproc_per_node 2 train_context.py")
    files = [set(listing(tmp_path / name / "saves/point_robot/random")) for name in ("one", "two")]
    assert files[0] == files[1]


@pytest.mark.long
def test_a_policy_by_torchrun(model_root, tmp_path):
    """Few-shot with prompts; the test tasks are shared out, and everybody's returns are in the one result."""
    found = {}
    for name in ("one", "two"):
        (tmp_path / name / "saves/point_robot/random").mkdir(parents=True)
        (tmp_path / name / "datasets").symlink_to(model_root / "datasets")
        (tmp_path / name / "saves/point_robot/random/context+debug").symlink_to(model_root / CONTEXT.parent)
        argv = ["--steps", "20", "--eval_every", "5", "--prompt_start_step", "8", "--dropout", "0", "--precision", "float32"]
        argv += ["--eval_episodes", "2"]
        if name == "one":
            path = run_stage("train_meta_dt", tmp_path / name, *argv)[0].relative_to(tmp_path / name)
        else:
            assert torchrun(tmp_path / name, "train_meta_dt", *argv).count("written to") == 1
        found[name] = read_result(tmp_path / name / path)
    assert found["two"]["regime"] == "few_shot"
    np.testing.assert_allclose(curve(found["two"], "loss"), curve(found["one"], "loss"), rtol=2e-4)
    assert found["two"]["task_ids"] == list(range(45, 50)) and found["two"]["training"]["processes"] == 2
    np.testing.assert_allclose(found["two"]["returns"], found["one"]["returns"], rtol=1e-2)


def test_what_does_not_share_says_so(data_root):
    command = [sys.executable, "-m", "baselines.dt", *words(data_root)]
    environment = {**os.environ, "WORLD_SIZE": "2", "RANK": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "this script runs in one process: start it by python, without torchrun" in done.stderr
