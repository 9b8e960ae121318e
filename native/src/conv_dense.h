// Convolution with all weights: a tile of pixels times V vectors of outputs stays in registers, each input is spread over the lanes.
// Of 1 + V + P loads per V * P multiply-adds none crosses a line; the mark is 94 % of the peak.
#ifndef BILLHOOK_CONV_DENSE_H
#define BILLHOOK_CONV_DENSE_H

#include "conv_tile.h"

namespace billhook {
namespace BILLHOOK_ISA {

// Pixels by threes from bases of their own: an address is base + {0, 1, 2} * pixel + a constant, which one instruction can hold.
template <int R, int P, class T>
struct Pixels {
    static constexpr int B = (P + 2) / 3;
    const T *base[R * B];
    int64_t pixel;

    Pixels(const T *first, int64_t row, int64_t pixel_) : pixel(pixel_) {
        BILLHOOK_UNROLL for (int r = 0; r < R; ++r) {
            BILLHOOK_UNROLL for (int b = 0; b < B; ++b) base[r * B + b] = first + r * row + 3 * b * pixel_;
        }
    }
    const T *at(int r, int p) const { return base[r * B + p / 3] + (p % 3) * pixel; }
    void advance(int elements) {
        BILLHOOK_UNROLL for (int b = 0; b < R * B; ++b) base[b] += elements;
    }
};

// Where nothing lies between the pixels of a row, its taps are one run of inputs: a first layer of three channels has loops of
// kernel_x times 3 instead of 3.
struct Run {
    int taps, inputs;

