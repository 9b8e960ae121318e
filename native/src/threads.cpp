#include "threads.h"

#include <csignal>
#include <climits>

#include <unistd.h>

#ifdef __linux__
#include <linux/futex.h>
#include <sys/syscall.h>
#endif

#include "dispatch.h"

namespace billhook {

// A barrier between two steps is short; waking a thread takes longer than that (some 5 to 50 microseconds, more in a virtual machine).
// A wait that was over within WORTH, the wakening included, would have been better spent looking.
constexpr uint32_t PATIENCE = 60000, IMPATIENCE = 1000, WORTH = 120000;

static inline void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

#ifdef __linux__

Signal::Signal() = default;
Signal::~Signal() = default;

void Signal::sleep(uint32_t old) {
    // The count is raised before the kernel compares the value, and next() changes the value before it looks at the count.
    sleepers_.fetch_add(1, std::memory_order_seq_cst);
    while (value_.load(std::memory_order_seq_cst) == old)
        syscall(SYS_futex, reinterpret_cast<uint32_t *>(&value_), FUTEX_WAIT_PRIVATE, old, nullptr, nullptr, 0);
    sleepers_.fetch_sub(1, std::memory_order_relaxed);
}

void Signal::next() {
    value_.fetch_add(1, std::memory_order_seq_cst);
    if (sleepers_.load(std::memory_order_seq_cst) > 0)
        syscall(SYS_futex, reinterpret_cast<uint32_t *>(&value_), FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

void Signal::reset() {
    value_.store(0);
    sleepers_.store(0);
}

#else

Signal::Signal() {
    pthread_mutex_init(&mutex_, nullptr);
    pthread_cond_init(&changed_, nullptr);
}

Signal::~Signal() {
    pthread_cond_destroy(&changed_);
    pthread_mutex_destroy(&mutex_);
}

void Signal::sleep(uint32_t old) {
    pthread_mutex_lock(&mutex_);
    sleepers_.fetch_add(1);
    while (value_.load() == old) pthread_cond_wait(&changed_, &mutex_);
    sleepers_.fetch_sub(1);
    pthread_mutex_unlock(&mutex_);
}

void Signal::next() {
    value_.fetch_add(1);
    if (sleepers_.load() > 0) {
        pthread_mutex_lock(&mutex_);
        pthread_cond_broadcast(&changed_);
        pthread_mutex_unlock(&mutex_);
    }
}

void Signal::reset() {
    pthread_mutex_init(&mutex_, nullptr);
    pthread_cond_init(&changed_, nullptr);
    value_.store(0);
    sleepers_.store(0);
}

#endif

void Signal::wait(uint32_t old, uint32_t &patience) {
    if (value() != old) return;
    const double start = now(), end = start + 1e-9 * patience;
    do {
        for (int i = 0; i < 8; ++i) {
            pause();
            if (value() != old) {
                patience = patience > PATIENCE / 2 ? PATIENCE : patience * 2;
                return;
            }
        }
    } while (now() < end);
    sleep(old);
    if (now() - start < 1e-9 * WORTH)
        patience = PATIENCE;
    else
        patience = patience / 2 > IMPATIENCE ? patience / 2 : IMPATIENCE;
}

bool Threads::start(int count) {
    count_ = count < 1 ? 1 : count > MOST ? MOST : count;
    for (int part = 0; part < count_; ++part) {
        members_[part].owner = this;
        members_[part].part = part;
        members_[part].patience = PATIENCE;
    }
    return launch();
}

bool Threads::launch() {
    process_ = getpid();
    ending_ = false;
    arrived_.store(0);
    barrier_.reset();
    begin_.reset();
    // Signals are for the program's own threads.
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int started = 1;
    while (started < count_ && pthread_create(&members_[started].thread, nullptr, main, &members_[started]) == 0) ++started;
    pthread_sigmask(SIG_SETMASK, &before, nullptr);
    if (started == count_) return true;
    const int wanted = count_;
    count_ = started;
    stop();
    count_ = wanted;
    process_ = 0;
    return false;
}

void Threads::stop() {
    if (process_ != getpid()) return;  // after a fork the threads are the parent's
    ending_ = true;
    begin_.next();
    for (int part = 1; part < count_; ++part) pthread_join(members_[part].thread, nullptr);
    process_ = 0;
}

void *Threads::main(void *member) {
    Member &mine = *static_cast<Member *>(member);
    mine.owner->serve(mine);
    return nullptr;
}

void Threads::serve(Member &member) {
    // Counted from the start, not read: a run may have begun before this thread did.
    for (uint32_t seen = 0;; ++seen) {
        begin_.wait(seen, member.patience);
        if (ending_) return;
        work_(data_, member.part);
        barrier(member.part);
    }
}

bool Threads::run(Work work, void *data) {
    if (count_ > 1 && process_ != getpid() && !launch()) return false;
    work_ = work;
    data_ = data;
    if (count_ > 1) begin_.next();
    work(data, 0);
    barrier(0);
    return true;
}

void Threads::barrier(int part) {
    if (count_ == 1) return;
    const uint32_t phase = barrier_.value();
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == count_) {
        arrived_.store(0, std::memory_order_relaxed);
        barrier_.next();
    } else {
        barrier_.wait(phase, members_[part].patience);
    }
}

}  // namespace billhook
