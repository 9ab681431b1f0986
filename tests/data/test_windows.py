"""Windows, returns-to-go and batches against arrays written by hand."""

import pytest
import torch

from src.data.windows import BatchSampler, EpisodeTensors, returns_to_go

LENGTHS = (5, 2, 4, 5, 3)
TASKS = (7, 7, 3, 3, 3)
K = 3


def numbered(lengths=LENGTHS, steps=5):
    """Episodes in which every number says where it stands (observation 10 e + t + 1); NaN beyond their ends."""
    place = 10.0 * torch.arange(len(lengths))[:, None] + torch.arange(steps + 1) + 1
    beyond = torch.arange(steps + 1) > torch.tensor(lengths)[:, None]
    states = place.masked_fill(beyond, torch.nan)
    inside = place[:, :-1].masked_fill(beyond[:, 1:], torch.nan)
    contexts = states[..., None] + torch.arange(16) / 100
    rewards = torch.ones(len(lengths), steps).masked_fill(beyond[:, 1:], torch.nan)
    return EpisodeTensors(states[..., None], inside[..., None] + 0.5, rewards, torch.tensor(lengths), contexts, inside)


def sampler(full_windows=False, select="random", tasks=TASKS, lengths=LENGTHS, length=K):
    return BatchSampler(numbered(lengths), torch.tensor(tasks), length, 2, 1, select, full_windows)


def test_returns_to_go_by_hand():
    rewards = torch.tensor([[1.0, 2, 3, 4], [5, 6, 100, torch.nan], [0.5, -1, 0, 2]])
    found = returns_to_go(rewards.nan_to_num(100), torch.tensor([4, 2, 3]))
    assert found.tolist() == [[10, 9, 7, 4], [11, 6, 0, 0], [-0.5, -1, 0, 0]]


def test_returns_to_go_keep_their_precision():
    rewards = torch.full((1, 1000), 0.1)
    rewards[0, 0] = 1e6
    found = returns_to_go(rewards, torch.tensor([1000]))
    assert found[0, 0] == pytest.approx(1e6 + 99.9, abs=0.07) and found[0, -1] == rewards[0, -1]
    assert found[0, 500] == pytest.approx(50, abs=1e-4)


def test_history_windows_by_hand():
    """Padding on the left, absolute time steps, episodes of unequal length."""
    episodes, starts = torch.tensor([0, 0, 1, 1, 4]), torch.tensor([1, 3, 0, 1, 0])
    windows = numbered().gather(episodes, starts, K)
    assert windows["mask"].int().tolist() == [[1, 1, 1], [0, 1, 1], [0, 1, 1], [0, 0, 1], [1, 1, 1]]
    assert windows["timesteps"].tolist() == [[1, 2, 3], [0, 3, 4], [0, 0, 1], [0, 0, 1], [0, 1, 2]]
    expected = [[2, 3, 4], [None, 4, 5], [None, 11, 12], [None, None, 12], [41, 42, 43]]
    places = torch.tensor([[torch.nan if value is None else value for value in row] for row in expected])
    mask = windows["mask"]
    assert torch.equal(windows["observations"][..., 0][mask], places[mask])
    assert torch.equal(windows["actions"][..., 0][mask], places[mask] + 0.5)
    assert torch.allclose(windows["contexts"][..., 3][mask], places[mask] + 0.03)
    assert windows["returns_to_go"][mask].tolist() == [4, 3, 2, 2, 1, 2, 1, 1, 3, 2, 1]  # rewards are 1
    assert all(values.isfinite().all() for values in windows.values())  # nothing beyond an end is read


def test_prompt_windows_are_padded_on_the_right():
    windows = numbered().gather(torch.tensor([0, 1]), torch.tensor([2, 0]), K, align_right=False)
    assert windows["mask"].int().tolist() == [[1, 1, 1], [1, 1, 0]]
    assert windows["timesteps"].tolist() == [[2, 3, 4], [0, 1, 0]]
    assert windows["observations"][0, :, 0].tolist() == [3, 4, 5] and windows["observations"][1, :2, 0].tolist() == [11, 12]
    assert windows["returns_to_go"][0].tolist() == [3, 2, 1]


