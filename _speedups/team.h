// team.h: the threads that carry out one step together.
//
// The caller is one of them. The others sleep between steps and spin while one runs: a step has hundreds of phases of a
// few microseconds each, which no sleeping thread would be awake for. A phase's tasks are shared out in runs, for memory
// is read fastest from front to back; who is done with his own takes from the end of another's, so a core that is slow,
// or busy with something else, does not hold the others up by more than the task it is at.
#pragma once

#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace trioserve {

inline void relax() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("yield");
#endif
}

// Where all members of a team meet; whoever comes last does something before the others go on.
//
// Who waits long goes to sleep: the one who is missing may wait for this very core, and others may want it. To yield the
// core would be worse: it goes to whoever else is there, however low his priority, and for a whole time slice, while a
// thread that is woken up gets its core back at once.
class Barrier {
public:
    explicit Barrier(int num_members) : num_members_(num_members) {}

    template <typename Last>
    void meet(const Last& last) {
        const uint32_t round = round_.load(std::memory_order_relaxed);
        if (num_here_.fetch_add(1, std::memory_order_acq_rel) == num_members_ - 1) {
            last();
            num_here_.store(0, std::memory_order_relaxed);
            round_.store(round + 1);
            if (num_asleep_.load() > 0) futex(FUTEX_WAKE_PRIVATE, INT_MAX);
            return;
        }
        for (int spins = 0; spins < kPatience; ++spins) {
            if (round_.load(std::memory_order_acquire) != round) return;
            relax();
        }
        // Whoever comes last either sees this, or has changed the round before the kernel looks at it.
        num_asleep_.fetch_add(1);
        while (round_.load() == round) futex(FUTEX_WAIT_PRIVATE, round);
        num_asleep_.fetch_sub(1);
    }

private:
    static constexpr int kPatience = 4000;  // some 50 us

    void futex(int operation, uint32_t value) {
        static_assert(sizeof round_ == sizeof(uint32_t) && std::atomic<uint32_t>::is_always_lock_free);
        syscall(SYS_futex, &round_, operation, value, nullptr, nullptr, 0);
    }

    const int num_members_;
    alignas(64) std::atomic<int> num_here_{0};
    alignas(64) std::atomic<uint32_t> round_{0};
    alignas(64) std::atomic<int> num_asleep_{0};
};

class Team {
public:
    // `cpus`: where members sit while a step runs, the caller on the first; empty: wherever the system puts them.
    Team(int num_members, std::vector<int> cpus)
        : cpus_(std::move(cpus)), barrier_(num_members), runs_(static_cast<size_t>(num_members)) {
        try {
            for (int member = 1; member < num_members; ++member) helpers_.emplace_back([this, member] { help(member); });
        } catch (...) {
            dismiss();
            throw;
        }
    }

    ~Team() { dismiss(); }

    Team(const Team&) = delete;
    Team& operator=(const Team&) = delete;

    int size() const { return static_cast<int>(runs_.size()); }

    // Calls work(member) once on every member and returns when all are done; work does not throw. `alone`: on the caller
    // only, for what is done before another thread has woken up.
    template <typename Work>
    void run(const Work& work, bool alone = false) {
        alone_ = alone || helpers_.empty();
        if (alone_ && !helpers_.empty()) return work(0);
        const Seat seat(cpus_);
        if (alone_) return work(0);
        member_ = 0;
        work_ = std::cref(work);
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            order_.fetch_add(1, std::memory_order_release);
        }
        woken_.notify_all();
        work(0);
        barrier_.meet([] {});
    }

    // Within run, called by every member alike: task(i, next) once for each i of 0 .. num_tasks - 1, and all of them
    // before any member goes on. `next` is what this member is likely to do after i, -1: not known.
    template <typename Task>
    void each(int num_tasks, const Task& task) {
        if (alone_) {
            for (int i = 0; i < num_tasks; ++i) task(i, i + 1 < num_tasks ? i + 1 : -1);
            return;
        }
        const int me = member_, count = size();
        for (int turn = 0; turn < count; ++turn) {
            const int whose = (me + turn) % count;
            const int first = share(num_tasks, whose), end = share(num_tasks, whose + 1);
            Run& run = runs_[static_cast<size_t>(whose)];
            for (int i; (i = turn == 0 ? run.from_front(first, end) : run.from_back(first, end)) >= 0;)
                task(i, turn == 0 && i + 1 < end ? i + 1 : -1);
        }
        barrier_.meet([this] {
            for (Run& run : runs_) run.reset();
        });
    }

