"""The compared sequence models: what each is conditioned on, acting against the training pass, and runs from the command line."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from helpers import KILL, RESULTS, ROOT, SAVES, assert_refused, listing, namespace, point_robot, random_episodes, words

from baselines import ad, dt, generalized_dt, prompt_dt
from baselines.future_statistics import Categorical, Statistic
from baselines.sequence import Returns, Windowed, best_episode, cloning_loss, make_policy, make_sampler, target_return
from src.data import trajectories
from src.data.trajectories import Trajectories
from src.data.windows import EpisodeTensors
from src.evaluation.method import TrainingData
from src.evaluation.results import read_result
from src.run.files import load_state
from src.run.loop import Optimisation
from src.run.seeding import torch_generator

T, K = 8, 4
MODEL = Windowed(history_length=K, width=16, layers=2, heads=2, dropout=0.0)
OPTIMISATION = Optimisation(steps=4, batch_size=16, learning_rate=1e-2, lr_warmup_steps=0)
CATEGORICAL, BIDIRECTIONAL = Statistic(bins=4), Statistic("bidirectional", statistic_size=3)
RUN = namespace(seed=0, device=torch.device("cpu"), env=dataclasses.replace(point_robot(), max_episode_steps=T))
METHODS = {
    "dt": (dt, (Returns(10.0),)),
    "prompt_dt": (prompt_dt, (Returns(10.0), prompt_dt.Prompts(prompt_length=3))),
    "categorical": (generalized_dt, (CATEGORICAL,)),
    "bidirectional": (generalized_dt, (BIDIRECTIONAL,)),
    "ad": (ad, (ad.Context(context_episodes=3),)),
}
every_method = pytest.mark.parametrize("name", METHODS)


def training_data(seed=0, short=True):
    """Five random episodes of each of three tasks; some are short."""
    observations, actions, rewards = (values.numpy() for values in random_episodes(15, T, seed=seed))
    lengths = np.full(15, T)
    if short:
        lengths[[2, 7, 8]] = [3, 5, 1]
    inside = np.arange(T) < lengths[:, None]
    episodes = Trajectories(observations, np.tanh(actions), rewards * inside, lengths, np.repeat([3, 5, 6], 5))
    return namespace(episodes=episodes, train_tasks=[3, 5, 6], test_tasks=[9])


def method_of(name, data=None):
    """The Method, its weights moved so that every input shows in the output."""
    module, settings = METHODS[name]
    method = module.build(data or training_data(), RUN, MODEL, *settings, OPTIMISATION)
    torch.manual_seed(1)
    for parameter in method.model.parameters():
        parameter.data += 0.2 * torch.randn_like(parameter)
    return method


def lived(count, rows=4, seed=20):
    """`count` Episodes of `rows` rows; the second row of the first one ended early."""
    episodes = []
    for number in range(count):
        observations, actions, rewards = (values.numpy() for values in random_episodes(rows, T, seed=seed + number))
        lengths = np.full(rows, T)
        lengths[1] = T if number else 5
        rewards = rewards * (np.arange(T) < lengths[:, None])
        episodes.append({"observations": observations, "actions": actions, "rewards": rewards, "lengths": lengths, "infos": {}})
    return episodes


def play(agent, episode, pool):
    """Actions (B, T, d_a) of an agent that lives an episode whose outcomes are given."""
    agent.adapt(pool)
    agent.start(episode["observations"][:, 0])
    found = []
    for step in range(T):
        found.append(agent.act())
        agent.observe(episode["actions"][:, step], episode["rewards"][:, step], episode["observations"][:, step + 1])
    return np.stack(found, 1)


def tensors(episode):
    return EpisodeTensors(*(torch.as_tensor(episode[key]) for key in ("observations", "actions", "rewards", "lengths")))


# ------------------------------------------------------------------------------------------------- losses and statistics


def test_the_loss_by_hand():
    """Squared error over unpadded steps and dimensions, in the units of the environment, at every position alike."""
    policy = make_policy(training_data(), RUN, MODEL)
    policy.head.weight.data.zero_()
    policy.head.bias.data = torch.tensor([0.5, 0.0]).atanh()
    actions = torch.tensor([[[0.0, 1.0], [0.5, 0.0]], [[0.3, 0.3], [-0.5, 0.2]]])
    history = {
        "returns_to_go": torch.zeros(2, 2), "observations": torch.zeros(2, 2, 2), "actions": actions,
        "timesteps": torch.zeros(2, 2, dtype=torch.long), "mask": torch.tensor([[True, True], [False, True]]),
    }  # fmt: skip
    loss = cloning_loss(policy, history | {"imitated": history["mask"]})
    assert loss.item() == pytest.approx(((0.25 + 1) + 0 + (1 + 0.04)) / 6)


def test_histograms_by_hand():
    rewards = torch.tensor([[0.0, 1.0, 4.0, 9.0], [2.0, 3.0, 4.0, 0.0], [1.0, 1.0, 1.0, 1.0]])
    episodes = EpisodeTensors(torch.zeros(3, 5, 2), torch.zeros(3, 4, 2), rewards, torch.tensor([3, 4, 4]))
    settings = Statistic(bins=4, best_share=0.34)  # one of three, the second
    histograms = Categorical.of(episodes, MODEL, settings)  # bins [0, 1), [1, 2), [2, 3), [3, 4]; 9 lies beyond an end
    table = histograms.prepare(episodes)
    third, half = 1 / 3, 1 / 2
    expected = [[third, third, 0, third], [0, half, 0, half], [0, 0, 0, 1], [0, 0, 0, 0]]
    torch.testing.assert_close(table[0], torch.tensor(expected))
    torch.testing.assert_close(table[1, 0], torch.tensor([1 / 4, 0, 1 / 4, 2 / 4]))
    read = histograms.read(table, torch.tensor([0, 1]), torch.tensor([[1, 2], [0, 0]]))
    torch.testing.assert_close(read, torch.stack([table[0, 1:3], table[1, [0, 0]]]))
    # nothing lived: the best episode's histogram; then less what was received, and where nothing is left, as at first
    asked = histograms.blind(table, torch.tensor([[3.5, 2.5, 3.5, 0.5]]), 0)[0]
    counts = torch.tensor([[1.0, 0, 1, 2], [1, 0, 1, 1], [1, 0, 0, 1], [1, 0, 0, 0], [1, 0, 1, 2]])
    torch.testing.assert_close(asked, counts / counts.sum(1, keepdim=True))
    torch.testing.assert_close(histograms.blind(table, torch.tensor([[3.5, 2.5]]), 1), asked[None, 1:3])


def test_the_reader_sums_up_a_state_and_what_follows():
    method = method_of("bidirectional", training_data(short=False))
    reader, episode = method.model["statistic"].eval(), tensors(lived(1)[0])
    timesteps = torch.arange(2, 2 + K)[None]
    before = reader.read(episode, torch.tensor([0]), timesteps)
    for step in range(T):
        moved = EpisodeTensors(episode.observations.clone(), episode.actions, episode.rewards, episode.lengths)
        moved.observations[0, step] += 3
        changed = (reader.read(moved, torch.tensor([0]), timesteps) != before)[0].any(1)
        assert changed.tolist() == [2 <= t <= step for t in timesteps[0].tolist()]  # 2 K states from step 2 on are read


def test_the_best_episode_of_each_row():
    pool = lived(3)
    best = best_episode(pool, torch.device("cpu"))
    returns = np.stack([episode["rewards"].sum(1) for episode in pool])
    assert len(set(returns.argmax(0))) > 1
    for row, choice in enumerate(returns.argmax(0)):
        assert np.array_equal(best.observations[row], pool[choice]["observations"][row])
        assert best.lengths[row] == pool[choice]["lengths"][row]


def test_full_windows_are_k_steps_long_where_their_episode_is():
    some = make_sampler(training_data(), RUN, MODEL).draw(200, torch_generator(0), False)[0]["mask"]
    full = make_sampler(training_data(), RUN, dataclasses.replace(MODEL, full_windows=True)).draw(200, torch_generator(0), False)
    full, rows = full[0]["mask"], full[0]["episodes"]
    short = torch.tensor([row in (2, 8) for row in rows.tolist()])  # episodes of 3 steps and of one
    assert full[~short].all() and not full[short].all(1).any() and not some[:, 0].all() and short.any()


def test_the_target_is_the_mean_of_the_tasks_best():
    episodes = training_data().episodes
    best = [episodes.rewards[first : first + 5].sum(1, dtype=np.float64).max() for first in (0, 5, 10)]
    assert target_return(episodes) == pytest.approx(np.mean(best))


# ------------------------------------------------------------------------------------------------ contexts of histories


def test_contexts_keep_the_order_of_learning():
    histories = [torch.tensor([4, 9, 11, 12, 30]), torch.tensor([1, 2, 3, 7])]
    rows = ad.draw_histories(histories, 3, 500, torch.Generator().manual_seed(0))
    assert (rows.diff(dim=1) > 0).all()  # ascending, none twice
    for context in rows.tolist():
        assert set(context) <= set(histories[0].tolist()) or set(context) <= set(histories[1].tolist())
    assert len({tuple(context) for context in rows.tolist()}) == 10 + 4  # every choice of three occurs


def test_a_context_pays_every_step_with_the_reward_before_it():
    rewards = torch.tensor([[1.0, 3.0, 5.0], [7.0, 9.0, 0.0]])
    episodes = EpisodeTensors(torch.zeros(2, 4, 1), torch.zeros(2, 3, 1), rewards, torch.tensor([3, 2]))
    steps = ad.context_of(episodes, torch.tensor([[1, 0]]), (1.0, 2.0, torch.tensor(100.0)))
    assert steps["conditions"][0, :, 0].tolist() == [0, 3, 4, 0, 0, 1]
    assert steps["mask"][0].tolist() == [True, True, False, True, True, True] and steps["timesteps"][0].tolist() == list(range(6))


def test_a_task_with_too_few_episodes_is_refused():
    with pytest.raises(ad.UserError, match="context_episodes 6: a task of these data has 5"):
        ad.build(training_data(), RUN, MODEL, ad.Context(6), OPTIMISATION)


# --------------------------------------------------------------------------------------------- acting, causality, gradients


def test_distilled_histories_act_as_they_were_trained():
    """Kept keys and values, forgotten episodes, steps beyond an end that nothing may read."""
    agent, policy = method_of("ad").agent(3), method_of("ad").model.eval()
    pool, running = lived(3), lived(1, seed=50)[0]
    for known in (0, 1, 2, 3):  # two fit before the running one
        whole = [*pool[:known][-2:], running]
        arrays = {key: np.concatenate([episode[key] for episode in whole]) for key in ("observations", "actions", "rewards")}
        lengths = np.concatenate([*(episode["lengths"] for episode in whole[:-1]), np.full(4, T)])
        episodes = tensors(arrays | {"lengths": lengths})
        rows = torch.arange(4 * len(whole)).view(len(whole), 4).T
        with torch.no_grad():
            expected = policy(ad.context_of(episodes, rows, agent.reward_scale))[:, -T:]
        np.testing.assert_allclose(play(agent, running, pool[:known]), expected.numpy(), atol=1e-5)


@pytest.mark.parametrize("name", ["dt", "prompt_dt", "categorical", "bidirectional"])
@pytest.mark.parametrize("warmup", [0, 2])
def test_windows_act_as_they_were_trained(name, warmup):
    method = method_of(name)
    agent, pool, running = method.agent(warmup), lived(warmup), lived(1, seed=50)[0]
    found, episode = play(agent, running, pool), tensors(running | {"lengths": np.full(4, T)})
    policy = method.model["policy"] if name.endswith("al") else method.model
    rows, best = torch.arange(4), best_episode(pool, "cpu") if pool else None
    prompt = best.gather(rows, best.lengths - 3, 3, align_right=False) if name == "prompt_dt" and pool else None
    if name in ("dt", "prompt_dt"):  # asks for the training data's return, less what was received
        received = torch.nn.functional.pad(episode.rewards.cumsum(1)[:, :-1], (1, 0))
        episode.returns_to_go = target_return(training_data().episodes) - received
    for step in range(T):
        history = episode.gather(rows, torch.full((4,), max(0, step + 1 - K)), min(K, step + 1))
        if name.endswith("al"):
            statistic, steps = method.model["statistic"], history["timesteps"]
            if pool:
                steps = torch.minimum(steps, best.lengths[:, None] - 1)
                history["conditions"] = statistic.read(statistic.prepare(best), rows, steps)
            else:
                history["conditions"] = statistic.blind(agent.training, episode.rewards[:, :step], int(steps[0, 0]))
        with torch.no_grad():
            expected = policy(history, prompt)[:, -1]
        np.testing.assert_allclose(found[:, step], expected.numpy(), atol=1e-5)


@every_method
def test_an_action_does_not_depend_on_what_comes_later(name):
    agent, pool, running = method_of(name).agent(2), lived(2), lived(1, seed=50)[0]
    before = play(agent, running, pool)
    for step in (2, 5):
        changed = {key: values.copy() for key, values in running.items() if key != "infos"}
        changed["observations"][:, step + 1 :] += 1
        changed["actions"][:, step:] += 1
        changed["rewards"][:, step:] += 1
        after = play(agent, changed, pool)
        np.testing.assert_array_equal(after[:, : step + 1], before[:, : step + 1])
        assert (after[:, step + 1 :] != before[:, step + 1 :]).all()


@every_method
def test_who_adapts_reads_the_episodes_that_were_lived(name):
    agent, running = method_of(name).agent(2), lived(1, seed=50)[0]
    zero, few, other = (play(agent, running, pool) for pool in ([], lived(2), lived(2, seed=90)))
    assert np.array_equal(zero, few) == (name == "dt") and np.array_equal(few, other) == (name == "dt")


def test_an_episode_longer_than_the_best_one_asks_for_what_that_ended_with():
    asked = []
    statistic = namespace(prepare=lambda donor: donor, read=lambda donor, rows, steps: asked.append(steps.tolist()))
    agent = generalized_dt.StatisticAgent(namespace(observation_mean=torch.zeros(1)), K, statistic, None)
    (episode,) = lived(1)
    two = {key: episode[key][:2] for key in ("observations", "actions", "rewards")}
    agent.adapt([two | {"lengths": np.array([4, T])}])
    agent.observations = range(6)
    agent.conditions(2)
    assert asked == [[[2, 3, 3, 3], [2, 3, 4, 5]]]


@every_method
def test_every_parameter_learns(name):
    method = method_of(name, training_data(short=False))
    before = {key: value.clone() for key, value in method.model.state_dict().items()}
    losses = [method.update(step)["loss"].item() for step in range(1, 5)]
    assert losses[-1] < losses[0]
    for key, parameter in method.model.named_parameters():
        assert not torch.equal(before[key], parameter), key


@every_method
def test_no_array_of_a_test_task_is_read(name, monkeypatch):
    """Losses are the same where the test tasks hold nothing but NaN."""
    clean = training_data().episodes
    other = dataclasses.replace(clean, task_ids=clean.task_ids + 43)  # 46, 48, 49
    both = {key: np.concatenate([getattr(clean, key), getattr(other, key)]) for key in ("lengths", "task_ids")}
    arrays = {
        key: np.concatenate([getattr(clean, key), np.full_like(getattr(clean, key), np.nan)])
        for key in ("observations", "actions", "rewards")
    }
    tasks = {task: {} for task in (3, 5, 6, 46, 48, 49)}
    poisoned = Trajectories(**arrays, **both, tasks=tasks, metadata={"sha256": "0"})
    monkeypatch.setattr(trajectories, "load", lambda *_: poisoned)
    run = namespace(**vars(RUN), config=None, env_type="point_robot", recipe="paper", output_dir=".", data_quality="random",
                    validation=False)  # fmt: skip
    losses = [[method_of(name, data).update(1)["loss"].item()] for data in (TrainingData(run), training_data())]
    assert losses[0] == losses[1] and np.isfinite(losses[0][0])


# ---------------------------------------------------------------------------------------------------- the command line

RUNS = {
    "dt": ("dt", []),
    "prompt_dt": ("prompt_dt", []),
    "categorical": ("generalized_dt", []),
    "bidirectional": ("generalized_dt", ["--statistic", "bidirectional"]),
    "ad": ("ad", []),
}


def saves(root):
    return {name: content for name, content in listing(root / "saves").items() if name.endswith(("state.pt", "safetensors"))}


class Dead(BaseException):
    """Nothing catches it."""


def dying(flush, count):
    """os.fsync that ends the run when it is called for the time `count`, as KILL does."""
    calls = iter(range(1, count + 1))

    def fsync(file):
        if next(calls, None) == count:
            raise Dead
        flush(file)

    return fsync


@pytest.mark.long
@every_method
def test_killed_and_given_again_it_ends_with_the_same_weights(name, data_root, tmp_path, monkeypatch):
    module, flags = RUNS[name]
    roots = [tmp_path / part for part in ("whole", "killed")]
    for root in roots:
        root.mkdir()
        (root / "datasets").symlink_to(data_root / "datasets")
    main = importlib.import_module(f"baselines.{module}").main
    written = main(words(roots[0], *flags))
    results = [json.loads(path.read_text()) for path in written]
    assert [result["regime"] for result in results] == ["few_shot", "zero_shot"]
    assert all(result["method"] == module and result["privileges"] == "none" for result in results)
    assert all(len(returns) == 2 for path in written for returns in read_result(path)["returns"])
    # settings and log are flushed first, then weights and state of step 6; the next weights are those of step 12
    if name == "dt":  # what is saved differs between the methods, how a process dies does not
        argv = [sys.executable, "-c", KILL, "6", "-m", f"baselines.{module}", *words(roots[1], *flags)]
        killed = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True, check=False)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
    else:
        with monkeypatch.context() as patch, pytest.raises(Dead):
            patch.setattr(os, "fsync", dying(os.fsync, 6))
            main(words(roots[1], *flags))
    (state,) = (roots[1] / "saves").rglob("state.pt")
    assert load_state(state)["step"] == 6
    main(words(roots[1], *flags))
    whole, resumed = (saves(root) for root in roots)
    assert whole.keys() == resumed.keys() and all(whole[key] == resumed[key] for key in whole if key.endswith("safetensors"))
    again = main(words(roots[0], *flags))  # finished: measured again, not trained
    assert again == written and saves(roots[0]) == whole
    for path, result in zip(written, results, strict=True):
        assert json.loads(path.read_text())["tasks"] == result["tasks"]
        assert json.loads((roots[1] / path.relative_to(roots[0])).read_text())["tasks"] == result["tasks"]


def test_a_policy_without_any_prompt_in_training_is_refused(tmp_path, capsys):
    assert_refused(capsys, prompt_dt, words(tmp_path, "--prompt_dropout", "1"), "'1' is not a number of at least 0 and below 1")


def test_expert_prompts_have_a_protocol_of_their_own(data_root, tmp_path, capsys):
    (tmp_path / "datasets" / "point_robot").mkdir(parents=True)
    (tmp_path / "datasets" / "point_robot" / "random-v0").symlink_to(data_root / "datasets" / "point_robot" / "random-v0")
    argv = words(tmp_path, "--prompt_source", "expert")
    with pytest.raises(SystemExit):
        prompt_dt.main(argv)
    assert "make it: python get_datasets.py" in capsys.readouterr().err
    expert = trajectories.load(data_root / "datasets", "point_robot", "random")
    trajectories.save(expert, tmp_path / "datasets", point_robot(), "expert", {})
    (written,) = prompt_dt.main(argv)
    assert written.parent == tmp_path / RESULTS / "prompt_dt+debug" / "few_shot-expert_prompt"
    assert json.loads(written.read_text())["made_from"].keys() == {"dataset_sha256", "expert_sha256"}
    assert (tmp_path / SAVES / "prompt_dt+debug" / "expert_prompt" / "seed_0" / "model.safetensors").exists()
