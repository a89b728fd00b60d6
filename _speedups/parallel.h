// parallel.h: runs a function on every thread of the one pool.
//
// torch computes on GNU OpenMP. A second pool would fight it for the cores, since a pool's threads spin for a while
// after their work, so the OpenMP that torch has loaded is found by name and borrowed; there is no link to it and no
// second copy. Where none is loaded the caller does all the work itself.
#pragma once

#include <dlfcn.h>

#include <atomic>

namespace trioserve {

using GompParallel = void (*)(void (*)(void*), void*, unsigned, unsigned);

inline GompParallel find_pool() {
    return reinterpret_cast<GompParallel>(dlsym(RTLD_DEFAULT, "GOMP_parallel"));
}

// Calls claim(task) once for each task in 0 .. num_tasks - 1, from up to num_threads threads, in rising order of claims.
// Claiming is dynamic, so that a slow core does not hold the others.
template <typename Claim>
void parallel_tasks(int num_threads, int num_tasks, const Claim& claim) {
    static const GompParallel pool = find_pool();
    if (num_threads > num_tasks) num_threads = num_tasks;
    struct Shared {
        const Claim& claim;
        std::atomic<int> next;
        int num_tasks;
    } shared{claim, {0}, num_tasks};
    auto body = [](void* context) {
        auto& mine = *static_cast<Shared*>(context);
        for (int task; (task = mine.next.fetch_add(1, std::memory_order_relaxed)) < mine.num_tasks;)
            mine.claim(task);
    };
    if (num_threads <= 1 || pool == nullptr)
        body(&shared);
    else
        pool(body, &shared, static_cast<unsigned>(num_threads), 0);
}

}  // namespace trioserve
