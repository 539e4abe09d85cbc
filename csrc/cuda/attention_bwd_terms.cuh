// What softmax's gradient subtracts: ds = p ((received - center) open - offset).
//
// Where one tile holds all keys that a row sees, the sum that softmax's gradient subtracts is taken from that tile, in
// two steps, so that a row with one key has a gradient of exactly 0 (docs/numerics.md):
//
//     center = sum_j p_j dp_j,    offset = open (sum_j p_j (dp_j - center) - p_sink center) - dlse
//
// and left for the keys' kernel.
#pragma once

#include "cuda/attention_bwd_tile.cuh"

namespace fastfuse::cuda {

// Over the four threads of a row.
FF_DEVICE float quad_sum(float x) {
  x += shuffle_xor(x, 1);
  return x + shuffle_xor(x, 2);
}

// Whether the keys of one of the warp's rows may all lie in a tile of so many.
FF_DEVICE bool some_fit(const QueryRow (&rows)[2], int keys) {
  int any = 0;
#pragma unroll
  for (int h = 0; h < 2; h++) any |= rows[h].exists && rows[h].lo < rows[h].hi && rows[h].hi - rows[h].lo <= keys;
#pragma unroll
  for (int mask = 4; mask <= 16; mask *= 2) any |= shuffle_xor(any, mask);
  return any;
}

// Better terms for those of the warp's rows whose keys all lie in this tile.
template <int kScores>
FF_DEVICE void improve_terms(const AttentionBwdArguments& args, const QueryTile& t, const QueryRow (&rows)[2],
                             int first_key, const float (&s)[kScores], const float (&dp)[kScores],
                             const float (&open)[2], RowTerms (&terms)[2]) {
  const AttentionBackward& p = args.p;
#pragma unroll
  for (int h = 0; h < 2; h++) {
    const QueryRow& row = rows[h];
    const bool fits = row.exists && row.lo < row.hi && row.lo >= first_key && row.hi <= first_key + 2 * kScores;
    int any = fits;
#pragma unroll
    for (int mask = 4; mask <= 16; mask *= 2) any |= shuffle_xor(any, mask);
    if (!any) continue;
    float center = 0, correction = 0;
#pragma unroll
    for (int i = h * 2; i < kScores; i += 4)
      center = fused_multiply_add(s[i + 1], dp[i + 1], fused_multiply_add(s[i], dp[i], center));
    center = quad_sum(center);
#pragma unroll
    for (int i = h * 2; i < kScores; i += 4) {
      correction = fused_multiply_add(s[i], dp[i] - center, correction);
      correction = fused_multiply_add(s[i + 1], dp[i + 1] - center, correction);
    }
    correction = quad_sum(correction);
    if (!fits || terms[h].lse == plus_infinity()) continue;
    if (p.sink) {
      const float sink = load_global(p.sink + row.head) * kLog2e;
      correction -= exp2_approx(sink - terms[h].lse - terms[h].lse_rest) * center;
    }
    const int64_t at = row_index(p, t.batch, row);
    terms[h].center = center;
    terms[h].offset = correction * open[h] - (p.dlse ? load_global(p.dlse + at) : 0.0f);
    if (thread_index() % 4 == 0) {
      store_global(RowScratch(p).terms + 4 * at + 2, terms[h].center);
      store_global(RowScratch(p).terms + 4 * at + 3, terms[h].offset);
    }
  }
}

}  // namespace fastfuse::cuda
