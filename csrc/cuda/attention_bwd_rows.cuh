// Backward's small kernels: what the tiles' kernels need of each row first, and sums over rows afterwards.
//
//     spans    each 64 rows' keys
//     terms    lse in log2 units; center = 0, offset = dout . out - dlse: rows whose keys fit one tile get better ones there
//     sums     dsink = - sum_bi exp(sink - lse) (center open + offset);   dgate = (1 - open^2) sum_bi gate_share
#pragma once

#include "cuda/attention_bwd_tile.cuh"
#include "cuda/attention_scores.cuh"
#include "cuda/block_sum.cuh"

namespace fastfuse::cuda {

constexpr int kTermsThreads = 128;  // small blocks, for even shares

// A warp for each tile.
static FF_KERNEL(kRowThreads) attention_bwd_spans_kernel(const FF_GRID_CONSTANT AttentionBwdArguments args) {
  const AttentionBackward& p = args.p;
  const int tiles = args.runs.count * args.runs.tiles, lane = thread_index() % 32;
  const int tile = block_index() * kRowWarps + thread_index() / 32;
  if (tile >= p.batch * tiles) return;
  const int batch = tile / tiles, run = tile % tiles / args.runs.tiles, first = tile % args.runs.tiles * kRunTileRows;
  KeySpans spans{p.seq_k, 0, 0, p.seq_k};
  for (int i = lane; i < kRunTileRows; i += 32) {
    if (first + i >= args.runs.rows) continue;
    const QueryRow r = query_row(p, {batch, 0, 0, 0, 0}, run * args.runs.rows + first + i);
    const bool sees = r.lo < r.hi;
    spans = join(spans, {sees ? r.lo : p.seq_k, sees ? r.hi : 0, r.lo, r.hi});
  }
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) {
    spans = join(spans, {shuffle_xor(spans.begin, mask), shuffle_xor(spans.end, mask),
                         shuffle_xor(spans.all_begin, mask), shuffle_xor(spans.all_end, mask)});
  }
  const int value[4] = {spans.begin, spans.end, spans.all_begin, spans.all_end};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (lane == i) store_global(p.spans + int64_t(tile) * 4 + i, value[i]);
  }
}

// What 16 bytes of dout and of out add to their product.
template <class Element>
FF_DEVICE float dot_of(const uint4& a, const uint4& b) {
  const uint32_t dout[4] = {a.x, a.y, a.z, a.w}, out[4] = {b.x, b.y, b.z, b.w};
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    sum += to_float(Element{uint16_t(dout[i])}) * to_float(Element{uint16_t(out[i])});
    sum += to_float(Element{uint16_t(dout[i] >> 16)}) * to_float(Element{uint16_t(out[i] >> 16)});
  }
  return sum;
}

// A warp for 32 rows, a lane for each: it finds the row's place and writes its terms. In between kLanes neighbouring
// lanes read their rows together, 16 bytes of each a lane, one row after the other.
template <class Element, int kLanes>
FF_KERNEL(kTermsThreads)
attention_bwd_terms_kernel(const FF_GRID_CONSTANT AttentionBwdArguments args) {
  constexpr int kAtOnce = 8;  // rows whose loads are in flight
  const AttentionBackward& p = args.p;
  const int lane = thread_index() % 32, column = lane % kLanes * 8;
  const int64_t all = int64_t(p.batch) * p.heads * p.seq_q;
  const int64_t first = (int64_t(block_index()) * (kTermsThreads / 32) + thread_index() / 32) * 32;
  if (first >= all) return;
  const bool exists = first + lane < all;
  const int64_t row = exists ? first + lane : all - 1, head_row = row / p.seq_q;  // of [B, H]
  const int batch = int(head_row / p.heads), head = int(head_row % p.heads), query = int(row - head_row * p.seq_q);
  const auto place = [&](const Rows& rows) {
    return batch * rows.stride[0] + head * rows.stride[1] + query * rows.stride[2];
  };
  const int64_t own_dout = place(p.dout), own_out = place(p.out);
  const auto piece = [&](const Rows& rows, int64_t at) {
    if (column >= p.dim_v) return uint4{0, 0, 0, 0};
    return load_global(reinterpret_cast<const uint4*>(static_cast<const Element*>(rows.data) + at + column));
  };
  float sum = 0;
#pragma unroll 1
  for (int turn = 0; turn < kLanes; turn += kAtOnce) {
    uint4 dout[kAtOnce], out[kAtOnce];
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      const int owner = lane / kLanes * kLanes + turn + i;
      dout[i] = piece(p.dout, shuffle(own_dout, owner));
      out[i] = piece(p.out, shuffle(own_out, owner));
    }
#pragma unroll
    for (int i = 0; i < kAtOnce; i++) {
      float dot = dot_of<Element>(dout[i], out[i]);
#pragma unroll
      for (int mask = kLanes / 2; mask > 0; mask /= 2) dot += shuffle_xor(dot, mask);
      if (lane % kLanes == turn + i) sum = dot;
    }
  }
  if (!exists) return;
  const RowScratch scratch(p);
  const LogSum lse = log_sum(p, p.lse, row);
  if (p.dlse && lse.high < plus_infinity()) sum -= load_global(p.dlse + row);
  const int group = p.heads / p.kv_heads, kv_head = head / group;
  const QueryRow r = query_row(p, {batch, kv_head, 0, 0, 0}, (head - kv_head * group) * p.seq_q + query);
  store_global(reinterpret_cast<RowTerms*>(scratch.terms) + row, RowTerms{lse.high, lse.low, 0, sum});
  store_global(reinterpret_cast<RowPlace*>(scratch.places) + row, RowPlace{r.lo, r.hi, r.head, r.query});
  if (p.gate && query == 0 && batch == 0)
    store_global(scratch.open + head, hyperbolic_tangent(load_global(p.gate + head)));
}