    explicit Run(const bh_step &step) : taps(step.kernel_x), inputs(step.in.channels) {
        if (step.in.pixel == step.in.channels && step.dilation_x == 1) {
            inputs *= taps;
            taps = 1;
        }
    }
};

template <int R, int P, int V>
inline void dense_tile(const Conv<float> &conv, const unsigned char *weights, Place place) {
    const bh_step &step = conv.step;
    const Run run(step);
    const int inputs = run.inputs;
    Vec sum[R * P * V];
    BILLHOOK_UNROLL for (int v = 0; v < V; ++v) {
        const int channel = place.channel + v * L;
        const Vec bias = channel < step.out.padded ? load(conv.bias + channel) : zero();
        BILLHOOK_UNROLL for (int i = 0; i < R * P; ++i) sum[i * V + v] = bias;
    }
    const float *w = reinterpret_cast<const float *>(weights) +
                     static_cast<int64_t>(place.channel) * step.kernel_y * run.taps * inputs;
    const float *base = conv.in + place.y * conv.in_row + place.x * conv.in_pixel;
    for (int ky = 0; ky < step.kernel_y; ++ky) {
        for (int kx = 0; kx < run.taps; ++kx) {
            const float *tap = base + static_cast<int64_t>(ky) * step.dilation_y * step.in.row +
                               static_cast<int64_t>(kx) * step.dilation_x * step.in.pixel;
            Pixels<R, P, float> pixels(tap, conv.in_row, conv.in_pixel);
            const auto input = [&](int c) {
                Vec weight[V];
                BILLHOOK_UNROLL for (int v = 0; v < V; ++v) weight[v] = load(w + v * L);
                w += V * L;
                BILLHOOK_UNROLL for (int r = 0; r < R; ++r) {
                    BILLHOOK_UNROLL for (int p = 0; p < P; ++p) {
                        const Vec x = set1(pixels.at(r, p)[c]);
                        BILLHOOK_UNROLL for (int v = 0; v < V; ++v) {
                            Vec &s = sum[(r * P + p) * V + v];
                            s = fma(weight[v], x, s);
                        }
                    }
                }
            };
            int c = 0;
            for (; c + 4 <= inputs; c += 4) {
                input(0);
                input(1);
                input(2);
                input(3);
                pixels.advance(4);
            }
            for (; c < inputs; ++c) {
                input(0);
                pixels.advance(1);
            }
        }
    }
    emit<R, P, V>(conv, place, sum);
}

#if defined(__AVX512BF16__)
// Two inputs at a time. An odd last one meets a zero weight; the number behind it is there and finite.
template <int R, int P, int V>
inline void dense_tile(const Conv<bf16> &conv, const unsigned char *weights, Place place) {
    const bh_step &step = conv.step;
    const Run run(step);
    const int pairs = (run.inputs + 1) / 2;
    Vec sum[R * P * V];
    BILLHOOK_UNROLL for (int v = 0; v < V; ++v) {
        const int channel = place.channel + v * L;
        const Vec bias = channel < step.out.padded ? load(conv.bias + channel) : zero();
        BILLHOOK_UNROLL for (int i = 0; i < R * P; ++i) sum[i * V + v] = bias;
    }
    const bf16 *w = reinterpret_cast<const bf16 *>(weights) +
                    static_cast<int64_t>(place.channel) * step.kernel_y * run.taps * pairs * 2;
    const bf16 *base = conv.in + place.y * conv.in_row + place.x * conv.in_pixel;
    for (int ky = 0; ky < step.kernel_y; ++ky) {
        for (int kx = 0; kx < run.taps; ++kx) {
            const bf16 *tap = base + static_cast<int64_t>(ky) * step.dilation_y * step.in.row +
                              static_cast<int64_t>(kx) * step.dilation_x * step.in.pixel;
            Pixels<R, P, bf16> pixels(tap, conv.in_row, conv.in_pixel);
            const auto pair = [&](int c) {
                __m512 weight[V];
                BILLHOOK_UNROLL for (int v = 0; v < V; ++v) {
                    weight[v] = _mm512_loadu_ps(reinterpret_cast<const float *>(w + v * 2 * L));
                }
                w += V * 2 * L;
                BILLHOOK_UNROLL for (int r = 0; r < R; ++r) {
                    BILLHOOK_UNROLL for (int p = 0; p < P; ++p) {
                        float two;
                        std::memcpy(&two, pixels.at(r, p) + 2 * c, 4);
                        const __m512 x = _mm512_set1_ps(two);
                        BILLHOOK_UNROLL for (int v = 0; v < V; ++v) {
                            Vec &s = sum[(r * P + p) * V + v];
                            s.v = _mm512_dpbf16_ps(s.v, (__m512bh)x, (__m512bh)weight[v]);
                        }
                    }
                }
            };
            int c = 0;
            for (; c + 4 <= pairs; c += 4) {
                pair(0);
                pair(1);
                pair(2);
                pair(3);
                pixels.advance(8);
            }
            for (; c < pairs; ++c) {
                pair(0);
                pixels.advance(2);
            }
        }
    }
    emit<R, P, V>(conv, place, sum);
}
#endif

// Registers: sums, V weights, an input.
constexpr int dense_widest(int vectors) {
    return L == 16 ? (vectors == 4 ? 6 : vectors == 2 ? 14 : 16) : vectors == 4 ? 2 : vectors == 2 ? 6 : 8;
}

// A function of its own: compiled into the loop over tiles, its sums no longer stay in registers.
template <int V, int R, int P, class T>
__attribute__((noinline)) void dense_run(Shape<R, P>, const Conv<T> &conv, const unsigned char *weights, Place place) {
    dense_tile<R, P, V>(conv, weights, place);
}

template <int V, class T>
void dense_share(const Context &context, const bh_step &step, int part, int parts) {
    const Conv<T> conv(context, step);
    const unsigned char *weights = context.weights + step.values;
    for_tiles(step, part, parts, V * L, dense_widest(V), [&](int rows, int pixels, Place place) {
        in_shape<dense_widest(V)>(rows, pixels, place, [&](auto shape, Place here) { dense_run<V>(shape, conv, weights, here); });
    });
}

template <class T>
void conv_dense(const Context &context, const bh_step &step, int part, int parts) {
    clear_halo<T>(context, step.out, share(step.out.height, part, parts));
    if (step.vectors == 4)
        dense_share<4, T>(context, step, part, parts);
    else if (step.vectors == 2)
        dense_share<2, T>(context, step, part, parts);
    else
        dense_share<1, T>(context, step, part, parts);
}

}  // namespace BILLHOOK_ISA
}  // namespace billhook

#endif
