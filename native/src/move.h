// What only moves numbers: images in, results out, channels chosen, joined or put in another order.
#ifndef BILLHOOK_MOVE_H
#define BILLHOOK_MOVE_H

#include "elementwise.h"

namespace billhook {
namespace BILLHOOK_ISA {

// Where channel c of pixel (y, x) of an image is: at c * plane + y * line + x * pixel.
struct Planes {
    int64_t plane, line, pixel;
    Planes(const bh_view &out, bool nhwc)
        : plane(nhwc ? 1 : static_cast<int64_t>(out.height) * out.width),
          line((nhwc ? out.channels : 1) * static_cast<int64_t>(out.width)),
          pixel(nhwc ? out.channels : 1) {}
};

// Pixels of four numbers, C of them channels: written one after the other, so that a compiler makes vectors of them.
template <int C, bool NHWC, class T, class Element, class Convert>
inline void load_four_row(T *__restrict__ row, const Element *__restrict__ from, int width, int64_t plane, const Convert &convert) {
    for (int x = 0; x < width; ++x)
        _Pragma("GCC unroll 4") for (int c = 0; c < 4; ++c) {
            if (c < C)
                put(row + 4 * x + c, convert(from[NHWC ? x * C + c : c * plane + x], c));
            else
                put(row + 4 * x + c, 0.0f);
        }
}

template <class T, class Element, class Convert>
inline void load_rows(const Context &context, const bh_view &out, const Element *image, Range rows, const Convert &convert) {
    const bool nhwc = context.layout == 1;
    const Planes planes(out, nhwc);
    for (int y = rows.from; y < rows.to; ++y) {
        T *row = at<T>(context, out, y);
        const Element *from = image + y * planes.line;
        if (out.pixel == 4 && out.padded == 4 && out.channels == 3) {
            if (nhwc)
                load_four_row<3, true>(row, from, out.width, planes.plane, convert);
            else
                load_four_row<3, false>(row, from, out.width, planes.plane, convert);
            continue;
        }
        if (out.padded > out.channels) {
            T *target = row;
            for (int x = 0; x < out.width; ++x, target += out.pixel) {
                int c = 0;
                for (; c + L <= out.padded; c += L) store(target + c, zero());
                for (; c < out.padded; ++c) put(target + c, 0.0f);
            }
        }
        for (int c = 0; c < out.channels; ++c) {
            const Element *source = from + c * planes.plane;
            T *target = row + c;
            for (int x = 0; x < out.width; ++x, target += out.pixel) put(target, convert(source[x * planes.pixel], c));
        }
    }
}

template <class T>
void load_image(const Context &context, const bh_step &step, int part, int parts) {
    const Range rows = share(step.out.height, part, parts);
    clear_halo<T>(context, step.out, rows);
    if (context.image_type == 0) {
        load_rows<T>(context, step.out, static_cast<const float *>(context.image), rows, [](float x, int) { return x; });
    } else {
        float scale[4], shift[4];
        for (int c = 0; c < 4; ++c) {
            scale[c] = context.header->scale[c];
            shift[c] = context.header->shift[c];
        }
        load_rows<T>(context, step.out, static_cast<const uint8_t *>(context.image), rows,
                     [&](uint8_t x, int c) { return static_cast<float>(x) * scale[c] + shift[c]; });
    }
}

template <class T>
void store_outputs(const Context &context, const bh_step &step, int part, int parts) {
    const Range channels = share(step.in.channels, part, parts);
    for (int y = 0; y < step.in.height; ++y)
        for (int x = 0; x < step.in.width; ++x) {
            const T *in = at<T>(context, step.in, y, x);
            const int64_t plane = static_cast<int64_t>(step.in.height) * step.in.width;
            float *out = context.outputs + static_cast<int64_t>(y) * step.in.width + x;
            for (int c = channels.from; c < channels.to; ++c) out[c * plane] = as_float(in[c]);
        }
}

template <class T>
void gather_channels(const Context &context, const bh_step &step, int part, int parts) {
    clear_halo<T>(context, step.out, share(step.out.height, part, parts));
    const int32_t *index = reinterpret_cast<const int32_t *>(context.weights + step.index);
    const T nothing = {};
    each_pixel(step.out, part, parts, [&](int y, int x) {
        const T *in = at<T>(context, step.in, y * step.stride_y, x * step.stride_x);
        T *out = at<T>(context, step.out, y, x);
        for (int c = 0; c < step.out.channels; ++c) out[c] = index[c] < 0 ? nothing : in[index[c]];
        for (int c = step.out.channels; c < step.out.padded; ++c) out[c] = nothing;
    });
}

// Both maps may begin at any channel of a wider one.
template <class T>
void copy_channels(const Context &context, const bh_step &step, int part, int parts) {
    clear_halo<T>(context, step.out, share(step.out.height, part, parts));
    const int channels = step.out.channels, rest = step.out.padded - channels;
    each_pixel(step.out, part, parts, [&](int y, int x) {
        T *out = at<T>(context, step.out, y, x);
        std::memmove(static_cast<void *>(out), at<T>(context, step.in, y, x), sizeof(T) * channels);
        if (rest) std::memset(static_cast<void *>(out + channels), 0, sizeof(T) * rest);
    });
}

template <class T>
void flatten_map(const Context &context, const bh_step &step, int part, int parts) {
    T *out = at<T>(context, step.out);
    const int plane = step.in.height * step.in.width;
    const T nothing = {};
    if (part == 0) {
        clear_halo<T>(context, step.out, Range{0, 1});
        for (int c = step.out.channels; c < step.out.padded; ++c) out[c] = nothing;
    }
    const Range channels = share(step.in.channels, part, parts);
    for (int y = 0; y < step.in.height; ++y)
        for (int x = 0; x < step.in.width; ++x) {
            const T *in = at<T>(context, step.in, y, x);
            T *to = out + static_cast<int64_t>(y) * step.in.width + x;
            for (int c = channels.from; c < channels.to; ++c) to[static_cast<int64_t>(c) * plane] = in[c];
        }
}

}  // namespace BILLHOOK_ISA
}  // namespace billhook

#endif
