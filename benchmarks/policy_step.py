"""Training step of the policy: draw a batch, forward, backward, clip, AdamW. Batch 128, K 20, prompt 5, width 128.

    python -m benchmarks.policy_step --threads 2

The reference is the same policy around transformers.GPT2Model of equal size, in float32 as the official code runs it.
"""

import importlib.util

import torch

from benchmarks.shapes import BATCH, HISTORY, HORIZON, PROMPT, WIDTH, make_episodes, make_policy
from benchmarks.timing import count_flop, durations, matmul_peak, record, run
from src.data.windows import BatchSampler
from src.models.meta_dt import action_loss
from src.run.devices import autocast_dtype
from src.run.seeding import torch_generator

EPISODES, TASKS = 450, 45
NO_TEXT = {"vocab_size": 1, "bos_token_id": None, "eos_token_id": None}  # tokens come as embeddings


def make_step(forward, parameters, policy, dtype, batch=BATCH):
    """The function that makes one update, as train_meta_dt.py does."""
    optimizer = torch.optim.AdamW(parameters, 5e-5, weight_decay=1e-4, fused=True)
    tasks = torch.arange(EPISODES) % TASKS
    sampler = BatchSampler(make_episodes(EPISODES), tasks, HISTORY, PROMPT, HORIZON, "argmax", full_windows=False)
    generator = torch_generator(0, "benchmark")

    def step():
        history, prompt = sampler.draw(batch, generator, True)
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            predicted = forward(history, prompt)
        loss = action_loss(predicted, history["actions"], history["mask"], policy.action_scale)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 0.25)
        optimizer.step()

    return step


def measure():
    policy = make_policy()
    precision = autocast_dtype("auto", torch.device("cpu"))
    seconds = {}
    for dtype in dict.fromkeys((precision, None)):
        step = make_step(policy, list(policy.parameters()), policy, dtype)
        flop, peak, name = count_flop(step), matmul_peak(), "float32" if dtype is None else "bfloat16"
        aim = 130 if dtype is precision else None  # of the precision that training chooses on this machine
        figure = record(f"policy step, {name}", durations(step, 5.0, 15), flop, peak, unit="ms", aim=aim)
        seconds[dtype] = figure["value"]
        if aim:
            figure |= {"aim_share_of_peak": 0.6, "share_met": figure["share_of_peak"][name] >= 0.6}
        yield figure
    yield from measure_reference(seconds[precision])


def around_gpt2(policy):
    """(GPT2Model of equal size, function (history, prompt) -> what the policy predicts with it in the transformer's place)."""
    from transformers import GPT2Config, GPT2Model

    size = {"n_embd": WIDTH, "n_layer": 3, "n_head": 1, "n_positions": 3 * (HISTORY + PROMPT)}
    gpt2 = GPT2Model(GPT2Config(activation_function="relu", use_cache=False, **size, **NO_TEXT))

    def forward(history, prompt):
        tokens = torch.cat([policy._tokens(policy.prompt, prompt), policy._tokens(policy.history, history)], 1)
        mask = torch.cat([prompt["mask"], history["mask"]], 1).repeat_interleave(3, 1)
        hidden = gpt2(inputs_embeds=tokens, attention_mask=mask).last_hidden_state
        return policy.read_actions(hidden[:, 3 * PROMPT + 1 :: 3])

    return gpt2, forward


def measure_reference(ours):
    """Nothing where transformers is not installed: it is a requirement of the tests only."""
    if importlib.util.find_spec("transformers") is None:
        return
    policy = make_policy()
    gpt2, forward = around_gpt2(policy)
    own = [parameter for name, parameter in policy.named_parameters() if not name.startswith("transformer.")]
    step = make_step(forward, own + list(gpt2.parameters()), policy, None)
    flop, peak = count_flop(step), matmul_peak()
    figure = record("policy step, GPT2Model in float32", durations(step, 5.0, 10), flop, peak, unit="ms")
    yield figure | {"ratio_to_ours": round(figure["value"] / ours, 2)}


if __name__ == "__main__":
    run(__doc__, measure)
