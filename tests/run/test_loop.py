"""The training loop: stopped, killed and continued it ends where an uninterrupted run ends."""

import signal

import pytest
import torch
from helpers import shell

from src.run.errors import UserError
from src.run.files import load_state, load_tensors
from src.run.logger import read_metrics
from src.run.loop import Loop, Optimisation, schedule_factor
from tests.toy.fit import fit


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder and the loop of a run that nobody disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, fit(folder)


def assert_goes_on(folder, whole, from_step):
    """The same command ends as `whole`; what was counted before the stop is kept."""
    before = load_state(folder / "state.pt") if (folder / "state.pt").exists() else {"step": 0, "seconds": 0, "curve": []}
    assert before["step"] == from_step and before["curve"] == [r for r in whole[1].curve if r["step"] <= from_step]
    loop = fit(folder)
    assert (loop.step, loop.curve) == (12, whole[1].curve) and loop.seconds > before["seconds"]
    assert read_metrics(folder) == read_metrics(whole[0]) == loop.curve
    mine, theirs = (load_tensors(path / "model.safetensors") for path in (folder, whole[0]))
    assert mine.keys() == theirs.keys() and all(torch.equal(mine[name], theirs[name]) for name in mine)
    ends = [load_state(path / "state.pt") for path in (folder, whole[0])]
    assert all(torch.equal(ends[0][key], ends[1][key]) for key in ("generator", "torch_generator"))


def test_the_learning_rate_of_each_step():
    settings, rates = Optimisation(steps=10, learning_rate=2.0, lr_warmup_steps=4), []
    optimizer = settings.optimizer([torch.nn.Parameter(torch.zeros(1))])
    for step in range(1, 6):
        settings.schedule(optimizer, step)
        rates += [group["lr"] for group in optimizer.param_groups]
    assert rates == [0.5, 1, 1.5, 2, 2]
    assert [schedule_factor(step, 10, 0, "cosine") for step in (0, 5, 10)] == pytest.approx([1, 0.525, 0.05])


def test_an_uninterrupted_run(whole):
    folder, loop = whole
    assert [record["step"] for record in loop.curve] == [4, 8, 12] and loop.seconds > 0
    assert sorted(path.name for path in folder.iterdir()) == ["metrics.csv", "metrics.jsonl", "model.safetensors", "state.pt"]
    again = fit(folder)  # finished: nothing is trained any more
    assert (again.step, again.curve, again.seconds) == (12, loop.curve, loop.seconds)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
@pytest.mark.parametrize("step", [1, 6, 8])
def test_a_stop_signal_saves_the_step_that_runs(number, step, whole, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        fit(tmp_path, step, number, measuring=False)
    assert end.value.code == 128 + number
    # a signal during the step leaves its evaluation out; one without evaluation is finished
    saved = 4 if step == 8 else step
    line = f"stopped at step {step}, saved" if step != 8 else "stopped during an evaluation"
    assert line in capsys.readouterr().err
    assert_goes_on(tmp_path, whole, saved)


@pytest.mark.parametrize(("step", "saved"), [(4, 0), (8, 4), (12, 8)])
def test_a_stop_signal_ends_an_evaluation_at_once(step, saved, whole, tmp_path, capsys):
    with pytest.raises(SystemExit) as end:
        fit(tmp_path, step, signal.SIGTERM, measuring=True)
    assert end.value.code == 143
    assert "the same command continues from the last checkpoint" in capsys.readouterr().err
    assert_goes_on(tmp_path, whole, saved)


def test_a_killed_run_goes_on_from_its_last_checkpoint(whole, tmp_path):
    done = shell("-m tests.toy.fit", tmp_path, 7)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert_goes_on(tmp_path, whole, 4)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("step", [4, 8])
def test_a_loss_that_is_not_finite_is_refused(bad, step, whole, tmp_path):
    """At an evaluation; the checkpoint before it stays, and nothing of the step is recorded."""
    with pytest.raises(UserError, match=rf"the loss at step {step} became {bad}: lower --learning_rate"):
        fit(tmp_path, loss={step: torch.tensor(bad)})
    assert [record["step"] for record in read_metrics(tmp_path)] == list(range(4, step, 4))
    assert_goes_on(tmp_path, whole, step - 4)


def test_a_stop_does_not_save_a_loss_that_is_not_finite(tmp_path):
    with pytest.raises(UserError, match="the loss at step 6"):
        fit(tmp_path, 6, signal.SIGTERM, loss={6: torch.tensor(float("nan"))})
    assert load_state(tmp_path / "state.pt")["step"] == 4


def test_a_state_of_other_parts_is_refused(whole, tmp_path):
    (tmp_path / "state.pt").write_bytes((whole[0] / "state.pt").read_bytes())
    with pytest.raises(UserError, match="is not the state of such a run"):
        Loop(tmp_path, 12, 4, {"model": torch.nn.Linear(1, 1), "sampler": torch.Generator()})


def rounds(folder, lengths, total, every, **options):
    """A Loop in rounds of the given lengths: (step before, step after, due) of each, and the steps at which it was saved."""
    seen, saved, counter = [], [], torch.Generator()
    loop = Loop(folder, total, every, {"counter": counter}, tensorboard=False, **options)
    lengths, save = iter(lengths), loop.save

    def noted():
        save()
        saved.append(load_state(folder / "state.pt")["step"])

    loop.save = noted
    for step in loop.rounds(lambda start: next(lengths)):
        seen.append((loop.step, step, loop.due))
    return seen, saved


def test_rounds_are_due_when_they_pass_a_multiple(tmp_path):
    """Rounds of 3 to 4 steps, due every 5; the last one passes the total. A later call goes on behind it."""
    seen, saved = rounds(tmp_path, [3, 3, 4, 3, 3], 14, 5)
    assert seen == [(0, 3, False), (3, 6, True), (6, 10, True), (10, 13, False), (13, 16, True)] and saved == [6, 10, 16]
    assert rounds(tmp_path, [2, 3], 20, 5) == ([(16, 18, False), (18, 21, True)], [21])


def test_checkpoints_may_come_at_other_times_than_evaluations(tmp_path):
    """Every 2 steps while 5 are due, and at the end; with `save_seconds` 0 after every round."""
    seen, saved = rounds(tmp_path / "a", [1] * 7, 7, 5, save_every=2)
    assert [step for _, step, due in seen if due] == [5, 7] and saved == [2, 4, 6, 7]
    assert rounds(tmp_path / "b", [1] * 3, 3, 5, save_seconds=0)[1] == [1, 2, 3]
