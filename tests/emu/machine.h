// machine.h: a block of CUDA threads as fibers: who may run, who waits for whom, and what no program may do.
//
// One block runs at a time, its threads by turns; a thread runs until it waits. Whatever is wrong ends the launch with
// a sentence that names the thread; the fibers are then simply dropped, as kernels own nothing.
//
// Stricter than the hardware where that finds bugs: a barrier is for all threads of a block, at one place in the
// source; a collective is for all lanes of its mask, and they exist.
#pragma once

#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <string>
#include <utility>
#include <vector>

#include "fiber.h"
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace cuemu {

constexpr int kLanes = 32;
constexpr int kMaxThreads = 1024;         // of a block
constexpr size_t kStackBytes = 128 << 10;  // of a thread; committed as it is touched

struct Dim3 {
    unsigned x = 1, y = 1, z = 1;
    uint64_t count() const { return uint64_t{x} * y * z; }
    Dim3 at(uint64_t i) const {
        return {static_cast<unsigned>(i % x), static_cast<unsigned>(i / x % y), static_cast<unsigned>(i / x / y)};
    }
};

enum class State : uint8_t { ready, at_barrier, at_phase, in_collective, left };

struct Thread;
// Carries out what the lanes of mask have asked for; warp is lane 0.
using Collective = void (*)(Thread* warp, uint32_t mask);

struct Request {
    Collective carry_out;
    uint32_t mask;
    const void* in;
    void* out;
    int argument;
};

struct Place {
    const char* file = "";
    int line = 0;
};

// 16 bytes on their way to shared memory.
struct Copy {
    void* to;
    const void* from;  // null: zeros
    int group;
};

// What a thread knows of the others, once a block uses what is finer than a barrier of all of its threads: of each thread
// the last step that it has learnt of, of each thread the step of its last publish_to_matrices, of each warp the last
// group of products that has ended.
using Known = std::vector<uint32_t>;

// Sums of products that have not ended: where they will be, and what.
struct Sums {
    float* to;
    std::vector<float> values;
    uint32_t group;
};

// The registers that begin_products speaks of, until the products have ended.
struct Settled {
    const float* c = nullptr;
    const uint32_t *a = nullptr, *behind_a = nullptr;
};

struct Thread {
    Fiber fiber;
    State state;
    int number;    // in the block, x fastest
    Dim3 index;
    Request request;
    Place place;   // of the barrier
    std::vector<Copy> copies;
    int num_groups;  // of copies, so far
    uint32_t step;   // own, begun anew with all that others may learn of
    Known known;     // empty while nobody needs it
    std::vector<Sums> sums;
    uint32_t num_products;   // groups of products, so far
    Settled settled;
    int warp() const { return number / kLanes; }
    int lane() const { return number % kLanes; }
};

// A barrier in shared memory.
struct Phases {
    const void* at;
    int arrivals, missing;
    uint32_t number;         // phases that have ended
    Known arriving, ended;   // what those know who have arrived, in this phase and in the last one that ended
};

struct Machine {
    Dim3 grid, block;
    Dim3 block_index;
    uint64_t serial = 0;               // of the block, over all launches
    std::vector<Thread> threads;
    std::vector<Phases> phases;
    std::vector<uint32_t> warp_epoch;  // whole-warp __syncwarp calls so far
    uint32_t epoch = 0;                // barriers so far
    int num_left = 0, num_waiting = 0;
    Thread* current = nullptr;
    Fiber home;
    std::string error;
    void (*body)(void** values) = nullptr;
    void** values = nullptr;
};
inline Machine machine;

inline std::string format(const char* text, va_list values) {
    char line[512];
    std::vsnprintf(line, sizeof line, text, values);
    return line;
}

inline void yield() { machine.current->fiber.leave_for(machine.home); }

// End the launch from inside a thread.
[[noreturn]] __attribute__((format(printf, 1, 2))) inline void fail(const char* text, ...) {
    va_list values;
    va_start(values, text);
    const Dim3 at = machine.block_index, thread = machine.current->index;
    char where[128];
    std::snprintf(where, sizeof where, " [block %u %u %u, thread %u %u %u]", at.x, at.y, at.z, thread.x, thread.y,
                  thread.z);
    machine.error = format(text, values) + where;
    va_end(values);
    yield();
    __builtin_unreachable();
}

// ---- what threads know

inline size_t published_at(int thread) { return machine.threads.size() + thread; }
inline size_t ended_at(int warp) { return 2 * machine.threads.size() + warp; }

inline void join(Known& known, const Known& other) {
    for (size_t i = 0; i < known.size(); ++i) known[i] = known[i] < other[i] ? other[i] : known[i];
}

// What the thread did so far can be told from what it does from here on.
inline void begin_step(Thread& thread) { thread.known[thread.number] = ++thread.step - 1; }

inline void need_knowledge() {
    Machine& m = machine;
    if (!m.current->known.empty()) return;
    for (Thread& thread : m.threads) thread.known.assign(2 * m.threads.size() + m.warp_epoch.size(), 0);
}

// All of these learn what each of them knows.
inline void share_knowledge(Thread* threads, size_t size) {
    if (threads->known.empty()) return;
    for (size_t i = 0; i < size; ++i) begin_step(threads[i]);
    Known all = threads->known;
    for (size_t i = 1; i < size; ++i) join(all, threads[i].known);
    for (size_t i = 0; i < size; ++i) threads[i].known = all;
}

inline bool knows(int thread, int other, uint32_t step) {
    const Known& known = machine.threads[thread].known;
    return other >= 0 && !known.empty() && known[other] >= step;
}

// ---- barriers and collectives

inline void barrier(const char* file, int line) {
    Machine& m = machine;
    if (m.num_left) fail("divergent barrier: %d threads left and cannot reach %s:%d", m.num_left, file, line);
    for (const Thread& other : m.threads) {
        const Place& there = other.place;
        if (other.state == State::at_barrier && (there.line != line || std::strcmp(there.file, file)))
            fail("divergent barrier: %s:%d, while others wait at %s:%d", file, line, there.file, there.line);
    }
    m.current->place = {file, line};
    if (++m.num_waiting < static_cast<int>(m.threads.size())) {
        m.current->state = State::at_barrier;
        return yield();
    }
    m.num_waiting = 0;
    ++m.epoch;
    share_knowledge(m.threads.data(), m.threads.size());
    for (Thread& thread : m.threads) thread.state = State::ready;
}

// Wait for the lanes of mask to ask for the same; the last to come carries it out for all.
inline void collective(Collective carry_out, uint32_t mask, const void* in = nullptr, void* out = nullptr,
                       int argument = 0) {
    Thread& self = *machine.current;
    Thread* warp = &self - self.lane();
    const int num_lanes = static_cast<int>(machine.threads.size()) - self.warp() * kLanes;
    if (!(mask >> self.lane() & 1)) fail("lane %d is outside the mask %08x of its collective", self.lane(), mask);
    self.request = {carry_out, mask, in, out, argument};
    self.state = State::in_collective;
    bool complete = true;
    for (int lane = 0; lane < kLanes; ++lane) {
        if (!(mask >> lane & 1)) continue;
        if (lane >= num_lanes || warp[lane].state == State::left)
            fail("the mask %08x of a collective names lane %d, which is not there", mask, lane);
        if (warp[lane].state != State::in_collective)
            complete = false;
        else if (warp[lane].request.carry_out != carry_out || warp[lane].request.mask != mask)
            fail("divergent collective: lanes %d and %d are in different ones", self.lane(), lane);
    }
    if (!complete) return yield();
    carry_out(warp, mask);
    for (int lane = 0; lane < kLanes; ++lane)
        if (mask >> lane & 1) warp[lane].state = State::ready;
}

inline void run_thread() {
    machine.body(machine.values);
    if (!machine.current->copies.empty()) fail("this thread leaves, and copies of it are on their way");
    if (!machine.current->sums.empty()) fail("this thread leaves, and products of it have not ended");
    machine.current->state = State::left;
    ++machine.num_left;
    if (machine.num_waiting) fail("divergent barrier: this thread leaves, %d others wait", machine.num_waiting);
    yield();
    __builtin_unreachable();
}

// The order of turns: 0 forward, 1 reverse, otherwise the seed of a shuffle that is new each round.
class Turns {
public:
    Turns(int size, int order) : turns_(size), order_(order), state_(0x9e3779b97f4a7c15u * (order + 1)) {
        for (int i = 0; i < size; ++i) turns_[i] = order == 1 ? size - 1 - i : i;
    }
    const std::vector<int>& next() {
        if (order_ > 1)
            for (size_t i = turns_.size(); i > 1; --i) std::swap(turns_[i - 1], turns_[random() % i]);
        return turns_;
    }

private:
    uint64_t random() {
        state_ ^= state_ << 13;
        state_ ^= state_ >> 7;
        return state_ ^= state_ << 17;
    }
    std::vector<int> turns_;
    int order_;
    uint64_t state_;
};

inline char* stacks() {
    static void* const memory = mmap(nullptr, kMaxThreads * kStackBytes, PROT_READ | PROT_WRITE,
                                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return memory == MAP_FAILED ? nullptr : static_cast<char*>(memory);
}

inline void start_block(const Dim3& index) {
    Machine& m = machine;
    m.block_index = index;
    ++m.serial;
    m.epoch = m.num_left = m.num_waiting = 0;
    m.phases.clear();
    m.warp_epoch.assign((m.threads.size() + kLanes - 1) / kLanes, 0);
#if defined(__SANITIZE_ADDRESS__)  // the fibers of a launch that failed left their frames marked
    ASAN_UNPOISON_MEMORY_REGION(stacks(), m.threads.size() * kStackBytes);
#endif
    for (size_t i = 0; i < m.threads.size(); ++i) {
        Thread& thread = m.threads[i];
        thread.state = State::ready;
        thread.number = static_cast<int>(i);
        thread.index = m.block.at(i);
        thread.copies.clear();
        thread.num_groups = 0;
        thread.step = 1;
        thread.known.clear();
        thread.sums.clear();
        thread.num_products = 0;
        thread.settled = Settled();
        thread.fiber.start(run_thread, stacks() + i * kStackBytes, kStackBytes);
    }
}

// Give turns until every thread has left; false where the launch failed.
inline bool finish_block(Turns& turns) {
    Machine& m = machine;
    while (m.num_left < static_cast<int>(m.threads.size())) {
        bool any = false;
        for (int i : turns.next()) {
            if (m.threads[i].state != State::ready) continue;
            any = true;
            m.current = &m.threads[i];
            m.home.leave_for(m.current->fiber);
            if (!m.error.empty()) return false;
        }
        if (any) continue;
        int num_at_phases = 0;
        for (const Thread& thread : m.threads) num_at_phases += thread.state == State::at_phase;
        const int others = static_cast<int>(m.threads.size()) - m.num_waiting - num_at_phases - m.num_left;
        m.error = "deadlock: " + std::to_string(m.num_waiting) + " threads wait at a barrier, " +
                  std::to_string(num_at_phases) + " for a phase of one, " + std::to_string(others) +
                  " in a collective, " + std::to_string(m.num_left) + " left";
        return false;
    }
    return true;
}

}  // namespace cuemu
