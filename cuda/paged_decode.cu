// paged_decode: attention of sequences with one query token over the paged cache, their keys split among blocks.
// paged_decode_single: the same where every query head has a KV head of its own.
// merge_splits: the splits' results together; where there is one split, the kernels above write out themselves.
//
//   q                   [num_tokens, num_heads, head_dim], token t at q + t * q_stride elements, its heads contiguous
//   k_cache, v_cache    [num_blocks, num_kv_heads, block_size, head_dim], contiguous; block_size a multiple of 16
//   k_scales, v_scales  [num_blocks, num_kv_heads, block_size], of e4m3; otherwise nobody reads them
//   cu_seqlens_q        [num_seqs + 1], cumulative query lengths; sequences with other than one token are skipped
//   seq_lens            [num_seqs], KV lengths, this token included; 0: zeros come out
//   block_tables        [num_seqs, max_blocks]
//   split_size          [1], keys of a split, a multiple of 16; on the device, so that a graph can be replayed with
//                       another. num_splits of them, of the grid, reach the longest sequence's end.
//   partial_out         [num_seqs, num_heads, num_splits, head_dim], weighted sums of values
//   partial_totals      [num_seqs, num_heads, num_splits, 2], the largest score and the sum of weights
//   out                 [num_tokens, num_heads, head_dim], contiguous
//
//   T            bf16 or fp16
//   KV           T or e4m3
//   kHeadDim     a multiple of 16
//   kWarps       of a block; each walks through tiles of 16 keys of its own, and no barrier is between them
//   kStages      tiles in a warp's ring, all but one of them on their way
//   grid         (num_splits, num_kv_heads * the tiles of 16 heads of a group, num_seqs); single: (.., num_heads, ..);
//                merge_splits: (num_heads, num_seqs)
//   block        kWarps * 32; merge_splits: kThreads
//   shared       kWarps * kStages of Tile<T, KV, kHeadDim, 16>, or kWarps * 16 * (kHeadDim + 2) floats where that is
//                more; single: kWarps * 32 / kLanesOfRow * (kHeadDim + 2) floats
//
// Ladder
//   v1  mma.sync m16n8k16 with the heads of a group as rows. Expected at 32 and 8 heads of 128, bf16, 8 x 32k keys, on an
//       H200 that copies 4.3 TB/s: 1.07 GB, 250 us. Three blocks of 69 KB fit a multiprocessor, 104 KB are on their
//       way, four times what 800 ns at full rate need. At 1 x 1k the launches decide: two of 2 to 3 us and a chain of
//       three loads from memory, some 8 us. Not measured yet.
#include "attention.cuh"

// The keys of a sequence that a block sees.
struct Split {
    int token;        // of q; below 0: the sequence is not for this kernel
    int first;        // key that may be seen
    int begin, end;   // of this split; begin is a multiple of 16
};

__device__ __forceinline__ int first_seen(int seq_len, int sliding_window) {
    return sliding_window > 0 && seq_len > sliding_window ? seq_len - sliding_window : 0;
}

__device__ __forceinline__ Split find_split(const int* cu_seqlens_q, const int* seq_lens, const int* split_size,
                                            int seq, int split, int sliding_window) {
    const int token = load<int>(cu_seqlens_q + seq), behind = load<int>(cu_seqlens_q + seq + 1);
    const int seq_len = load<int>(seq_lens + seq), size = load<int>(split_size);
    const int first = first_seen(seq_len, sliding_window);
    const int begin = first / kGroupKeys * kGroupKeys + split * size;
    return {behind - token == 1 ? token : -1, first, begin, smaller(begin + size, seq_len)};
}

// The result of kStates partial softmaxes over head_dim dimensions each, in shared memory, for dimension at.
template <int kStates>
struct Merged {
    float max = kMasked, total = 0.0f, sum = 0.0f;

    // totals(i) and sums(i) are those of state i.
    template <typename Totals, typename Sums>
    __device__ __forceinline__ void take(Totals totals, Sums sums, int num_states = kStates) {
        for (int i = 0; i < num_states; ++i) max = fmaxf(max, totals(i)[0]);
        for (int i = 0; i < num_states; ++i) {
            const Vector<float, 2> of = totals(i);
            const float factor = exp2_fast(of[0] - max);
            total += factor * of[1];
            sum += factor * sums(i);
        }
    }

