// prefill.cuh: what the kernels of several query tokens have in common: which rows a block has, and where a lane's lie.
//
// A row is a token and one of the heads that share a KV head; those of a sequence are numbered token by token.
#pragma once

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

// What rows of a sequence see, the first to the last of some neighbours: of the window there is one, from the row's own key
// back. Any of them sees begin to end, all of them all_from to all_to.
struct Seen {
    int window, begin, end, all_from, all_to;

    __device__ __forceinline__ Seen(int first_row, int last_row, int num_computed, int group_size, int sliding_window) {
        const int first = num_computed + first_row / group_size, last = num_computed + last_row / group_size;
        window = sliding_window > 0 ? sliding_window : last + 1;
        begin = first >= window ? first - window + 1 : 0;
        end = last + 1;
        all_from = last - window + 1;
        all_to = first + 1;
    }
};

// The two rows of a lane; those behind a sequence's last are computed as it is, and not stored.
template <typename T, int kHeadDim>
struct LaneRows {
    int position[2];
    i64 head[2];  // token * num_heads + head; below 0 of rows that are not stored
    const T* query[2];

    __device__ __forceinline__ LaneRows(const T* q, i64 q_stride, int first_row, int num_rows, int first_token,
                                        int num_computed, int first_head, int group_size, int num_heads) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = first_row + threadIdx.x / kWarp * kRows + threadIdx.x % kWarp / 4 + i * 8;
            const int there = smaller(row, num_rows - 1);
            const int token = there / group_size, of_token = first_head + there % group_size;
            position[i] = num_computed + token;
            head[i] = row < num_rows ? static_cast<i64>(first_token + token) * num_heads + of_token : -1;
            query[i] = q + (first_token + token) * q_stride + of_token * kHeadDim;
        }
    }
};
