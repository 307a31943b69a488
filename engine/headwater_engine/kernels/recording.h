// Kernels that ran one after the other, to run again: what a CUDA graph is on a GPU.
//
// A decoding step of a small model is some two hundred kernels, and between two of them the second core waits for Python,
// which finds nothing of its own in the CPU's caches: 5 to 15 microseconds each time. All steps of one size run the same
// kernels on the same memory. So the first one is written down as it runs, kernel by kernel with its pointers, and the
// others run what is written, without Python.
//
// Inputs lie where they always lie (worker/inputs.py), and so do weights and caches. What kernels make for one another lies
// in scratch memory that is the recording's own. What is recorded holds no tensors: who records sees to it that they stay.
#pragma once

#include <ATen/EmptyTensor.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/from_blob.h>

#include <bit>
#include <functional>
#include <memory>
#include <utility>
#include <vector>

namespace headwater {

// What recordings make their tensors in. One that begins may take all of it, so of those that share it only one runs at a
// time, and what it gave is there until another runs.
class Scratch : public std::enable_shared_from_this<Scratch> {
   public:
    // All of it is free again.
    void begin() {
        turn_++;
        for (Piece& piece : pieces_) piece.taken = false;
    }

    // As torch's allocator does: memory of a tensor that is gone goes to the next one of its size, out of the CPU's cache.
    at::Tensor make(at::IntArrayRef sizes, at::ScalarType type) {
        const size_t bytes = c10::multiply_integers(sizes) * c10::elementSize(type), place = take(bytes);
        auto give_back = [self = shared_from_this(), place, turn = turn_](void*) {
            if (self->turn_ == turn) self->pieces_[place].taken = false;
        };
        return at::from_blob(pieces_[place].bytes.data_ptr(), sizes, give_back, at::TensorOptions().dtype(type));
    }

   private:
    struct Piece {
        at::Tensor bytes;
        bool taken;
    };
    std::vector<Piece> pieces_;
    uint64_t turn_ = 0;

    // The smallest free piece that has so many bytes.
    size_t take(size_t bytes) {
        size_t best = pieces_.size();
        for (size_t place = 0; place < pieces_.size(); place++) {
            const Piece& piece = pieces_[place];
            if (!piece.taken && size_t(piece.bytes.numel()) >= bytes &&
                (best == pieces_.size() || piece.bytes.numel() < pieces_[best].bytes.numel()))
                best = place;
        }
        // Powers of two: recordings of a few more rows each would else leave a piece each.
        if (best == pieces_.size()) pieces_.push_back({at::detail::empty_cpu({int64_t(std::bit_ceil(bytes))}, at::kByte), false});
        pieces_[best].taken = true;
        return best;
    }
};

class Recording {
   public:
    explicit Recording(std::shared_ptr<Scratch> scratch) : scratch_(std::move(scratch)) {}

    // From here to `end` all kernels that this thread runs are added.
    void begin() {
        refuse("a recording");
        kernels_.clear();
        scratch_->begin();
        current_ = this;
    }
    void end() { current_ = nullptr; }

    void add(std::function<void()> kernel) { kernels_.push_back(std::move(kernel)); }

    void run() const {
        for (const std::function<void()>& kernel : kernels_) kernel();
    }

    at::Tensor make(at::IntArrayRef sizes, at::ScalarType type) { return scratch_->make(sizes, type); }

    // Of this thread; null: nothing is recorded.
    static Recording* current() { return current_; }

    // For what cannot run again.
    static void refuse(const char* what) { TORCH_CHECK(!current_, what, " cannot be recorded"); }

   private:
    std::shared_ptr<Scratch> scratch_;
    std::vector<std::function<void()>> kernels_;
    inline static thread_local Recording* current_ = nullptr;
};

// What a kernel writes to. As at::empty, which looks for the device's own way first: 160 of the 1,100 ns that a small kernel
// took.
inline at::Tensor made(at::IntArrayRef sizes, at::ScalarType type) {
    Recording* recording = Recording::current();
    return recording ? recording->make(sizes, type) : at::detail::empty_cpu(sizes, type);
}

}  // namespace headwater
