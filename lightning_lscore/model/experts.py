"""Experts of a transformers model: those that a token passes, and those that it does not."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import nn

from .language_models import token_models
from .parameters import sizes
from .transformers_config import number_of_experts, setting


class Experts(NamedTuple):
    """The experts of one layer."""

    parameters: list[int]
    """Their ids."""
    held: float | None
    """How many experts there are; None: not known, like the next."""
    used: float | None
    """How many of them a token passes."""

    @property
    def share(self) -> float | None:
        """The part of the parameters that a token passes; None: not known."""
        held, used = self.held, self.used
        return used / held if held and used and used <= held else None


def experts_of(model: Any, config: Any) -> list[Experts]:
    """Return the routed experts of a model; shared experts always work and are none of them.

    They are a module of that name, or what there are as many of as the config has experts: a list
    of modules, or weights [experts, in, out] that are stacked.
    """
    n, depth = number_of_experts(config), setting(config, "num_hidden_layers")
    k = setting(config, "num_experts_per_tok", "top_k_experts", "moe_topk", "moe_top_k")
    found: list[Experts] = []
    inside: set[nn.Module] = set()
    for name, part in model.named_modules():
        if part in inside:
            continue
        size = len(part) if isinstance(part, nn.ModuleList) else getattr(part, "num_experts", n)
        is_list = isinstance(part, nn.ModuleList) and size == n != depth
        if name.endswith(".experts") or is_list:
            inside.update(part.modules())
            found.append(Experts([*sizes(part)], size if isinstance(size, int) else n, k))
        elif n is not None and not isinstance(part, nn.modules.conv._ConvNd):
            stacks = [p for p in part.parameters(recurse=False) if p.ndim == 3 and len(p) == n]
            found += [Experts([id(p) for p in stacks], n, k)] if stacks else []
    return found


def active_parameters(module: nn.Module) -> int | None:
    """Return how many parameters a token passes: of experts, those that it is routed to.

    Embeddings count, as in published figures. None where it is not known which are experts: in
    modules without a transformers model, and in models whose config does not tell.
    """
    models = token_models(module)
    whole = sizes(module)
    idle = 0.0
    for model in models:
        try:
            experts = experts_of(model, model.config.get_text_config())
        except ValueError:  # a config with several text models
            return None
        for each in experts:
            if each.share is None:
                return None
            idle += (1 - each.share) * sum(whole[p] for p in each.parameters)
    return round(sum(whole.values()) - idle) if models else None
