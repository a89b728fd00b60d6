// paged_prefill: causal attention of a ragged batch over the paged cache, the last tokens of each sequence to all of
// its tokens up to themselves; sequences with fewer than min_queries tokens are left to paged_decode.
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
//   v1  mma.sync m16n8k16, 16 rows a warp, the next tile copied while one is computed, the rows with most keys first.
//       Heads of 256 read their queries anew for each tile: kept in registers they spilled (nvcc 13.0, sm_90a), as e4m3
//       of 64 and 80 did until the compiler was told how many blocks share a multiprocessor.
//   v2  Caps and masks are decided for a tile, not for each score; a copy's turns are known when it is compiled, so most
//       addresses are immediate; rows are brought down only where one of the warp's found a larger score; a bare
//       product's factor is part of the power. Of the loop's instructions (bf16, heads of 128, sm_90a, as nvdisasm
//       counts them) there were 2965 and are 1285, both kinds of fetch and the cap included; 128 are mma. What went
//       wrong on the way: left to itself the compiler unrolled the copies by four for a count that it did not know,
//       and took the 64-bit address of each apart and put it together again. Not measured yet.
//       Expected at 32 and 8 heads of 128, bf16, 8192 tokens, on an H200: each warp loads a tile from shared memory for
//       16 rows, which bounds it to 16 FLOP a byte, 2048 a clock and multiprocessor of the 4096 that it can do: at most
//       400 TFLOP/s, 1.4 ms; FlashAttention-3 takes 0.81. Not measured yet.
#include "prefill.cuh"

// Fetches a sequence's keys into tiles, 16 at a time, without dividing by the size of blocks.
template <typename KeyTile, typename KV, int kHeadDim, int kKeys, int kThreads>
struct Walker {
    PagedKeys<KV, kHeadDim> keys;
    SharedBytes tiles;
    int next, end;          // keys: of the next tile, and behind the last
    const int* block;       // of key next
    int offset;

    __device__ __forceinline__ Walker(const PagedKeys<KV, kHeadDim>& keys, SharedBytes tiles, int begin, int end)
        : keys(keys), tiles(tiles), next(begin), end(end), block(keys.block_table + begin / keys.block_size),
          offset(begin % keys.block_size) {}

    __device__ __forceinline__ SharedBytes tile(int slot) const { return tiles + slot * KeyTile::kBytes; }

    // Start to fetch the next tile, if there is one; a group of copies either way.
    __device__ __forceinline__ void fetch(int slot) {
        if (next < end) {
#pragma unroll
            for (int row = 0; row < kKeys; row += kGroupKeys) {
                const int wanted = end - next - row;
                const i64 place = keys.place_of(wanted > 0 ? load<int>(block) : 0, offset);
                KeyTile::template fetch<kThreads>(tile(slot), row, keys, place, wanted, threadIdx.x);
                offset += kGroupKeys;
                if (offset == keys.block_size) {
                    offset = 0;
                    ++block;
                }
            }
            next += kKeys;
        }
        commit_copies();
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
    using Keys = PagedKeys<KV, kHeadDim>;
    const int group_size = num_heads / num_kv_heads, kv_head = blockIdx.y;
    const RowTile tile = find_rows(cu_seqlens_q, num_seqs, group_size, kWarps * kRows, min_queries);
    if (tile.seq < 0) return;
    const int first_token = load<int>(cu_seqlens_q + tile.seq);
    const int num_queries = load<int>(cu_seqlens_q + tile.seq + 1) - first_token;
    const int num_computed = load<int>(seq_lens + tile.seq) - num_queries, num_rows = num_queries * group_size;
    const LaneRows<T, kHeadDim> rows(q, q_stride, tile.row, num_rows, first_token, num_computed, kv_head * group_size,
                                     group_size, num_heads);
    const typename KeyTile::template Queries<kHeadDim < 256> queries(rows.query[0], rows.query[1]);

    const int last_row = smaller(tile.row + kWarps * kRows, num_rows) - 1;
    const Seen seen(tile.row, last_row, num_computed, group_size, sliding_window);
    const int begin = seen.begin / kKeys * kKeys, end = seen.end;

    const int* block_table = block_tables + static_cast<i64>(tile.seq) * max_blocks;
    const Keys paged{k_cache, v_cache, k_scales, v_scales, block_table, num_kv_heads, kv_head, block_size};
    Walker<KeyTile, KV, kHeadDim, kKeys, kWarps * kWarp> walker(paged, dynamic_shared<u8>(), begin, end);
    const Scoring scoring(scale, soft_cap);
    Softmax<KeyTile, T, kHeadDim, kKeys> softmax;
    walker.fetch(0);
    int slot = 0;
    for (int base = begin; base < end; base += kKeys, slot ^= 1) {
        walker.fetch(slot ^ 1);
        wait_copies<1>();
        __syncthreads();
        float scores[kKeys / 8][4] = {};
        KeyTile::multiply_keys(scores, queries, walker.tile(slot));
        KeyTile::score(scores, walker.tile(slot), scoring);
        if (base < seen.all_from || base + kKeys > seen.all_to) {
            const int behind[2] = {rows.position[0] + 1 - base, rows.position[1] + 1 - base};
            const int first[2] = {behind[0] - seen.window, behind[1] - seen.window};
            KeyTile::mask(scores, first, behind);
        }
        softmax.take(scores, scoring.factor, walker.tile(slot));
        __syncthreads();  // the slot is filled anew
    }
    wait_copies<0>();
    softmax.finish();
#pragma unroll
    for (int row = 0; row < 2; ++row)
        if (rows.head[row] >= 0) softmax.store(out + rows.head[row] * kHeadDim, row);
}
