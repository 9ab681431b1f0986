"""Online Decision Transformer: its commands, and both phases end to end, with episodes that end on their own."""

import json
import os
import shlex
import signal
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from online_dt_helpers import episodes

from baselines.online_dt import training
from baselines.online_dt.__main__ import choose, main, parse, result_facts
from baselines.online_dt.policy import Agent, Policy
from baselines.online_dt.replay import TrajectoryBuffer
from baselines.online_dt.training import Learner, Trainer
from get_datasets import main as get_datasets
from src.data.trajectories import load
from src.evaluation.evaluate import evaluate
from src.evaluation.results import label, read_result
from src.models.heads import ActionDistribution, Temperature
from src.run.errors import UserError
from src.run.files import load_state, load_tensors, save_state, save_tensors, write_json
from src.run.loop import Loop
from src.run.seeding import torch_generator
from tools import models

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = (
    "--env hopper --dataset medium --model_type dt --num_eval_episodes=50 --max_iters=5 --num_steps_per_iter=1000 --stochastic "
    "--use_action_means --learning_rate=1e-4 --embed_dim=512 --weight_decay=5e-4 --K=20 --remove_pos_embs --n_layer=4 --n_head=4 "
    "--batch_size=256 --eval_context=5 --stochastic_tanh",
    "--env hopper --dataset medium --model_type dt --pretrained_model=./models/hopper/dt_gym-experiment-hopper-medium-506105.pt "
    "--stochastic --use_action_means --online_training --eval_context=5 --K=20 --batch_size=256 --num_steps_per_iter=300 "
    "--max_iters=200 --num_eval_episodes=50 --device=cuda:2 --target_entropy --stochastic_tanh",
)
# keep |x| below 1 for 20 steps: uniform actions last about 9 of them
TOY = """
import gymnasium as gym
import numpy as np

class Balance(gym.Env):
    observation_space = gym.spaces.Box(-10, 10, (2,), np.float32)
    action_space = gym.spaces.Box(np.float32([-2]), np.float32([2]))
    tasks = {"width": np.array([1.0])}

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.steps, self.x = 0, self.np_random.uniform(-0.3, 0.3)
        return np.float32([self.x, 0]), {}

    def step(self, action):
        self.steps += 1
        self.x = 1.1 * self.x + 0.3 * float(np.clip(action[0], -2, 2))
        return np.float32([self.x, self.steps / 20]), 1.0, abs(self.x) > 1, self.steps >= 20, {}
"""
TOY_YAML = """
env_name: Balance-v0
entry_point: balance_environment:Balance
max_episode_steps: 20
terminates: true
train_tasks: [0, 1]
test_tasks: [0, 1]
baselines:
  online_dt: {num_eval_episodes: 10, K: 5, embed_dim: 16, n_layer: 2, batch_size: 32, stochastic: true, stochastic_tanh: true,
    learning_rate: 3e-3, warmup_steps: 50, eval_rtg: 20, return_scale: 20, approximate_entropy_samples: 2, device: cpu,
    use_action_means: true, tensorboard: false, target_entropy: true, online_buffer_size: 30, eval_context: 3, ema_decay: 0.9}
"""


@pytest.fixture
def toy(tmp_path, monkeypatch):
    """Flags that select an environment whose episodes end early, with random data in place; its folder."""
    (tmp_path / "balance_environment.py").write_text(TOY)
    (tmp_path / "balance.yaml").write_text(TOY_YAML)
    monkeypatch.syspath_prepend(tmp_path)
    flags = ["--config", str(tmp_path / "balance.yaml"), "--output_dir", str(tmp_path)]
    get_datasets([*flags, "--data_type", "random", "--capacity", "1000"])
    return [*flags, "--dataset", "random"], tmp_path


def result(folder, method="online_dt", phase="pretrained"):
    return read_result(folder / f"results/balance/random/{method}/{phase}-strict/seed_0.json")


def weights(folder, method="online_dt", phase="pretrained"):
    return load_tensors(folder / f"saves/balance/random/{method}/{phase}/seed_0/model.safetensors")


# -------------------------------------------------------------------------------------------------------------- flags


