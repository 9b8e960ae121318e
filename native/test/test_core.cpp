// The library under sanitizers: programs from files, run as they are, damaged, side by side and after a fork.
//
//   test_core DAMAGED FILE...    DAMAGED: how many damaged copies of each program are opened and, where that works, run
//
// A file's name ends in .ISA.bin, ISA being the number of its instruction set. FILE.expected, where it is, holds three images and
// what another machine, or another set, made of them: floats.
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>

#include "billhook.h"

// The linker hands every request for memory to these (--wrap): a run must make none.
std::atomic<long> requests{0};

extern "C" {
void *__real_malloc(size_t);
void *__real_calloc(size_t, size_t);
void *__real_realloc(void *, size_t);
int __real_posix_memalign(void **, size_t, size_t);
void *__real_aligned_alloc(size_t, size_t);
void *__wrap_malloc(size_t size) { return ++requests, __real_malloc(size); }
void *__wrap_calloc(size_t count, size_t size) { return ++requests, __real_calloc(count, size); }
void *__wrap_realloc(void *block, size_t size) { return ++requests, __real_realloc(block, size); }
int __wrap_posix_memalign(void **block, size_t alignment, size_t size) {
    return ++requests, __real_posix_memalign(block, alignment, size);
}
void *__wrap_aligned_alloc(size_t alignment, size_t size) { return ++requests, __real_aligned_alloc(alignment, size); }
}

void *operator new(size_t size) {
    void *block = std::malloc(size);
    if (!block) std::abort();
    return block;
}
void operator delete(void *block) noexcept { std::free(block); }
void operator delete(void *block, size_t) noexcept { std::free(block); }

