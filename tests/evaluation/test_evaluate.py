"""The evaluation protocol on agents that do something known, and the reference levels of the published tasks."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gymnasium.spaces import Box
from helpers import ROOT, point_robot, tiny_policy, tiny_world_model

from envs.point_robot import PointRobotBatch, PointRobotEnv
from src.data.trajectories import load
from src.evaluation.agent import PolicyAgent, random_agent
from src.evaluation.batch import make_batch
from src.evaluation.evaluate import _rounded, evaluate
from src.evaluation.exploration import Exploration, ExploringAgent, exploring, orthogonal_actions
from src.evaluation.method import Evaluation
from src.evaluation.paper_protocol import PaperPool, PaperProtocol, best_returns
from src.evaluation.references import reference_levels
from src.evaluation.rollout import returns, rollout
from src.models.meta_dt_agent import Adaptation, MetaDTAgent
from src.models.steps import Steps
from src.run import distributed
from src.run.config import read_env, read_yaml
from src.run.errors import UserError

ENV = point_robot()
TESTS = [45, 46, 47, 48, 49]
GOALS = ENV.make().tasks["goal"]


@pytest.mark.parametrize("task", [-1, 100])
def test_point_robot_has_fifty_tasks_and_fifty_fresh_ones(task):
    with pytest.raises(ValueError, match="point_robot has tasks 0 to 99"):
        PointRobotEnv().reset(options={"task": task})


class Recorder:
    """Walks at a speed of its own in every row, faster with every episode it has lived; remembers what it was shown."""

    def __init__(self):
        self.starts, self.pools, self.observed, self.forgotten = [], [], [], []

    def adapt(self, episodes):
        self.pools.append([{**episode, "rewards": episode["rewards"].copy()} for episode in episodes])

    def start(self, observations):
        self.starts.append(observations.copy())
        self.rows = len(observations)

    def act(self):
        return np.stack([np.arange(self.rows) * 1e-3, np.full(self.rows, len(self.pools[-1]) * 1e-2)], 1)

    def observe(self, actions, rewards, next_observations):
        self.observed.append((actions, rewards, next_observations))

    def forget(self):
        self.forgotten.append(len(self.observed) % 20)


def explorer(agent, warmup=0, space=None, explore="noise", steps=0, scale=1.0):
    """`agent` explores as `exploring` has it, with noise smaller by `scale`."""
    wrapped = exploring(agent, Exploration(explore, steps), space or ENV.make().action_space, warmup, 0)
    wrapped.half_range = wrapped.half_range * (1 if explore == "probe" else scale)
    return wrapped


def meta_dt(target=-3.0, warmup=0, seed=0, **settings):
    """A tiny Meta-DT with Adaptation `settings`; the agent's own arguments among them."""
    own = {key: settings.pop(key) for key in ("known_contexts",) if key in settings}
    policy = tiny_policy(action_scale=torch.tensor([0.1, 0.1]))
    return MetaDTAgent(policy, tiny_world_model(), 6, 4, target, Adaptation(**settings), warmup=warmup, seed=seed, **own)


def numbers(rng):
    """Actions, rewards and observations of three rows."""
    return tuple(rng.normal(size=shape).astype(np.float32) for shape in ((3, 2), (3,), (3, 2)))


# -------------------------------------------------------------------------------------------------------------- rollout


def test_returns_are_the_sums_of_rewards_of_the_simulator():
    agent = Recorder()
    result = evaluate(agent, ENV, [3, 47], 2, keep=2)
    position = np.zeros((4, 2))
    total = np.zeros(4)
    for _ in range(20):
        position = position + np.stack([np.arange(4) * 1e-3, np.zeros(4)], 1)
        total -= np.linalg.norm(position - GOALS[[3, 3, 47, 47]], axis=1)
    np.testing.assert_allclose(np.array(result["returns"]).ravel(), total, atol=2e-4)
    assert set(result) == {"returns", "trajectories"} and agent.pools == [[]]
    np.testing.assert_allclose(result["trajectories"]["47"]["evaluation"][1][-1], position[3], atol=1e-4)
    assert np.shape(result["trajectories"]["3"]["evaluation"]) == (2, 21, 2) and result["trajectories"]["3"]["warmup"] == []
    assert len(agent.observed) == 20 and agent.starts[0].shape == (4, 2)


