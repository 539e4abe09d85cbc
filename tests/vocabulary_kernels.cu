// The vocabulary by itself: small kernels that tests/test_emulation_vocabulary.py compares with what they should give.
#include <cstring>
#include <stdexcept>
#include <string>

#include "cuda/hopper.h"

namespace fastfuse::hopper {
namespace {

constexpr int kM = 64, kN = 64, kK = 64, kThreads = 128;

FF_DEVICE void wait_for_copies(uint32_t barrier, uint32_t bytes, auto&& issue) {
  if (thread_index() == 0) {
    mbarrier_init(barrier, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(barrier, bytes);
    issue();
  }
  block_sync();
  mbarrier_wait(barrier, 0);
}

// d = a b by one warpgroup, all operands in shared memory as slabs of `kSwizzle` bytes a row.
struct ProductArguments {
  TensorMap a, b;  // kContraction: [64][K]; kOutput: [K][64]
  float* d;        // [kM][kN]
};

template <Swizzle kSwizzle, Major kMajor>
struct Operand {
  static constexpr int kRowBytes = swizzle_bytes(kSwizzle), kWidth = kRowBytes / 2, kSlabs = 64 / kWidth;
  static constexpr int kSlabBytes = 64 * kRowBytes, kBytes = kSlabs * kSlabBytes;

  static FF_DEVICE void load(const TensorMap& map, uint32_t barrier, uint32_t to) {
    for (int slab = 0; slab < kSlabs; slab++) tma_load(&map, barrier, to + slab * kSlabBytes, slab * kWidth, 0);
  }
  static FF_DEVICE uint64_t descriptor(uint32_t at, int step) {
    if constexpr (kMajor == Major::kOutput)
      return matrix_descriptor(at + step * 16 * kRowBytes, 8 * kRowBytes, kSwizzle, kSlabBytes);
    const int column = step * 16;
    return matrix_descriptor(at + column / kWidth * kSlabBytes + column % kWidth * 2, 8 * kRowBytes, kSwizzle);
  }
};

template <Swizzle kSwizzle, Major kA, Major kB>
FF_KERNEL(kThreads)
product_kernel(const FF_GRID_CONSTANT ProductArguments args) {
  using A = Operand<kSwizzle, kA>;
  using B = Operand<kSwizzle, kB>;
  const uint32_t base = shared_memory(), a = base + 1024, b = a + A::kBytes;
  wait_for_copies(base, A::kBytes + B::kBytes, [&] {
    A::load(args.a, base, a);
    B::load(args.b, base, b);
  });
  float d[kN / 2];
  wgmma_fence();
#pragma unroll
  for (int step = 0; step < kK / 16; step++)
    wgmma<bf16, kA, kB>(d, A::descriptor(a, step), B::descriptor(b, step), step > 0);
  wgmma_commit();
  wgmma_wait<0>();
  const int thread = thread_index(), row = thread / 32 * 16 + thread % 32 / 4;
#pragma unroll
  for (int i = 0; i < kN / 2; i++)
    store_global(args.d + (row + i / 2 % 2 * 8) * kN + i / 4 * 8 + thread % 4 * 2 + i % 2, d[i]);
}

template <Swizzle kSwizzle, Major kA, Major kB>
cudaError_t product(const void* a, const void* b, float* d) {
  ProductArguments args{{}, {}, d};
  const int64_t sizes[2] = {64, 64}, strides[2] = {1, 64};
  const int box[2] = {swizzle_bytes(kSwizzle) / 2, 64};
  cudaError_t error = make_tensor_map(&args.a, a, 2, sizes, strides, box, kSwizzle);
  if (error == cudaSuccess) error = make_tensor_map(&args.b, b, 2, sizes, strides, box, kSwizzle);
  if (error != cudaSuccess) return error;
  return launch(product_kernel<kSwizzle, kA, kB>, 1, kThreads, 1024 + 4 * kM * kK, cudaStream_t{}, args);
}

template <Swizzle kSwizzle>
cudaError_t product_of(bool a_output, bool b_output, const void* a, const void* b, float* d) {
  if (a_output && b_output) return product<kSwizzle, Major::kOutput, Major::kOutput>(a, b, d);
  if (a_output) return product<kSwizzle, Major::kOutput, Major::kContraction>(a, b, d);
  if (b_output) return product<kSwizzle, Major::kContraction, Major::kOutput>(a, b, d);
  return product<kSwizzle, Major::kContraction, Major::kContraction>(a, b, d);
}

// A box from one place of a tensor to another place of another one.
struct CopyArguments {
  TensorMap from, to;  // [planes][rows][columns] each, boxes [2][8][kColumns]
  int at[3], put[3];   // innermost first
};

constexpr int kBoxRows = 8, kBoxPlanes = 2;

template <Swizzle kSwizzle>
FF_KERNEL(kThreads)
copy_kernel(const FF_GRID_CONSTANT CopyArguments args) {
  constexpr uint32_t kBytes = kBoxPlanes * kBoxRows * swizzle_bytes(kSwizzle);
  const uint32_t base = shared_memory(), loaded = base + 1024, written = loaded + 2048;
  wait_for_copies(base, kBytes, [&] { tma_load(&args.from, base, loaded, args.at[0], args.at[1], args.at[2]); });
  for (uint32_t at = uint32_t(thread_index()) * 16; at < kBytes; at += kThreads * 16)
    store_shared(written + at, load_shared<uint4>(loaded + at));
  fence_async_proxy();
  block_sync();
  if (thread_index() == 0) {
    tma_store(&args.to, written, args.put[0], args.put[1], args.put[2]);
    tma_store_commit();
    tma_store_wait<0>();
  }
}

template <Swizzle kSwizzle>
cudaError_t copy(const void* from, void* to, const int64_t* sizes, const int* at, const int* put) {
  CopyArguments args{{}, {}, {at[0], at[1], at[2]}, {put[0], put[1], put[2]}};
  const int64_t strides[3] = {1, sizes[0], sizes[0] * sizes[1]};
  const int box[3] = {swizzle_bytes(kSwizzle) / 2, kBoxRows, kBoxPlanes};
  cudaError_t error = make_tensor_map(&args.from, from, 3, sizes, strides, box, kSwizzle);
  if (error == cudaSuccess) error = make_tensor_map(&args.to, to, 3, sizes, strides, box, kSwizzle);
  if (error != cudaSuccess) return error;
  return launch(copy_kernel<kSwizzle>, 1, kThreads, 1024 + 4096, cudaStream_t{}, args);
}

// Warps 0 and 1 write numbers, warps 2 and 3 read them behind a named barrier and pass them around their lanes.
struct PassArguments {
  int* out;  // [2][64]: shuffled from the next lane; from the lane's mirror
};

FF_KERNEL(kThreads) pass_kernel(const FF_GRID_CONSTANT PassArguments args) {
  const uint32_t base = shared_memory();
  const int thread = thread_index(), place = thread % 64, lane = thread % 32;
  if (thread < 64) {
    store_shared(base + place * 4, place * place);
    named_barrier_arrive(3, 128);
  } else {
    named_barrier_sync(3, 128);
    const int value = load_shared<int>(base + place * 4);
    store_global(args.out + place, shuffle(value, (lane + 1) % 32));
    store_global(args.out + 64 + place, shuffle_xor(value, 31));
  }
}

}  // namespace
}  // namespace fastfuse::hopper

namespace {

using namespace fastfuse::hopper;

// swizzle: bytes of a row. Null, or what went wrong.
template <class Run>
const char* message_of(Run&& run) {
  static std::string message;
  try {
    const cudaError_t error = run();
    if (error == cudaSuccess) return nullptr;
    message = cudaGetErrorString(error);
  } catch (const std::exception& error) {
    message = error.what();
  }
  return message.c_str();
}

}  // namespace

#define FF_EXPORT extern "C" __attribute__((visibility("default")))

FF_EXPORT const char* multiply(int swizzle, bool a_output, bool b_output, const void* a, const void* b, float* d) {
  return message_of([&] {
    if (swizzle == 128) return product_of<Swizzle::k128>(a_output, b_output, a, b, d);
    if (swizzle == 64) return product_of<Swizzle::k64>(a_output, b_output, a, b, d);
    return product_of<Swizzle::k32>(a_output, b_output, a, b, d);
  });
}

FF_EXPORT const char* copy_box(int swizzle, const void* from, void* to, const int64_t* sizes, const int* at,
                               const int* put) {
  return message_of([&] {
    if (swizzle == 128) return copy<Swizzle::k128>(from, to, sizes, at, put);
    if (swizzle == 64) return copy<Swizzle::k64>(from, to, sizes, at, put);
    return copy<Swizzle::k32>(from, to, sizes, at, put);
  });
}

FF_EXPORT const char* pass_around(int* out) {
  return message_of([&] { return launch(pass_kernel, 1, kThreads, 256, cudaStream_t{}, PassArguments{out}); });
}
