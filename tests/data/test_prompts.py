"""The choice of the prompt segment on error profiles written by hand."""

import pytest
import torch

from src.data.prompts import choose_starts, segment_scores
from src.data.windows import EpisodeTensors

HORIZON = 2
#          skipped  |                                   |
PROFILE = [9.0, 9.0, 1.0, 0.0, 4.0, 1.0, 3.0, 2.0, 0.0, 5.0, 1.0, 0.0]
T = len(PROFILE)


def starts(errors, length, select="argmax", lengths=None, horizon=HORIZON, seed=0):
    errors = torch.as_tensor(errors)
    errors = errors if errors.ndim == 2 else errors[None]
    lengths = torch.tensor(lengths if lengths is not None else [errors.shape[1]] * len(errors))
    return choose_starts(errors, lengths, length, horizon, select, torch.Generator().manual_seed(seed))


def frequencies(errors, length, select, **settings):
    """Share of each start in many draws."""
    draws = starts(torch.tensor(errors).expand(20_000, -1), length, select, **settings)
    return torch.bincount(draws, minlength=len(errors)) / len(draws)


def test_scores_sum_k_steps():
    assert segment_scores(torch.tensor([PROFILE]), 3)[0].tolist() == [19, 10, 5, 5, 8, 6, 5, 7, 6, 6]


@pytest.mark.parametrize(("length", "start"), [(1, 9), (2, 9), (3, 4), (4, 4), (5, 5), (6, 4), (10, 2)])
def test_argmax_by_hand(length, start):
    """k = 1: the 5 at step 9. k = 3: 4 + 1 + 3. k = 5: 1 + 3 + 2 + 0 + 5 ties with the next, the first wins."""
    assert starts(PROFILE, length).tolist() == [start]


def test_eleven_steps_and_as_long_as_the_history():
    errors = [0.0] * 20
    errors[13] = 1.0
    assert starts(errors, 11).tolist() == [3]  # the first segment that reaches step 13
    errors[9] = 0.5
    assert starts(errors, 11).tolist() == [3]
    assert starts(errors, 20, lengths=[20]).tolist() == [0]  # k = K = T: there is one segment only
    assert starts(errors[:11], 11).tolist() == [0]


def test_the_first_h_steps_are_skipped_where_others_exist():
    assert starts([9.0, 9.0, 0.0, 1.0, 0.0], 2).tolist() == [2]
    assert starts([9.0, 0.0, 0.0, 1.0, 0.0], 2, horizon=0).tolist() == [0]


def test_short_episodes_relax_the_range():
    errors = [[1.0, 3.0, 2.0, 0.0, 8.0], [1.0, 3.0, 2.0, 0.0, 8.0], [0.0, 1.0, 8.0, 8.0, 8.0], [5.0, 8.0, 8.0, 8.0, 8.0]]
    # 5 steps with h = 4: every start; 4 steps: what stands beyond the end is ignored; 2 steps: one segment; 1 step: shorter
    assert starts(errors, 2, lengths=[5, 4, 2, 1], horizon=4).tolist() == [3, 1, 0, 0]
    assert starts(errors, 2, "last", lengths=[5, 4, 2, 1], horizon=4).tolist() == [3, 2, 0, 0]
    for select in ("random", "sample"):
        draws = torch.stack([starts(errors, 2, select, [5, 4, 2, 1], 4, seed) for seed in range(200)])
        assert [column.unique().tolist() for column in draws.T] == [[0, 1, 2, 3], [0, 1, 2], [0], [0]]


def test_an_episode_shorter_than_the_prompt_is_masked():
    observations = torch.arange(4.0)[None, :, None]
    episodes = EpisodeTensors(
        observations, observations[:, :3], torch.ones(1, 3), torch.tensor([3]), torch.zeros(1, 4, 16), torch.ones(1, 3)
    )
    prompt = episodes.prompts(torch.tensor([0]), 5, HORIZON, "argmax", None)
    assert prompt["mask"].tolist() == [[True, True, True, False, False]]
    assert prompt["observations"][0, :3, 0].tolist() == [0, 1, 2] and prompt["returns_to_go"][0, :3].tolist() == [3, 2, 1]


def test_sample_draws_in_proportion_to_the_score():
    scores = torch.tensor([0, 0, *segment_scores(torch.tensor([PROFILE]), 3)[0, 2:].tolist(), 0, 0])
    torch.testing.assert_close(frequencies(PROFILE, 3, "sample"), scores / scores.sum(), atol=0.012, rtol=0)


def test_random_ignores_the_errors():
    expected = torch.tensor([0.0, 0, *[1 / 8] * 8, 0, 0])
    torch.testing.assert_close(frequencies(PROFILE, 3, "random"), expected, atol=0.012, rtol=0)


@pytest.mark.parametrize("select", ["sample", "random"])
def test_no_error_at_all_means_uniform(select):
    expected = torch.tensor([0.0, 0, *[1 / 4] * 4, 0])
    torch.testing.assert_close(frequencies([0.0] * 7, 2, select), expected, atol=0.012, rtol=0)
    assert starts([0.0] * 7, 2).tolist() == [2]


def test_last_is_the_end_of_the_episode():
    assert starts([PROFILE, PROFILE], 3, "last", lengths=[T, 5]).tolist() == [T - 3, 2]


def test_same_seed_same_segments():
    draws = [starts([PROFILE] * 50, 3, "sample", seed=seed).tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
