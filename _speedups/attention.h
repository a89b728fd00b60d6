// attention.h: causal attention of a ragged batch over the paged KV cache.
//
//   q, out            [num_tokens, num_heads, head_dim]; with strides between tokens
//   k_cache, v_cache  [num_blocks, num_kv_heads, block_size, head_dim], or groups as kv_cache.h says
//   cu_seqlens_q      [num_seqs + 1]   seq_lens [num_seqs]   block_tables [num_seqs, max_blocks]
//
// The batch is cut into tasks of one sequence, one KV head and a few neighbouring tokens: the query heads that share the
// KV head, for all those tokens, share one pass over its keys. Keys are taken 256 at a time (a partition); partitions
// start at multiples of 256 of the sequence and are merged in order, so a row's arithmetic is the same whatever else is
// in the batch, however the prompt was cut, and whether or not a long context was split between threads.
//
// Ladder (Sapphire Rapids, one core; decode with 9 query and 3 KV heads of 64, bf16; microseconds of its time):
//                                                              32 x 200 keys   1 x 8000 keys
//   1. torch, sequence by sequence: gather blocks, SDPA              3270            2260
//   2. vectors of float32, the group sharing each widened key:
//      portable                                                      1730            2330
//      AVX2                                                          1050             960
//      AVX-512                                                        620             620
// and on Zen 5, one core:                                      32 x 200 keys   1 x 8000 keys   512 tokens of 512
//   2. AVX-512                                                          643             775                3346
//   3. bf16 dot products: keys and values turned into panels once
//      for as many rows as the registers hold                           378             376                1607
// and on both its cores, one layer; 9 and 3 heads of 64 / 14 and 2:      8 x 4096 keys       1024 tokens of 1024
//   3. the same                                                          1307 / 1032         3384 / 4991
//   4. the cache keeps groups that are multiplied as they are
//      (kv_cache.h, attention_tiles.h)                                   1265 /  735         2625 / 4295
//   5. each line of a group begins to fetch that of four groups on        760 /  544         2563 / 3794
//      int8                                                               467 /  410         2685 / 4060
//      fp8                                                                498 /  434         3408 / 5188
// and on one core of it, 512 tokens, us of a layer:               S     S, 512 more before them     M
//   5. the same                                                1258                        3356  1894
//   6. weights are powers of two, masks are for the vectors at
//      the ends, sums of lanes halve them, 36 rows instead of
//      32, the first partition is not merged into nothing      1003                        2734  1552
//   7. all rows have their largest score before any has its
//      weights, an address for four rows (dot_tile.h)           931                        2598  1415
//   8. rows of scores begin at different places of the cache    877                        2505  1376
//   9. scores of the groups that there are, two pairs between
//      two looks at the end                                     863                        2464  1334
//      Both products are at the peak now, weights take a quarter of the time. Copying queries by vectors, and finding
//      once for all heads what a token sees, gained nothing.
//  10. the last groups of a task begin to fetch the first ones of the next: the best whole steps of S, in turn with 5 on
//      a machine with other work, of 8 x 129 keys 6.65 -> 6.47 ms, of 32 x 129 keys 13.68 -> 13.38 (three runs each)
// Rows (torch's layers) stayed at 2. Where there is a matrix unit it multiplies with the same groups: attention_unit.h.
#pragma once

#include <algorithm>
#include <atomic>
#include <climits>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <utility>
#include <vector>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "isa.h"
#include "kv_cache.h"
#include "parallel.h"
#include "tiles.h"

