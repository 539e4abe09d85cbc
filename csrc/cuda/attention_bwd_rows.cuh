// Backward's small kernels: what the tiles' kernels need of each row first, and sums over rows afterwards.
//
//     spans    each 64 rows' keys
//     terms    lse in log2 units; center = 0, offset = dout . out - dlse: rows whose keys fit one tile get better ones there
//     sums     dsink = - sum_bi exp(sink - lse) (center open + offset);   dgate = (1 - open^2) sum_bi gate_share
//     dbias    sums ds where the bias is broadcast
#pragma once

#include "cuda/attention_bwd_tile.cuh"
#include "cuda/attention_scores.cuh"

namespace fastfuse::cuda {

constexpr int kRowThreads = 256, kRowWarps = kRowThreads / 32;

FF_DEVICE float warp_sum(float x) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) x += shuffle_xor(x, mask);
  return x;
}

// scratch: float[kRowWarps]. The sum stands in thread 0.
FF_DEVICE float block_sum(float x, uint32_t scratch) {
  x = warp_sum(x);
  if (thread_index() % 32 == 0) store_shared(scratch + 4 * (thread_index() / 32), x);
  block_sync();
  float sum = 0;
  if (thread_index() == 0) {
    for (int i = 0; i < kRowWarps; i++) sum += load_shared<float>(scratch + 4 * i);
  }
  return sum;
}

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

