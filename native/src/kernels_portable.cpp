#define BILLHOOK_ISA portable
#include "kernels.h"

namespace billhook {

// Made by the compiler: nothing of this file runs before the CPU was asked whether it can.
static constexpr Kernels make() {
    Kernels kernels = {};
    kernels.lanes = portable::L;
    kernels.multiply_adds = portable::multiply_adds;
    portable::fill<float>(kernels, BH_F32);
    return kernels;
}
static constexpr Kernels TABLE = make();

const Kernels &portable_kernels() { return TABLE; }

}  // namespace billhook
