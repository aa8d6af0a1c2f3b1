"""Weights of few bits count as what they stand for, in layers shaped like those of each library."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from lightning_lscore.model.flops import flops_of
from lightning_lscore.model.parameters import ParameterCount, count_parameters

IN, OUT = 64, 32


def frozen(*shape, dtype=torch.uint8):
    return nn.Parameter(torch.zeros(*shape, dtype=dtype), requires_grad=False)


def bitsandbytes(storage=torch.uint8):
    """Linear4bit: two weights a byte in one column, in a storage of any type."""
    layer = nn.Linear(IN, OUT)
    layer.weight = frozen(IN * OUT // 2 // storage.itemsize, 1, dtype=storage)
    layer.weight.quant_state = SimpleNamespace(shape=torch.Size([OUT, IN]))
    return layer


def bitsandbytes_int8():
    """Linear8bitLt: a weight a byte."""
    layer = nn.Linear(IN, OUT)
    layer.weight = frozen(OUT, IN, dtype=torch.int8)
    return layer


class Features(nn.Module):
    def __init__(self, names=("in_features", "out_features"), bias=None):
        super().__init__()
        for name, n in zip(names, (IN, OUT), strict=True):
            setattr(self, name, n)
        if bias is not None:
            self.bias = bias


def hqq(dtype=torch.uint8):
    """HQQLinear: rows folded together and padded, perhaps viewed as floats."""
    layer = Features(bias=nn.Parameter(torch.zeros(OUT)))
    layer.W_q = frozen(OUT // 4 // dtype.itemsize, IN + 2, dtype=dtype)
    layer.meta = {"nbits": 4, "shape": torch.Size([OUT, IN])}
    return layer


def gptq(names=("infeatures", "outfeatures")):
    """QuantLinear: everything in buffers, 8 weights an int32."""
    layer = Features(names)
    layer.register_buffer("qweight", torch.zeros(IN // 8, OUT, dtype=torch.int32))
    layer.register_buffer("qzeros", torch.zeros(2, OUT // 8, dtype=torch.int32))
    layer.register_buffer("scales", torch.zeros(2, OUT))
    layer.register_buffer("g_idx", torch.zeros(IN, dtype=torch.int32))
    layer.register_buffer("bias", torch.zeros(OUT))
    return layer


def awq():
    """WQLinear_GEMM: packed along the other side."""
    layer = gptq(("in_features", "out_features"))
    layer.qweight = torch.zeros(IN, OUT // 8, dtype=torch.int32)
    return layer


def compressed_tensors():
    """A Linear whose weight became parameters of a packed weight, its scale and its shape."""
    layer = nn.Linear(IN, OUT)
    del layer.weight
    layer.weight_packed = frozen(OUT, IN // 8, dtype=torch.int32)
    layer.weight_scale = frozen(OUT, 2, dtype=torch.float32)
    layer.weight_shape = frozen(2, dtype=torch.int64)
    return layer


LAYERS = [
    bitsandbytes,
    lambda: bitsandbytes(torch.bfloat16),
    bitsandbytes_int8,
    hqq,
    lambda: hqq(torch.bfloat16),
    gptq,
    awq,
    compressed_tensors,
]


@pytest.mark.parametrize("make", LAYERS)
def test_packed_weights_count_as_what_they_stand_for(make):
    """As the layer before it was packed, in parameters and in FLOP; not what unpacks them."""
    layer = make()
    learns = sum(p.numel() for p in layer.parameters() if p.requires_grad)
    assert count_parameters(layer) == ParameterCount(learns, IN * OUT + OUT)
    assert count_parameters(layer).unknown == ()
    plain = nn.Linear(IN, OUT)
    plain.weight.requires_grad_(False)
    plain.bias.requires_grad_(learns > 0)
    assert flops_of(layer).per_token == flops_of(plain).per_token


def test_layers_with_integers_beside_their_weight_are_plain():
    """Such as a mask, or positions: nothing is packed."""
    layer = nn.Linear(IN, OUT)
    layer.register_buffer("mask", torch.zeros(OUT, IN, dtype=torch.int8))
    other = nn.Module()
    other.register_buffer("positions", torch.zeros(4, 4, dtype=torch.int32))
    both = nn.ModuleList([layer, other])
    assert count_parameters(both) == ParameterCount(IN * OUT + OUT, IN * OUT + OUT)
    assert count_parameters(both).unknown == ()


def test_an_unknown_packing_is_named():
    """Experts in blocks, say: they count by their elements."""

    class Mystery(nn.Module):
        def __init__(self):
            super().__init__()
            self.blocks = frozen(2, 3, 4)

    count = count_parameters(nn.ModuleList([Mystery(), Mystery()]))
    assert count == ParameterCount(0, 48)
    assert count.unknown == ("Mystery",)


def test_real_layers_of_bitsandbytes():
    """Where it is installed."""
    bnb = pytest.importorskip("bitsandbytes")
    layer = bnb.nn.Linear4bit(IN, OUT, quant_type="nf4").to("cpu")
    assert layer.weight.numel() == IN * OUT // 2
    assert count_parameters(layer).total == IN * OUT + OUT
