"""The scheduler: what runs, in which order, what a failure costs, and what becomes of a run that was killed."""

import os
import signal
import subprocess
import sys
import time

import pytest
from helpers import ROOT

from src.run.backends import Local
from src.run.errors import UserError
from src.run.scheduler import Job, Scheduler, exclusive, remaining


def job(folder, name, code="", needs=(), kind="run", writes=True):
    """A job whose command runs Python code, and then writes its result."""
    result = folder / f"{name}.result"
    code += f"\nopen({str(result)!r}, 'w').close()" if writes else ""
    return Job(("-c", code), kind, name, result, tuple(needs))


def scheduled(folder, jobs, workers=2, **options):
    scheduler = Scheduler(Local(workers), folder, **options)
    return scheduler, scheduler.run(jobs)


def test_a_failure_costs_only_what_needs_it(tmp_path, capsys):
    broken = job(tmp_path, "broken", "print('some lines')\nraise SystemExit('error: mend this')")
    behind, beyond = job(tmp_path, "behind", needs=[broken]), job(tmp_path, "other", "print('heard')")
    told = {}
    scheduler, left = scheduled(tmp_path, [broken, behind, beyond], on_failed=told.__setitem__)
    assert told == {broken: "error: mend this", behind: "it needs a run that failed"}
    assert left == 2 and scheduler.failed == [broken] and scheduler.waiting == [behind] and scheduler.done == [beyond]
    out = capsys.readouterr().out
    assert "0 of 3 runs are finished already" in out
    assert f"FAILED with status 1, see {tmp_path / 'broken.log'} (error: mend this)" in out
    assert (tmp_path / "other.log").read_text().splitlines()[-1] == "heard"
    rows = [line.split("  ")[0:1] + line.split()[-5:] for line in scheduler.table()]
    assert rows[1] == ["run", "1", "0", "1", "1", "0"] and rows[-1] == ["all", "1", "0", "1", "1", "0"]


def test_a_failure_without_a_word_is_told_by_its_status(tmp_path):
    told, silent = {}, job(tmp_path, "silent", "raise SystemExit(7)", writes=False)
    scheduled(tmp_path, [silent], on_failed=told.__setitem__)
    assert told == {silent: "status 7"}


def test_a_run_that_claims_success_without_its_result_failed(tmp_path):
    scheduler, left = scheduled(tmp_path, [job(tmp_path, "liar", writes=False)])
    assert left == 1 and len(scheduler.failed) == 1


def test_what_is_needed_comes_first_and_only_where_it_is_unfinished(tmp_path):
    first = job(tmp_path, "first", "import time; time.sleep(0.5)")
    second = job(tmp_path, "second", f"import os; assert os.path.exists({str(first.result)!r})", [first])
    assert remaining([second]) == [first, second]
    assert scheduled(tmp_path, [second])[1] == 0
    assert remaining([second]) == remaining([first, second]) == []
    second.result.unlink()
    assert remaining([second]) == [second]
    always = Job(("-c", ""), "run", "always")
    assert remaining([job(tmp_path, "third", needs=[always])])[0] == always and not always.finished


def test_no_more_runs_at_once_than_cores(tmp_path):
    code = f"""
import os, time
mark = {str(tmp_path)!r} + "/busy-" + str(os.getpid())
open(mark, "w").close()
time.sleep(0.4)
print(sum(name.startswith("busy-") for name in os.listdir({str(tmp_path)!r})))
os.remove(mark)
"""
    assert scheduled(tmp_path, [job(tmp_path, f"run{n}", code) for n in range(4)])[1] == 0
    seen = [int((tmp_path / f"run{n}.log").read_text().splitlines()[-1]) for n in range(4)]
    assert max(seen) == 2


KILLED = """
import os, signal
starts = open({path!r}, "a+")
starts.write("x")
starts.flush()
if os.path.getsize({path!r}) <= {times}:
    {end}
"""


@pytest.mark.parametrize("end", ["os.kill(os.getpid(), signal.SIGKILL)", "os._exit(143)"])  # killed, or told to stop
@pytest.mark.parametrize(("times", "left"), [(1, 0), (2, 1)])
def test_a_killed_run_is_started_again_but_not_for_ever(times, left, end, tmp_path, capsys):
    killed = job(tmp_path, "killed", KILLED.format(path=str(tmp_path / "starts"), times=times, end=end))
    assert scheduled(tmp_path, [killed], retries=1)[1] == left
    assert (tmp_path / "starts").read_text() == "xx"
    assert "it is started again" in capsys.readouterr().out
    assert (tmp_path / "killed.log").read_text().count("$ python") == 2  # one log, both starts


def test_two_jobs_never_share_a_log(tmp_path):
    with pytest.raises(ValueError, match="same is the log of several jobs"):
        scheduled(tmp_path, [job(tmp_path, "same", "1"), job(tmp_path, "same", "2")])


PARENT = """
import sys
from pathlib import Path
from src.run.backends import Local
from src.run.scheduler import Job, Scheduler, exclusive
folder = Path(sys.argv[1])
code = '''
import os, signal, sys, time
def stop(*_):
    print("saved")
    sys.exit(143)
signal.signal(signal.SIGTERM, stop)
print("ready", os.getpid())
time.sleep(60)
'''
with exclusive(folder) as lock:
    Scheduler(Local(1), folder, lock=lock).run([Job(("-c", code), "run", "long", folder / "result")])
"""


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_a_stopped_scheduler_stops_its_runs_and_a_killed_one_holds_off_the_next(number, tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", PARENT, str(tmp_path)], cwd=ROOT, stdout=subprocess.DEVNULL)
    log = tmp_path / "long.log"
    while not log.exists() or not log.read_text().split("\n")[-2:][0].startswith("ready "):
        time.sleep(0.1)
    run = int(log.read_text().split()[-1])
    parent.send_signal(number)
    parent.wait()
    if number == signal.SIGTERM:
        assert log.read_text().splitlines()[-1] == "saved"
    else:
        with pytest.raises(UserError, match="is in use: another run, or a job of it, is still going"), exclusive(tmp_path):
            pass
        os.kill(run, signal.SIGTERM)
        while log.read_text().splitlines()[-1] != "saved":
            time.sleep(0.1)
    deadline = time.monotonic() + 60
    while True:  # the run has said "saved" and is about to end
        try:
            with exclusive(tmp_path):
                break
        except UserError:
            assert time.monotonic() < deadline
            time.sleep(0.1)
