// stub_driver.cpp: the functions of libcuda.so.1 that CuPy's loading of modules and a launcher ask for, for machines
// without a GPU. It notes what it is told, and fails where the test says so.
#include <cstdint>
#include <cstring>
#include <fstream>
#include <iterator>
#include <map>
#include <string>

extern "C" {

struct Launch {
    void* function;
    unsigned grid[3], block[3], shared_bytes;
    void* stream;
    uint64_t values[32];
};

struct Function {
    const char* path;  // of its module
    const char* name;
    int shared_bytes;  // that a launch may ask for
};

struct Module {
    std::string path, content;
    std::map<std::string, Function> functions;
};

Launch last;
int num_values = 0;  // of the next launch, 8 bytes each are read
int num_launches = 0;
int fails = 0;       // what cuLaunchKernel returns
int version = 13000;

int cuDriverGetVersion(int* found) {
    *found = version;
    return 0;
}
int cuModuleLoad(Module** module, const char* path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) return 301;
    std::string content{std::istreambuf_iterator<char>(file), {}};
    if (content.compare(0, 4, "\x7f" "ELF")) return 200;
    *module = new Module{path, content, {}};
    return 0;
}
int cuModuleUnload(Module*) { return 0; }
int cuModuleGetFunction(Function** function, Module* module, const char* name) {
    if (module->content.find(name) == std::string::npos) return 500;
    const auto [at, is_new] = module->functions.try_emplace(name);
    if (is_new) at->second = {module->path.c_str(), at->first.c_str(), 48 << 10};
    *function = &at->second;
    return 0;
}
int cuFuncGetAttribute(int* value, int attribute, Function* function) {
    if (attribute != 8) return 1;
    *value = function->shared_bytes;
    return 0;
}
int cuFuncSetAttribute(Function* function, int attribute, int value) {
    if (attribute != 8 || value > 227 << 10) return 1;
    function->shared_bytes = value;
    return 0;
}
int cuGetErrorName(int, const char** text) {
    *text = "CUDA_ERROR_OF_STUB";
    return 0;
}
int cuGetErrorString(int error, const char** text) {
    *text = error == 1     ? "invalid argument"
            : error == 200 ? "device kernel image is invalid"
            : error == 301 ? "file not found"
            : error == 500 ? "named symbol not found"
                           : nullptr;
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