def test_actions_are_clipped_before_they_are_played_and_shown():
    class Wild(Recorder):
        def act(self):
            return np.tile([5.0, -0.02], (self.rows, 1))

    agent = Wild()
    episode = rollout(agent, make_batch(ENV, [0, 1]), [0, 1], 20)
    assert episode["actions"].dtype == np.float32
    np.testing.assert_allclose(episode["actions"], np.broadcast_to(np.float32([0.1, -0.02]), (2, 20, 2)))
    np.testing.assert_array_equal(agent.observed[0][0], episode["actions"][:, 0])
    assert episode["observations"].shape == (2, 21, 2) and episode["rewards"].shape == (2, 20)
    assert episode["lengths"].tolist() == [20, 20]


def test_a_policy_acts_on_what_it_sees():
    """PolicyAgent: the first observation, then that of every step; nothing of the episodes before."""
    seen = []

    def policy(observations):
        seen.append(observations.copy())
        return np.full((2, 2), 0.05)

    episode = rollout(PolicyAgent(policy), make_batch(ENV, [0, 7]), [0, 1], 20)
    np.testing.assert_array_equal(np.stack(seen, 1), episode["observations"][:, :-1])
    result = evaluate(PolicyAgent(policy), ENV, [3], 2, warmup=1)
    assert np.array(result["warmup_returns"])[:, :, 0].tolist() == result["returns"]


def test_random_actions_fill_the_bounds():
    space = Box(np.float32([-1.0, 2.0]), np.float32([1.0, 3.0]))
    agent = random_agent(space, np.random.default_rng(0))
    agent.start(np.zeros((4000, 2), np.float32))
    actions = agent.act()
    assert actions.min(0) == pytest.approx([-1, 2], abs=0.01) and actions.max(0) == pytest.approx([1, 3], abs=0.01)
    assert actions.mean(0) == pytest.approx([0, 2.5], abs=0.05)


def test_success_is_any_step_that_was_one(monkeypatch):
    """Where the environment reports it: of the evaluated episode, up to its end."""

    class Signals(PointRobotBatch):
        def step(self, actions):
            self.count = getattr(self, "count", 0) + 1
            answer = super().step(actions)
            near = np.array([self.count == 3, False, self.count >= 20, self.count == 20])
            self.infos = {"success": near, "terminated": np.array([False, False, self.count >= 10, False])}
            return answer

    monkeypatch.setattr(PointRobotEnv, "batch_class", Signals)
    result = evaluate(PolicyAgent(lambda observations: observations * 0), ENV, [45, 46], 2)
    assert result["success"] == [[1.0, 0.0], [0.0, 1.0]]  # the third row's came after its end
    monkeypatch.undo()
    assert "success" not in evaluate(Recorder(), ENV, [45], 2)


def test_noise_is_a_share_of_the_half_range():
    batch = make_batch(ENV, np.zeros(500, int))
    batch.action_space = Box(np.float32([-1e9, -2e9]), np.float32([1e9, 2e9]))
    agent = explorer(Recorder(), 0, batch.action_space, steps=20, scale=0.01)
    agent.adapt([])
    episode = rollout(agent, batch, [0] * 500, 20)
    assert episode["actions"].std((0, 1)) == pytest.approx([1e7, 2e7], rel=0.05)


def test_noise_ends_after_its_steps():
    plain = Recorder()
    plain.adapt([])
    noisy = explorer(Recorder(), steps=3, scale=0.1)
    noisy.adapt([])
    found = [rollout(agent, make_batch(ENV, [0]), [0], 20)["actions"] for agent in (plain, noisy)]
    assert (found[0] != found[1]).all(-1)[0].tolist() == [True] * 3 + [False] * 17


def test_a_policy_that_diverged_is_named():
    class Broken(Recorder):
        def act(self):
            return np.full((self.rows, 2), np.nan)

    with pytest.raises(UserError, match=r"not finite.*learning_rate"):
        evaluate(Broken(), ENV, [0], 1)


# ------------------------------------------------------------------------------------------------------------- few-shot


