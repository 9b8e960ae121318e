// The threads of one net: all of them go through the same steps, with a barrier where one must wait for the others.
#ifndef BILLHOOK_THREADS_H
#define BILLHOOK_THREADS_H

#include <pthread.h>
#include <sys/types.h>

#include <atomic>
#include <cstdint>

namespace billhook {

// A number that threads wait on: they look at it for a while, then sleep until it changes.
class Signal {
public:
    uint32_t value() const { return value_.load(std::memory_order_acquire); }
    // Adds one and wakes whoever sleeps.
    void next();
    // Waits until the value is no longer `old`. `patience`, in nanoseconds, is how long it looks before it sleeps; a wait that
    // was long shortens it, one that was not lengthens it. So on a busy machine threads give their core away early.
    void wait(uint32_t old, uint32_t &patience);
    void reset();
    ~Signal();
    Signal();

private:
    void sleep(uint32_t old);
    alignas(64) std::atomic<uint32_t> value_{0};
    std::atomic<uint32_t> sleepers_{0};
#ifndef __linux__
    pthread_mutex_t mutex_;
    pthread_cond_t changed_;
#endif
};

class Threads {
public:
    using Work = void (*)(void *data, int part);

    // Starts count - 1 threads; the caller of run() is the first. False: they could not be started.
    bool start(int count);
    // Ends them. Nothing may be running.
    void stop();
    // Calls work(data, part) for each part in 0..count-1, each in a thread of its own; returns when all are done.
    // False: this is a child process after a fork, and its threads could not be started again.
    bool run(Work work, void *data);
    // Inside work: waits for the other parts.
    void barrier(int part);
    int count() const { return count_; }

private:
    struct alignas(64) Member {
        Threads *owner;
        int part;
        pthread_t thread;
        uint32_t patience;
    };
    static void *main(void *member);
    void serve(Member &member);
    bool launch();

    static constexpr int MOST = 256;
    int count_ = 1;
    pid_t process_ = 0;
    Work work_ = nullptr;
    void *data_ = nullptr;
    bool ending_ = false;
    alignas(64) std::atomic<int> arrived_{0};
    Signal barrier_, begin_;
    Member members_[MOST];

public:
    static constexpr int most() { return MOST; }
};

}  // namespace billhook

#endif
