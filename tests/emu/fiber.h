// fiber.h: a flow of control that is left and taken up again at will. By hand on x86-64, some 20 ns a change;
// elsewhere, or with CUEMU_UCONTEXT, by ucontext, which asks the kernel each time.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if !defined(__x86_64__)
#define CUEMU_UCONTEXT
#endif
#if defined(CUEMU_UCONTEXT)
#include <ucontext.h>
#endif

namespace cuemu {

#if defined(CUEMU_UCONTEXT)

class Fiber {
public:
    void start(void (*entry)(), char* stack, size_t stack_bytes) {
        getcontext(&context_);
        context_.uc_stack.ss_sp = stack;
        context_.uc_stack.ss_size = stack_bytes;
        context_.uc_link = nullptr;
        makecontext(&context_, entry, 0);
    }
    void leave_for(Fiber& other) { swapcontext(&context_, &other.context_); }

private:
    ucontext_t context_;
};

#else

// Push what a call must preserve, change stacks, pop it: the return is into the other fiber.
extern "C" __attribute__((visibility("hidden"))) void cuemu_change(void** saved, void* other);
asm(R"(
    .text
    .hidden cuemu_change
    .globl cuemu_change
    .type cuemu_change, @function
cuemu_change:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size cuemu_change, .-cuemu_change
)");

class Fiber {
public:
    // entry never returns.
    void start(void (*entry)(), char* stack, size_t stack_bytes) {
        constexpr int kPopped = 6;
        auto* frame = reinterpret_cast<uint64_t*>(stack + stack_bytes) - (kPopped + 2);  // entry sees rsp % 16 == 8
        std::memset(frame, 0, (kPopped + 2) * sizeof(uint64_t));
        frame[kPopped] = reinterpret_cast<uint64_t>(entry);
        top_ = frame;
    }
    void leave_for(Fiber& other) { cuemu_change(&top_, other.top_); }

private:
    void* top_ = nullptr;
};

#endif

}  // namespace cuemu
