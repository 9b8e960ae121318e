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

template <int R, int P, class T>
inline void emit_vectors(const Conv<T> &conv, Place place, Vec (&sum)[R][P]) {
    if (conv.other || !conv.simple) {
        alignas(64) float sums[R * P * L];
        BILLHOOK_UNROLL for (int r = 0; r < R; ++r)
            BILLHOOK_UNROLL for (int p = 0; p < P; ++p) store(sums + (r * P + p) * L, sum[r][p]);
        emit_any<R, P>(conv, place, sums);
        return;
    }
    const Vec low = set1(conv.low), high = set1(conv.high);
    T *out = conv.out + place.y * conv.out_row + place.x * conv.out_pixel + place.channel;
    BILLHOOK_UNROLL for (int r = 0; r < R; ++r)
        BILLHOOK_UNROLL for (int p = 0; p < P; ++p)
            store(out + r * conv.out_row + p * conv.out_pixel, min(high, max(low, sum[r][p])));
}

// K by K taps, stride 1, no dilation.
template <int K, int R, int P, class T>
inline void square_tile(const Conv<T> &conv, const float *weights, Place place) {
    const float *w = weights + static_cast<int64_t>(place.channel) * K * K;
    const T *in = conv.in + place.y * conv.in_row + place.x * conv.in_pixel + place.channel;
    Vec sum[R][P];
    const Vec bias = conv.step.bias < 0 ? zero() : load(conv.bias + place.channel);
    BILLHOOK_UNROLL for (int r = 0; r < R; ++r) BILLHOOK_UNROLL for (int p = 0; p < P; ++p) sum[r][p] = bias;
    BILLHOOK_UNROLL for (int y = 0; y < R + K - 1; ++y) {
        Vec x[P + K - 1];
        BILLHOOK_UNROLL for (int i = 0; i < P + K - 1; ++i) x[i] = load(in + y * conv.in_row + i * conv.in_pixel);
        BILLHOOK_UNROLL for (int r = 0; r < R; ++r) {
            const int ky = y - r;
            if (ky < 0 || ky >= K) continue;
            BILLHOOK_UNROLL for (int kx = 0; kx < K; ++kx) {
                const Vec weight = load(w + (ky * K + kx) * L);
                BILLHOOK_UNROLL for (int p = 0; p < P; ++p) sum[r][p] = fma(x[p + kx], weight, sum[r][p]);
            }
        }
    }
    emit_vectors<R, P>(conv, place, sum);
}

// Any window. Taps are loaded anew for each pixel.
template <int P, class T>
inline void any_tile(const Conv<T> &conv, const float *weights, Place place) {
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

// All vectors of channels of a tile before the next one: what is read of each pixel lies together.
template <class T, class Tile>
inline void along_channels(Range vectors, int y, int x, const Tile &tile) {
    for (int v = vectors.from; v < vectors.to; ++v) tile(Place{y, x, v * L});
}

template <int K, int R, int P, class T>
inline void square_rows(const Conv<T> &conv, const float *weights, Range vectors, int y) {
    const int width = conv.step.out.width;
    int x = 0;
    for (; x + P <= width; x += P)
        along_channels<T>(vectors, y, x, [&](Place place) { square_tile<K, R, P>(conv, weights, place); });
    for (; x < width; ++x)
        along_channels<T>(vectors, y, x, [&](Place place) { square_tile<K, R, 1>(conv, weights, place); });
}

template <int K, int R, int P, class T>
inline void square(const Conv<T> &conv, const float *weights, Range rows, Range vectors) {
    int y = rows.from;
    for (; y + R <= rows.to; y += R) square_rows<K, R, P>(conv, weights, vectors, y);
    for (; y < rows.to; ++y) square_rows<K, 1, P>(conv, weights, vectors, y);
}

template <class T>
void depthwise(const Context &context, const bh_step &step, int part, int parts) {
    clear_halo<T>(context, step.out, share(step.out.height, part, parts));
    const Conv<T> conv(context, step);
    const float *weights = reinterpret_cast<const float *>(context.weights + step.values);
    const int all = step.out.padded / L;
    const Range rows = step.split == 1 ? Range{0, step.out.height} : share(step.out.height, part, parts);
    const Range vectors = step.split == 1 ? share(all, part, parts) : Range{0, all};
    const bool dense = step.stride_y == 1 && step.stride_x == 1 && step.dilation_y == 1 && step.dilation_x == 1;
    // Sums and one row of inputs: 8 + 6 registers of 32, 4 + 4 of 16.
    constexpr int R = 2, P = L == 16 ? 4 : 2;
    if (dense && step.kernel_y == 3 && step.kernel_x == 3) return square<3, R, P>(conv, weights, rows, vectors);
    if (dense && step.kernel_y == 5 && step.kernel_x == 5) return square<5, R, P>(conv, weights, rows, vectors);
    for (int y = rows.from; y < rows.to; ++y) {
        int x = 0;
        for (; x + 8 <= step.out.width; x += 8)
            along_channels<T>(vectors, y, x, [&](Place place) { any_tile<8>(conv, weights, place); });
        for (; x + 2 <= step.out.width; x += 2)
            along_channels<T>(vectors, y, x, [&](Place place) { any_tile<2>(conv, weights, place); });
        for (; x < step.out.width; ++x)
            along_channels<T>(vectors, y, x, [&](Place place) { any_tile<1>(conv, weights, place); });
    }
}

}  // namespace BILLHOOK_ISA
}  // namespace billhook

#endif
