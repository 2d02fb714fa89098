"""Layers without neurons for the slow reference: forward and backward by loops."""

from __future__ import annotations

import torch


class Linear:
    def __init__(self, weight, bias):
        self.weight, self.bias = weight, bias
        self.grads = {"weight": torch.zeros_like(weight), "bias": torch.zeros_like(bias)}
        self.x = []
        self.ones = {}  # step -> what stands for the bias's input, where it is not 1

    def forward(self, x):
        self.shape = x.shape
        x = x.flatten(1)
        self.x.append(x)
        out = torch.zeros(x.shape[0], self.weight.shape[0], dtype=x.dtype)
        for b in range(x.shape[0]):
            for n in range(self.weight.shape[0]):
                out[b, n] = (self.weight[n] * x[b]).sum() + self.bias[n]
        return out

    def backward(self, t, delta):
        for b in range(delta.shape[0]):
            for n in range(delta.shape[1]):
                self.grads["weight"][n] += delta[b, n] * self.x[t][b]
                self.grads["bias"][n] += delta[b, n] * self.ones.get(t, 1.0)

    def back(self, delta, matrix):
        """The error at the input by way of a matrix in the weight's place."""
        at_input = torch.zeros(delta.shape[0], matrix.shape[1], dtype=delta.dtype)
        for b in range(delta.shape[0]):
            for n in range(delta.shape[1]):
                at_input[b] += delta[b, n] * matrix[n]
        return at_input.reshape(self.shape)


class Conv2d(Linear):
    """Valid convolution with stride one."""

    def forward(self, x):
        self.shape = x.shape
        self.x.append(x)
        o, _, kh, kw = self.weight.shape
        h, w = x.shape[2] - kh + 1, x.shape[3] - kw + 1
        out = torch.zeros(x.shape[0], o, h, w, dtype=x.dtype)
        for n in range(o):
            for i in range(h):
                for j in range(w):
                    patch = x[:, :, i : i + kh, j : j + kw]
                    out[:, n, i, j] = (patch * self.weight[n]).sum((1, 2, 3)) + self.bias[n]
        return out

    def backward(self, t, delta):
        kh, kw = self.weight.shape[2:]
        for b in range(delta.shape[0]):
            for n in range(delta.shape[1]):
                for i in range(delta.shape[2]):
                    for j in range(delta.shape[3]):
                        patch = self.x[t][b, :, i : i + kh, j : j + kw]
                        self.grads["weight"][n] += delta[b, n, i, j] * patch
                        self.grads["bias"][n] += delta[b, n, i, j] * self.ones.get(t, 1.0)

    def back(self, delta, matrix):
        kh, kw = matrix.shape[2:]
        at_input = torch.zeros(self.shape, dtype=delta.dtype)
        for b in range(delta.shape[0]):
            for n in range(delta.shape[1]):
                for i in range(delta.shape[2]):
                    for j in range(delta.shape[3]):
                        at_input[b, :, i : i + kh, j : j + kw] += delta[b, n, i, j] * matrix[n]
        return at_input


class BatchNorm:
    """Batch statistics of each step over all but the channel dimension."""

    def __init__(self, weight, bias, eps):
        self.weight, self.bias, self.eps = weight, bias, eps
        self.grads = {"weight": torch.zeros_like(weight), "bias": torch.zeros_like(bias)}
        self.steps = []

    def forward(self, x):
        over = [d for d in range(x.dim()) if d != 1]
        shape = [1, -1] + [1] * (x.dim() - 2)
        mean = x.mean(over).view(shape)
        std = (((x - mean) ** 2).mean(over).view(shape) + self.eps).sqrt()
        hat = (x - mean) / std
        self.steps.append((hat, std, over, shape))
        return hat * self.weight.view(shape) + self.bias.view(shape)

    def backward(self, t, delta):
        hat, std, over, shape = self.steps[t]
        self.grads["weight"] += (delta * hat).sum(over)
        self.grads["bias"] += delta.sum(over)
        d = delta * self.weight.view(shape)
        mean_d = d.mean(over).view(shape)
        mean_dh = (d * hat).mean(over).view(shape)
        return (d - mean_d - hat * mean_dh) / std


class Pool:
    """Mean over 2x2, ahead of a synapse: no gradient passes it."""

    def forward(self, x):
        return (
            x[:, :, ::2, ::2] + x[:, :, 1::2, ::2] + x[:, :, ::2, 1::2] + x[:, :, 1::2, 1::2]
        ) / 4

    def back(self, delta):
        return delta.repeat_interleave(2, 2).repeat_interleave(2, 3) / 4