    __device__ __forceinline__ float result() const { return total > 0.0f ? divide_fast(sum, total) : 0.0f; }
};

// Where the states of a block's warps meet: [kStates, kRowsOfState, kHeadDim] sums, then [kStates, kRowsOfState, 2].
template <int kHeadDim, int kStates, int kRowsOfState>
struct Meeting {
    static constexpr int kSums = kStates * kRowsOfState * kHeadDim;

    static __device__ __forceinline__ int sums_of(int state, int row) { return (state * kRowsOfState + row) * kHeadDim; }
    static __device__ __forceinline__ int totals_of(int state, int row) {
        return kSums + (state * kRowsOfState + row) * 2;
    }

    // Merge num_rows rows, which are heads first_head.. of a token, and write them where they belong.
    template <typename T, typename Floats>
    static __device__ __forceinline__ void finish(T* out, float* partial_out, float* partial_totals, Floats floats,
                                                  i64 token, int num_heads, int first_head, int num_rows,
                                                  int num_threads) {
        const i64 heads = static_cast<i64>(blockIdx.z) * num_heads + first_head;
        for (int i = threadIdx.x; i < num_rows * kHeadDim; i += num_threads) {
            const int row = i / kHeadDim, at = i % kHeadDim;
            Merged<kStates> merged;
            merged.take([&](int state) { return load<Vector<float, 2>>(&floats[totals_of(state, row)]); },
                        [&](int state) { return static_cast<float>(floats[sums_of(state, row) + at]); });
            if (gridDim.x == 1) {
                store(out + (token * num_heads + first_head + row) * kHeadDim + at, from_float<T>(merged.result()));
                continue;
            }
            const i64 partial = (heads + row) * gridDim.x + blockIdx.x;
            store(partial_out + partial * kHeadDim + at, merged.sum);
            if (at == 0) store(partial_totals + partial * 2, Vector<float, 2>{{merged.max, merged.total}});
        }
    }
};

