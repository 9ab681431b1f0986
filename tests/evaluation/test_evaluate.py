"""The evaluation protocol on agents that do something known, and the reference levels of the published tasks."""

import numpy as np
import pytest
import torch
from helpers import ROOT, point_robot, tiny_policy, tiny_world_model

from envs.point_robot import PointRobotBatch, PointRobotEnv
from src.evaluation.batch import episode_lengths, make_batch
from src.evaluation.evaluate import evaluate
from src.evaluation.exploration import Exploration, orthogonal_actions
from src.evaluation.paper_protocol import PaperPool, evaluate_paper
from src.evaluation.references import reference_levels
from src.evaluation.rollout import rollout
from src.models.meta_dt_agent import MetaDTAgent
from src.run.config import read_env, read_yaml
from src.run.errors import UserError

ENV = point_robot()
TESTS = [45, 46, 47, 48, 49]
GOALS = ENV.make().tasks["goal"]


@pytest.mark.parametrize("task", [-1, 50])
def test_point_robot_has_fifty_tasks(task):
    with pytest.raises(ValueError, match="point_robot has tasks 0 to 49"):
        PointRobotEnv().reset(options={"task": task})


class Recorder:
    """Walks at a speed of its own in every row, faster with every prompt it is given; remembers what it was shown."""

    def __init__(self):
        self.starts, self.pools, self.observed, self.trials = [], [], [], []

    def start(self, observations, target_returns, prompt=None):
        self.starts.append((observations.copy(), np.array(target_returns), prompt))
        self.rows, self.speed = len(observations), 0 if prompt is None else prompt

    def act(self):
        return np.stack([np.arange(self.rows) * 1e-3, np.full(self.rows, self.speed * 1e-2)], 1)

    def observe(self, actions, rewards, next_observations):
        self.observed.append((actions, rewards, next_observations))

    def make_prompt(self, pool, generator, trial=False):
        self.trials.append(trial)
        self.pools.append([{key: values.copy() for key, values in episode.items()} for episode in pool])
        return len(pool)


def meta_dt(**settings):
    return MetaDTAgent(tiny_policy(action_scale=torch.tensor([0.1, 0.1])), tiny_world_model(), 6, 4, **settings)


# -------------------------------------------------------------------------------------------------------------- rollout


def test_returns_are_the_sums_of_rewards_of_the_simulator():
    agent = Recorder()
    result = evaluate(agent, ENV, [3, 47], 2, 0, -1.5, 0, keep=2)
    position = np.zeros((4, 2))
    total = np.zeros(4)
    for _ in range(20):
        position = position + np.stack([np.arange(4) * 1e-3, np.zeros(4)], 1)
        total -= np.linalg.norm(position - GOALS[[3, 3, 47, 47]], axis=1)
    np.testing.assert_allclose(np.array(result["returns"]).ravel(), total, atol=2e-4)
    assert set(result) == {"returns", "trajectories"} and not agent.pools
    np.testing.assert_allclose(result["trajectories"]["47"]["evaluation"][1][-1], position[3], atol=1e-4)
    assert np.shape(result["trajectories"]["3"]["evaluation"]) == (2, 21, 2) and result["trajectories"]["3"]["warmup"] == []
    assert [len(agent.observed), agent.starts[0][1].tolist()] == [20, [-1.5] * 4]


def test_actions_are_clipped_before_they_are_played_and_shown():
    class Wild(Recorder):
        def act(self):
            return np.tile([5.0, -0.02], (self.rows, 1))

    agent = Wild()
    bounds = np.float32([-0.1, -0.1]), np.float32([0.1, 0.1])
    episode = rollout(agent, make_batch(ENV, [0, 1]), [0, 1], 20, np.zeros(2), bounds)
    assert episode["actions"].dtype == np.float32
    np.testing.assert_allclose(episode["actions"], np.broadcast_to(np.float32([0.1, -0.02]), (2, 20, 2)))
    np.testing.assert_array_equal(agent.observed[0][0], episode["actions"][:, 0])
    assert episode["observations"].shape == (2, 21, 2) and episode["rewards"].shape == (2, 20)


