// The table of kernels of one instruction set. Included by the kernels_*.cpp, each with BILLHOOK_ISA and flags of its own.
#ifndef BILLHOOK_KERNELS_H
#define BILLHOOK_KERNELS_H

#include "conv_dense.h"
#include "conv_hybrid.h"
#include "depthwise.h"
#include "elementwise.h"
#include "move.h"
#include "pool.h"

namespace billhook {
namespace BILLHOOK_ISA {

template <class T>
constexpr void fill(Kernels &kernels, int type) {
    kernels.of[BH_LOAD][type] = load_image<T>;
    kernels.of[BH_STORE][type] = store_outputs<T>;
    kernels.of[BH_DENSE][type] = conv_dense<T>;
    kernels.of[BH_HYBRID][type] = conv_hybrid<T>;
    kernels.of[BH_DEPTHWISE][type] = depthwise<T>;
    kernels.of[BH_MAXPOOL][type] = max_pool<T>;
    kernels.of[BH_AVGPOOL][type] = average_pool<T>;
    kernels.of[BH_GLOBAL][type] = global_pool<T>;
    kernels.of[BH_ADD][type] = add_maps<T>;
    kernels.of[BH_MULTIPLY][type] = multiply_maps<T>;
    kernels.of[BH_SCALE][type] = scale_map<T>;
    kernels.of[BH_UNARY][type] = unary_map<T>;
    kernels.of[BH_GATHER][type] = gather_channels<T>;
    kernels.of[BH_COPY][type] = copy_channels<T>;
    kernels.of[BH_FLATTEN][type] = flatten_map<T>;
    kernels.of[BH_SOFTMAX][type] = softmax_map<T>;
}

// Multiply-adds in registers, with as many sums as hide the latency; returns how many were done.
// `sink` is volatile so that nothing is optimised away.
inline double multiply_adds(int type, int rounds, volatile float &sink) {
    constexpr int sums = L == 16 ? 16 : 10;
    Vec sum[sums];
    for (int i = 0; i < sums; ++i) sum[i] = set1(static_cast<float>(i));
    const float small = 0.25f + sink * 0.0f;
    int per_lane = 1;
#if defined(__AVX512BF16__)
    if (type == BH_BF16) {
        per_lane = 2;
        const __m512bh a = _mm512_cvtne2ps_pbh(_mm512_set1_ps(small), _mm512_set1_ps(small));
        for (int n = 0; n < rounds; ++n) BILLHOOK_UNROLL for (int i = 0; i < sums; ++i) sum[i].v = _mm512_dpbf16_ps(sum[i].v, a, a);
    } else
#else
    (void)type;
#endif
    {
        const Vec a = set1(small), b = set1(small + 0.5f);
        for (int n = 0; n < rounds; ++n) BILLHOOK_UNROLL for (int i = 0; i < sums; ++i) sum[i] = fma(sum[i], a, b);
    }
    float values[L];
    for (int i = 0; i < sums; ++i) {
        store(values, sum[i]);
        sink = sink + values[0];
    }
    sink = 0.0f;
    return static_cast<double>(rounds) * sums * L * per_lane;
}

}  // namespace BILLHOOK_ISA
}  // namespace billhook

#endif
