// wgmma: operands are read, and sums appear, when the warp waits for them. Until then the registers hold NaN.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <map>

#include "cuda/emulation/block.h"

namespace fastfuse::emulation {
namespace {

float widen(DType dtype, uint16_t bits) {
  if (dtype == DType::kBFloat16) {
    const uint32_t wide = uint32_t(bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
  }
  _Float16 value;
  std::memcpy(&value, &bits, 2);
  return float(value);
}

struct Layout {
  uint32_t start, next_columns, eight_rows;
  Swizzle swizzle;
  explicit Layout(uint64_t d)
      : start(uint32_t(d & 0x3fff) << 4),
        next_columns(uint32_t(d >> 16 & 0x3fff) << 4),
        eight_rows(uint32_t(d >> 32 & 0x3fff) << 4),
        swizzle(Swizzle(d >> 62)) {}
};

// Where 8 neighbours lie: along the contraction (row `output`, contraction 8 `piece`), or along the output (contraction
// `output`, columns 8 `piece`).
uint32_t piece_address(const Layout& at, int row, int piece) {
  const int pitch = hopper::swizzle_bytes(at.swizzle), pieces = pitch / 16;
  const uint32_t meant = at.start + uint32_t(row / 8) * at.eight_rows + uint32_t(row % 8 * pitch) +
                         uint32_t(piece / pieces) * at.next_columns + uint32_t(piece % pieces) * 16;
  return hopper::swizzled(meant, at.swizzle);
}

struct Bounds {
  uint32_t begin, end;
};

Bounds bounds_of(const Operand& operand) {
  const Layout at(operand.descriptor);
  const uint32_t pitch = uint32_t(hopper::swizzle_bytes(at.swizzle)), begin = at.start & ~(8 * pitch - 1);
  if (operand.major == Major::kContraction)
    return {begin, begin + uint32_t(operand.extent / 8 - 1) * at.eight_rows + 8 * pitch};
  const uint32_t across = (uint32_t(operand.extent) * 2 - 1) / pitch;
  return {begin, begin + across * at.next_columns + at.eight_rows + 8 * pitch};
}

}  // namespace

void Block::check_not_read(uint32_t begin, uint32_t bytes) {
  for (const Warp& warp : warps_) {
    for (const auto& product : warp.products) {
      for (const Operand* operand : {&product->a, &product->b}) {
        if (operand == &product->a && product->a_in_registers) continue;
        const Bounds used = bounds_of(*operand);
        if (used.begin < begin + bytes && begin < used.end)
          fail("write over an operand of a wgmma in flight: its stage was released too early");
      }
    }
  }
}

void Block::wgmma_fence() { current_->in_batch = true; }

void Block::wgmma_commit() {
  current_->batches++;
  current_->in_batch = false;
}

void Block::wgmma(DType dtype, int columns, float* sums, const uint32_t* registers, Operand a, Operand b,
                  bool accumulate) {
  Thread& thread = *current_;
  Warp& warp = warps_[thread.index / 32];
  if (!thread.in_batch) fail("wgmma without a wgmma_fence since the last commit");
  const size_t number = size_t(thread.products++ - warp.first_product);
  if (number == warp.products.size()) {
    auto product = std::make_unique<Product>();
    product->dtype = dtype, product->columns = columns, product->accumulate = accumulate;
    product->a_in_registers = registers != nullptr, product->a = a, product->b = b, product->batch = thread.batches;
    product->before.resize(size_t(32) * columns / 2);
    warp.products.push_back(std::move(product));
    float a[16 * 16], b[16 * 256];  // hardware may read at once: what is not there yet is found here
    read_operands(*warp.products.back(), thread.index / 32 % 4 * 16, a, b);
  }
  Product& product = *warp.products[number];
  if (product.columns != columns || product.dtype != dtype || product.accumulate != accumulate ||
      product.b.descriptor != b.descriptor || product.batch != thread.batches ||
      (!registers && product.a.descriptor != a.descriptor))
    fail("the lanes of a warp disagree about a wgmma");
  const int lane = thread.index % 32;
  product.lanes++;
  product.sums[lane] = sums;
  product.registers[lane] = registers;
  if (registers) std::copy_n(registers, 4, product.register_copy[lane]);
  const bool first = std::none_of(warp.products.begin(), warp.products.begin() + std::ptrdiff_t(number),
                                  [&](const auto& earlier) { return earlier->sums[lane] == sums; });
  if (first) {
    std::copy_n(sums, columns / 2, &product.before[size_t(lane) * columns / 2]);
    std::fill_n(sums, columns / 2, std::numeric_limits<float>::quiet_NaN());
  }
}

void Block::wgmma_wait(int pending) {
  Thread& thread = *current_;
  Warp& warp = warps_[thread.index / 32];
  const int wanted = thread.batches - pending;
  pause();
  if (warp.arrived == 31) do_products(warp, wanted);
  warp_sync();
}

// to[extent][16], or where columns are contiguous to[16][extent]
void Block::read_operand(const Operand& operand, int row, int rows, DType dtype, float* to) {
  const Layout at(operand.descriptor);
  if (at.swizzle == Swizzle(0)) fail("wgmma: an operand without swizzle");
  const bool contraction = operand.major == Major::kContraction;
  const int lines = contraction ? rows : 16, pieces = contraction ? 2 : operand.extent / 8;
  for (int line = 0; line < lines; line++) {
    for (int piece = 0; piece < pieces; piece++) {
      const uint32_t address = piece_address(at, row + line, piece);
      check_range(address, 16, "wgmma");
      uint64_t states[2];
      std::memcpy(states, &state_[address], 16);
      constexpr uint64_t kGood = 0x0101010101010101u * kWritten;
      if (states[0] != kGood || states[1] != kGood) {
        const uint8_t state = states[0] != kGood ? state_[address] : state_[address + 8];
        fail(state & kInFlight   ? "wgmma reads where a copy is in flight"
             : state & kUnfenced ? "wgmma reads what a thread wrote without fence_async_proxy"
             : state & kBarrier  ? "wgmma reads an mbarrier"
                                 : "wgmma reads what nobody has written");
      }
      uint16_t bits[8];
      std::memcpy(bits, &shared_[address], 16);
      float* row_to = to + line * (contraction ? 16 : operand.extent) + piece * 8;
      for (int i = 0; i < 8; i++) row_to[i] = widen(dtype, bits[i]);
    }
  }
}

// b[16][N], and where it lies in shared memory a[16][16].
void Block::read_operands(const Product& p, int warp_rows, float* a, float* b) {
  if (!p.a_in_registers && p.a.major == Major::kContraction) read_operand(p.a, warp_rows, 16, p.dtype, a);
  if (!p.a_in_registers && p.a.major == Major::kOutput) {
    float columns[16][64];
    read_operand(p.a, 0, 16, p.dtype, columns[0]);
    for (int row = 0; row < 16; row++)
      for (int k = 0; k < 16; k++) a[row * 16 + k] = columns[k][warp_rows + row];
  }
  if (p.b.major == Major::kOutput) return read_operand(p.b, 0, 16, p.dtype, b);
  float rows[256][16];
  read_operand(p.b, 0, p.columns, p.dtype, rows[0]);
  for (int j = 0; j < p.columns; j++)
    for (int k = 0; k < 16; k++) b[k * p.columns + j] = rows[j][k];
}

void Block::do_products(Warp& warp, int batches) {
  const int warp_rows = int(&warp - warps_.data()) % 4 * 16;
  std::map<float*, std::vector<float>> tiles;  // by lane 0's registers: [16][N]
  size_t done = 0;
  for (; done < warp.products.size() && warp.products[done]->batch < batches; done++) {
    Product& p = *warp.products[done];
    if (p.lanes != 32) fail("a wgmma was issued by " + std::to_string(p.lanes) + " of 32 lanes");
    const int n = p.columns;
    const auto at = [](int lane, int i) {  // row, column of sums[i]
      return std::pair(lane / 4 + (i & 2) * 4, i / 4 * 8 + lane % 4 * 2 + (i & 1));
    };
    std::vector<float>& tile = tiles[p.sums[0]];
    if (tile.empty()) {
      tile.resize(size_t(16) * n);
      for (int lane = 0; lane < 32; lane++) {
        for (int i = 0; i < n / 2; i++) {
          const auto [row, column] = at(lane, i);
          tile[size_t(row) * n + column] = p.before[size_t(lane) * n / 2 + i];
        }
      }
    }
    if (!p.accumulate) std::fill(tile.begin(), tile.end(), 0.0f);

    float a[16][16], b[16 * 256];
    if (p.a_in_registers) {
      for (int lane = 0; lane < 32; lane++) {
        if (std::memcmp(p.registers[lane], p.register_copy[lane], 16))
          fail("the registers of a wgmma's operand changed before its wait");
        for (int i = 0; i < 4; i++) {
          const uint32_t pair = p.register_copy[lane][i];
          const int row = lane / 4 + i % 2 * 8, column = lane % 4 * 2 + i / 2 * 8;
          a[row][column] = widen(p.dtype, uint16_t(pair)), a[row][column + 1] = widen(p.dtype, uint16_t(pair >> 16));
        }
      }
    }
    read_operands(p, warp_rows, a[0], b);
    for (int row = 0; row < 16; row++) {
      float* sum = &tile[size_t(row) * n];
      for (int k = 0; k < 16; k++) {
        const float factor = a[row][k];
        const float* line = b + k * n;
        for (int j = 0; j < n; j++) sum[j] += factor * line[j];
      }
    }

    const auto rest = warp.products.begin() + std::ptrdiff_t(done) + 1;
    const auto later =
        std::find_if(rest, warp.products.end(), [&](const auto& other) { return other->sums[0] == p.sums[0]; });
    const bool chained = later != warp.products.end();
    if (chained && (*later)->batch < batches) continue;
    for (int lane = 0; lane < 32; lane++) {
      float* to = chained ? &(*later)->before[size_t(lane) * n / 2] : p.sums[lane];
      for (int i = 0; i < n / 2; i++) {
        const auto [row, column] = at(lane, i);
        to[i] = tile[size_t(row) * n + column];
      }
    }
    tiles.erase(p.sums[0]);
  }
  warp.products.erase(warp.products.begin(), warp.products.begin() + std::ptrdiff_t(done));
  warp.first_product += int(done);
}

}  // namespace fastfuse::emulation