def test_published_commands_are_understood(tmp_path, monkeypatch, capsys):
    first = parse(PUBLISHED[0].split())
    assert (first.env_type, first.dataset, first.embed_dim, first.eval_context, first.eval_rtg) == (
        "gym_hopper",
        "medium",
        512,
        5,
        3600,
    )
    assert first.stochastic and first.stochastic_tanh and first.remove_pos_embs and not first.use_entropy
    assert label(result_facts(choose(first), online=False)) == "online_dt"
    with pytest.raises(UserError, match=r"make it: python -m baselines\.online_dt --env_type gym_hopper"):
        parse([*PUBLISHED[1].split(), "--output_dir", str(tmp_path)])
    assert "cuda:2 is not available" in capsys.readouterr().err or torch.cuda.device_count() > 2


def test_published_commands_run(tmp_path, capsys):
    """As printed, with sizes reduced by further flags, on the data of the committed agent; then the command named as next."""
    place = ["--output_dir", str(tmp_path)]
    get_datasets(["--env_type", "gym_hopper", "--data_type", "medium", "--capacity", "1000", *place])
    short = [*place, "--max_iters=1", "--num_steps_per_iter=2", "--num_eval_episodes=1", "--batch_size=4"]
    short += ["--approximate_entropy_samples=1"]
    main([*PUBLISHED[0].split(), *short, "--embed_dim=16", "--n_layer=1", "--n_head=1"])
    follow = shlex.split(capsys.readouterr().out.split("next: python -m baselines.online_dt ")[1].splitlines()[0])
    main([*PUBLISHED[1].split(), *short])  # the sizes are those of the pre-trained model
    written = tmp_path / "results/gym_hopper/medium/online_dt"
    assert read_result(written / "pretrained-strict/seed_0.json")["training"]["gradient_steps"] == 2
    tuned = read_result(written / "finetuned-strict/seed_0.json")
    assert (
        tuned["training"]["gradient_steps"] == 4
        and tuned["training"]["environment_steps"] > 0
        and tuned["normalisation"]["maximum"] > 2000
    )
    main([*follow, *short, "--no-resume"])


@pytest.mark.parametrize("words", [[], ["--use_action_means"]], ids=["samples", "means"])
def test_a_policy_is_exported_and_measured_again(words, toy, capsys):
    """Restored without data, the full weights earn what the result says; half precision earns what the folder says."""
    flags, folder = toy
    main([*flags, "--num_eval_episodes", "3", "--num_steps_per_iter", "3", "--max_iters", "1", *words])
    run, own = folder / "saves/balance/random/online_dt/pretrained/seed_0", folder / "balance.yaml"
    out = models.save_pretrained(run, folder / "out", own)
    assert models.measure(out, own)
    config = json.loads((out / "config.json").read_text())
    env = models.find_env(config, own)
    trained = models.read_trained(run, "online_dt", env, torch.device("cpu"), config["settings"])
    assert evaluate(trained.agent(0), env, [0], 3, 0, training.evaluation_seed(0))["returns"] == result(folder)["returns"]


def test_a_deterministic_policy_explores_with_noise(toy, monkeypatch):
    flags, folder = toy
    flags = [*flags, "--no-stochastic", "--num_eval_episodes", "1", "--num_steps_per_iter", "1", "--max_iters", "1"]
    main(flags)
    model = str(folder / "saves/balance/random/online_dt-deterministic/pretrained/seed_0")
    actions = {}
    for noise in (0.0, 0.5):
        monkeypatch.setattr(training, "EXPLORATION_NOISE", noise)
        online = ["--online_training", "--pretrained_model", model, "--no-resume"]
        main([*flags, *online, "--online_buffer_size", "4"])
        state = load_state(Path(model.replace("pretrained", "finetuned")) / "state.pt")
        (actions[noise],) = (episode["actions"] for episode in state["trainer"]["episodes"].values())
    steps = min(map(len, actions.values()))
    assert (actions[0.0][:steps] - actions[0.5][:steps]).abs().mean() > 0.1  # of a range of 4