def test_the_pool_is_the_rows_own_and_starts_empty():
    agent = Recorder()
    result = evaluate(agent, ENV, [45, 48], 3, 2, keep=1)
    assert [len(pool) for pool in agent.pools] == [0, 1, 2]  # zero-shot first, then each may use the episodes so far
    for number, episode in enumerate(agent.pools[-1]):
        assert episode["observations"].shape == (6, 21, 2)
        for row in range(6):  # the speed of the row, and the number of episodes before, are in the actions
            np.testing.assert_allclose(episode["actions"][row], np.broadcast_to([row * 1e-3, number * 1e-2], (20, 2)), atol=1e-7)
    sums = np.stack([episode["rewards"].sum(1) for episode in agent.pools[-1]], 1).reshape(2, 3, 2)
    np.testing.assert_allclose(result["warmup_returns"], sums, atol=1e-3)
    assert np.shape(result["returns"]) == (2, 3)
    assert len(result["trajectories"]["45"]["warmup"]) == 2
    again = Recorder()
    evaluate(again, ENV, [45], 1, 1)
    assert [len(pool) for pool in again.pools] == [0, 1]  # nothing is left from the round before


@pytest.mark.parametrize("noise", [False, True])
def test_no_warmup_is_zero_shot(noise):
    def agent(warmup):
        return explorer(meta_dt(), warmup, steps=19) if noise else meta_dt()

    zero = evaluate(agent(0), ENV, TESTS, 2)
    assert set(zero) == {"returns"}
    few = evaluate(agent(2), ENV, TESTS, 2, 2)
    assert np.array(few["warmup_returns"])[:, :, 0].tolist() == zero["returns"]  # the first warm-up episode knows nothing
    assert few["returns"] != zero["returns"]


def test_returns_are_rounded_to_seven_significant_digits():
    agent = Recorder()
    result = evaluate(agent, ENV, [45, 48], 3, 1, later=1)
    sums = np.stack([episode["rewards"].sum(1) for episode in agent.pools[-1]], 1).reshape(2, 3, 2)
    for key, values in {"warmup_returns": sums[:, :, :1], "returns": sums[:, :, 1]}.items():
        np.testing.assert_allclose(result[key], values, rtol=1e-6)
        assert all(value == float(f"{value:.7g}") for value in np.ravel(result[key]))


def test_later_episodes_change_nothing_before_them():
    agent = Recorder()
    longer = evaluate(agent, ENV, [45, 48], 3, 2, keep=1, later=2)
    plain = evaluate(Recorder(), ENV, [45, 48], 3, 2, keep=1)
    assert {key: value for key, value in longer.items() if key != "later_returns"} == plain
    assert [len(pool) for pool in agent.pools] == [0, 1, 2, 3, 4]  # the evaluated episode is adapted to as well
    sums = np.stack([episode["rewards"].sum(1) for episode in agent.pools[-1]], 1).reshape(2, 3, 4)
    later = np.array(longer["later_returns"])
    assert later.shape == (2, 3, 2)
    np.testing.assert_allclose(later[:, :, 0], sums[:, :, 3], atol=1e-3)


def test_a_watcher_sees_the_evaluated_episode():
    watched = []
    result = evaluate(Recorder(), ENV, [45, 48], 2, 1, watch=lambda *given: watched.append(given), later=1)
    ((tasks, seeds, episode),) = watched
    assert tasks.tolist() == [45, 45, 48, 48] and len(set(seeds)) == 4
    np.testing.assert_allclose(returns(episode).reshape(2, 2), result["returns"], rtol=1e-6)


def test_who_has_the_first_task_watches(monkeypatch):
    """Of two processes and one task the second has it."""
    monkeypatch.setattr(distributed, "size", lambda: 2)
    monkeypatch.setattr(distributed, "collected", lambda value: [value])
    watched = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        evaluate(Recorder(), ENV, [45], 1, watch=lambda tasks, *_, rank=rank: watched.append((rank, tasks.tolist())))
    assert watched == [(1, [45])]


def test_the_context_that_was_paid_best_is_kept():
    """Warm-up episodes after the first try known contexts in turn; the evaluated one and the later ones play the best so far."""
    known = torch.from_numpy(np.random.default_rng(0).standard_normal((3, 16)).astype(np.float32))
    agent, played = meta_dt(warmup=3, context="tried", known_contexts=known), []
    adapt = agent.adapt

    def noted(episodes):
        adapt(episodes)
        played.append(agent.carried)

    agent.adapt = noted
    result = evaluate(agent, ENV, TESTS, 4, 3, later=1)
    scores = np.concatenate([result["warmup_returns"], np.array(result["returns"])[..., None]], -1).reshape(20, 4)
    assert played[0] is None and all(torch.equal(played[n], known[n - 1].expand(20, -1)) for n in (1, 2))
    for row in range(20):
        for number in (3, 4):
            best = scores[row, :number].argmax()
            kept = played[number][row]
            assert torch.equal(kept, played[best][row]) if best else not (kept == known).all(1).any()
    assert len(set(scores[:, :3].argmax(1))) > 1


