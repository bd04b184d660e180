#pragma once

#include <filesystem>
#include <memory>

#include "qvl/base/thread_pool.h"
#include "qvl/engine/composed.h"
#include "qvl/engine/native/open.h"
#include "qvl/package/package.h"

// A checkpoint or a package in the native engine. Throws what opening them throws.
inline std::shared_ptr<const qvl::engine::Engine> open_native(const std::filesystem::path& folder, int threads,
                                                               qvl::engine::KvType kv = qvl::engine::KvType::kAuto) {
  qvl::engine::EngineOptions options;
  options.threads = threads;
  options.kv = kv;
  if (!qvl::package::is_package_folder(folder)) return qvl::engine::native::open_checkpoint(folder, options);
  const auto package = std::make_shared<const qvl::package::Package>(qvl::package::Package::open(folder));
  auto pool = std::make_shared<qvl::ThreadPool>(threads);
  const qvl::engine::OpenedStages stages = qvl::engine::native::open_package(package, options, {}, pool);
  return qvl::engine::compose(package->config(), stages, stages, package->manifest().source.parameters, std::move(pool));
}
