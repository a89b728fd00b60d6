// paged_prefill_sm90: paged_prefill for sm_90a, by its matrix instructions of four warps; the same tables, the same rows.
//
//   q                   [num_tokens, num_heads, head_dim], token t at q + t * q_stride elements, its heads contiguous
//   k_cache, v_cache    [num_blocks, num_kv_heads, block_size, head_dim], contiguous; block_size a multiple of 16
//   cu_seqlens_q        [num_seqs + 1], cumulative query lengths
//   seq_lens            [num_seqs], KV lengths, these queries included
//   block_tables        [num_seqs, max_blocks]
//   out                 [num_tokens, num_heads, head_dim], contiguous; sequences of fewer than min_queries tokens are
//                       left to others
//
//   T           bf16 or fp16, of the cache too
//   kHeadDim    64 or 128
//   kKeys       of a tile, 128: columns of one instruction
//   kStages     tiles in shared memory, at least 3
//   grid        (an upper bound of the tiles of 128 rows of all sequences, num_kv_heads)
//   block       384: two warpgroups of 64 rows each, and one that copies
//   shared      kStages of Stage<..>::kBytes
//
// A row's result does not depend on the rows beside it: keys are taken in tiles that begin at multiples of kKeys. A tile
// that none of a warpgroup's rows sees is skipped; taken in, it would change nothing, to the bit.
//
// How keys and values lie in shared memory. A matrix instruction reads its second operand there, in one of four layouts;
// in all of them eight rows of 16 bytes are a unit: 16 bytes apart without a swizzle, otherwise 32, 64 or 128 bytes with
// their chunks permuted. A block of the cache is rows of 128 or 256 bytes in a piece, so a bulk copy of it is none of
// these: the first would have each row in 16-byte pieces, the others would have its chunks permuted, and a bulk copy
// permutes only by a tensor map, which the host must make. So each chunk of 16 bytes is a cp.async of its own, and its
// thread puts it where it belongs: rows of 128 bytes, permuted, as matrix_at says, which is also free of bank conflicts.
// Heads of 128 are two such halves, one behind the other, so that keys and values have one layout:
//   keys     the second operand is their transpose [dimensions, keys], column by column. The next 8 keys are 1024 bytes on;
//            the next 16 dimensions, which are the next instruction, 32 bytes, and after four of those the next half.
//   values   the second operand is [keys, dimensions], row by row. The next 8 keys are 1024 bytes on, the next 16, which
//            are the next instruction, 2048; the next 64 dimensions are the next half.
// The first operand is in registers, queries and then weights, as mma.sync has them; so are the results.
//
// Who waits for whom. cp.async writes as any store does, matrix instructions read by another way to memory: so who copied
// waits for its copies, says publish_to_matrices, and arrives at the stage's first barrier, where 128 are awaited. Each of
// the eight warps that multiply arrives at its second one when its instructions have ended. A tile is published when the
// next one is on its way, so there are three stages: one that is read, one that is ready, one that is filled.
//
// Ladder
//   v1  As above. 128 x 128 x 128 x 4 FLOP a tile and head of 128 take two warpgroups some 2048 cycles of the tensor cores;
//       its 128 x 128 weights take each multiprocessor's 16 exponentials a cycle 1024 cycles, which the other warpgroup's
//       products hide only by chance. Never run on a GPU; an emulator carries out its barriers, layouts and products.
#include "prefill.cuh"

constexpr int kGroupThreads = 4 * kWarp, kGroupRows = 4 * kRows;  // of a warpgroup
constexpr int kMultiplying = 2;                                   // warpgroups, in front of the one that copies
constexpr int kProducts = kMultiplying * kGroupThreads;           // threads
constexpr int kSwizzled = 128;                                    // bytes of a row of a half: 64 dimensions

// A tile of keys and one of values, each [kHeadDim / 64, kKeys, 64].
template <int kHeadDim, int kKeys>
struct Stage {
    static constexpr int kHalf = kKeys * kSwizzled, kTile = kHeadDim / 64 * kHalf, kBytes = 2 * kTile;
    static constexpr int kChunks = kHeadDim / 8;             // of 16 bytes, of a row
    static constexpr int kStep = kGroupThreads / kChunks;    // rows that a warpgroup copies at a time
    static_assert(kHeadDim % 64 == 0 && kStep % 8 == 0 && kGroupKeys % kStep == 0, "a thread's rows are permuted alike");