// A warp for each row, 16 bytes for each lane.
template <class Element>
FF_KERNEL(kRowThreads)
attention_bwd_terms_kernel(const FF_GRID_CONSTANT AttentionBwdArguments args) {
  const AttentionBackward& p = args.p;
  const int lane = thread_index() % 32;
  const int64_t row = int64_t(block_index()) * kRowWarps + thread_index() / 32,
                all = int64_t(p.batch) * p.heads * p.seq_q;
  if (row >= all) return;
  const int64_t place[3] = {row / p.seq_q / p.heads, row / p.seq_q % p.heads, row % p.seq_q};
  const auto piece = [&](const Rows& rows) {
    const auto* at = static_cast<const Element*>(rows.data) + lane * 8;
#pragma unroll
    for (int i = 0; i < 3; i++) at += place[i] * rows.stride[i];
    return load_global(reinterpret_cast<const uint4*>(at));
  };
  float sum = 0;
  if (lane * 8 < p.dim_v) {
    const uint4 a = piece(p.dout), b = piece(p.out);
    const uint32_t dout[4] = {a.x, a.y, a.z, a.w}, out[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
    for (int i = 0; i < 4; i++) {
      sum += to_float(Element{uint16_t(dout[i])}) * to_float(Element{uint16_t(out[i])});
      sum += to_float(Element{uint16_t(dout[i] >> 16)}) * to_float(Element{uint16_t(out[i] >> 16)});
    }
  }
  sum = warp_sum(sum);
  if (lane > 0) return;
  const RowScratch scratch(p);
  const LogSum lse = log_sum(p, p.lse, row);
  if (p.dlse && lse.high < plus_infinity()) sum -= load_global(p.dlse + row);
  const float terms[4] = {lse.high, lse.low, 0, sum};
  const int group = p.heads / p.kv_heads, batch = int(place[0]), kv_head = int(place[1]) / group;
  const QueryRow r = query_row(p, {batch, kv_head, 0, 0, 0}, int(place[1]) % group * p.seq_q + int(place[2]));
  const int32_t places[4] = {r.lo, r.hi, r.head, r.query};
#pragma unroll
  for (int i = 0; i < 4; i++) {
    store_global(scratch.terms + 4 * row + i, terms[i]);
    store_global(scratch.places + 4 * row + i, places[i]);
  }
  if (p.gate && row % p.seq_q == 0 && row < int64_t(p.heads) * p.seq_q)
    store_global(scratch.open + row / p.seq_q, hyperbolic_tangent(load_global(p.gate + row / p.seq_q)));
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

// Element `index` of dbias: the sum of every `step`th of its elements of ds, beginning with number `first`.
FF_DEVICE float sum_of_ds(const AttentionBackward& p, int64_t index, int first, int step) {
  const int full[4] = {p.batch, p.heads, p.seq_q, p.seq_k};
  int64_t at = 0, stride = 1, count = 1, size[4], pitch[4];
#pragma unroll
  for (int i = 3; i >= 0; i--) {
    const bool summed = p.bias_size[i] == 1;
    size[i] = summed ? full[i] : 1;
    pitch[i] = stride;
    count *= size[i];
    if (!summed) {
      at += index % full[i] * stride;
      index /= full[i];
    }
    stride *= full[i];
  }
  float sum = 0;
  for (int64_t n = first; n < count; n += step) {
    int64_t left = n, element = at;
#pragma unroll
    for (int i = 3; i >= 0; i--) {
      element += left % size[i] * pitch[i];
      left /= size[i];
    }
    sum += load_global(static_cast<const float*>(p.ds) + element);
  }
  return sum;
}

FF_DEVICE void store_rounded(void* to, DType dtype, int64_t at, float x) {
  if (dtype == DType::kFloat32) return store_global(static_cast<float*>(to) + at, x);
  const uint32_t bits = dtype == DType::kBFloat16 ? pack_pair<bf16>(x, 0) : pack_pair<f16>(x, 0);
  store_global(static_cast<uint16_t*>(to) + at, uint16_t(bits));
}

// Neighbouring threads sum for neighbouring keys; where keys are summed too, a block for each element.
static FF_KERNEL(kRowThreads) attention_bwd_dbias_kernel(const FF_GRID_CONSTANT AttentionBwdArguments args) {
  const AttentionBackward& p = args.p;
  if (p.bias_size[3] == 1 && p.seq_k > 1) {
    const float sum = block_sum(sum_of_ds(p, block_index(), thread_index(), kRowThreads), shared_memory());
    if (thread_index() == 0) store_rounded(p.dbias, p.bias_dtype, block_index(), sum);
    return;
  }
  const int64_t index = int64_t(block_index()) * kRowThreads + thread_index();
  if (index >= int64_t(p.bias_size[0]) * p.bias_size[1] * p.bias_size[2] * p.bias_size[3]) return;
  store_rounded(p.dbias, p.bias_dtype, index, sum_of_ds(p, index, 0, 1));
}

inline cudaError_t find_row_terms(const AttentionBwdArguments& args, cudaStream_t stream) {
  const AttentionBackward& p = args.p;
  const int tiles = p.batch * args.runs.count * args.runs.tiles;
  const int64_t rows = int64_t(p.batch) * p.heads * p.seq_q;
  cudaError_t error = cudaSuccess;
  if (p.spans)
    error = launch(attention_bwd_spans_kernel, (tiles + kRowWarps - 1) / kRowWarps, kRowThreads, 0, stream, args);
  if (error != cudaSuccess) return error;
  const auto kernel = p.dtype == DType::kBFloat16 ? attention_bwd_terms_kernel<bf16> : attention_bwd_terms_kernel<f16>;
  return launch(kernel, int((rows + kRowWarps - 1) / kRowWarps), kRowThreads, 0, stream, args);
}

inline cudaError_t sum_rows(const AttentionBwdArguments& args, cudaStream_t stream) {
  const AttentionBackward& p = args.p;
  cudaError_t error = cudaSuccess;
  if (p.dsink || p.dgate) error = launch(attention_bwd_sums_kernel, p.heads, kRowThreads, 8 * kRowWarps, stream, args);
  if (error != cudaSuccess || !p.dbias) return error;
  const int64_t elements = int64_t(p.bias_size[0]) * p.bias_size[1] * p.bias_size[2] * p.bias_size[3];
  const int64_t blocks = p.bias_size[3] == 1 && p.seq_k > 1 ? elements : (elements + kRowThreads - 1) / kRowThreads;
  return launch(attention_bwd_dbias_kernel, int(blocks), kRowThreads, 4 * kRowWarps, stream, args);
}

}  // namespace fastfuse::cuda
