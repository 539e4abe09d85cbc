// dV of what the forward kept: a query's factor, P = kept factor, goes to its row of dO, not to each of its weights,
//
//     dV += P^T dO = kept^T (factor dO),
//
// so that P is not written. From one tile of keys to the next only the rows are scaled again whose factor changed: those of
// queries whose reference moved in the forward.
#pragma once

#include "cpu/arena.h"
#include "cpu/attention_engine.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

struct ScaledRows {
  float* rows;     // [kTileQ][ld]
  float* factors;  // [kTileQ], that the rows have; NaN: none yet

  void take(Arena& arena, int64_t size) {
    rows = arena.take<float>(size);
    factors = arena.take<float>(kTileQ);
  }
  void clear() {
    for (int row = 0; row < kTileQ; row += kLanes) store(factors + row, splat(__builtin_nanf("")));
  }
  // rows = wanted[row] source[row][ld]
  void scale(const float* source, int64_t count, int64_t ld, const float* wanted) {
    for (int64_t row = 0; row < count; row++) {
      const float factor = wanted[row];
      if (factor == factors[row]) continue;
      factors[row] = factor;
      const float* from = source + row * ld;
      for (int64_t d = 0; d < ld; d += kLanes) store(rows + row * ld + d, load(from + d) * splat(factor));
    }
  }
};

}  // namespace fastfuse::cpu::FASTFUSE_ISA