    static __device__ __forceinline__ int place_of(int row, int chunk) {
        return chunk / 8 * kHalf + row * kSwizzled + (chunk % 8 ^ row % 8) * kVectorBytes;
    }

    // Dimensions 16 * step.. of all keys, and the values of keys 16 * group..
    static __device__ __forceinline__ u64 keys(u32 stage, int step) {
        return matrix_at(stage + step / 4 * kHalf + step % 4 * 32, 8 * kSwizzled, 16);
    }
    static __device__ __forceinline__ u64 values(u32 stage, int group) {
        return matrix_at(stage + kTile + group * kGroupKeys * kSwizzled, 8 * kSwizzled, kHalf);
    }
};

// Which stage is next, and the parity of its barriers' phase.
template <int kStages>
struct Turn {
    int slot = 0, parity = 0;

    __device__ __forceinline__ void next() {
        if (++slot < kStages) return;
        slot = 0;
        parity ^= 1;
    }
};

// Copies all tiles from begin to end into the stages, as they become free.
template <typename T, int kHeadDim, int kKeys, int kStages, typename Barriers>
__device__ __forceinline__ void copy_tiles(const PagedKeys<T, kHeadDim>& keys, SharedBytes stages, Barriers& barriers,
                                           int begin, int end) {
    using Place = Stage<kHeadDim, kKeys>;
    const int thread = threadIdx.x % kGroupThreads, row = thread / Place::kChunks;
    const int at = Place::place_of(row, thread % Place::kChunks);
    const int* block = keys.block_table + begin / keys.block_size;
    int offset = begin % keys.block_size;
    const auto publish = [&](int slot) {
        publish_to_matrices();
        arrive_at_barrier(&barriers[slot]);
    };
    Turn<kStages> turn;
    int last = -1;
    for (int base = begin; base < end; base += kKeys, turn.next()) {
        wait_at_barrier(&barriers[kStages + turn.slot], turn.parity ^ 1);
        const auto stage = stages + (turn.slot * Place::kBytes + at);
#pragma unroll 2
        for (int group = 0; group < kKeys; group += kGroupKeys) {
            const int wanted = end - base - group - row;
            const i64 place = keys.place_of(end - base > group ? load<int>(block) : 0, offset);
            const T *k = keys.k_cache + place * kHeadDim, *v = keys.v_cache + place * kHeadDim;
#pragma unroll
            for (int first = 0; first < kGroupKeys; first += Place::kStep) {
                const int to = (group + first) * kSwizzled, from = first * kHeadDim + thread * 8;
                copy_async(&stage[to], k + from, first < wanted);
                copy_async(&stage[to + Place::kTile], v + from, first < wanted);
            }
            offset += kGroupKeys;
            if (offset == keys.block_size) {
                offset = 0;
                ++block;
            }
        }
        commit_copies();
        if (last >= 0) {
            wait_copies<1>();
            publish(last);
        }
        last = turn.slot;
    }
    wait_copies<0>();
    publish(last);
}

