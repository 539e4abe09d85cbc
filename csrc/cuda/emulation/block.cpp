// The scheduler, barriers, warps, and shared memory.
#include "cuda/emulation/block.h"

#include <algorithm>
#include <cstring>

#include "cuda/emulation/fibre.h"
#include "cuda/emulation/global.h"

namespace fastfuse::emulation {

Block* block = nullptr;

namespace {

constexpr size_t kStackBytes = 64 << 10;
constexpr int kPauseOneIn = 6;
constexpr uint32_t kLandOneIn[] = {2, 16, 1 << 20};
constexpr int kSlowTries = 4;
constexpr int kRegisters = 65536, kThreadRegisters = 248;

char* stacks(int threads) {
  static std::vector<std::unique_ptr<char[]>> chunks;  // kept: pages once touched stay
  static int capacity = 0;
  if (threads > capacity) {
    chunks.clear();
    chunks.push_back(std::unique_ptr<char[]>(new char[threads * kStackBytes]));
    capacity = threads;
  }
  return chunks[0].get();
}

std::string hex(uint32_t address) {
  char text[16];
  std::snprintf(text, sizeof text, "0x%x", address);
  return text;
}

}  // namespace

Block::Block(int index, int blocks, int threads, size_t shared_bytes, uint64_t seed)
    : index_(index),
      blocks_(blocks),
      shared_bytes_(shared_bytes),
      random_(seed),
      shared_(shared_bytes, 0xff),  // NaN in every format
      state_(shared_bytes, 0),
      threads_(threads),
      warps_((threads + 31) / 32),
      mbarriers_((shared_bytes + 7) / 8) {
  const uint32_t warps = uint32_t(warps_.size());
  land_one_in_ = kLandOneIn[random_.below(3)];
  slow_begin_ = int(random_.below(warps));
  slow_end_ = slow_begin_ + int(random_.below(warps / 2 + 1));
  char* stack = stacks(threads);
  for (int i = 0; i < threads; i++) {
    threads_[i].index = i;
    threads_[i].registers = std::min(kRegisters / threads / 8 * 8, kThreadRegisters);
    threads_[i].stack_pointer = prepare_fibre(stack + i * kStackBytes, kStackBytes, &Block::fibre_main);
    ready_.push_back(&threads_[i]);
  }
}

void Block::fibre_main() {
  Block& self = *block;
  try {
    (*self.kernel_)();
    Thread& thread = self.current();
    const Warp& warp = self.warps_[thread.index / 32];
    if (thread.products > warp.first_product) self.fail("ends while a wgmma is in flight: no wgmma_wait");
  } catch (const Error& error) {
    self.error_ = error.what();
  }
  self.current_->finished = true;
  self.current_->ready = false;
  self.finished_++;
  void* nowhere;
  fastfuse_switch_fibre(&nowhere, self.scheduler_);
  __builtin_unreachable();
}

void Block::resume(Thread& thread) {
  current_ = &thread;
  fastfuse_switch_fibre(&scheduler_, thread.stack_pointer);
}

Thread* Block::next() {
  for (int tries = 0;; tries++) {
    const uint32_t which = random_.below(uint32_t(ready_.size()));
    Thread* thread = ready_[which];
    const int warp = thread->index / 32;
    if (tries < kSlowTries && warp >= slow_begin_ && warp < slow_end_) continue;
    ready_[which] = ready_.back();
    ready_.pop_back();
    return thread;
  }
}

void Block::run(const std::function<void()>& kernel) {
  kernel_ = &kernel;
  while (finished_ < int(threads_.size()) || !transfers_.empty()) {
    if (!transfers_.empty() && (ready_.empty() || random_.below(land_one_in_) == 0)) {
      land(random_.below(uint32_t(transfers_.size())));
      continue;
    }
    if (ready_.empty()) throw Error("block " + std::to_string(index_) + ": deadlock\n" + deadlock());
    resume(*next());
    if (!error_.empty()) throw Error(error_);
  }
}

void Block::fail(const std::string& what) {
  const std::string who = current_ ? ", thread " + std::to_string(current_->index) : "";
  throw Error("block " + std::to_string(index_) + who + ": " + what);
}

void Block::pause() {
  if (random_.below(kPauseOneIn)) return;
  ready_.push_back(current_);
  fastfuse_switch_fibre(&current_->stack_pointer, scheduler_);
}

void Block::block_on(std::string (*what)(uint32_t, uint32_t), uint32_t object, uint32_t phase) {
  Thread& thread = *current_;
  thread.ready = false;
  thread.waits_for = what;
  thread.waits_on = object;
  thread.waits_phase = phase;
  fastfuse_switch_fibre(&thread.stack_pointer, scheduler_);
}

void Block::release(std::vector<Thread*>& waiting) {
  for (Thread* thread : waiting) {
    thread->ready = true;
    ready_.push_back(thread);
  }
  waiting.clear();
}

// Runs of threads that wait for the same.
std::string Block::deadlock() const {
  std::string report;
  for (size_t i = 0; i < threads_.size();) {
    const auto text = [&](const Thread& t) {
      return t.finished ? std::string("finished") : t.waits_for(t.waits_on, t.waits_phase);
    };
    size_t end = i + 1;
    while (end < threads_.size() && text(threads_[end]) == text(threads_[i])) end++;
    report += "  threads " + std::to_string(i) + ".." + std::to_string(end - 1) + ": " + text(threads_[i]) + "\n";
    i = end;
  }
  for (size_t i = 0; i < mbarriers_.size(); i++) {
    const Mbarrier& b = mbarriers_[i];
    if (b.initialised && !b.waiting.empty()) {
      report += "  mbarrier " + hex(uint32_t(i * 8)) + ": phase " + std::to_string(b.phase) + ", still expects " +
                std::to_string(b.pending) + " of " + std::to_string(b.count) + " arrivals and " +
                std::to_string(b.bytes) + " bytes\n";
    }
  }
  return report;
}

// ---- shared memory

void Block::check_range(uint32_t address, uint32_t bytes, const char* user) {
  if (uint64_t(address) + bytes > shared_bytes_)
    fail(std::string(user) + " of " + std::to_string(bytes) + " bytes at " + hex(address) + ", beyond the " +
         std::to_string(shared_bytes_) + " of shared memory");
}

const uint8_t* Block::read_shared(uint32_t address, uint32_t bytes) {
  check_range(address, bytes, "read");
  if (address % bytes) fail("misaligned read at " + hex(address));
  for (uint32_t i = address; i < address + bytes; i++) {
    if (state_[i] & kBarrier) fail("read of an mbarrier at " + hex(i));
    if (state_[i] & kInFlight) fail("read at " + hex(i) + ", where a copy is in flight");
    if (!(state_[i] & kWritten)) fail("read at " + hex(i) + ", which nobody has written");
  }
  return &shared_[address];
}

uint8_t* Block::write_shared(uint32_t address, uint32_t bytes) {
  pause();
  check_range(address, bytes, "write");
  if (address % bytes) fail("misaligned write at " + hex(address));
  for (uint32_t i = address; i < address + bytes; i++) {
    if (state_[i] & kBarrier) fail("write over an mbarrier at " + hex(i));
    if (state_[i] & kInFlight) fail("write at " + hex(i) + ", where a copy is in flight");
    state_[i] = kWritten | kUnfenced;
  }
  check_not_read(address, bytes);
  current_->unfenced.push_back({address, bytes});
  return &shared_[address];
}

void Block::fence_async_proxy() {
  for (const auto& [address, bytes] : current_->unfenced)
    for (uint32_t i = address; i < address + bytes; i++) state_[i] &= uint8_t(~kUnfenced);
  current_->unfenced.clear();
}

void Block::check_global(const void* address, size_t bytes, const char* user) {
  if (is_inside(address, bytes)) return;
  fail(std::string(user) + " of " + std::to_string(bytes) + " bytes of global memory outside of an allocation");
}

// ---- registers

void Block::decrease_registers(int count) {
  Thread& thread = *current_;
  if (count > thread.registers) fail("decrease_registers to more than there are");
  free_registers_ += thread.registers - count;
  thread.registers = count;
  release(wait_for_registers_);
}

void Block::increase_registers(int count) {
  Thread& thread = *current_;
  if (count < thread.registers) fail("increase_registers to fewer than there are");
  while (free_registers_ < count - thread.registers) {
    wait_for_registers_.push_back(current_);
    block_on([](uint32_t wanted, uint32_t) { return "waits for " + std::to_string(wanted) + " registers"; },
             uint32_t(count), 0);
  }
  free_registers_ -= count - thread.registers;
  thread.registers = count;
}

// ---- named barriers

void Block::named_barrier(int id, int threads, bool wait) {
  pause();
  if (id < 0 || id >= 16 || threads % 32 || threads <= 0 || threads > int(threads_.size()))
    fail("named barrier " + std::to_string(id) + " of " + std::to_string(threads) + " threads");
  NamedBarrier& barrier = named_[id];
  if (barrier.arrived && barrier.expected != threads)
    fail("named barrier " + std::to_string(id) + ": " + std::to_string(threads) + " threads here, " +
         std::to_string(barrier.expected) + " elsewhere");
  barrier.expected = threads;
  if (++barrier.arrived == threads) {
    barrier.arrived = 0;
    release(barrier.waiting);
  } else if (wait) {
    barrier.waiting.push_back(current_);
    block_on([](uint32_t barrier_id, uint32_t) { return "waits at named barrier " + std::to_string(barrier_id); },
             uint32_t(id), 0);
  }
}

// ---- warps

void Block::warp_sync() {
  Warp& warp = warps_[current_->index / 32];
  if (++warp.arrived == 32) {
    warp.arrived = 0;
    warp.generation++;
    release(warp.waiting);
    return;
  }
  warp.waiting.push_back(current_);
  block_on([](uint32_t, uint32_t) { return std::string("waits for the rest of its warp"); }, 0, 0);
}

uint64_t Block::warp_exchange(uint64_t value, int from) {
  Warp& warp = warps_[current_->index / 32];
  uint64_t (&values)[32] = warp.values[warp.generation & 1];
  values[current_->index % 32] = value;
  warp_sync();
  return values[from];
}

// ---- mbarriers

Mbarrier& Block::mbarrier(uint32_t address, const char* user) {
  if (address % 8 || address + 8 > shared_bytes_) fail(std::string(user) + ": no mbarrier can lie at " + hex(address));
  Mbarrier& barrier = mbarriers_[address / 8];
  if (!barrier.initialised) fail(std::string(user) + ": the mbarrier at " + hex(address) + " is not initialised");
  return barrier;
}

void Block::mbarrier_init(uint32_t address, uint32_t count) {
  pause();
  check_range(address, 8, "mbarrier");
  if (address % 8) fail("misaligned mbarrier at " + hex(address));
  if (mbarriers_[address / 8].initialised) fail("the mbarrier at " + hex(address) + " is initialised twice");
  for (int i = 0; i < 8; i++) {
    if (state_[address + i]) fail("an mbarrier over data at " + hex(address));
    state_[address + i] = kBarrier;
  }
  Mbarrier& barrier = mbarriers_[address / 8];
  barrier.initialised = true;
  barrier.count = barrier.pending = count;
  current_->unfenced_barriers.push_back(address);
}

void Block::mbarrier_init_fence() {
  for (uint32_t address : current_->unfenced_barriers) mbarriers_[address / 8].visible_to_tma = true;
  current_->unfenced_barriers.clear();
}

void Block::arrived(Mbarrier& barrier) {
  if (barrier.pending || barrier.bytes) return;
  barrier.pending = barrier.count;
  barrier.phase++;
  release(barrier.waiting);
}

void Block::mbarrier_arrive(uint32_t address, uint32_t bytes) {
  pause();
  Mbarrier& barrier = mbarrier(address, "arrive");
  if (barrier.pending == 0)
    fail("more arrivals than the " + std::to_string(barrier.count) + " of the mbarrier at " + hex(address));
  barrier.bytes += bytes;
  barrier.pending--;
  arrived(barrier);
}

void Block::mbarrier_wait(uint32_t address, uint32_t parity) {
  pause();
  if (parity > 1) fail("parity " + std::to_string(parity) + " of the mbarrier at " + hex(address));
  Mbarrier& barrier = mbarrier(address, "wait");
  while ((barrier.phase & 1) == parity) {
    barrier.waiting.push_back(current_);
    block_on([](uint32_t where,
                uint32_t phase) { return "waits at mbarrier " + hex(where) + ", parity " + std::to_string(phase); },
             address, parity);
  }
}

}  // namespace fastfuse::emulation
