from __future__ import annotations

import pytest

from lightning_lscore.hardware import peaks
from lightning_lscore.hardware.peak_table import TABLE
from lightning_lscore.hardware.peaks import peak_flops

DTYPES = ("float64", "float32", "tf32", "bfloat16", "float16", "float8")
LINES = [(name, rates, source) for names, rates, source in TABLE for name in names]


@pytest.mark.parametrize(
    ("name", "dtype", "tera"),
    [
        ("Tesla V100-SXM2-16GB", "float16", 125.0),
        ("NVIDIA A100-SXM4-80GB", "bfloat16", 312.0),
        ("NVIDIA A100 80GB PCIe", "tf32", 156.0),
        ("NVIDIA H100 80GB HBM3", "float8", 1978.9),
        ("NVIDIA H100 PCIe", "bfloat16", 756.0),
        ("NVIDIA H100 NVL", "bfloat16", 835.5),  # and not 1671, which is sparse
        ("NVIDIA L40S", "bfloat16", 362.05),  # and not the L4's
        ("NVIDIA L4", "bfloat16", 121.0),
        ("NVIDIA B200", "bfloat16", 2250.0),
        ("NVIDIA GeForce RTX 4090", "float16", 165.2),  # with float32 accumulation
        ("NVIDIA RTX A6000", "bfloat16", 154.8),
        ("NVIDIA B200", "tf32", 1125.0),  # an eighth of 18 PFLOP/s, which is sparse
        ("NVIDIA H20-3e", "bfloat16", 148.0),
        ("NVIDIA RTX A4000", "tf32", 38.3),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "bfloat16", 503.8),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "float32", 126.0),
        ("NVIDIA RTX PRO 6000 Blackwell Max-Q Workstation Edition", "bfloat16", 438.9),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "tf32", 233.9),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition", "bfloat16", 467.8),
        ("NVIDIA GeForce RTX 3060", "bfloat16", 25.5),
        ("NVIDIA GeForce RTX 3090", "bfloat16", 71.2),
        ("NVIDIA GeForce RTX 4060 Ti", "float8", 88.3),
        ("NVIDIA GeForce RTX 4070 Ti", "float32", 40.1),
        ("NVIDIA GeForce RTX 5060 Ti", "bfloat16", 47.4),
        ("NVIDIA GeForce RTX 5080", "float8", 225.1),
        ("NVIDIA GeForce RTX 3070 Ti", "float32", 21.7),
        ("NVIDIA GeForce RTX 4070 SUPER", "float32", 35.5),
        ("NVIDIA GeForce RTX 4070 Ti SUPER", "bfloat16", 88.2),
        ("NVIDIA GeForce RTX 5060", "float32", 19.2),
        ("NVIDIA RTX 4000 Ada Generation", "float16", 106.9),
        ("NVIDIA RTX 4500 Ada Generation", "float32", 39.6),
        ("NVIDIA RTX 5000 Ada Generation", "float8", 522.2),  # and not 1044.4, which is sparse
        ("Apple M1 8-core GPU", "float32", 2.6),
        ("Apple M1 7-core GPU", "float16", 2.275),
        ("Apple M1 Max 24-core GPU", "float32", 7.8),
        ("AMD Instinct MI250X", "bfloat16", 191.5),  # one of two dies
        ("AMD Instinct MI350X OAM", "bfloat16", 2306.9),
        ("AMD Instinct MI355X OAM", "bfloat16", 2516.6),
        ("v3", "bfloat16", 61.5),  # one of two cores
        ("v4", "bfloat16", 275.0),  # both cores: they are one device
        ("tpu7x", "float8", 2307.0),  # one of two cores
    ],
)
def test_published_dense_peaks(name, dtype, tera):
    peak = peak_flops(name, dtype)

    assert peak is not None
    assert peak.flops == pytest.approx(tera * 1e12)


@pytest.mark.parametrize(
    "name",
    [
        "",
        "A100",
        "NVIDIA A100",
        "nvidia a100-sxm4-80gb",
        "NVIDIA A100-SXM-64GB",
        "NVIDIA H100",
        "NVIDIA H100 80GB HBM2e",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "NVIDIA GeForce RTX 4090 D",
        "NVIDIA GeForce RTX 3080",
        "NVIDIA RTX PRO 6000",
        "NVIDIA GB10",
        "Tesla V100-SXM3-32GB",
        "AMD Instinct MI250X / MI250",
        "AMD Instinct MI308X",
        "AMD EPYC 9654 96-Core Processor",
        "Apple M1",
    ],
)
def test_a_name_matches_whole_or_not_at_all(name):
    assert peak_flops(name, "bfloat16") is None


