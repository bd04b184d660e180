#include <gtest/gtest.h>
#include <pthread.h>

#include <atomic>
#include <chrono>
#include <clocale>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>
#include <string>
#include <thread>
#include <vector>

#include "qvl/base/atomic_file.h"
#include "qvl/base/dtype.h"
#include "qvl/base/error.h"
#include "qvl/base/format.h"
#include "qvl/base/json.h"
#include "qvl/base/mapped_file.h"
#include "qvl/base/tensor.h"
#include "qvl/base/thread_pool.h"
#include "qvl/base/timestamp.h"

namespace qvl {
namespace {

std::filesystem::path temp_path(const char* name) {
  return std::filesystem::path(testing::TempDir()) / name;
}

template <typename Fn>
Error error_of(Fn fn) {
  try {
    fn();
  } catch (const Error& e) {
    return e;
  }
  ADD_FAILURE() << "no error was thrown";
  return Error(ErrorCode::kIo, "");
}

TEST(Error, MessageHasWhereWhatExpectedGotHint) {
  const Error e = error_of(
      [] { fail(ErrorCode::kMismatch, "a.safetensors", "shape of x", "[2, 3]", "[3, 2]", "transposed?"); });
  EXPECT_STREQ(e.what(), "[a.safetensors] shape of x: expected [2, 3], got [3, 2] (transposed?)");
  EXPECT_EQ(e.code(), ErrorCode::kMismatch);
}

TEST(DType, BFloat16RoundsToNearestEven) {
  EXPECT_EQ(to_bfloat16(1.0f).bits, 0x3f80);
  EXPECT_EQ(to_bfloat16(std::bit_cast<float>(0x3f808000u)).bits, 0x3f80);  // tie, even below
  EXPECT_EQ(to_bfloat16(std::bit_cast<float>(0x3f818000u)).bits, 0x3f82);  // tie, even above
  EXPECT_EQ(to_bfloat16(std::bit_cast<float>(0x3f808001u)).bits, 0x3f81);
  EXPECT_EQ(to_bfloat16(std::numeric_limits<float>::max()).bits, 0x7f80);
  EXPECT_TRUE(std::isnan(to_float(to_bfloat16(std::bit_cast<float>(0x7f800001u)))));
}

TEST(DType, EveryFloat16SurvivesTheRoundTrip) {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const Float16 h{static_cast<uint16_t>(bits)};
    const float f = to_float(h);
    if (std::isnan(f)) {
      EXPECT_TRUE(std::isnan(to_float(to_float16(f))));
    } else {
      ASSERT_EQ(to_float16(f).bits, bits);
    }
  }
  EXPECT_EQ(to_float16(65520.0f).bits, 0x7c00);
  EXPECT_EQ(to_float16(65519.0f).bits, 0x7bff);
  EXPECT_EQ(to_float16(0x1p-25f).bits, 0);  // tie to even zero
  EXPECT_EQ(to_float16(0x1.8p-25f).bits, 1);
  EXPECT_EQ(to_float16(1.0f + 0x1p-11f).bits, 0x3c00);
}

TEST(DType, ImpossibleShapesAreRefused) {
  EXPECT_EQ(element_count({2, 3, 0}), 0);
  EXPECT_EQ(error_of([] { element_count({-1}); }).code(), ErrorCode::kLimit);
  EXPECT_EQ(error_of([] { element_count({int64_t{1} << 40, int64_t{1} << 40}); }).code(), ErrorCode::kLimit);
}

TEST(Tensor, ConvertsAndReshapes) {
  Tensor t(DType::kF32, {2, 2});
  for (int i = 0; i < 4; ++i) t.as<float>()[i] = 1.0f + static_cast<float>(i) * 0.25f;
  const Tensor back = t.to(DType::kBF16).to(DType::kF16).to(DType::kF32);
  EXPECT_EQ(std::memcmp(back.data(), t.data(), t.size_bytes()), 0);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(t.data()) % 64, 0u);
  t.reshape({4});
  EXPECT_EQ(error_of([&] { t.reshape({5}); }).code(), ErrorCode::kMismatch);
}

TEST(Json, ErrorsNameTheFile) {
  const Error e = error_of([] { parse_json("{\"a\": ", "config.json"); });
  EXPECT_EQ(e.code(), ErrorCode::kFormat);
  EXPECT_NE(std::string(e.what()).find("[config.json] not valid JSON"), std::string::npos);
}

TEST(AtomicFile, NothingAppearsBeforeCommitAndTheOldFileStays) {
  const auto path = temp_path("atomic.txt");
  std::ofstream(path) << "old";
  {
    AtomicFile f(path);
    f.write("half");
  }
  EXPECT_EQ(read_file(path, 100), "old");
  {
    AtomicFile f(path);
    f.write("new");
    f.commit();
  }
  EXPECT_EQ(read_file(path, 100), "new");
  for (const auto& entry : std::filesystem::directory_iterator(path.parent_path())) {
    EXPECT_EQ(entry.path().string().find("atomic.txt.partial"), std::string::npos) << entry.path();
  }
}

TEST(MappedFile, MapsAndRefuses) {
  const auto path = temp_path("mapped.bin");
  std::ofstream(path) << "hello";
  const MappedFile f = MappedFile::open(path);
  EXPECT_EQ(f.bytes().size(), 5u);
  EXPECT_EQ(static_cast<char>(f.bytes()[4]), 'o');
  EXPECT_EQ(error_of([] { MappedFile::open(temp_path("absent")); }).code(), ErrorCode::kNotFound);
  EXPECT_EQ(error_of([] { MappedFile::open(testing::TempDir()); }).code(), ErrorCode::kIo);
  EXPECT_EQ(error_of([&] { read_file(path, 4); }).code(), ErrorCode::kLimit);
}

