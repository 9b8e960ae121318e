// What a kernel is: one family per file, compiled once per instruction set, in a namespace of its own.
#ifndef BILLHOOK_KERNEL_H
#define BILLHOOK_KERNEL_H

// The library shows these functions and nothing else.
#pragma GCC visibility push(default)
#include "billhook.h"
#pragma GCC visibility pop

namespace billhook {

// What a run hands to every step.
struct Context {
    const bh_header *header;
    unsigned char *arena;
    const unsigned char *weights;
    const void *image;  // of BH_LOAD, one image
    int image_type, layout;
    float *outputs;  // of BH_STORE
};

// Does the part-th of `parts` equal shares of a step. Shares may run at the same time; they write different elements.
// The share that writes a row of the output also clears the halo beside it; the first and last clear what lies above and below.
using Kernel = void (*)(const Context &, const bh_step &, int part, int parts);

// Kernels of one instruction set, by kind and by type of the activations; null where there is none.
struct Kernels {
    int lanes;
    Kernel of[BH_KINDS][2];
    // Does many multiply-adds of one type in registers and returns how many.
    double (*multiply_adds)(int type, int rounds, volatile float &sink);
};

const Kernels &portable_kernels();
#ifdef BILLHOOK_X86
const Kernels &avx2_kernels();
const Kernels &avx512_kernels();       // bf16: null
const Kernels &avx512_bf16_kernels();  // f32: null, as those of avx512 serve; no table where BILLHOOK_NO_BF16 is said
#endif

}  // namespace billhook

#endif
