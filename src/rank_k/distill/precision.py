"""Which floating-point format training uses on this machine."""

from __future__ import annotations

from rank_k.optional_deps import load


def bf16_is_fast() -> bool:
    """Return whether this machine computes in bfloat16 natively.

    A GPU says so itself. Of CPUs, those with instructions for it do (AVX512-BF16, AMX, Arm's BF16); the others
    emulate it: on one with AVX2 only, a matrix product takes 48 times as long in bfloat16 as in float32. Versions of
    torch that cannot list the CPU's instructions count as not fast, since float32 is never wrong.
    """
    torch = load("torch")
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    list_instructions = getattr(torch.cpu, "get_capabilities", dict)
    return any("bf16" in name and supported is True for name, supported in list_instructions().items())
