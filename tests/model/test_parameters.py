from __future__ import annotations

import pytest
import torch
from torch import nn

from lightning_lscore.model.parameters import ParameterCount, count_parameters, sizes


def model():
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2, bias=False))


def test_all_parameters_count():
    """Weights and biases of all layers: 3·4 + 4 + 4·2."""
    assert count_parameters(model()) == ParameterCount(trainable=24, total=24)


def test_frozen_parameters_count_in_the_total_only():
    """requires_grad decides what is trainable."""
    module = model()
    module[0].weight.requires_grad_(False)
    assert count_parameters(module) == ParameterCount(trainable=12, total=24)


def test_a_module_without_parameters_has_none():
    """Buffers are no parameters."""
    assert count_parameters(nn.BatchNorm1d(3, affine=False)) == ParameterCount(0, 0)


def test_tied_weights_count_once():
    """An embedding that is the output layer too is one tensor."""
    module = nn.ModuleDict({"embed": nn.Embedding(10, 4), "head": nn.Linear(4, 10, bias=False)})
    assert count_parameters(module).total == 80
    module["head"].weight = module["embed"].weight
    assert count_parameters(module) == ParameterCount(trainable=40, total=40)


@pytest.mark.parametrize("frozen", [False, True])
def test_tensors_that_zero3_emptied_count_by_their_real_size(frozen):
    """DeepSpeed leaves numel 0 and the whole size as ds_numel."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.empty(0), requires_grad=not frozen)
    module.weight.ds_numel = 1000
    assert count_parameters(module) == ParameterCount(trainable=0 if frozen else 1000, total=1000)


def test_a_parameter_has_its_real_size():
    """Also where DeepSpeed has emptied it."""
    parameter = nn.Parameter(torch.empty(3, 4))
    module = nn.ParameterList([parameter])
    assert sizes(module) == {id(parameter): 12}
    parameter.ds_numel = 1000
    assert sizes(module) == {id(parameter): 1000}


def test_parameters_without_storage_count():
    """A model on the meta device has its full size."""
    with torch.device("meta"):
        assert count_parameters(model()).total == 24
