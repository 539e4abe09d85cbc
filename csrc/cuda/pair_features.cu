// Features as the products multiply them, and the gradient that goes back through it; a warp for each row.
#include <cmath>

#include "cuda/hopper.h"
#include "fastfuse/cuda_pair.h"

namespace fastfuse::cuda {
namespace {

using namespace hopper;

constexpr int kThreads = 256, kRows = kThreads / 32;  // of a block
constexpr double kEps = 1e-12;                        // as torch.nn.functional.normalize

template <class T>
FF_DEVICE T warp_sum(T value) {
#pragma unroll
  for (int mask = 16; mask > 0; mask /= 2) value += shuffle_xor(value, mask);
  return value;
}

template <class Element>
FF_KERNEL(kThreads)
pair_features_kernel(const FF_GRID_CONSTANT PairFeatures p) {
  const PairSide& side = p.side;
  const int row = block_index() * kRows + thread_index() / 32, lane = thread_index() % 32;
  if (row >= side.n) return;
  const Element* x = static_cast<const Element*>(p.x) + row * p.stride;
  double norm = 1;
  float factor = 1;
  bool constant = true;
  if (p.normalize) {
    double square = 0;  // an error of a norm would be one of a whole row of logits
    for (int c = lane; c < side.dim; c += 32) {
      const double value = to_float(load_global(x + c));
      square += value * value;
    }
    norm = sqrt(warp_sum(square));
    constant = norm < kEps;
    if (constant) norm = kEps;
    factor = ldexpf(1.0f, -ilogb(norm));
  }
  const float inverse = float(1 / (norm * factor));
  if (lane == 0) {
    store_global(side.inverse + row, inverse);
    store_global(side.factor + row, factor);
    store_global(side.along + row, constant ? 0.0f : inverse * inverse);
  }
  auto* rows = static_cast<Element*>(side.rows) + int64_t(row) * side.pitch;
  const auto scaled = [&](int c) { return c < side.dim ? to_float(load_global(x + c)) * factor : 0.0f; };
  for (int c = 2 * lane; c < side.pitch; c += 64)
    store_global(reinterpret_cast<uint32_t*>(rows + c), pack_pair<Element>(scaled(c), scaled(c + 1)));
}

FF_DEVICE float clamped(float x, float limit) { return x > limit ? limit : x < -limit ? -limit : x; }

FF_DEVICE void store_rounded(float* to, float x) { store_global(to, x); }
FF_DEVICE void store_rounded(bf16* to, float x) { store_global(to, bf16{uint16_t(pack_pair<bf16>(x, 0))}); }
FF_DEVICE void store_rounded(f16* to, float x) {  // a zero row's gradient does not fit
  store_global(to, f16{uint16_t(pack_pair<f16>(clamped(x, 65504.0f), 0))});
}

template <class Element, class Out>
FF_KERNEL(kThreads)
pair_gradient_kernel(const FF_GRID_CONSTANT PairGradient p) {
  const PairSide& side = p.side;
  const int row = block_index() * kRows + thread_index() / 32, lane = thread_index() % 32;
  if (row >= side.n) return;
  const auto* own = static_cast<const Element*>(side.rows) + int64_t(row) * side.pitch;
  const float* t = p.t + int64_t(row) * side.pitch;
  float dot = 0;
  for (int c = lane; c < side.dim; c += 32) dot += to_float(load_global(own + c)) * load_global(t + c);
  const float along = load_global(side.along + row) * warp_sum(dot);
  const float outer = load_global(side.factor + row) * load_global(p.scale) * (p.unit ? load_global(p.unit) : 1.0f);
  Out* grad = static_cast<Out*>(p.grad) + int64_t(row) * side.dim;
  for (int c = lane; c < side.dim; c += 32)
    store_rounded(grad + c, outer * (load_global(t + c) - along * to_float(load_global(own + c))));
}

template <class Arguments>
cudaError_t launch_rows(void (*kernel)(Arguments), const Arguments& args, cudaStream_t stream) {
  return launch(kernel, (args.side.n + kRows - 1) / kRows, kThreads, 0, stream, args);
}

}  // namespace

cudaError_t pair_features(const PairFeatures& p, cudaStream_t stream) {
  return p.dtype == DType::kBFloat16 ? launch_rows(pair_features_kernel<bf16>, p, stream)
                                     : launch_rows(pair_features_kernel<f16>, p, stream);
}

cudaError_t pair_gradient(const PairGradient& p, cudaStream_t stream) {
  const bool wide = p.grad_dtype == DType::kFloat32;
  if (p.dtype == DType::kBFloat16) {
    return wide ? launch_rows(pair_gradient_kernel<bf16, float>, p, stream)
                : launch_rows(pair_gradient_kernel<bf16, bf16>, p, stream);
  }
  return wide ? launch_rows(pair_gradient_kernel<f16, float>, p, stream)
              : launch_rows(pair_gradient_kernel<f16, f16>, p, stream);
}

}  // namespace fastfuse::cuda
