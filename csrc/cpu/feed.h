// Memory that will be read or written soon, in the order of its use. Products ask for it meanwhile, a line every few steps of
// gemm.h, whatever their own shape: so the requests, which the cores' miss buffers take one after the other, are spread
// evenly over the arithmetic that hides them.
#pragma once

#include "cpu/simd.h"

namespace fastfuse::cpu::FASTFUSE_ISA {

class Feed {
 public:
  void begin() {
    queued_ = served_ = 0;
    at_ = end_ = nullptr;
    rows_ = 1;
  }
  bool full() const { return queued_ == kMost; }

  // Rows [rows][width] of elements; what does not fit into the queue is left out.
  template <class T>
  void add(const T* data, int64_t stride, int64_t width, int64_t rows) {
    if (rows <= 0 || width <= 0 || full()) return;
    const int64_t size = sizeof(T);
    queue_[queued_++] = stride == width ? Rows{(const char*)data, 0, rows * width * size, 1}
                                        : Rows{(const char*)data, stride * size, width * size, rows};
  }

  // Asks for all of it now.
  void flush() {
    for (; served_ < queued_; served_++) {
      const Rows& r = queue_[served_];
      for (int64_t row = 0; row < r.rows; row++) {
        for (int64_t at = 0; at < r.bytes; at += kLine) __builtin_prefetch(r.data + row * r.stride + at);
      }
    }
  }

 private:
  friend struct Fed;
  struct Rows {
    const char* data;
    int64_t stride, bytes, rows;
  };
  static constexpr int kMost = 12;
  static constexpr int64_t kLine = 64;

  // The line that follows a row's last one. After the queue's end, this object, which is at hand.
  FF_INLINE const char* next_row(const char*& end) {
    if (--rows_ > 0) {
      row_ += stride_;
    } else {
      const Rows r = served_ < queued_ ? queue_[served_++] : Rows{(const char*)this, 0, kLine, int64_t(1) << 62};
      row_ = r.data;
      stride_ = r.stride;
      bytes_ = r.bytes;
      rows_ = r.rows;
    }
    end = row_ + bytes_;
    return row_;
  }

  const char *at_, *end_;  // the next line and the end of its row
  const char* row_;        // that row, bytes_ long, and rows_ - 1 more after it
  int64_t stride_, bytes_, rows_;
  int queued_, served_;
  Rows queue_[kMost];
};

// A product's way to a feed, see ahead.h. The place in it is in registers while a block of rows lasts.
struct Fed {
  Feed* feed;
  const char *at = nullptr, *end = nullptr;

  explicit FF_INLINE Fed(Feed& the_feed) : feed(&the_feed) {}
  FF_INLINE Fed start() const {
    Fed now = *this;
    now.at = feed->at_;
    now.end = feed->end_;
    return now;
  }
  FF_INLINE void stop(const Fed& now) const {
    feed->at_ = now.at;
    feed->end_ = now.end;
  }
  FF_INLINE void step(int64_t) {
    if (at >= end) at = feed->next_row(end);
    __builtin_prefetch(at);
    at += Feed::kLine;
  }
  FF_INLINE Fed skip(int64_t, int64_t) const { return *this; }
  FF_INLINE Fed skip_rows(int64_t) const { return *this; }
};

}  // namespace fastfuse::cpu::FASTFUSE_ISA