def test_booleans_and_contradictions():
    flags = ["--env", "hopper", "--device", "cpu"]
    for words, value in (([], True), (["False"], False), (["True"], True)):
        assert parse([*flags, "--stochastic", *words]).stochastic is value
    assert parse([*flags, "--log_to_wandb=False"]).log_to_wandb is False
    assert parse([*flags, "--stochastic", "--target_entropy"]).use_entropy
    assert not parse([*flags, "--target_entropy"]).use_entropy  # nothing to steer in a deterministic policy
    with pytest.raises(UserError, match="no-target_entropy"):
        parse([*flags, "--stochastic", "--target_entropy", "--no-use_entropy"])
    with pytest.raises(UserError, match="contradicts"):
        parse([*flags, "--env_type", "gym_walker2d"])
    with pytest.raises(UserError, match="multiple of --n_head"):
        parse([*flags, "--n_head", "3"])
    with pytest.raises(UserError, match="several tasks"):
        parse(["--env_type", "point_robot"])
    with pytest.raises(UserError, match="--env ant is unknown: choose hopper, halfcheetah, walker2d"):
        parse(["--env", "ant"])
    with pytest.raises(UserError, match="--stochastic_tanh squashes a Gaussian: add --stochastic"):
        parse([*flags, "--stochastic_tanh"])
    assert not parse([*flags, "--recipe", "small", "--no-stochastic"]).stochastic  # the recipe's tanh waits for a Gaussian
    with pytest.raises(UserError, match="--pretrained_model has no effect here: add --online_training"):
        parse([*flags, "--pretrained_model", "somewhere"])


