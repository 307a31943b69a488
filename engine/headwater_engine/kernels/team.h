// A team of threads that shares the work of a kernel.
//
// The work of a kernel is cut into pieces. Each thread of the team, the caller among them, has a share of neighbouring
// pieces; it takes one after the other, and then what is left of the others' shares. So a thread that gets no core takes
// nothing, and nobody waits for it: the caller waits only for pieces that somebody has begun.
//
// Who waits looks again and again for a short while, since in a step the next kernel is a few microseconds away, and
// then sleeps. Beside other processes the core goes to them, or to the thread that all wait for.
//
// OpenMP has none of this: its threads have fixed parts or take what they take in a queue, and wait for one another,
// awake, for milliseconds.
#pragma once

#include <cstdint>

namespace headwater {

// Threads that work on a kernel, the caller among them. Counts from the next kernel on; at least 1.
void set_team_size(int threads);
int team_size();

// Calls work(context, 0) to work(context, pieces - 1), each once, on any thread, and returns when all have returned. If
// some throw, one of the exceptions is thrown here. Several threads may call it: one has the team, others work alone.
void share_out(int64_t pieces, void (*work)(const void* context, int64_t piece), const void* context);

// The same for a function object f(piece).
template <typename F> void in_pieces(int64_t pieces, const F& f) {
    share_out(pieces, [](const void* context, int64_t piece) { (*static_cast<const F*>(context))(piece); }, &f);
}

// f(first, last) for parts of `count` things in a row, of at least `least` each where there are so many.
template <typename F> void in_ranges(int64_t count, int64_t least, const F& f) {
    const int64_t pieces = count <= least ? count > 0 : count / (least > 1 ? least : 1);
    in_pieces(pieces, [&](int64_t piece) { f(count * piece / pieces, count * (piece + 1) / pieces); });
}

}  // namespace headwater
