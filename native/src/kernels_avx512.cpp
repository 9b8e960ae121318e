#define BILLHOOK_ISA avx512
#include "kernels.h"

namespace billhook {

// Made by the compiler: nothing of this file runs before the CPU was asked whether it can.
static constexpr Kernels make() {
    Kernels kernels = {};
    kernels.lanes = avx512::L;
    kernels.multiply_adds = avx512::multiply_adds;
    avx512::fill<float>(kernels, BH_F32);
    return kernels;
}
static constexpr Kernels TABLE = make();

const Kernels &avx512_kernels() { return TABLE; }

}  // namespace billhook
