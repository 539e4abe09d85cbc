#include "cuda/pair_product.cuh"

namespace fastfuse::cuda {
namespace {

template <class C>
cudaError_t launch_product(const PairProduct& p, cudaStream_t stream) {
  const int rows = C::kTransposed ? p.cols : p.rows, contraction = C::kTransposed ? p.rows : p.cols;
  ProductArguments args;
  args.t = p.t;
  args.pitch = p.pitch;
  args.rows = rows;
  args.steps = (contraction + C::kStep - 1) / C::kStep;
  args.widths = (p.dim + C::kWidth - 1) / C::kWidth;
  args.work = (rows + C::kBlockM - 1) / C::kBlockM * args.widths;
  args.accumulate = p.accumulate;
  const int64_t g_sizes[2] = {p.cols, p.rows}, g_strides[2] = {1, p.g_pitch};
  const int64_t f_sizes[2] = {p.dim, contraction}, f_strides[2] = {1, p.pitch};
  const int g_box[2] = {64, C::kTransposed ? 64 : 128}, f_box[2] = {64, 64};
  cudaError_t error = make_tensor_map(&args.g, p.g, 2, g_sizes, g_strides, g_box, Swizzle::k128);
  if (error == cudaSuccess) error = make_tensor_map(&args.f, p.features, 2, f_sizes, f_strides, f_box, Swizzle::k128);
  int blocks = 0;
  if (error == cudaSuccess) error = persistent_blocks(args.work, &blocks);
  if (error != cudaSuccess) return error;
  return launch(pair_product_kernel<C>, blocks, C::kThreads, C::kSharedBytes, stream, args);
}

template <class Element, bool kTransposed>
cudaError_t with_width(const PairProduct& p, cudaStream_t stream) {
  return p.dim <= 128 ? launch_product<ProductConfig<Element, 128, kTransposed>>(p, stream)
                      : launch_product<ProductConfig<Element, 256, kTransposed>>(p, stream);
}

template <class Element>
cudaError_t with_side(const PairProduct& p, cudaStream_t stream) {
  return p.transposed ? with_width<Element, true>(p, stream) : with_width<Element, false>(p, stream);
}

}  // namespace

cudaError_t pair_product(const PairProduct& p, cudaStream_t stream) {
  return p.dtype == DType::kBFloat16 ? with_side<bf16>(p, stream) : with_side<f16>(p, stream);
}

}  // namespace fastfuse::cuda
