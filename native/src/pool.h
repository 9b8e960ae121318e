// Maxima and means over windows that are clipped to the map, and over whole maps.
#ifndef BILLHOOK_POOL_H
#define BILLHOOK_POOL_H

#include "elementwise.h"

namespace billhook {
namespace BILLHOOK_ISA {

// The taps of a window that begins at `start` and lie inside 0..size: from, from + 1, .. to - 1, in units of the dilation.
inline Range clipped(int start, int kernel, int dilation, int size) {
    const int64_t room = static_cast<int64_t>(size) - start;  // > 0: a window without pixels is refused beforehand
    const int64_t to = (room + dilation - 1) / dilation;
    return {start < 0 ? (-start + dilation - 1) / dilation : 0, to < kernel ? static_cast<int>(to) : kernel};
}

// Where the window of an output pixel lies in the input.
struct Window {
    int y, x;
    Range rows, columns;

    Window(const bh_step &s, int out_y, int out_x)
        : y(out_y * s.stride_y - s.pad_top),
          x(out_x * s.stride_x - s.pad_left),
          rows(clipped(y, s.kernel_y, s.dilation_y, s.in.height)),
          columns(clipped(x, s.kernel_x, s.dilation_x, s.in.width)) {}
};

// V vectors of channels of one window.
template <int V, class T, class Combine>
inline void fold(const Context &context, const bh_step &step, const Window &window, int c, Vec (&sum)[V], const Combine &combine) {
    for (int ky = window.rows.from; ky < window.rows.to; ++ky) {
        const T *row = at<T>(context, step.in, window.y + ky * step.dilation_y, window.x) + c;
        for (int kx = window.columns.from; kx < window.columns.to; ++kx) {
            const T *p = row + static_cast<int64_t>(kx) * step.dilation_x * step.in.pixel;
            for (int v = 0; v < V; ++v) sum[v] = combine(sum[v], load(p + v * L));
        }
    }
}

// All windows of a share: start(), combine(sum, x) for each tap, finish(sum, window).
template <class T, class Combine, class Finish>
inline void pool(const Context &context, const bh_step &step, int part, int parts, float start, const Combine &combine,
                 const Finish &finish) {
    clear_halo<T>(context, step.out, share(step.out.height, part, parts));
    each_pixel(step.out, part, parts, [&](int y, int x) {
        const Window window(step, y, x);
        T *out = at<T>(context, step.out, y, x);
        int c = 0;
        for (; c + 4 * L <= step.out.padded; c += 4 * L) {
            Vec sum[4] = {set1(start), set1(start), set1(start), set1(start)};
            fold<4, T>(context, step, window, c, sum, combine);
            for (int v = 0; v < 4; ++v) store(out + c + v * L, activate(finish(sum[v], window), step.activation));
        }
        for (; c < step.out.padded; c += L) {
            Vec sum[1] = {set1(start)};
            fold<1, T>(context, step, window, c, sum, combine);
            store(out + c, activate(finish(sum[0], window), step.activation));
        }
    });
}

template <class T>
void max_pool(const Context &context, const bh_step &step, int part, int parts) {
    pool<T>(
        context, step, part, parts, -INFINITY, [](Vec a, Vec b) { return max(a, b); }, [](Vec a, const Window &) { return a; });
}

// How many pixels a window's sum is divided by along one side: those inside the map, or those inside the padded map, whose
// far padding is as wide as the near one. A window that ceil mode lets stick out further does not count what sticks out.
inline int counted(int start, int kernel, int pad, int size, Range taps, bool padding) {
    if (!padding) return taps.to - taps.from;
    const int64_t end = static_cast<int64_t>(start) + kernel, last = static_cast<int64_t>(size) + pad;
    return static_cast<int>((end < last ? end : last) - start);
}

template <class T>
void average_pool(const Context &context, const bh_step &step, int part, int parts) {
    const bool padding = step.flags & BH_COUNT_PADDING;
    pool<T>(
        context, step, part, parts, 0.0f, [](Vec a, Vec b) { return add(a, b); },
        [&](Vec sum, const Window &w) {
            const int rows = counted(w.y, step.kernel_y, step.pad_top, step.in.height, w.rows, padding);
            const int columns = counted(w.x, step.kernel_x, step.pad_left, step.in.width, w.columns, padding);
            return div(sum, set1(static_cast<float>(rows) * static_cast<float>(columns)));
        });
}

// Sums are taken row by row, then over the rows: the error grows with the sides, not with the area.
template <int V, class T>
inline void mean_of_map(const Context &context, const bh_step &step, int c) {
    Vec total[V];
    for (int v = 0; v < V; ++v) total[v] = zero();
    for (int y = 0; y < step.in.height; ++y) {
        const T *p = at<T>(context, step.in, y) + c;
        Vec sum[V];
        for (int v = 0; v < V; ++v) sum[v] = zero();
        for (int x = 0; x < step.in.width; ++x, p += step.in.pixel)
            for (int v = 0; v < V; ++v) sum[v] = add(sum[v], load(p + v * L));
        for (int v = 0; v < V; ++v) total[v] = add(total[v], sum[v]);
    }
    const Vec pixels = set1(static_cast<float>(step.in.height) * static_cast<float>(step.in.width));
    T *out = at<T>(context, step.out) + c;
    for (int v = 0; v < V; ++v) store(out + v * L, activate(div(total[v], pixels), step.activation));
}

// Shares take channels: there is one pixel of output only.
template <class T>
void global_pool(const Context &context, const bh_step &step, int part, int parts) {
    if (part == 0) clear_halo<T>(context, step.out, Range{0, 1});
    const Range vectors = share(step.out.padded / L, part, parts);
    int v = vectors.from;
    for (; v + 4 <= vectors.to; v += 4) mean_of_map<4, T>(context, step, v * L);
    for (; v < vectors.to; ++v) mean_of_map<1, T>(context, step, v * L);
}

}  // namespace BILLHOOK_ISA
}  // namespace billhook

#endif