# ---------------------------------------------------------------------------------------------------------- exploration


def test_noise_disturbs_the_warmup_only():
    plain = evaluate(Recorder(), ENV, [45], 4, 2)
    noisy = evaluate(explorer(Recorder(), 2, steps=20), ENV, [45], 4, 2)
    assert plain["returns"] == noisy["returns"]  # this agent ignores what happened
    assert plain["warmup_returns"] != noisy["warmup_returns"]


def own_steps(agent, warmup):
    """(episodes, 20) whether the wrapped Recorder's own actions were played; the actions (episodes, 20, 4, 2)."""
    evaluate(agent, ENV, [45], 4, warmup)
    actions = np.stack([actions for actions, _, _ in agent.agent.observed]).reshape(warmup + 1, 20, 4, 2)
    own = [np.stack([np.arange(4) * 1e-3, np.full(4, number * 1e-2)], 1) for number in range(warmup + 1)]
    same = np.stack([np.isclose(episode, mine, atol=1e-7) for episode, mine in zip(actions, own, strict=True)])
    assert (same.all((2, 3)) | ~same.any((2, 3))).all()
    return same.all((2, 3)), actions


@pytest.mark.parametrize("warmup", [0, 2])
def test_only_the_first_steps_explore(warmup):
    """Of zero-shot and of warm-up episodes; the evaluation after a warm-up is played as it is."""
    own, _ = own_steps(explorer(Recorder(), warmup, steps=3, scale=0.01), warmup)
    for number, episode in enumerate(own):
        assert episode.tolist() == [step >= 3 or 0 < warmup <= number for step in range(20)]


def test_probes_are_full_and_orthogonal_and_come_back():
    actions = orthogonal_actions(500, 3, 7, np.random.default_rng(0))
    assert np.abs(actions).max(-1) == pytest.approx(np.ones((500, 7)))
    axes = actions / np.linalg.norm(actions, axis=-1, keepdims=True)
    np.testing.assert_allclose(axes[:, :3] @ axes[:, :3].swapaxes(1, 2), np.broadcast_to(np.eye(3), (500, 3, 3)), atol=1e-12)
    np.testing.assert_allclose(actions[:, 3:6], -actions[:, :3])
    np.testing.assert_allclose(actions[:, 6], actions[:, 0])
    assert np.abs(axes.mean(0)).max() < 0.1  # in no direction more than in another


@pytest.mark.parametrize("warmup", [0, 2])
def test_only_the_first_episode_probes(warmup):
    """It knows nothing. The others are noisy; the noise's steps are another number."""
    own, actions = own_steps(explorer(Recorder(), warmup, explore="probe", steps=2), warmup)
    for number, episode in enumerate(own):
        assert episode.tolist() == [step >= (3 if number == 0 else 2 if number < warmup else 0) for step in range(20)]
    full = actions[0, :3].astype(np.float64)
    np.testing.assert_allclose(np.abs(full).max(-1), 0.1, rtol=1e-6)
    np.testing.assert_allclose((full[0] * full[1]).sum(-1), 0, atol=1e-8)
    np.testing.assert_allclose(full[2], -full[0])


def test_probing_without_noise_leaves_later_episodes_alone():
    own, _ = own_steps(explorer(Recorder(), 2, explore="probe"), 2)
    assert own.sum(1).tolist() == [17, 20, 20]


def test_probes_are_around_the_middle_of_the_bounds():
    batch = make_batch(ENV, np.zeros(50, int))
    low, high = np.float32([0.0, -3.0]), np.float32([1.0, 1.0])
    batch.action_space = Box(low, high)
    agent = explorer(Recorder(), space=batch.action_space, explore="probe")
    agent.adapt([])
    actions = rollout(agent, batch, [0] * 50, 20)["actions"]
    share = (actions[:, :3] - [0.5, -1.0]) / [0.5, 2.0]
    np.testing.assert_allclose(np.abs(share).max(-1), 1, rtol=1e-5)
    assert (actions >= low).all() and (actions <= high).all()


