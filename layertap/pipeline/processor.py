"""The kind of processor that computes: another kind may give other last bits."""

from __future__ import annotations

import os
import platform
from typing import Any

import torch

# The instruction sets between which torch's libraries (oneDNN, MKL, ATen) choose their kernels.
_CHOSEN_BY = (
    *("avx2", "fma3", "avx_vnni", "avx512_f", "avx512_vnni", "avx512_bf16", "avx512_fp16"),
    *("amx_tile", "amx_int8", "amx_bf16", "amx_fp16", "neon", "bf16", "i8mm", "sve", "sve2", "sme"),
)

# What makes these libraries take kernels of another instruction set than the processor's best.
_OVERRIDES = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS", "MKL_CBWR", "MKL_DEBUG_CPU_TYPE")


def processor(device: torch.device) -> dict[str, Any]:
    """The known facts about the processor of `device`, as plain data; equal facts mean the same kernels.

    For a CPU: torch's capability (`AVX2`, `AVX512` ...), the vendor, the instruction sets by which kernels are chosen,
    and the environment variables that limit them. For a CUDA device: its name, its compute capability, the versions of
    CUDA and cuDNN, and which fused attention kernels are enabled.
    """
    return _gpu(device) if device.type == "cuda" else {**_cpu(), "device": device.type}


def _cpu() -> dict[str, Any]:
    found = torch.cpu.get_capabilities()
    name = str(found.get("cpu_name") or platform.processor() or platform.machine())
    return {
        "capability": torch.backends.cpu.get_cpu_capability(),
        "vendor": name.split()[0].removesuffix("(R)"),
        "architecture": platform.machine(),
        "instructions": [name for name in _CHOSEN_BY if found.get(name)],
        "limits": {name: os.environ[name] for name in _OVERRIDES if name in os.environ},
    }


def _gpu(device: torch.device) -> dict[str, Any]:
    cuda: Any = torch.backends.cuda
    cudnn: Any = torch.backends.cudnn
    attention = {
        "flash": cuda.flash_sdp_enabled(),
        "memory_efficient": cuda.mem_efficient_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
    }
    return {
        "name": torch.cuda.get_device_name(device),
        "capability": list(torch.cuda.get_device_capability(device)),
        "cuda": torch.version.cuda,
        "cudnn": cudnn.version(),
        "attention": [name for name, enabled in attention.items() if enabled],
    }
