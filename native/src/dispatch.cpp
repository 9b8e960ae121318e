#include "dispatch.h"

#include <atomic>
#include <cstdlib>
#include <cstring>
#include <ctime>

#ifdef BILLHOOK_X86
#include <cpuid.h>
#endif

namespace billhook {

static const char *const NAMES[] = {"portable", "avx2", "avx512", "avx512_bf16"};
constexpr int SETS = 4;

const char *isa_name(int isa) { return isa >= 0 && isa < SETS ? NAMES[isa] : "unknown"; }

static const Kernels *own(int isa) {
    switch (isa) {
        case BH_PORTABLE:
            return &portable_kernels();
#ifdef BILLHOOK_X86
        case BH_AVX2:
            return &avx2_kernels();
        case BH_AVX512:
            return &avx512_kernels();
#ifndef BILLHOOK_NO_BF16
        case BH_AVX512_BF16:
            return &avx512_bf16_kernels();
#endif
#endif
        default:
            return nullptr;
    }
}

bool compiled(int isa) { return own(isa) != nullptr; }

Kernels kernels_of(int isa) {
    Kernels kernels = *own(isa);
    for (int lower = isa - 1; lower >= 0; --lower) {
        const Kernels *more = own(lower);
        if (!more || more->lanes != kernels.lanes) break;
        for (int kind = 0; kind < BH_KINDS; ++kind)
            for (int type = 0; type < 2; ++type)
                if (!kernels.of[kind][type]) kernels.of[kind][type] = more->of[kind][type];
    }
    return kernels;
}

#ifdef BILLHOOK_X86
// Which wide registers the operating system saves: the low bits of XCR0.
static unsigned saved_registers() {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return low;
}

// Asked of the CPU itself: the compilers' builtin for it needs a library of theirs.
static int ask() {
    unsigned a, b, c, d, b7, c7, d7;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return BH_PORTABLE;
    constexpr unsigned OSXSAVE = 1u << 27, FMA = 1u << 12;
    if (!(c & OSXSAVE) || !(c & FMA) || (saved_registers() & 0x06) != 0x06) return BH_PORTABLE;
    if (!__get_cpuid_count(7, 0, &a, &b7, &c7, &d7)) return BH_PORTABLE;
    constexpr unsigned AVX2 = 1u << 5, F = 1u << 16, DQ = 1u << 17, BW = 1u << 30, VL = 1u << 31, ALL = F | DQ | BW | VL;
    if (!(b7 & AVX2)) return BH_PORTABLE;
    if ((b7 & ALL) != ALL || (saved_registers() & 0xe6) != 0xe6) return BH_AVX2;
#ifndef BILLHOOK_NO_BF16
    constexpr unsigned BF16 = 1u << 5;
    if (__get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & BF16)) return BH_AVX512_BF16;
#endif
    return BH_AVX512;
}
#endif

int detected() {
#ifdef BILLHOOK_X86
    static std::atomic<int> known{-1};
    int best = known.load(std::memory_order_relaxed);
    if (best < 0) known.store(best = ask(), std::memory_order_relaxed);
    return best;
#else
    return BH_PORTABLE;
#endif
}

double now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

}  // namespace billhook

using namespace billhook;

extern "C" {

int bh_best(void) {
    const int best = detected();
    const char *name = std::getenv("BILLHOOK_ISA");
    if (name)
        for (int isa = 0; isa < best; ++isa)
            if (std::strcmp(name, NAMES[isa]) == 0) return isa;
    return best;
}

int bh_lanes(int isa) {
    const Kernels *kernels = own(isa);
    return kernels ? kernels->lanes : isa >= BH_AVX512 ? 16 : 8;
}

int bh_compiled(void) {
    int sets = 0;
    for (int isa = 0; isa < SETS; ++isa) sets |= compiled(isa) ? 1 << isa : 0;
    return sets;
}

double bh_peak(int isa, int type) {
    const Kernels *kernels = own(isa);
    if (!kernels || isa > detected() || (type != BH_F32 && type != BH_BF16)) return 0;
    volatile float sink = 0;
    double best = 0;
    // Less than a thousandth of a second each: long enough for the clock, short enough to fall between interruptions.
    int rounds = 1000;
    for (int i = 0; i < 64; ++i) {
        const double start = now();
        const double done = kernels->multiply_adds(type, rounds, sink);
        const double seconds = now() - start;
        if (seconds < 3e-4) {
            rounds *= 2;
            continue;
        }
        const double speed = done / seconds * 1e-9;
        best = speed > best ? speed : best;
    }
    return best;
}

}  // extern "C"

// What this library was made of; native/build.py looks for it in the file.
#ifdef BILLHOOK_FINGERPRINT
extern const char billhook_fingerprint[];
__attribute__((used, visibility("default"))) const char billhook_fingerprint[] = BILLHOOK_FINGERPRINT;
#endif
