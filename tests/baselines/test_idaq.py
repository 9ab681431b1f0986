"""IDAQ: which episodes become the context, by hand; the quantifiers; and the method as a user runs it."""

import numpy as np
import pytest
import torch
from helpers import assert_refused, words
from test_context_rl import listing, run, training_data, weights

from baselines import idaq
from baselines.actor_critic import ActorCriticSettings
from baselines.context_rl import ContextRL, ContextSettings
from baselines.idaq import Ensemble, Idaq, IdaqSettings, make_decoders, score
from baselines.in_distribution import AdaptationSettings, InDistributionAgent, farthest
from src.evaluation.results import read_result
from src.run.errors import UserError
from src.run.files import read_json
from src.run.seeding import torch_generator


class Scripted:
    """Plays nothing; its belief is the sum of the numbers of the accepted episodes, so that a test reads it."""

    def hold(self, z):
        self.z = z

    def infer(self, episodes, accepted, fallback):
        z = (accepted * torch.arange(1.0, 1 + accepted.shape[1])).sum(1, keepdim=True)
        return torch.where(accepted.any(1, keepdim=True), z, fallback)

    def start(self, observations):
        pass

    act = observe = None


def play(scores, reference, bank=((100.0,),), **settings):
    """z (B, episodes) of an adaptation whose warm-up episodes get `scores` (B, N), and of the evaluated one after them."""
    scores = torch.tensor(scores)
    agent = InDistributionAgent(
        Scripted(), torch.tensor(bank), lambda episode, z: scores[:, episode],
        AdaptationSettings(reference_episodes=reference, **settings), scores.shape[1], torch_generator(0),
    )  # fmt: skip
    played = []
    for number in range(scores.shape[1] + 1):
        agent.adapt(list(range(number)))  # an "episode" is its number
        agent.start(np.zeros((len(scores), 1)))
        played.append(agent.agent.z[:, 0])
    return torch.stack(played, 1).tolist()


H = 100.0  # the only hypothesis of the bank


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        # two hypotheses, the second is better: it alone is the context; episode 3 is accepted, 4 is not, 5 is
        ({}, [H, H, 2, 2 + 3, 2 + 3, 2 + 3]),
        # after episode 4 the belief falls back to what was known before episode 3, the best: to episode 2
        ({"rejection": "fall_back"}, [H, H, 2, 2 + 3, 2, 2]),
        ({"adaptation": "reference"}, [H] * 6),
        # the bar stays: episodes 3 and 5 are above 5, and the evaluated episode plays the belief
        ({"quantifier": "error"}, [H, H, 2, 2 + 3, 2 + 3, 2 + 3 + 5]),
    ],
)
def test_accepted_episodes_by_hand(settings, expected):
    (played,) = play([[4.0, 5.0, 6.0, 1.0, 7.0]], 2, **settings)
    assert played == expected


def test_after_a_failure_the_released_code_forgets_all_that_it_inferred():
    # nothing beats the reference stage: the paper keeps the best episode's belief, the released code plays its hypothesis again
    assert play([[5.0, 1.0, 1.0, 1.0]], 1) == [[H, 1, 1, 1, H]]
    assert play([[5.0, 1.0, 1.0, 1.0]], 1, rejection="fall_back") == [[H, 1, H, H, H]]


def test_every_row_adapts_on_its_own():
    rows = play([[4.0, 5.0, 6.0, 1.0], [9.0, 5.0, 6.0, 10.0]], 2)
    assert rows == [[H, H, 2, 2 + 3, 2], [H, H, 1, 1, 1]]


def test_a_didactic_bandit_finds_its_task_as_soon_as_it_was_tried():
    """v tasks of one step, task i pays for action i (the paper's example): z is the action; hypotheses are all the actions."""
    tasks, bank = torch.arange(4.0), torch.arange(4.0)[:, None]
    settings = AdaptationSettings(reference_episodes=4, candidates=4, adaptation="idaq")
    agent = InDistributionAgent(
        Scripted(), bank, lambda episode, z: (z[:, 0] == tasks).float(), settings, 5, torch_generator(1)
    )  # fmt: skip
    agent.agent.infer = lambda episodes, accepted, fallback: fallback
    for number in range(6):
        agent.adapt(list(range(number)))
        agent.start(np.zeros((4, 1)))
    tried = torch.stack(agent.used[:4], 1)[..., 0]
    found = (tried == tasks[:, None]).any(1)
    assert found.any() and (agent.agent.z[found, 0] == tasks[found]).all()


def test_the_farthest_candidate_by_hand():
    candidates = torch.tensor([[[0.0, 0.0], [3.0, 0.0], [1.0, 1.0]]])
    assert farthest(candidates, []).tolist() == [[0.0, 0.0]]
    used = [torch.tensor([[4.0, 0.0]]), torch.tensor([[0.0, 1.0]])]  # nearest distances: 1, 1, 1 -> then the last is farther
    assert farthest(candidates, [used[0]]).tolist() == [[0.0, 0.0]]
    assert farthest(torch.tensor([[[0.0, 0.5], [3.5, 0.0], [2.0, 4.0]]]), used).tolist() == [[2.0, 4.0]]


def tiny(quantifier="return", **settings):
    chosen = {
        "contexts": ContextSettings(batch_size=5, tasks_per_step=6, context_size=30, steps=9),
        "rl": ActorCriticSettings(width=8, layers=1),
        "learner": IdaqSettings(code_size=3, encoder_width=8, encoder_layers=1, quantifier=quantifier, **settings),
    }
    return ContextRL(training_data(), chosen, Idaq, torch.device("cpu"), seed=0)