def test_missing_data_name_the_whole_command(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main(["--env", "hopper", "--recipe", "small", "--output_dir", str(tmp_path), "--device", "cpu"])
    wanted = f"python get_datasets.py --env_type gym_hopper --data_type medium --recipe small --output_dir {tmp_path}"
    assert capsys.readouterr().err.strip().endswith(wanted)


# ----------------------------------------------------------------------------------------------------------- both phases


def test_both_phases_end_to_end(toy, capsys):
    flags, folder = toy
    command = [sys.executable, "-m", "baselines.online_dt", *flags, "--max_iters", "2", "--num_steps_per_iter", "150"]
    environment = {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "next: python -m baselines.online_dt --config" in done.stdout
    pretrained = result(folder)
    assert pretrained["regime"] == "pretrained" and pretrained["curve"]["gradient_steps"] == [150, 300]
    data = load(folder / "datasets", "balance", "random")
    assert len(set(data.lengths.tolist())) > 3 and pretrained["reference"]["dataset_mean"] == [
        round(float(data.returns.mean()), 4)
    ]
    assert np.mean(pretrained["returns"]) > 1.3 * data.returns.mean()

    online = [*flags, "--online_training", "--max_iters", "6", "--num_steps_per_iter", "20", "--eval_interval", "3"]
    main([*online, "--num_online_rollouts", "2", "--pretrained_model", "./models/balance/never_published.pt"])
    assert "never published" in capsys.readouterr().err
    finetuned = result(folder, phase="finetuned")
    assert finetuned["curve"]["environment_steps"][0] == 0 and len(finetuned["curve"]["environment_steps"]) == 3
    assert (
        finetuned["training"]["environment_steps"] >= 12 and finetuned["training"]["gradient_steps"] == 300 + 6 * 20
    )  # one schedule
    assert all(value > 0 for value in finetuned["curve"]["temperature"][1:])
    assert np.mean(finetuned["returns"]) > 1.3 * data.returns.mean()

    main([*flags, "--eval_only"])
    assert f"return {np.mean(pretrained['returns']):.1f}" in capsys.readouterr().out
    for model, problem in (("model.pt", "pickle"), ("elsewhere", "no pre-trained model"), (None, "stochastic True")):
        (folder / "model.pt").write_bytes(b"x")
        words = ["--pretrained_model", str(folder / model)] if model else ["--pretrained_model", pretrained_folder(folder)]
        with pytest.raises(SystemExit):
            main([*online, *words, *([] if model else ["--no-stochastic"])])
        assert problem in capsys.readouterr().err


def pretrained_folder(folder):
    return str(folder / "saves/balance/random/online_dt/pretrained/seed_0")


def test_stopped_and_resumed_run_ends_with_the_same_weights(toy, monkeypatch, capsys):
    """Also: the temperature, the optimiser and the collected trajectories are restored."""
    flags, folder = toy
    flags = [*flags, "--num_eval_episodes", "2"]
    main([*flags, "--max_iters", "1", "--num_steps_per_iter", "10"])
    online = ["--online_training", "--max_iters", "4", "--num_steps_per_iter", "6", "--num_online_rollouts", "2",
              "--online_buffer_size", "5", "--pretrained_model", pretrained_folder(folder)]  # fmt: skip
    main([*flags, *online])
    whole, returns = weights(folder, phase="finetuned"), result(folder, phase="finetuned")

    update = Trainer.update

    def stop_at_26(self):
        update(self)
        if self.learner.step == 26:  # in the third round
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Trainer, "update", stop_at_26)
    with pytest.raises(SystemExit) as stop:
        main([*flags, *online, "--no-resume"])
    assert stop.value.code == 128 + signal.SIGTERM
    monkeypatch.setattr(Trainer, "update", update)
    main([*flags, *online])
    again, repeated = weights(folder, phase="finetuned"), result(folder, phase="finetuned")
    assert whole.keys() == again.keys() and all(torch.equal(whole[name], again[name]) for name in whole)
    assert (repeated["returns"], repeated["curve"]) == (returns["returns"], returns["curve"])
    assert len(set(returns["curve"]["temperature"][1:])) > 1

    main([*flags, *online, "--no-resume", "--init_temperature", "0.7", "--temperature_learning_rate", "1e-9"])
    assert result(folder, phase="finetuned")["curve"]["temperature"][1:] == pytest.approx([0.7] * 4, rel=1e-3)
    main([*flags, *online, "--no-resume"])

    with pytest.raises(SystemExit):
        main([*flags, *online, "--batch_size", "8"])  # other settings: refused
    assert "batch_size" in capsys.readouterr().err
    main([*flags, "--max_iters", "2", "--num_steps_per_iter", "10"])  # the pre-trained model goes on
    with pytest.raises(SystemExit):
        main([*flags, *online])
    assert "pretrained_sha256" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "pretraining", "words"),
    [
        ("online_dt-no_entropy", [], ["--no-use_entropy", "--no-target_entropy"]),
        ("online_dt-no_relabelling", [], ["--no-relabel"]),
        ("online_dt-same_rtg", [], ["--online_rtg", "20", "--weight_decay", "0.5"]),
        ("online_dt-deterministic", ["--no-stochastic"], ["--no-stochastic"]),
        ("online_dt-no_tanh", ["--no-stochastic_tanh", "--optimizer", "lamb"], ["--no-stochastic_tanh"]),
        ("online_dt-bc-deterministic", ["--model_type", "bc", "--no-stochastic"], ["--model_type", "bc", "--no-stochastic"]),
        ("online_dt-delayed", ["--mode", "delayed", "--bfloat16"], ["--mode", "delayed"]),
    ],
)
def test_ablations_run(toy, name, pretraining, words):
    flags, folder = toy
    tiny = ["--num_eval_episodes", "2", "--num_steps_per_iter", "3", "--max_iters", "2"]
    main([*flags, *tiny, *pretraining])
    main([*flags, *tiny, "--online_training", *words])
    found = result(folder, name, "finetuned")
    assert label(found) == name and found["training"]["environment_steps"] > 0
    state = torch.load(folder / f"saves/balance/random/{name}/finetuned/seed_0/state.pt", weights_only=True)
    wanted = 0.5 if "--weight_decay" in words else 1e-4  # inherited unless the command says otherwise
    assert state["learner"]["optimizer"]["param_groups"][0]["weight_decay"] == wanted
    if name == "online_dt-no_relabelling":
        episode = state["trainer"]["episodes"][0]
        asked = 40 - torch.arange(len(episode["rewards"]))
        assert episode["returns_to_go"].tolist() == asked.tolist()  # twice the evaluation target, less one per step


def test_entropy_term_pulls_the_entropy_to_the_target():
    """Actions 0.5 ± 0.05: likelihood alone gives an entropy of −1.6."""
    mean, log_std = torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True)
    temperature, optimizer = Temperature(0.1, target=-1.0, learning_rate=0.01), torch.optim.Adam([mean, log_std], lr=0.02)
    entropies, generator = [], torch_generator(0, "entropy")
    for _ in range(1500):
        actions = 0.5 + 0.05 * torch.randn(64, 1, generator=generator)
        distribution = ActionDistribution(mean.expand(64, 1), log_std.expand(64, 1), squash=True)
        entropy = distribution.entropy(4, generator).mean()
        optimizer.zero_grad()
        (-distribution.log_prob(actions).mean() - temperature.value * entropy).backward()
        optimizer.step()
        temperature.update(entropy)
        entropies.append(entropy.item())
    assert np.mean(entropies[-300:]) == pytest.approx(-1, abs=0.1) and 0.1 < temperature.value.item() < 10


