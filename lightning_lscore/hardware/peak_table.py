"""The table of published dense peaks, with the document that states each.

Rules of the table, in TFLOP/s:
- dense: figures "with sparsity" are halved;
- products accumulate in float32, as in torch: on GeForce cards that halves the 16-bit rate;
- the fastest unit for the dtype counts: FP64 tensor cores for float64;
- a line is one device of torch: one of the two dies of an MI250X;
- names are those that drivers report: NVIDIA's list of supported products, AMD's ``amdgpu.ids``.

Most lines also follow from multiprocessors x operations per clock x boost clock, to about 1 %.
The others are lower: tensor cores of the largest chips run below the boost clock.

Left out on purpose: names that chips of different speed share (GeForce RTX 3080, AMD's
"MI250X / MI250") and devices without a published figure (GB10, MI308X, Apple's since the M2). A
partition of an AMD GPU (CPX and the like) may have the name of the whole GPU, and then gets its
peak.
"""

from __future__ import annotations

__all__ = ["TABLE", "Line"]

_V100 = (
    "NVIDIA V100 datasheet 1165301 r5, https://images.nvidia.com/content/technologies/volta/pdf/"
    "volta-v100-datasheet-update-us-1165301-r5.pdf"
)
_T4 = (
    "NVIDIA T4 datasheet 951643, https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/"
    "tesla-t4/t4-tensor-core-datasheet-951643.pdf"
)
_A100 = (
    "NVIDIA A100 datasheet 2188504 (May 2022), https://www.nvidia.com/content/dam/en-zz/Solutions/"
    "Data-Center/a100/pdf/nvidia-a100-datasheet-nvidia-us-2188504-web.pdf"
)
_A800 = (
    "NVIDIA A800 40GB Active datasheet 2819988 (Oct 2023), 623.8 sparse, "
    "https://www.nvidia.com/content/dam/en-zz/Solutions/design-visualization/a800/"
    "proviz-a800-40gb-datasheet-nvidia-2819988-r5-web.pdf"
)
_A10 = (
    "NVIDIA A10 datasheet, "
    "https://www.nvidia.com/content/dam/en-zz/Solutions/Data-Center/a10/pdf/a10-datasheet.pdf"
)
_A10G = (
    "NVIDIA A10G datasheet of AWS (17 Feb 2022), https://d1.awsstatic.com/product-marketing/ec2/"
    "NVIDIA_AWS_A10G_DataSheet_FINAL_02_17_2022.pdf"
)
_A40 = (
    "NVIDIA A40 datasheet, "
    "https://images.nvidia.com/content/Solutions/data-center/a40/nvidia-a40-datasheet.pdf"
)
_L40 = (
    "NVIDIA L40 datasheet 2436245 (Nov 2022), https://www.nvidia.com/content/dam/en-zz/Solutions/"
    "design-visualization/support-guide/NVIDIA-L40-Datasheet-January-2023.pdf"
)
_L40S = (
    "NVIDIA L40S datasheet 2841316 (Aug 2023), as on https://www.nvidia.com/en-us/data-center/l40s/"
)
_GA102 = (
    "NVIDIA Ampere GA102 GPU Architecture v2, "
    "https://www.nvidia.com/content/PDF/nvidia-ampere-ga-102-gpu-architecture-whitepaper-v2.pdf"
)
_ADA = (
    "NVIDIA Ada GPU Architecture v2.1, Appendix A, https://images.nvidia.com/aem-dam/Solutions/"
    "Data-Center/l4/nvidia-ada-gpu-architecture-whitepaper-v2.1.pdf"
)
_BLACKWELL_RTX = (
    "NVIDIA RTX Blackwell GPU Architecture v1.1, https://images.nvidia.com/aem-dam/Solutions/"
    "geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf"
)
_BLACKWELL_PRO = (
    "NVIDIA RTX Blackwell PRO GPU Architecture v1.1, Table 4, "
    "https://www.nvidia.com/content/dam/en-zz/Solutions/design-visualization/"
    "quadro-product-literature/pdf/NVIDIA-RTX-Blackwell-PRO-GPU-Architecture-v1_1.pdf"
)
_RTX = "https://www.nvidia.com/en-us/products/workstations"
_MAX_Q = (
    "NVIDIA RTX PRO 6000 Max-Q datasheet 3519233 (Apr 2025): 3511 in sparse FP4, of which dense "
    "16-bit is an eighth"
)
_HOPPER = (
    "NVIDIA H100 Tensor Core GPU Architecture v1.04, Tables 1 and 3, https://nvdam.widen.net/s/"
    "95bdhpsgrs/nvidia_h100_tensor_core_gpu_architecture_whitepaper_v1.03"
)
_H100 = "https://www.nvidia.com/en-us/data-center/h100/, halved from sparse"
_H200 = "https://www.nvidia.com/en-us/data-center/h200/, halved from sparse"
_GH200 = "https://www.nvidia.com/en-us/data-center/grace-hopper-superchip/, halved from sparse"
_HGX = "https://www.nvidia.com/en-us/data-center/hgx/, one of eight GPUs, halved from sparse"
_NVL72 = "NVL72, one of 72 GPUs, halved from sparse"
_LLM_PROF = "https://github.com/citsjtu2020/LLM-Prof/blob/main/hardware_spec.md"
_CHINA = f"no public datasheet: verl/utils/flops_counter.py of volcengine/verl, and {_LLM_PROF}"
_AMD = "https://www.amd.com/en/products/accelerators/instinct"
_AMD_DOCS = "https://www.amd.com/content/dam/amd/en/documents/instinct-tech-docs"
_TPU = "https://docs.cloud.google.com/tpu/docs"

