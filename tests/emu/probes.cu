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
