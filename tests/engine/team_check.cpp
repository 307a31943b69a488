// What the team of threads promises, tried without Python: each check ends the process with its line if it fails.
#include "team.h"

#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

using namespace headwater;

#define CHECK(condition) \
    if (!(condition)) std::printf("line %d: %s\n", __LINE__, #condition), std::fflush(stdout), _exit(1)

static void each_piece_is_done_once() {
    for (int threads : {1, 2, 5, 3}) {
        set_team_size(threads);
        for (int64_t pieces = 0; pieces < 300; pieces++) {
            std::vector<std::atomic<int>> done(pieces);
            in_pieces(pieces, [&](int64_t piece) { done[piece]++; });
            for (auto& each : done) CHECK(each == 1);
        }
        for (int64_t count : {0, 1, 7, 64, 1000}) {
            std::vector<std::atomic<int>> done(count);
            in_ranges(count, 7, [&](int64_t first, int64_t last) {
                CHECK(last - first >= std::min<int64_t>(7, count));
                for (; first < last; first++) done[first]++;
            });
            for (auto& each : done) CHECK(each == 1);
        }
    }
}

// Whoever is held up in the midst of a piece keeps that one only: the others do the rest of its share.
static void nobody_waits_for_pieces_that_were_not_begun() {
    for (int threads : {2, 4}) {
        set_team_size(threads);
        for (int turn = 0; turn < 50; turn++) {
            std::atomic<int> done = 0;
            std::atomic<bool> held = false;
            in_pieces(100, [&](int64_t) {
                if (!held.exchange(true))
                    while (done < 99) std::this_thread::yield();
                done++;
            });
            CHECK(done == 100);
        }
    }
}

static void what_a_piece_throws_arrives_and_the_team_goes_on() {
    set_team_size(3);
    std::atomic<int> done = 0;
    std::string caught;
    try {
        in_pieces(50, [&](int64_t piece) {
            done++;
            if (piece % 10 == 3) throw std::runtime_error("a piece");
        });
    } catch (const std::runtime_error& error) {
        caught = error.what();
    }
    CHECK(caught == "a piece" && done == 50);
    in_pieces(50, [&](int64_t) { done++; });
    CHECK(done == 100);
}

static void several_threads_may_call_at_once() {
    set_team_size(2);
    std::atomic<int64_t> sum = 0;
    std::vector<std::thread> callers;
    for (int i = 0; i < 3; i++)
        callers.emplace_back([&] {
            for (int turn = 0; turn < 200; turn++) in_pieces(20, [&](int64_t piece) { sum += piece; });
        });
    for (auto& each : callers) each.join();
    CHECK(sum == 3 * 200 * 190);
}

static void a_piece_may_have_pieces() {
    set_team_size(2);
    std::atomic<int> done = 0;
    in_pieces(4, [&](int64_t) { in_pieces(5, [&](int64_t) { done++; }); });
    CHECK(done == 20);
}

static void a_forked_process_has_a_team_of_its_own() {
    set_team_size(2);
    std::atomic<int> done = 0;
    const auto count = [&](int64_t) { done++; };
    in_pieces(8, count);
    const pid_t child = fork();
    if (child == 0) {
        in_pieces(8, count);
        std::exit(done == 16 ? 0 : 1);  // as a process ends that has sleeping threads
    }
    int status = 0;
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    in_pieces(8, count);
    CHECK(done == 16);
}

int main() {
    each_piece_is_done_once();
    nobody_waits_for_pieces_that_were_not_begun();
    what_a_piece_throws_arrives_and_the_team_goes_on();
    several_threads_may_call_at_once();
    a_piece_may_have_pieces();
    a_forked_process_has_a_team_of_its_own();
    std::puts("all held");
}