template <typename T, int kHeadDim, int kKeys, int kStages>
__global__ void __launch_bounds__(384, 1)
paged_prefill_sm90(T* __restrict__ out, const T* __restrict__ q, const T* __restrict__ k_cache,
                   const T* __restrict__ v_cache, const int* __restrict__ cu_seqlens_q, const int* __restrict__ seq_lens,
                   const int* __restrict__ block_tables, int num_seqs, int num_heads, int num_kv_heads, i64 q_stride,
                   int block_size, int max_blocks, float scale, float soft_cap, int sliding_window, int min_queries) {
    using KeyTile = Tile<T, T, kHeadDim, kKeys>;
    using Place = Stage<kHeadDim, kKeys>;
    const int group_size = num_heads / num_kv_heads, kv_head = blockIdx.y;
    const RowTile tile = find_rows(cu_seqlens_q, num_seqs, group_size, kMultiplying * kGroupRows, min_queries);
    if (tile.seq < 0) return;
    const int first_token = load<int>(cu_seqlens_q + tile.seq);
    const int num_queries = load<int>(cu_seqlens_q + tile.seq + 1) - first_token;
    const int num_computed = load<int>(seq_lens + tile.seq) - num_queries, num_rows = num_queries * group_size;
    const auto last_row = [&](int behind) { return smaller(behind, num_rows) - 1; };
    const Seen all(tile.row, last_row(tile.row + kMultiplying * kGroupRows), num_computed, group_size, sliding_window);
    const int begin = all.begin / kKeys * kKeys, end = all.end;

    __shared__ SharedArray<u64, 2 * kStages> barriers;  // of each stage: it is there; it is free
    if (threadIdx.x == 0) {
        for (int slot = 0; slot < kStages; ++slot) {
            init_barrier(&barriers[slot], kGroupThreads);
            init_barrier(&barriers[kStages + slot], kProducts / kWarp);
        }
    }
    __syncthreads();
    const auto stages = dynamic_shared<u8>();
    if (threadIdx.x >= kProducts) {
        give_registers<40>();
        const int* block_table = block_tables + static_cast<i64>(tile.seq) * max_blocks;
        const PagedKeys<T, kHeadDim> paged{k_cache, v_cache, nullptr, nullptr, block_table, num_kv_heads, kv_head, block_size};
        return copy_tiles<T, kHeadDim, kKeys, kStages>(paged, stages, barriers, begin, end);
    }
    take_registers<232>();

    const int first_row = tile.row + threadIdx.x / kGroupThreads * kGroupRows;
    const Seen seen(first_row, last_row(first_row + kGroupRows), num_computed, group_size, sliding_window);
    const LaneRows<T, kHeadDim> rows(q, q_stride, tile.row, num_rows, first_token, num_computed, kv_head * group_size,
                                     group_size, num_heads);
    typename KeyTile::template Queries<true> queries(rows.query[0], rows.query[1]);
    const Scoring scoring(scale, soft_cap);
    Softmax<KeyTile, T, kHeadDim, kKeys> softmax;
    Turn<kStages> turn;
    for (int base = begin; base < end; base += kKeys, turn.next()) {
        wait_at_barrier(&barriers[turn.slot], turn.parity);
        if (first_row < num_rows && base < seen.end && base + kKeys > seen.begin) {
            const auto stage = stages + turn.slot * Place::kBytes;
            const u32 address = shared_address(&stage[0]);
            float scores[kKeys / 8][4] = {};
            begin_products(scores, queries.kept);
#pragma unroll
            for (int step = 0; step < KeyTile::kSteps; ++step)
                multiply_group<T, false>(scores, queries.kept[step], Place::keys(address, step), step > 0);
            commit_products();
            wait_products(scores);
            KeyTile::score(scores, stage, scoring);
            if (base < seen.all_from || base + kKeys > seen.all_to) {
                const int behind[2] = {rows.position[0] + 1 - base, rows.position[1] + 1 - base};
                const int first[2] = {behind[0] - seen.window, behind[1] - seen.window};
                KeyTile::mask(scores, first, behind);
            }
            softmax.raise(scores, scoring.factor);
            u32 weights[kKeys / kGroupKeys][4];
#pragma unroll
            for (int group = 0; group < kKeys / kGroupKeys; ++group)
                softmax.weigh(weights[group], scores, group, scoring.factor, stage);
            begin_products(softmax.sums, weights);
#pragma unroll
            for (int group = 0; group < kKeys / kGroupKeys; ++group)
                multiply_group<T, true>(softmax.sums, weights[group], Place::values(address, group), true);
            commit_products();
            wait_products(softmax.sums);
        }
        if (threadIdx.x % kWarp == 0) arrive_at_barrier(&barriers[kStages + turn.slot]);
    }
    softmax.finish();
#pragma unroll
    for (int row = 0; row < 2; ++row)
        if (rows.head[row] >= 0) softmax.store(out + rows.head[row] * kHeadDim, row);
}
