"""What an acting agent remembers."""

import torch

from src.models.steps import FIRST_CAPACITY, Steps


def test_steps_are_what_was_appended_however_many_there_are():
    values = torch.arange(2.0 * 3 * (2 * FIRST_CAPACITY + 5)).view(2, -1, 3)
    steps = Steps(values[:, 0])
    for number in range(1, values.shape[1]):
        steps.append(values[:, number])
        assert len(steps) == number + 1 and torch.equal(steps[:], values[:, : number + 1])
    assert (
        torch.equal(steps[-1], values[:, -1])
        and torch.equal(steps[7:], values[:, 7:])
        and torch.equal(steps[:-1], values[:, :-1])
    )
    assert steps[7:].is_contiguous() and steps[3].is_contiguous()
    steps[-1] = values[:, 0]
    assert torch.equal(steps[-1], values[:, 0]) and torch.equal(steps[:-1], values[:, :-1])


def test_a_step_is_one_number_per_row_too():
    steps = Steps(torch.tensor([1.0, 2.0]))
    steps.append(torch.tensor([3.0, 4.0]))
    assert steps[:].tolist() == [[1.0, 3.0], [2.0, 4.0]] and steps[-1].tolist() == [3.0, 4.0]
