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
//                more; single: a state of kHeadDim + 2 floats for each row of lanes
//
// Ladder
//   v1  mma.sync m16n8k16 with the heads of a group as rows. Expected at 32 and 8 heads of 128, bf16, 8 x 32k keys, on
//       an H200 that copies 4.3 TB/s: 1.07 GB, 250 us. Three blocks of 68 KB fit a multiprocessor, 104 KB are on their
//       way, four times what 800 ns at full rate need. At 1 x 1k the launches decide: two of 2 to 3 us and a chain of
//       three loads from memory, some 8 us. Not measured yet.
//   v2  As v2 of paged_prefill: 627 instructions of the loop became 503 (bf16, heads of 128, sm_90a), 873 became 802 of
//       e4m3, where half of them turn codes into numbers. A tile of 16 keys is 8 or 4 KB, so four instructions a clock
//       would be 15 and 4.7 TB/s on an H200: e4m3 may well be bound by them. Not measured yet.
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

// Several partial softmaxes together, for one dimension.
struct Merged {
    float max = kMasked, total = 0.0f, sum = 0.0f;

    // totals(i) gives the largest score and the sum of weights of state i, sums(i) its sum of values.
    template <typename Totals, typename Sums>
    __device__ __forceinline__ Merged(int num_states, Totals totals, Sums sums) {
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

    static __device__ __forceinline__ int sums_of(int state, int row) {
        return (state * kRowsOfState + row) * kHeadDim;
    }
    static __device__ __forceinline__ int totals_of(int state, int row) {
        return kSums + (state * kRowsOfState + row) * 2;
    }

    // Bring the two rows that each lane of a warp has a part of; their largest scores become powers of two.
    template <typename KeyTile, typename Softmax>
    static __device__ __forceinline__ void bring(const Softmax& softmax, float factor, int state, int num_rows,
                                                 SharedFloats floats) {
        const int lane = threadIdx.x % kWarp;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = lane / 4 + 8 * i;
            if (row >= num_rows) continue;
#pragma unroll
            for (int n = 0; n < kHeadDim / 8; ++n) {
                floats[sums_of(state, row) + KeyTile::dimension_of(n, 0)] = softmax.sums[n][2 * i];
                floats[sums_of(state, row) + KeyTile::dimension_of(n, 1)] = softmax.sums[n][2 * i + 1];
            }
            if (lane % 4 == 0)
                store(&floats[totals_of(state, row)], Vector<float, 2>{{softmax.max[i] * factor, softmax.total[i]}});
        }
    }