Line = tuple[tuple[str, ...], dict[str, float], str]
"""Names without "NVIDIA ", TFLOP/s by precision, source."""


def _rates(
    f64: float | None = None,
    f32: float | None = None,
    tf32: float | None = None,
    b16: float | None = None,
    f16: float | None = None,
    f8: float | None = None,
) -> dict[str, float]:
    given = {
        "float64": f64, "float32": f32, "tf32": tf32,
        "bfloat16": b16, "float16": f16, "float8": f8,
    }  # fmt: skip
    return {dtype: tera for dtype, tera in given.items() if tera is not None}


def _by_clock(name: str, sms: int, ghz: float, *, halved: bool, f8: bool) -> Line:
    """A card whose tensor rates no document that we know lists, from what NVIDIA does publish.

    RTX cards since Ampere do as much per multiprocessor and clock as the listed ones next to them.

    Args:
        name: without "NVIDIA ".
        sms: multiprocessors.
        ghz: boost clock.
        halved: whether accumulation in float32 halves the tensor rate: on GeForce cards.
        f8: whether there are FP8 tensor cores: since Ada.
    """
    f32 = sms * ghz * 256 / 1e3
    tf32 = f32 if halved else 2 * f32
    tera = [round(x, 1) for x in (f32, tf32, 2 * tf32, 2 * tf32, 4 * tf32)]
    source = f"arithmetic: {sms} multiprocessors at a boost clock of {ghz} GHz"
    return (name,), _rates(None, *(tera if f8 else tera[:-1])), source


def _apple(chip: str, cores: tuple[int, ...], tera: float, source: str) -> list[Line]:
    """Return a line for each version of a chip, by its number of GPU cores.

    The published figure is that of the last one; the others have a share of it.

    The cores do as much in float16 as in float32, and have no bfloat16 in the first generation
    (measured by https://github.com/philipturner/metal-benchmarks).
    """
    full = cores[-1]
    return [
        (
            (f"Apple {chip} {n}-core GPU",),
            _rates(f32=round(tera * n / full, 3), f16=round(tera * n / full, 3)),
            f"{source}, {tera} with {full} cores",
        )
        for n in cores
    ]


