// What the gradients of the pairs share: G into a chunk, and sums over all pairs.
#pragma once

#include "cuda/pair_logits.cuh"

namespace fastfuse::cuda {

// A tile of G in 16 bits, 8 bytes a thread at a time: of two words of a row, neighbouring threads complete one each.
template <class C>
FF_DEVICE void write_chunk(const PairProblem& p, const PairChunk& chunk, const PairThread& who, const PairRows& rows,
                           int first_column, const float (&g)[C::kProducts]) {
  const int lane = recomputed(who.lane);
  const bool odd = lane % 2;
  const int column = first_column - chunk.first_col + 8 * odd + lane % 4 / 2 * 4;
  auto* data = static_cast<typename C::Element*>(chunk.g) + column;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    auto* to = data + (rows.row[h] - chunk.first_row) * chunk.pitch;
#pragma unroll
    for (int j = 0; j < C::kProducts / 4; j += 2) {
      const uint32_t even_word = pack_pair<typename C::Element>(g[4 * j + 2 * h], g[4 * j + 2 * h + 1]);
      const uint32_t odd_word = pack_pair<typename C::Element>(g[4 * j + 4 + 2 * h], g[4 * j + 5 + 2 * h]);
      const uint32_t got = shuffle_xor(odd ? even_word : odd_word, 1);
      if (rows.row[h] < p.a.n)
        store_global(reinterpret_cast<uint2*>(to + 8 * j), uint2{odd ? got : even_word, odd ? odd_word : got});
    }
  }
}

// Each warp's sums, in double.
template <int kSums>
FF_DEVICE void write_sums(const PairThread& who, double (&sum)[kSums], double* to) {
#pragma unroll
  for (int i = 0; i < kSums; i++) {
#pragma unroll
    for (int mask = 16; mask > 0; mask /= 2) sum[i] += shuffle_xor(sum[i], mask);
    if (who.lane == 0) store_global(to + ((block_index() * 2 + who.warpgroup) * 4 + who.warp) * kSums + i, sum[i]);
  }
}

}  // namespace fastfuse::cuda
