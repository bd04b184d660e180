#include "qvl/export/data_writer.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <span>
#include <utility>

#include "qvl/base/error.h"

namespace qvl::exporting {
namespace {

constexpr size_t kBlockBytes = size_t{2} << 20;

}  // namespace

DataWriter::DataWriter(const std::filesystem::path& folder, std::string file)
    : name_(std::move(file)),
      where_((folder / name_).string()),
      file_(std::make_unique<AtomicFile>(folder / name_)),
      block_(kBlockBytes) {}

DataWriter::~DataWriter() {
  if (pending_.valid()) pending_.wait();  // it uses our buffer
}

std::byte* DataWriter::buffer(size_t size_bytes) {
  AlignedBuffer& buffer = buffers_[turn_];
  if (buffer.size_bytes() < size_bytes) {
    buffer = AlignedBuffer();
    buffer = AlignedBuffer(size_bytes);
  }
  return buffer.data();
}

void DataWriter::write(uint64_t offset, size_t size_bytes) {
  if (offset < end_ || size_bytes > buffers_[turn_].size_bytes()) {
    fail(ErrorCode::kInvalidArgument, where_, "place of a piece", "at or after " + std::to_string(end_),
         std::to_string(offset));
  }
  wait();
  const uint64_t gap = offset - end_;
  end_ = offset + size_bytes;
  pending_ = std::async(std::launch::async, [this, gap, data = buffers_[turn_].data(), size_bytes] {
    static constexpr std::array<std::byte, 4096> kZeros{};
    for (uint64_t left = gap; left > 0;) {
      const auto zeros =
          std::span(kZeros).first(static_cast<size_t>(std::min<uint64_t>(left, kZeros.size())));
      append(zeros);
      left -= zeros.size();
    }
    append({data, size_bytes});
  });
  turn_ ^= 1;
}

void DataWriter::append(std::span<const std::byte> bytes) {
  hash_.add(bytes);
  while (!bytes.empty()) {
    const size_t n = std::min(bytes.size(), kBlockBytes - block_filled_bytes_);
    std::memcpy(block_.data() + block_filled_bytes_, bytes.data(), n);
    bytes = bytes.subspan(n);
    block_filled_bytes_ += n;
    if (block_filled_bytes_ < kBlockBytes) return;
    file_->write({block_.data(), kBlockBytes});
    block_filled_bytes_ = 0;
  }
}

void DataWriter::wait() {
  if (pending_.valid()) pending_.get();
}

package::FileEntry DataWriter::finish() {
  wait();
  file_->write({block_.data(), block_filled_bytes_});
  file_->commit();
  return {name_, end_, hash_.finish()};
}

}  // namespace qvl::exporting
