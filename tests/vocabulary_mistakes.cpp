// Kernels that each make one mistake, which the emulation has to report.
#include <map>
#include <string>

#include "cuda/emulation/global.h"
#include "cuda/hopper.h"

namespace {

using namespace fastfuse;
using namespace fastfuse::hopper;

constexpr int kThreads = 256, kTile = 1024;  // a tile of 64 rows of 128 bytes
constexpr uint32_t kSharedBytes = kTile + 64 * 128;

struct Arguments {
  TensorMap map;
  uint16_t* data;  // [64][64]
};

uint64_t descriptor(int step = 0) { return matrix_descriptor(kTile + step * 32, 1024, Swizzle::k128); }

void fill_tile() {
  for (uint32_t at = kTile + uint32_t(thread_index()) * 16; at < kSharedBytes; at += kThreads * 16)
    store_shared(at, uint4{0, 0, 0, 0});
}

void start_copy(const Arguments& args, uint32_t expected) {
  if (thread_index() == 0) {
    mbarrier_init(0, 1);
    mbarrier_init_fence();
    mbarrier_arrive_expect(0, expected);
    tma_load(&args.map, 0, kTile, 0, 0);
  }
  block_sync();
}

void multiply(float (&d)[32]) {
  wgmma_fence();
  wgmma<bf16>(d, descriptor(), descriptor(), false);
  wgmma_commit();
}

void deadlock(Arguments) {
  if (thread_index() == 0) {
    mbarrier_init(8, 2);
    mbarrier_arrive(8);
  }
  block_sync();
  if (thread_index() < 32) mbarrier_wait(8, 0);
  if (thread_index() >= 128) named_barrier_sync(3, 160);
}

void uninitialised(Arguments) {
  if (thread_index() == 7) load_shared<float>(512);
}

void beyond_shared(Arguments) { store_shared(kSharedBytes + 4 * uint32_t(thread_index()), 0.0f); }

void misaligned(Arguments) { store_shared(2 + 16 * uint32_t(thread_index()), 0.0f); }

void stage_before_transfer(Arguments args) {
  start_copy(args, 64 * 128);
  load_shared<uint32_t>(kTile);
}

void product_before_transfer(Arguments args) {
  start_copy(args, 64 * 128);
  float d[32];
  multiply(d);
  wgmma_wait<0>();
}

void unfenced(Arguments) {
  fill_tile();
  block_sync();
  float d[32];
  multiply(d);
  wgmma_wait<0>();
}

void product_left_behind(Arguments) {
  fill_tile();
  fence_async_proxy();
  block_sync();
  float d[32];
  multiply(d);
}

// The sums as they are before the wait, which is none.
void early_sums(Arguments args) {
  fill_tile();
  fence_async_proxy();
  block_sync();
  float d[32];
  multiply(d);
  if (thread_index() == 0) store_global(args.data, uint16_t(d[0] == 0));
  wgmma_wait<0>();
  if (thread_index() == 0) store_global(args.data + 1, uint16_t(d[0] == 0));
}

void stage_released_early(Arguments) {
  fill_tile();
  fence_async_proxy();
  block_sync();
  float d[32];
  multiply(d);
  block_sync();
  fill_tile();
  wgmma_wait<0>();
}

void load_beyond_global(Arguments args) { load_global(args.data + 64 * 64); }
void store_before_global(Arguments args) { store_global(args.data - 1 - thread_index(), uint16_t(0)); }
void load_across_the_end(Arguments args) { load_global(reinterpret_cast<const uint4*>(args.data + 64 * 64 - 4)); }

void too_many_registers(Arguments) { increase_registers<256>(); }

const std::map<std::string, void (*)(Arguments)> kKernels = {
    {"deadlock", deadlock},
    {"uninitialised", uninitialised},
    {"beyond_shared", beyond_shared},
    {"misaligned", misaligned},
    {"stage_before_transfer", stage_before_transfer},
    {"product_before_transfer", product_before_transfer},
    {"unfenced", unfenced},
    {"product_left_behind", product_left_behind},
    {"early_sums", early_sums},
    {"stage_released_early", stage_released_early},
    {"load_beyond_global", load_beyond_global},
    {"store_before_global", store_before_global},
    {"load_across_the_end", load_across_the_end},
    {"too_many_registers", too_many_registers},
};

}  // namespace

// Null, or what the emulation reports. data: uint16_t[64][64].
extern "C" __attribute__((visibility("default"))) const char* make_mistake(const char* name, uint64_t seed,
                                                                           uint16_t* data) {
  static std::string message;
  emulation::set_seed(seed);
  Arguments args{{}, data};
  const int64_t sizes[2] = {64, 64}, strides[2] = {1, 64};
  const int box[2] = {64, 64};
  const emulation::Watched watched(data, 64 * 64 * 2);
  try {
    if (make_tensor_map(&args.map, data, 2, sizes, strides, box, Swizzle::k128) != cudaSuccess) return "no tensor map";
    launch(kKernels.at(name), 1, kThreads, kSharedBytes, cudaStream_t{}, args);
    return nullptr;
  } catch (const std::exception& error) {
    message = error.what();
    return message.c_str();
  }
}
