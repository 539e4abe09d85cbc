// Exact search over all inner products of queries and keys; no score matrix.
#pragma once

#include <cstdint>

#include "fastfuse/cpu.h"
#include "fastfuse/pair.h"

namespace fastfuse {

struct TopkParams {
  Features queries, keys;  // [N][D], [M][D], M < 2^32
  bool normalize;
  int64_t k;         // 1..M
  float* scores;     // [N][k], largest first
  int64_t* indices;  // [N][k], ties by lower index
};

// Query i's positives are positives[first[i] .. last[i]), key indices or -1.
struct RanksParams {
  Features queries, keys;  // [N][D], [M][D]
  bool normalize;
  const int64_t* positives;     // [L]
  const int64_t *first, *last;  // [N]
  int64_t* ranks;               // [N], of the best positive; M without one
};

namespace cpu {

void similarity_topk(const TopkParams& params, const ThreadPool& pool);
void retrieval_ranks(const RanksParams& params, const ThreadPool& pool);

}  // namespace cpu
}  // namespace fastfuse
