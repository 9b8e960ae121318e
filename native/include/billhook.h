/* billhook.h: runs a program, that is a network lowered for one kind of CPU. Plain C; no allocation after bh_open.
 *
 * A program is one block of bytes, aligned to 64: bh_header, `steps` times bh_step, the weights. All numbers are
 * little-endian. Offsets of weights count bytes from header.weights; offsets of views count bytes from the arena.
 * Python writes programs (billhook/runtime/program.py repeats these structs); docs/runtime.md says what they mean.
 */
#ifndef BILLHOOK_H
#define BILLHOOK_H
#include <stddef.h>
#include <stdint.h>
#ifdef __cplusplus
extern "C" {
#endif

#define BH_VERSION 1
#define BH_ALIGN 64

/* Instruction sets, each one able to do what those below it can. */
enum { BH_PORTABLE = 0, BH_AVX2 = 1, BH_AVX512 = 2, BH_AVX512_BF16 = 3 };
/* Elements of the activations; sums are float always. */
enum { BH_F32 = 0, BH_BF16 = 1 };

enum {
    BH_LOAD = 0,       /* the caller's image -> out */
    BH_STORE = 1,      /* in -> the caller's floats, [channels, height, width] */
    BH_DENSE = 2,      /* convolution, all weights */
    BH_HYBRID = 3,     /* convolution, a stream of items: hybrid, any other pattern, grouped */
    BH_DEPTHWISE = 4,  /* one filter per channel */
    BH_MAXPOOL = 5,
    BH_AVGPOOL = 6,
    BH_GLOBAL = 7,     /* the mean over all pixels */
    BH_ADD = 8,        /* in + other */
    BH_MULTIPLY = 9,   /* in * other; other may have one pixel */
    BH_SCALE = 10,     /* in * values + bias, per channel */
    BH_UNARY = 11,     /* the activation alone */
    BH_GATHER = 12,    /* out[c] = in[index[c]], zero where -1; every stride-th pixel */
    BH_COPY = 13,      /* channels of in to channels of out (concatenation) */
    BH_FLATTEN = 14,   /* [height, width, channels] -> a vector in the order [channels, height, width] */
    BH_SOFTMAX = 15,
    BH_KINDS = 16
};

enum { BH_NONE = 0, BH_RELU = 1, BH_RELU6 = 2, BH_SIGMOID = 3, BH_HARDSIGMOID = 4, BH_HARDSWISH = 5, BH_SILU = 6 };

enum {
    BH_RESIDUAL = 1,       /* `other` is added before the activation */
    BH_RESIDUAL_LAST = 2,  /* `other` is added after it */
    BH_COUNT_PADDING = 4   /* BH_AVGPOOL: padded zeros count in the mean */
};

/* A map in the arena, channels last. Element (y, x, c) is at offset + size * (y * row + x * pixel + c), for y and x from
 * minus the halo on. Channels up to `padded` (a multiple of the lanes) are there and may be read and written; the step that
 * writes a map writes finite numbers there (zero in most cases) and zeros into its halo. offset, row and pixel are such
 * that every pixel's first channel lies on 64 bytes (32 for bf16). */
typedef struct {
    int64_t offset;
    int32_t height, width, channels, padded;
    int32_t pixel, row;                /* in elements */
    int32_t top, left, bottom, right;  /* halo that is there, in pixels */
    int32_t type;                      /* BH_F32 or BH_BF16 */
    int32_t reserved;
} bh_view;                             /* 56 bytes */

typedef struct {
    int32_t kind, activation, flags, groups;
    int32_t kernel_y, kernel_x, stride_y, stride_x;
    int32_t dilation_y, dilation_x, pad_top, pad_left;
    /* Choices of the planner for BH_DENSE and BH_HYBRID. A tile is `rows` rows of at most `tile` pixels, by `vectors` vectors of
     * outputs (BH_HYBRID: one); kernels exist for tile in 1..16 with one row, and for (rows, tile) = (2, 7), (2, 8), (2, 4),
     * (4, 4), (4, 2); what a map is too narrow for, or a set of registers too small, is cut down. slots of an item: 1, 2, 4.
     * order 0: pixels outside, outputs inside; 1: the other way round. split: threads share 0 rows, 1 outputs. */
    int32_t tile, vectors, slots, order, split, rows;
    int32_t reserved[2];
    bh_view in, other, out;
    int64_t values;   /* weights; -1: none, here and below */
    int64_t index;    /* BH_HYBRID: uint8; BH_GATHER: int32 */
    int64_t offsets;  /* BH_HYBRID: int32 per item, in elements from the window's first pixel */
    int64_t first;    /* BH_HYBRID: int32 per group of outputs and one more: its items */
    int64_t bias;     /* float [out.padded] */
    int64_t count;    /* BH_HYBRID: items in all */
} bh_step;

typedef struct {
    char magic[8]; /* "BILLHOOK" */
    int32_t version, lanes, type, steps;
    int64_t arena, weights, bytes; /* bytes of the arena; where the weights start; bytes of the whole program */
    int32_t channels, height, width, outputs;
    float scale[4], shift[4]; /* of a uint8 image: x * scale[c] + shift[c] */
    int32_t named;            /* 1: scale and shift are said */
    int32_t reserved[7];
} bh_header;

/* Layouts of weights, with L = lanes, G = ceil(outputs / L), missing outputs and inputs zero:
 *   BH_DENSE f32   [ceil(outputs / (vectors L))][kernel_y kernel_x][inputs][vectors L] float
 *            bf16  [the same][kernel_y kernel_x][ceil(inputs / 2)][vectors L][2] bf16; where in.pixel = in.channels and
 *                  dilation_x = 1 a row of taps is one run: [the same][kernel_y][ceil(kernel_x inputs / 2)][vectors L][2]
 *   BH_HYBRID f32  values [count][slots][L] float, index [count][slots][L]: which of the L inputs from its offset on
 *            bf16  values [count][slots][L][2] bf16, index [count][slots][L][2]: of 2 L inputs; none lies behind the pixel
 *            items of output group g are first[g] .. first[g + 1]
 *   BH_DEPTHWISE   [padded / L][kernel_y kernel_x][L] float
 *   BH_SCALE       [padded] float                                                                                  */

typedef struct bh_net bh_net;

/* The best instruction set of this CPU, or a lower one that BILLHOOK_ISA names (portable, avx2, avx512, avx512_bf16). */
int bh_best(void);
/* Lanes of a vector: 16 for AVX-512, 8 otherwise. */
int bh_lanes(int isa);
/* Which instruction sets were compiled in: bit i for set i. */
int bh_compiled(void);

/* Opens a program, which must stay where it is until bh_close. `error` (of `room` bytes) gets one line on failure: a
 * program that does not hold together, no memory. Returns NULL then. threads >= 1. */
bh_net *bh_open(const void *program, size_t bytes, int isa, int threads, char *error, size_t room);
void bh_close(bh_net *net);

/* Runs `batch` images, one after the other. image_type 0: float, normalised already; 1: uint8, needs header.named. layout 0: NCHW,
 * 1: NHWC. outputs: float [batch, header.outputs]. One call at a time per net. Returns 0, or a negative number. */
int bh_run(bh_net *net, const void *images, int image_type, int layout, int batch, float *outputs);

/* The same for one image, `repeats` times; seconds [steps] gets each step's shortest time. */
int bh_profile(bh_net *net, const void *images, int image_type, int layout, int repeats, float *outputs, double *seconds);

/* The arena, for tests and for a look at values in between. */
void *bh_arena(bh_net *net);
/* Runs the steps from..to-1 on what lies in the arena. */
int bh_steps(bh_net *net, int from, int to);

/* Multiply-adds per second in 1e9 of one core's registers, f32 or bf16: the roof that speeds are compared with. */
double bh_peak(int isa, int type);

#ifdef __cplusplus
}
#endif
#endif