def test_learner_steers_the_temperature(toy):
    flags, _ = toy
    settings = choose(parse([*flags, "--approximate_entropy_samples", "50"]))
    buffer = TrajectoryBuffer(*episodes([20] * 4), 4, 20)
    for target, sign in ((-3.0, -1), (3.0, 1)):  # the entropy of a fresh policy lies in between
        learner = Learner(Policy(2, 1, settings.model, 20), settings.optimisation, settings.entropy, 0)
        learner.temperature.target = target
        values = [learner.update(buffer.draw(16, 5, torch_generator(0, "batch", step))) for step in range(3)]
        assert sign * (values[-1]["temperature"] - 0.1) > 0 and values[0]["temperature"] == pytest.approx(0.1)
        assert values[0]["loss"] == pytest.approx(values[0]["nll"] - 0.1 * values[0]["entropy"], rel=1e-5)


def test_wandb_is_lazy_and_optional(toy, monkeypatch, capsys):
    flags, _ = toy
    tiny = ["--num_eval_episodes", "1", "--num_steps_per_iter", "2", "--max_iters", "1", "--log_to_wandb=True"]
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(SystemExit):
        main([*flags, *tiny])
    assert "pip install wandb" in capsys.readouterr().err
    logged = []
    run = types.SimpleNamespace(log=lambda values, step: logged.append(values), finish=lambda: None)
    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=lambda **_: run))
    main([*flags, *tiny])
    assert any("eval/return" in values for values in logged)


TINY = ["--num_eval_episodes", "2", "--num_steps_per_iter", "2", "--max_iters", "1"]


def test_foreign_models_are_refused_in_one_line(toy, capsys):
    flags, folder = toy
    main([*flags, *TINY])
    model = Path(pretrained_folder(folder))
    whole = {name: (model / name).read_bytes() for name in ("config.json", "state.pt", "model.safetensors")}
    config, state = json.loads(whole["config.json"]), load_state(model / "state.pt")
    tensors = load_tensors(model / "model.safetensors")
    capsys.readouterr()

    for name, content in (
        ("config.json", {}),
        ("config.json", []),
        ("config.json", {**config, "embed_dim": 8}),
        ("state.pt", {**state, "step": "one"}),
        ("state.pt", {**state, "learner": {}}),
        ("state.pt", {**state, "learner": {"policy": state["learner"]["policy"]}}),
        ("state.pt", [1]),
        ("model.safetensors", {key: torch.zeros(3) for key in tensors}),
        ("model.safetensors", {key: value + 1 for key, value in tensors.items()}),
    ):
        for other, data in whole.items():
            (model / other).write_bytes(data)
        write = {"config.json": write_json, "state.pt": save_state, "model.safetensors": save_tensors}[name]
        write(model / name, content)
        for phase in ("--online_training", "--eval_only"):
            with pytest.raises(SystemExit) as stop:
                main([*flags, *TINY, phase])
            error = capsys.readouterr().err
            assert stop.value.code == 2 and error.count("\n") == 1, error
            assert "is not a model of this program; make it again: python -m baselines.online_dt" in error
    for learner in ({}, {**state["learner"], "policy": {}}):  # a run goes on from its own
        save_state(model / "state.pt", {**state, "learner": learner})
        (model / "config.json").write_bytes(whole["config.json"])
        with pytest.raises(SystemExit):
            main([*flags, *TINY])
        assert "is not the state of such a run: delete it, or pass --no-resume" in capsys.readouterr().err
    for name, data in whole.items():
        (model / name).write_bytes(data)
    (model / "model.safetensors").write_bytes(whole["model.safetensors"][:-8])  # what only evaluation used to read
    with pytest.raises(SystemExit):
        main([*flags, *TINY, "--online_training"])
    assert "model.safetensors is damaged" in capsys.readouterr().err
    assert not (model.parent.parent / "finetuned").exists()


