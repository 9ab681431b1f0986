"""The GPT-2 block stack, parameter for parameter `transformers.GPT2Model` without its embeddings, written lean.

What makes it faster than the general model: the last block computes queries and its MLP only for the positions that are read
out, keys and values of a constant prefix (the prompt) are computed once per episode, and nothing is returned that nobody reads.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn


class Block(nn.Module):
    """Pre-LayerNorm transformer block: x + attention(ln_1(x)), then x + mlp(ln_2(x))."""

    def __init__(self, width, heads, dropout):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.ln_1 = nn.LayerNorm(width)
        self.c_attn = nn.Linear(width, 3 * width)
        self.c_proj = nn.Linear(width, width)
        self.ln_2 = nn.LayerNorm(width)
        self.c_fc = nn.Linear(width, 4 * width)
        self.mlp_c_proj = nn.Linear(4 * width, width)

    def forward(self, x, bias, readout=slice(None), past=None):
        """x (B, L, D), additive attention bias (B or 1, L, P + L) -> (B, R, D) at the positions `readout`, and (keys, values).

        past: keys and values (B, H, P, D / H) of a prefix that every position may attend to.
        """
        width = x.shape[-1]
        normed = self.ln_1(x)
        if readout == slice(None):
            query, key, value = self.c_attn(normed).split(width, dim=-1)
        else:
            weight, offset = self.c_attn.weight, self.c_attn.bias
            query = F.linear(normed[:, readout], weight[:width], offset[:width])
            key, value = F.linear(normed, weight[width:], offset[width:]).split(width, dim=-1)
            x, bias = x[:, readout], bias[:, readout]
        query, key, value = (self._split(part) for part in (query, key, value))  # (B, H, L, D / H)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        x = x + self._dropout(self.c_proj(self._attend(query, key, value, bias)))
        hidden = F.relu(self.c_fc(self.ln_2(x)), inplace=True)
        return x + self._dropout(self.mlp_c_proj(hidden)), (key, value)

    def _split(self, x):
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _attend(self, query, key, value, bias):
        batch, heads, _length, size = query.shape
        query, key, value = (part.reshape(batch * heads, -1, size) for part in (query, key, value))
        if heads > 1:
            bias = bias.repeat_interleave(heads, 0) if bias.shape[0] > 1 else bias
        scores = torch.baddbmm(
            bias.to(query.dtype).expand(batch * heads, -1, -1), query, key.transpose(1, 2), alpha=1 / math.sqrt(size)
        )
        weights = self._dropout(scores.softmax(-1)).to(value.dtype)
        return torch.bmm(weights, value).unflatten(0, (batch, heads)).transpose(1, 2).flatten(2)

    def _dropout(self, x):
        return dropout(x, self.dropout) if self.training else x


class Transformer(nn.Module):
    """Stack of blocks with a final LayerNorm. Weights N(0, 0.02), biases zero (as GPT-2).

    Args:
        width, layers, heads: D, number of blocks, attention heads; the MLP is 4 D wide with ReLU.
        dropout: on the input, the attention weights and both residual branches.
    """

    def __init__(self, width=128, layers=3, heads=1, dropout=0.1):
        super().__init__()
        self.dropout = dropout
        self.h = nn.ModuleList(Block(width, heads, dropout) for _ in range(layers))
        self.ln_f = nn.LayerNorm(width)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def forward(self, x, bias, readout=slice(None), past=None):
        """x (B, L, D), bias from `attention_bias` -> hidden states (B, R, D) at `readout`, and each block's (keys, values)."""
        x = dropout(x, self.dropout) if self.training else x
        caches = []
        for index, block in enumerate(self.h):
            last = index == len(self.h) - 1
            x, cache = block(x, bias, readout if last else slice(None), past and past[index])
            caches.append(cache)
        return self.ln_f(x), caches


def dropout(x, p):
    """F.dropout, with p rounded to 1/65536 on the CPU: one 64-bit random number serves four elements, where PyTorch draws one
    for each, which took a sixth of a training step."""
    if p == 0 or x.is_cuda:
        return F.dropout(x, p)
    lost = min(round(p * 65536), 65535)  # something is kept
    words = torch.empty((x.numel() + 3) // 4, dtype=torch.int64).random_(-(2**63), None)
    kept = words.view(torch.int16)[: x.numel()].view(x.shape) >= lost - 32768
    return x * kept.to(x.dtype).mul_(65536 / (65536 - lost))


def attention_bias(mask, prefix=0):
    """Additive bias of causal attention that also hides padding.

    Args:
        mask: (B, L) bool, False on padding; a padded position still attends to itself, so that no softmax is empty.
        prefix: P positions before the sequence that all may attend to.
    Returns: (B, L, P + L) float32, 0 where attention is allowed and -inf elsewhere.
    """
    length = mask.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=mask.device).tril()
    allowed = (causal & mask[:, None, :]) | torch.eye(length, dtype=torch.bool, device=mask.device)
    bias = torch.zeros(allowed.shape, device=mask.device).masked_fill_(~allowed, -torch.inf)
    return F.pad(bias, (prefix, 0))


def from_gpt2(state_dict):
    """Weights of `transformers.GPT2Model` -> state dict of `Transformer` (GPT-2 stores linear layers transposed)."""
    renamed = {}
    for name, value in state_dict.items():
        if name.startswith(("wte", "wpe")) or name.endswith((".attn.bias", ".masked_bias")):
            continue
        name = name.replace(".attn.", ".").replace(".mlp.c_fc", ".c_fc").replace(".mlp.c_proj", ".mlp_c_proj")
        renamed[name] = value.T.contiguous() if value.ndim == 2 else value
    return renamed