def test_quantifiers_by_hand():
    """With one member that guesses zero the error is the mean square of what happened; members that differ by 2 disagree by 1."""
    method = tiny("error", ensemble=1)
    observations = np.zeros((1, 21, 2), np.float32)
    episode = {"observations": observations, "actions": np.zeros((1, 20, 2), np.float32), "lengths": np.array([7])}
    episode["rewards"] = np.arange(20, dtype=np.float32)[None]
    agent, z = method.agent(0), torch.zeros(1, 3)
    for parameter in method.learner.decoders.parameters():
        parameter.data.zero_()
    told = agent.features(episode)[0][0, :7, 4:]  # reward and change, in their units
    expected = told[:, :1].square().mean() + told[:, 1:].square().mean()
    assert score(method.learner.decoders, "error", agent, episode, z).item() == pytest.approx(-expected.item(), rel=1e-5)
    method = tiny("disagreement", ensemble=2)
    for parameter in method.learner.decoders.parameters():
        parameter.data.zero_()
    method.learner.decoders.offsets[-1].data[0] += 2  # both outputs of the first member: variance 1 in reward and in change
    assert score(method.learner.decoders, "disagreement", method.agent(0), episode, z).item() == pytest.approx(
        -(2**0.5), rel=1e-5
    )


def test_every_member_of_the_ensemble_learns_and_return_needs_none():
    method = tiny("disagreement", ensemble=3)
    before = [parameter.clone() for parameter in method.learner.decoders.parameters()]
    assert "decoder_loss" in method.update(1)
    for old, new in zip(before, method.learner.decoders.parameters(), strict=True):
        assert (old != new).flatten(1).any(1).all()
    assert "decoder_loss" not in tiny().update(1)
    single = Ensemble(2, 3, 1, 4, 1)
    inputs = torch.randn(5, 3)
    by_hand = (inputs @ single.weights[0][1] + single.offsets[0][1]).relu() @ single.weights[1][1] + single.offsets[1][1]
    assert torch.allclose(single(inputs)[1], by_hand)


def test_the_bank_reads_training_tasks_and_draws_nothing(monkeypatch):
    method, read = tiny(), []
    features = method.data.features
    monkeypatch.setattr(method.data, "features", lambda rows, tasks: read.append(rows) or features(rows, tasks))
    state = method.generator.get_state()
    assert method.learner.bank().shape == (3, 3) and torch.equal(method.learner.bank(), method.learner.bank())
    assert torch.equal(method.generator.get_state(), state)
    first, size = method.data.task_row, method.data.task_size
    assert torch.equal(read[0][:, 0], first) and torch.equal(read[0][:, -1], first + size - 1)  # from end to end
    assert (read[0].diff() <= -(-size[:, None] // (read[0].shape[1] - 1))).all()


def test_without_room_for_inference_it_is_refused():
    with pytest.raises(UserError, match="fewer than --warmup_episodes 3"):
        tiny(reference_episodes=3).agent(3)


def test_one_decoder_has_nothing_to_disagree_with(data_root, tmp_path, capsys):
    (tmp_path / "datasets").symlink_to(data_root / "datasets")
    assert_refused(capsys, idaq, words(tmp_path, "--quantifier", "disagreement", "--ensemble", "1"), "give --ensemble 2 or more")
    make_decoders((2, 2), IdaqSettings(quantifier="disagreement", ensemble=2))
    make_decoders((2, 2), IdaqSettings(quantifier="error", ensemble=1))


def test_idaq_from_the_shell_and_its_contrasts_on_the_same_policy(data_root, tmp_path):
    (tmp_path / "datasets").symlink_to(data_root / "datasets")
    few, zero = run("idaq", tmp_path)
    kept = weights(tmp_path, "idaq")
    (reference,) = run("idaq", tmp_path, "--eval_only", "--adaptation", "reference")  # of a first episode it says nothing new
    (plain,) = run("idaq", tmp_path, "--eval_only", "--adaptation", "plain")
    accepted = np.array(read_result(few)["accepted"])
    assert accepted.shape == np.shape(read_result(few)["warmup_returns"])
    assert (accepted[..., :2].sum(-1) == 1).all() and "accepted" not in read_json(plain)["tasks"][0]  # the best of two hypotheses
    assert len({few, reference, plain}) == 3 and weights(tmp_path, "idaq") == kept
    assert read_json(plain)["variant"] == {"adaptation": "plain"} and read_json(few)["variant"] == {}
    focal, focal_zero = run("focal", tmp_path)  # the same training; without its adaptation it is FOCAL
    assert read_json(plain)["tasks"] == read_json(focal)["tasks"] != read_json(few)["tasks"]
    assert read_json(zero)["tasks"] == read_json(focal_zero)["tasks"]
    error = run("idaq", tmp_path, "--quantifier", "error", "--ensemble", "2", "--rejection", "fall_back")
    assert [read_json(path)["variant"] for path in error] == [
        {"quantifier": "error", "rejection": "fall_back"},
        {"quantifier": "error"},
    ]
    assert read_json(error[0])["variant"]["quantifier"] == "error"
    assert any("quantifier" in path for path in listing(tmp_path / "saves")) and words(tmp_path)
