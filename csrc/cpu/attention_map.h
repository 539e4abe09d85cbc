// Attention maps, recomputed from lse: p = exp(s - lse), transposed out of the score tiles. No dropout, no gate.
//
//   full, mean    one task = (batch, query tile of one head range, tile of keys); mean adds the heads up in a float
//   tile keys          one task = (batch, tile of keys): sums over queries, then heads, in that order
#pragma once

#include "cpu/arena.h"
#include "cpu/attention_decode.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

// From products to p of one query tile, in place on tile[n][lanes]; lanes past its rows are 0.
inline void find_probabilities(const AttentionMap& p, const ScoreUnits& units, const QueryTile& t, KeyRange keys,
                               float* tile, float* rest) {
  finish_scores(p, units, t, keys, tile, rest);
  for (int lane = 0; lane < t.lanes; lane += kLanes) {
    alignas(64) float high[kLanes], low[kLanes];
    load_lse(p, p.lse, t, lane, high, low);
    for (int64_t j = 0; j < keys.size(); j++) {
      const int64_t at = j * t.lanes + lane;
      store(tile + at, probability<false>(tile + at, rest ? rest + at : nullptr, units, load(high), load(low)));
    }
  }
}

template <class Engine>
void map_task(const AttentionMap& p, int64_t index) {
  using T = typename Engine::Element;
  using Packed = typename Engine::Packed;
  const int64_t key_tiles = ceil_div(p.seq_k, Engine::kTileK), tiles = ceil_div(p.seq_q, kTileQ);
  const int64_t key = index % key_tiles * Engine::kTileK, n_tile = min_of(Engine::kTileK, p.seq_k - key);
  const int64_t group = p.heads / p.kv_heads;
  const bool by_keys = p.mode == MapMode::kKeys, full = p.mode == MapMode::kFull;
  index /= key_tiles;
  const int64_t first_tile = by_keys ? 0 : index % tiles, last_tile = by_keys ? tiles : first_tile + 1;
  index /= by_keys ? 1 : tiles;
  const int64_t batch = full ? index / p.heads : index;
  const int64_t first_head = full ? index % p.heads : 0, last_head = full ? first_head + 1 : p.heads;
  const float share = full ? 1.0f : 1.0f / float(p.heads);
  const ScoreUnits units(p);
  const int64_t q_ld = round_up(p.dim, kLanes);

  QueryTile* t;
  float *tile, *rest, *total, *streamed;
  Packed *key_scratch, *queries;
  T* row_scratch;
  with_arena([&](Arena& arena) {
    t = arena.take<QueryTile>(1);
    tile = arena.take<float>(Engine::kTileK * kTileQ);
    rest = keeps_rest<Engine>(p) ? arena.take<float>(Engine::kTileK * kTileQ) : nullptr;
    total = arena.take<float>(Engine::kTileK * kTileQ);
    streamed = streams_keys<Engine>(p) ? arena.take<float>(kDecodeRows * q_ld) : nullptr;
    key_scratch = arena.take<Packed>(Engine::key_scratch(p.dim));
    queries = arena.take<Packed>(Engine::lanes_size(p.dim));
    row_scratch = arena.take<T>(kTileQ * p.dim);
  });
  [[maybe_unused]] typename Engine::Session session;
  __builtin_memset(total, 0, Engine::kTileK * kTileQ * sizeof(float));

  for (int64_t head = first_head; head < last_head; head++) {
    const int64_t kv_head = head / group;
    Operand<Packed> k{};
    if (!streamed) {
      k = Engine::rows_operand(row_of<T>(p.k, batch, kv_head, key), p.k.stride[2], n_tile, p.seq_k - key, p.dim,
                               key_scratch);
    }
    for (int64_t i = first_tile; i < last_tile; i++) {
      const int64_t query = i * kTileQ, rows = min_of<int64_t>(kTileQ, p.seq_q - query);
      set_tile(p, batch, kv_head, head % group * p.seq_q + query, rows, *t);
      const KeyRange keys = visible_keys(*t, key, key + n_tile);
      if (keys.size() <= 0) continue;
      const TileRows<T> q = tile_rows<T>(p.q, p.dim, *t, row_scratch);
      if (streamed) {
        pack_rows(q.data, q.stride, t->rows, p.dim, streamed, q_ld);
        decode_tile(streamed, q_ld, *t, row_of<T>(p.k, batch, kv_head, keys.begin), p.k.stride[2], keys.size(), p.dim,
                    tile);
      } else {
        Engine::pack_lanes(q.data, q.stride, t->rows, p.dim, queries, t->lanes);
        Engine::scores_product(keys.size(), t->lanes, p.dim, Engine::skip_rows(k, keys.begin - key), queries, tile,
                               rest);
      }
      find_probabilities(p, units, *t, keys, tile, rest);
      float* to = total + (keys.begin - key) * t->lanes;
      if (by_keys) {  // total[n][kLanes]
        for (int64_t j = 0; j < keys.size(); j++) {
          float* at = total + (keys.begin - key + j) * kLanes;
          vf sum = load(at);
          for (int lane = 0; lane < t->lanes; lane += kLanes) sum += load(tile + j * t->lanes + lane);
          store(at, sum);
        }
      } else {
        for (int64_t j = 0; j < keys.size() * t->lanes; j += kLanes)
          store(to + j, fma(load(tile + j), splat(share), load(to + j)));
      }
    }
  }
  if (by_keys) {
    for (int64_t j = 0; j < n_tile; j++)
      p.map[batch * p.seq_k + key + j] = reduce_add(load(total + j * kLanes)) * share;
  } else {
    const int64_t row = (full ? batch * p.heads + first_head : batch) * p.seq_q + first_tile * kTileQ;
    transpose(total, t->lanes, n_tile, t->rows, p.map + row * p.seq_k + key, p.seq_k);
  }
}

template <class Engine>
void attention_map(const AttentionMap& p) {
  const int64_t key_tiles = ceil_div(p.seq_k, Engine::kTileK), tiles = ceil_div(p.seq_q, kTileQ);
  const int64_t outer = p.mode == MapMode::kKeys ? p.batch : p.batch * tiles * (p.mode == MapMode::kFull ? p.heads : 1);
  parallel_for(
      p.pool, outer * key_tiles,
      [](void* argument, int64_t index, int) { map_task<Engine>(*static_cast<const AttentionMap*>(argument), index); },
      const_cast<AttentionMap*>(&p));
}

}  // namespace fastfuse::cpu::FASTFUSE_ISA
