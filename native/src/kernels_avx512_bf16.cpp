#define BILLHOOK_ISA avx512_bf16
#include "kernels.h"

namespace billhook {

// Made by the compiler: nothing of this file runs before the CPU was asked whether it can.
static constexpr Kernels make() {
    Kernels kernels = {};
    kernels.lanes = avx512_bf16::L;
    kernels.multiply_adds = avx512_bf16::multiply_adds;
    avx512_bf16::fill<avx512_bf16::bf16>(kernels, BH_BF16);
    return kernels;
}
static constexpr Kernels TABLE = make();

const Kernels &avx512_bf16_kernels() { return TABLE; }

}  // namespace billhook
