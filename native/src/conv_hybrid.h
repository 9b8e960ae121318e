// Convolution from a stream of items. An item is L inputs of one tap for L outputs: one aligned load per pixel, then per slot an
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

#if defined(__AVX512F__)
// Keeps a loaded vector in its register: a permutation that reads memory is slower than the load it saves.
inline void pin(Vec &x) { __asm__("" : "+v"(x.v)); }
#else
inline void pin(Vec &) {}
#endif

// A multiply-add takes four cycles and two start in each: few pixels need several sums each to keep the unit busy.
constexpr int sums_per_pixel(int pixels, int slots) { return pixels <= 3 ? slots : 1; }

template <int R, int P, int S>
inline void hybrid_tile(const Conv<float> &conv, const Stream<float> &stream, Place place) {
    constexpr int K = sums_per_pixel(R * P, S);
    const int group = place.channel / L;
    Vec sums[R * P * K];
    const Vec bias = load(conv.bias + place.channel);
    BILLHOOK_UNROLL for (int i = 0; i < R * P * K; ++i) sums[i] = i % K ? zero() : bias;
    const float *base = conv.in + place.y * conv.in_row + place.x * conv.in_pixel;
    const int64_t pixel = conv.in_pixel, row = conv.in_row;
    const int from = stream.first[group], to = stream.first[group + 1];
    const float *values = reinterpret_cast<const float *>(stream.values) + static_cast<int64_t>(from) * S * L;
    const uint8_t *index = stream.index + static_cast<int64_t>(from) * S * L;
    for (int item = from; item < to; ++item, values += S * L, index += S * L) {
        const float *window = base + stream.offsets[item];
        Vec weight[S];
        Index which[S];
        BILLHOOK_UNROLL for (int s = 0; s < S; ++s) {
            weight[s] = load(values + s * L);
            which[s] = load_index(index + s * L);
        }
        BILLHOOK_UNROLL for (int r = 0; r < R; ++r) {
            BILLHOOK_UNROLL for (int p = 0; p < P; ++p) {
                Vec x = load(window + r * row + p * pixel);
                pin(x);
                BILLHOOK_UNROLL for (int s = 0; s < S; ++s) {
                    Vec &sum = sums[(r * P + p) * K + s % K];
                    sum = fma(weight[s], permute(x, which[s]), sum);
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

#if defined(__AVX512BF16__)
// Two inputs per slot and output: 16 channels are 32 bytes, held twice in a register; vpermw picks 32 words of them.
template <int R, int P, int S>
inline void hybrid_tile(const Conv<bf16> &conv, const Stream<bf16> &stream, Place place) {
    constexpr int Q = R * P > 8 ? 7 : R * P;  // vdpbf16ps takes six cycles: several pixels per slot
    const int group = place.channel / L;
    constexpr int K = sums_per_pixel(R * P, S);
    Vec sums[R * P * K];
    const Vec bias = load(conv.bias + place.channel);
    BILLHOOK_UNROLL for (int i = 0; i < R * P * K; ++i) sums[i] = i % K ? zero() : bias;
    const bf16 *base = conv.in + place.y * conv.in_row + place.x * conv.in_pixel;
    const int64_t pixel = conv.in_pixel, row = conv.in_row;
    const int from = stream.first[group], to = stream.first[group + 1];
    const bf16 *values = reinterpret_cast<const bf16 *>(stream.values) + static_cast<int64_t>(from) * S * 2 * L;
    const uint8_t *index = stream.index + static_cast<int64_t>(from) * S * 2 * L;
    for (int item = from; item < to; ++item, values += S * 2 * L, index += S * 2 * L) {
        const bf16 *window = base + stream.offsets[item];
        __m512i which[S];
        __m512 weight[S];
        BILLHOOK_UNROLL for (int s = 0; s < S; ++s) {
            weight[s] = _mm512_loadu_ps(reinterpret_cast<const float *>(values + s * 2 * L));
            which[s] = _mm512_cvtepu8_epi16(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(index + s * 2 * L)));
        }
        BILLHOOK_UNROLL for (int q = 0; q < R * P; q += Q) {
            __m512i x[Q];
            BILLHOOK_UNROLL for (int i = 0; i < Q; ++i) {
                if (q + i >= R * P) break;
                const bf16 *p = window + ((q + i) / P) * row + ((q + i) % P) * pixel;
                x[i] = _mm512_broadcast_i64x4(_mm256_loadu_si256(reinterpret_cast<const __m256i *>(p)));
            }
            BILLHOOK_UNROLL for (int s = 0; s < S; ++s) {
                BILLHOOK_UNROLL for (int i = 0; i < Q; ++i) {
                    if (q + i >= R * P) break;
                    const __m512i chosen = _mm512_permutexvar_epi16(which[s], x[i]);
                    Vec &sum = sums[(q + i) * K + s % K];
                    sum.v = _mm512_dpbf16_ps(sum.v, (__m512bh)chosen, (__m512bh)weight[s]);
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
constexpr bool HYBRID_BF16 = true;
#else
constexpr bool HYBRID_BF16 = false;
#endif

// Registers: sums, S weights and S indices, an input and what was chosen of it.
#if defined(__AVX2__) || defined(__aarch64__)
constexpr int hybrid_widest(int slots) { return L == 16 ? 16 : slots == 4 ? 6 : slots == 2 ? 8 : 12; }
#else
// A vector is two registers, and every permutation goes through memory: more pixels would only make more code.
constexpr int hybrid_widest(int) { return 4; }
#endif

template <int S, class T>
void hybrid_share(const Context &context, const bh_step &step, int part, int parts) {
    const Conv<T> conv(context, step);
    const Stream<T> stream(context, step);
    for_tiles(step, part, parts, L, hybrid_widest(S), [&](int rows, int pixels, Place place) {
#define BILLHOOK_CASE(R, P)                            \
    case (R)*100 + (P):                                \
        if constexpr ((R) * (P) <= hybrid_widest(S)) { \
            hybrid_tile<R, P, S>(conv, stream, place); \
            return;                                    \
        }                                              \
        break
        switch (rows * 100 + pixels) {
            BILLHOOK_CASE(1, 1);
            BILLHOOK_CASE(1, 2);
            BILLHOOK_CASE(1, 3);
            BILLHOOK_CASE(1, 4);
            BILLHOOK_CASE(1, 5);
            BILLHOOK_CASE(1, 6);
            BILLHOOK_CASE(1, 7);
            BILLHOOK_CASE(1, 8);
#if defined(__AVX512F__)
            BILLHOOK_CASE(1, 9);
            BILLHOOK_CASE(1, 10);
            BILLHOOK_CASE(1, 11);
            BILLHOOK_CASE(1, 12);
            BILLHOOK_CASE(1, 13);
            BILLHOOK_CASE(1, 14);
            BILLHOOK_CASE(1, 15);
            BILLHOOK_CASE(1, 16);
            BILLHOOK_CASE(2, 7);
            BILLHOOK_CASE(2, 8);
            BILLHOOK_CASE(4, 4);
#endif
            BILLHOOK_CASE(2, 4);
            BILLHOOK_CASE(4, 2);
        }
#undef BILLHOOK_CASE
        // No kernel of this shape: row by row, in pieces.
        for (int r = 0; r < rows; ++r)
            for (int p = 0; p < pixels;) {
                const int left = pixels - p;
                const Place here{place.y + r, place.x + p, place.channel};
                if constexpr (hybrid_widest(S) >= 8) {
                    if (left >= 8) {
                        hybrid_tile<1, 8, S>(conv, stream, here);
                        p += 8;
                        continue;
                    }
                }
                if (left >= 4) {
                    hybrid_tile<1, 4, S>(conv, stream, here);
                    p += 4;
                } else {
                    hybrid_tile<1, 1, S>(conv, stream, here);
                    p += 1;
                }
            }
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
