// dQ of one query tile, from its sum to the result; where the keys are split, from the sums of the parts.
#pragma once

#include "cpu/attention_bwd_plan.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

// sum: a Sum of the engine, of query tile `tile` of the (batch, key head) `pair`
template <class Engine>
void write_dq(const AttentionBackward& p, int64_t pair, int64_t tile, float* sum) {
  using T = typename Engine::Element;
  const int64_t stack_rows = Stack(p).rows, row = tile * kTileQ, rows = min_of<int64_t>(kTileQ, stack_rows - row);
  alignas(64) float factors[kTileQ];
  for (int lane = 0; lane < kTileQ; lane += kLanes) store(factors + lane, splat(p.scale));
  Engine::write_sum(sum, rows, round_up(rows, kLanes), p.dim, factors,
                    static_cast<T*>(p.dq) + (pair * stack_rows + row) * p.dim);
}

// Adds the parts of one query tile of one (batch, key head), in order; index counts the tiles of all pairs.
template <class Engine>
void merge_dq(const AttentionBackward& p, const BackwardPlan& plan, int64_t index) {
  const int64_t all = p.batch * p.kv_heads * plan.tiles * plan.dq_tile;
  float* sum = plan.partial_dq + index * plan.dq_tile;
  for (int64_t other = 1; other < plan.parts; other++) {
    for (int64_t i = 0; i < plan.dq_tile; i += kLanes) store(sum + i, load(sum + i) + load(sum + other * all + i));
  }
  write_dq<Engine>(p, index / plan.tiles, index % plan.tiles, sum);
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
