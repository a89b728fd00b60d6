// probes.cu: small kernels for the tests of the emulator itself: some right, most with one fault each.
#include "types.cuh"

constexpr u32 kLowerHalf = 0x0000ffffu;

// ---- right

template <typename T>
__global__ void convert(T* narrowed, float* widened, const float* x, int size) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    const T value = from_float<T>(load<float>(x + i));
    store(narrowed + i, value);
    store(widened + i, to_float(value));
}

// Each lane's number from elsewhere: out [6, 32].
__global__ void exchange(int* out) {
    const int lane = threadIdx.x;
    store(out + lane, __shfl_sync(kEveryLane, lane, 7));
    store(out + 32 + lane, __shfl_xor_sync(kEveryLane, lane, 3));
    store(out + 64 + lane, __shfl_down_sync(kEveryLane, lane, 5));
    store(out + 96 + lane, __shfl_up_sync(kEveryLane, lane, 5));
    store(out + 128 + lane, static_cast<int>(__ballot_sync(kEveryLane, lane % 3 == 0)));
    const int half = lane < 16 ? __shfl_xor_sync(kLowerHalf, lane, 1) : __shfl_xor_sync(~kLowerHalf, lane, 2);
    store(out + 160 + lane, half);
}

// out[i] = the sum of all i of the block, row_sum called twice.
__global__ void sums(float* out) {
    const float once = row_sum<128>(static_cast<float>(threadIdx.x));
    store(out + threadIdx.x, row_sum<128>(once));
}

// The block's numbers in reverse, through shared memory whose size the launch decides.
__global__ void reverse(int* out, int size) {
    auto numbers = dynamic_shared<int>();
    numbers[threadIdx.x] = threadIdx.x;
    __syncthreads();
    store(out + threadIdx.x, static_cast<int>(numbers[size - 1 - threadIdx.x]));
}

// Within a warp its own barrier is enough.
__global__ void rotate_lanes(int* out) {
    __shared__ SharedArray<int, 64> numbers;
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    numbers[threadIdx.x] = threadIdx.x;
    __syncwarp();
    const int next = numbers[warp * kWarp + (lane + 1) % kWarp];
    __syncwarp();
    numbers[threadIdx.x] = next;
    store(out + threadIdx.x, static_cast<int>(numbers[threadIdx.x]));
}

// Where each block and thread is: out [grid, block, 2].
__global__ void places(int* out) {
    const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
    const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
    int* place = out + 2 * (block * blockDim.x * blockDim.y * blockDim.z + thread);
    store(place, block);
    store(place + 1, thread);
}

// Four e4m3 in one register, and each as one: out [size, 5].
template <typename T>
__global__ void widen_codes(float* out, const u8* codes, int size) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= size) return;
    u32 four = 0;
    for (int j = 0; j < 4; ++j) four |= static_cast<u32>(load<u8>(codes + (i + 61 * j) % size)) << 8 * j;
    const u32 even = even_pair_of<T>(four), odd = odd_pair_of<T>(four);
    store(out + 5 * i, to_float(T{static_cast<u16>(even)}));
    store(out + 5 * i + 1, to_float(T{static_cast<u16>(odd)}));
    store(out + 5 * i + 2, to_float(T{static_cast<u16>(even >> 16)}));
    store(out + 5 * i + 3, to_float(T{static_cast<u16>(odd >> 16)}));
    store(out + 5 * i + 4, to_float(e4m3{static_cast<u8>(four)}));
}

__global__ void narrow_codes(e4m3* out, const float* x, int size) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < size) store(out + i, from_float<e4m3>(load<float>(x + i)));
}

// c = a b, a [16, 16], b [8, 16] by columns or [16, 8] by rows: all through shared memory.
template <typename T, bool kTransposed>
__global__ void multiply(float* c, const T* a, const T* b) {
    const auto rows = dynamic_shared<u8>(), columns = dynamic_shared<u8>(512);
    const int lane = threadIdx.x;
    copy_async(&rows[lane * 16], a + lane * 8, true);
    copy_async(&columns[lane * 16], b + lane % 16 * 8, lane < 16);
    commit_copies();
    wait_copies<0>();
    __syncwarp();
    u32 x[4], y[4];
    load_matrices(x, &rows[lane % 16 * 32 + lane / 16 * 16]);
    if (kTransposed) load_matrices_transposed(y, &columns[lane % 16 * 16]);
    else load_matrices(y, &columns[lane % 8 * 32 + lane / 8 % 2 * 16]);
    float sums[4] = {};
    mma<T>(sums, x, y[0], y[1]);
    for (int i = 0; i < 4; ++i) store(c + (lane / 4 + i / 2 * 8) * 8 + lane % 4 * 2 + i % 2, sums[i]);
}

