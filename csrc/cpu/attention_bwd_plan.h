// How the backward is cut into tasks, see attention_bwd.h.
#pragma once

#include "cpu/attention_bwd_bias.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

struct BackwardPlan {
  int64_t tiles;                     // query tiles of a (batch, key head)
  int64_t tile;                      // keys of a tile
  int64_t part, parts;               // keys of a task, a multiple of them
  int64_t block;                     // keys whose dK and dV are held at once
  int64_t batches, kv_heads, tasks;  // (batch, key head) pairs that one task takes: batches x kv_heads
  bool shares_bias;                  // among those pairs: SharedBias
  int64_t dq_tile;                   // floats of dQ of one query tile, a Sum of the engine
  float* partial_dq;                 // [parts][B * Hk][tiles][dq_tile], or null
  float* partial_sink;               // [B * H]
  float* partial_gate;               // [parts][B * H]
};

constexpr int64_t kBlockBytes = 512 << 10;  // of dK and dV: a quarter of a common L2 cache

template <class Engine>
BackwardPlan plan_backward(const AttentionBackward& p) {
  BackwardPlan plan{};
  plan.tiles = ceil_div(Stack(p).rows, kTileQ);
  plan.tile = tile_keys<Engine>(p);
  plan.batches = p.dbias && p.dbias_stride[0] == 0 ? p.batch : 1;
  plan.kv_heads = p.dbias && p.dbias_stride[1] == 0 ? p.kv_heads : 1;
  const int64_t outer = (p.batch / plan.batches) * (p.kv_heads / plan.kv_heads), wanted = 3 * p.pool.threads;
  const int64_t key_tiles = ceil_div(p.seq_k, plan.tile);
  const bool may_split = p.pool.threads > 1 && outer < wanted && !(p.dbias && p.dbias_stride[3] == 0);
  const int64_t parts = may_split ? min_of(ceil_div(wanted, outer), key_tiles) : 1;
  plan.part = ceil_div(key_tiles, parts) * plan.tile;
  plan.parts = ceil_div(p.seq_k, plan.part);
  const int64_t row_bytes = (round_up(p.dim, 16) + round_up(p.dim_v, 16)) * int64_t(sizeof(float));
  plan.block = min_of(plan.part, max_of<int64_t>(kBlockBytes / row_bytes / plan.tile, 1) * plan.tile);
  if (plan.tiles == 1) plan.block = plan.tile;  // nothing to add up
  plan.shares_bias = SharedBias::pays(p, plan.batches * plan.kv_heads, plan.tiles, plan.part);
  plan.tasks = outer * plan.parts;
  plan.dq_tile = round_up(p.dim, 16) * kTileQ;
  return plan;
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
