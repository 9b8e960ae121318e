// Convolution from a stream of items. An item is L inputs (bf16: 2 L) of one tap for L outputs: one aligned load per pixel, then per slot an
// in-register permutation, which gives every output its own input, and a multiply-add. Zeros are neither stored nor multiplied,
// and no output lane is ever idle. What limits it: permutations and multiply-adds share ports (two thirds of the peak).
#ifndef BILLHOOK_CONV_HYBRID_H
#define BILLHOOK_CONV_HYBRID_H

#include "conv_tile.h"

namespace billhook {
namespace BILLHOOK_ISA {

// The stream of one step.
template <class T>
struct Stream {
    const unsigned char *values;
    const uint8_t *index;
    const int32_t *offsets, *first;

    Stream(const Context &context, const bh_step &step)
        : values(context.weights + step.values),
          index(context.weights + step.index),
          offsets(reinterpret_cast<const int32_t *>(context.weights + step.offsets)),
          first(reinterpret_cast<const int32_t *>(context.weights + step.first)) {}
};

// What an item's inputs, a slot's positions and a slot's weights are in registers, and what is done with them.
template <class T>
struct Cell;

template <>
struct Cell<float> {
    static constexpr int PER_SLOT = L;  // weights, and positions, of one slot
    using Weight = Vec;
    using Input = Vec;
    using Which = Index;
    static Weight weight(const float *p) { return load(p); }
    static Which which(const uint8_t *p) { return load_index(p); }
    static Input input(const float *p) {
        Vec x = load(p);
#if defined(__AVX512F__)
        // Stays in its register: a permutation that reads memory is slower than the load it saves.
        __asm__("" : "+v"(x.v));
#endif
        return x;
    }
    static Vec multiply(Weight w, Input x, Which i, Vec sum) { return fma(w, permute(x, i), sum); }
};

#if defined(__AVX512BF16__)
// Two inputs per slot and output, of 32 that one load brings. (To load 16 and hold them twice costs a shuffle per load.)
template <>
struct Cell<bf16> {
    static constexpr int PER_SLOT = 2 * L;
    using Weight = __m512;
    using Input = __m512i;
    using Which = __m512i;
    static Weight weight(const bf16 *p) { return _mm512_loadu_ps(reinterpret_cast<const float *>(p)); }
    static Which which(const uint8_t *p) {
        return _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
    }
    static Input input(const bf16 *p) {
        __m512i x = _mm512_loadu_si512(p);
        __asm__("" : "+v"(x));
        return x;
    }
    static Vec multiply(Weight w, Input x, Which i, Vec sum) {
        return {_mm512_dpbf16_ps(sum.v, (__m512bh)_mm512_permutexvar_epi16(i, x), (__m512bh)w)};
    }
};
#endif

// A multiply-add takes four to six cycles and one or two start in each: few pixels need several sums each to keep the unit busy.
constexpr int sums_per_pixel(int pixels, int slots) { return pixels <= 3 ? slots : 1; }

template <int R, int P, int S, class T>
__attribute__((always_inline)) inline void hybrid_tile(const Conv<T> &conv, const Stream<T> &stream, Place place) {
    using C = Cell<T>;
    constexpr int K = sums_per_pixel(R * P, S), ITEM = S * C::PER_SLOT;
    const int group = place.channel / L;
    Vec sums[R * P * K];
    const Vec bias = load(conv.bias + place.channel);
    BILLHOOK_UNROLL for (int i = 0; i < R * P * K; ++i) sums[i] = i % K ? zero() : bias;
    const T *base = conv.in + place.y * conv.in_row + place.x * conv.in_pixel;
    const int64_t pixel = conv.in_pixel, row = conv.in_row;
    const int from = stream.first[group], to = stream.first[group + 1];
    const T *values = reinterpret_cast<const T *>(stream.values) + static_cast<int64_t>(from) * ITEM;
    const uint8_t *index = stream.index + static_cast<int64_t>(from) * ITEM;
    for (int item = from; item < to; ++item, values += ITEM, index += ITEM) {
        const T *window = base + stream.offsets[item];
        typename C::Weight weight[S];
        typename C::Which which[S];
        BILLHOOK_UNROLL for (int s = 0; s < S; ++s) {
            weight[s] = C::weight(values + s * C::PER_SLOT);
            which[s] = C::which(index + s * C::PER_SLOT);
        }
        BILLHOOK_UNROLL for (int r = 0; r < R; ++r) {
            BILLHOOK_UNROLL for (int p = 0; p < P; ++p) {
                const typename C::Input x = C::input(window + r * row + p * pixel);
                BILLHOOK_UNROLL for (int s = 0; s < S; ++s) {
                    Vec &sum = sums[(r * P + p) * K + s % K];
                    sum = C::multiply(weight[s], x, which[s], sum);
                }
            }
        }
    }
    Vec sum[R * P];
    BILLHOOK_UNROLL for (int i = 0; i < R * P; ++i) {
        sum[i] = sums[i * K];
        BILLHOOK_UNROLL for (int k = 1; k < K; ++k) sum[i] = add(sum[i], sums[i * K + k]);
    }
    emit<R, P, 1>(conv, place, sum);
}

// Registers: sums, S weights and S indices, an input and what was chosen of it.
#if defined(__AVX2__) || defined(__aarch64__)
constexpr int hybrid_widest(int slots) { return L == 16 ? 16 : slots == 4 ? 6 : slots == 2 ? 8 : 12; }
#else
// A vector is two registers, and every permutation goes through memory: more pixels would only make more code.
constexpr int hybrid_widest(int) { return 4; }
#endif

template <int S, int R, int P, class T>
__attribute__((always_inline)) inline void hybrid_run(Shape<R, P>, const Conv<T> &conv, const Stream<T> &stream, Place place) {
    hybrid_tile<R, P, S>(conv, stream, place);
}

template <int S, class T>
void hybrid_share(const Context &context, const bh_step &step, int part, int parts) {
    const Conv<T> conv(context, step);
    const Stream<T> stream(context, step);
    for_tiles(step, part, parts, L, hybrid_widest(S), [&](int rows, int pixels, Place place) __attribute__((always_inline)) {
        in_shape<hybrid_widest(S)>(rows, pixels, place, [&](auto shape, Place here) __attribute__((always_inline)) {
            hybrid_run<S>(shape, conv, stream, here);
        });
    });
}

template <class T>
void conv_hybrid(const Context &context, const bh_step &step, int part, int parts) {
    clear_halo<T>(context, step.out, share(step.out.height, part, parts));
    if (step.slots == 4)
        hybrid_share<4, T>(context, step, part, parts);
    else if (step.slots == 2)
        hybrid_share<2, T>(context, step, part, parts);
    else
        hybrid_share<1, T>(context, step, part, parts);
}

}  // namespace BILLHOOK_ISA
}  // namespace billhook

#endif
