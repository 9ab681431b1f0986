"""LAMB (You et al., 2020, "Large Batch Optimization for Deep Learning"), as the official Online Decision Transformer uses it.

PyTorch has none, and the kept packages that do bring a model zoo with them.
"""

import torch


class Lamb(torch.optim.Optimizer):
    """Adam whose update of every tensor is rescaled to the tensor's own norm.

        g ← g / max(1, ‖g_all‖)                           over all tensors together
        u = m̂ / (√v̂ + eps) + w p                          Adam's step with bias correction, and weight decay
        p ← p − lr r u,    r = ‖p‖ / ‖u‖                   r = 1 where a norm is zero, and where w = 0

    Args:
        lr, betas, eps: as Adam. weight_decay: w; with 0 this is Adam with a clipped gradient.
    """

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self):
        """One update from the gradients that the parameters hold."""
        gradients = [p.grad for group in self.param_groups for p in group["params"] if p.grad is not None]
        clip = torch.stack([gradient.norm() for gradient in gradients]).norm().clamp_min(1)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad / clip, group)

    def _update(self, parameter, gradient, group):
        state, (beta1, beta2) = self.state[parameter], group["betas"]
        if not state:
            state["step"] = torch.zeros(())
            state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
        state["step"] += 1
        step = int(state["step"])
        mean = state["exp_avg"].lerp_(gradient, 1 - beta1)
        square = state["exp_avg_sq"].lerp_(gradient.square(), 1 - beta2)
        update = (mean / (1 - beta1**step)) / ((square / (1 - beta2**step)).sqrt() + group["eps"])
        ratio = 1.0
        if group["weight_decay"]:
            update = update + group["weight_decay"] * parameter
            sizes = parameter.norm(), update.norm()
            ratio = torch.where((sizes[0] > 0) & (sizes[1] > 0), sizes[0] / sizes[1], torch.ones_like(sizes[0]))
        parameter.sub_(group["lr"] * ratio * update)
