// One filter per channel: channels in the lanes, a tile of pixels at a time. With stride 1 every input vector of a tile is loaded
// once and meets all its taps in registers; what limits it then is the cache that the map lies in.
#ifndef BILLHOOK_DEPTHWISE_H
#define BILLHOOK_DEPTHWISE_H

#include "conv_tile.h"

namespace billhook {
namespace BILLHOOK_ISA {

// Residual, any activation and storing of R rows by P pixels: apart, so that what is usual stays in few instructions.
template <int R, int P, class T>
__attribute__((noinline)) void emit_any(const Conv<T> &conv, Place place, const float *sums) {
    const bh_step &step = conv.step;
    for (int r = 0; r < R; ++r)
        for (int p = 0; p < P; ++p) {
            const int64_t y = place.y + r, x = place.x + p;
            const T *other = conv.other ? conv.other + y * conv.other_row + x * conv.other_pixel + place.channel : nullptr;
            Vec value = load(sums + (r * P + p) * L);
            if (step.flags & BH_RESIDUAL) value = add(value, load(other));
            value = activate(value, step.activation);
            if (step.flags & BH_RESIDUAL_LAST) value = add(value, load(other));
            store(conv.out + y * conv.out_row + x * conv.out_pixel + place.channel, value);
        }
}

#define BILLHOOK_INLINE __attribute__((always_inline)) inline

template <int R, int P, class T>
BILLHOOK_INLINE void emit_vectors(const Conv<T> &conv, Place place, Vec (&sum)[R][P]) {
    if (conv.other || !conv.simple) {
        alignas(64) float sums[R * P * L];
        BILLHOOK_UNROLL for (int r = 0; r < R; ++r)
            BILLHOOK_UNROLL for (int p = 0; p < P; ++p) store(sums + (r * P + p) * L, sum[r][p]);
        emit_any<R, P>(conv, place, sums);
        return;
    }
    const Vec low = set1(conv.low), high = set1(conv.high);
    T *out = conv.out + place.y * conv.out_row + place.x * conv.out_pixel + place.channel;
    const int64_t row = conv.out_row, pixel = conv.out_pixel;
    BILLHOOK_UNROLL for (int r = 0; r < R; ++r)
        BILLHOOK_UNROLL for (int p = 0; p < P; ++p) store(out + r * row + p * pixel, min(high, max(low, sum[r][p])));
}

// K by K taps, stride S, no dilation: what tiles of R rows by P pixels read is loaded once.
template <int K, int S, int R, int P, class T>
BILLHOOK_INLINE void square_tile(const Conv<T> &conv, const float *weights, Place place) {
    constexpr int across = S * (P - 1) + K;
    const float *w = weights + static_cast<int64_t>(place.channel) * K * K;
    const T *in = conv.in + place.y * conv.in_row + place.x * conv.in_pixel + place.channel;
    const int64_t row = conv.step.in.row, pixel = conv.step.in.pixel;
    Vec sum[R][P];
    const Vec bias = conv.step.bias < 0 ? zero() : load(conv.bias + place.channel);
    BILLHOOK_UNROLL for (int r = 0; r < R; ++r) BILLHOOK_UNROLL for (int p = 0; p < P; ++p) sum[r][p] = bias;
    BILLHOOK_UNROLL for (int y = 0; y < S * (R - 1) + K; ++y) {
        Vec x[across];
        BILLHOOK_UNROLL for (int i = 0; i < across; ++i) x[i] = load(in + y * row + i * pixel);
        BILLHOOK_UNROLL for (int r = 0; r < R; ++r) {
            const int ky = y - r * S;
            if (ky < 0 || ky >= K) continue;
            BILLHOOK_UNROLL for (int kx = 0; kx < K; ++kx) {
                const Vec weight = load(w + (ky * K + kx) * L);
                BILLHOOK_UNROLL for (int p = 0; p < P; ++p) sum[r][p] = fma(x[p * S + kx], weight, sum[r][p]);
            }
        }
    }
    emit_vectors<R, P>(conv, place, sum);
}

// Any window. Taps are loaded anew for each pixel.
template <int P, class T>
BILLHOOK_INLINE void any_tile(const Conv<T> &conv, const float *weights, Place place) {
    const bh_step &step = conv.step;
    const float *w = weights + static_cast<int64_t>(place.channel) * step.kernel_y * step.kernel_x;
    const T *in = conv.in + place.y * conv.in_row + place.x * conv.in_pixel + place.channel;
    Vec sum[1][P];
    const Vec bias = step.bias < 0 ? zero() : load(conv.bias + place.channel);
    BILLHOOK_UNROLL for (int p = 0; p < P; ++p) sum[0][p] = bias;
    const int64_t down = static_cast<int64_t>(step.dilation_y) * step.in.row;
    const int64_t along = static_cast<int64_t>(step.dilation_x) * step.in.pixel;
    for (int ky = 0; ky < step.kernel_y; ++ky, in += down) {
        const T *tap = in;
        for (int kx = 0; kx < step.kernel_x; ++kx, tap += along, w += L) {
            const Vec weight = load(w);
            BILLHOOK_UNROLL for (int p = 0; p < P; ++p) sum[0][p] = fma(load(tap + p * conv.in_pixel), weight, sum[0][p]);
        }
    }
    emit_vectors<1, P>(conv, place, sum);
}

// Rows of tiles. All vectors of channels of a tile come before the next tile: what is read of each pixel lies together. Loops and
// tiles are one function each: a call per tile, with what it saves and clears of registers, took half of the time.
template <int K, int S, int R, int P, class T>
__attribute__((noinline)) void square_rows(const Conv<T> &shared, const float *weights, Range vectors, int y) {
    const Conv<T> conv = shared;
    const int width = conv.step.out.width;
    int x = 0;
    for (; x + P <= width; x += P)
        for (int v = vectors.from; v < vectors.to; ++v) square_tile<K, S, R, P>(conv, weights, Place{y, x, v * L});
    if constexpr (P > 1)
        for (; x < width; ++x)
            for (int v = vectors.from; v < vectors.to; ++v) square_tile<K, S, R, 1>(conv, weights, Place{y, x, v * L});
}

template <int K, int S, int R, int P, class T>
inline void square(const Conv<T> &conv, const float *weights, Range rows, Range vectors) {
    int y = rows.from;
    for (; y + R <= rows.to; y += R) square_rows<K, S, R, P>(conv, weights, vectors, y);
    if constexpr (R > 2)
        for (; y + 2 <= rows.to; y += 2) square_rows<K, S, 2, P>(conv, weights, vectors, y);
    for (; y < rows.to; ++y) square_rows<K, S, 1, P>(conv, weights, vectors, y);
}

template <int P, class T>
__attribute__((noinline)) void any_row(const Conv<T> &shared, const float *weights, Range vectors, int y) {
    const Conv<T> conv = shared;
    const int width = conv.step.out.width;
    int x = 0;
    for (; x + P <= width; x += P)
        for (int v = vectors.from; v < vectors.to; ++v) any_tile<P>(conv, weights, Place{y, x, v * L});
    for (; x < width; ++x)
        for (int v = vectors.from; v < vectors.to; ++v) any_tile<1>(conv, weights, Place{y, x, v * L});
}

template <class T>
void depthwise(const Context &context, const bh_step &step, int part, int parts) {
    clear_halo<T>(context, step.out, share(step.out.height, part, parts));
    const Conv<T> conv(context, step);
    const float *weights = reinterpret_cast<const float *>(context.weights + step.values);
    const int all = step.out.padded / L;
    const Range rows = step.split == 1 ? Range{0, step.out.height} : share(step.out.height, part, parts);
    const Range vectors = step.split == 1 ? share(all, part, parts) : Range{0, all};
    const int side = step.kernel_y == step.kernel_x && step.dilation_y == 1 && step.dilation_x == 1 ? step.kernel_y : 0;
    const int stride = step.stride_y == step.stride_x ? step.stride_y : 0;
    // The shapes of tiles are those that were the fastest of a dozen.
    if (side == 3 && stride == 1) return square<3, 1, 5, 2>(conv, weights, rows, vectors);
    if (side == 3 && stride == 2) return square<3, 2, 2, 2>(conv, weights, rows, vectors);
    if (side == 5 && stride == 1) return square<5, 1, L == 16 ? 4 : 2, L == 16 ? 2 : 3>(conv, weights, rows, vectors);
    for (int y = rows.from; y < rows.to; ++y) any_row<8>(conv, weights, vectors, y);
}

}  // namespace BILLHOOK_ISA
}  // namespace billhook

#endif
