// Copies that land later: TMA's when the scheduler likes, a thread's own when it waits for them.
#include <algorithm>
#include <cstring>

#include "cuda/emulation/block.h"

namespace fastfuse::emulation {

void Block::copy_async(uint32_t address, const void* from) {
  constexpr uint32_t kBytes = 16;
  uint8_t* to = write_shared(address, kBytes);
  current_->unfenced.pop_back();
  std::memset(to, 0xff, kBytes);
  std::fill_n(&state_[address], kBytes, uint8_t(kInFlight));
  if (from) check_global(from, kBytes, "copy_async");
  current_->copies.push_back({address, from});
}

void Block::copy_async_wait() {
  pause();
  for (const auto& [address, from] : current_->copies) {
    constexpr uint32_t kBytes = 16;
    if (from) std::memcpy(&shared_[address], from, kBytes);
    if (!from) std::memset(&shared_[address], 0, kBytes);
    std::fill_n(&state_[address], kBytes, uint8_t(kWritten | kUnfenced));
    current_->unfenced.push_back({address, kBytes});
  }
  current_->copies.clear();
}

void Block::tma_load(const TensorMap* map, uint32_t barrier, uint32_t shared, const int* at) {
  pause();
  const uint32_t bytes = uint32_t(map->box_bytes());
  check_range(shared, bytes, "TMA load");
  if (shared % 128) fail("TMA load to an address that is no multiple of 128");
  if (!mbarrier(barrier, "TMA load").visible_to_tma) fail("TMA load: its mbarrier was initialised without a fence");
  check_not_read(shared, bytes);
  for (uint32_t i = shared; i < shared + bytes; i++) {
    if (state_[i] & kBarrier) fail("TMA load over an mbarrier");
    if (state_[i] & kInFlight) fail("TMA load over another copy in flight");
    state_[i] = kInFlight;
  }
  std::memset(&shared_[shared], 0xff, bytes);
  Transfer transfer{*map, false, shared, barrier, {}, current_->index, 0};
  std::copy_n(at, map->rank, transfer.at);
  transfers_.push_back(transfer);
}

void Block::tma_store(const TensorMap* map, uint32_t shared, const int* at) {
  pause();
  check_range(shared, uint32_t(map->box_bytes()), "TMA store");
  if (shared % 128) fail("TMA store from an address that is no multiple of 128");
  Transfer transfer{*map, true, shared, 0, {}, current_->index, current_->store_batches};
  std::copy_n(at, map->rank, transfer.at);
  transfers_.push_back(transfer);
}

void Block::tma_store_commit() { current_->store_batches++; }

void Block::tma_store_wait(int pending) {
  for (size_t i = 0; i < transfers_.size();) {
    const Transfer& t = transfers_[i];
    if (t.store && t.thread == current_->index && t.batch < current_->store_batches - pending) {
      land(i);
    } else {
      i++;
    }
  }
}

void Block::land(size_t which) {
  const Transfer t = transfers_[which];
  transfers_.erase(transfers_.begin() + std::ptrdiff_t(which));
  const TensorMap& map = t.map;
  const int row_bytes = map.box[0] * 2;
  int64_t rows = 1;
  for (int i = 1; i < map.rank; i++) rows *= map.box[i];
  for (int64_t row = 0; row < rows; row++) {
    int64_t offset = 0, left = row;
    bool inside = true;
    for (int i = 1; i < map.rank; i++) {
      const int64_t c = t.at[i] + left % map.box[i];
      left /= map.box[i];
      inside &= c >= 0 && c < map.sizes[i];
      offset += c * map.strides[i];
    }
    for (int x = 0; x < map.box[0]; x++) {
      const int64_t c = t.at[0] + x;
      const uint32_t meant = t.shared + uint32_t(row * row_bytes + x * 2);
      const uint32_t address = hopper::swizzled(meant, map.swizzle);
      const bool exists = inside && c >= 0 && c < map.sizes[0];
      uint8_t* global = map.base + (offset + c) * 2;
      if (!t.store) {
        if (exists) check_global(global, 2, "TMA load"), std::memcpy(&shared_[address], global, 2);
        if (!exists) std::memset(&shared_[address], 0, 2);
        state_[address] = state_[address + 1] = kWritten;
      } else if (exists) {
        if (state_[address] != kWritten) fail("TMA store of bytes that are unwritten, in flight or not fenced");
        check_global(global, 2, "TMA store");
        std::memcpy(global, &shared_[address], 2);
      }
    }
  }
  if (t.store) return;
  Mbarrier& barrier = mbarriers_[t.barrier / 8];
  barrier.bytes -= map.box_bytes();
  arrived(barrier);
}

}  // namespace fastfuse::emulation
