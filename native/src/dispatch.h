// Which kernels there are and which of them this CPU can run.
#ifndef BILLHOOK_DISPATCH_H
#define BILLHOOK_DISPATCH_H

#include "kernel.h"

namespace billhook {

// The best set that was compiled in and that CPU and operating system can run.
int detected();
// Whether a set was compiled in.
bool compiled(int isa);
// Kernels of a set that was: its own, and those of lower sets with as many lanes for what it has none of.
Kernels kernels_of(int isa);
const char *isa_name(int isa);
// Seconds of a clock that only runs forward.
double now();

}  // namespace billhook

#endif
