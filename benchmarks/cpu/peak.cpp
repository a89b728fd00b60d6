// Dot products on registers and nothing else: what the processor can do at most.

#define EACH_SUM(DO)                                                                                                 \
    DO(0) DO(1) DO(2) DO(3) DO(4) DO(5) DO(6) DO(7) DO(8) DO(9) DO(10) DO(11) DO(12) DO(13) DO(14) DO(15) DO(16)     \
    DO(17) DO(18) DO(19) DO(20) DO(21) DO(22) DO(23)
#define CLEAR(i) "vpxord %%zmm" #i ", %%zmm" #i ", %%zmm" #i "\n"
#define PAIRS(i) "vdpbf16ps %%zmm30, %%zmm31, %%zmm" #i "\n"
#define BYTES(i) "vpdpbusd %%zmm30, %%zmm31, %%zmm" #i "\n"
#define USED                                                                                                         \
    "xmm0", "xmm1", "xmm2", "xmm3", "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12",       \
        "xmm13", "xmm14", "xmm15", "xmm16", "xmm17", "xmm18", "xmm19", "xmm20", "xmm21", "xmm22", "xmm23", "xmm30",  \
        "xmm31"
#define REPEAT(DO)                                                                                                   \
    asm volatile(EACH_SUM(CLEAR) CLEAR(30) CLEAR(31) "1:\n" EACH_SUM(DO) "dec %0\njnz 1b\n" : "+r"(rounds) : : USED)

// 24 dot products of two vectors of 512 bits, `rounds` times.
extern "C" void multiply_pairs(long rounds) { REPEAT(PAIRS); }
extern "C" void multiply_bytes(long rounds) { REPEAT(BYTES); }
