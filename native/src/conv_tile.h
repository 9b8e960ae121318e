// What the two convolution kernels share: where pixels are, what follows the sums, and how a map is cut into tiles.
#ifndef BILLHOOK_CONV_TILE_H
#define BILLHOOK_CONV_TILE_H

#include "vec.h"

#define BILLHOOK_UNROLL _Pragma("GCC unroll 32")

namespace billhook {
namespace BILLHOOK_ISA {

// A step with its addresses worked out, for one share.
template <class T>
struct Conv {
    const bh_step &step;
    const T *in;       // the window of output pixel (0, 0)
    const T *other;    // or null
    T *out;
    const float *bias;
    int64_t in_pixel, in_row;  // from one output pixel, or row, to the next, in elements of the input
    int64_t other_pixel, other_row, out_pixel, out_row;
    bool simple;  // no activation but ReLU and ReLU6: done in registers
    float low, high;

    Conv(const Context &context, const bh_step &s)
        : step(s),
          in(at<T>(context, s.in) - static_cast<int64_t>(s.pad_top) * s.in.row - static_cast<int64_t>(s.pad_left) * s.in.pixel),
          other(s.flags & (BH_RESIDUAL | BH_RESIDUAL_LAST) ? at<T>(context, s.other) : nullptr),
          out(at<T>(context, s.out)),
          bias(reinterpret_cast<const float *>(context.weights + s.bias)),
          in_pixel(static_cast<int64_t>(s.stride_x) * s.in.pixel),
          in_row(static_cast<int64_t>(s.stride_y) * s.in.row),
          other_pixel(s.other.pixel),
          other_row(s.other.row),
          out_pixel(s.out.pixel),
          out_row(s.out.row),
          simple(s.activation <= BH_RELU6),
          low(s.activation == BH_NONE ? -INFINITY : 0.0f),
          high(s.activation == BH_RELU6 ? 6.0f : INFINITY) {}
};

// The P pixels of each of R rows that a tile covers; `channel` is the first output channel of its first vector.
struct Place {
    int y, x, channel;
};

// Activations that are not worth registers: a second pass over what was stored. Not for speed.
template <class T>
__attribute__((noinline)) void finish(const Conv<T> &conv, Place place, int rows, int pixels, int vectors) {
    const int activation = conv.step.activation;
    const bool last = conv.step.flags & BH_RESIDUAL_LAST;
    for (int r = 0; r < rows; ++r)
        for (int p = 0; p < pixels; ++p)
            for (int v = 0; v < vectors; ++v) {
                const int channel = place.channel + v * L;
                if (channel >= conv.step.out.padded) break;
                T *out = conv.out + (place.y + r) * conv.out_row + (place.x + p) * conv.out_pixel + channel;
                Vec value = activate(load(out), activation);
                if (last) value = add(value, load(conv.other + (place.y + r) * conv.other_row + (place.x + p) * conv.other_pixel + channel));
                store(out, value);
            }
}

// Residual, activation and storing of one tile's sums.
template <int R, int P, int V, class T>
inline void emit(const Conv<T> &conv, Place place, Vec (&sum)[R * P * V]) {
    const bool last = conv.step.flags & BH_RESIDUAL_LAST;
    const int vectors = V == 1 ? 1 : (conv.step.out.padded - place.channel) / L;
    if (conv.other && !(last && !conv.simple)) {
        const Vec low = set1(conv.low), high = set1(conv.high);
        BILLHOOK_UNROLL for (int r = 0; r < R; ++r) {
            const T *other = conv.other + (place.y + r) * conv.other_row + place.x * conv.other_pixel + place.channel;
            BILLHOOK_UNROLL for (int p = 0; p < P; ++p) {
                BILLHOOK_UNROLL for (int v = 0; v < V; ++v) {
                    if (v >= vectors) break;
                    Vec &value = sum[(r * P + p) * V + v];
                    if (last) value = min(high, max(low, value));
                    value = add(value, load(other + p * conv.other_pixel + v * L));
                }
            }
        }
    }
    // In this order of arguments a NaN stays one.
    const bool clamp = conv.simple && conv.step.activation != BH_NONE && !(last && conv.other);
    const Vec low = set1(clamp ? conv.low : -INFINITY), high = set1(clamp ? conv.high : INFINITY);
    BILLHOOK_UNROLL for (int r = 0; r < R; ++r) {
        T *out = conv.out + (place.y + r) * conv.out_row + place.x * conv.out_pixel + place.channel;
        BILLHOOK_UNROLL for (int p = 0; p < P; ++p) {
            BILLHOOK_UNROLL for (int v = 0; v < V; ++v) {
                if (v >= vectors) break;
                store(out + p * conv.out_pixel + v * L, min(high, max(low, sum[(r * P + p) * V + v])));
            }
        }
    }
    if (!conv.simple) finish(conv, place, R, P, V < vectors ? V : vectors);
}

// The shape of a tile, as a type: kernels are compiled for each.
template <int R, int P>
struct Shape {};

// Calls `run(Shape<R, P>, place)` for a tile of this shape, of at most WIDEST pixels; where there is no kernel of it, row by row and
// in pieces.
template <int WIDEST, class Run>
__attribute__((always_inline)) inline void in_shape(int rows, int pixels, Place place, const Run &run) {
#define BILLHOOK_CASE(R, P)                \
    case (R)*100 + (P):                    \
        if constexpr ((R) * (P) <= WIDEST) { \
            run(Shape<R, P>(), place);     \
            return;                        \
        }                                  \
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
        BILLHOOK_CASE(2, 4);
        BILLHOOK_CASE(4, 2);
    }
#undef BILLHOOK_CASE
    for (int r = 0; r < rows; ++r)
        for (int p = 0; p < pixels;) {
            const Place here{place.y + r, place.x + p, place.channel};
            if constexpr (WIDEST >= 8) {
                if (pixels - p >= 8) {
                    run(Shape<1, 8>(), here);
                    p += 8;
                    continue;
                }
            }
            if constexpr (WIDEST >= 4) {
                if (pixels - p >= 4) {
                    run(Shape<1, 4>(), here);
                    p += 4;
                    continue;
                }
            }
            run(Shape<1, 1>(), here);
            p += 1;
        }
}

// Runs `tile(rows, pixels, place)` for all tiles of a share, in the order that the planner chose. `outputs`: channels that one tile
// makes; `one_row`: the widest tile of one row, `several`: of as many rows as the step says.
template <class Tile>
inline void for_tiles(const bh_step &step, int part, int parts, int outputs, int widest, const Tile &tile) {
    const int groups = (step.out.padded + outputs - 1) / outputs;
    const int height = step.out.height, width = step.out.width;
    const int rows = step.rows > 1 ? step.rows : 1;
    int wanted = step.tile < 1 ? 1 : step.tile;
    if (wanted * rows > widest) wanted = widest / rows > 0 ? widest / rows : 1;
    const int across = (width + wanted - 1) / wanted, down = (height + rows - 1) / rows;
    const Range group = step.split == 1 ? share(groups, part, parts) : Range{0, groups};
    const Range line = step.split == 1 ? Range{0, down} : share(down, part, parts);
    // One loop with one call, so that everything is compiled into one function: a call for each tile would clear the upper
    // halves of the registers each time.
    const int groups_here = group.to - group.from, pieces = (line.to - line.from) * across;
    const int outer = step.order == 1 ? groups_here : pieces, inner = step.order == 1 ? pieces : groups_here;
    for (int o = 0; o < outer; ++o) {
        for (int n = 0; n < inner; ++n) {
            const int g = group.from + (step.order == 1 ? o : n), piece = step.order == 1 ? n : o;
            const int y = (line.from + piece / across) * rows;
            const Range x = share(width, piece % across, across);
            tile(y + rows <= height ? rows : height - y, x.to - x.from, Place{y, x.from, g * outputs});
        }
    }
}

}  // namespace BILLHOOK_ISA
}  // namespace billhook

#endif
