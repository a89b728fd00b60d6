// kv_cache.h: how the decoder keeps keys and values.
//
// 16 neighbouring tokens of one KV head are a group, and a group lies as dot products take it (dot_tile.h): in words of
// 32 bits that hold neighbours along what is summed. So attention multiplies with the cache as it is.
//
//   keys    [head_dim / per_word][16]   a word is neighbouring elements of one token
//   values  [16 / per_word][head_dim]   a word is one element of neighbouring tokens
//
// A word holds two numbers of bf16, or four codes of int8 or fp8. After the words of codes come the scales of the 16
// tokens, float32, each the largest element of its token over the largest code; what is kept is code * scale. A token's
// scale is made when it is written and never changes, so what a token is given does not depend on who came after it.
// Codes are in the order 0 2 1 3, for then the even bytes of a word are one pair and the odd bytes are the next.
//
// fp8 is e4m3 without its subnormal numbers: what is below the least normal one, 1 / 28,672 of the largest element,
// becomes that or 0.
//
// A cache is [num_blocks][num_kv_heads][block_size / 16] groups.
#pragma once

#include <cstdint>

namespace trioserve {

constexpr int kGroup = 16;

enum class KvFormat : int { bf16 = 0, int8 = 1, fp8 = 2 };

constexpr int per_word(KvFormat format) { return format == KvFormat::bf16 ? 2 : 4; }

// Words of a group, its scales not counted.
constexpr int group_words(KvFormat format, int head_dim) { return kGroup / per_word(format) * head_dim; }

constexpr int64_t group_bytes(KvFormat format, int head_dim) {
    return 4 * (group_words(format, head_dim) + (format == KvFormat::bf16 ? 0 : kGroup));
}

// Where the code of neighbour i of a word is.
constexpr int byte_of(int i) { return i % 2 * 2 + i / 2; }

}  // namespace trioserve