# Multiprocessors (AMD: compute units), GHz, operations per clock of each in 16 bits.
CHIPS = [
    ("Tesla V100-SXM2-16GB", 80, 1.53, 1024),
    ("Tesla V100-PCIE-16GB", 80, 1.38, 1024),
    ("Tesla T4", 40, 1.59, 1024),
    ("A100-SXM4-80GB", 108, 1.41, 2048),
    ("A30", 56, 1.44, 2048),
    ("A10", 72, 1.695, 1024),
    ("A10G", 80, 1.71, 512),
    ("A40", 84, 1.74, 1024),
    ("L4", 58, 2.04, 1024),
    ("L40", 142, 2.49, 512),
    ("L40S", 142, 2.52, 1024),
    ("H100 80GB HBM3", 132, 1.83, 4096),  # the clock of its tensor cores
    ("H100 PCIe", 114, 1.62, 4096),
    ("RTX A6000", 84, 1.8, 1024),
    ("RTX 6000 Ada Generation", 142, 2.505, 1024),
    ("RTX PRO 6000 Blackwell Workstation Edition", 188, 2.617, 1024),
    ("GeForce RTX 3070", 46, 1.725, 512),
    ("GeForce RTX 3090", 82, 1.695, 512),
    ("GeForce RTX 3090 Ti", 84, 1.86, 512),
    ("GeForce RTX 4080", 76, 2.505, 512),
    ("GeForce RTX 4090", 128, 2.52, 512),
    ("GeForce RTX 5070", 48, 2.512, 512),
    ("GeForce RTX 5090", 170, 2.407, 512),
    ("AMD Instinct MI210", 104, 1.7, 1024),
    ("AMD Instinct MI250X", 110, 1.7, 1024),
    ("AMD Instinct MI300A", 228, 2.1, 2048),
    ("AMD Instinct MI300X", 304, 2.1, 2048),
    ("AMD Instinct MI350X", 256, 2.2, 4096),
    ("AMD Instinct MI355X", 256, 2.4, 4096),
]


@pytest.mark.parametrize(("name", "units", "ghz", "per_clock"), CHIPS)
def test_a_published_peak_is_what_its_units_do_at_the_boost_clock(name, units, ghz, per_clock):
    """Would show a sparse figure, a GeForce's rate with float16 accumulation, or both dies."""
    peak = peak_flops(name, "float16")

    assert peak is not None
    assert peak.flops == pytest.approx(units * ghz * 1e9 * per_clock, rel=0.013)


def test_a_line_that_is_arithmetic_says_so():
    peak = peak_flops("NVIDIA GeForce RTX 4070", "float16")

    assert peak is not None
    assert peak.source == "arithmetic: 46 multiprocessors at a boost clock of 2.475 GHz"
    assert peak.flops == pytest.approx(58.3e12)


def test_a_datasheet_that_leaves_the_tensor_cores_out_is_not_a_peak():
    # It gives 9.7 TFLOP/s in FP64, as for the A100, whose tensor cores do 19.5.
    assert peak_flops("NVIDIA A800 40GB Active", "float64") is None
    assert peak_flops("NVIDIA A800 40GB Active", "float16") is not None


def test_names_from_before_the_maker_was_in_them_match_too():
    assert peak_flops("A100-SXM4-40GB", "bfloat16") == peak_flops(
        "NVIDIA A100-SXM4-40GB", "bfloat16"
    )


@pytest.mark.parametrize("dtype", ["float8", "int8", "complex64", ""])
def test_a_precision_that_the_device_lacks_has_no_peak(dtype):
    assert peak_flops("NVIDIA A100-SXM4-80GB", dtype) is None


@pytest.mark.parametrize(("name", "rates", "source"), LINES, ids=[name for name, *_ in LINES])
def test_every_line_is_sourced_and_in_order(name, rates, source):
    assert source
    assert not name.startswith("NVIDIA ")
    assert set(rates) <= set(DTYPES)
    # Narrower is never slower; a wrong column or a sparse figure among dense ones would show.
    order = [rates[d] for d in ("float64", "float32", "tf32", "float16", "float8") if d in rates]
    assert order == sorted(order)
    assert rates
    if name.startswith("Apple"):
        assert rates["float16"] == rates["float32"]
    if "bfloat16" in rates and "float16" in rates:
        assert rates["bfloat16"] == rates["float16"]
    if "float8" in rates:
        assert rates["float8"] / rates["bfloat16"] == pytest.approx(2, rel=0.03)
    if "tf32" in rates and "float16" in rates:
        assert rates["float16"] / rates["tf32"] == pytest.approx(2, rel=0.05)


def test_no_name_is_listed_twice():
    assert len(LINES) == len({name for name, *_ in LINES}) == len(peaks._BY_NAME)


@pytest.mark.parametrize(
    ("name", "share"),
    [
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", 1 / 7),
        ("NVIDIA A100-SXM4-40GB MIG 3g.20gb", 3 / 7),
        ("NVIDIA A100-SXM4-40GB MIG 1c.3g.20gb", 1 / 7),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb+me", 1 / 7),
        ("A100-SXM4-40GB MIG 7g.40gb", 1.0),
        ("NVIDIA H100 80GB HBM3 MIG 2g.20gb", 2 / 7),
        ("NVIDIA A30 MIG 1g.6gb", 1 / 4),
        ("NVIDIA RTX PRO 6000 Blackwell Server Edition MIG 1g.24gb", 1 / 4),
    ],
)
def test_a_mig_slice_has_its_share_of_the_board(name, share):
    board = peak_flops(name.split(" MIG ")[0], "bfloat16")
    peak = peak_flops(name, "bfloat16")

    assert board is not None
    assert peak is not None
    assert peak.flops == pytest.approx(board.flops * share)
    assert "compute slices" in peak.source


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA A100-SXM4-40GB MIG",
        "NVIDIA A100-SXM4-40GB MIG 8g.80gb",
        "NVIDIA A10 MIG 1g.6gb",
        "Unknown GPU MIG 1g.5gb",
    ],
)
def test_a_slice_that_cannot_be_is_unknown(name):
    assert peak_flops(name, "bfloat16") is None
