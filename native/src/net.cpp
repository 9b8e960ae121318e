// Opens programs and runs them: every step by every thread, a barrier where threads have shared something.
#include <sys/mman.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>

#include "check.h"
#include "dispatch.h"
#include "threads.h"

using namespace billhook;

// A step of fewer vector instructions takes about as long as the barrier that sharing it would need.
constexpr double WORTH_SHARING = 4000;
constexpr size_t HUGE_PAGE = size_t{2} << 20;

struct bh_net {
    bh_header header;
    bh_step *steps;
    Kernel *kernels;
    unsigned char *shared;  // per step: 1 when all threads take part
    unsigned char *arena;
    Context context;
    int from, to;
    Threads threads;
    std::atomic<int> busy;
};

namespace {

// Zeros, aligned; null when there is no room. Pages that nobody touches cost nothing.
void *zeros(size_t bytes, size_t alignment) {
#if defined(__SANITIZE_ADDRESS__)
    // Exactly as large as asked for, so that one byte too many is seen.
    void *exact = nullptr;
    if (bytes > (size_t{1} << 30) || posix_memalign(&exact, alignment, bytes ? bytes : 1)) return nullptr;
    std::memset(exact, 0, bytes);
    return exact;
#else
    unsigned char *block = static_cast<unsigned char *>(std::calloc(1, bytes + alignment + sizeof(void *)));
    if (!block) return nullptr;
    const uintptr_t start = reinterpret_cast<uintptr_t>(block) + sizeof(void *);
    unsigned char *aligned = block + sizeof(void *) + (alignment - start % alignment) % alignment;
    std::memcpy(aligned - sizeof(void *), &block, sizeof(void *));
#ifdef MADV_HUGEPAGE
    // Rows of a map are far apart; large pages spare the look-ups. Refused: no matter.
    if (alignment == HUGE_PAGE && bytes >= HUGE_PAGE) madvise(aligned, bytes / HUGE_PAGE * HUGE_PAGE, MADV_HUGEPAGE);
#endif
    return aligned;
#endif
}

void release(void *aligned) {
    if (!aligned) return;
#if defined(__SANITIZE_ADDRESS__)
    std::free(aligned);
#else
    void *block;
    std::memcpy(&block, static_cast<unsigned char *>(aligned) - sizeof(void *), sizeof(void *));
    std::free(block);
#endif
}

void free_net(bh_net *net) {
    release(net->steps);
    release(net->kernels);
    release(net->shared);
    release(net->arena);
    net->~bh_net();
    release(net);
}

// One thread's way through the steps.
void walk(void *data, int part) {
    bh_net &net = *static_cast<bh_net *>(data);
    const int parts = net.threads.count();
    for (int i = net.from; i < net.to; ++i) {
        if (net.shared[i])
            net.kernels[i](net.context, net.steps[i], part, parts);
        else if (part == 0)
            net.kernels[i](net.context, net.steps[i], 0, 1);
        // Two steps in a row of the first thread alone need nobody else.
        if (i + 1 < net.to && (net.shared[i] || net.shared[i + 1])) net.threads.barrier(part);
    }
}

bool walk_all(bh_net &net, int from, int to) {
    net.from = from;
    net.to = to;
    bool any = false;
    for (int i = from; i < to; ++i) any = any || net.shared[i];
    if (any) return net.threads.run(walk, &net);
    for (int i = from; i < to; ++i) net.kernels[i](net.context, net.steps[i], 0, 1);
    return true;
}

// Holds the net for one call; false when another thread has it.
class Hold {
public:
    explicit Hold(bh_net *net) : net_(net), held_(net && net->busy.exchange(1, std::memory_order_acquire) == 0) {}
    ~Hold() {
        if (held_) net_->busy.store(0, std::memory_order_release);
    }
    explicit operator bool() const { return held_; }

private:
    bh_net *net_;
    bool held_;
};

enum { WRONG_ARGUMENT = -1, NO_SCALES = -2, BUSY = -3, NO_THREADS = -4 };

int set_images(bh_net *net, const void *images, int image_type, int layout, float *outputs) {
    if (!net || !images || !outputs || image_type < 0 || image_type > 1 || layout < 0 || layout > 1) return WRONG_ARGUMENT;
    if (image_type == 1 && !net->header.named) return NO_SCALES;
    net->context.image = images;
    net->context.image_type = image_type;
    net->context.layout = layout;
    net->context.outputs = outputs;
    return 0;
}

}  // namespace

