// A small good table, and a directory to put it in.
#pragma once

#include <string>

#include "core/gpu.hpp"
#include "kernels/variant.hpp"
#include "table/table.hpp"
#include "tests/temporary_folder.hpp"

namespace moetune {

inline TableEntry entry_at(const TableIdentity& identity, std::int64_t num_tokens,
                           double median_us) {
  const Problem problem{identity.shape, identity.dtype, num_tokens, {}, 0};
  TableEntry entry;
  entry.plan = reference_plan(known_gpu(identity.gpu), problem);
  entry.timing = {median_us, median_us * 0.99, median_us * 1.02, 40, 0};
  entry.reference_us = median_us * 2;
  entry.speedup = 2;
  entry.rel_err = 0.0021;
  entry.registers = 128;
  entry.smem_bytes = 32768;
  return entry;
}

inline Table sample_table() {
  Table table;
  const Gpu gpu = known_gpu("h200");
  table.identity = {gpu.name,
                    arch_name(gpu),
                    "580.95",
                    "13.0",
                    {{{"hopper", "89abcdef"}, {"portable", "0123abcd"}}, "4567cdef"},
                    {"sample", 8, 2, 512, 256},
                    Dtype::bf16};
  table.created = "2026-01-31T09:30:00Z";
  table.command = "moe-tune search --grid --shape 8,2,512,256";
  table.seed = 7;
  for (const std::int64_t count : {1, 8, 64})
    table.entries[count] = entry_at(table.identity, count, 20.5 + static_cast<double>(count));
  return table;
}

}  // namespace moetune