# fmt: off
TABLE: tuple[Line, ...] = (
    # NVIDIA, data centre                                f64    f32    tf32    bf16    fp16   fp8
    (("Tesla V100-PCIE-16GB", "Tesla V100-PCIE-32GB"),
     _rates(7.0, 14.0, None, None, 112.0), _V100),
    (("Tesla V100-SXM2-16GB", "Tesla V100-SXM2-32GB"),
     _rates(7.8, 15.7, None, None, 125.0), _V100),
    (("Tesla V100S-PCIE-32GB",), _rates(8.2, 16.4, None, None, 130.0), _V100),
    (("Tesla T4",), _rates(None, 8.1, None, None, 65.0), _T4),
    (("A100-SXM4-40GB", "A100-SXM4-80GB", "A100-PCIE-40GB", "A100 80GB PCIe"),
     _rates(19.5, 19.5, 156.0, 312.0, 312.0), _A100),
    (("A800-SXM4-80GB", "A800 80GB PCIe"), _rates(b16=312.0, f16=312.0), _CHINA),
    # float64 is left out: the datasheet gives 9.7, without tensor cores
    (("A800 40GB Active",), _rates(None, 19.5, None, 311.9, 311.9), _A800),
    (("A30",), _rates(10.3, 10.3, 82.0, 165.0, 165.0),
     "https://www.nvidia.com/en-us/data-center/products/a30-gpu/"),
    (("A10",), _rates(None, 31.2, 62.5, 125.0, 125.0), _A10),
    (("A10G",), _rates(None, 35.0, 35.0, 70.0, 70.0), _A10G),
    (("A40",), _rates(None, 37.4, 74.8, 149.7, 149.7), _A40),
    (("L4",), _rates(None, 30.3, 60.0, 121.0, 121.0, 242.5),
     "https://www.nvidia.com/en-us/data-center/l4/, halved from sparse"),
    # Both have the chip of an RTX 6000 Ada, but the L40's tensor cores are held to half the rate
    (("L40",), _rates(None, 90.5, 90.5, 181.05, 181.05, 362.0), _L40),
    (("L40S",), _rates(None, 91.6, 183.0, 362.05, 362.05, 733.0), _L40S),
    (("H100 80GB HBM3",), _rates(66.9, 66.9, 494.7, 989.4, 989.4, 1978.9), _HOPPER),
    (("H100 PCIe",), _rates(51.2, 51.2, 378.0, 756.0, 756.0, 1513.0), _HOPPER),
    (("H100 NVL",), _rates(60.0, 60.0, 417.5, 835.5, 835.5, 1670.5), _H100),
    (("H200",), _rates(67.0, 67.0, 494.5, 989.5, 989.5, 1979.0), _H200),
    # The datasheet of July 2024 still gave the H200 NVL the SXM's rates
    (("H200 NVL",), _rates(60.0, 60.0, 417.5, 835.5, 835.5, 1670.5), _H200),
    (("GH200 480GB", "GH200 120GB", "GH200 144G HBM3e"),
     _rates(67.0, 67.0, 494.5, 989.5, 989.5, 1979.0), _GH200),
    (("H20",), _rates(b16=148.0, f16=148.0), _CHINA),
    (("H20-3e",), _rates(b16=148.0, f16=148.0),
     f"no public datasheet: {_LLM_PROF}, as the H20 of 141 GB"),
    (("H800",), _rates(b16=989.0, f16=989.0), _CHINA),
    (("B200",), _rates(37.0, 75.0, 1125.0, 2250.0, 2250.0, 4500.0), _HGX),
    (("B300 SXM6 AC",), _rates(1.25, 75.0, 1125.0, 2250.0, 2250.0, 4500.0), _HGX),
    # NVIDIA's own benchmarks (NVIDIA/exemplar-performance) divide by 2450 on GB200 and GB300
    (("GB200",), _rates(40.0, 80.0, 1250.0, 2500.0, 2500.0, 5000.0),
     f"https://www.nvidia.com/en-us/data-center/gb200-nvl72/: {_NVL72}"),
    (("GB300",), _rates(None, None, 1250.0, 2500.0, 2500.0, 5000.0),
     f"https://www.nvidia.com/en-us/data-center/gb300-nvl72/: {_NVL72}"),
    # NVIDIA, workstation: the 16-bit rate is full with float32 accumulation
    (("RTX A4000",), _rates(None, 19.2, 38.3, 76.7, 76.7),
     f"{_RTX}/rtx-a4000/: 153.4 in sparse FP16, and TF32 half of it"),
    (("RTX A5000",), _rates(None, 27.8, 55.5, 111.1, 111.1),
     f"{_RTX}/rtx-a5000/: 222.2 in sparse FP16, and TF32 half of it"),
    (("RTX A6000",), _rates(None, 38.7, 77.4, 154.8, 154.8), f"{_GA102}, Table 3"),
    (("RTX 6000 Ada Generation",), _rates(None, 91.1, 182.1, 364.2, 364.2, 728.5), _BLACKWELL_PRO),
    (("RTX PRO 6000 Blackwell Workstation Edition",),
     _rates(None, 126.0, 251.9, 503.8, 503.8, 1007.6), _BLACKWELL_PRO),
    (("RTX PRO 6000 Blackwell Max-Q Workstation Edition",),
     _rates(None, 110.0, 219.4, 438.9, 438.9, 877.8), _MAX_Q),
    _by_clock("RTX 5000 Ada Generation", 100, 2.55, halved=False, f8=True),
    _by_clock("RTX 4500 Ada Generation", 60, 2.58, halved=False, f8=True),
    _by_clock("RTX 4000 Ada Generation", 48, 2.175, halved=False, f8=True),
    # By the clock of product brief SP-12355-001 v02; the product page gives 234 in TF32
    _by_clock("RTX PRO 6000 Blackwell Server Edition", 188, 2.43, halved=False, f8=True),
    # NVIDIA GeForce: half the 16-bit rate with float32 accumulation
    _by_clock("GeForce RTX 3060", 28, 1.777, halved=True, f8=False),
    _by_clock("GeForce RTX 3060 Ti", 38, 1.665, halved=True, f8=False),
    (("GeForce RTX 3070",), _rates(None, 20.3, 20.3, 40.6, 40.6), _GA102),
    _by_clock("GeForce RTX 3070 Ti", 48, 1.77, halved=True, f8=False),
    (("GeForce RTX 3080 Ti",), _rates(None, 34.1, 34.1, 68.2, 68.2), _ADA),
    (("GeForce RTX 3090",), _rates(None, 35.6, 35.6, 71.2, 71.2), f"{_BLACKWELL_RTX}, Table 3"),
    (("GeForce RTX 3090 Ti",), _rates(None, 40.0, 40.0, 80.0, 80.0), _ADA),
    _by_clock("GeForce RTX 4060", 24, 2.46, halved=True, f8=True),
    _by_clock("GeForce RTX 4060 Ti", 34, 2.535, halved=True, f8=True),
    _by_clock("GeForce RTX 4070", 46, 2.475, halved=True, f8=True),
    _by_clock("GeForce RTX 4070 SUPER", 56, 2.475, halved=True, f8=True),
    _by_clock("GeForce RTX 4070 Ti", 60, 2.61, halved=True, f8=True),
    _by_clock("GeForce RTX 4070 Ti SUPER", 66, 2.61, halved=True, f8=True),
    (("GeForce RTX 4080",), _rates(None, 48.7, 48.7, 97.5, 97.5, 194.9), _ADA),
    (("GeForce RTX 4080 SUPER",), _rates(None, 52.2, 52.2, 104.4, 104.4, 208.8), _ADA),
    (("GeForce RTX 4090",), _rates(None, 82.6, 82.6, 165.2, 165.2, 330.3), f"{_ADA}, Table 2"),
    _by_clock("GeForce RTX 5060", 30, 2.497, halved=True, f8=True),
    _by_clock("GeForce RTX 5060 Ti", 36, 2.572, halved=True, f8=True),
    (("GeForce RTX 5070",), _rates(None, 30.9, 30.9, 61.7, 61.7, 123.5),
     f"{_BLACKWELL_RTX}, Table 6"),
    _by_clock("GeForce RTX 5070 Ti", 70, 2.452, halved=True, f8=True),
    _by_clock("GeForce RTX 5080", 84, 2.617, halved=True, f8=True),
    (("GeForce RTX 5090",), _rates(None, 104.8, 104.8, 209.5, 209.5, 419.0),
     f"{_BLACKWELL_RTX}, Table 3"),
    # Apple, chips with a published figure; those from its events as the press reported them
    *_apple("M1", (7, 8), 2.6, "https://www.apple.com/newsroom/2020/11/apple-unleashes-m1/"),
    *_apple("M1 Pro", (14, 16), 5.2, "Apple's event of 18 October 2021"),
    *_apple("M1 Max", (24, 32), 10.4, "Apple's event of 18 October 2021"),
    *_apple("M1 Ultra", (48, 64), 20.8, "arithmetic: two M1 Max"),
    # AMD, matrix cores; an MI250X is two devices. "OAM" is or is not in a name by ROCm's version.
    (("AMD Instinct MI210",), _rates(45.3, 45.3, None, 181.0, 181.0),
     f"AMD Instinct MI210 brochure, {_AMD}/mi200/mi210.html"),
    (("AMD Instinct MI250X",), _rates(47.85, 47.85, None, 191.5, 191.5),
     f"{_AMD}/mi200/mi250x.html, one of two dies"),
    (("AMD Instinct MI300A",), _rates(122.6, 122.6, 490.3, 980.6, 980.6, 1961.2),
     f"{_AMD_DOCS}/data-sheets/amd-instinct-mi300a-data-sheet.pdf"),
    (("AMD Instinct MI300X", "AMD Instinct MI300X OAM"),
     _rates(163.4, 163.4, 653.7, 1307.4, 1307.4, 2614.9),
     f"{_AMD_DOCS}/data-sheets/amd-instinct-mi300x-data-sheet.pdf"),
    (("AMD Instinct MI325X", "AMD Instinct MI325X OAM"),
     _rates(163.4, 163.4, 653.7, 1307.4, 1307.4, 2614.9), f"{_AMD}/mi300/mi325x.html"),
    (("AMD Instinct MI350X", "AMD Instinct MI350X OAM"),
     _rates(72.1, 144.2, None, 2306.9, 2306.9, 4613.7),
     f"{_AMD_DOCS}/product-briefs/amd-instinct-mi350x-gpu-brochure.pdf"),
    (("AMD Instinct MI355X", "AMD Instinct MI355X OAM"),
     _rates(78.6, 157.3, None, 2516.6, 2516.6, 5033.2),
     f"{_AMD_DOCS}/product-briefs/amd-instinct-mi355x-gpu-brochure.pdf"),
    # Google, by accelerator type. The two cores of a chip are one device, but not in v2, v3 and 7x.
    (("v2",), _rates(b16=22.5), "https://arxiv.org/abs/1907.10701, one of a chip's two cores"),
    (("v3",), _rates(b16=61.5), f"{_TPU}/v3, one of a chip's two cores"),
    (("v4",), _rates(b16=275.0), f"{_TPU}/v4"),
    (("v5litepod",), _rates(b16=197.0), f"{_TPU}/v5e"),
    (("v5p",), _rates(b16=459.0), f"{_TPU}/v5p"),
    (("v6e",), _rates(b16=918.0), f"{_TPU}/v6e"),
    (("tpu7x",), _rates(b16=1153.5, f8=2307.0), f"{_TPU}/tpu7x, one of a chip's two cores"),
)
# fmt: on