namespace {

int failures = 0;

#define CHECK(condition)                                                        \
    do {                                                                        \
        if (!(condition)) {                                                     \
            std::printf("%s:%d: %s\n", __FILE__, __LINE__, #condition);         \
            ++failures;                                                         \
        }                                                                       \
    } while (0)

// Numbers that are the same on every run.
struct Random {
    uint64_t state;
    uint32_t next() {
        state = state * 6364136223846793005u + 1442695040888963407u;
        return static_cast<uint32_t>(state >> 33);
    }
    uint32_t below(uint32_t limit) { return next() % limit; }
};

// Bytes in a block exactly as large as they are, so that a sanitizer sees one too many.
struct Program {
    unsigned char *bytes = nullptr;
    size_t size = 0;
    int isa = 0;

    explicit Program(size_t size) : size(size) {
        void *block = nullptr;
        if (posix_memalign(&block, BH_ALIGN, size)) std::abort();
        bytes = static_cast<unsigned char *>(block);
    }
    Program(const Program &other) : Program(other.size) {
        isa = other.isa;
        std::memcpy(bytes, other.bytes, size);
    }
    Program &operator=(const Program &) = delete;
    ~Program() { std::free(bytes); }
    const bh_header &header() const { return *reinterpret_cast<const bh_header *>(bytes); }
    bh_step *steps() { return reinterpret_cast<bh_step *>(bytes + sizeof(bh_header)); }
};

Program read(const char *path) {
    std::FILE *file = std::fopen(path, "rb");
    if (!file) {
        std::perror(path);
        std::exit(2);
    }
    std::fseek(file, 0, SEEK_END);
    Program program(static_cast<size_t>(std::ftell(file)));
    std::rewind(file);
    if (std::fread(program.bytes, 1, program.size, file) != program.size) std::exit(2);
    std::fclose(file);
    program.isa = std::atoi(path + std::strlen(path) - 5);  // N.bin
    return program;
}

struct Images {
    float *values;
    unsigned char *raw;
    float *outputs, *expected;

    Images(const bh_header &header, int count) {
        const size_t size = static_cast<size_t>(header.channels) * header.height * header.width * count;
        values = static_cast<float *>(std::malloc(size * sizeof(float)));
        raw = static_cast<unsigned char *>(std::malloc(size));
        outputs = static_cast<float *>(std::calloc(header.outputs + 1, sizeof(float) * count));
        expected = static_cast<float *>(std::calloc(header.outputs + 1, sizeof(float) * count));
        Random random{1};
        for (size_t i = 0; i < size; ++i) {
            raw[i] = static_cast<unsigned char>(random.next());
            values[i] = static_cast<float>(raw[i]) / 64 - 2;
        }
    }
    Images(const Images &) = delete;
    ~Images() {
        std::free(values);
        std::free(raw);
        std::free(outputs);
        std::free(expected);
    }
};

// What was made elsewhere is made here as well, to within rounding.
void compare(const Program &program, const char *path) {
    constexpr int COUNT = 3;
    char name[4096];
    std::snprintf(name, sizeof name, "%s.expected", path);
    std::FILE *file = std::fopen(name, "rb");
    if (!file) return;
    const bh_header &header = program.header();
    const size_t pixels = static_cast<size_t>(header.channels) * header.height * header.width * COUNT;
    const size_t numbers = static_cast<size_t>(header.outputs) * COUNT;
    Images images(header, COUNT);
    CHECK(std::fread(images.values, sizeof(float), pixels, file) == pixels);
    CHECK(std::fread(images.expected, sizeof(float), numbers, file) == numbers);
    std::fclose(file);
    bh_net *net = bh_open(program.bytes, program.size, program.isa, 2, nullptr, 0);
    CHECK(net && bh_run(net, images.values, 0, 0, COUNT, images.outputs) == 0);
    float largest = 0, worst = 0;
    for (size_t i = 0; i < numbers; ++i) {
        largest = std::fmax(largest, std::fabs(images.expected[i]));
        worst = std::fmax(worst, std::fabs(images.outputs[i] - images.expected[i]));
    }
    std::printf("  off by %.1e of %.1e\n", static_cast<double>(worst), static_cast<double>(largest));
    CHECK(largest > 0 && worst <= (header.type == BH_BF16 ? 2e-2f : 1e-5f) * largest);
    bh_close(net);
}

void run_whole(const Program &program) {
    constexpr int COUNT = 3;
    const bh_header &header = program.header();
    Images images(header, COUNT);
    const size_t bytes = sizeof(float) * COUNT * header.outputs;
    for (int threads = 1; threads <= 4; ++threads) {
        char error[256] = "";
        bh_net *net = bh_open(program.bytes, program.size, program.isa, threads, error, sizeof error);
        if (!net) std::printf("%s\n", error);
        CHECK(net);
        if (!net) return;
        CHECK(bh_run(net, images.values, 0, 0, COUNT, images.outputs) == 0);
        for (int i = 0; i < COUNT * header.outputs; ++i) CHECK(std::isfinite(images.outputs[i]));
        if (threads == 1) std::memcpy(images.expected, images.outputs, bytes);
        CHECK(std::memcmp(images.expected, images.outputs, bytes) == 0);
        const long before = requests;
        for (int layout = 0; layout < 2; ++layout) CHECK(bh_run(net, images.raw, 1, layout, COUNT, images.outputs) == 0);
        CHECK(bh_run(net, images.values, 0, 0, 1, images.outputs) == 0);
        CHECK(before > 0 && requests == before);
        double *seconds = static_cast<double *>(std::calloc(header.steps, sizeof(double)));
        CHECK(bh_profile(net, images.values, 0, 0, 2, images.outputs, seconds) == 0);
        std::free(seconds);
        CHECK(bh_steps(net, 1, header.steps - 1) == 0);
        CHECK(bh_steps(net, 0, 1) < 0);
        CHECK(bh_run(net, images.values, 2, 0, 1, images.outputs) < 0);
        CHECK(bh_run(net, nullptr, 0, 0, 1, images.outputs) < 0);
        bh_close(net);
    }
}

void run_damaged(const Program &whole, int times, Random &random) {
    int opened = 0;
    for (int n = 0; n < times; ++n) {
        Program program(whole);
        const bh_header header = whole.header();
        const size_t sensitive = sizeof(bh_header) + sizeof(bh_step) * header.steps;
        // Mostly the header and the steps; now and then what they point to.
        const int changes = 1 + static_cast<int>(random.below(3));
        for (int i = 0; i < changes; ++i) {
            const size_t place = random.below(random.below(4) ? static_cast<uint32_t>(sensitive) : static_cast<uint32_t>(program.size));
            if (random.below(2))
                program.bytes[place] ^= static_cast<unsigned char>(1u << random.below(8));
            else
                program.bytes[place] = static_cast<unsigned char>(random.next());
        }
        // Some are cut short, and say so or not.
        const size_t size = random.below(8) ? program.size : random.below(static_cast<uint32_t>(program.size));
        Program cut(size);
        std::memcpy(cut.bytes, program.bytes, size);
        char error[256] = "";
        bh_net *net = bh_open(cut.bytes, cut.size, whole.isa, 1 + static_cast<int>(random.below(2)), error, sizeof error);
        if (!net) {
            CHECK(error[0] && !std::strchr(error, '\n'));
            continue;
        }
        ++opened;
        Images images(cut.header(), 1);
        bh_run(net, images.values, 0, static_cast<int>(random.below(2)), 1, images.outputs);
        bh_close(net);
    }
    std::printf("  %d damaged programs, %d of them run\n", times, opened);
}

struct Side {
    bh_net *net;
    const Program *program;
    int runs;
    bool same;
};

void *side(void *data) {
    Side &mine = *static_cast<Side *>(data);
    const bh_header &header = mine.program->header();
    Images images(header, 2);
    const size_t bytes = sizeof(float) * 2 * header.outputs;
    for (int i = 0; i < mine.runs; ++i) {
        if (bh_run(mine.net, images.values, 0, 0, 2, images.outputs) != 0) mine.same = false;
        if (i == 0) std::memcpy(images.expected, images.outputs, bytes);
        if (std::memcmp(images.expected, images.outputs, bytes) != 0) mine.same = false;
    }
    return nullptr;
}

void run_side_by_side(const Program &program) {
    constexpr int NETS = 3;
    Side sides[NETS];
    pthread_t threads[NETS];
    for (int i = 0; i < NETS; ++i) {
        sides[i] = {bh_open(program.bytes, program.size, program.isa, 2, nullptr, 0), &program, 30, true};
        CHECK(sides[i].net);
        if (pthread_create(&threads[i], nullptr, side, &sides[i])) std::abort();
    }
    for (int i = 0; i < NETS; ++i) {
        pthread_join(threads[i], nullptr);
        CHECK(sides[i].same);
        bh_close(sides[i].net);
    }
}

// Nets that are opened and closed at once, or after a pause that lets their threads fall asleep.
void open_and_close(const Program &program) {
    const bh_header &header = program.header();
    Images images(header, 1);
    for (int i = 0; i < 20; ++i) {
        bh_net *net = bh_open(program.bytes, program.size, program.isa, 3, nullptr, 0);
        CHECK(net);
        if (i % 3) CHECK(bh_run(net, images.values, 0, 0, 1, images.outputs) == 0);
        if (i % 5 == 4) {
            usleep(2000);
            CHECK(bh_run(net, images.values, 0, 0, 1, images.outputs) == 0);
        }
        bh_close(net);
    }
}

#if !defined(__SANITIZE_THREAD__)
void run_after_fork(const Program &program) {
    Images images(program.header(), 1);
    bh_net *net = bh_open(program.bytes, program.size, program.isa, 3, nullptr, 0);
    CHECK(net && bh_run(net, images.values, 0, 0, 1, images.expected) == 0);
    const pid_t child = fork();
    if (child == 0) {
        alarm(60);
        const bool fine = bh_run(net, images.values, 0, 0, 1, images.outputs) == 0 &&
                          std::memcmp(images.expected, images.outputs, sizeof(float) * program.header().outputs) == 0;
        bh_close(net);
        _exit(fine ? 0 : 1);
    }
    int status = 0;
    waitpid(child, &status, 0);
    CHECK(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK(bh_run(net, images.values, 0, 0, 1, images.outputs) == 0);
    bh_close(net);
}
#endif

}  // namespace

int main(int count, char **arguments) {
    if (count < 3) return 2;
    setenv("BILLHOOK_SHARE_ALL", "1", 1);
    Random random{42};
    int run = 0;
    for (int i = 2; i < count; ++i) {
        const Program program = read(arguments[i]);
        if (program.isa > bh_best() || !(bh_compiled() >> program.isa & 1)) continue;
        std::printf("%s\n", arguments[i]);
        ++run;
        compare(program, arguments[i]);
        run_whole(program);
        run_damaged(program, std::atoi(arguments[1]), random);
        run_side_by_side(program);
        open_and_close(program);
#if !defined(__SANITIZE_THREAD__)
        run_after_fork(program);
#endif
    }
    std::printf("%d programs, %d failures\n", run, failures);
    return failures || !run ? 1 : 0;
}