template <typename T, typename KV, int kHeadDim, int kWarps, int kStages>
__global__ void __launch_bounds__(kWarps * 32)
paged_decode(T* __restrict__ out, float* __restrict__ partial_out, float* __restrict__ partial_totals,
             const T* __restrict__ q, const KV* __restrict__ k_cache, const KV* __restrict__ v_cache,
             const float* __restrict__ k_scales, const float* __restrict__ v_scales,
             const int* __restrict__ cu_seqlens_q, const int* __restrict__ seq_lens,
             const int* __restrict__ block_tables, const int* __restrict__ split_size, int num_heads, int num_kv_heads,
             i64 q_stride, int block_size, int max_blocks, float scale, float soft_cap, int sliding_window) {
    using KeyTile = Tile<T, KV, kHeadDim, kGroupKeys>;
    using Meet = Meeting<kHeadDim, kWarps, kRows>;
    const int group_size = num_heads / num_kv_heads, tiles = (group_size + kRows - 1) / kRows;
    const int kv_head = blockIdx.y / tiles, row_in_group = blockIdx.y % tiles * kRows;
    const int first_head = kv_head * group_size + row_in_group, num_rows = smaller(group_size - row_in_group, kRows);
    const Split split = find_split(cu_seqlens_q, seq_lens, split_size, blockIdx.z, blockIdx.x, sliding_window);
    if (split.token < 0 || (split.begin >= split.end && gridDim.x > 1)) return;

    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const int* block_table = block_tables + static_cast<i64>(blockIdx.z) * max_blocks;
    const auto ring = dynamic_shared<u8>() + warp * kStages * KeyTile::kBytes;
    constexpr int kStride = kWarps * kGroupKeys;  // from one tile of a warp to its next
    int next = split.begin + warp * kGroupKeys;   // tile to be fetched
    int next_block = next < split.end ? load<int>(block_table + next / block_size) : 0;
    const auto fetch = [&](int slot) {
        if (next < split.end) {
            const Place<KV> place(k_cache, v_cache, k_scales, v_scales, next_block, num_kv_heads, kv_head, block_size,
                                  kHeadDim, next % block_size);
            KeyTile::template fetch<kWarp>(ring + slot * KeyTile::kBytes, 0, place, split.end - next, lane);
            next += kStride;
            if (next < split.end) next_block = load<int>(block_table + next / block_size);  // long before it is needed
        }
        commit_copies();
    };
#pragma unroll
    for (int slot = 0; slot < kStages - 1; ++slot) fetch(slot);

    const int row = lane / 4;
    const T* rows = q + split.token * q_stride + first_head * kHeadDim;
    const typename KeyTile::template Queries<true> queries(row < num_rows ? rows + row * kHeadDim : nullptr,
                                                           row + 8 < num_rows ? rows + (row + 8) * kHeadDim : nullptr);

    const Scoring scoring(scale, soft_cap);
    Softmax<KeyTile, T, kHeadDim, kGroupKeys> softmax;
    int slot = 0;
    for (int base = split.begin + warp * kGroupKeys; base < split.end; base += kStride) {
        wait_copies<kStages - 2>();
        __syncwarp();
        fetch(slot == 0 ? kStages - 1 : slot - 1);  // into the slot of the last tile
        const auto keys = ring + slot * KeyTile::kBytes;
        float scores[2][4] = {};
        KeyTile::multiply_keys(scores, queries, keys);
#pragma unroll
        for (int j = 0; j < 2; ++j) {
            const int column = j * 8 + lane % 4 * 2;
            const auto scales = KeyTile::key_scales(keys, column);
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                const int key = base + column + i % 2;
                const float score = scoring.of(scores[j][i] * scales[i % 2]);
                scores[j][i] = key >= split.first && key < split.end ? score : kMasked;
            }
        }
        softmax.take(scores, keys);
        if (++slot == kStages) slot = 0;
    }
    wait_copies<0>();
    softmax.finish();
    __syncthreads();  // the rings become the meeting

    auto floats = dynamic_shared<float>();
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        if (row + 8 * i >= num_rows) continue;
#pragma unroll
        for (int n = 0; n < kHeadDim / 8; ++n) {
            floats[Meet::sums_of(warp, row + 8 * i) + KeyTile::dimension_of(n, 0)] = softmax.sums[n][2 * i];
            floats[Meet::sums_of(warp, row + 8 * i) + KeyTile::dimension_of(n, 1)] = softmax.sums[n][2 * i + 1];
        }
        if (lane % 4 == 0)
            store(&floats[Meet::totals_of(warp, row + 8 * i)], Vector<float, 2>{{softmax.max[i], softmax.total[i]}});
    }
    __syncthreads();
    Meet::finish(out, partial_out, partial_totals, floats, split.token, num_heads, first_head, num_rows,
                 kWarps * kWarp);
}

// Lanes that share a row of keys: the power of two with 16 bytes for each.
template <typename KV, int kHeadDim>
__device__ constexpr int lanes_of_row() {
    int lanes = 1;
    while (lanes * kVectorBytes < kHeadDim * static_cast<int>(sizeof(KV))) lanes *= 2;
    return lanes;
}

template <typename T, typename KV, int kHeadDim, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, sizeof(KV) == 1 ? 2 : 4)
paged_decode_single(T* __restrict__ out, float* __restrict__ partial_out, float* __restrict__ partial_totals,
                    const T* __restrict__ q, const KV* __restrict__ k_cache, const KV* __restrict__ v_cache,
                    const float* __restrict__ k_scales, const float* __restrict__ v_scales,
                    const int* __restrict__ cu_seqlens_q, const int* __restrict__ seq_lens,
                    const int* __restrict__ block_tables, const int* __restrict__ split_size, int num_heads,
                    int num_kv_heads, i64 q_stride, int block_size, int max_blocks, float scale, float soft_cap,
                    int sliding_window) {
    constexpr int kLanesOfRow = lanes_of_row<KV, kHeadDim>(), kRowsAtOnce = kWarp / kLanesOfRow;
    constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(KV));
    constexpr int kTurns = smaller(4, kGroupKeys / kRowsAtOnce), kKeys = kTurns * kRowsAtOnce;  // of a tile
    constexpr int kStates = kWarps * kRowsAtOnce;
    using Meet = Meeting<kHeadDim, kStates, 1>;
    const int head = blockIdx.y, lane = threadIdx.x % kWarp, state = threadIdx.x / kLanesOfRow;
    const Split split = find_split(cu_seqlens_q, seq_lens, split_size, blockIdx.z, blockIdx.x, sliding_window);
    if (split.token < 0 || (split.begin >= split.end && gridDim.x > 1)) return;

    const int at = lane % kLanesOfRow * kWidth;  // first dimension of this lane
    const bool live = at < kHeadDim;
    Vector<float, kWidth> query = {}, sums = {};
    if (live) query = load_wide<T, kWidth>(q + split.token * q_stride + head * kHeadDim + at);
    float max = kMasked, total = 0.0f;

    const Scoring scoring(scale, soft_cap);
    const int* block_table = block_tables + static_cast<i64>(blockIdx.z) * max_blocks;
    for (int base = split.begin + threadIdx.x / kWarp * kKeys; base < split.end; base += kWarps * kKeys) {
        const Place<KV> place(k_cache, v_cache, k_scales, v_scales, load<int>(block_table + base / block_size),
                              num_kv_heads, head, block_size, kHeadDim, base % block_size);
        Vector<KV, kWidth> keys[kTurns] = {}, values[kTurns] = {};
        float scores[kTurns], value_scales[kTurns];
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
            const int row = turn * kRowsAtOnce + lane / kLanesOfRow;
            if (!live || base + row >= split.end) continue;
            keys[turn] = load_once<Vector<KV, kWidth>>(place.k + row * kHeadDim + at);
            values[turn] = load_once<Vector<KV, kWidth>>(place.v + row * kHeadDim + at);
        }
        float found = max;
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
            const int row = turn * kRowsAtOnce + lane / kLanesOfRow, key = base + row;
            const bool visible = key >= split.first && key < split.end;
            float product = 0.0f;