extern "C" {

bh_net *bh_open(const void *program, size_t bytes, int isa, int threads, char *error, size_t room) {
    const Complaint complaint{error, room};
    if (!compiled(isa) || isa > detected()) {
        complaint.say("this machine has no instruction set %d (%s); the best is %s", isa, isa_name(isa), isa_name(detected()));
        return nullptr;
    }
    const Kernels kernels = kernels_of(isa);
    if (threads < 1 || threads > Threads::most()) {
        complaint.say("%d threads; 1 to %d are possible", threads, Threads::most());
        return nullptr;
    }
    if (!check_header(program, bytes, kernels.lanes, complaint)) return nullptr;
    void *room_of_net = zeros(sizeof(bh_net), 64);
    if (!room_of_net) {
        complaint.say("no memory");
        return nullptr;
    }
    bh_net *net = new (room_of_net) bh_net{};
    const unsigned char *start = static_cast<const unsigned char *>(program);
    net->header = *static_cast<const bh_header *>(program);
    const size_t steps = static_cast<size_t>(net->header.steps), arena = static_cast<size_t>(net->header.arena);
    net->steps = static_cast<bh_step *>(zeros(steps * sizeof(bh_step), 64));
    net->kernels = static_cast<Kernel *>(zeros(steps * sizeof(Kernel), 64));
    net->shared = static_cast<unsigned char *>(zeros(steps, 64));
    if (net->steps && net->kernels && net->shared) {
        // A copy: what was checked stays as it was.
        std::memcpy(net->steps, start + sizeof(bh_header), steps * sizeof(bh_step));
        // For tests: everything is shared, however small.
        const bool all = std::getenv("BILLHOOK_SHARE_ALL") != nullptr;
        for (size_t i = 0; i < steps; ++i) {
            const bh_step &step = net->steps[i];
            if (!check_step(net->header, step, start + net->header.weights, kernels, static_cast<int>(i), complaint)) {
                free_net(net);
                return nullptr;
            }
            net->kernels[i] = kernels.of[step.kind][step_type(step)];
            net->shared[i] = threads > 1 && (all || step_work(step, kernels.lanes) >= WORTH_SHARING);
        }
        net->arena = static_cast<unsigned char *>(zeros(arena, arena >= HUGE_PAGE ? HUGE_PAGE : 64));
    }
    if (!net->arena) {
        complaint.say("no memory for an arena of %lld bytes", static_cast<long long>(net->header.arena));
        free_net(net);
        return nullptr;
    }
    net->context.header = &net->header;
    net->context.arena = net->arena;
    net->context.weights = start + net->header.weights;
    if (!net->threads.start(threads)) {
        complaint.say("%d threads could not be started", threads);
        free_net(net);
        return nullptr;
    }
    return net;
}

void bh_close(bh_net *net) {
    if (!net) return;
    net->threads.stop();
    free_net(net);
}

int bh_run(bh_net *net, const void *images, int image_type, int layout, int batch, float *outputs) {
    const Hold hold(net);
    if (!hold) return net ? BUSY : WRONG_ARGUMENT;
    const int wrong = set_images(net, images, image_type, layout, outputs);
    if (wrong || batch < 0) return wrong ? wrong : WRONG_ARGUMENT;
    const bh_header &header = net->header;
    const size_t image = static_cast<size_t>(header.channels) * header.height * header.width * (image_type == 0 ? sizeof(float) : 1);
    for (int i = 0; i < batch; ++i) {
        net->context.image = static_cast<const unsigned char *>(images) + i * image;
        net->context.outputs = outputs + static_cast<size_t>(i) * header.outputs;
        if (!walk_all(*net, 0, header.steps)) return NO_THREADS;
    }
    return 0;
}

int bh_profile(bh_net *net, const void *images, int image_type, int layout, int repeats, float *outputs, double *seconds) {
    const Hold hold(net);
    if (!hold) return net ? BUSY : WRONG_ARGUMENT;
    const int wrong = set_images(net, images, image_type, layout, outputs);
    if (wrong || repeats < 1 || !seconds) return wrong ? wrong : WRONG_ARGUMENT;
    for (int n = 0; n < repeats; ++n)
        for (int i = 0; i < net->header.steps; ++i) {
            const double start = now();
            if (!walk_all(*net, i, i + 1)) return NO_THREADS;
            const double took = now() - start;
            seconds[i] = n == 0 || took < seconds[i] ? took : seconds[i];
        }
    return 0;
}

void *bh_arena(bh_net *net) { return net ? net->arena : nullptr; }

int bh_steps(bh_net *net, int from, int to) {
    const Hold hold(net);
    if (!hold) return net ? BUSY : WRONG_ARGUMENT;
    if (from < 0 || to > net->header.steps || from > to) return WRONG_ARGUMENT;
    // There is no image and nowhere to put results.
    for (int i = from; i < to; ++i)
        if (net->steps[i].kind == BH_LOAD || net->steps[i].kind == BH_STORE) return WRONG_ARGUMENT;
    return walk_all(*net, from, to) ? 0 : NO_THREADS;
}

}  // extern "C"