private:
    static constexpr int kLinger = 2000;  // looks, some 50 us: the product after a step comes soon after it

    // Keeps the caller on a core for as long as it lives. Threads that other libraries start between two steps must not
    // inherit that, so it is undone.
    class Seat {
    public:
        explicit Seat(const std::vector<int>& cpus) {
            if (cpus.empty()) return;
            taken_ = pthread_getaffinity_np(pthread_self(), sizeof before_, &before_) == 0 && sit(cpus[0]);
        }
        ~Seat() {
            if (taken_) pthread_setaffinity_np(pthread_self(), sizeof before_, &before_);
        }
        Seat(const Seat&) = delete;
        Seat& operator=(const Seat&) = delete;

    private:
        cpu_set_t before_;
        bool taken_ = false;
    };

    // How much of a member's tasks is taken, from the front by him and from the back by the others.
    class Run {
    public:
        int from_front(int first, int end) {
            const uint64_t before = take(end - first, 1);
            return before == kNone ? -1 : first + static_cast<int>(before & 0xffffffff);
        }
        int from_back(int first, int end) {
            const uint64_t before = take(end - first, uint64_t{1} << 32);
            return before == kNone ? -1 : end - 1 - static_cast<int>(before >> 32);
        }
        void reset() { taken_.store(0, std::memory_order_relaxed); }

    private:
        static constexpr uint64_t kNone = ~uint64_t{0};

        uint64_t take(int size, uint64_t one) {
            uint64_t taken = taken_.load(std::memory_order_relaxed);
            do {
                if (static_cast<int>(taken & 0xffffffff) + static_cast<int>(taken >> 32) >= size) return kNone;
            } while (!taken_.compare_exchange_weak(taken, taken + one, std::memory_order_relaxed));
            return taken;
        }

        alignas(64) std::atomic<uint64_t> taken_{0};
    };

    int share(int num_tasks, int member) const { return static_cast<int>(int64_t{num_tasks} * member / size()); }

    static bool sit(int cpu) {
        cpu_set_t only;
        CPU_ZERO(&only);
        CPU_SET(static_cast<size_t>(cpu), &only);
        return pthread_setaffinity_np(pthread_self(), sizeof only, &only) == 0;
    }

    void help(int member) {
        member_ = member;
        if (static_cast<size_t>(member) < cpus_.size()) sit(cpus_[static_cast<size_t>(member)]);
        for (uint32_t done = 0;; ++done) {
            wait_for_order(done);
            if (dismissed_) return;
            work_(member);
            barrier_.meet([] {});
        }
    }

    void wait_for_order(uint32_t done) {
        for (int looks = 0; looks < kLinger; ++looks) {
            if (order_.load(std::memory_order_acquire) != done) return;
            relax();
        }
        std::unique_lock<std::mutex> lock(mutex_);
        woken_.wait(lock, [&] { return order_.load(std::memory_order_relaxed) != done; });
    }

    void dismiss() {
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            dismissed_ = true;
            order_.fetch_add(1, std::memory_order_release);
        }
        woken_.notify_all();
        for (std::thread& helper : helpers_) helper.join();
        helpers_.clear();
    }

    static inline thread_local int member_ = 0;

    const std::vector<int> cpus_;
    Barrier barrier_;
    std::vector<Run> runs_;  // [size()]
    alignas(64) std::atomic<uint32_t> order_{0};  // goes up by one for every step, and for the end
    bool alone_ = false;
    bool dismissed_ = false;
    std::function<void(int)> work_;
    std::mutex mutex_;
    std::condition_variable woken_;
    std::vector<std::thread> helpers_;
};

}  // namespace trioserve