def test_every_pair_of_episode_and_start_is_equally_likely():
    history, prompt = sampler().draw(19_000, torch.Generator().manual_seed(0), False)
    assert prompt is None
    first = history["mask"].int().argmax(1)  # the first real step tells the start
    starts = history["observations"][torch.arange(19_000), first, 0]
    places, counts = starts.unique(return_counts=True)
    assert places.tolist() == [10 * e + t + 1 for e, length in enumerate(LENGTHS) for t in range(length)]
    assert ((counts - 1000).abs() < 160).all()  # five standard deviations
    assert history["mask"][:, -1].all()


def test_full_windows_are_full_where_the_episode_is_long_enough():
    history, _ = sampler(full_windows=True).draw(9000, torch.Generator().manual_seed(0), False)
    first = history["mask"].int().argmax(1)
    starts, counts = history["observations"][torch.arange(9000), first, 0].unique(return_counts=True)
    assert starts.tolist() == [1, 2, 3, 11, 21, 22, 31, 32, 33, 41]
    assert ((counts - 900).abs() < 150).all()
    short = history["observations"][torch.arange(9000), first, 0] == 11  # two steps: as full as it gets
    assert history["mask"][~short].all() and (history["mask"][short].sum(1) == 2).all()


def test_prompts_come_from_the_same_task_and_from_all_its_episodes():
    history, prompt = sampler().draw(12_000, torch.Generator().manual_seed(1), True)
    owner, other = (
        steps["observations"][:, -1 if steps is history else 0, 0].sub(1).div(10).long() for steps in (history, prompt)
    )
    tasks = torch.tensor(TASKS)
    assert torch.equal(tasks[owner], tasks[other])
    for episode, task in enumerate(TASKS):
        share = (other[tasks[owner] == task] == episode).double().mean().item()
        assert share == pytest.approx(1 / TASKS.count(task), abs=0.03)


def test_prompts_follow_the_errors():
    """With argmax, two steps and h = 1, the segment at the end has the largest error in `numbered`."""
    _, prompt = sampler(select="argmax").draw(500, torch.Generator().manual_seed(1), True)
    episode = prompt["observations"][:, 0, 0].sub(1).div(10).long()
    lengths = torch.tensor(LENGTHS)[episode]
    assert torch.equal(prompt["timesteps"], torch.stack([lengths - 2, lengths - 1], 1)) and prompt["mask"].all()


@pytest.mark.parametrize(("share", "kept"), [(0.01, [1, 3]), (0.5, [1, 2, 3]), (0.67, [0, 1, 2, 3, 4]), (1.0, [0, 1, 2, 3, 4])])
def test_the_best_share_of_every_task_is_imitated(share, kept):
    """Task 7 has two episodes, task 3 has three; at least one of each stays. Prompts come from all of them."""
    episodes = numbered()
    episodes.returns_to_go[:, 0] = torch.tensor([1.0, 2.0, 5.0, 6.0, 4.0])
    chosen = BatchSampler(episodes, torch.tensor(TASKS), K, 2, 1, "random", False, top_share=share)
    history, prompt = chosen.draw(4000, torch.Generator().manual_seed(0), True)
    owner, other = (
        steps["observations"][:, -1 if steps is history else 0, 0].sub(1).div(10).long() for steps in (history, prompt)
    )
    assert owner.unique().tolist() == kept and other.unique().tolist() == [0, 1, 2, 3, 4]
    first = history["mask"].int().argmax(1)
    _, counts = history["observations"][torch.arange(4000), first, 0].unique(return_counts=True)
    expected = 4000 / sum(LENGTHS[episode] for episode in kept)
    assert len(counts) == sum(LENGTHS[episode] for episode in kept) and ((counts - expected).abs() < 5 * expected**0.5).all()


