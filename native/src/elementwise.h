// What is done to each number by itself: sums, products, scales, activations, softmax. All of it is bound by memory.
#ifndef BILLHOOK_ELEMENTWISE_H
#define BILLHOOK_ELEMENTWISE_H

#include "vec.h"

namespace billhook {
namespace BILLHOOK_ISA {

// Calls body(y, x) for the share's pixels; all shares together cover the map once.
template <class Body>
inline void each_pixel(const bh_view &out, int part, int parts, const Body &body) {
    const Range pixels = share(out.height * out.width, part, parts);
    int y = pixels.from / out.width, x = pixels.from % out.width;
    for (int i = pixels.from; i < pixels.to; ++i) {
        body(y, x);
        if (++x == out.width) {
            x = 0;
            ++y;
        }
    }
}

template <class T>
void add_maps(const Context &context, const bh_step &step, int part, int parts) {
    clear_halo<T>(context, step.out, share(step.out.height, part, parts));
    const int padded = step.out.padded, activation = step.activation;
    each_pixel(step.out, part, parts, [&](int y, int x) {
        const T *a = at<T>(context, step.in, y, x), *b = at<T>(context, step.other, y, x);
        T *out = at<T>(context, step.out, y, x);
        for (int c = 0; c < padded; c += L) store(out + c, activate(add(load(a + c), load(b + c)), activation));
    });
}

template <class T>
void multiply_maps(const Context &context, const bh_step &step, int part, int parts) {
    clear_halo<T>(context, step.out, share(step.out.height, part, parts));
    const int padded = step.out.padded, activation = step.activation;
    const bool one = step.other.height == 1 && step.other.width == 1;
    each_pixel(step.out, part, parts, [&](int y, int x) {
        const T *a = at<T>(context, step.in, y, x);
        const T *b = one ? at<T>(context, step.other) : at<T>(context, step.other, y, x);
        T *out = at<T>(context, step.out, y, x);
        for (int c = 0; c < padded; c += L) store(out + c, activate(mul(load(a + c), load(b + c)), activation));
    });
}

template <class T>
void scale_map(const Context &context, const bh_step &step, int part, int parts) {
    clear_halo<T>(context, step.out, share(step.out.height, part, parts));
    const int padded = step.out.padded, activation = step.activation;
    const float *scale = reinterpret_cast<const float *>(context.weights + step.values);
    const float *bias = step.bias < 0 ? nullptr : reinterpret_cast<const float *>(context.weights + step.bias);
    each_pixel(step.out, part, parts, [&](int y, int x) {
        const T *in = at<T>(context, step.in, y, x);
        T *out = at<T>(context, step.out, y, x);
        for (int c = 0; c < padded; c += L)
            store(out + c, activate(fma(load(in + c), load(scale + c), bias ? load(bias + c) : zero()), activation));
    });
}

template <class T>
void unary_map(const Context &context, const bh_step &step, int part, int parts) {
    clear_halo<T>(context, step.out, share(step.out.height, part, parts));
    const int padded = step.out.padded, activation = step.activation;
    each_pixel(step.out, part, parts, [&](int y, int x) {
        const T *in = at<T>(context, step.in, y, x);
        T *out = at<T>(context, step.out, y, x);
        for (int c = 0; c < padded; c += L) store(out + c, activate(load(in + c), activation));
    });
}

inline float as_float(float value) { return value; }
inline float as_float(bf16 value) { return to_float(value); }
inline void put(float *p, float value) { *p = value; }
inline void put(bf16 *p, float value) { *p = to_bf16(value); }

// Over the channels of each pixel; the largest is subtracted first, so nothing overflows.
template <class T>
void softmax_map(const Context &context, const bh_step &step, int part, int parts) {
    clear_halo<T>(context, step.out, share(step.out.height, part, parts));
    const int channels = step.out.channels;
    each_pixel(step.out, part, parts, [&](int y, int x) {
        const T *in = at<T>(context, step.in, y, x);
        T *out = at<T>(context, step.out, y, x);
        float largest = as_float(in[0]);
        for (int c = 1; c < channels; ++c) largest = as_float(in[c]) > largest ? as_float(in[c]) : largest;
        // Twice the exponentials, so that bf16 rounds the quotients only and no room is needed in between.
        double sum = 0;
        for (int c = 0; c < channels; ++c) sum += __builtin_expf(as_float(in[c]) - largest);
        const float factor = static_cast<float>(1.0 / sum);
        for (int c = 0; c < channels; ++c) put(out + c, __builtin_expf(as_float(in[c]) - largest) * factor);
        for (int c = channels; c < step.out.padded; ++c) put(out + c, 0.0f);
    });
}

}  // namespace BILLHOOK_ISA
}  // namespace billhook

#endif
