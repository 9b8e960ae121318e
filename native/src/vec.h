// A vector of L floats, and what kernels do with it. Included by kernel files, which are compiled once per instruction set
// with BILLHOOK_ISA naming the namespace: portable, avx2, avx512, avx512_bf16.
#ifndef BILLHOOK_VEC_H
#define BILLHOOK_VEC_H

#include <cmath>
#include <cstdint>
#include <cstring>

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#include "kernel.h"

namespace billhook {
namespace BILLHOOK_ISA {

struct bf16 {
    uint16_t bits;
};

// Round to nearest, ties to even; NaN stays NaN.
inline bf16 to_bf16(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return {static_cast<uint16_t>((bits >> 16) | 0x40u)};
    return {static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16)};
}

inline float to_float(bf16 value) {
    const uint32_t bits = static_cast<uint32_t>(value.bits) << 16;
    float result;
    std::memcpy(&result, &bits, 4);
    return result;
}

#if defined(__AVX512F__)

constexpr int L = 16;
struct Vec {
    __m512 v;
};
struct Index {
    __m512i v;
};
inline Vec zero() { return {_mm512_setzero_ps()}; }
inline Vec set1(float x) { return {_mm512_set1_ps(x)}; }
inline Vec load(const float *p) { return {_mm512_loadu_ps(p)}; }
inline Vec load(const bf16 *p) {
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i *>(p));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16))};
}
inline void store(float *p, Vec x) { _mm512_storeu_ps(p, x.v); }
inline void store(bf16 *p, Vec x) {
#if defined(__AVX512BF16__)
    const __m256bh half = _mm512_cvtneps_pbh(x.v);
    std::memcpy(p, &half, 32);
#else
    float values[16];
    _mm512_storeu_ps(values, x.v);
    for (int i = 0; i < 16; ++i) p[i] = to_bf16(values[i]);
#endif
}
inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// x times 2^n, n being the low bits of t.
inline Vec scale_by_power(Vec x, Vec t) {
    const __m512i exponent = _mm512_slli_epi32(_mm512_castps_si512(t.v), 23);
    return {_mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(x.v), exponent))};
}
inline Index load_index(const uint8_t *p) {
    return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i *>(p)))};
}
// Lane i gets x[index[i]].
inline Vec permute(Vec x, Index index) { return {_mm512_permutexvar_ps(index.v, x.v)}; }

#elif defined(__AVX2__)

constexpr int L = 8;
struct Vec {
    __m256 v;
};
struct Index {
    __m256i v;
};
inline Vec zero() { return {_mm256_setzero_ps()}; }
inline Vec set1(float x) { return {_mm256_set1_ps(x)}; }
inline Vec load(const float *p) { return {_mm256_loadu_ps(p)}; }
inline Vec load(const bf16 *p) {
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i *>(p));
    return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16))};
}
inline void store(float *p, Vec x) { _mm256_storeu_ps(p, x.v); }
inline void store(bf16 *p, Vec x) {
    float values[8];
    _mm256_storeu_ps(values, x.v);
    for (int i = 0; i < 8; ++i) p[i] = to_bf16(values[i]);
}
inline Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
inline Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
inline Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
inline Vec max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
inline Vec min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec scale_by_power(Vec x, Vec t) {
    const __m256i exponent = _mm256_slli_epi32(_mm256_castps_si256(t.v), 23);
    return {_mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(x.v), exponent))};
}
inline Index load_index(const uint8_t *p) {
    return {_mm256_cvtepu8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i *>(p)))};
}
inline Vec permute(Vec x, Index index) { return {_mm256_permutevar8x32_ps(x.v, index.v)}; }

#else