def test_hindsight_gives_windows_the_last_context_of_an_episode_of_the_task():
    own, _ = sampler().draw(6000, torch.Generator().manual_seed(0), False)
    chosen = BatchSampler(numbered(), torch.tensor(TASKS), K, 2, 1, "random", False, hindsight_share=0.25)
    history, _ = chosen.draw(6000, torch.Generator().manual_seed(0), False)
    for name, values in own.items():
        assert name == "contexts" or torch.equal(values.nan_to_num(), history[name].nan_to_num())
    place, was = history["contexts"][..., 0], own["contexts"][..., 0]
    last = torch.tensor([10.0 * e + length + 1 for e, length in enumerate(LENGTHS)])  # z after each whole episode
    moved = torch.isin(place[:, -1], last)  # no window of `own` reaches z after the end
    assert moved.double().mean() == pytest.approx(0.25, abs=0.03) and torch.equal(place[~moved], was[~moved])
    assert (place[moved] == place[moved][:, :1]).all()
    owner, giver = own["observations"][moved][:, -1, 0].sub(1).div(10).long(), place[moved][:, 0].sub(1).div(10).long()
    tasks = torch.tensor(TASKS)
    assert torch.equal(tasks[owner], tasks[giver]) and giver.unique().tolist() == [0, 1, 2, 3, 4]


def test_same_seed_same_batches():
    draws = [sampler().draw(50, torch.Generator().manual_seed(seed), True) for seed in (0, 0, 1)]
    flat = [torch.cat([values.double().flatten() for steps in draw for values in steps.values()]) for draw in draws]
    assert torch.equal(flat[0].nan_to_num(), flat[1].nan_to_num()) and not torch.equal(flat[0].nan_to_num(), flat[2].nan_to_num())


def test_tasks_in_any_order():
    mixed = (3, 7, 3, 7, 3)
    history, prompt = sampler(tasks=mixed).draw(3000, torch.Generator().manual_seed(0), True)
    owner, other = (
        steps["observations"][:, -1 if steps is history else 0, 0].sub(1).div(10).long() for steps in (history, prompt)
    )
    assert torch.equal(torch.tensor(mixed)[owner], torch.tensor(mixed)[other])
    assert other.unique().tolist() == [0, 1, 2, 3, 4]


def ranked():
    """Two tasks of four episodes; episode e returns e and is observed as e."""
    rewards = torch.zeros(8, 5)
    rewards[:, 0] = torch.arange(8.0)
    numbers = torch.arange(8.0)[:, None, None]
    contexts = numbers + torch.zeros(8, 6, 16)
    arrays = numbers + torch.zeros(8, 6, 1), torch.zeros(8, 5, 1), rewards, torch.full((8,), 5)
    return EpisodeTensors(*arrays, contexts, torch.zeros(8, 5)), torch.tensor([3, 4, 3, 4, 3, 4, 3, 4])


@pytest.mark.parametrize(("share", "expected"), [(1.0, range(8)), (0.5, [4, 5, 6, 7]), (0.3, [4, 5, 6, 7]), (0.01, [6, 7])])
def test_top_share_imitates_the_best_of_every_task(share, expected):
    episodes, tasks = ranked()
    source = BatchSampler(episodes, tasks, 5, 2, 1, "random", True, top_share=share)
    history, prompt = source.draw(400, torch.Generator().manual_seed(0), True)
    assert set(history["returns_to_go"][:, 0].tolist()) == set(expected)
    assert set(prompt["observations"][:, 0, 0].tolist()) == set(range(8))  # prompts come from all episodes


