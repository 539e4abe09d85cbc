// Results in the memory of the cpu runtime.
#include <ATen/EmptyTensor.h>
#include <ATen/ops/empty_cpu_dispatch.h>
#include <c10/core/Allocator.h>

#include "bindings/runtime.h"

namespace fastfuse {
namespace {

struct Block {
  void* memory;
  size_t bytes;
};

void give_back(void* context) {
  const Block* const block = static_cast<Block*>(context);
  cpu::release(block->memory, block->bytes);
  delete block;
}

struct ResultAllocator final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    void* const memory = cpu::acquire(bytes);
    TORCH_CHECK(memory, "not enough memory for a result of ", bytes, " bytes");
    return {memory, new Block{memory, bytes}, give_back, c10::Device(c10::DeviceType::CPU)};
  }
  void copy_data(void* to, const void* from, size_t bytes) const override { default_copy_data(to, from, bytes); }
};

}  // namespace

at::Tensor new_tensor(at::IntArrayRef sizes, const at::TensorOptions& options) {
  static ResultAllocator* const allocator = new ResultAllocator;
  const auto dtype = options.dtype();
  if (size_t(c10::multiply_integers(sizes)) * dtype.itemsize() < cpu::kLargeBytes)
    return at::cpu::empty(sizes, options);
  return at::detail::empty_generic(sizes, allocator, c10::DispatchKeySet(c10::DispatchKey::CPU),
                                   c10::typeMetaToScalarType(dtype), {});
}

}  // namespace fastfuse
