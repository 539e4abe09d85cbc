// The bias of a task whose (batch, key head) pairs share one bias and its gradient.
//
// Both are kept in the tiles' order, [keys][lanes], while the task lasts: the bias is transposed for the first pair
// only, and dbias = sum over pairs dS is added up in whole vectors and transposed back once. Their size is that of one
// head's bias, rows padded to tiles; beyond kBiasBytes, each pair reads and adds to the rows themselves.
#pragma once

#include "cpu/arena.h"
#include "cpu/attention_bias.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

constexpr int64_t kBiasBytes = 4 << 20;

struct SharedBias {
  int64_t tile_keys, key_tiles;  // keys of a tile; tiles of a task's keys
  float* bias;                   // [query tiles][key_tiles][tile_keys][lanes], lanes at most kTileQ; or null: not kept
  float* sums;                   // the same
  bool* loaded;                  // [query tiles][key_tiles]

  // Whether a task of so many pairs and tiles keeps them.
  static bool pays(const AttentionBackward& p, int64_t pairs, int64_t tiles, int64_t keys) {
    return p.dbias && pairs > 1 && 2 * tiles * kTileQ * keys * int64_t(sizeof(float)) <= kBiasBytes;
  }

  void take(Arena& arena, int64_t tiles, int64_t keys_of_tile, int64_t keys) {
    tile_keys = keys_of_tile;
    key_tiles = ceil_div(keys, tile_keys);
    bias = arena.take<float>(tiles * key_tiles * tile_keys * kTileQ);
    sums = arena.take<float>(tiles * key_tiles * tile_keys * kTileQ);
    loaded = arena.take<bool>(tiles * key_tiles);
  }

  void begin(int64_t tiles) { __builtin_memset(loaded, 0, tiles * key_tiles); }

  int64_t offset(int64_t tile, int64_t key_tile) const { return (tile * key_tiles + key_tile) * tile_keys * kTileQ; }

  // Before a tile's first use: keys [key, key + n) of query tile `tile`. What the forward kept has the bias in it.
  void load_tile(const AttentionBackward& p, const QueryTile& t, int64_t tile, int64_t key_tile, int64_t key,
                 int64_t n) {
    bool& done = loaded[tile * key_tiles + key_tile];
    if (done) return;
    done = true;
    const int64_t at = offset(tile, key_tile), bytes = n * t.lanes * int64_t(sizeof(float));
    __builtin_memset(sums + at, 0, bytes);
    if (p.kept) return;
    __builtin_memset(bias + at, 0, bytes);
    add_bias(p, t, key, n, 1.0f, bias + at, nullptr);
  }

  // The tile of keys after `key_tile`.
  void feed_next(int64_t tile, int64_t key_tile, int64_t lanes, bool with_bias, Feed& feed) const {
    if (key_tile + 1 == key_tiles) return;
    const int64_t at = offset(tile, key_tile + 1), size = tile_keys * lanes;
    if (with_bias) feed.add(bias + at, size, size, 1);
    feed.add(sums + at, size, size, 1);
  }

  // After the last pair: dbias += the sums of query tile `tile`, whose first key is `key`.
  void write_tile(const AttentionBackward& p, const QueryTile& t, int64_t tile, int64_t begin, int64_t end) const {
    for (int64_t i = 0, key = begin; key < end; i++, key += tile_keys) {
      if (!loaded[tile * key_tiles + i]) continue;
      add_bias_gradient(t, p.dbias_stride, key, min_of(tile_keys, end - key), sums + offset(tile, i), p.dbias);
    }
  }
};

}  // namespace fastfuse::cpu::FASTFUSE_ISA
