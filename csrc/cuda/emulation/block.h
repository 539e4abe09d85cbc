// One thread block on the host. Every CUDA thread is a fibre; a seeded scheduler picks who runs next and when
// asynchronous copies land. Barriers, warps and the state of every byte of shared memory are modelled; what hardware
// leaves undefined is thrown as an Error.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "cuda/emulation/tensor_map.h"
#include "fastfuse/dtype.h"

namespace fastfuse::emulation {

using hopper::Major;
using hopper::Swizzle;
using hopper::TensorMap;

struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// Of the next launches: the order of threads and of arrivals follows from it.
void set_seed(uint64_t seed);
// Few, so that the blocks of a persistent grid take several tiles.
void set_multiprocessors(int count);
int multiprocessors();

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 0xD1B54A32D192ED03u) {}
  uint32_t below(uint32_t n) {
    state_ ^= state_ << 13, state_ ^= state_ >> 7, state_ ^= state_ << 17;
    return uint32_t((state_ >> 32) * n >> 32);
  }

 private:
  uint64_t state_;
};

// What a byte of shared memory is; 0: nobody has written it.
enum ByteState : uint8_t {
  kWritten = 1,
  kInFlight = 2,  // an asynchronous copy will write it
  kUnfenced = 4,  // written by a thread, and no fence.proxy.async by it since
  kBarrier = 8,   // an mbarrier lies there
};

struct Thread {
  int index;
  void* stack_pointer = nullptr;
  bool ready = true, finished = false;
  int registers;
  std::string (*waits_for)(uint32_t, uint32_t) = nullptr;  // what it is blocked on, for the report of a deadlock
  uint32_t waits_on = 0, waits_phase = 0;

  std::vector<std::pair<uint32_t, uint32_t>> unfenced;  // address, bytes of its own stores
  std::vector<uint32_t> unfenced_barriers;
  std::vector<std::pair<uint32_t, const void*>> copies;  // in flight: to, from; null: zeros
  int products = 0;                                      // wgmma issued
  int batches = 0;                                       // and committed
  bool in_batch = false;                                 // between wgmma_fence and wgmma_commit
  int stores = 0, store_batches = 0;
};

// An operand of wgmma in shared memory.
struct Operand {
  uint64_t descriptor;
  Major major;
  int extent;  // M or N
};

// A wgmma of one warp: 16 rows of the warpgroup's 64.
struct Product {
  DType dtype;
  int columns;  // N
  bool accumulate, a_in_registers;
  Operand a, b;
  int batch;
  int lanes = 0;                  // that have issued it
  float* sums[32];                // each lane's d[N / 2]
  const uint32_t* registers[32];  // each lane's a[4] where a_in_registers
  uint32_t register_copy[32][4];
  std::vector<float> before;  // [32][N / 2]: what d held when the first pending product on it was issued
};

struct Warp {
  int arrived = 0;
  uint32_t generation = 0;
  uint64_t values[2][32];  // of shuffles, by the generation's parity
  std::vector<Thread*> waiting;
  std::vector<std::unique_ptr<Product>> products;  // not yet done, oldest first
  int first_product = 0;                           // number of products[0]
};

struct Mbarrier {
  bool initialised = false, visible_to_tma = false;
  uint32_t count = 0, pending = 0, phase = 0;
  int64_t bytes = 0;
  std::vector<Thread*> waiting;
};

struct NamedBarrier {
  int expected = 0, arrived = 0;
  std::vector<Thread*> waiting;
};

// An asynchronous copy that has not happened yet.
struct Transfer {
  TensorMap map;  // a copy: the thread that asked may have ended, and its parameters with it
  bool store;
  uint32_t shared, barrier;
  int at[5];
  int thread, batch;  // of a store
};

class Block {
 public:
  Block(int index, int blocks, int threads, size_t shared_bytes, uint64_t seed);
  void run(const std::function<void()>& kernel);

  // All of these are called by the running thread.
  Thread& current() { return *current_; }
  int index() const { return index_; }
  int blocks() const { return blocks_; }
  int threads() const { return int(threads_.size()); }
  void pause();  // perhaps lets others run
  [[noreturn]] void fail(const std::string& what);

  const uint8_t* read_shared(uint32_t address, uint32_t bytes);
  uint8_t* write_shared(uint32_t address, uint32_t bytes);
  void fence_async_proxy();
  void check_global(const void* address, size_t bytes, const char* user);

  // setmaxnreg: warps take from what others of the block have given back, and wait for it.
  void increase_registers(int count);
  void decrease_registers(int count);

  void named_barrier(int id, int threads, bool wait);
  void warp_sync();
  uint64_t warp_exchange(uint64_t value, int from);

  void mbarrier_init(uint32_t address, uint32_t count);
  void mbarrier_init_fence();
  void mbarrier_arrive(uint32_t address, uint32_t bytes);
  void mbarrier_wait(uint32_t address, uint32_t parity);

  void copy_async(uint32_t address, const void* from);
  void copy_async_wait();

  void tma_load(const TensorMap* map, uint32_t barrier, uint32_t shared, const int* at);
  void tma_store(const TensorMap* map, uint32_t shared, const int* at);
  void tma_store_commit();
  void tma_store_wait(int pending);

  void wgmma_fence();
  void wgmma_commit();
  void wgmma_wait(int pending);
  void wgmma(DType dtype, int columns, float* sums, const uint32_t* registers, Operand a, Operand b, bool accumulate);

 private:
  void block_on(std::string (*what)(uint32_t, uint32_t), uint32_t object, uint32_t phase);
  void release(std::vector<Thread*>& waiting);
  void resume(Thread& thread);
  Thread* next();
  std::string deadlock() const;
  static void fibre_main();

  Mbarrier& mbarrier(uint32_t address, const char* user);
  void arrived(Mbarrier& barrier);
  void check_range(uint32_t address, uint32_t bytes, const char* user);
  void land(size_t which);
  void check_not_read(uint32_t begin, uint32_t bytes);
  void read_operand(const Operand& operand, int row, int rows, DType dtype, float* to);
  void read_operands(const Product& product, int warp_rows, float* a, float* b);
  void do_products(Warp& warp, int batches);

  int index_, blocks_;
  size_t shared_bytes_;
  Random random_;
  uint32_t land_one_in_;       // copies land at one in so many steps, or sooner where nobody can run
  int slow_begin_, slow_end_;  // warps that run last
  std::vector<uint8_t> shared_, state_;
  std::vector<Thread> threads_;
  std::vector<Thread*> ready_;
  std::vector<Warp> warps_;
  std::vector<Mbarrier> mbarriers_;  // by address / 8
  NamedBarrier named_[16];
  int free_registers_ = 0;
  std::vector<Thread*> wait_for_registers_;
  std::vector<Transfer> transfers_;
  const std::function<void()>* kernel_ = nullptr;
  Thread* current_ = nullptr;
  void* scheduler_ = nullptr;
  int finished_ = 0;
  std::string error_;
};

// The block that runs.
extern Block* block;

}  // namespace fastfuse::emulation
