// stub_driver.cpp: the functions of libcuda.so.1 that a launcher asks for, for machines without a GPU. It notes what it
// is told, and fails where the test says so.
#include <cstdint>
#include <cstring>

extern "C" {

struct Launch {
    void* function;
    unsigned grid[3], block[3], shared_bytes;
    void* stream;
    uint64_t values[32];
};

Launch last;
int num_values = 0;       // of the next launch, 8 bytes each are read
int num_launches = 0;
int fails = 0;            // what cuLaunchKernel returns
int attribute_bytes = 0;  // what cuFuncSetAttribute was told
const void* image = nullptr;

int cuInit(unsigned) { return 0; }
int cuDriverGetVersion(int* version) {
    *version = 13000;
    return 0;
}
int cuModuleLoadData(void** module, const void* data) {
    if (!std::memcmp(data, "bad", 3)) return 200;
    image = *module = const_cast<void*>(data);
    return 0;
}
int cuModuleGetFunction(void** function, void* module, const char* name) {
    if (!std::strcmp(name, "absent")) return 500;
    *function = static_cast<char*>(module) + 1;
    return 0;
}
int cuFuncSetAttribute(void*, int attribute, int value) {
    attribute_bytes = attribute == 8 ? value : -1;
    return 0;
}
int cuGetErrorString(int error, const char** text) {
    *text = error == 200 ? "device kernel image is invalid" : error == 500 ? "named symbol not found" : nullptr;
    return 0;
}
int cuLaunchKernel(void* function, unsigned x, unsigned y, unsigned z, unsigned block_x, unsigned block_y,
                   unsigned block_z, unsigned shared_bytes, void* stream, void** values, void**) {
    ++num_launches;
    last = {function, {x, y, z}, {block_x, block_y, block_z}, shared_bytes, stream, {}};
    for (int i = 0; i < num_values; ++i) std::memcpy(&last.values[i], values[i], 8);
    return fails;
}
}
