"""Sampling from merged weights: a dense copy of the policy whose linear layers hold W + scaling * B A.

Through a LoRA adapter every linear layer runs three products for each token, and in 4 bits it unpacks its weights each time.
A rollout writes hundreds of tokens from the same weights, so it pays to add the adapter in once a step. The frozen weights
are never touched: merging into them and out again would leave rounding behind, and rounding in 4 bits would make the
sampled policy another one than the trained one. Here merged and unmerged differ by the rounding of one sum.

The copy shares embeddings, norms and all else that is frozen with the policy; only its linear layers take memory of their own.
"""

import copy

import torch
from torch import nn

from .policy import has_adapter


class MergedCopy:
    """A plain model beside a LoRA policy. `model` is what to sample from after `refresh`."""

    def __init__(self, policy):
        self.policy = policy
        base = policy.get_base_model()
        shared = {id(t): t for t in [*base.parameters(), *base.buffers()]}
        self.model = copy.deepcopy(base, shared)  # deepcopy takes from `shared` what it would otherwise copy
        self.layers = []  # (layer of the policy, dense layer of the copy)
        for name, layer in list(base.named_modules()):
            if is_adapted(layer):
                dense = dense_like(layer)
                parent, _, child = name.rpartition(".")
                setattr(self.model.get_submodule(parent), child, dense)
                self.layers.append((layer, dense))
        self.refresh()

    @torch.no_grad()
    def refresh(self):
        """Take over the adapter as it is now. Returns the plain model."""
        for layer, dense in self.layers:
            delta = layer.get_delta_weight(layer.active_adapters[0])  # in the layout of the frozen weight
            merged = dense_weight(layer) + (delta.T if layer.fan_in_fan_out else delta)  # in the wider type of the two
            dense.weight.copy_(merged)
        return self.model


def is_adapted(layer) -> bool:
    return hasattr(layer, "get_delta_weight") and hasattr(layer, "base_layer")


def dense_weight(layer) -> torch.Tensor:
    """The frozen weight [out, in] of an adapted layer, unpacked if it is in 4 bits."""
    from peft.utils.integrations import dequantize_module_weight

    weight = dequantize_module_weight(layer.base_layer).detach()
    return weight.T if layer.fan_in_fan_out else weight  # GPT-2's Conv1D holds [in, out]


def dense_like(layer) -> nn.Linear:
    weight = dense_weight(layer)
    dense = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device=weight.device, dtype=dense_dtype(layer)).requires_grad_(False)
    if layer.base_layer.bias is not None:
        dense.bias = nn.Parameter(layer.base_layer.bias.detach(), requires_grad=False)
    return dense


def dense_dtype(layer) -> torch.dtype:
    """What an adapted layer computes in."""
    return getattr(layer.base_layer, "compute_dtype", None) or layer.base_layer.weight.dtype


def merged_copy(policy, wanted: str) -> MergedCopy | None:
    """A MergedCopy where `policy.sampling` asks for one, there is an adapter, and memory allows; else None, and sampling goes through the policy itself."""
    if wanted != "merged" or not has_adapter(policy):
        return None
    needed = sum(layer.in_features * layer.out_features * dense_dtype(layer).itemsize for layer in policy.modules() if is_adapted(layer))  # bytes
    return MergedCopy(policy) if needed < 0.8 * free_memory(policy.device) else None


def free_memory(device: torch.device) -> int:
    """Bytes that are free on a device."""
    if device.type == "cuda":
        # What torch's allocator holds without using it is free too.
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    import psutil

    return psutil.virtual_memory().available
