#include "cuda/emulation/launch.h"

#include <mutex>

namespace fastfuse::emulation {
namespace {
std::mutex one_launch;
uint64_t seed = 1;
int multiprocessor_count = 3;
constexpr size_t kSharedLimit = 227 << 10;
}  // namespace

void set_seed(uint64_t value) { seed = value; }
void set_multiprocessors(int count) { multiprocessor_count = count; }
int multiprocessors() { return multiprocessor_count; }

void run_grid(int blocks, int threads, size_t shared_bytes, const std::function<void()>& kernel) {
  const std::lock_guard lock(one_launch);
  if (shared_bytes > kSharedLimit) throw Error("launch: " + std::to_string(shared_bytes) + " bytes of shared memory");
  for (int i = 0; i < blocks; i++) {
    Block running(i, blocks, threads, shared_bytes, seed * 1000003 + uint64_t(i));
    block = &running;
    running.run(kernel);
    block = nullptr;
  }
}

}  // namespace fastfuse::emulation