TEST(ThreadPool, EveryTaskRunsOnce) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    for (int round = 0; round < 200; ++round) {
      std::vector<std::atomic<int>> hits(37);
      pool.parallel_for(37, [&](int64_t i, int) { hits[static_cast<size_t>(i)]++; });
      for (auto& h : hits) ASSERT_EQ(h.load(), 1);
    }
  }
}

TEST(ThreadPool, ErrorsReachTheCallerAndThePoolLivesOn) {
  ThreadPool pool(3);
  EXPECT_EQ(error_of([&] {
              pool.parallel_for(100, [](int64_t i, int) {
                if (i == 41) fail(ErrorCode::kLimit, "task", "no");
              });
            }).code(),
            ErrorCode::kLimit);
  std::atomic<int> n{0};
  pool.run([&](int) { ++n; });
  EXPECT_EQ(n.load(), 3);
  EXPECT_EQ(error_of([] { ThreadPool p(0); }).code(), ErrorCode::kInvalidArgument);
  EXPECT_EQ(error_of([] { ThreadPool p(ThreadPool::kMaxThreads + 1); }).code(), ErrorCode::kInvalidArgument);
}

TEST(ThreadPool, ThreadsTheSystemRefusesAreAnError) {
  pthread_attr_t usual, huge;
  ASSERT_EQ(pthread_getattr_default_np(&usual), 0);
  ASSERT_EQ(pthread_attr_init(&huge), 0);
  ASSERT_EQ(pthread_attr_setstacksize(&huge, size_t{1} << 50), 0);
  ASSERT_EQ(pthread_setattr_default_np(&huge), 0);  // no address space has room for such a stack
  const Error e = error_of([] { ThreadPool p(3); });
  ASSERT_EQ(pthread_setattr_default_np(&usual), 0);
  EXPECT_EQ(e.code(), ErrorCode::kLimit) << e.what();
  EXPECT_NE(std::string(e.what()).find("expected 3, got 1"), std::string::npos) << e.what();
}

TEST(ThreadPool, ConcurrentCallersTakeTurns) {
  ThreadPool pool(3);
  int sum = 0;  // unprotected on purpose: loops of two callers must not overlap
  std::vector<std::thread> callers;
  for (int c = 0; c < 4; ++c) {
    callers.emplace_back([&] {
      for (int round = 0; round < 200; ++round) {
        pool.run([&](int thread) {
          if (thread == 1) ++sum;
        });
      }
    });
  }
  for (std::thread& c : callers) c.join();
  EXPECT_EQ(sum, 800);
}

TEST(ThreadPool, SleepingWorkersWakeForWorkAndForTheEnd) {
  for (int round = 0; round < 20; ++round) {
    ThreadPool pool(3);
    std::this_thread::sleep_for(std::chrono::milliseconds(2));  // past the spin, in and around falling asleep
    std::atomic<int> n{0};
    pool.run([&](int) { ++n; });
    ASSERT_EQ(n.load(), 3);
    pool.run([&](int thread) {
      if (thread == 2) std::this_thread::sleep_for(std::chrono::milliseconds(2));  // the caller sleeps too
      ++n;
    });
    ASSERT_EQ(n.load(), 6);
    if (round % 2 == 0) std::this_thread::sleep_for(std::chrono::milliseconds(2));
  }
}

TEST(Format, CatKeepsNeighbouringFloatsApart) {
  EXPECT_EQ(cat("frame ", 3, " of ", size_t{7}, std::string_view(": "), std::string("x")), "frame 3 of 7: x");
  EXPECT_EQ(cat(0.1f, " ", 23.976, " ", 23.9760001), "0.1 23.976 23.9760001");
}

// Trap 30: ties go to even on the exact binary value; the locale plays no part.
TEST(Timestamp, RoundsTheExactValueToEven) {
  EXPECT_EQ(format_timestamp(0.0), "<0.0 seconds>");
  EXPECT_EQ(format_timestamp(0.05), "<0.1 seconds>");
  EXPECT_EQ(format_timestamp(0.25), "<0.2 seconds>");
  EXPECT_EQ(format_timestamp(0.3), "<0.3 seconds>");
  EXPECT_EQ(format_timestamp(0.35), "<0.3 seconds>");  // the double is a little below
  EXPECT_EQ(format_timestamp(0.75), "<0.8 seconds>");
  EXPECT_EQ(format_timestamp(12345.96), "<12346.0 seconds>");
  EXPECT_EQ(format_timestamp(86399.95), "<86399.9 seconds>");
  EXPECT_EQ(format_timestamp(1e17), "<100000000000000000.0 seconds>");
  const char* old = std::setlocale(LC_NUMERIC, nullptr);
  const std::string saved = old != nullptr ? old : "C";
  if (std::setlocale(LC_NUMERIC, "de_DE.UTF-8") != nullptr) {
    EXPECT_EQ(format_timestamp(1.5), "<1.5 seconds>");
  }
  std::setlocale(LC_NUMERIC, saved.c_str());
}

TEST(Timestamp, RejectsWhatIsNoMoment) {
  for (const double bad : {std::nan(""), HUGE_VAL, -HUGE_VAL, -0.5}) {
    EXPECT_EQ(error_of([&] { format_timestamp(bad); }).code(), ErrorCode::kInvalidArgument) << bad;
  }
}

}  // namespace
}  // namespace qvl