def test_best_steps_imitates_at_each_time_what_ends_best():
    """Three episodes of one task; the first earns most in all and ends badly, the third is short."""
    rewards = torch.tensor([[9.0, 0, -3, -3], [0, 0, 2, 1], [1, 1, 0, 0]])  # returns-to-go 3 -6 -6 -3; 3 3 3 1; 2 1
    arrays = torch.zeros(3, 5, 1), torch.zeros(3, 4, 1), rewards, torch.tensor([4, 4, 2]), torch.zeros(3, 5, 16)
    episodes, tasks = EpisodeTensors(*arrays, torch.zeros(3, 4)), torch.zeros(3, dtype=torch.long)
    source = BatchSampler(episodes, tasks, 4, 2, 1, "random", True, top_share=0.3, best_steps=True)
    assert source.imitated.int().tolist() == [[1, 0, 0, 0], [0, 1, 1, 1], [0, 0, 0, 0]]
    source = BatchSampler(episodes, tasks, 4, 2, 1, "random", True, top_share=0.5, best_steps=True)
    # half of three is two, half of the two that last longer is one
    assert source.imitated.int().tolist() == [[1, 0, 0, 0], [1, 1, 1, 1], [0, 1, 0, 0]]
    history, _ = source.draw(300, torch.Generator().manual_seed(0), False)
    seen = {tuple(row) for row in history["imitated"].int().tolist()}
    assert seen == {(1, 0, 0, 0), (1, 1, 1, 1), (0, 0, 0, 1)}  # the short one's two steps stand on the right
    whole = BatchSampler(episodes, tasks, 4, 2, 1, "random", True, top_share=0.3)
    assert whole.imitated.int().tolist() == [[1, 1, 1, 1], [0, 0, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize("full_windows", [False, True])
def test_every_window_holds_a_step_to_imitate(full_windows):
    """Episode 0 is imitated in its steps 4 and 5, episode 1 in the others."""
    rewards = torch.zeros(2, 8)
    rewards[0, 5], rewards[1, 7], rewards[1, 3] = 3, 1, 5
    arrays = torch.arange(9.0).repeat(2, 1)[..., None], torch.zeros(2, 8, 1), rewards, torch.tensor([8, 8]), torch.zeros(2, 9, 16)
    episodes, tasks = EpisodeTensors(*arrays, torch.zeros(2, 8)), torch.zeros(2, dtype=torch.long)
    source = BatchSampler(episodes, tasks, 3, 2, 1, "random", full_windows, top_share=0.5, best_steps=True)
    assert source.imitated.int().tolist() == [[0, 0, 0, 0, 1, 1, 0, 0], [1, 1, 1, 1, 0, 0, 1, 1]]
    expected = [(0, start) for start in (2, 3, 4, 5)] + [(1, start) for start in range(6 if full_windows else 8)]
    assert [tuple(pair) for pair in source.starts.tolist()] == expected
    history, _ = source.draw(200, torch.Generator().manual_seed(0), False)
    assert history["imitated"].any(1).all() and not history["imitated"].all()


def test_hindsight_contexts_are_the_last_of_the_same_task():
    episodes, tasks = ranked()
    episodes.contexts[:, -1] += 100
    source = BatchSampler(episodes, tasks, 5, 2, 1, "random", True, hindsight_share=0.5)
    history, _ = source.draw(2000, torch.Generator().manual_seed(0), False)
    own, seen = history["returns_to_go"][:, 0], history["contexts"][:, :, 0]
    replaced = seen[:, 0] >= 100
    assert replaced.float().mean() == pytest.approx(0.5, abs=0.05)
    assert (seen == seen[:, :1]).all()
    assert torch.equal(seen[~replaced, 0], own[~replaced])
    assert torch.equal(seen[replaced, 0] % 2, own[replaced] % 2)  # even episodes are one task, odd ones the other


def test_prompts_carry_no_context():
    episodes, _ = ranked()
    prompt = episodes.prompts(torch.tensor([2, 5]), 2, 0, "random", torch.Generator().manual_seed(0))
    assert set(prompt) == {"returns_to_go", "observations", "actions", "timesteps", "mask"}
