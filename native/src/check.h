// Whether a program holds together: that no step can read or write outside the arena and the weights, whatever the bytes say.
#ifndef BILLHOOK_CHECK_H
#define BILLHOOK_CHECK_H

#include <cstddef>

#include "kernel.h"

namespace billhook {

// One line about what is wrong, "step 12 (add): ...".
struct Complaint {
    char *text;
    size_t room;
    // Writes the line, as printf does; always false.
    __attribute__((format(printf, 2, 3))) bool say(const char *format, ...) const;
};

// The header, and that steps and weights lie inside the program. Says nothing about the steps.
bool check_header(const void *program, size_t bytes, int lanes, const Complaint &complaint);

// One step; `weights` are the header's, which must have been checked. After this a kernel may run on it. `number` is for the line.
bool check_step(const bh_header &header, const bh_step &step, const unsigned char *weights, const Kernels &kernels, int number,
                const Complaint &complaint);

// Type of the numbers that a step works on: that of its output, or of its input where there is no output.
int step_type(const bh_step &step);

// Roughly how many vector instructions a step takes: whether it is worth sharing between threads.
double step_work(const bh_step &step, int lanes);

}  // namespace billhook

#endif
