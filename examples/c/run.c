/* Runs a program file on one image: no Python, no PyTorch, one shared library.
 *
 *   run PROGRAM [IMAGE]
 *
 * PROGRAM is what Network.save_program wrote on a machine with the same kind of CPU. IMAGE holds floats, normalised, in the order
 * [channels, height, width]; without it the image is grey. Prints the five largest outputs and the milliseconds of a run.
 */
#define _POSIX_C_SOURCE 200112L
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "billhook.h"

static void *read_file(const char *path, size_t *size) {
    FILE *file = fopen(path, "rb");
    void *bytes = NULL;
    if (!file || fseek(file, 0, SEEK_END)) {
        perror(path);
        exit(2);
    }
    *size = (size_t)ftell(file);
    rewind(file);
    /* A program lies on 64 bytes, and stays where it is until the net is closed. */
    if (posix_memalign(&bytes, BH_ALIGN, *size ? *size : 1) || fread(bytes, 1, *size, file) != *size) {
        fprintf(stderr, "%s: cannot be read\n", path);
        exit(2);
    }
    fclose(file);
    return bytes;
}

static double milliseconds(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return 1e3 * (double)time.tv_sec + 1e-6 * (double)time.tv_nsec;
}

int main(int count, char **arguments) {
    if (count < 2) {
        fprintf(stderr, "usage: run PROGRAM [IMAGE]\n");
        return 2;
    }
    size_t size;
    void *program = read_file(arguments[1], &size);
    char error[256];
    bh_net *net = bh_open(program, size, bh_best(), 1, error, sizeof error);
    if (!net) {
        fprintf(stderr, "%s: %s\n", arguments[1], error);
        return 1;
    }
    /* bh_open has checked it. */
    const bh_header *header = program;
    const size_t numbers = (size_t)header->channels * (size_t)header->height * (size_t)header->width;
    const size_t outputs = (size_t)header->outputs;
    float *image;
    if (count > 2) {
        size_t bytes;
        image = read_file(arguments[2], &bytes);
        if (bytes != numbers * sizeof(float)) {
            fprintf(stderr, "%s: %zu bytes, %zu floats are needed\n", arguments[2], bytes, numbers);
            return 1;
        }
    } else {
        image = calloc(numbers, sizeof(float));
    }
    float *result = calloc(outputs + 1, sizeof(float));
    if (!image || !result) return 1;
    double best = 0;
    for (int i = 0; i < 10; ++i) {
        const double start = milliseconds();
        if (bh_run(net, image, 0, 0, 1, result)) return 1;
        const double took = milliseconds() - start;
        best = i == 0 || took < best ? took : best;
    }
    for (int place = 0; place < 5 && (size_t)place < outputs; ++place) {
        size_t largest = 0;
        for (size_t i = 1; i < outputs; ++i)
            if (result[i] > result[largest]) largest = i;
        printf("%zu %.6g\n", largest, (double)result[largest]);
        result[largest] = -1e38f;
    }
    printf("%.3f ms\n", best);
    bh_close(net);
    free(result);
    free(image);
    free(program);
    return 0;
}
