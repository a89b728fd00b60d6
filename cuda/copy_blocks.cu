// copy_blocks: whole KV blocks from one cache to another, or within one: forks of a prefix, and moves between the
// device and pinned memory of the host.
//
//   source     [num_from, block_bytes], contiguous
//   to         [num_to, block_bytes], contiguous, written in place; it may be source, where no block is both
//   block_ids  [num_pairs, 2], a block of source and one of to
//
//   kThreads  of a block
//   grid      (num_pairs, block_bytes / (16 * kThreads * kTurns), rounded up); block_bytes a multiple of 16
//   block     kThreads
//
// Ladder
//   v1  Four loads of 16 bytes a thread on their way at once. Expected on an H200 that copies 4.3 TB/s: a block of 16
//       tokens of 8 heads of 128, bf16, is 32 KB; 256 of them 4 us. Not measured yet.
#include "types.cuh"

template <int kThreads, int kTurns>
__global__ void __launch_bounds__(kThreads)
copy_blocks(u8* to, const u8* source, const i64* __restrict__ block_ids, i64 block_bytes) {
    using Chunk = Vector<u32, 4>;
    const i64* pair = block_ids + 2 * static_cast<i64>(blockIdx.x);
    source += load<i64>(pair) * block_bytes;
    to += load<i64>(pair + 1) * block_bytes;
    const i64 first = (static_cast<i64>(blockIdx.y) * kTurns * kThreads + threadIdx.x) * kVectorBytes;
    Chunk chunks[kTurns];
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
        const i64 at = first + turn * kThreads * kVectorBytes;
        if (at < block_bytes) chunks[turn] = load<Chunk>(source + at);
    }
#pragma unroll
    for (int turn = 0; turn < kTurns; ++turn) {
        const i64 at = first + turn * kThreads * kVectorBytes;
        if (at < block_bytes) store(to + at, chunks[turn]);
    }
}