@pytest.mark.parametrize("warmup", [0, 2])
def test_exploration_is_forgotten_where_it_was(warmup):
    """After the noisy steps, in the episodes that have them."""
    agent = Recorder()
    evaluate(explorer(agent, warmup, steps=4), ENV, [45], 4, warmup)
    assert agent.forgotten == [4] * (warmup or 1)
    agent = Recorder()
    evaluate(explorer(agent, warmup, explore="probe", steps=2), ENV, [45], 4, warmup)
    assert agent.forgotten == [3, 2][: warmup or 1]


def test_no_exploration_is_the_agent_itself():
    agent = Recorder()
    assert exploring(agent, Exploration(), ENV.make().action_space, 2, 0) is agent
    assert isinstance(exploring(agent, Exploration("noise", 2), ENV.make().action_space, 2, 0), ExploringAgent)


def test_forgetting_leaves_the_context_and_nothing_else():
    """After forget() the agent acts as a new one whose first context is what the steps before told."""
    agent, new = meta_dt(-1.5), meta_dt(-1.5)
    rng = np.random.default_rng(0)
    agent.adapt([])
    agent.start(np.zeros((3, 2), np.float32))
    before = agent.act()
    for _ in range(4):
        agent.observe(*numbers(rng))
    remembered = agent.act()
    agent.forget()
    new.adapt([])
    new.start(agent.observations[-1].numpy())
    new.contexts = Steps(agent.contexts[-1])
    np.testing.assert_array_equal(agent.act(), new.act())
    assert not np.allclose(agent.act(), remembered) and not np.allclose(agent.act(), before)
    after = numbers(rng)
    agent.observe(*after)
    new.observe(*after)
    new.contexts[-1] = agent.contexts[-1]
    np.testing.assert_array_equal(agent.act(), new.act())


def test_same_seed_same_numbers():
    def agent(seed):
        return explorer(meta_dt(seed=seed, prompt_select="sample"), 3, steps=19)

    results = [evaluate(agent(seed), ENV, TESTS, 3, 3, seed) for seed in (0, 0, 1)]
    assert results[0] == results[1] != results[2]
    assert np.std(results[0]["returns"], axis=1).min() > 0  # M adaptations, not one repeated


def test_a_task_does_not_depend_on_the_others():
    together, alone = (evaluate(meta_dt(), ENV, tasks, 2, 2) for tasks in (TESTS, [47]))
    np.testing.assert_allclose(together["returns"][2], alone["returns"][0], atol=2e-4)


def test_resets_are_seeded_by_task_episode_and_number_alone(monkeypatch):
    ENV.make()  # whose first look at the environment resets it, too
    seeds = []

    class Batch(PointRobotBatch):
        def reset(self, given=None):
            seeds.append(list(given))
            return super().reset(given)

    monkeypatch.setattr(PointRobotEnv, "batch_class", Batch)
    evaluate(Recorder(), ENV, [45, 46], 2, 1)
    evaluate(Recorder(), ENV, [46], 3, 1)
    evaluate(Recorder(), ENV, [46], 1, 0, 1)
    assert seeds[2][:2] == seeds[0][2:] and seeds[3][:2] == seeds[1][2:]
    assert len({*seeds[0], *seeds[1], *seeds[2], *seeds[3], *seeds[4]}) == 8 + 2 + 1


def test_targets_one_for_all_or_one_per_row():
    for target, expected in ((-3.0, [-3.0] * 4), ([-1.0, -1, -2, -2], [-1.0, -1, -2, -2])):
        agent = meta_dt(target)
        agent.adapt([])
        agent.start(np.zeros((4, 2), np.float32))
        assert agent.returns_to_go[0].tolist() == expected


# --------------------------------------------------------------------------------------------------- the paper's protocol


def episodes(level, tasks=3):
    """One episode per task whose rewards sum to level + task."""
    rewards = np.broadcast_to((level + np.arange(tasks))[:, None] / 4, (tasks, 4)).astype(np.float32)
    return {"observations": np.full((tasks, 5, 2), level, np.float32), "actions": np.zeros((tasks, 4, 2), np.float32),
            "rewards": rewards, "lengths": np.full(tasks, 4)}  # fmt: skip


def test_the_papers_pool_keeps_the_best_three_of_each_task():
    pool = PaperPool()
    assert pool.state_dict() == {} and pool.as_list(2) == []
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
    save_state(tmp_path / "state.pt", {"pool": pool.state_dict(), "empty": empty.state_dict()})
    state = load_state(tmp_path / "state.pt")
    other.load_state_dict(state["pool"])
    empty.load_state_dict(state["empty"])
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