// A copy that is not wanted gives zeros.
__global__ void copy_some(float* out, const float* x, int wanted) {
    const auto numbers = dynamic_shared<float>();
    copy_async(&numbers[4 * threadIdx.x], x + 4 * threadIdx.x, static_cast<int>(threadIdx.x) < wanted);
    commit_copies();
    wait_copies<0>();
    for (int i = 0; i < 4; ++i) store(out + 4 * threadIdx.x + i, static_cast<float>(numbers[4 * threadIdx.x + i]));
}

// ---- asynchronous copies

__global__ void read_too_early(float* out, const float* x) {
    const auto numbers = dynamic_shared<float>();
    copy_async(&numbers[0], x, true);
    commit_copies();
    copy_async(&numbers[4], x + 4, true);
    commit_copies();
    wait_copies<1>();
    store(out, static_cast<float>(numbers[0]));
    store(out + 1, static_cast<float>(numbers[4]));
}

__global__ void read_of_another(float* out, const float* x) {
    const auto numbers = dynamic_shared<float>();
    copy_async(&numbers[4 * threadIdx.x], x + 4 * threadIdx.x, true);
    commit_copies();
    wait_copies<0>();
    store(out + threadIdx.x, static_cast<float>(numbers[4 * (threadIdx.x ^ 1)]));
}

__global__ void never_waited(const float* x) {
    copy_async(&dynamic_shared<float>()[0], x, true);
    commit_copies();
}

__global__ void copy_off_its_boundary(const float* x) { copy_async(&dynamic_shared<float>()[0], x + 1, true); }

__global__ void copy_beyond(const float* x, int at) { copy_async(&dynamic_shared<float>()[at], x, true); }

// ---- barriers and collectives

__global__ void barrier_in_a_branch() {
    if (threadIdx.x < 32) __syncthreads();
    else __shfl_xor_sync(kEveryLane, 1, 1);
}

__global__ void two_barriers() {
    if (threadIdx.x % 2) {
        __syncthreads();
    } else {
        __syncthreads();
    }
}

__global__ void barrier_after_leaving() {
    if (threadIdx.x == 5) return;
    __syncthreads();
}

__global__ void lane_outside_its_mask() { __shfl_xor_sync(kLowerHalf, 1, 1); }

__global__ void source_outside_the_mask() {
    if (threadIdx.x < 16) __shfl_xor_sync(kLowerHalf, 1, 16);
}

__global__ void lane_that_left() {
    if (threadIdx.x == 3) return;
    __shfl_xor_sync(kEveryLane, 1, 1);
}

__global__ void two_collectives() {
    if (threadIdx.x < 16) __shfl_xor_sync(kEveryLane, 1, 1);
    else __ballot_sync(kEveryLane, 1);
}

// ---- memory

__global__ void shared_beyond(int at) {
    __shared__ SharedArray<float, 8> eight;
    eight[at] = 1.0f;
}

__global__ void dynamic_beyond(int at) { dynamic_shared<float>()[at] = 1.0f; }

__global__ void read_before_write(float* out) {
    __shared__ SharedArray<float, 32> numbers;
    store(out + threadIdx.x, static_cast<float>(numbers[threadIdx.x]));
}

__global__ void write_after_read(float* out) {
    __shared__ SharedArray<float, 64> numbers;
    numbers[threadIdx.x] = 0.0f;
    __syncthreads();
    store(out + threadIdx.x, static_cast<float>(numbers[63 - threadIdx.x]));
    numbers[threadIdx.x] = 1.0f;
}

__global__ void two_writers() {
    __shared__ SharedArray<float, 1> number;
    number[0] = 1.0f;
}

__global__ void misaligned_load(float* out, const float* x, int shift) {
    store(out, load<Vector<float, 4>>(x + shift)[0]);
}

__global__ void misaligned_store(float* out, int shift) { store(out + shift, Vector<float, 4>{{1, 2, 3, 4}}); }

__global__ void store_to_input(const float* x) { store(const_cast<float*>(x), 1.0f); }
