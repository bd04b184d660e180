// What the fused operators of exported graphs stand for, so that `qvl info` can tell what was fused (spec
// 10).
#pragma once

#include <cstdint>
#include <string_view>

#include "qvl/package/package.h"

namespace qvl::exporting {

struct FusedOperator {
  std::string_view name;        // as Manifest's operator counts spell it: "com.microsoft.MatMulNBits"
  std::string_view stands_for;  // elementary standard operators, in order
  int64_t plain_nodes = 0;      // how many these are
};

// Null for an operator that is no fusion. Every com.microsoft operator that the graph functions write is
// known (tested).
const FusedOperator* find_fused(std::string_view name);

// Nodes that a graph of the package has when it is written with standard operators only (qvl export --plain),
// by writing it so in memory. Throws kNotFound when the package lacks the graph.
int64_t plain_node_count(const package::Package& package, package::GraphKind kind);

}  // namespace qvl::exporting
