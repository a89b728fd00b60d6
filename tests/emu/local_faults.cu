// local_faults.cu: what the emulator does not see and sanitizers do: faults within a thread.
#include "types.cuh"

__global__ void local_beyond(float* out, int at) {
    float numbers[4] = {1, 2, 3, 4};
    numbers[at] = 5.0f;
    store(out, numbers[(at + 1) % 4]);
}

__global__ void shift_too_far(int* out, int by) { store(out, 1 << by); }
