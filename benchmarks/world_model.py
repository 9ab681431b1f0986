"""Training of the world model: samples per second, draw and update together; windows of 4 transitions at batch 128 and 512, and
the running contexts of 16 whole episodes.

python -m benchmarks.world_model --threads 2
"""

import torch

from benchmarks.shapes import HORIZON, STEPS, make_arrays, make_world_model
from benchmarks.timing import durations, matmul_peak, record, run
from src.data.transitions import TransitionSampler
from src.models.world_model_training import DecodingErrors, losses
from src.run.seeding import torch_generator

EPISODES, TASKS = 450, 45


def flop_per_sample(model):
    """Of the matrix products of one sample, forward and backward, counted from the weights: PyTorch's counter knows no GRU.

    A product costs 2 operations per weight forward, 2 for the gradient of the weight, 2 for that of its input where it needs one.
    """
    total = 0
    for name, parameter in model.named_parameters():
        if "weight" not in name:
            continue
        part = name.split(".")[0]
        encoder = part in ("observation_embedding", "action_embedding", "reward_embedding", "gru")
        uses = max(1, model.horizon) if encoder else 2 if part == "reward_observation_embedding" else 1  # it embeds s and s'
        total += uses * parameter.numel() * (4 if part.endswith("embedding") else 6)
    return total


def make_step(horizon, batch, wrap=lambda module: module):
    """The function that makes one update, as train_context.py does. wrap: what is done to the module that computes the errors."""
    model = make_world_model(horizon)
    errors = wrap(DecodingErrors(model))
    optimizer = torch.optim.AdamW(model.parameters(), 1e-3, weight_decay=0.0, fused=True)
    sampler = TransitionSampler(*make_arrays(EPISODES), torch.arange(EPISODES) % TASKS, horizon)
    generator = torch_generator(0, "benchmark")

    def step():
        reward_loss, state_loss = losses(errors, sampler.draw(batch, generator), torch.device("cpu"))
        optimizer.zero_grad()
        (reward_loss + state_loss).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()

    return step


def measure():
    for name, horizon, batch in (("batch 128", HORIZON, 128), ("batch 512", HORIZON, 512), ("16 whole episodes", 0, 16 * STEPS)):
        seconds, peak = durations(make_step(horizon, batch), 4.0, 20), matmul_peak()
        flop = batch * flop_per_sample(make_world_model(horizon))
        yield record(f"world model, {name}", seconds, flop, peak, unit="samples/s", aim=50_000, items=batch)


if __name__ == "__main__":
    run(__doc__, measure)