#pragma unroll
            for (int i = 0; i < kWidth; ++i) product += query[i] * to_float(keys[turn][i]);
#pragma unroll
            for (int step = kLanesOfRow / 2; step > 0; step /= 2) product += __shfl_xor_sync(kEveryLane, product, step);
            value_scales[turn] = 1.0f;
            if constexpr (sizeof(KV) == 1) {
                if (visible) {
                    product *= load<float>(place.k_scales + row);
                    value_scales[turn] = load<float>(place.v_scales + row);
                }
            }
            scores[turn] = visible ? scoring.of(product) : kMasked;
            found = fmaxf(found, scores[turn]);
        }
        const float factor = exp2_fast(max - found);
        max = found;
        total *= factor;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) sums[i] *= factor;
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
            const float weight = scores[turn] > kMasked ? exp2_fast(scores[turn] - max) : 0.0f;
            total += weight;
#pragma unroll
            for (int i = 0; i < kWidth; ++i) sums[i] += weight * value_scales[turn] * to_float(values[turn][i]);
        }
    }

    auto floats = dynamic_shared<float>();
    if (live) {
#pragma unroll
        for (int i = 0; i < kWidth; ++i) floats[Meet::sums_of(state, 0) + at + i] = sums[i];
    }
    if (lane % kLanesOfRow == 0) store(&floats[Meet::totals_of(state, 0)], Vector<float, 2>{{max, total}});
    __syncthreads();
    Meet::finish(out, partial_out, partial_totals, floats, split.token, num_heads, head, 1, kWarps * kWarp);
}

template <typename T, int kThreads>
__global__ void __launch_bounds__(kThreads)
merge_splits(T* __restrict__ out, const float* __restrict__ partial_out, const float* __restrict__ partial_totals,
             const int* __restrict__ cu_seqlens_q, const int* __restrict__ seq_lens,
             const int* __restrict__ split_size, int num_splits, int head_dim, int sliding_window) {
    const int head = blockIdx.x, seq = blockIdx.y, num_heads = gridDim.x;
    const Split whole = find_split(cu_seqlens_q, seq_lens, split_size, seq, 0, sliding_window);
    if (whole.token < 0) return;
    const int keys = load<int>(seq_lens + seq) - whole.begin, size = load<int>(split_size);
    const int live = smaller((keys + size - 1) / size, num_splits);
    const i64 first = (static_cast<i64>(seq) * num_heads + head) * num_splits;
    for (int at = threadIdx.x; at < head_dim; at += kThreads) {
        Merged<0> merged;
        merged.take([&](int i) { return load<Vector<float, 2>>(partial_totals + (first + i) * 2); },
                    [&](int i) { return load<float>(partial_out + (first + i) * head_dim + at); }, live);
        store(out + (static_cast<i64>(whole.token) * num_heads + head) * head_dim + at, from_float<T>(merged.result()));
    }
}
