// warpgroup_probes.cu: what the emulator is tested with of sm_90a: right with kFault 0, otherwise with one fault.
#include "types.cuh"

constexpr int kThreads = 128;

// b, which is bytes as matrix describes them, and the same again next_bytes further on: c = a[0] b + a[1] b', a [2, 64, 16].
template <typename T, int kTiles, bool kByRows, int kFault>
__global__ void multiply_warpgroup(float* c, const T* a, const u8* b, i64 matrix, int num_bytes, int next_bytes) {
    const auto bytes = dynamic_shared<u8>();
    for (int i = threadIdx.x * 16; i < num_bytes; i += kThreads * 16) copy_async(&bytes[i], b + i, true);
    commit_copies();
    wait_copies<0>();
    if (kFault != 1) publish_to_matrices();
    if (kFault != 2) __syncthreads();

    const int row = threadIdx.x / kWarp * 16 + threadIdx.x % kWarp / 4, t = threadIdx.x % 4 * 2;
    u32 x[2][4];
    for (int step = 0; step < 2; ++step)
        for (int i = 0; i < 4; ++i)
            x[step][i] = load<u32>(a + (step * 64 + row + i % 2 * 8) * 16 + t + i / 2 * 8);
    float sums[kTiles][4] = {};
    u64 at = static_cast<u64>(matrix);
    if (kFault == 3 && threadIdx.x == 77) at += 64;
    if (kFault != 4) begin_products(sums, x);
    multiply_group<T, kByRows>(sums, x[0], at, false);
    multiply_group<T, kByRows>(sums, x[1], at + (next_bytes >> 4), true);
    if (kFault != 5) commit_products();
    if (kFault == 6) store(&bytes[0], u8{1});
    if (kFault != 7) wait_products(sums);
    if (kFault == 8) {
        if (threadIdx.x == 127) return;
        begin_products(sums, x);
        multiply_group<T, kByRows>(sums, x[0], at, true);
    }
    if (kFault == 9) multiply_group<T, kByRows>(sums, x[0], at, true);
    for (int n = 0; n < kTiles; ++n)
        for (int i = 0; i < 4; ++i) store(c + (row + i / 2 * 8) * kTiles * 8 + n * 8 + t + i % 2, sums[n][i]);
    if (kFault == 7) wait_products(sums);
}

// One warp hands three times 32 numbers to another, through one place: out [3, 32].
template <int kFault>
__global__ void hand_over(int* out) {
    __shared__ SharedArray<u64, 2> barriers;  // the numbers are there; they were taken
    __shared__ SharedArray<int, 32> numbers;
    if (threadIdx.x == 0 && kFault != 1) {
        init_barrier(&barriers[0], kFault == 2 ? 33 : 32);
        init_barrier(&barriers[1], 32);
        if (kFault == 3) init_barrier(&barriers[1], 32);
    }
    if (kFault != 4) __syncthreads();
    const int lane = threadIdx.x % kWarp;
    for (int turn = 0; turn < 3; ++turn) {
        if (threadIdx.x < kWarp) {
            if (kFault != 5) wait_at_barrier(&barriers[1], turn % 2 ^ 1);
            if (kFault == 6) arrive_at_barrier(&barriers[0]);
            numbers[lane] = 100 * turn + lane;
            if (kFault != 6) arrive_at_barrier(&barriers[0]);
        } else {
            if (kFault != 7) wait_at_barrier(&barriers[0], turn % 2);
            if (kFault == 8) arrive_at_barrier(&barriers[1]);
            store(out + turn * kWarp + lane, static_cast<int>(numbers[kWarp - 1 - lane]));
            if (kFault != 8) arrive_at_barrier(&barriers[1]);
        }
    }
}

// Many tell one, who tells all: out [64], the sum of what each of them stored.
__global__ void tell_in_turn(int* out) {
    __shared__ SharedArray<u64, 2> barriers;
    __shared__ SharedArray<int, 64> numbers;
    if (threadIdx.x == 0) {
        init_barrier(&barriers[0], 64);
        init_barrier(&barriers[1], 1);
    }
    __syncthreads();
    numbers[threadIdx.x] = threadIdx.x;
    arrive_at_barrier(&barriers[0]);
    if (threadIdx.x == 5) {
        wait_at_barrier(&barriers[0], 0);
        arrive_at_barrier(&barriers[1]);
    }
    wait_at_barrier(&barriers[1], 0);
    int sum = 0;
    for (int i = 0; i < 64; ++i) sum += static_cast<int>(numbers[i]);
    store(out + threadIdx.x, sum);
}
