#include "qvl/export/data_writer.h"

#include <algorithm>
#include <array>
#include <span>
#include <utility>

#include "qvl/base/error.h"

namespace qvl::exporting {

DataWriter::DataWriter(const std::filesystem::path& folder, std::string file)
    : name_(std::move(file)),
      where_((folder / name_).string()),
      file_(std::make_unique<AtomicFile>(folder / name_)) {}

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
      file_->write(zeros);
      hash_.add(zeros);
      left -= zeros.size();
    }
    const std::span<const std::byte> piece(data, size_bytes);
    file_->write(piece);
    hash_.add(piece);
  });
  turn_ ^= 1;
}

void DataWriter::wait() {
  if (pending_.valid()) pending_.get();
}

package::FileEntry DataWriter::finish() {
  wait();
  file_->commit();
  return {name_, end_, hash_.finish()};
}

}  // namespace qvl::exporting