namespace trioserve {

constexpr int kPartition = 256;  // keys that are scored before their values are weighed
constexpr int kScoreStride = kPartition + 16;  // rows of scores do not all begin at the same places of the cache
constexpr int kTileRows = 36;    // (token, query head) pairs of a prefill task, about
constexpr int kSerialWork = 1 << 18;  // multiply-adds below which waking other threads costs more than it saves

struct Task;

struct Arguments {
    void* out;
    const void* q;
    const void* k_cache;
    const void* v_cache;
    const int* cu_seqlens_q;
    const int* seq_lens;
    const int* block_tables;
    int64_t q_stride, out_stride;  // elements between two tokens
    int num_seqs, num_heads, num_kv_heads, head_dim, block_size, max_blocks;
    int group;           // num_heads / num_kv_heads
    int sliding_window;  // 0: none
    int max_queries;     // sequences with more query tokens are left out
    float scale;
    float bound;         // a scaled score s counts as bound * tanh(s / bound); 0: as it is
    int64_t group_bytes;  // of a GroupCache
    const Task* next = nullptr;  // what this thread is likely to turn to after a task, null: not known
};

// A cache in rows of a token's elements, of the queries' type.
template <typename T>
struct RowCache {
    using Row = T;
};

// The decoder's cache, for queries of bf16.
template <KvFormat F>
struct GroupCache {
    using Row = bf16;
};

struct Task {
    int seq, kv_head;
    int first_token, num_tokens;  // rows of q
    int first_position;           // of first_token in its sequence
    int end_key;                  // one past the last key that any of its tokens sees
    int first_partition, end_partition;
    int split;  // number of its Split, -1: none
};

// A task whose partitions are tasks of their own; whoever finishes last merges.
struct Split {
    Task whole;
    std::unique_ptr<float[]> found;
    std::atomic<int> left;
};

// Working memory of one task: q [rows][head_dim], scores [rows][kScoreStride], values [rows][head_dim], states and found
// [rows][head_dim + 2], scales [2][kPartition], tail [kGroup / 2][head_dim].
struct Scratch {
    float *q, *scores, *values, *states, *found, *scales;
    uint32_t* tail;
};

inline int64_t cache_offset(const Arguments& a, int block, int kv_head, int offset) {
    return ((static_cast<int64_t>(block) * a.num_kv_heads + kv_head) * a.block_size + offset) * a.head_dim;
}

#define TRIOSERVE_BF16_DOT 0
#define TRIOSERVE_TILES 0
#if defined(__x86_64__)
#undef TRIOSERVE_BF16_DOT
#define TRIOSERVE_BF16_DOT 1
#undef TRIOSERVE_TILES
#define TRIOSERVE_TILES 1
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma,amx-tile,amx-bf16,amx-int8")
#define TRIOSERVE_LANES 16
namespace amx {
#include "simd.h"
#include "dot_tile.h"
#include "unit.h"
#include "attention_kernel.h"
}  // namespace amx
#undef TRIOSERVE_LANES
#pragma GCC pop_options
#undef TRIOSERVE_TILES
#define TRIOSERVE_TILES 0

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx512bf16,avx2,fma")
#define TRIOSERVE_LANES 16
namespace avx512_bf16 {
#include "simd.h"
#include "dot_tile.h"
#include "attention_kernel.h"
}  // namespace avx512_bf16
#undef TRIOSERVE_LANES
#undef TRIOSERVE_BF16_DOT
#define TRIOSERVE_BF16_DOT 0
#pragma GCC pop_options

#undef TRIOSERVE_TILES
#define TRIOSERVE_TILES 2
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#define TRIOSERVE_LANES 16
namespace amx_emulated {
#include "simd.h"
#include "dot_tile.h"
#include "unit.h"
#include "attention_kernel.h"
}  // namespace amx_emulated
#undef TRIOSERVE_LANES
#pragma GCC pop_options
#undef TRIOSERVE_TILES
#define TRIOSERVE_TILES 0

#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512vl,avx512dq,avx2,fma")
#define TRIOSERVE_LANES 16
namespace avx512 {
#include "simd.h"
#include "dot_tile.h"
#include "attention_kernel.h"
}  // namespace avx512
#undef TRIOSERVE_LANES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define TRIOSERVE_LANES 8
namespace avx2 {
#include "simd.h"
#include "dot_tile.h"
#include "attention_kernel.h"
}  // namespace avx2
#undef TRIOSERVE_LANES
#pragma GCC pop_options
#endif

#define TRIOSERVE_LANES 4
namespace portable {
#include "simd.h"
#include "dot_tile.h"
#include "attention_kernel.h"
}  // namespace portable
#undef TRIOSERVE_LANES
#undef TRIOSERVE_BF16_DOT
#undef TRIOSERVE_TILES

// With a matrix unit, the thread's tiles are left configured (tiles.h).
struct Kernel {
    void (*attend)(const Arguments&, const Task&, const Scratch&);
    void (*attend_part)(const Arguments&, const Task&, const Scratch&, float*);
    void (*finish)(const Arguments&, const Task&, const Scratch&, const float*, int);
};

#define TRIOSERVE_KERNEL(set) Kernel{set::attend<Cache>, set::attend_part<Cache>, set::finish<Cache>}

template <typename Cache>
Kernel kernel_of(Isa isa) {
#if defined(__x86_64__)
    if (isa == Isa::amx) return TRIOSERVE_KERNEL(amx);
    if (isa == Isa::amx_emulated) return TRIOSERVE_KERNEL(amx_emulated);
    if (isa == Isa::avx512_bf16) return TRIOSERVE_KERNEL(avx512_bf16);
    if (isa == Isa::avx512 || isa == Isa::avx512_vnni) return TRIOSERVE_KERNEL(avx512);
    if (isa == Isa::avx2) return TRIOSERVE_KERNEL(avx2);
#endif
    return TRIOSERVE_KERNEL(portable);
}

inline Kernel kernel_of(Isa isa, KvFormat format) {
    if (format == KvFormat::int8) return kernel_of<GroupCache<KvFormat::int8>>(isa);
    if (format == KvFormat::fp8) return kernel_of<GroupCache<KvFormat::fp8>>(isa);
    return kernel_of<GroupCache<KvFormat::bf16>>(isa);
}

// Floats that `scratch_in` needs.
inline size_t scratch_size(int num_rows, int head_dim) {
    const size_t rows = static_cast<size_t>(num_rows), dim = static_cast<size_t>(head_dim);
    return rows * (2 * dim + kScoreStride + 2 * (dim + 2)) + 2 * kPartition + kGroup / 2 * dim + 16;
}

inline Scratch scratch_in(float* memory, int num_rows, int head_dim) {
    const size_t rows = static_cast<size_t>(num_rows), dim = static_cast<size_t>(head_dim);
    Scratch s;
    s.scores = memory + (16 - reinterpret_cast<uintptr_t>(memory) / 4 % 16) % 16;
    s.scales = s.scores + rows * kScoreStride;
    s.tail = reinterpret_cast<uint32_t*>(s.scales + 2 * kPartition);
    s.q = s.scales + 2 * kPartition + kGroup / 2 * dim;
    s.values = s.q + rows * dim;
    s.states = s.values + rows * dim;
    s.found = s.states + rows * (dim + 2);
    return s;
}

// Each thread keeps its working memory from call to call.
inline Scratch scratch_of_thread(int num_rows, int head_dim) {
    static thread_local std::vector<float> memory;
    const size_t needed = scratch_size(num_rows, head_dim);
    if (memory.size() < needed) memory.resize(needed);
    return scratch_in(memory.data(), num_rows, head_dim);
}

// Tokens of a prefill task.
inline int tile_tokens(int group) { return std::max(1, kTileRows / group); }

inline std::vector<Task> cut(const Arguments& a) {
    std::vector<Task> tasks;
    const int tile = tile_tokens(a.group);
    for (int seq = 0; seq < a.num_seqs; ++seq) {
        const int begin = a.cu_seqlens_q[seq], end = a.cu_seqlens_q[seq + 1];
        if (end - begin > a.max_queries) continue;
        for (int token = begin; token < end; token += tile) {
            const int num_tokens = std::min(tile, end - token), position = a.seq_lens[seq] - (end - token);
            const int end_key = position + num_tokens;
            const int first_key = a.sliding_window > 0 ? std::max(0, position - a.sliding_window + 1) : 0;
            for (int kv_head = 0; kv_head < a.num_kv_heads; ++kv_head)
                tasks.push_back({seq, kv_head, token, num_tokens, position, end_key, first_key / kPartition,
                                 (end_key + kPartition - 1) / kPartition, -1});
        }
    }
    return tasks;
}

inline int num_partitions(const Task& task) { return task.end_partition - task.first_partition; }

// Replaces tasks that are long beside a thread's share of the work by one task a partition.
inline std::vector<Split> split_long(const Arguments& a, std::vector<Task>& tasks, int num_threads) {
    int64_t total = 0;
    for (const Task& task : tasks) total += num_partitions(task);
    const int64_t longest = std::max<int64_t>(1, total / (4 * num_threads));
    const auto is_long = [longest](const Task& task) { return num_partitions(task) > longest; };
    std::vector<Split> splits(static_cast<size_t>(std::count_if(tasks.begin(), tasks.end(), is_long)));
    int number = 0;
    for (size_t i = 0, count = tasks.size(); i < count; ++i) {
        if (!is_long(tasks[i])) continue;
        Split& split = splits[static_cast<size_t>(number)];
        split.whole = tasks[i];
        split.left = num_partitions(split.whole);
        const size_t rows = static_cast<size_t>(split.whole.num_tokens * a.group * num_partitions(split.whole));
        split.found.reset(new float[rows * static_cast<size_t>(a.head_dim + 2)]);
        for (int p = split.whole.first_partition; p < split.whole.end_partition; ++p) {
            Task part = split.whole;
            part.first_partition = p;
            part.end_partition = p + 1;
            part.split = number;
            if (p == split.whole.first_partition)
                tasks[i] = part;
            else
                tasks.push_back(part);
        }
        ++number;
    }
    return splits;
}

// Parts come before all others: they are of longer tasks, and whoever does the last of a task's parts merges them, which
// the other threads should not have to wait for.
inline void sort_longest_first(std::vector<Task>& tasks) {
    const auto length = [](const Task& task) { return task.split < 0 ? num_partitions(task) * task.num_tokens : INT_MAX; };
    std::stable_sort(tasks.begin(), tasks.end(), [&](const Task& x, const Task& y) { return length(x) > length(y); });
}

inline void run_task(const Arguments& a, const Kernel& kernel, const Task& task, std::vector<Split>& splits,
              const Scratch& scratch) {
    const int num_rows = task.num_tokens * a.group;
    if (task.split < 0) return kernel.attend(a, task, scratch);
    Split& split = splits[static_cast<size_t>(task.split)];
    const int64_t size = static_cast<int64_t>(num_rows) * (a.head_dim + 2);
    float* found = split.found.get() + (task.first_partition - split.whole.first_partition) * size;
    kernel.attend_part(a, task, scratch, found);
    if (split.left.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
    split.left.store(num_partitions(split.whole), std::memory_order_relaxed);  // for the next layer
    kernel.finish(a, split.whole, scratch, split.found.get(), num_partitions(split.whole));
}

template <typename T>
void paged_attention(const Arguments& a, int num_threads, Isa isa) {
    std::vector<Task> tasks = cut(a);
    int64_t work = 0;
    for (const Task& task : tasks)
        work += static_cast<int64_t>(num_partitions(task)) * std::min(kPartition, task.end_key) * task.num_tokens;
    if (work * a.group * a.head_dim * 2 < kSerialWork) num_threads = 1;
    std::vector<Split> splits;
    if (num_threads > 1) splits = split_long(a, tasks, num_threads);
    sort_longest_first(tasks);
    const Kernel kernel = kernel_of<RowCache<T>>(isa);
    parallel_tasks(num_threads, static_cast<int>(tasks.size()), [&](int i) {
        const Task& task = tasks[static_cast<size_t>(i)];
        run_task(a, kernel, task, splits, scratch_of_thread(task.num_tokens * a.group, a.head_dim));
    });
}

}  // namespace trioserve