// A block for each head: each thread sums its own rows in order, then the block its threads.
static FF_KERNEL(kRowThreads) attention_bwd_sums_kernel(const FF_GRID_CONSTANT AttentionBwdArguments args) {
  const AttentionBackward& p = args.p;
  const int head = block_index();
  const int64_t all = int64_t(p.batch) * p.heads * p.seq_q;
  const RowScratch scratch(p);
  const float open = p.gate ? load_global(scratch.open + head) : 1.0f;
  float sink_sum = 0, gate_sum = 0;
  for (int64_t i = thread_index(); i < int64_t(p.batch) * p.seq_q; i += kRowThreads) {
    const int64_t at = (i / p.seq_q * p.heads + head) * p.seq_q + i % p.seq_q;
    const float lse = load_global(p.lse + at);
    if (!(lse > minus_infinity())) continue;
    if (p.dsink) {
      const float share = natural_exp(load_global(p.sink + head) - lse - load_global(p.lse + all + at));
      sink_sum -= share * (load_global(scratch.terms + 4 * at + 2) * open + load_global(scratch.terms + 4 * at + 3));
    }
    if (p.dgate) gate_sum += load_global(scratch.gate_share + at);
  }
  sink_sum = block_sum(sink_sum, shared_memory());
  gate_sum = block_sum(gate_sum, shared_memory() + 4 * kRowWarps);
  if (thread_index() > 0) return;
  if (p.dsink) store_global(p.dsink + head, sink_sum);
  if (p.dgate) store_global(p.dgate + head, (1 - open * open) * gate_sum);
}

// As many lanes as a row has pieces of 16 bytes.
template <class Element>
auto terms_kernel(int dim_v) {
  return dim_v <= 64    ? attention_bwd_terms_kernel<Element, 8>
         : dim_v <= 128 ? attention_bwd_terms_kernel<Element, 16>
                        : attention_bwd_terms_kernel<Element, 32>;
}

inline cudaError_t find_row_terms(const AttentionBwdArguments& args, cudaStream_t stream) {
  const AttentionBackward& p = args.p;
  const int tiles = p.batch * args.runs.count * args.runs.tiles;
  const int64_t rows = int64_t(p.batch) * p.heads * p.seq_q;
  cudaError_t error = cudaSuccess;
  if (p.spans)
    error = launch(attention_bwd_spans_kernel, (tiles + kRowWarps - 1) / kRowWarps, kRowThreads, 0, stream, args);
  if (error != cudaSuccess) return error;
  const auto kernel = p.dtype == DType::kBFloat16 ? terms_kernel<bf16>(p.dim_v) : terms_kernel<f16>(p.dim_v);
  return launch(kernel, int((rows + kTermsThreads - 1) / kTermsThreads), kTermsThreads, 0, stream, args);
}

inline cudaError_t sum_rows(const AttentionBwdArguments& args, cudaStream_t stream) {
  const AttentionBackward& p = args.p;
  if (!p.dsink && !p.dgate) return cudaSuccess;
  return launch(attention_bwd_sums_kernel, p.heads, kRowThreads, 8 * kRowWarps, stream, args);
}

}  // namespace fastfuse::cuda
