// What the gradients of the pairs share: G into a chunk, and sums over all pairs.
#pragma once

#include "cuda/pair_logits.cuh"
#include "cuda/quad.cuh"

namespace fastfuse::cuda {

// A tile of G in 16 bits, 16 bytes a thread at a time.
template <class C>
FF_DEVICE void write_chunk(const PairProblem& p, const PairChunk& chunk, const PairThread& who, const PairRows& rows,
                           int first_column, const float (&g)[C::kProducts]) {
  auto* data = static_cast<typename C::Element*>(chunk.g);
#pragma unroll
  for (int h = 0; h < 2; h++) {
    auto* to = data + (rows.row[h] - chunk.first_row) * chunk.pitch + (first_column - chunk.first_col);
#pragma unroll
    for (int j = 0; j < C::kProducts / 4; j += 4) {
      uint32_t word[4];
#pragma unroll
      for (int i = 0; i < 4; i++)
        word[i] = pack_pair<typename C::Element>(g[4 * (j + i) + 2 * h], g[4 * (j + i) + 2 * h + 1]);
      transpose_quad(word);
      if (rows.row[h] < p.a.n)
        store_global(reinterpret_cast<uint4*>(to + 8 * (j + who.lane % 4)), uint4{word[0], word[1], word[2], word[3]});
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