def test_noise_is_a_share_of_the_half_range():
    bounds = np.float32([-1e9, -2e9]), np.float32([1e9, 2e9])
    batch = make_batch(ENV, np.zeros(500, int))
    episode = rollout(
        Recorder(), batch, [0] * 500, 20, np.zeros(500), bounds, None, Exploration(20, 0.01), np.random.default_rng(0)
    )
    assert episode["actions"].std((0, 1)) == pytest.approx([1e7, 2e7], rel=0.05)


def test_noise_ends_after_its_steps():
    bounds = np.float32([-1e9, -1e9]), np.float32([1e9, 1e9])
    agent = Recorder()
    plain, noisy = (
        rollout(agent, make_batch(ENV, [0]), [0], 20, np.zeros(1), bounds, None, explore, np.random.default_rng(0))["actions"]
        for explore in (Exploration(), Exploration(3, 0.1))
    )
    assert (plain != noisy).all(-1)[0].tolist() == [True] * 3 + [False] * 17


def test_a_policy_that_diverged_is_named():
    class Broken(Recorder):
        def act(self):
            return np.full((self.rows, 2), np.nan)

    with pytest.raises(UserError, match=r"not finite.*learning_rate"):
        evaluate(Broken(), ENV, [0], 1, 0, 0.0, 0)


# ------------------------------------------------------------------------------------------------------------- few-shot


def test_the_pool_is_the_rows_own_and_starts_empty():
    agent = Recorder()
    result = evaluate(agent, ENV, [45, 48], 3, 2, 0.0, 0, keep=1)
    assert [prompt for _, _, prompt in agent.starts] == [None, 1, 2]  # zero-shot first, then each may use the pool so far
    assert [len(pool) for pool in agent.pools] == [1, 2]
    for number, episode in enumerate(agent.pools[-1]):
        assert episode["observations"].shape == (6, 21, 2)
        for row in range(6):  # the speed of the row, and that of the prompt, are in the actions
            np.testing.assert_allclose(episode["actions"][row], np.broadcast_to([row * 1e-3, number * 1e-2], (20, 2)), atol=1e-7)
    sums = np.stack([episode["rewards"].sum(1) for episode in agent.pools[-1]], 1).reshape(2, 3, 2)
    np.testing.assert_allclose(result["warmup_returns"], sums, atol=1e-3)
    assert np.shape(result["returns"]) == (2, 3)
    assert len(result["trajectories"]["45"]["warmup"]) == 2
    again = Recorder()
    evaluate(again, ENV, [45], 1, 1, 0.0, 0)
    assert len(again.pools[0]) == 1  # nothing is left from the round before


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_no_warmup_is_zero_shot(noise):
    agent = meta_dt()
    zero = evaluate(agent, ENV, TESTS, 2, 0, -3.0, 0, explore=Exploration(20, noise))
    assert set(zero) == {"returns"}
    few = evaluate(agent, ENV, TESTS, 2, 2, -3.0, 0, explore=Exploration(20, noise))
    assert np.array(few["warmup_returns"])[:, :, 0].tolist() == zero["returns"]  # the first warm-up episode knows nothing
    assert few["returns"] != zero["returns"]


def test_later_episodes_change_nothing_before_them():
    agent = Recorder()
    longer = evaluate(agent, ENV, [45, 48], 3, 2, 0.0, 0, keep=1, later=2)
    plain = evaluate(Recorder(), ENV, [45, 48], 3, 2, 0.0, 0, keep=1)
    assert {key: value for key, value in longer.items() if key != "later_returns"} == plain
    assert [len(pool) for pool in agent.pools] == [1, 2, 3, 4]  # the evaluated episode joins the pool
    assert agent.trials == [True, False, False, False]
    sums = np.stack([episode["rewards"].sum(1) for episode in agent.pools[-1]], 1).reshape(2, 3, 4)
    later = np.array(longer["later_returns"])
    assert later.shape == (2, 3, 2)
    np.testing.assert_allclose(later[:, :, 0], sums[:, :, 3], atol=1e-3)
    assert "later_returns" not in evaluate(Recorder(), ENV, [45], 2, 0, 0.0, 0, later=2)  # zero-shot has no later episodes


