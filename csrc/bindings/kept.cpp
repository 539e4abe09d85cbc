#include "bindings/kept.h"

#include <deque>
#include <mutex>

#include "fastfuse/cpu.h"

namespace fastfuse {
namespace {

constexpr int64_t kLarge = 8 << 20;  // smaller blocks malloc keeps itself

class Pool {
 public:
  at::Tensor take(int64_t bytes) {
    const std::lock_guard lock(mutex_);
    for (auto block = blocks_.rbegin(); block != blocks_.rend(); ++block) {
      const int64_t size = block->numel();
      if (size < bytes || size > 2 * bytes) continue;
      const at::Tensor found = *block;
      blocks_.erase(std::next(block).base());
      free_ -= size;
      return found;
    }
    shrink(cpu::kKeptBytes - bytes);
    const at::Tensor fresh = at::empty({bytes}, at::kByte);
    cpu::prefer_huge_pages(fresh.data_ptr(), fresh.nbytes());
    return fresh;
  }

  void give_back(const at::Tensor& block) {
    const std::lock_guard lock(mutex_);
    blocks_.push_back(block);
    free_ += block.numel();
    shrink(cpu::kKeptBytes);
  }

 private:
  // Frees the oldest until at most `bytes` are left.
  void shrink(int64_t bytes) {
    while (free_ > bytes && !blocks_.empty()) {
      free_ -= blocks_.front().numel();
      blocks_.pop_front();
    }
  }

  std::mutex mutex_;
  std::deque<at::Tensor> blocks_;  // the newest last
  int64_t free_ = 0;
};

// Never destroyed: tensors may outlive everything else.
Pool& pool() {
  static Pool* const pool = new Pool;
  return *pool;
}

}  // namespace

at::Tensor kept_memory(int64_t bytes) {
  if (bytes < kLarge) return at::empty({bytes}, at::kByte);
  const at::Tensor block = pool().take(bytes);
  return at::from_blob(block.data_ptr(), {bytes}, [block](void*) { pool().give_back(block); }, at::kByte);
}

}  // namespace fastfuse