class Targeted(Recorder):
    """Notes the targets that it starts with."""

    def start(self, observations):
        self.targets = [*getattr(self, "targets", []), np.array(self.target).tolist()]
        super().start(observations)


def paper_protocol(returns_of_tasks, prompts, episodes=3):
    """PaperProtocol on tasks 45 and 46 whose data have these returns, (2, n)."""
    values = np.array(returns_of_tasks, float)
    ids = np.repeat([45, 46], values.shape[1])
    dataset = SimpleNamespace(tasks={45: {}, 46: {}}, returns=values.ravel(), task_ids=ids)
    data = SimpleNamespace(test_tasks=[45, 46], dataset=dataset)
    return PaperProtocol(SimpleNamespace(env=ENV, seed=0), Evaluation(eval_episodes=4, curve_episodes=episodes), data, prompts)


def test_the_papers_evaluation_grows_the_pool_across_checkpoints():
    agent, protocol = Targeted(), paper_protocol([[-9, -1.0], [-2.0, -5]], prompts=True)
    first = protocol.curve(agent, 0)
    assert agent.targets[0] == [-1, -1, -1, -2, -2, -2] and agent.pools == [[]]
    assert protocol.pool.episodes["rewards"].shape == (2, 1, 20)
    np.testing.assert_allclose(protocol.pool.episodes["rewards"].sum(-1)[:, 0], [row[0] for row in first["returns"]], atol=1e-3)
    protocol.curve(agent, 1)
    assert len(agent.pools[1]) == 1 and agent.pools[1][0]["rewards"].shape == (6, 20)
    before = {key: values.copy() for key, values in protocol.pool.episodes.items()}
    final = protocol.final(agent, 1)
    assert np.shape(final["returns"]) == (2, 4) and len(agent.pools[2]) == 2
    assert all(np.array_equal(protocol.pool.episodes[key], values) for key, values in before.items())


def test_the_papers_zero_shot_evaluation_has_no_pool():
    agent, protocol = Targeted(), paper_protocol([[-9, -1.0], [-2.0, -5]], prompts=False)
    protocol.curve(agent, 0)
    protocol.final(agent, 0)
    assert agent.pools == [[], []] and protocol.pool.episodes is None
    assert protocol.parts == {}  # so a policy of the strict protocol can be measured by this one


def test_the_papers_targets_need_data_of_the_test_tasks():
    with pytest.raises(UserError, match="task 46 has none"):
        best_returns(SimpleNamespace(tasks={45: {}}, returns=np.zeros(1), task_ids=np.array([45])), [45, 46])


def test_paths_of_any_size_can_be_written():
    path = np.array([[0.123456, -3.00005], [1e37, 3e38]], np.float32)
    assert _rounded(path[:1]) == path[:1].round(4).tolist() and _rounded(path)[1] == path[1].tolist()


# ----------------------------------------------------------------------------------------------------- reference levels


def test_reference_levels_of_the_published_tasks():
    levels = reference_levels(ENV, ENV.make(), TESTS)
    assert np.mean(levels["trivial"]) == pytest.approx(-17.50, abs=0.005)
    np.testing.assert_allclose(levels["trivial"], [-21.53, -22.19, -19.15, -12.80, -11.84], atol=0.006)
    assert np.mean(levels["task_blind"]) == pytest.approx(-17.62, abs=0.005)
    assert np.mean(levels["best_known"]) == pytest.approx(-2.98, abs=0.005)
    np.testing.assert_allclose(levels["best_known"], [-4.26, -4.14, -3.97, -1.45, -1.08], atol=0.006)
    assert "dataset_mean" not in levels


def test_reference_levels_of_all_tasks_and_of_the_training_tasks():
    levels = reference_levels(ENV, ENV.make(), list(range(50)), episodes=1)
    inferred = np.array(levels["explicit_inference"])
    assert inferred.mean() == pytest.approx(-4.204, abs=0.001) and inferred[45:].mean() == pytest.approx(-5.305, abs=0.001)
    assert (inferred < np.array(levels["best_known"]) + 1e-3).all()
    means = {name: (np.mean(values), np.mean(values[:45])) for name, values in levels.items()}
    assert means["trivial"] == pytest.approx((-14.88, -14.59), abs=0.006)
    assert means["best_known"] == pytest.approx((-2.25, -2.16), abs=0.006)
    assert means["task_blind"][1] == pytest.approx(-14.32, abs=0.005)