def test_finetuned_results_say_what_they_came_from(toy, capsys):
    flags, folder = toy
    for flag, value, other, name in (
        ("pct_traj", "0.5", "0.3", "online_dt-top50"),
        ("mode", "delayed", "normal", "online_dt-delayed"),
    ):
        main([*flags, *TINY, f"--{flag}", value])
        online = ["--online_training", "--pretrained_model", pretrained_folder(folder).replace("online_dt", name)]
        main([*flags, *TINY, *online])
        assert label(result(folder, name, "finetuned")) == name
        with pytest.raises(SystemExit):
            main([*flags, *TINY, *online, f"--{flag}", other])
        assert f"was made with --{flag} {value}, this command says {other}" in capsys.readouterr().err
    assert not (folder / "results/balance/random/online_dt").exists()


def test_evaluation_goes_on_as_the_model_was_evaluated(toy, capsys):
    flags, folder = toy
    own = ["--eval_context", "2", "--use_action_means", "--eval_rtg", "15", "--no-target_entropy"]
    main([*flags, *TINY, *own])
    follow = capsys.readouterr().out.split("next: python -m baselines.online_dt ")[1].splitlines()[0]
    args = parse(shlex.split(follow))
    assert (args.eval_context, args.eval_rtg, args.use_action_means, args.target_entropy) == (2, 15, True, True)
    assert parse([*shlex.split(follow), "--eval_context", "4"]).eval_context == 4
    main([*shlex.split(follow), *TINY])
    tuned = result(folder, phase="finetuned")
    assert tuned["config"]["eval_context"] == 2 and tuned["target_return"] == 15
    capsys.readouterr()
    model = pretrained_folder(folder).replace("pretrained", "finetuned")
    main([*flags, "--eval_only", "--num_eval_episodes", "2", "--pretrained_model", model])
    assert f"return {np.mean(tuned['returns']):.1f}" in capsys.readouterr().out
    main([*flags, *TINY, *own, "--no-resume", "--no-use_action_means"])
    assert not parse([*flags, "--eval_only"]).use_action_means  # though the settings file says so


def test_exploration_sees_the_steps_of_evaluation(toy, monkeypatch):
    flags, _ = toy
    main([*flags, *TINY])
    contexts, start = [], Agent.start

    def noted(self, *words, **more):
        contexts.append(self.context)
        return start(self, *words, **more)

    monkeypatch.setattr(Agent, "start", noted)
    main([*flags, *TINY, "--online_training", "--eval_context", "2"])
    assert len(contexts) >= 3 and set(contexts) == {2}  # evaluated, explored, evaluated


def test_a_finished_run_is_not_cut(toy, capsys):
    flags, folder = toy
    main([*flags, *TINY, "--max_iters", "3"])
    before = result(folder)
    with pytest.raises(SystemExit):
        main([*flags, *TINY, "--max_iters", "2"])
    assert "holds 3 iterations: give --max_iters 3 or more, or --no-resume" in capsys.readouterr().err
    assert result(folder) == before


def test_a_killed_run_may_end_early_with_a_measurement(toy, monkeypatch):
    flags, folder = toy
    save = Loop.save

    def killed(self):
        save(self)
        if self.step == 6:  # of the third iteration
            raise KeyboardInterrupt

    monkeypatch.setattr(Loop, "save", killed)
    with pytest.raises(SystemExit):
        main([*flags, *TINY, "--max_iters", "8", "--eval_interval", "4"])
    monkeypatch.setattr(Loop, "save", save)
    main([*flags, *TINY, "--max_iters", "3", "--eval_interval", "4"])
    assert result(folder)["curve"]["gradient_steps"] == [6] and len(result(folder)["returns"][0]) == 2


def test_what_says_nothing_offline_may_change(toy, capsys):
    flags, _ = toy
    main([*flags, *TINY, "--no-target_entropy", "--online_rtg", "40"])
    main([*flags, *TINY, "--no-target_entropy", "--online_rtg", "50", "--max_iters", "2"])
    assert parse([*flags, "--online_training"]).target_entropy  # of the settings file: the model learned no temperature


def test_wandb_that_does_not_start_is_one_line(toy, monkeypatch, capsys):
    def init(**_):
        raise RuntimeError("no key\nlog in")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    with pytest.raises(SystemExit) as stop:
        main([*toy[0], *TINY, "--log_to_wandb"])
    assert stop.value.code == 2 and "Weights & Biases does not start (no key log in)" in capsys.readouterr().err