// Eight lanes as two of the compilers' own vectors, each of which is a register: SSE, NEON, or whatever the machine has. (One
// vector of eight would live in memory where registers are half as wide.)
constexpr int L = 8;
typedef float Four __attribute__((vector_size(16)));
typedef uint32_t FourBits __attribute__((vector_size(16)));  // unsigned: what overflows wraps round
struct Vec {
    Four low, high;
};
inline Vec set1(float x) { return {Four{x, x, x, x}, Four{x, x, x, x}}; }
inline Vec zero() { return set1(0.0f); }
inline Vec load(const float *p) {
    Vec result;
    std::memcpy(&result.low, p, 16);
    std::memcpy(&result.high, p + 4, 16);
    return result;
}
inline void store(float *p, Vec x) {
    std::memcpy(p, &x.low, 16);
    std::memcpy(p + 4, &x.high, 16);
}
inline Four load_four(const bf16 *p) { return Four{to_float(p[0]), to_float(p[1]), to_float(p[2]), to_float(p[3])}; }
inline Vec load(const bf16 *p) { return {load_four(p), load_four(p + 4)}; }
inline void store(bf16 *p, Vec x) {
    for (int i = 0; i < 4; ++i) {
        p[i] = to_bf16(x.low[i]);
        p[i + 4] = to_bf16(x.high[i]);
    }
}
inline Four choose(FourBits first, Four a, Four b) { return (Four)(((FourBits)a & first) | ((FourBits)b & ~first)); }
inline Vec add(Vec a, Vec b) { return {a.low + b.low, a.high + b.high}; }
inline Vec sub(Vec a, Vec b) { return {a.low - b.low, a.high - b.high}; }
inline Vec mul(Vec a, Vec b) { return {a.low * b.low, a.high * b.high}; }
inline Vec div(Vec a, Vec b) { return {a.low / b.low, a.high / b.high}; }
inline Vec max(Vec a, Vec b) {
    return {choose((FourBits)(a.low > b.low), a.low, b.low), choose((FourBits)(a.high > b.high), a.high, b.high)};
}
inline Vec min(Vec a, Vec b) {
    return {choose((FourBits)(a.low < b.low), a.low, b.low), choose((FourBits)(a.high < b.high), a.high, b.high)};
}
inline Vec fma(Vec a, Vec b, Vec c) { return {a.low * b.low + c.low, a.high * b.high + c.high}; }
inline Vec scale_by_power(Vec x, Vec t) {
    return {(Four)((FourBits)x.low + ((FourBits)t.low << 23)), (Four)((FourBits)x.high + ((FourBits)t.high << 23))};
}
#if defined(__aarch64__)
struct Index {
    uint8x16_t low, high;
};
// Each lane's four bytes are looked up in a table of 32 bytes, which is two registers.
inline Index load_index(const uint8_t *p) {
    uint64_t lanes;
    std::memcpy(&lanes, p, 8);
    const uint8x16_t index = vcombine_u8(vcreate_u8(lanes), vcreate_u8(lanes));
    const uint8x16_t spread_low = {0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3};
    const uint8x16_t spread_high = {4, 4, 4, 4, 5, 5, 5, 5, 6, 6, 6, 6, 7, 7, 7, 7};
    const uint8x16_t within = {0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3};
    return {vaddq_u8(vshlq_n_u8(vqtbl1q_u8(index, spread_low), 2), within),
            vaddq_u8(vshlq_n_u8(vqtbl1q_u8(index, spread_high), 2), within)};
}
inline Vec permute(Vec x, Index index) {
    const uint8x16x2_t table = {{(uint8x16_t)x.low, (uint8x16_t)x.high}};
    return {(Four)vqtbl2q_u8(table, index.low), (Four)vqtbl2q_u8(table, index.high)};
}
#else
struct Index {
    uint8_t v[L];
};
inline Index load_index(const uint8_t *p) {
    Index result;
    std::memcpy(&result, p, sizeof(result));
    return result;
}
inline Vec permute(Vec x, Index index) {
    float from[L];
    store(from, x);
    const uint8_t *i = index.v;
    return {Four{from[i[0] & 7], from[i[1] & 7], from[i[2] & 7], from[i[3] & 7]},
            Four{from[i[4] & 7], from[i[5] & 7], from[i[6] & 7], from[i[7] & 7]}};
}
#endif

