"""Back ends: the same runs on Ray and through submitit as on this machine, machines that are lost among them.

Ray and submitit are optional installs (requirements-cluster.txt): without them these tests are skipped.
"""

import importlib.util
import os
import re
import subprocess
import sys
import time

import pytest
from helpers import ROOT, listing, shell

from src.run.backends import LOST, Running, Slurm, open_backend, run_here
from src.run.errors import UserError
from src.run.scheduler import Job, Scheduler

FLAGS = ("--qualities", "random", "--recipes", "debug", "--methods", "meta_dt", "dt")

needs = {
    name: pytest.mark.skipif(importlib.util.find_spec(name) is None, reason=f"{name} is not installed: pip install {name}")
    for name in ("ray", "submitit")
}


@pytest.mark.parametrize(("name", "package"), [("ray", "ray"), ("slurm", "submitit")])
def test_a_missing_package_is_named(name, package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"pip install {package}"), open_backend(Running(backend=name), tmp_path):
        pass


def test_a_command_dies_with_whoever_runs_it(tmp_path):
    """So that its second start, on another machine, finds the folder free."""
    code = "import os, time; print('ready', os.getpid(), flush=True); time.sleep(60)"
    parent = [
        sys.executable,
        "-c",
        f"from src.run.backends import run_here; run_here(('-c', {code!r}), {str(tmp_path / 'log')!r}, '.')",
    ]
    process, log = subprocess.Popen(parent, cwd=ROOT), tmp_path / "log"
    while not log.exists() or not (found := re.search(r"^ready (\d+)$", log.read_text(), re.M)):
        time.sleep(0.1)
    process.kill()
    process.wait()
    for _ in range(100):
        if not os.path.exists(f"/proc/{found[1]}"):  # noqa: PTH110
            return
        time.sleep(0.1)
    raise AssertionError("the command outlived its parent")


def test_the_status_of_a_command_is_what_it_gives(tmp_path):
    assert run_here(("-c", "raise SystemExit(7)"), tmp_path / "log", ".") == 7
    assert run_here(("-c", "import os; os.kill(os.getpid(), 9)"), tmp_path / "log", ".") == LOST


# --------------------------------------------------------------------------------------------------------------- Slurm


@pytest.mark.long
@needs["submitit"]
def test_jobs_of_submitit_end_fail_are_lost_and_are_cancelled(tmp_path):
    """By submitit's own stand-in for Slurm: the same submission, pickles and states, on this machine."""
    backend = Slurm(2, 0, {"timeout_min": 5}, tmp_path / "submitit", cluster="local")
    backend.seconds = 0.2

    def job(name, code):
        result = tmp_path / f"{name}.result"
        return Job(("-c", f"{code}\nopen({str(result)!r}, 'w').close()"), "run", name, result)

    starts = str(tmp_path / "starts")  # the first start takes its submitit process with it, as a lost node does
    lost = f"""
import os, signal
with open({starts!r}, "a") as file:
    file.write("x")
if os.path.getsize({starts!r}) == 1:
    os.kill(os.getppid(), signal.SIGKILL)
    import time; time.sleep(60)
"""
    jobs = [job("good", "print('heard')"), job("bad", "raise SystemExit('error: mend this')"), job("lost", lost)]
    scheduler = Scheduler(backend, tmp_path)
    assert scheduler.run(jobs) == 1 and scheduler.failed == [jobs[1]]
    assert (tmp_path / "good.log").read_text().endswith("heard\n") and (tmp_path / "starts").read_text() == "xx"

    run = backend.start(("-c", "import time; print('ready', flush=True); time.sleep(60)"), tmp_path / "long.log")
    while not (tmp_path / "long.log").exists() or "\nready" not in (tmp_path / "long.log").read_text():
        time.sleep(0.1)
    assert run.poll() is None
    run.terminate()
    for _ in range(200):
        if run.poll() is not None:
            break
        time.sleep(0.1)
    assert run.poll() is not None


@needs["submitit"]
def test_what_submitit_refuses_is_one_line(tmp_path):
    with pytest.raises(UserError, match="submitit refuses this") as error:
        Slurm(1, 0, {"partitoin": "gpu"}, tmp_path, cluster="slurm")
    assert "\n" not in str(error.value)


# ----------------------------------------------------------------------------------------------------------------- Ray


def results(root):
    """{path below root: returns per task} of every result file."""
    from src.evaluation.results import read_result

    paths = sorted(path for path in (root / "results").rglob("*.json"))
    return {str(path.relative_to(root)): read_result(path).get("returns") for path in paths}


@needs["ray"]
@pytest.mark.slow
def test_a_cluster_of_two_nodes_loses_one_and_no_result(tmp_path):
    """Two raylets on the loopback interface; the one that works is killed while its run goes on. The results are those of this
    machine's own processes."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}  # before it is imported
    from ray.cluster_utils import Cluster

    sweep = [*FLAGS, "--output_dir", "{root}"]
    local = [word.format(root=tmp_path / "local") for word in sweep]
    assert shell("-m tools.sweep", *local).returncode == 0
    here = {"node_ip_address": "127.0.0.1"}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False, **here})
    try:
        doomed = cluster.add_node(num_cpus=1, **here)
        command = [sys.executable, "-m", "tools.sweep", *(word.format(root=tmp_path / "ray") for word in sweep)]
        command += ["--backend", "ray", "--ray_address", cluster.address]
        with (tmp_path / "out").open("w") as out:
            process = subprocess.Popen(command, cwd=ROOT, stdout=out, stderr=out)
        state = tmp_path / "ray/saves/point_robot/random/context+debug/seed_0/config.json"
        while not state.exists():  # a run is in the middle
            assert process.poll() is None, (tmp_path / "out").read_text()
            time.sleep(0.05)
        cluster.add_node(num_cpus=1, **here)
        cluster.remove_node(doomed, allow_graceful=False)
        assert process.wait(timeout=500) == 0, (tmp_path / "out").read_text()
    finally:
        cluster.shutdown()
    text = (tmp_path / "out").read_text()
    assert text.count("it is started again") >= 1 and "FAILED" not in text
    assert len(results(tmp_path / "local")) == 4 and results(tmp_path / "ray") == results(tmp_path / "local")
    weights = [name for name in listing(tmp_path / "local/saves") if name.endswith("model.safetensors")]
    assert len(weights) == 2
    for name in weights:
        assert (tmp_path / "ray/saves" / name).read_bytes() == (tmp_path / "local/saves" / name).read_bytes()