def test_the_context_that_was_paid_best_is_kept():
    """Warm-up episodes after the first try known contexts in turn; the evaluated one and the later ones play the best so far."""
    known = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32))
    agent, played = meta_dt(carry_context=True, known_contexts=known), []
    start = agent.start

    def noted(observations, targets, prompt=None):
        start(observations, targets, prompt)
        played.append(None if prompt is None else prompt["carried_context"])

    agent.start = noted
    result = evaluate(agent, ENV, TESTS, 4, 3, -3.0, 0, later=1)
    returns = np.concatenate([result["warmup_returns"], np.array(result["returns"])[..., None]], -1).reshape(20, 4)
    assert played[0] is None and all(torch.equal(played[n], known[n - 1].expand(20, -1)) for n in (1, 2))
    for row in range(20):
        for number in (3, 4):
            best = returns[row, :number].argmax()
            kept = played[number][row]
            assert torch.equal(kept, played[best][row]) if best else not (kept == known).all(1).any()
    assert len(set(returns[:, :3].argmax(1))) > 1


def test_noise_disturbs_the_warmup_only():
    agent = Recorder()
    plain, noisy = (evaluate(agent, ENV, [45], 4, 2, 0.0, 0, explore=Exploration(20, noise)) for noise in (0.0, 0.5))
    assert plain["returns"] == noisy["returns"]  # this agent ignores what happened
    assert plain["warmup_returns"] != noisy["warmup_returns"]


@pytest.mark.parametrize("warmup", [0, 2])
def test_only_the_first_steps_explore(warmup):
    """Of episodes without a prompt and of warm-up episodes; the evaluation after a warm-up is played as it is."""
    agent = Recorder()
    evaluate(agent, ENV, [45], 4, warmup, 0.0, 0, explore=Exploration(3, 0.01))
    actions = np.stack([actions for actions, _, _ in agent.observed]).reshape(warmup + 1, 20, 4, 2)
    for number, episode in enumerate(actions):
        expected = np.stack([np.arange(4) * 1e-3, np.full(4, number * 1e-2)], 1)
        noisy = (~np.isclose(episode, expected, atol=1e-7)).all((1, 2))
        assert noisy.tolist() == [step < 3 and (number < warmup or not warmup) for step in range(20)]


