// What a forward leaves to its backward: the weights exp(s - m) that multiplied V, in the layout of that product, and the
// references m that they were taken from. The backward then has
//
//     P = exp(s - lse) = kept exp(m - lse)      one factor for each query and tile of keys
//
// instead of a product and its exponentials. Kept where that is no more memory than K and V, which autograd keeps anyway,
// or than the engine's kKeptLimit. A tile's place is [tile_keys][lanes], tiles of one (batch, key head) by query tile,
// then by keys:
//
//     weights  [B * Hk][Sq tiles][Sk tiles][tile_keys][lanes]     elements of Engine::Packed
//     m        [B * Hk][Sq tiles][Sk tiles][lanes]                float, in units of x, see attention_scores.h
#pragma once

#include "cpu/attention_tile.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

template <class Engine>
struct KeptWeights {
  using Packed = typename Engine::Packed;

  int64_t tile_rows;                // keys of a tile
  int64_t pairs, key_tiles, lanes;  // (batch, key head) pairs; lanes of all query tiles of one
  Packed* weights;
  float* references;

  KeptWeights(const AttentionProblem& p, void* memory)
      : tile_rows(tile_keys<Engine>(p)),
        pairs(p.batch * p.kv_heads),
        key_tiles(ceil_div(p.seq_k, tile_rows)),
        lanes(round_up(Stack(p).rows, kLanes)),
        weights(static_cast<Packed*>(memory)),
        references(reinterpret_cast<float*>(weights + pairs * key_tiles * lanes * tile_rows)) {}

  int64_t bytes() const {
    const int64_t places = pairs * key_tiles * lanes;
    return places * (tile_rows * int64_t(sizeof(Packed)) + int64_t(sizeof(float)));
  }

  // Where the tile of keys from `key` on is, counted in tiles of one lane.
  int64_t at(int64_t pair, int64_t query_tile, int tile_lanes, int64_t key) const {
    return (pair * lanes + query_tile * kTileQ) * key_tiles + key / tile_rows * tile_lanes;
  }
  Packed* tile(int64_t at) const { return weights + at * tile_rows; }
};

}  // namespace fastfuse::cpu::FASTFUSE_ISA