def test_levels_of_the_dataset_are_each_tasks_own(data_root):
    dataset = load(data_root / "datasets", "point_robot", "random")
    levels = reference_levels(ENV, ENV.make(), TESTS, dataset)
    own = [dataset.returns[dataset.task_ids == task] for task in TESTS]
    assert levels["dataset_mean"] == [values.mean() for values in own] and levels["dataset_best"] == [max(v) for v in own]
    assert len(set(levels["dataset_mean"])) == 5 and all(len(values) == 10 for values in own)
    assert "dataset_mean" not in reference_levels(ENV, ENV.make(), TESTS, dataset.select(range(45, 49)))  # one has no data


def test_the_task_blind_level_is_that_of_the_training_tasks():
    """Point-Robot's stands still in the mean of the training goals, whichever tasks it is measured on."""
    few = reference_levels(ENV, ENV.make(), [45], episodes=1)["task_blind"][0]
    assert few == reference_levels(ENV, ENV.make(), TESTS, episodes=1)["task_blind"][0]
    policy = PointRobotEnv.reference_policies(ENV.make().tasks, range(45))["task_blind"]
    other = PointRobotEnv.reference_policies(ENV.make().tasks, range(45, 50))["task_blind"]
    somewhere = np.float32([[0.5, 0.5]])
    assert not np.allclose(policy(somewhere, [45]), other(somewhere, [45]))
    seeds = [0]
    episode = rollout(PolicyAgent(lambda observations: policy(observations, [45])), make_batch(ENV, [45]), seeds, 20)
    assert returns(episode)[0] == pytest.approx(few, abs=0.05)


def test_levels_that_nobody_can_compute_are_null():
    env = read_env(ROOT / "tests/toy/slide.yaml", read_yaml(ROOT / "tests/toy/slide.yaml"))
    levels = reference_levels(env, env.make(), [6, 7])
    assert levels["task_blind"] is None and levels["best_known"] is None and len(levels["trivial"]) == 2


def test_warmup_episodes_may_end_on_their_own():
    """Rows of a round end at other steps: what lies behind an end changes nothing."""
    agent, rng = meta_dt(context="carried"), np.random.default_rng(0)

    def episode(steps, ends):
        shapes = {"observations": (2, steps + 1, 2), "actions": (2, steps, 2), "rewards": (2, steps)}
        values = {key: rng.standard_normal(shape).astype(np.float32) * 0.1 for key, shape in shapes.items()}
        for row, end in enumerate(ends):
            values["rewards"][row, end:] = 0
        return values | {"lengths": np.array(ends)}

    pool, prompts = [episode(9, (7, 4)), episode(9, (9, 6))], []
    agent.policy.encode_prompt = lambda prompt: prompts.append(prompt)

    def adapted():
        agent.adapt([])
        agent.adapt(pool)
        return agent.carried

    carried = adapted()
    for values in pool:
        values["observations"][1, 7:], values["actions"][1, 6:] = 1e3, 1e3
    pool[0]["observations"][1, 5:], pool[0]["actions"][1, 4:] = 1e3, 1e3
    assert torch.equal(adapted(), carried)
    prompt, again = prompts
    for key, value in prompt.items():
        shown = prompt["mask"] if value.dim() > 1 and value.shape[:2] == prompt["mask"].shape else torch.ones(len(value)) > 0
        assert torch.equal(value[shown], again[key][shown]), key


def test_rounds_are_of_one_length_where_all_rows_end_early(monkeypatch):
    class Short(PointRobotBatch):
        """Ends at the third step."""

        def step(self, actions):
            self.count = getattr(self, "count", 0) + 1
            answer = super().step(actions)
            self.infos = {"terminated": np.full(len(actions), self.count == 3)}
            return answer

    monkeypatch.setattr(PointRobotEnv, "batch_class", Short)
    agent = Recorder()
    agent.adapt([])
    episode = rollout(agent, make_batch(ENV, [0, 1]), [0, 1], 20)
    shapes = {"observations": 21, "actions": 20, "rewards": 20}
    assert {key: episode[key].shape[1] for key in shapes} == shapes and episode["infos"]["terminated"].shape == (2, 20)
    assert episode["lengths"].tolist() == [3, 3] and len(agent.observed) == 3
    assert episode["rewards"][:, :3].all() and not episode["rewards"][:, 3:].any()
