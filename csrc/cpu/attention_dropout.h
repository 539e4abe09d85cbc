// Counter-based dropout: Philox 4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
//
// key = seed, counter = (j / 4, i, b H + h, 0); key j keeps word j % 4: kept where word >= p 2^32.
#pragma once

#include "cpu/attention_tile.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

// High and low words of a * b.
FF_INLINE void multiply(vu a, uint32_t b, vu& high, vu& low) {
  low = a * (b + vu{});
#if defined(__AVX512F__)
  const __m512i wide = _mm512_set1_epi32(int(b));
  const __m512i even = _mm512_mul_epu32((__m512i)a, wide),
                odd = _mm512_mul_epu32(_mm512_srli_epi64((__m512i)a, 32), wide);
  high = (vu)_mm512_mask_blend_epi32(0xaaaa, _mm512_srli_epi64(even, 32), odd);
#elif defined(__AVX2__)
  const __m256i wide = _mm256_set1_epi32(int(b));
  const __m256i even = _mm256_mul_epu32((__m256i)a, wide),
                odd = _mm256_mul_epu32(_mm256_srli_epi64((__m256i)a, 32), wide);
  high = (vu)_mm256_blend_epi32(_mm256_srli_epi64(even, 32), odd, 0xaa);
#else
  for (int i = 0; i < kLanes; i++) high[i] = uint32_t(uint64_t(a[i]) * b >> 32);
#endif
}

// The four words of each lane's counter (c0, c1, c2, 0).
FF_INLINE void philox(vu c0, vu c1, vu c2, uint64_t seed, vu (&words)[4]) {
  vu c3{};
  uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
  for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
    vu high0, low0, high1, low1;
    multiply(c0, 0xD2511F53u, high0, low0);
    multiply(c2, 0xCD9E8D57u, high1, low1);
    c0 = high1 ^ c1 ^ (k0 + vu{});
    c1 = low1;
    c2 = high0 ^ c3 ^ (k1 + vu{});
    c3 = low0;
  }
  words[0] = c0;
  words[1] = c1;
  words[2] = c2;
  words[3] = c3;
}

// keep[n][lanes]: -1 where kept, 0 where dropped; keys [begin, begin + n), begin a multiple of 4.
inline void dropout_tile(const AttentionProblem& p, const QueryTile& t, int64_t begin, int64_t n, int32_t* keep) {
  const double scaled = double(p.dropout_p) * 4294967296.0;
  const uint32_t threshold = scaled >= 4294967295.0 ? 4294967295u : uint32_t(scaled);
  for (int lane = 0; lane < t.lanes; lane += kLanes) {
    vi query, row;
    for (int i = 0; i < kLanes; i++) {
      query[i] = t.query[lane + i];
      row[i] = int32_t(t.batch * p.heads + t.head[lane + i]);
    }
    for (int64_t j = 0; j < n; j += 4) {
      vu words[4];
      philox(uint32_t((begin + j) / 4) + vu{}, (vu)query, (vu)row, p.seed, words);
      for (int w = 0; w < 4 && j + w < n; w++)
        store(keep + (j + w) * t.lanes + lane, (vi)(words[w] >= threshold + vu{}));
    }
  }
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