    // Merge num_rows rows, which are heads first_head.. of a token, and write them where they belong.
    template <typename T>
    static __device__ __forceinline__ void finish(T* out, float* partial_out, float* partial_totals,
                                                  SharedFloats floats, i64 token, int num_heads, int first_head,
                                                  int num_rows, int num_threads) {
        const i64 heads = static_cast<i64>(blockIdx.z) * num_heads + first_head;
        for (int i = threadIdx.x; i < num_rows * kHeadDim; i += num_threads) {
            const int row = i / kHeadDim, at = i % kHeadDim;
            const Merged merged(
                kStates, [&](int state) { return load<Vector<float, 2>>(&floats[totals_of(state, row)]); },
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

// A warp's tiles: every kStride-th group of 16 keys, all but one of kStages on their way.
template <typename KeyTile, typename KV, int kHeadDim, int kStages, int kStride>
struct Ring {
    PagedKeys<KV, kHeadDim> keys;
    SharedBytes tiles;
    int next, end;   // keys: of the next tile, and behind the last
    int next_block;  // read long before it is needed

    __device__ __forceinline__ Ring(const PagedKeys<KV, kHeadDim>& keys, SharedBytes tiles, int begin, int end)
        : keys(keys), tiles(tiles), next(begin), end(end), next_block(begin < end ? keys.block_of(begin) : 0) {
#pragma unroll
        for (int slot = 0; slot < kStages - 1; ++slot) fetch(slot);
    }

    __device__ __forceinline__ SharedBytes tile(int slot) const { return tiles + slot * KeyTile::kBytes; }

    // Start to fetch the next tile, if there is one; a group of copies either way.
    __device__ __forceinline__ void fetch(int slot) {
        if (next < end) {
            const i64 place = keys.place_of(next_block, next % keys.block_size);
            KeyTile::template fetch<kWarp>(tile(slot), 0, keys, place, end - next, threadIdx.x % kWarp);
            next += kStride;
            if (next < end) next_block = keys.block_of(next);
        }
        commit_copies();
    }
};

template <typename T, typename KV, int kHeadDim, int kWarps, int kStages>
__global__ void __launch_bounds__(kWarps * 32, kHeadDim == 64 ? 4 : 2)
paged_decode(T* __restrict__ out, float* __restrict__ partial_out, float* __restrict__ partial_totals,
             const T* __restrict__ q, const KV* __restrict__ k_cache, const KV* __restrict__ v_cache,
             const float* __restrict__ k_scales, const float* __restrict__ v_scales,
             const int* __restrict__ cu_seqlens_q, const int* __restrict__ seq_lens,
             const int* __restrict__ block_tables, const int* __restrict__ split_size, int num_heads, int num_kv_heads,
             i64 q_stride, int block_size, int max_blocks, float scale, float soft_cap, int sliding_window) {
    using KeyTile = Tile<T, KV, kHeadDim, kGroupKeys>;
    using Keys = PagedKeys<KV, kHeadDim>;
    using Meet = Meeting<kHeadDim, kWarps, kRows>;
    const int group_size = num_heads / num_kv_heads, tiles = (group_size + kRows - 1) / kRows;
    const int kv_head = blockIdx.y / tiles, row_in_group = blockIdx.y % tiles * kRows;
    const int first_head = kv_head * group_size + row_in_group, num_rows = smaller(group_size - row_in_group, kRows);
    const Split split = find_split(cu_seqlens_q, seq_lens, split_size, blockIdx.z, blockIdx.x, sliding_window);
    if (split.token < 0 || (split.begin >= split.end && gridDim.x > 1)) return;

    const int warp = threadIdx.x / kWarp, row = threadIdx.x % kWarp / 4;
    constexpr int kStride = kWarps * kGroupKeys;
    const int* block_table = block_tables + static_cast<i64>(blockIdx.z) * max_blocks;
    const Keys paged{k_cache, v_cache, k_scales, v_scales, block_table, num_kv_heads, kv_head, block_size};
    const int begin = split.begin + warp * kGroupKeys;
    Ring<KeyTile, KV, kHeadDim, kStages, kStride> ring(paged, dynamic_shared<u8>(warp * kStages * KeyTile::kBytes),
                                                       begin, split.end);
    const T* rows = q + split.token * q_stride + first_head * kHeadDim;
    const typename KeyTile::template Queries<true> queries(row < num_rows ? rows + row * kHeadDim : nullptr,
                                                           row + 8 < num_rows ? rows + (row + 8) * kHeadDim : nullptr);
    const Scoring scoring(scale, soft_cap);
    Softmax<KeyTile, T, kHeadDim, kGroupKeys> softmax;
    int slot = 0;
    for (int base = begin; base < split.end; base += kStride) {
        wait_copies<kStages - 2>();
        __syncwarp();
        ring.fetch(slot == 0 ? kStages - 1 : slot - 1);  // into the slot of the last tile
        float scores[kGroupKeys / 8][4] = {};
        KeyTile::multiply_keys(scores, queries, ring.tile(slot));
        KeyTile::score(scores, ring.tile(slot), scoring);
        if (base < split.first || base + kGroupKeys > split.end) {
            const int first[2] = {split.first - base, split.first - base};
            const int behind[2] = {split.end - base, split.end - base};
            KeyTile::mask(scores, first, behind);
        }
        softmax.take(scores, scoring.factor, ring.tile(slot));
        if (++slot == kStages) slot = 0;
    }
    wait_copies<0>();
    softmax.finish();
    __syncthreads();  // the rings become the meeting
    Meet::template bring<KeyTile>(softmax, scoring.factor, warp, num_rows, dynamic_shared<float>());
    __syncthreads();
    Meet::finish(out, partial_out, partial_totals, dynamic_shared<float>(), split.token, num_heads, first_head,
                 num_rows, kWarps * kWarp);
}

// Lanes that share a row of keys: the power of two with 16 bytes for each.
template <typename KV, int kHeadDim>
__device__ constexpr int lanes_of_row() {
    int lanes = 1;
    while (lanes * kVectorBytes < kHeadDim * static_cast<int>(sizeof(KV))) lanes *= 2;
    return lanes;
}

// What a row of lanes knows of one head, each lane kWidth dimensions: its query, and the running softmax over the keys
// that this row of lanes has seen.
template <typename KV, int kHeadDim>
struct RowState {
    static constexpr int kLanes = lanes_of_row<KV, kHeadDim>(), kRowsAtOnce = kWarp / kLanes;
    static constexpr int kWidth = kVectorBytes / static_cast<int>(sizeof(KV));
    static constexpr int kTurns = smaller(4, kGroupKeys / kRowsAtOnce), kKeys = kTurns * kRowsAtOnce;  // of a tile

    Vector<float, kWidth> query = {}, sums = {};
    float max = kMasked, total = 0.0f;

    static __device__ __forceinline__ int dimension() { return threadIdx.x % kLanes * kWidth; }
    static __device__ __forceinline__ bool is_live() { return dimension() < kHeadDim; }

    // Take in the keys of a tile, from key base on, which are in one block from a place on.
    template <typename Seen>
    __device__ __forceinline__ void take(const PagedKeys<KV, kHeadDim>& keys, i64 place, int base,
                                         const Scoring& scoring, Seen seen) {
        Vector<KV, kWidth> k[kTurns] = {}, v[kTurns] = {};
        float k_scales[kTurns], v_scales[kTurns];
        place += threadIdx.x % kWarp / kLanes;
        base += threadIdx.x % kWarp / kLanes;
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
            k_scales[turn] = v_scales[turn] = 1.0f;
            if (!is_live() || !seen(base + turn * kRowsAtOnce)) continue;
            const i64 at = (place + turn * kRowsAtOnce) * kHeadDim + dimension();
            k[turn] = load_once<Vector<KV, kWidth>>(keys.k_cache + at);
            v[turn] = load_once<Vector<KV, kWidth>>(keys.v_cache + at);
            if constexpr (sizeof(KV) == 1) {
                k_scales[turn] = load<float>(keys.k_scales + place + turn * kRowsAtOnce);
                v_scales[turn] = load<float>(keys.v_scales + place + turn * kRowsAtOnce);
            }
        }
        float scores[kTurns], found = max;
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
            scores[turn] = product_with(k[turn]) * k_scales[turn];
            if (scoring.cap > 0.0f) scores[turn] = scoring.capped(scores[turn]);
            scores[turn] = seen(base + turn * kRowsAtOnce) ? scores[turn] * scoring.factor : kMasked;
            found = fmaxf(found, scores[turn]);
        }
        raise(found);
#pragma unroll
        for (int turn = 0; turn < kTurns; ++turn) {
            const float weight = scores[turn] > kMasked ? exp2_fast(scores[turn] - max) : 0.0f;
            total += weight;
#pragma unroll
            for (int i = 0; i < kWidth; ++i) sums[i] += weight * v_scales[turn] * to_float(v[turn][i]);
        }
    }

private:
    // Of the query with a key, in every lane of the row.
    __device__ __forceinline__ float product_with(const Vector<KV, kWidth>& key) const {
        float product = 0.0f;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) product += query[i] * to_float(key[i]);
#pragma unroll
        for (int step = kLanes / 2; step > 0; step /= 2) product += __shfl_xor_sync(kEveryLane, product, step);
        return product;
    }

    __device__ __forceinline__ void raise(float found) {
        const float factor = exp2_fast(max - found);
        max = found;
        total *= factor;
#pragma unroll
        for (int i = 0; i < kWidth; ++i) sums[i] *= factor;
    }
};

template <typename T, typename KV, int kHeadDim, int kWarps>
__global__ void __launch_bounds__(kWarps * 32, sizeof(KV) == 1 ? 2 : 4)
paged_decode_single(T* __restrict__ out, float* __restrict__ partial_out, float* __restrict__ partial_totals,
                    const T* __restrict__ q, const KV* __restrict__ k_cache, const KV* __restrict__ v_cache,
                    const float* __restrict__ k_scales, const float* __restrict__ v_scales,
                    const int* __restrict__ cu_seqlens_q, const int* __restrict__ seq_lens,
                    const int* __restrict__ block_tables, const int* __restrict__ split_size, int num_heads,
                    int num_kv_heads, i64 q_stride, int block_size, int max_blocks, float scale, float soft_cap,
                    int sliding_window) {
    using State = RowState<KV, kHeadDim>;
    using Meet = Meeting<kHeadDim, kWarps * State::kRowsAtOnce, 1>;
    const int head = blockIdx.y, number = threadIdx.x / State::kLanes, at = State::dimension();
    const Split split = find_split(cu_seqlens_q, seq_lens, split_size, blockIdx.z, blockIdx.x, sliding_window);
    if (split.token < 0 || (split.begin >= split.end && gridDim.x > 1)) return;

    const int* block_table = block_tables + static_cast<i64>(blockIdx.z) * max_blocks;
    const PagedKeys<KV, kHeadDim> keys{k_cache,     v_cache,      k_scales, v_scales,
                                       block_table, num_kv_heads, head,     block_size};
    State state;
    if (State::is_live())
        state.query = load_wide<T, State::kWidth>(q + split.token * q_stride + head * kHeadDim + at);
    const Scoring scoring(scale, soft_cap);
    const auto seen = [&](int key) { return key >= split.first && key < split.end; };
    for (int base = split.begin + threadIdx.x / kWarp * State::kKeys; base < split.end; base += kWarps * State::kKeys)
        state.take(keys, keys.place_of(keys.block_of(base), base % block_size), base, scoring, seen);

    auto floats = dynamic_shared<float>();
    if (State::is_live()) {
#pragma unroll
        for (int i = 0; i < State::kWidth; ++i) floats[Meet::sums_of(number, 0) + at + i] = state.sums[i];
    }
    if (at == 0) store(&floats[Meet::totals_of(number, 0)], Vector<float, 2>{{state.max, state.total}});
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
        const Merged merged(
            live, [&](int i) { return load<Vector<float, 2>>(partial_totals + (first + i) * 2); },
            [&](int i) { return load<float>(partial_out + (first + i) * head_dim + at); });
        store(out + (static_cast<i64>(whole.token) * num_heads + head) * head_dim + at, from_float<T>(merged.result()));
    }
}
