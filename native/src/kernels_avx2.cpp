#define BILLHOOK_ISA avx2
#include "kernels.h"

namespace billhook {

// Made by the compiler: nothing of this file runs before the CPU was asked whether it can.
static constexpr Kernels make() {
    Kernels kernels = {};
    kernels.lanes = avx2::L;
    kernels.multiply_adds = avx2::multiply_adds;
    avx2::fill<float>(kernels, BH_F32);
    return kernels;
}
static constexpr Kernels TABLE = make();

const Kernels &avx2_kernels() { return TABLE; }

}  // namespace billhook
