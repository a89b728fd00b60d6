// paged_prefill: causal attention of a ragged batch over the paged cache, the last tokens of each sequence to all of its
// tokens up to themselves; sequences with fewer than min_queries tokens are left to paged_decode.
//
//   q                   [num_tokens, num_heads, head_dim], token t at q + t * q_stride elements, its heads contiguous
//   k_cache, v_cache    [num_blocks, num_kv_heads, block_size, head_dim], contiguous; block_size a multiple of 16
//   k_scales, v_scales  [num_blocks, num_kv_heads, block_size], of e4m3; otherwise nobody reads them
//   cu_seqlens_q        [num_seqs + 1], cumulative query lengths
//   seq_lens            [num_seqs], KV lengths, these queries included
//   block_tables        [num_seqs, max_blocks]
//   out                 [num_tokens, num_heads, head_dim], contiguous
//
//   T           bf16 or fp16
//   KV          T or e4m3
//   kHeadDim    a multiple of 16
//   kKeys       of a tile, a multiple of 16
//   kWarps      of a block, 16 rows each. A row is a token and one of the heads that share a KV head, so the heads of a
//               group read each key once, and short chunks fill a tile as well as long ones.
//   grid        (an upper bound of the tiles of kWarps * 16 rows of all sequences, num_kv_heads)
//   block       kWarps * 32
//   shared      two of Tile<T, KV, kHeadDim, kKeys>
//
// A row's result does not depend on the rows beside it: keys are taken in tiles that begin at multiples of kKeys.
//
// Ladder
//   v1  mma.sync m16n8k16, 16 rows a warp, the next tile copied while one is computed; long rows of tiles first.
//       Expected at 32 and 8 heads of 128, bf16, 8192 tokens, on an H200: each warp loads a tile from shared memory for
//       16 rows, which bounds it to 16 FLOP a byte, 2048 a clock and multiprocessor of the 4096 that it can do: at most
//       400 TFLOP/s, 1.4 ms; FlashAttention-3 takes 0.81. Not measured yet.
#include "attention.cuh"

// Which rows a block has.
struct RowTile {
    int seq = -1, row = 0;  // of the sequence's rows, its first
};

// The blockIdx.x-th tile of all sequences; within one, the last comes first, which sees most keys.
__device__ __forceinline__ RowTile find_rows(const int* cu_seqlens_q, int num_seqs, int group_size, int rows_of_tile,
                                             int min_queries) {
    const int lane = threadIdx.x % kWarp;
    int left = blockIdx.x;
    for (int base = 0; base < num_seqs; base += kWarp) {
        int tiles = 0;
        if (base + lane < num_seqs) {
            const int queries =
                load<int>(cu_seqlens_q + base + lane + 1) - load<int>(cu_seqlens_q + base + lane);
            if (queries >= min_queries) tiles = (queries * group_size + rows_of_tile - 1) / rows_of_tile;
        }
        int up_to = tiles;
#pragma unroll
        for (int step = 1; step < kWarp; step *= 2) {
            const int before = __shfl_up_sync(kEveryLane, up_to, step);
            if (lane >= step) up_to += before;
        }
        const u32 behind = __ballot_sync(kEveryLane, up_to > left);
        if (behind) {
            const int found = first_lane(behind);
            const int last = __shfl_sync(kEveryLane, up_to, found) - 1;
            return {base + found, (last - left) * rows_of_tile};
        }
        left -= __shfl_sync(kEveryLane, up_to, kWarp - 1);
    }
    return {};
}

// Where the next 16 keys of a sequence are.
struct Cursor {
    const int* block;
    int offset;

    __device__ __forceinline__ Cursor(const int* block_table, int key, int block_size)
        : block(block_table + key / block_size), offset(key % block_size) {}

    __device__ __forceinline__ void advance(int block_size) {
        offset += kGroupKeys;
        if (offset < block_size) return;
        offset = 0;
        ++block;
    }
};

