#include "team.h"

#include <pthread.h>
#if defined(__linux__)
#include <sched.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <exception>
#include <mutex>
#include <thread>
#include <utility>
#include <vector>

namespace headwater {
namespace {

using namespace std::chrono_literals;

constexpr auto PATIENCE = 50us;  // longer than what lies between two kernels of a step

void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    asm volatile("isb");
#endif
}

// Returns as soon as the value is another one: awake for a while, then asleep.
void wait_for_change(const std::atomic<uint32_t>& value, uint32_t old) {
    const auto end = std::chrono::steady_clock::now() + PATIENCE;
    do
        for (int i = 0; i < 16; i++) {
            if (value.load(std::memory_order_acquire) != old) return;
            pause();
        }
    while (std::chrono::steady_clock::now() < end);
    value.wait(old, std::memory_order_acquire);
}

// What nobody has taken yet of one thread's pieces. The number of the kernel is part of the word: a thread that comes
// too late, even where it slept in the midst of taking, finds a word that is not the one it knows.
struct alignas(64) Share {
    std::atomic<uint64_t> left{0};  // kernel << 32 | pieces
    std::atomic<int> core{-1};      // where the thread was last

    void fill(uint32_t kernel, uint64_t pieces) {
        left.store(uint64_t(kernel) << 32 | pieces, std::memory_order_release);
    }
    // Takes one, and returns how many there were; 0: there is none.
    uint32_t take() {
        uint64_t found = left.load(std::memory_order_acquire);
        while (uint32_t(found) > 0 && !left.compare_exchange_weak(found, found - 1, std::memory_order_acq_rel)) {
        }
        return uint32_t(found);
    }
};

#if defined(__linux__)
int this_core() { return sched_getcpu(); }

// Has this thread, `who`, go on where it may and none of the others was last; if there is no such core, it stays. Where it
// may run later is as it was.
void move_off(const std::vector<Share>& others, int who) {
    cpu_set_t allowed, elsewhere;
    if (sched_getaffinity(0, sizeof allowed, &allowed) != 0) return;
    elsewhere = allowed;
    for (int each = 0; each < int(others.size()); each++)
        if (const int core = others[each].core.load(std::memory_order_relaxed); each != who && core >= 0)
            CPU_CLR(core, &elsewhere);
    if (CPU_COUNT(&elsewhere) == 0) return;
    sched_setaffinity(0, sizeof elsewhere, &elsewhere);
    sched_setaffinity(0, sizeof allowed, &allowed);
}
#else
int this_core() { return -1; }
void move_off(const std::vector<Share>&, int) {}
#endif

class Team {
   public:
    std::mutex mine;  // of the caller that has the team

    // Only between kernels.
    void resize(int threads) {
        if (threads == size()) return;
        leave();
        shares_ = std::vector<Share>(threads);
        for (int who = 1; who < threads; who++)
            helpers_.emplace_back([this, who, seen = kernel_.load()] { help(who, seen); });
    }

    void run(int64_t pieces, void (*work)(const void*, int64_t), const void* context) {
        pieces_ = pieces, work_ = work, context_ = context;
        unfinished_.store(uint32_t(pieces), std::memory_order_relaxed);
        const uint32_t kernel = kernel_.load(std::memory_order_relaxed) + 1;
        for (int who = 0; who < size(); who++) shares_[who].fill(kernel, end_of(who) - end_of(who - 1));
        shares_[0].core.store(this_core(), std::memory_order_relaxed);
        kernel_.store(kernel);
        kernel_.notify_all();
        work_through(0);
        for (uint32_t left; (left = unfinished_.load(std::memory_order_acquire)) > 0;) wait_for_change(unfinished_, left);
        if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
    }

   private:
    std::vector<Share> shares_ = std::vector<Share>(1);
    std::vector<std::thread> helpers_;
    std::atomic<bool> leaving_{false};
    alignas(64) std::atomic<uint32_t> kernel_{0};  // its number
    alignas(64) std::atomic<uint32_t> unfinished_{0};
    // Of the kernel. They stay as they are while a piece of it is unfinished, and are read by nobody else.
    int64_t pieces_ = 0;
    void (*work_)(const void*, int64_t) = nullptr;
    const void* context_ = nullptr;
    std::mutex failing_;
    std::exception_ptr error_;

    int size() const { return int(shares_.size()); }
    int64_t end_of(int who) const { return pieces_ * (who + 1) / size(); }

    void help(int who, uint32_t seen) {
        pthread_setname_np(pthread_self(), "kernels");
        while (!leaving_) {
            wait_for_change(kernel_, seen);
            seen = kernel_.load(std::memory_order_acquire);
            leave_others_alone(who);
            work_through(who);
        }
    }

    // Two of a team on one core are no faster than one. It was seen in a virtual machine that they took turns on one, for seconds,
    // beside an idle core: Linux wakes a thread near where it slept. Why it found no idle core there is not known.
    void leave_others_alone(int who) {
        const int here = this_core();
        for (int other = 0; other < who; other++)
            if (here >= 0 && shares_[other].core.load(std::memory_order_relaxed) == here) {
                move_off(shares_, who);
                break;
            }
        shares_[who].core.store(this_core(), std::memory_order_relaxed);
    }

    // Takes pieces until there are none, the own ones first.
    void work_through(int who) {
        uint32_t finished = 0;
        for (int turn = 0; turn < size(); turn++) {
            const int owner = (who + turn) % size();
            while (const uint32_t left = shares_[owner].take()) {
                do_piece(end_of(owner) - left);
                finished++;
            }
        }
        if (finished && unfinished_.fetch_sub(finished) == finished) unfinished_.notify_one();
    }

    void do_piece(int64_t piece) {
        try {
            work_(context_, piece);
        } catch (...) {
            const std::lock_guard lock(failing_);
            error_ = std::current_exception();
        }
    }

    void leave() {
        leaving_ = true;
        kernel_++;
        kernel_.notify_all();
        for (std::thread& helper : helpers_) helper.join();
        helpers_.clear();
        leaving_ = false;
    }
};

// Never deleted: when the process ends, its threads end wherever they are.
std::atomic<Team*> team = nullptr;
std::atomic<int> wanted = 1;

// A process that was forked has none of the threads, so it gets a team of its own.
void make_team() { team = new Team; }
[[maybe_unused]] const int made = (make_team(), pthread_atfork(nullptr, nullptr, make_team));

}  // namespace

void set_team_size(int threads) { wanted = std::max(1, threads); }
int team_size() { return wanted; }

void share_out(int64_t pieces, void (*work)(const void*, int64_t), const void* context) {
    Team& all = *team;
    std::unique_lock lock(all.mine, std::defer_lock);
    if (pieces > 1 && wanted > 1 && lock.try_lock()) {
        all.resize(wanted);
        all.run(pieces, work, context);
    } else {
        for (int64_t piece = 0; piece < pieces; piece++) work(context, piece);
    }
}

}  // namespace headwater