def test_probes_are_full_and_orthogonal_and_come_back():
    actions = orthogonal_actions(500, 3, 7, np.random.default_rng(0))
    assert np.abs(actions).max(-1) == pytest.approx(np.ones((500, 7)))
    axes = actions / np.linalg.norm(actions, axis=-1, keepdims=True)
    np.testing.assert_allclose(axes[:, :3] @ axes[:, :3].swapaxes(1, 2), np.broadcast_to(np.eye(3), (500, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(actions[:, 3:6], -actions[:, :3])
    np.testing.assert_allclose(actions[:, 6], actions[:, 0])
    assert np.abs(axes.mean(0)).max() < 0.1  # in no direction more than in another


@pytest.mark.parametrize("warmup", [0, 2])
def test_only_an_episode_without_a_prompt_probes(warmup):
    """The others are noisy; the noise's steps are another number."""
    agent = Recorder()
    evaluate(agent, ENV, [45], 4, warmup, 0.0, 0, explore=Exploration(2, 0.01, probe_steps=3))
    actions = np.stack([actions for actions, _, _ in agent.observed]).reshape(warmup + 1, 20, 4, 2)
    for number, episode in enumerate(actions):
        expected = np.stack([np.arange(4) * 1e-3, np.full(4, number * 1e-2)], 1)
        own = np.isclose(episode, expected, atol=1e-7).all((1, 2)).tolist()
        assert own == [step >= (3 if number == 0 else 2 if number < warmup else 0) for step in range(20)]
    full = actions[0, :3].astype(np.float64)
    np.testing.assert_allclose(np.abs(full).max(-1), 0.1, rtol=1e-6)
    np.testing.assert_allclose((full[0] * full[1]).sum(-1), 0, atol=1e-8)
    np.testing.assert_allclose(full[2], -full[0])


def test_probes_are_around_the_middle_of_the_bounds():
    bounds = np.float32([0.0, -3.0]), np.float32([1.0, 1.0])
    batch = make_batch(ENV, np.zeros(50, int))
    actions = rollout(
        Recorder(), batch, [0] * 50, 20, np.zeros(50), bounds, None, Exploration(probe_steps=3), np.random.default_rng(0)
    )["actions"]
    share = (actions[:, :3] - [0.5, -1.0]) / [0.5, 2.0]
    np.testing.assert_allclose(np.abs(share).max(-1), 1, rtol=1e-5)
    assert (actions >= bounds[0]).all() and (actions <= bounds[1]).all()


@pytest.mark.parametrize("warmup", [0, 2])
def test_exploration_is_forgotten_where_it_was(warmup):
    """After the noisy steps, in the episodes that have them."""

    class Forgetful(Recorder):
        forgotten = ()

        def forget(self):
            self.forgotten = (*self.forgotten, len(self.observed) % 20)

    agent = Forgetful()
    evaluate(agent, ENV, [45], 4, warmup, 0.0, 0, explore=Exploration(3, 0.01, forget=True))
    assert agent.forgotten == (3,) * (warmup or 1)
    agent = Forgetful()
    evaluate(agent, ENV, [45], 4, warmup, 0.0, 0, explore=Exploration(3, 0.01, probe_steps=4, forget=True))
    assert agent.forgotten == (4, 3)[: warmup or 1]
    agent = Forgetful()
    evaluate(agent, ENV, [45], 4, warmup, 0.0, 0, explore=Exploration(3, 0.01))
    assert agent.forgotten == ()


def test_forgetting_leaves_the_context_and_nothing_else():
    """After forget() the agent acts as a new one whose first context is what the steps before told."""
    bounds = torch.tensor([[-2.0, -1.0]] * 20)
    agent, new = meta_dt(return_bounds=bounds), meta_dt(return_bounds=bounds)
    rng = np.random.default_rng(0)
    agent.start(np.zeros((3, 2), np.float32), np.full(3, -1.5))
    before = agent.act()
    for _ in range(4):
        agent.observe(*(rng.normal(size=shape).astype(np.float32) for shape in ((3, 2), (3,), (3, 2))))
    remembered = agent.act()
    agent.forget()
    new.start(agent.observations[-1].numpy(), np.full(3, -1.5))
    new.contexts = [agent.contexts[-1]]
    np.testing.assert_array_equal(agent.act(), new.act())
    assert not np.allclose(agent.act(), remembered) and not np.allclose(agent.act(), before)
    after = [rng.normal(size=shape).astype(np.float32) for shape in ((3, 2), (3,), (3, 2))]
    agent.observe(*after)
    new.observe(*after)
    new.contexts[-1] = agent.contexts[-1]
    np.testing.assert_array_equal(agent.act(), new.act())


def test_same_seed_same_numbers():
    agent = meta_dt(select="sample", pool="top3")
    results = [evaluate(agent, ENV, TESTS, 3, 3, -3.0, seed, explore=Exploration(20, 0.5)) for seed in (0, 0, 1)]
    assert results[0] == results[1] != results[2]
    assert np.std(results[0]["returns"], axis=1).min() > 0  # M adaptations, not one repeated


def test_a_task_does_not_depend_on_the_others():
    agent = meta_dt()
    together, alone = (evaluate(agent, ENV, tasks, 2, 2, -3.0, 0) for tasks in (TESTS, [47]))
    np.testing.assert_allclose(together["returns"][2], alone["returns"][0], atol=2e-4)


def test_resets_are_seeded_by_task_episode_and_number_alone(monkeypatch):
    seeds = []

    class Batch(PointRobotBatch):
        def reset(self, given=None):
            seeds.append(list(given))
            return super().reset(given)

    monkeypatch.setattr(PointRobotEnv, "batch_class", Batch)
    evaluate(Recorder(), ENV, [45, 46], 2, 1, 0.0, 0)
    evaluate(Recorder(), ENV, [46], 3, 1, 0.0, 0)
    evaluate(Recorder(), ENV, [46], 1, 0, 0.0, 1)
    assert seeds[2][:2] == seeds[0][2:] and seeds[3][:2] == seeds[1][2:]
    assert len({*seeds[0], *seeds[1], *seeds[2], *seeds[3], *seeds[4]}) == 8 + 2 + 1


def test_targets_one_for_all_or_one_per_task():
    agent = Recorder()
    evaluate(agent, ENV, [45, 46], 2, 0, [-1.0, -2.0], 0)
    assert agent.starts[0][1].tolist() == [-1, -1, -2, -2]
    evaluate(agent, ENV, [45], 2, 2, -1000.0, 0, pool_max=True)
    best = [agent.pools[-1][n]["rewards"].sum(1) for n in range(2)]
    np.testing.assert_allclose(agent.starts[-2][1], best[0], rtol=1e-6)
    np.testing.assert_allclose(agent.starts[-1][1], np.maximum(*best), rtol=1e-6)
    evaluate(agent, ENV, [45], 2, 2, 5.0, 0, pool_max=True)
    assert agent.starts[-1][1].tolist() == [5, 5]  # the default stays where it is higher


# --------------------------------------------------------------------------------------------------- the paper's protocol


def episodes(level, tasks=3):
    """One episode per task whose rewards sum to level + task."""
    rewards = np.broadcast_to((level + np.arange(tasks))[:, None] / 4, (tasks, 4)).astype(np.float32)
    return {"observations": np.full((tasks, 5, 2), level, np.float32), "actions": np.zeros((tasks, 4, 2), np.float32),
            "rewards": rewards}  # fmt: skip


def test_the_papers_pool_keeps_the_best_three_of_each_task():
    pool = PaperPool()
    assert pool.state() is None
    for level in (4.0, -8.0, 12.0, 8.0, 0.0):
        pool.add(episodes(level))
    assert pool.episodes["rewards"].sum(-1).tolist() == [[12, 8, 4], [13, 9, 5], [14, 10, 6]]
    assert pool.episodes["observations"][1, :, 0, 0].tolist() == [12, 8, 4]  # whole episodes move together
    better = episodes(-8.0)
    better["rewards"][2] += 100
    pool.add(better)
    assert pool.episodes["rewards"][2].sum(-1).tolist() == [394, 14, 10] and pool.episodes["rewards"][0].sum(-1)[0] == 12


def test_the_papers_pool_survives_a_training_state(tmp_path):
    from src.run.files import load_state, save_state

    pool, other, empty = PaperPool(), PaperPool(), PaperPool()
    pool.add(episodes(4.0))
    pool.add(episodes(8.0))
    save_state(tmp_path / "state.pt", {"pool": pool.state(), "empty": empty.state()})
    state = load_state(tmp_path / "state.pt")
    other.restore(state["pool"])
    empty.restore(state["empty"])
    for key, values in pool.episodes.items():
        np.testing.assert_array_equal(other.episodes[key], values)
    other.add(episodes(6.0))
    assert empty.episodes is None and other.episodes["rewards"][0].sum(-1).tolist() == [8, 6, 4]


def test_the_papers_rows_share_the_pool_of_their_task():
    pool = PaperPool()
    for level in (4.0, 8.0):
        pool.add(episodes(level))
    rows = pool.as_list(2)
    assert [episode["rewards"].sum(1).tolist() for episode in rows] == [[8, 8, 9, 9, 10, 10], [4, 4, 5, 5, 6, 6]]


def test_the_papers_evaluation_grows_the_pool_across_checkpoints():
    agent, pool = Recorder(), PaperPool()
    first = evaluate_paper(agent, ENV, [45, 46], 3, [-1.0, -2.0], 0, pool, use_pool=True)
    assert agent.starts[0][1].tolist() == [-1, -1, -1, -2, -2, -2] and agent.starts[0][2] is None and not agent.pools
    assert pool.episodes["rewards"].shape == (2, 1, 20)
    np.testing.assert_allclose(pool.episodes["rewards"].sum(-1)[:, 0], [row[0] for row in first["returns"]], atol=1e-3)
    evaluate_paper(agent, ENV, [45, 46], 3, [-1.0, -2.0], 0, pool, use_pool=True)
    assert agent.starts[1][2] == 1 and agent.pools[0][0]["rewards"].shape == (6, 20)
    before = {key: values.copy() for key, values in pool.episodes.items()}
    evaluate_paper(agent, ENV, [45, 46], 3, [-1.0, -2.0], 0, pool, use_pool=False, grow=False)
    assert agent.starts[2][2] is None
    assert all(np.array_equal(pool.episodes[key], values) for key, values in before.items())


# ----------------------------------------------------------------------------------------------------- reference levels


def test_reference_levels_of_the_published_tasks():
    levels = reference_levels(ENV, ENV.make(), TESTS)
    assert np.mean(levels["trivial"]) == pytest.approx(-17.50, abs=0.005)
    np.testing.assert_allclose(levels["trivial"], [-21.53, -22.19, -19.15, -12.80, -11.84], atol=0.006)
    assert np.mean(levels["task_blind"]) == pytest.approx(-17.62, abs=0.005)
    assert np.mean(levels["oracle"]) == pytest.approx(-2.98, abs=0.005)
    np.testing.assert_allclose(levels["oracle"], [-4.26, -4.14, -3.97, -1.45, -1.08], atol=0.006)
    assert "dataset_mean" not in levels


def test_reference_levels_of_all_tasks_and_of_the_training_tasks():
    levels = reference_levels(ENV, ENV.make(), list(range(50)), episodes=1)
    means = {name: (np.mean(values), np.mean(values[:45])) for name, values in levels.items()}
    assert means["trivial"] == pytest.approx((-14.88, -14.59), abs=0.006)
    assert means["oracle"] == pytest.approx((-2.25, -2.16), abs=0.006)
    assert means["task_blind"][1] == pytest.approx(-14.32, abs=0.005)


def test_levels_that_nobody_can_compute_are_null():
    env = read_env(ROOT / "tests/toy/slide.yaml", read_yaml(ROOT / "tests/toy/slide.yaml"))
    levels = reference_levels(env, env.make(), [6, 7])
    assert levels["task_blind"] is None and levels["oracle"] is None and len(levels["trivial"]) == 2


def test_warmup_episodes_may_end_on_their_own():
    """Rows of a round end at other steps: what lies behind an end changes nothing."""
    agent, rng = meta_dt(carry_context=True), np.random.default_rng(0)

    def episode(steps, ends):
        shapes = {"observations": (2, steps + 1, 2), "actions": (2, steps, 2), "rewards": (2, steps)}
        values = {key: rng.standard_normal(shape).astype(np.float32) * 0.1 for key, shape in shapes.items()}
        values["terminated"] = np.zeros((2, steps), bool)
        for row, end in enumerate(ends):
            values["terminated"][row, end - 1] = end <= steps
            values["rewards"][row, end:] = 0
        return values

    pool = [episode(9, (7, 4)), episode(9, (9, 6))]
    prompt = agent.make_prompt(pool, torch.Generator().manual_seed(0))
    for values in pool:
        values["observations"][1, 7:], values["actions"][1, 6:] = 1e3, 1e3
    pool[0]["observations"][1, 5:], pool[0]["actions"][1, 4:] = 1e3, 1e3
    again = agent.make_prompt(pool, torch.Generator().manual_seed(0))
    for key, value in prompt.items():
        shown = prompt["mask"] if value.dim() > 1 and value.shape[:2] == prompt["mask"].shape else torch.ones(len(value)) > 0
        assert torch.equal(value[shown], again[key][shown]), key


def test_rounds_are_of_one_length_where_all_rows_end_early():
    class Short(PointRobotBatch):
        """Ends at the third step."""

        def step(self, actions):
            self.count = getattr(self, "count", 0) + 1
            answer = super().step(actions)
            self.infos = {"terminated": np.full(len(actions), self.count == 3)}
            return answer

    bounds = np.float32([-0.1, -0.1]), np.float32([0.1, 0.1])
    batch = Short({"goal": PointRobotEnv().tasks["goal"][:2]})
    episode = rollout(Recorder(), batch, [0, 1], 20, np.zeros(2), bounds)
    assert {key: values.shape[1] for key, values in episode.items()} == {
        "observations": 21, "actions": 20, "rewards": 20, "terminated": 20
    }  # fmt: skip
    assert episode_lengths(episode["rewards"], episode).tolist() == [3, 3]
    assert episode["rewards"][:, :3].all() and not episode["rewards"][:, 3:].any()
