"""Act by a policy in one file, with torch and nothing of ours: python act.py policy.pt

`python -m tools.models torchscript FOLDER policy.pt --task 47` makes the file: a Meta-DT that has lived its warm-up there.
The point walks by its action and is paid minus the distance to a goal that the policy is not told. Prints the return.
"""

import sys

import torch

policy, goal = torch.jit.load(sys.argv[1]), torch.tensor([-0.18, -0.94])
for _ in range(2):  # each episode begins afresh, with what the file knows of the task
    policy.start()
    position, reward, total = torch.zeros(2), 0.0, 0.0
    for _ in range(20):
        position = position + policy(position, reward)  # the reward is that of the action before
        reward = -float(torch.linalg.norm(position - goal))
        total += reward
    print(f"return {total:.4f}")