template <typename T, typename KV, int kHeadDim, int kKeys, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, kHeadDim == 64 ? 3 : 2)
paged_prefill(T* __restrict__ out, const T* __restrict__ q, const KV* __restrict__ k_cache,
              const KV* __restrict__ v_cache, const float* __restrict__ k_scales, const float* __restrict__ v_scales,
              const int* __restrict__ cu_seqlens_q, const int* __restrict__ seq_lens,
              const int* __restrict__ block_tables, int num_seqs, int num_heads, int num_kv_heads, i64 q_stride,
              int block_size, int max_blocks, float scale, float soft_cap, int sliding_window, int min_queries) {
    using KeyTile = Tile<T, KV, kHeadDim, kKeys>;
    constexpr int kThreads = kWarps * kWarp;
    const int group_size = num_heads / num_kv_heads, kv_head = blockIdx.y;
    const RowTile tile = find_rows(cu_seqlens_q, num_seqs, group_size, kWarps * kRows, min_queries);
    if (tile.seq < 0) return;
    const int first_token = load<int>(cu_seqlens_q + tile.seq);
    const int num_queries = load<int>(cu_seqlens_q + tile.seq + 1) - first_token;
    const int num_computed = load<int>(seq_lens + tile.seq) - num_queries;
    const int num_rows = num_queries * group_size;

    // This lane's rows; those behind the last are computed as it is, and not stored.
    int positions[2];
    i64 heads[2];  // token * num_heads + head
    const T* rows[2];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const int row = tile.row + threadIdx.x / kWarp * kRows + threadIdx.x % kWarp / 4 + i * 8;
        const int token = smaller(row, num_rows - 1) / group_size;
        const int head = kv_head * group_size + smaller(row, num_rows - 1) % group_size;
        positions[i] = num_computed + token;
        heads[i] = row < num_rows ? static_cast<i64>(first_token + token) * num_heads + head : -1;
        rows[i] = q + (first_token + token) * q_stride + head * kHeadDim;
    }
    const typename KeyTile::template Queries<kHeadDim < 256> queries(rows[0], rows[1]);

    const int first_position = num_computed + tile.row / group_size;
    const int last_position = num_computed + (smaller(tile.row + kWarps * kRows, num_rows) - 1) / group_size;
    const int end = last_position + 1;
    const int unseen = sliding_window > 0 ? first_position - sliding_window + 1 : 0;
    const int begin = unseen > 0 ? unseen / kKeys * kKeys : 0;

    auto bytes = dynamic_shared<u8>();
    Cursor cursor(block_tables + static_cast<i64>(tile.seq) * max_blocks, begin, block_size);
    const auto fetch = [&](int base, int slot) {
#pragma unroll
        for (int row = 0; row < kKeys; row += kGroupKeys) {
            const int wanted = end - base - row;
            const i64 block_id = wanted > 0 ? load<int>(cursor.block) : 0;
            const Place<KV> place(k_cache, v_cache, k_scales, v_scales, block_id, num_kv_heads, kv_head, block_size,
                                  kHeadDim, cursor.offset);
            KeyTile::template fetch<kThreads>(bytes + slot * KeyTile::kBytes, row, place, wanted, threadIdx.x);
            cursor.advance(block_size);
        }
    };

    const Scoring scoring(scale, soft_cap);
    Softmax<KeyTile, T, kHeadDim, kKeys> softmax;
    fetch(begin, 0);
    commit_copies();
    int slot = 0;
    for (int base = begin; base < end; base += kKeys, slot ^= 1) {
        if (base + kKeys < end) fetch(base + kKeys, slot ^ 1);
        commit_copies();
        wait_copies<1>();
        __syncthreads();
        const auto keys = bytes + slot * KeyTile::kBytes;
        float scores[kKeys / 8][4] = {};
        KeyTile::multiply_keys(scores, queries, keys);
        const bool masked = base + kKeys > first_position + 1 ||
                            (sliding_window > 0 && base <= last_position - sliding_window);
#pragma unroll
        for (int j = 0; j < kKeys / 8; ++j) {
            const int column = j * 8 + threadIdx.x % 4 * 2;
            const auto scales = KeyTile::key_scales(keys, column);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const float score = scoring.of(scores[j][i] * scales[i % 2]);
                const int key = base + column + i % 2, position = positions[i / 2];
                const bool visible = key <= position && (sliding_window <= 0 || key > position - sliding_window);
                scores[j][i] = !masked || visible ? score : kMasked;
            }
        }
        softmax.take(scores, keys);
        __syncthreads();  // the slot is filled anew
    }
    wait_copies<0>();
    softmax.finish();
#pragma unroll
    for (int row = 0; row < 2; ++row) {
        if (heads[row] < 0) continue;
        softmax.store(out + heads[row] * kHeadDim, row);
    }
}