#endif

// e^x with a relative error below 2e-7; x is taken to lie in -86..88, outside of which nothing that uses it can tell.
// x = n ln 2 + r with |r| <= ln 2 / 2, and e^r by a polynomial (the coefficients of Cephes' expf).
inline Vec exponential(Vec x) {
    x = min(set1(88.0f), max(set1(-86.0f), x));  // in this order of arguments a NaN stays one
    const Vec magic = set1(12582912.0f);         // 1.5 * 2^23: a sum with it is rounded to a whole number, in the low bits
    const Vec shifted = add(mul(x, set1(1.44269504f)), magic);
    const Vec n = sub(shifted, magic);
    Vec r = fma(n, set1(-0.693359375f), x);
    r = fma(n, set1(2.12194440e-4f), r);
    Vec p = set1(1.9875691500e-4f);
    p = fma(p, r, set1(1.3981999507e-3f));
    p = fma(p, r, set1(8.3334519073e-3f));
    p = fma(p, r, set1(4.1665795894e-2f));
    p = fma(p, r, set1(1.6666665459e-1f));
    p = fma(p, r, set1(5.0000001201e-1f));
    p = add(fma(p, mul(r, r), r), set1(1.0f));
    return scale_by_power(p, shifted);
}

inline Vec activate(Vec x, int activation) {
    switch (activation) {
        case BH_RELU:
            return max(zero(), x);
        case BH_RELU6:
            return min(set1(6.0f), max(zero(), x));
        case BH_SIGMOID:
            return div(set1(1.0f), add(set1(1.0f), exponential(sub(zero(), x))));
        case BH_HARDSIGMOID:
            return min(max(fma(x, set1(1.0f / 6.0f), set1(0.5f)), zero()), set1(1.0f));
        case BH_HARDSWISH:
            return mul(x, min(max(fma(x, set1(1.0f / 6.0f), set1(0.5f)), zero()), set1(1.0f)));
        case BH_SILU:
            return div(x, add(set1(1.0f), exponential(sub(zero(), x))));
        default:
            return x;
    }
}

// ---------------------------------------------------------------------- views and shares
template <class T>
inline T *at(const Context &context, const bh_view &view, int y = 0, int x = 0) {
    return reinterpret_cast<T *>(context.arena + view.offset) + static_cast<int64_t>(y) * view.row +
           static_cast<int64_t>(x) * view.pixel;
}

struct Range {
    int from, to;
};

// The part-th of `parts` shares of `count` things; sizes differ by one at most.
inline Range share(int count, int part, int parts) {
    return {static_cast<int>(static_cast<int64_t>(count) * part / parts),
            static_cast<int>(static_cast<int64_t>(count) * (part + 1) / parts)};
}

// Zeros into the halo beside rows from..to-1, and above and below the map for whoever has its first or last row.
template <class T>
inline void clear_halo(const Context &context, const bh_view &view, Range rows) {
    if (!(view.top | view.left | view.bottom | view.right) || rows.from >= rows.to) return;
    const int first = rows.from == 0 ? -view.top : rows.from;
    const int last = rows.to == view.height ? view.height + view.bottom : rows.to;
    const auto wipe = [&](int y, int x, int pixels) {
        T *p = at<T>(context, view, y, x);
        for (int i = 0; i < pixels; ++i, p += view.pixel) std::memset(static_cast<void *>(p), 0, sizeof(T) * view.padded);
    };
    for (int y = first; y < last; ++y) {
        if (y < 0 || y >= view.height) {
            wipe(y, -view.left, view.left + view.width + view.right);
        } else {
            wipe(y, -view.left, view.left);
            wipe(y, view.width, view.right);
        }
    }
}

}  // namespace BILLHOOK_ISA
}  // namespace billhook

#endif
