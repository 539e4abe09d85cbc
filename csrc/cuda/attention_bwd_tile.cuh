// Backward's tiles of queries, and what it needs of each row.
//
// A key head's queries are `count` runs of `rows` rows that one stride joins, so that TMA can load a tile: the whole
// group's where its heads follow one another in q and dout, else one head's. Rows are numbered as in the stack of
// attention_tile.cuh: row r of run n is stack row n rows + r.
#pragma once

#include "cuda/attention_log_sum.cuh"
#include "cuda/attention_scores.cuh"
#include "fastfuse/cuda_attention_bwd.h"

namespace fastfuse::cuda {

constexpr int kRunTileRows = 64;

struct QueryRuns {
  int rows, count;
  int tiles;  // of kRunTileRows rows of a run, even: the last may have no row
};

inline bool heads_follow(const AttentionProblem& p, const Rows& rows) {
  return rows.stride[1] == p.seq_q * rows.stride[2];
}

inline QueryRuns query_runs(const AttentionBackward& p) {
  const int group = p.heads / p.kv_heads;
  const bool joined = group > 1 && heads_follow(p, p.q) && heads_follow(p, p.dout);
  QueryRuns runs{joined ? group * p.seq_q : p.seq_q, joined ? 1 : group, 0};
  runs.tiles = (runs.rows + 2 * kRunTileRows - 1) / (2 * kRunTileRows) * 2;
  return runs;
}

// Keys of one kRunTileRows rows; what its rows see lies within [begin, end), and all of them see [all_begin, all_end).
struct KeySpans {
  int begin, end, all_begin, all_end;
};

struct AttentionBwdArguments {
  AttentionBackward p;
  QueryRuns runs;
  ScoreUnits units;
  float softcap_inverse;  // 1 / units.softcap, or 0 where that is off
  uint32_t dropout_threshold;
  float kept_share;  // 1 / (1 - dropout_p)
};

// tile: of [0, count tiles).
FF_DEVICE KeySpans key_spans(const AttentionBwdArguments& args, int batch, int tile) {
  const AttentionBackward& p = args.p;
  if (!p.spans) return {0, p.seq_k, 0, p.seq_k};
  const int32_t* at = p.spans + (int64_t(batch) * args.runs.count * args.runs.tiles + tile) * 4;
  return {load_global(at), load_global(at + 1), load_global(at + 2), load_global(at + 3)};
}

FF_DEVICE KeySpans join(const KeySpans& a, const KeySpans& b) {
  return {smaller(a.begin, b.begin), larger(a.end, b.end), larger(a.all_begin, b.all_begin),
          smaller(a.all_end, b.all_end)};
}

// Of [B, H, Sq], which is [B, Hk, stack row] too.
FF_DEVICE int64_t row_index(const AttentionProblem& p, int batch, const QueryRow& row) {
  return (int64_t(batch) * p.heads + row.head) * p.seq_q + row.query;
}

// p = exp2(x - lse - lse_rest);  ds = p ((received - center) open - offset), where received is dp before the gate.
struct alignas(16) RowTerms {
  float lse, lse_rest;  // in units of log2; +inf where the row sees nothing or does not exist
  float center, offset;
};

// Of a QueryRow.
struct alignas(16) RowPlace {
  int lo, hi, head, query;
};

// The scratch `rows`:  terms [B, H, Sq][4], RowTerms;  places [B, H, Sq][4], RowPlace;
// gate_share = sum_j p received [B, H, Sq];  open = tanh(gate) [H]
struct RowScratch {
  float* terms;
  int32_t* places;
  float *gate_share, *open;
  explicit FF_DEVICE RowScratch(const AttentionBackward& p) {
    const int64_t all = int64_t(p.batch) * p.heads * p.seq_q;
    terms = p.rows;
    places = reinterpret_cast<int32_t*>(terms + 4 * all);
    gate_share = terms + 8 * all;
    open = gate_share + all;
  }
};

// Row r of a run.
FF_DEVICE void find_row(const AttentionBwdArguments& args, int batch, int kv_head, int run, int r, QueryRow& row,
                        RowTerms& terms) {
  const AttentionBackward& p = args.p;
  const int group = p.heads / p.kv_heads;
  row = {r < args.runs.rows, run * args.runs.rows + r, kv_head * group, 0, 0, p.seq_k};
  terms = {plus_infinity(), 0, 0, 0};
  if (!row.exists) return;
  const int64_t at = (int64_t(batch) * p.heads + kv_head * group) * p.seq_q + row.row;
  const uint4 a = load_global(reinterpret_cast<const uint4*>(RowScratch(p).terms) + at);
  const uint4 b = load_global(reinterpret_cast<const uint4*>(RowScratch(p).places) + at);
  terms = {float_of_bits(a.x), float_of_bits(a.y), float_of_bits(a.z), float_of_bits(a.w)};
  row.lo = int(b.x);
  row.hi = int(b.y);
  row.head = int(b.z);
  row.query = int(b.w);
}

FF_DEVICE float row_open(const AttentionBackward& p, const QueryRow& row) {
  return p.gate ? load_global(RowScratch(p).open + row.head) : 1.0f;
}

}  // namespace fastfuse::cuda
