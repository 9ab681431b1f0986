"""Advantage weights: imitate the better actions of the data more than the others (ours; off in the paper's recipe).

A value network V(s, z, t) is fitted to the returns-to-go of the training data, where z is what the world model knows of the task at
the end of the episode. The advantage of a step is A_t = r_t + V(s_{t+1}) - V(s_t), and its action counts exp(A_t / temperature) in
the loss: one step of policy improvement over the behaviour (advantage-weighted regression, Peng et al. 2019; one step as in
Brandfonbrener et al. 2021). Nothing of it is needed at test time.
"""

import torch
from torch import nn

WIDTH, UPDATES, BATCH, LEARNING_RATE, LARGEST = 128, 2000, 512, 1e-3, 10.0


def advantage_weights(episodes, temperature, generator):
    """Weights of every training step, mean 1.

    Args:
        episodes: EpisodeTensors with contexts. temperature: in standard deviations of the advantage; smaller is greedier.
        generator: torch.Generator of the fit.
    Returns: (E, T) float32, zero beyond the episodes' ends.
    """
    steps = episodes.rewards.shape[1]
    inside = torch.arange(steps, device=episodes.rewards.device) < episodes.lengths[:, None]
    values = fit_values(episodes, inside, generator)
    advantages = episodes.rewards + values[:, 1:] - values[:, :-1]
    scale = temperature * advantages[inside].std()
    weights = (advantages / scale).exp().clamp_max(LARGEST) * inside
    return weights / weights[inside].mean()


def fit_values(episodes, inside, generator):
    """V of every step and of the end, where it is 0: (E, T + 1)."""
    everything = torch.arange(len(episodes.lengths), device=inside.device)
    known = episodes.final_contexts(everything)
    flat = episodes.observations[:, :-1][inside]
    location, spread = flat.mean(0), flat.std(0) + 1e-6
    context_location, context_spread = known.mean(0), known.std(0) + 1e-6
    horizon = episodes.rewards.shape[1]
    mean, std = episodes.returns_to_go[inside].mean(), episodes.returns_to_go[inside].std() + 1e-6

    def features(rows, times):
        states = (episodes.observations[rows, times] - location) / spread
        contexts = (known[rows] - context_location) / context_spread
        return torch.cat([states, contexts, (times / horizon)[..., None]], -1)

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**31, (1,), generator=generator)))
        sizes = (len(location) + known.shape[1] + 1, WIDTH, WIDTH)
        network = nn.Sequential(nn.Linear(*sizes[:2]), nn.ReLU(), nn.Linear(*sizes[1:]), nn.ReLU(), nn.Linear(WIDTH, 1))
    network.to(inside.device)
    optimizer = torch.optim.Adam(network.parameters(), LEARNING_RATE, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, UPDATES)
    index = inside.nonzero()
    for _ in range(UPDATES):
        rows, times = index[torch.randint(len(index), (BATCH,), generator=generator).to(index.device)].unbind(1)
        target = (episodes.returns_to_go[rows, times] - mean) / std
        loss = (network(features(rows, times))[:, 0] - target).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    values = episodes.rewards.new_zeros(len(inside), inside.shape[1] + 1)
    with torch.inference_mode():
        for time in range(inside.shape[1]):
            times = torch.full_like(everything, time)
            values[:, time] = network(features(everything, times))[:, 0] * std + mean
    return values * torch.nn.functional.pad(inside, (0, 1))
